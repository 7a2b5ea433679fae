//! Where the broker is and how it is used.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use event_bus_core::clock::{Clock, SystemClock};
use event_bus_core::{ErrorKind, Result, SLOTS};
use lapin::uri::{AMQPScheme, AMQPUri};

use crate::error::error;

/// How a [`AmqpBackend`](crate::AmqpBackend) uses its broker.
#[derive(Clone)]
pub struct AmqpConfig {
    pub(crate) uri: AMQPUri,
    pub(crate) namespace: Arc<str>,
    pub(crate) partitions: u16,
    pub(crate) routing: Routing,
    pub(crate) heartbeat: Duration,
    pub(crate) presence_interval: Duration,
    pub(crate) vacancy_interval: Duration,
    pub(crate) publish_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) recycle_after: Duration,
    pub(crate) ca_file: Option<PathBuf>,
    /// What stands in that file.
    pub(crate) authorities: Option<Arc<str>>,
    pub(crate) clock: Arc<dyn Clock>,
}

/// Who turns a partition key into one of a handler's partition queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Routing {
    /// The publisher: a frozen hash, and a direct exchange. The default, and the only one that promises that a key stays
    /// in its queue for ever.
    #[default]
    Direct,
    /// The broker: an exchange of the plugin `rabbitmq_consistent_hash_exchange`, for publishers that cannot hash. A
    /// restart of the broker may move keys to other queues, and then what was published before and after it is no longer
    /// in order: [`Capabilities::key_order`](event_bus_core::backend::Capabilities::key_order) is not claimed.
    ConsistentHash,
}

impl Routing {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::ConsistentHash => "consistent-hash",
        }
    }
}

const OPTIONS: &str = "namespace, partitions, routing, heartbeat_s, presence_ms, vacancy_ms, publish_timeout_ms, \
                       request_timeout_ms, recycle_after_s, ca_file";

impl AmqpConfig {
    /// Reads `amqp://user:password@host:5672/vhost` or `amqps://…`, with the options `namespace`, `partitions`,
    /// `routing=direct|consistent-hash`, `heartbeat_s`, `presence_ms`, `vacancy_ms`, `publish_timeout_ms`,
    /// `request_timeout_ms`, `recycle_after_s` and `ca_file=/path/of/ca.pem`. The virtual host is percent-encoded; left out, it is `/`.
    ///
    /// # Errors
    /// `InvalidConfiguration` with everything that is wrong. No message shows the password.
    pub fn from_url(url: &str) -> Result<Self> {
        parse(url).map_err(|problems| error(ErrorKind::InvalidConfiguration, "connect", problems.join("; ")))
    }

    /// Begins the name of every exchange and queue: several buses can share a virtual host. Default: `event-bus`.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Into how many queues the keys of each handler are divided, and so how many workers can share them. Fixed when the
    /// bus is first prepared; all processes must say the same. Default: 16; at most 64.
    #[must_use]
    pub fn partitions(mut self, partitions: u16) -> Self {
        self.partitions = partitions;
        self
    }

    /// Who routes. Fixed when the bus is first prepared. Default: [`Routing::Direct`].
    #[must_use]
    pub fn routing(mut self, routing: Routing) -> Self {
        self.routing = routing;
        self
    }

    /// How often client and broker show one another that they live, in whole seconds. The broker gives up a client that
    /// was silent for about 2.4 of them, and only then do others take over its partitions. Default: 5 seconds.
    #[must_use]
    pub fn heartbeat(mut self, heartbeat: Duration) -> Self {
        self.heartbeat = heartbeat;
        self
    }

    /// How often workers tell one another that they are there. One that was silent for three of them no longer counts
    /// when partitions are shared out. Default: 2 seconds.
    #[must_use]
    pub fn presence_interval(mut self, interval: Duration) -> Self {
        self.presence_interval = interval;
        self
    }

    /// How often a worker looks for partitions that nobody serves. Default: 1 second.
    #[must_use]
    pub fn vacancy_interval(mut self, interval: Duration) -> Self {
        self.vacancy_interval = interval;
        self
    }

    /// How long a publish may wait for the broker's confirmation, which it does not give while a memory or disk alarm is
    /// on. Default: 30 seconds.
    #[must_use]
    pub fn publish_timeout(mut self, timeout: Duration) -> Self {
        self.publish_timeout = timeout;
        self
    }

