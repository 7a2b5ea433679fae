//! The backend by the scheme of a URL, among those compiled in.

use event_bus_core::{Builder, Error, ErrorKind, Result};

/// The feature of this crate that serves a scheme, and whether it is on.
type Feature = (&'static str, bool);

/// Schemes and what serves each. `None`: planned, and not part of this version.
const SCHEMES: [(&str, Option<Feature>); 8] = [
    ("inline", Some(("inline", cfg!(feature = "inline")))),
    ("sqlite", Some(("sqlite", cfg!(feature = "sqlite")))),
    ("postgres", Some(("postgres", cfg!(feature = "postgres")))),
    ("postgresql", Some(("postgres", cfg!(feature = "postgres")))),
    ("redis", Some(("redis", cfg!(feature = "redis")))),
    ("rediss", Some(("redis", cfg!(feature = "redis")))),
    ("amqp", Some(("amqp", cfg!(feature = "amqp")))),
    ("amqps", Some(("amqp", cfg!(feature = "amqp")))),
];

/// Chooses the backend of a bus by a URL, as it comes from a configuration file or the environment.
///
/// | URL | backend | feature |
/// |---|---|---|
/// | `postgres://user@host/shop`, `postgresql://…` | `PostgresBackend` | `postgres` |
/// | `sqlite:orders.db`, `sqlite:///var/lib/shop/orders.db` | `SqliteBackend` | `sqlite` |
/// | `redis://user:password@host:6379/0?bus=orders`, `rediss://…` | `RedisBackend` | `redis` |
/// | `amqp://user:password@host/vhost`, `amqps://…` | `AmqpBackend` | `amqp` |
/// | `inline:` | `InlineBackend` | `inline` (default) |
///
/// ```
/// use event_bus::prelude::*;
///
/// # async fn connect() -> event_bus::Result<()> {
/// let bus = EventBus::builder().connect("inline:").await?.build()?;
/// # Ok(())
/// # }
/// ```
pub trait Connect: Sized {
    /// The same builder, with the backend that serves `url`.
    ///
    /// # Errors
    /// `InvalidConfiguration` if the scheme is unknown, if the feature that serves it is off (the message names it), or
    /// if the backend cannot read the rest. No message shows the URL: it may hold a password.
    ///
    /// # Cancel safety
    /// A dropped future leaves nothing behind.
    fn connect(self, url: &str) -> impl Future<Output = Result<Builder>> + Send;
}

impl Connect for Builder {
    async fn connect(self, url: &str) -> Result<Builder> {
        let (scheme, rest) = split(url)?;
        match (scheme, rest) {
            #[cfg(feature = "inline")]
            ("inline", "" | "//") => Ok(self.backend(event_bus_inline::InlineBackend::new())),
            #[cfg(feature = "inline")]
            ("inline", _) => Err(invalid("the inline backend is nowhere: its whole url is inline:")),
            #[cfg(feature = "postgres")]
            ("postgres" | "postgresql", _) => {
                Ok(self.backend(event_bus_postgres::PostgresBackend::from_url(url)?))
            }
            #[cfg(feature = "sqlite")]
            ("sqlite", _) => Ok(self.backend(event_bus_sqlite::SqliteBackend::from_url(url)?)),
            #[cfg(feature = "redis")]
            ("redis" | "rediss", _) => Ok(self.backend(event_bus_redis::RedisBackend::from_url(url)?)),
            #[cfg(feature = "amqp")]
            ("amqp" | "amqps", _) => Ok(self.backend(event_bus_amqp::AmqpBackend::from_url(url)?)),
            _ => Err(no_backend_for(scheme)),
        }
    }
}

/// The scheme, and what follows its colon.
fn split(url: &str) -> Result<(&str, &str)> {
    let is_scheme = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
    };
    url.split_once(':').filter(|(scheme, _)| is_scheme(scheme)).ok_or_else(|| {
        invalid(format!("the url does not begin with a scheme; known are {}", known_schemes()))
    })
}

fn no_backend_for(scheme: &str) -> Error {
    match SCHEMES.iter().find(|(known, _)| *known == scheme) {
        Some((_, Some((feature, _)))) => invalid(format!(
            "{scheme}: urls need the feature {feature:?} of the crate event-bus, which is off; switch it on in Cargo.toml: \
             event-bus = {{ version = \"{}\", features = [\"{feature}\"] }}",
            env!("CARGO_PKG_VERSION")
        )),
        Some((_, None)) => invalid(format!(
            "this version of event-bus ({}) has no backend for {scheme}: urls yet; it has {}",
            env!("CARGO_PKG_VERSION"),
            known_schemes()
        )),
        None => invalid(format!("no backend serves {scheme}: urls; known are {}", known_schemes())),
    }
}

