//! Where the database is and how it is used.

use std::fmt;
use std::str::FromStr as _;
use std::time::Duration;

use event_bus_core::{Error, ErrorKind, Result};
use sqlx::postgres::PgConnectOptions;

use crate::error::error;

/// How a [`PostgresBackend`](crate::PostgresBackend) uses its database.
#[derive(Clone)]
pub struct PostgresConfig {
    pub(crate) options: PgConnectOptions,
    pub(crate) direct: Option<PgConnectOptions>,
    pub(crate) schema: String,
    pub(crate) is_notifying: bool,
    pub(crate) is_pooled: bool,
    pub(crate) is_strict: bool,
    pub(crate) max_connections: u32,
    pub(crate) write_timeout: Duration,
    pub(crate) handover_delay: Duration,
    pub(crate) notify_interval: Duration,
    pub(crate) dedupe_retention: Duration,
}

/// The longest schema name: its tables' names must fit as well where they stand together, in channels.
const MAX_SCHEMA: usize = 48;

/// Longer than this is not waited for a server that a worker cannot see; the owner's trust ends before.
const MAX_HANDOVER: Duration = Duration::from_secs(60);

impl PostgresConfig {
    /// The database of a url: `postgres://user:password@host:5432/database`.
    ///
    /// Options of the bus: `schema`, `notify=on|off`, `pooler=true|false`, `strict_commit_order=true|false`, `direct_url` (with `:`, `/`, `@` and the like as
    /// `%3A`, `%2F`, `%40`), `max_connections`, `write_timeout_ms`,
    /// `handover_delay_ms`, `notify_interval_ms`, `dedupe_retention_ms`. Options of the connection: `sslmode`,
    /// `sslrootcert`, `sslcert`, `sslkey`, `host` (a directory for a Unix socket), `port`, `dbname`, `user`, `password`,
    /// `application_name`, `options`.
    ///
    /// # Errors
    /// `InvalidConfiguration` with everything that is wrong. No message shows the url: it may hold a password.
    pub fn from_url(url: &str) -> Result<Self> {
        parse(url).map_err(|problems| invalid(&problems))
    }

