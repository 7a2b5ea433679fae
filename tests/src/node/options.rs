//! What a node is told to do.

use std::path::PathBuf;

/// The arguments.
#[derive(Debug, Default)]
pub(super) struct Options {
    pub(super) url: String,
    pub(super) history: PathBuf,
    /// The number of this process in the history; never used twice in one.
    pub(super) number: u32,
    pub(super) is_worker: bool,
    /// How many events.
    pub(super) publish: u64,
    pub(super) keys: u64,
    pub(super) batch: u64,
}

impl Options {
    pub(super) fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self { keys: 1, batch: 1, ..Self::default() };
        while let Some(name) = arguments.next() {
            if name == "--work" {
                options.is_worker = true;
                continue;
            }
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            let number = || value.parse::<u64>().map_err(|error| format!("{name} {value}: {error}"));
            match &*name {
                "--url" => options.url = value,
                "--history" => options.history = value.into(),
                "--number" => options.number = number()?.try_into().map_err(|_| format!("{name} {value}"))?,
                "--publish" => options.publish = number()?,
                "--keys" => options.keys = number()?.max(1),
                "--batch" => options.batch = number()?.max(1),
                _ => return Err(format!("{name} is not an option")),
            }
        }
        if options.url.is_empty() || options.history.as_os_str().is_empty() {
            return Err("--url and --history are needed".to_owned());
        }
        Ok(options)
    }
}