    /// How long the answer to any other question may take. Default: 10 seconds.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// When a queue's oldest delivery has been held for this long, because its key waits for a retry, the queue is given
    /// back and taken again: the broker's own `consumer_timeout` (30 minutes by default) must never be reached. Default:
    /// 25 minutes.
    #[must_use]
    pub fn recycle_after(mut self, after: Duration) -> Self {
        self.recycle_after = after;
        self
    }

    /// Certificates (PEM) of authorities that `amqps` trusts beside the system's.
    #[must_use]
    pub fn ca_file(mut self, path: impl AsRef<Path>) -> Self {
        self.ca_file = Some(path.as_ref().to_owned());
        self
    }

    /// Reads what the settings name.
    pub(crate) fn load(mut self) -> Result<Self> {
        let mut problems = self.problems();
        if let Some(path) = &self.ca_file {
            match std::fs::read_to_string(path) {
                Ok(text) => self.authorities = Some(text.into()),
                Err(failure) => {
                    problems.push(format!("ca_file {} cannot be read: {failure}", path.display()))
                }
            }
        }
        if problems.is_empty() {
            return Ok(self);
        }
        Err(error(ErrorKind::InvalidConfiguration, "connect", problems.join("; ")))
    }

    /// The wall clock by which dead letters and the ends of delays are dated; for simulations.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        if self.namespace.is_empty() || self.namespace.len() > 64 || !self.namespace.chars().all(is_plain) {
            problems.push(format!("the namespace {:?} is not 1 to 64 of a-z A-Z 0-9 _ -", &*self.namespace));
        }
        if self.partitions == 0 || self.partitions > SLOTS {
            problems.push(format!("partitions {} is outside 1..={SLOTS}", self.partitions));
        }
        let seconds = self.heartbeat.as_secs();
        if !(1..=300).contains(&seconds) || self.heartbeat.subsec_nanos() != 0 {
            problems
                .push(format!("heartbeat {:?} is not a whole number of 1 to 300 seconds", self.heartbeat));
        }
        let times = [
            ("presence_interval", self.presence_interval),
            ("vacancy_interval", self.vacancy_interval),
            ("publish_timeout", self.publish_timeout),
            ("request_timeout", self.request_timeout),
            ("recycle_after", self.recycle_after),
        ];
        problems
            .extend(times.iter().filter(|(_, time)| time.is_zero()).map(|(name, _)| format!("{name} is 0")));
        if self.ca_file.is_some() && self.uri.scheme != AMQPScheme::AMQPS {
            problems.push("ca_file is set, and the url does not begin with amqps:".to_owned());
        }
        problems
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let number =
            |unit: &str| value.parse().map_err(|_| format!("{name}={value} is not a whole number of {unit}"));
        let millis = || number("milliseconds").map(Duration::from_millis);
        let seconds = || number("seconds").map(Duration::from_secs);
        match name {
            "namespace" => self.namespace = value.into(),
            "partitions" => {
                let partitions = number("partitions")?;
                self.partitions = u16::try_from(partitions).unwrap_or(u16::MAX);
            }
            "routing" => {
                let known = [Routing::Direct, Routing::ConsistentHash];
                let found = known.into_iter().find(|routing| routing.as_str() == value);
                self.routing =
                    found.ok_or_else(|| format!("routing={value} is neither direct nor consistent-hash"))?;
            }
            "heartbeat_s" => self.heartbeat = seconds()?,
            "presence_ms" => self.presence_interval = millis()?,
            "vacancy_ms" => self.vacancy_interval = millis()?,
            "publish_timeout_ms" => self.publish_timeout = millis()?,
            "request_timeout_ms" => self.request_timeout = millis()?,
            "ca_file" => self.ca_file = Some(value.into()),
            "recycle_after_s" => self.recycle_after = seconds()?,
            _ => return Err(format!("{name} is not an option; there are {OPTIONS}")),
        }
        Ok(())
    }
}