    /// The schema in which the tables are; created by [`migrate`](event_bus_core::EventBus::migrate). Each schema of a
    /// database is a bus of its own. Lower-case letters, digits and underscores. Default: `event_bus`.
    #[must_use]
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = schema.into();
        self
    }

    /// Whether a publish wakes the workers of other processes with NOTIFY, and workers listen. Without it they look at
    /// intervals ([`poll_interval`](event_bus_core::Builder::poll_interval)), as they do in any case. Default: on.
    #[must_use]
    pub fn notify(mut self, is_notifying: bool) -> Self {
        self.is_notifying = is_notifying;
        self
    }

    /// Whether the url leads to a pooler in transaction mode (PgBouncer): no statement has a name and none relies on the
    /// state of a session. Publishing, dead letters and migrations work through it; a worker needs a server of its own,
    /// see [`direct_url`](Self::direct_url). Default: false.
    #[must_use]
    pub fn pooler(mut self, is_pooled: bool) -> Self {
        self.is_pooled = is_pooled;
        self
    }

    /// The same database without a pooler in between: workers and migrations connect here.
    ///
    /// # Errors
    /// `InvalidConfiguration`: not a url of a database.
    pub fn direct_url(mut self, url: &str) -> Result<Self> {
        self.direct = Some(connect_options(url, "").map_err(|problem| invalid(&[problem]))?);
        Ok(self)
    }

    /// Whether deliveries of a key run in the order in which their publishers' transactions *committed*, and not only in
    /// the order of calls of which one had returned before the other was made.
    ///
    /// Without it, an event that is published `within` a transaction that stays open is seen when that commits: what other
    /// publishers have stored under its key meanwhile may run before it. With it, a publish takes a lock
    /// (`pg_advisory_xact_lock`) for each of its keys and keeps it until its transaction has ended, so that every other
    /// publisher of the key waits that long, at most for [`write_timeout`](Self::write_timeout). Two transactions that
    /// publish several keys each in several calls, in different orders, may wait for one another; PostgreSQL then ends one
    /// of them. Calls with keys do not share statements any more: they are slower, and bounded by
    /// [`max_connections`](Self::max_connections). All publishers of a bus must have it, or none can rely on it.
    ///
    /// Default: false.
    #[must_use]
    pub fn strict_commit_order(mut self, is_strict: bool) -> Self {
        self.is_strict = is_strict;
        self
    }

    /// The most connections for publishing with an idempotency key or a delay, and for looking at dead letters and
    /// counts. A process has one more that all other publish calls share, and two more for each worker. Default: 4.
    #[must_use]
    pub fn max_connections(mut self, connections: u32) -> Self {
        self.max_connections = connections;
        self
    }

    /// How long a publish waits for the database before it is `Unavailable`. Default: 30 seconds.
    #[must_use]
    pub fn write_timeout(mut self, timeout: Duration) -> Self {
        self.write_timeout = timeout;
        self
    }

    /// How long a worker waits before it runs what a vanished one held: for the time in which that one, if it still
    /// lives, finds out that its session is gone. It looks four times as often. Default: 2 seconds.
    #[must_use]
    pub fn handover_delay(mut self, delay: Duration) -> Self {
        self.handover_delay = delay;
        self
    }

    /// At most one NOTIFY in this time. Default: 25 milliseconds.
    #[must_use]
    pub fn notify_interval(mut self, interval: Duration) -> Self {
        self.notify_interval = interval;
        self
    }

    /// How long an idempotency key is remembered at least; workers forget it then. Default: 24 hours.
    #[must_use]
    pub fn dedupe_retention(mut self, retention: Duration) -> Self {
        self.dedupe_retention = retention;
        self
    }

    /// The database in words, without password.
    pub(crate) fn place(&self) -> String {
        let options = &self.options;
        let host = options.get_socket().map_or_else(
            || format!("{}:{}", options.get_host(), options.get_port()),
            |path| path.display().to_string(),
        );
        format!(
            "{host}/{} (schema {})",
            options.get_database().unwrap_or(options.get_username()),
            self.schema
        )
    }

    /// Everything that is wrong with the settings.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let is_name = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
                && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
                && name.len() <= MAX_SCHEMA
                && !name.starts_with("pg_")
        };
        if !is_name(&self.schema) {
            problems.push(format!(
                "schema {:?} is no name for the bus: 1 to {MAX_SCHEMA} lower-case letters, digits and underscores, not \
                 beginning with a digit or pg_",
                self.schema
            ));
        }
        if self.max_connections == 0 {
            problems.push("max_connections is 0; at least 1 is needed".to_owned());
        }
        if self.write_timeout < Duration::from_millis(100) {
            problems.push(format!("write_timeout {:?} is below 100 ms", self.write_timeout));
        }
        if self.handover_delay < Duration::from_millis(40) || self.handover_delay > MAX_HANDOVER {
            problems.push(format!(
                "handover_delay {:?} is outside 40 ms to {MAX_HANDOVER:?}",
                self.handover_delay
            ));
        }
        problems
    }

    fn set(&mut self, name: &str, value: &str) -> Result<bool, String> {
        let millis = || {
            value
                .parse()
                .map(Duration::from_millis)
                .map_err(|_| format!("{name}={value} is not a whole number of milliseconds"))
        };
        match (name, value) {
            ("schema", _) => self.schema = value.to_owned(),
            ("direct_url", _) => self.direct = Some(connect_options(&decode(value)?, "")?),
            ("notify", "on" | "true") => self.is_notifying = true,
            ("notify", "off" | "false") => self.is_notifying = false,
            ("pooler", "true" | "on") => self.is_pooled = true,
            ("pooler", "false" | "off") => self.is_pooled = false,
            ("strict_commit_order", "true" | "on") => self.is_strict = true,
            ("strict_commit_order", "false" | "off") => self.is_strict = false,
            ("max_connections", _) => {
                self.max_connections =
                    value.parse().map_err(|_| format!("{name}={value} is not a whole number"))?;
            }
            ("write_timeout_ms", _) => self.write_timeout = millis()?,
            ("handover_delay_ms", _) => self.handover_delay = millis()?,
            ("notify_interval_ms", _) => self.notify_interval = millis()?,
            ("dedupe_retention_ms", _) => self.dedupe_retention = millis()?,
            ("notify" | "pooler" | "strict_commit_order", _) => {
                return Err(format!("{name}={value} is not a value of this option"));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

impl fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresConfig")
            .field("place", &self.place())
            .field("is_direct", &self.direct.is_some())
            .field("notify", &self.is_notifying)
            .field("pooler", &self.is_pooled)
            .field("strict_commit_order", &self.is_strict)
            .field("max_connections", &self.max_connections)
            .field("write_timeout", &self.write_timeout)
            .field("handover_delay", &self.handover_delay)
            .field("notify_interval", &self.notify_interval)
            .field("dedupe_retention", &self.dedupe_retention)
            .finish_non_exhaustive()
    }
}

fn invalid(problems: &[String]) -> Error {
    error(ErrorKind::InvalidConfiguration, "connect", problems.join("; "))
}

/// What sqlx reads from a url; everything else it would ignore with a warning.
const CONNECTION_OPTIONS: [&str; 17] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

fn parse(url: &str) -> Result<PostgresConfig, Vec<String>> {
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let mut problems = Vec::new();
    let mut kept = Vec::new();
    let mut ours = Vec::new();
    for option in query.split('&').filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        if CONNECTION_OPTIONS.contains(&name) || name.starts_with("options[") {
            kept.push(option);
        } else {
            ours.push((name, value));
        }
    }
    let options = match connect_options(base, &kept.join("&")) {
        Ok(options) => options,
        Err(problem) => {
            problems.push(problem);
            PgConnectOptions::new_without_pgpass()
        }
    };
    let mut config = PostgresConfig {
        options,
        direct: None,
        schema: "event_bus".to_owned(),
        is_notifying: true,
        is_pooled: false,
        is_strict: false,
        max_connections: 4,
        write_timeout: Duration::from_secs(30),
        handover_delay: Duration::from_secs(2),
        notify_interval: Duration::from_millis(25),
        dedupe_retention: Duration::from_secs(24 * 60 * 60),
    };
    for (name, value) in ours {
        match config.set(name, value) {
            Ok(true) => {}
            // The value may be a secret that was written in the wrong place.
            Ok(false) => problems.push(format!(
                "{name} is not an option; there are schema, notify, pooler, strict_commit_order, direct_url, max_connections, \
                 write_timeout_ms, handover_delay_ms, notify_interval_ms, dedupe_retention_ms, and those of the connection (sslmode, \
                 sslrootcert, host, port, dbname, user, application_name, options)"
            )),
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() { Ok(config) } else { Err(problems) }
}

fn connect_options(base: &str, query: &str) -> Result<PgConnectOptions, String> {
    if !base.starts_with("postgres://") && !base.starts_with("postgresql://") {
        return Err(
            "the url does not begin with postgres:// (write postgres://user:password@host:5432/database)"
                .to_owned(),
        );
    }
    let url = if query.is_empty() { base.to_owned() } else { format!("{base}?{query}") };
    // The reason may show a part of the url, and that part may be the password.
    PgConnectOptions::from_str(&url).map_err(|_| {
        "the url of the database cannot be read (write postgres://user:password@host:5432/database, special characters as \
         %40 and the like)"
            .to_owned()
    })
}

/// Undoes percent encoding.
fn decode(text: &str) -> Result<String, String> {
    let bad = || "direct_url has a % that is not followed by two digits, or is not UTF-8".to_owned();
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let digits =
            rest.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit)).ok_or_else(bad)?;
        let digits = std::str::from_utf8(digits).map_err(|_| bad())?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| bad())?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str) -> String {
        let refused = PostgresConfig::from_url(url).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidConfiguration);
        refused.to_string()
    }

    #[test]
    fn a_url_sets_every_option() {
        let url = "postgresql://anna:hunter2@db.example:5433/shop?sslmode=require&schema=orders&notify=off&pooler=true\
                   &strict_commit_order=true\
                   &max_connections=9&write_timeout_ms=1500&handover_delay_ms=400&notify_interval_ms=5&dedupe_retention_ms=60000";
        let config = PostgresConfig::from_url(url).unwrap();
        assert_eq!(config.place(), "db.example:5433/shop (schema orders)");
        assert!(!config.is_notifying && config.is_pooled && config.is_strict);
        assert_eq!(config.max_connections, 9);
        assert_eq!(config.write_timeout, Duration::from_millis(1_500));
        assert_eq!(config.handover_delay, Duration::from_millis(400));
        assert_eq!(config.notify_interval, Duration::from_millis(5));
        assert_eq!(config.dedupe_retention, Duration::from_secs(60));
        assert!(config.problems().is_empty());
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let text = refusal("postgres://db/shop?notify=perhaps&max_connections=x&colour=red");
        for part in ["notify=perhaps", "max_connections=x", "colour is not an option"] {
            assert!(text.contains(part), "{text:?} does not say {part:?}");
        }
        assert!(refusal("mysql://db").contains("postgres://"));
        let config =
            PostgresConfig::from_url("postgres://db/shop").unwrap().schema("Sh;op").max_connections(0);
        assert_eq!(config.problems().len(), 2);
    }

    #[test]
    fn no_text_shows_a_password() {
        let urls = [
            "postgres://anna:hunter2@db:port/shop",
            "postgres://anna:hunter2@/shop?pass=hunter2",
            "postgres://anna:hunter2@[db/shop",
            "mysql://anna:hunter2@db/shop",
        ];
        for url in urls {
            if let Err(refused) = PostgresConfig::from_url(url) {
                assert!(!format!("{refused} {refused:?}").contains("hunter2"), "{refused:?}");
            }
        }
        let config = PostgresConfig::from_url("postgres://anna:hunter2@db/shop?password=hunter2").unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
