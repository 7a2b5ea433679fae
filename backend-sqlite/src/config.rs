//! Where the file is and how it is used.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use event_bus_core::clock::{Clock, SystemClock};
use event_bus_core::{Error, ErrorKind, Result};

use crate::error::error;

/// How a [`SqliteBackend`](crate::SqliteBackend) uses its file.
#[derive(Clone)]
pub struct SqliteConfig {
    pub(crate) path: PathBuf,
    pub(crate) synchronous: Synchronous,
    pub(crate) write_timeout: Duration,
    pub(crate) dedupe_retention: Duration,
    pub(crate) poll_interval: Duration,
    pub(crate) allow_network_filesystem: bool,
    pub(crate) clock: Arc<dyn Clock>,
}

/// What a commit waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Synchronous {
    /// The disk: what was published survives a power loss. The default; group commit makes it cheap.
    #[default]
    Full,
    /// The operating system: what was published survives the death of the process, but the last commits can be lost in a
    /// power loss. The file stays intact either way.
    Normal,
}

impl SqliteConfig {
    /// A database file, which [`migrate`](event_bus_core::EventBus::migrate) creates if there is none. It may be the
    /// application's own database: all tables of the event bus begin with `event_bus_`.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self {
            path: path.as_ref().to_owned(),
            synchronous: Synchronous::Full,
            write_timeout: Duration::from_secs(30),
            dedupe_retention: Duration::from_secs(24 * 60 * 60),
            poll_interval: Duration::from_millis(50),
            allow_network_filesystem: false,
            clock: Arc::new(SystemClock),
        }
    }

    /// Reads `sqlite://relative.db`, `sqlite:///absolute.db` or `sqlite:relative.db`, with the options
    /// `synchronous=full|normal`, `write_timeout_ms`, `dedupe_retention_ms`, `poll_interval_ms` and
    /// `allow_network_filesystem=true|false`; `mode=rwc` is accepted as well.
    ///
    /// # Errors
    /// `InvalidConfiguration` with everything that is wrong: another scheme, no path, an in-memory database, an unknown
    /// option or a value out of range.
    pub fn from_url(url: &str) -> Result<Self> {
        parse(url).map_err(|problems| invalid(problems.join("; ")))
    }

    /// What a commit waits for. Default: [`Synchronous::Full`].
    #[must_use]
    pub fn synchronous(mut self, synchronous: Synchronous) -> Self {
        self.synchronous = synchronous;
        self
    }

    /// How long a publish (or any other write) waits while another connection holds the write lock, before it is
    /// `Unavailable`. Default: 30 seconds.
    #[must_use]
    pub fn write_timeout(mut self, timeout: Duration) -> Self {
        self.write_timeout = timeout;
        self
    }

    /// How long an idempotency key is remembered. Default: 24 hours.
    #[must_use]
    pub fn dedupe_retention(mut self, retention: Duration) -> Self {
        self.dedupe_retention = retention;
        self
    }

    /// How often a worker looks whether another process has published, or a transaction of this one
    /// ([`within`](event_bus_core::Publish::within)) has committed. Default: 50 milliseconds. What this process publishes
    /// by itself is seen at once.
    #[must_use]
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = interval;
        self
    }

    /// Accepts a file on a network file system, where SQLite's locks and its write-ahead log cannot be relied on.
    /// Default: refused.
    #[must_use]
    pub fn allow_network_filesystem(mut self, is_allowed: bool) -> Self {
        self.allow_network_filesystem = is_allowed;
        self
    }

    /// The wall clock by which delays end; for simulations.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// The database file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl fmt::Debug for SqliteConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteConfig")
            .field("path", &self.path)
            .field("synchronous", &self.synchronous)
            .field("write_timeout", &self.write_timeout)
            .field("dedupe_retention", &self.dedupe_retention)
            .field("poll_interval", &self.poll_interval)
            .field("allow_network_filesystem", &self.allow_network_filesystem)
            .finish_non_exhaustive()
    }
}

fn invalid(message: String) -> Error {
    error(ErrorKind::InvalidConfiguration, "connect", message)
}

fn parse(url: &str) -> Result<SqliteConfig, Vec<String>> {
    let Some(rest) = url.strip_prefix("sqlite:") else {
        return Err(vec![
            "the url does not begin with sqlite: (write sqlite:///absolute/path.db)".to_owned(),
        ]);
    };
    let rest = rest.strip_prefix("//").unwrap_or(rest);
    let (path, options) = rest.split_once('?').unwrap_or((rest, ""));
    let mut problems = Vec::new();
    let path = decode(path).unwrap_or_else(|problem| {
        problems.push(problem);
        String::new()
    });
    let mut config = SqliteConfig::new(&path);
    for option in options.split('&').filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        if let Err(problem) = config.set(name, value) {
            problems.push(problem);
        }
    }
    if path == ":memory:" || path.starts_with("file:") {
        problems.push(IN_MEMORY.to_owned());
    } else if path.is_empty() && problems.is_empty() {
        problems.push("the url names no file (write sqlite:///absolute/path.db)".to_owned());
    }
    if problems.is_empty() { Ok(config) } else { Err(problems) }
}

const IN_MEMORY: &str = "an in-memory database keeps nothing: name a file, a temporary one in tests, or use the \
                         inline backend";

impl SqliteConfig {
    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let millis = || {
            value
                .parse()
                .map(Duration::from_millis)
                .map_err(|_| format!("{name}={value} is not a whole number of milliseconds"))
        };
        match (name, value) {
            ("mode", "rwc" | "rw") => {}
            ("mode", "memory") => return Err(IN_MEMORY.to_owned()),
            ("synchronous", "full") => self.synchronous = Synchronous::Full,
            ("synchronous", "normal") => self.synchronous = Synchronous::Normal,
            ("allow_network_filesystem", "true") => self.allow_network_filesystem = true,
            ("allow_network_filesystem", "false") => self.allow_network_filesystem = false,
            ("write_timeout_ms", _) => self.write_timeout = millis()?,
            ("dedupe_retention_ms", _) => self.dedupe_retention = millis()?,
            ("poll_interval_ms", _) => self.poll_interval = millis()?,
            ("mode" | "synchronous" | "allow_network_filesystem", _) => {
                return Err(format!("{name}={value} is not a value of this option"));
            }
            _ => {
                return Err(format!(
                    "{name} is not an option; there are synchronous, write_timeout_ms, \
                     dedupe_retention_ms, poll_interval_ms, allow_network_filesystem"
                ));
            }
        }
        Ok(())
    }

    /// Everything that is wrong with the settings.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let path = self.path.as_os_str();
        if path.is_empty() {
            problems.push("the path of the database is empty".to_owned());
        }
        if path == ":memory:" {
            problems.push(IN_MEMORY.to_owned());
        }
        if self.poll_interval.is_zero() {
            problems.push("poll_interval is 0; it needs at least 1 millisecond".to_owned());
        }
        problems
    }
}

/// Undoes percent encoding.
fn decode(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes().iter();
    while let Some(byte) = rest.next() {
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let digits = rest.as_slice().get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let value = digits.and_then(|digits| {
            // from_str_radix would take a sign as well.
            let is_hexadecimal = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            is_hexadecimal.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
        });
        let Some(value) = value else {
            return Err("the url has a % that is not followed by two digits".to_owned());
        };
        bytes.push(value);
        rest = rest.as_slice()[2..].iter();
    }
    String::from_utf8(bytes).map_err(|_| "the path in the url is not UTF-8".to_owned())
}
