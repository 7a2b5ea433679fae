//! What a node is told to do.

use std::path::PathBuf;
use std::time::Duration;

use super::manners::Manners;

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
    /// How long to wait between two calls.
    pub(super) pause: Duration,
    /// What the handlers do with what is published here; all succeed at once if it is `None`.
    pub(super) acts: Option<fastrand::Rng>,
    /// Every call has an idempotency key and is made again until its outcome is known.
    pub(super) is_idempotent: bool,
    /// What its handlers do whatever the event says.
    pub(super) manners: Manners,
    /// It replays dead letters until there are none.
    pub(super) is_replaying: bool,
    /// How long runs may take after the word to stop.
    pub(super) grace: Option<Duration>,
}

impl Options {
    pub(super) fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self { keys: 1, batch: 1, ..Self::default() };
        while let Some(name) = arguments.next() {
            let flag = match &*name {
                "--work" => Some(&mut options.is_worker),
                "--idempotent" => Some(&mut options.is_idempotent),
                "--replay" => Some(&mut options.is_replaying),
                "--second-releases" => Some(&mut options.manners.second_releases),
                "--discards" => Some(&mut options.manners.discards),
                "--new" => Some(&mut options.manners.is_new),
                _ => None,
            };
            if let Some(flag) = flag {
                *flag = true;
                continue;
            }
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            let number = || value.parse::<u64>().map_err(|error| format!("{name} {value}: {error}"));
            match &*name {
                "--url" => options.url = value,
                "--history" => options.history = value.into(),
                "--number" => options.number = small(&name, number()?)?,
                "--publish" => options.publish = number()?,
                "--keys" => options.keys = number()?.max(1),
                "--batch" => options.batch = number()?.max(1),
                "--pause-ms" => options.pause = Duration::from_millis(number()?),
                "--acts-of" => options.acts = Some(fastrand::Rng::with_seed(number()?)),
                "--timeout-ms" => options.manners.timeout = Some(Duration::from_millis(number()?)),
                "--backoff-ms" => options.manners.backoff = Duration::from_millis(number()?),
                "--max-attempts" => options.manners.max_attempts = small(&name, number()?)?,
                "--second-priority" => options.manners.second_priority = small(&name, number()?)?,
                "--concurrency" => options.manners.concurrency = Some(small(&name, number()?)?),
                "--outage" => options.manners.outage = Some(value.into()),
                "--handlers" => options.manners.handlers = value.split(',').map(str::to_owned).collect(),
                "--grace-ms" => options.grace = Some(Duration::from_millis(number()?)),
                _ => return Err(format!("{name} is not an option")),
            }
        }
        if options.url.is_empty() || options.history.as_os_str().is_empty() {
            return Err("--url and --history are needed".to_owned());
        }
        Ok(options)
    }
}

/// A number of a smaller type.
fn small<T: TryFrom<u64>>(name: &str, number: u64) -> Result<T, String> {
    number.try_into().map_err(|_| format!("{name} {number} is too much"))
}