/// `inline, sqlite (feature "sqlite", which is off)`.
fn known_schemes() -> String {
    let served = SCHEMES.iter().filter_map(|(scheme, feature)| feature.map(|feature| (scheme, feature)));
    let shown: Vec<_> = served
        .map(|(scheme, (feature, is_on))| match is_on {
            true => (*scheme).to_owned(),
            false => format!("{scheme} (feature {feature:?}, which is off)"),
        })
        .collect();
    shown.join(", ")
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidConfiguration, "connect", message)
}

#[cfg(test)]
mod tests {
    use event_bus_core::EventBus;

    use super::*;

    async fn refusal(url: &str) -> String {
        let error = EventBus::builder().connect(url).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfiguration);
        assert_eq!(error.operation(), "connect");
        error.to_string()
    }

    #[tokio::test]
    #[cfg(feature = "inline")]
    async fn an_inline_url_gives_the_inline_backend() {
        for url in ["inline:", "inline://"] {
            let bus = EventBus::builder().connect(url).await.unwrap().build().unwrap();
            assert_eq!(bus.backend().name(), "inline");
        }
        assert!(refusal("inline://somewhere").await.contains("its whole url is inline:"));
    }

    #[tokio::test]
    #[cfg(feature = "sqlite")]
    async fn a_sqlite_url_gives_the_sqlite_backend() {
        let bus = EventBus::builder().connect("sqlite:orders.db").await.unwrap().build().unwrap();
        assert_eq!(bus.backend().name(), "sqlite");
    }

    #[tokio::test]
    #[cfg(feature = "postgres")]
    async fn a_postgres_url_gives_the_postgres_backend() {
        for url in ["postgres://db/shop", "postgresql://db/shop?schema=orders"] {
            let bus = EventBus::builder().connect(url).await.unwrap().build().unwrap();
            assert_eq!(bus.backend().name(), "postgres");
        }
    }

    #[tokio::test]
    #[cfg(feature = "redis")]
    async fn a_redis_url_gives_the_redis_backend() {
        for url in ["redis://localhost", "redis://localhost:7000/2?bus=orders"] {
            let bus = EventBus::builder().connect(url).await.unwrap().build().unwrap();
            assert_eq!(bus.backend().name(), "redis");
        }
        assert!(refusal("redis://anna:hunter2@db?colour=red").await.contains("colour is not an option"));
    }

    #[tokio::test]
    #[cfg(feature = "amqp")]
    async fn an_amqp_url_gives_the_amqp_backend() {
        for url in ["amqp://localhost", "amqps://anna:hunter2@localhost/shop?namespace=orders"] {
            let bus = EventBus::builder().connect(url).await.unwrap().build().unwrap();
            assert_eq!(bus.backend().name(), "amqp");
        }
        assert!(refusal("amqp://anna:hunter2@mq?colour=red").await.contains("colour is not an option"));
    }

    #[tokio::test]
    async fn an_unknown_scheme_lists_the_known_ones() {
        let text = refusal("kafka://somewhere").await;
        assert!(text.contains("no backend serves kafka: urls; known are inline"), "{text}");
    }

    #[tokio::test]
    async fn a_scheme_of_a_later_version_says_so() {
        for (scheme, _) in SCHEMES.iter().filter(|(_, feature)| feature.is_none()) {
            let text = refusal(&format!("{scheme}://localhost")).await;
            assert!(text.contains(&format!("no backend for {scheme}: urls yet")), "{text}");
        }
    }

    #[test]
    fn a_scheme_whose_feature_is_off_names_the_feature() {
        let text = no_backend_for("sqlite").to_string();
        assert!(text.contains("features = [\"sqlite\"]"), "{text}");
    }

    #[tokio::test]
    async fn no_message_shows_a_password() {
        let urls = [
            "kafka://anna:hunter2@db",
            "postgres://anna:hunter2@db?colour=red",
            "postgres//anna:hunter2@db",
            "hunter2",
            "",
        ];
        for url in urls {
            let text = refusal(url).await;
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}
