//! Runs cargo in the repository's root, and shows what is run.

use std::fmt;
use std::io::{self, BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::thread;

/// Why a command ended early, for a person to read.
#[derive(Debug)]
pub(crate) struct Failed(pub(crate) String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The repository.
pub(crate) fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// One call of cargo.
pub(crate) struct Cargo {
    shown: String,
    command: Command,
}

impl Cargo {
    /// A call with these arguments, separated by spaces.
    pub(crate) fn new(arguments: &str) -> Self {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(root()).args(arguments.split_whitespace());
        Self { shown: format!("cargo {arguments}"), command }
    }

    /// Adds arguments that may contain spaces.
    pub(crate) fn args<'a>(mut self, arguments: impl IntoIterator<Item = &'a &'a str>) -> Self {
        for argument in arguments {
            self.shown.push(' ');
            self.shown.push_str(argument);
            self.command.arg(argument);
        }
        self
    }

    /// Sets a variable of the environment.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.shown = format!("{name}={value:?} {}", self.shown);
        self.command.env(name, value);
        self
    }

    /// Runs it; anything but success is a failure.
    pub(crate) fn run(mut self) -> Result<(), Failed> {
        self.show();
        let status = self.command.status().map_err(|error| self.not_started(&error))?;
        self.expect_success(status)
    }

    /// Runs it silently and answers with what it wrote.
    pub(crate) fn read(mut self) -> Result<String, Failed> {
        let output = self.output()?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Err(Failed(format!("failed: {}\n{errors}", self.shown)));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs it silently, to success or failure.
    pub(crate) fn output(&mut self) -> Result<Output, Failed> {
        self.command.output().map_err(|error| self.not_started(&error))
    }

    /// Runs it, shows each line it writes, and shows it to `look` as well. Answers with its end.
    pub(crate) fn watch(mut self, mut look: impl FnMut(&str)) -> Result<ExitStatus, Failed> {
        self.show();
        // Colours would stand between the words that are looked for.
        self.command.env("CARGO_TERM_COLOR", "never").stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().map_err(|error| self.not_started(&error))?;
        let (lines, written) = mpsc::channel();
        let readers: [Option<Box<dyn io::Read + Send>>; 2] = [
            child.stdout.take().map(|pipe| Box::new(pipe) as _),
            child.stderr.take().map(|pipe| Box::new(pipe) as _),
        ];
        for reader in readers.into_iter().flatten() {
            let lines = lines.clone();
            thread::spawn(move || {
                for line in BufReader::new(reader).lines().map_while(Result::ok) {
                    // The receiver lives until both pipes are closed.
                    let _ = lines.send(line);
                }
            });
        }
        drop(lines);
        for line in written {
            println!("{line}");
            look(&line);
        }
        child.wait().map_err(|error| self.not_started(&error))
    }

    fn show(&self) {
        println!("\n$ {}", self.shown);
    }

    fn expect_success(&self, status: ExitStatus) -> Result<(), Failed> {
        if status.success() { Ok(()) } else { Err(Failed(format!("failed ({status}): {}", self.shown))) }
    }

    fn not_started(&self, error: &io::Error) -> Failed {
        Failed(format!("could not run: {}: {error}", self.shown))
    }
}

/// Runs another program; anything but success is a failure.
pub(crate) fn run(mut command: Command, shown: &str) -> Result<(), Failed> {
    println!("\n$ {shown}");
    let status = command.status().map_err(|error| Failed(format!("could not run: {shown}: {error}")))?;
    if status.success() { Ok(()) } else { Err(Failed(format!("failed ({status}): {shown}"))) }
}

/// Whether cargo knows this subcommand.
pub(crate) fn has_subcommand(name: &str) -> bool {
    Cargo::new(name).args(&["--version"]).output().is_ok_and(|output| output.status.success())
}