impl fmt::Debug for AmqpConfig {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let authority = &self.uri.authority;
        f.debug_struct("AmqpConfig")
            .field("broker", &format!("{}://{}:{}", self.uri.scheme, authority.host, authority.port))
            .field("vhost", &self.uri.vhost)
            .field("user", &authority.userinfo.username)
            .field("namespace", &self.namespace)
            .field("partitions", &self.partitions)
            .field("routing", &self.routing)
            .field("heartbeat", &self.heartbeat)
            .field("presence_interval", &self.presence_interval)
            .field("vacancy_interval", &self.vacancy_interval)
            .field("publish_timeout", &self.publish_timeout)
            .field("request_timeout", &self.request_timeout)
            .field("recycle_after", &self.recycle_after)
            .field("ca_file", &self.ca_file)
            .finish_non_exhaustive()
    }
}

fn parse(url: &str) -> Result<AmqpConfig, Vec<String>> {
    if !url.starts_with("amqp://") && !url.starts_with("amqps://") {
        return Err(vec![
            "the url does not begin with amqp:// or amqps:// (write amqp://user:password@host:5672/vhost)"
                .to_owned(),
        ]);
    }
    let (address, options) = url.split_once('?').unwrap_or((url, ""));
    // The parser's own messages may show the url, and with it the password.
    let uri = address.parse::<AMQPUri>().map_err(|_| {
        vec!["the url cannot be read (write amqp://user:password@host:5672/vhost)".to_owned()]
    })?;
    let mut config = AmqpConfig {
        uri,
        namespace: "event-bus".into(),
        partitions: 16,
        routing: Routing::Direct,
        heartbeat: Duration::from_secs(5),
        presence_interval: Duration::from_secs(2),
        vacancy_interval: Duration::from_secs(1),
        publish_timeout: Duration::from_secs(30),
        request_timeout: Duration::from_secs(10),
        recycle_after: Duration::from_secs(25 * 60),
        ca_file: None,
        authorities: None,
        clock: Arc::new(SystemClock),
    };
    if config.uri.vhost.is_empty() {
        config.uri.vhost = "/".to_owned();
    }
    let mut problems = Vec::new();
    for option in options.split('&').filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        if let Err(problem) = config.set(name, value) {
            problems.push(problem);
        }
    }
    problems.extend(config.problems());
    if problems.is_empty() { Ok(config) } else { Err(problems) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str) -> String {
        let error = AmqpConfig::from_url(url).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfiguration);
        error.to_string()
    }

    #[test]
    fn a_url_says_it_all() {
        let config = AmqpConfig::from_url(
            "amqps://anna:geheim@mq.example.org:5679/shop%2Forders?namespace=shop&partitions=8&routing=consistent-hash\
             &heartbeat_s=7&presence_ms=300&vacancy_ms=200&publish_timeout_ms=1500&request_timeout_ms=900&recycle_after_s=60",
        )
        .unwrap();
        assert_eq!(config.uri.vhost, "shop/orders");
        assert_eq!((config.uri.authority.port, config.partitions), (5679, 8));
        assert_eq!((&*config.namespace, config.routing), ("shop", Routing::ConsistentHash));
        assert_eq!(
            (config.heartbeat, config.recycle_after),
            (Duration::from_secs(7), Duration::from_secs(60))
        );
        assert_eq!(config.publish_timeout, Duration::from_millis(1_500));
    }

    #[test]
    fn the_virtual_host_is_the_root_unless_said() {
        for url in ["amqp://localhost", "amqp://localhost/", "amqp://localhost/%2f"] {
            assert_eq!(AmqpConfig::from_url(url).unwrap().uri.vhost, "/");
        }
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let text = refusal("amqp://localhost?partitions=0&heartbeat_s=0&colour=blue&routing=random");
        for part in ["partitions 0", "heartbeat 0ns", "colour is not an option", "routing=random"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_file_of_authorities_that_cannot_be_read_is_named() {
        let missing = AmqpConfig::from_url("amqps://localhost?ca_file=/nowhere/ca.pem").unwrap();
        assert!(missing.load().map(drop).unwrap_err().to_string().contains("/nowhere/ca.pem"));
        assert!(refusal("amqp://localhost?ca_file=/nowhere/ca.pem").contains("amqps"));
    }

    #[test]
    fn nothing_shows_the_password() {
        for url in ["amqp://anna:hunter2@:x/", "amqp://anna:hunter2@host/?colour=blue", "amqp:anna:hunter2"] {
            assert!(!refusal(url).contains("hunter2"));
        }
        let config = AmqpConfig::from_url("amqp://anna:hunter2@host/").unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
