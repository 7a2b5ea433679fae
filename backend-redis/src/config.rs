//! Where the server is and how it is used.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use event_bus_core::{Error, ErrorKind, Result};
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _};

use crate::error::error;

/// How a [`RedisBackend`](crate::RedisBackend) uses its server.
#[derive(Clone)]
pub struct RedisConfig {
    pub(crate) connection: ConnectionInfo,
    pub(crate) bus: String,
    pub(crate) durability: Durability,
    pub(crate) allow_volatile: bool,
    pub(crate) lease: Duration,
    pub(crate) command_timeout: Duration,
    pub(crate) publish_timeout: Duration,
    pub(crate) dedupe_retention: Duration,
    pub(crate) ca_file: Option<PathBuf>,
}

/// What the Ok of a publish means. Each is checked against the server's settings; the table is in the crate's README.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// The append-only file is on, and the server writes it to the disk about once a second: what was published survives
    /// the end of the server's process, but about the last two seconds can be lost in a power loss. The default.
    #[default]
    Everysec,
    /// The server runs with `appendfsync always`: what was published survives a power loss.
    Fsync,
    /// As [`Everysec`](Self::Everysec), and this many replicas have it as well.
    Replicated(u32),
}

/// Characters of a bus's name: what stands in a cluster's hash tag and is easy to read in a list of keys.
const BUS_CHARACTERS: &str = "a-z A-Z 0-9 . _ -";

/// The options of a url, for messages.
const OPTIONS: &str = "bus, durability, lease_ms, command_timeout_ms, publish_timeout_ms, dedupe_retention_ms, \
                       allow_volatile, ca_file";

impl RedisConfig {
    /// Reads `redis://user:password@host:6379/0`, or `rediss://` for TLS, with the options `bus=name`,
    /// `durability=everysec|fsync|replicated:2`, `lease_ms`, `command_timeout_ms`, `publish_timeout_ms`,
    /// `dedupe_retention_ms`, `allow_volatile=true|false` and `ca_file=/path/of/ca.pem`.
    ///
    /// # Errors
    /// `InvalidConfiguration` with everything that is wrong. No message shows the url: it may hold a password.
    pub fn from_url(url: &str) -> Result<Self> {
        parse(url).map_err(|problems| invalid(problems.join("; ")))
    }

    /// The name of the bus, before which all keys begin with `{name}`: several buses can live on one server. Default:
    /// `event-bus`.
    #[must_use]
    pub fn bus(mut self, name: impl Into<String>) -> Self {
        self.bus = name.into();
        self
    }

    /// What the Ok of a publish means. Default: [`Durability::Everysec`].
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Accepts a server that may forget: without an append-only file, or with a policy that evicts keys. For caches of
    /// events and for tests. Default: refused.
    #[must_use]
    pub fn allow_volatile(mut self, is_allowed: bool) -> Self {
        self.allow_volatile = is_allowed;
        self
    }

    /// How long a worker that does not answer keeps its right to work: after this others take over what it had. Shorter,
    /// and a slow server or a busy runtime costs a worker its right; longer, and a crash stops the keys of that worker for
    /// longer. At least 500 milliseconds. Default: 10 seconds.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// How long one request waits for its answer. Default: 5 seconds.
    #[must_use]
    pub fn command_timeout(mut self, timeout: Duration) -> Self {
        self.command_timeout = timeout;
        self
    }

    /// How long a publish is tried again while the server cannot be reached. Default: 15 seconds.
    #[must_use]
    pub fn publish_timeout(mut self, timeout: Duration) -> Self {
        self.publish_timeout = timeout;
        self
    }

    /// How long an idempotency key is remembered. Default: 24 hours.
    #[must_use]
    pub fn dedupe_retention(mut self, retention: Duration) -> Self {
        self.dedupe_retention = retention;
        self
    }

    /// Certificates (PEM) of the authorities that `rediss` trusts, instead of the system's.
    #[must_use]
    pub fn ca_file(mut self, path: impl AsRef<Path>) -> Self {
        self.ca_file = Some(path.as_ref().to_owned());
        self
    }

