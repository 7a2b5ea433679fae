//! An event as it is stored: its payload and what is known about it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The identity of one published event: a version 7 UUID (RFC 9562), so ids of one process sort by time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventId(Uuid);

impl EventId {
    /// Takes a UUID as it is.
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// The UUID.
    pub const fn as_uuid(&self) -> &Uuid {
        &self.0
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::str::FromStr for EventId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// A point in time as it is stored: whole milliseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From milliseconds since 1970-01-01 UTC.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since 1970-01-01 UTC.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// This point plus `duration`, capped at the end of time.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// How long after `earlier` this is; zero if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// As the standard library's type.
    pub fn to_system_time(self) -> SystemTime {
        let distance = Duration::from_millis(self.0.unsigned_abs());
        if self.0 >= 0 { SystemTime::UNIX_EPOCH + distance } else { SystemTime::UNIX_EPOCH - distance }
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => Self(0).plus(after),
            Err(before) => Self(-i64::try_from(before.duration().as_millis()).unwrap_or(i64::MAX)),
        }
    }
}

/// Text that travels with an event beside its payload (a tenant, a trace context).
pub type Headers = BTreeMap<String, String>;

/// An event as stored: what is the same for each of its deliveries.
///
/// Cloning is cheap: every part is shared.
#[derive(Clone, PartialEq, Eq)]
pub struct Envelope {
    /// The identity of the event.
    pub id: EventId,
    /// [`Event::NAME`](crate::Event::NAME).
    pub name: Arc<str>,
    /// [`Event::VERSION`](crate::Event::VERSION) of the publisher.
    pub version: u32,
    /// The partition key.
    pub key: Option<Arc<str>>,
    /// The event in CBOR.
    pub payload: Bytes,
    /// What travels beside it; `None` and empty mean the same, backends return `None`.
    pub headers: Option<Arc<Headers>>,
    /// When `publish` was called, by the publisher's clock.
    pub published_at: Timestamp,
}

impl Envelope {
    /// Bytes of payload, key and headers: what the size limit counts.
    pub fn size(&self) -> usize {
        let headers = self.headers.iter().flat_map(|headers| headers.iter());
        self.payload.len()
            + self.key.as_ref().map_or(0, |key| key.len())
            + headers.map(|(name, value)| name.len() + value.len()).sum::<usize>()
    }
}

impl fmt::Debug for Envelope {
    /// Without the payload and the header values, which may hold personal data; [`readable`](crate::codec::readable)
    /// shows a payload on purpose.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Envelope")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("version", &self.version)
            .field("key", &self.key)
            .field("payload_bytes", &self.payload.len())
            .field("headers", &self.headers.as_ref().map(|headers| headers.keys().collect::<Vec<_>>()))
            .field("published_at", &self.published_at)
            .finish()
    }
}