    /// The server, as it may be shown: host and port.
    pub(crate) fn server(&self) -> String {
        match self.connection.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                format!("{host}:{port}")
            }
            ConnectionAddr::Unix(path) => path.display().to_string(),
            _ => "of this address".to_owned(),
        }
    }

    /// Before what all keys begin.
    pub(crate) fn base(&self) -> String {
        format!("{{{}}}", self.bus)
    }

    /// Everything that is wrong with the settings.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let is_fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if self.bus.is_empty() || self.bus.len() > 128 || !self.bus.chars().all(is_fit) {
            problems.push(format!("bus is {:?}; it needs 1 to 128 characters of {BUS_CHARACTERS}", self.bus));
        }
        if self.lease < Duration::from_millis(500) {
            problems.push(format!("lease is {:?}; it needs at least 500 milliseconds", self.lease));
        }
        if self.durability == Durability::Replicated(0) {
            problems.push("durability is Replicated(0); it needs at least one replica".to_owned());
        }
        for (name, timeout) in [
            ("command_timeout", self.command_timeout),
            ("publish_timeout", self.publish_timeout),
            ("dedupe_retention", self.dedupe_retention),
        ] {
            if timeout < Duration::from_millis(1) {
                problems.push(format!("{name} is {timeout:?}; it needs at least 1 millisecond"));
            }
        }
        problems
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let millis = || {
            value
                .parse()
                .map(Duration::from_millis)
                .map_err(|_| format!("{name}={value} is not a whole number of milliseconds"))
        };
        match (name, value) {
            ("bus", _) => self.bus = value.to_owned(),
            ("durability", "everysec") => self.durability = Durability::Everysec,
            ("durability", "fsync") => self.durability = Durability::Fsync,
            ("durability", _) => {
                let replicas = value.strip_prefix("replicated:").and_then(|count| count.parse().ok());
                let replicas = replicas.ok_or_else(|| {
                    format!("durability={value} is not a value of this option: everysec, fsync or replicated:<replicas>")
                })?;
                self.durability = Durability::Replicated(replicas);
            }
            ("allow_volatile", "true") => self.allow_volatile = true,
            ("allow_volatile", "false") => self.allow_volatile = false,
            ("allow_volatile", _) => return Err(format!("{name}={value} is not a value of this option")),
            ("lease_ms", _) => self.lease = millis()?,
            ("command_timeout_ms", _) => self.command_timeout = millis()?,
            ("publish_timeout_ms", _) => self.publish_timeout = millis()?,
            ("dedupe_retention_ms", _) => self.dedupe_retention = millis()?,
            ("ca_file", _) => self.ca_file = Some(value.into()),
            _ => return Err(format!("{name} is not an option; there are {OPTIONS}")),
        }
        Ok(())
    }
}

impl fmt::Debug for RedisConfig {
    /// Without user and password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig")
            .field("server", &self.server())
            .field("database", &self.connection.redis_settings().db())
            .field("bus", &self.bus)
            .field("durability", &self.durability)
            .field("allow_volatile", &self.allow_volatile)
            .field("lease", &self.lease)
            .field("command_timeout", &self.command_timeout)
            .field("publish_timeout", &self.publish_timeout)
            .field("dedupe_retention", &self.dedupe_retention)
            .field("ca_file", &self.ca_file)
            .finish()
    }
}

fn invalid(message: String) -> Error {
    error(ErrorKind::InvalidConfiguration, "connect", message)
}

fn parse(url: &str) -> Result<RedisConfig, Vec<String>> {
    let (address, options) = url.split_once('?').unwrap_or((url, ""));
    // The source would show the url.
    let connection = address.into_connection_info().map_err(|_| {
        vec![
            "the url cannot be read: write redis://user:password@host:6379/0, or rediss:// for TLS"
                .to_owned(),
        ]
    })?;
    // No look at the client's name and version: one command less to allow.
    let settings = connection.redis_settings().clone().set_skip_set_lib_name();
    let mut config = RedisConfig {
        connection: connection.set_redis_settings(settings),
        bus: "event-bus".to_owned(),
        durability: Durability::Everysec,
        allow_volatile: false,
        lease: Duration::from_secs(10),
        command_timeout: Duration::from_secs(5),
        publish_timeout: Duration::from_secs(15),
        dedupe_retention: Duration::from_secs(24 * 60 * 60),
        ca_file: None,
    };
    let mut problems = Vec::new();
    for option in options.split('&').filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        if let Err(problem) = config.set(name, value) {
            problems.push(problem);
        }
    }
    if problems.is_empty() { Ok(config) } else { Err(problems) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str) -> String {
        let error = RedisConfig::from_url(url).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfiguration);
        error.to_string()
    }

    #[test]
    fn a_url_sets_everything() {
        let config = RedisConfig::from_url(
            "redis://anna:secret@db.example:7000/3?bus=orders&durability=replicated:2&lease_ms=1500&allow_volatile=true\
             &command_timeout_ms=100&publish_timeout_ms=200&dedupe_retention_ms=300",
        )
        .unwrap();
        assert_eq!(config.server(), "db.example:7000");
        assert_eq!(config.base(), "{orders}");
        assert_eq!(config.durability, Durability::Replicated(2));
        assert_eq!(config.lease, Duration::from_millis(1_500));
        assert!(config.allow_volatile);
        assert_eq!(config.connection.redis_settings().db(), 3);
        assert_eq!(config.connection.redis_settings().password(), Some("secret"));
        assert!(config.problems().is_empty());
    }

    #[test]
    fn nothing_shows_the_password() {
        let config = RedisConfig::from_url("redis://anna:hunter2@db").unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
        for url in ["redis://anna:hunter2@db:port", "redis:anna:hunter2", "redis://anna:hunter2@db?bus"] {
            let text = RedisConfig::from_url(url)
                .map_or_else(|error| format!("{error:?}"), |config| format!("{config:?}"));
            assert!(!text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_in_a_url_is_named() {
        let text = refusal("redis://db?colour=red&lease_ms=soon&durability=maybe");
        for part in ["colour is not an option", "lease_ms=soon", "durability=maybe", "allow_volatile"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let config = RedisConfig::from_url(
            "redis://db?bus=a{b&lease_ms=1&durability=replicated:0&command_timeout_ms=0",
        );
        let problems = config.unwrap().problems().join("; ");
        for part in ["\"a{b\"", "lease is 1ms", "Replicated(0)", "command_timeout is 0"] {
            assert!(problems.contains(part), "{problems}");
        }
    }
}
