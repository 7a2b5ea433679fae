//! Deliveries as messages, and back.
//!
//! The body is the event's payload, as it is. What is known about the event stands in the properties: `message_id` is
//! `<event id>/<handler>`, `type` the event's name, the rest headers. A retry that leaves its place, a delay and a dead
//! letter are the same message with more headers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use event_bus_core::backend::{
    AttemptError, DeadLetter, DeadReason, DeliveryId, Envelope, ErrorLog, EventId, Headers, Timestamp,
};
use event_bus_core::codec;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use crate::topology::short;

/// The partition key. [`Routing::ConsistentHash`](crate::Routing::ConsistentHash) hashes it.
pub(crate) const KEY: &str = "event-bus-key";

const VERSION: &str = "event-bus-version";
const PUBLISHED_AT: &str = "event-bus-published-at";
const POSITION: &str = "event-bus-position";
const HEADERS: &str = "event-bus-headers";
const FAILURES: &str = "event-bus-failures";
const CRASHES: &str = "event-bus-crashes";
const ERRORS: &str = "event-bus-errors";
const WAIT: &str = "event-bus-wait-ms";
/// Says that this is not the first time that a publication was sent: the copy before may have been stored.
const AGAIN: &str = "event-bus-again";

const DEAD_ID: &str = "event-bus-dead-id";
const DEAD_REASON: &str = "event-bus-dead-reason";
const DIED_AT: &str = "event-bus-died-at";

/// Why the broker itself made a dead letter of it, and what it says of each time that it did.
const FIRST_DEATH: &str = "x-first-death-reason";
const DEATHS: &str = "x-death";

/// How often the broker took a message back from a consumer that it had handed it to.
const DELIVERY_COUNT: &str = "x-delivery-count";

const PERSISTENT: u8 = 2;

/// What travels with an event to one handler.
#[derive(Clone, Debug)]
pub(crate) struct Parcel {
    pub(crate) envelope: Envelope,
    /// The event's place within its publish call.
    pub(crate) position: u32,
    pub(crate) failures: u32,
    pub(crate) crashes: u32,
    pub(crate) errors: ErrorLog,
    /// How long it must still wait, from when it is received. A duration and no point in time, so that no two clocks are
    /// compared.
    pub(crate) wait: Duration,
    /// How often the broker took it back.
    pub(crate) returns: u32,
    /// The same publication may have been stored before.
    pub(crate) is_again: bool,
}

/// What makes a dead letter of it.
#[derive(Clone, Debug)]
pub(crate) struct Death {
    pub(crate) id: DeliveryId,
    pub(crate) reason: DeadReason,
    pub(crate) died_at: Timestamp,
}

/// The identity of a message: the confirmations and returns of the broker are told apart by it.
pub(crate) fn message_id(event: EventId, handler: &str) -> String {
    format!("{event}/{handler}")
}

/// The time in an event id, where there is one: most often that of the publication, and then no header repeats it.
fn time_of(event: EventId) -> Option<Timestamp> {
    let id = event.as_uuid();
    let millis = i64::try_from(id.as_u128() >> 80).ok()?;
    (id.get_version_num() == 7).then(|| Timestamp::from_millis(millis))
}

/// The properties of a message for `handler`.
pub(crate) fn properties(parcel: &Parcel, handler: &str, death: Option<&Death>) -> BasicProperties {
    let envelope = &parcel.envelope;
    let mut headers = FieldTable::default();
    let mut put = |name: &str, value: AMQPValue| {
        headers.insert(short(name), value);
    };
    if envelope.version != 1 {
        put(VERSION, number(u64::from(envelope.version)));
    }
    if Some(envelope.published_at) != time_of(envelope.id) {
        put(PUBLISHED_AT, AMQPValue::LongLongInt(envelope.published_at.as_millis()));
    }
    if parcel.position > 0 {
        put(POSITION, number(u64::from(parcel.position)));
    }
    if let Some(key) = &envelope.key {
        put(KEY, text(key.as_bytes()));
    }
    // Names of headers may be longer than a field name of AMQP, and values may contain anything: they travel as one field.
    if let Some(written) = envelope.headers.as_deref().and_then(|headers| codec::encode(headers).ok()) {
        put(HEADERS, text(&written));
    }
    if parcel.failures > 0 {
        put(FAILURES, number(u64::from(parcel.failures)));
    }
    if parcel.crashes > 0 {
        put(CRASHES, number(u64::from(parcel.crashes)));
    }
    if !parcel.errors.is_empty() {
        put(ERRORS, text(parcel.errors.as_bytes()));
    }
    if !parcel.wait.is_zero() {
        put(WAIT, number(millis(parcel.wait)));
    }
    if let Some(death) = death {
        put(DEAD_ID, text(death.id.0.to_string().as_bytes()));
        put(DEAD_REASON, text(death.reason.as_str().as_bytes()));
        put(DIED_AT, AMQPValue::LongLongInt(death.died_at.as_millis()));
    }
    BasicProperties::default()
        .with_message_id(short(message_id(envelope.id, handler)))
        .with_type(short(&*envelope.name))
        .with_content_type(short("application/cbor"))
        .with_delivery_mode(PERSISTENT)
        .with_headers(headers)
}

/// The same message, sent again because its confirmation did not come.
pub(crate) fn sent_again(properties: &BasicProperties) -> BasicProperties {
    let mut headers = properties.headers().clone().unwrap_or_default();
    headers.insert(short(AGAIN), AMQPValue::Boolean(true));
    properties.clone().with_headers(headers)
}

/// Whole milliseconds, rounded up: a delay is a lower bound.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

fn number(value: u64) -> AMQPValue {
    AMQPValue::LongLongInt(i64::try_from(value).unwrap_or(i64::MAX))
}

fn text(bytes: &[u8]) -> AMQPValue {
    AMQPValue::LongString(bytes.to_vec().into())
}

/// Reads messages; remembers event names, so that their envelopes share them.
#[derive(Default)]
pub(crate) struct Reader {
    names: HashMap<Box<str>, Arc<str>>,
}

impl Reader {
    /// More names than any application has: beyond it somebody writes random ones, and sharing is given up.
    const MAX_NAMES: usize = 4_096;

    /// A message as a parcel, or why it is none.
    pub(crate) fn read(&mut self, properties: &BasicProperties, body: Vec<u8>) -> Result<Parcel, String> {
        let empty = FieldTable::default();
        let headers = Fields(properties.headers().as_ref().unwrap_or(&empty));
        let id = properties.message_id().as_ref().ok_or("it has no message_id")?.as_str();
        let event = id.split_once('/').map_or(id, |(event, _)| event);
        let id = event.parse::<EventId>().map_err(|_| format!("its message_id {event:?} is no event id"))?;
        let name = properties.kind().as_ref().ok_or("it has no type, which is the event's name")?.as_str();
        let key = match headers.bytes(KEY) {
            Some(key) => Some(std::str::from_utf8(key).map_err(|_| "its key is not UTF-8")?.into()),
            None => None,
        };
        let user_headers = match headers.bytes(HEADERS) {
            Some(written) => {
                let headers: Headers =
                    ciborium::from_reader(written).map_err(|error| format!("its headers: {error}"))?;
                (!headers.is_empty()).then(|| Arc::new(headers))
            }
            None => None,
        };
        Ok(Parcel {
            envelope: Envelope {
                id,
                name: self.share(name),
                version: headers.count(VERSION).unwrap_or(1),
                key,
                payload: Bytes::from(body),
                headers: user_headers,
                published_at: match headers.number(PUBLISHED_AT) {
                    Some(millis) => Timestamp::from_millis(millis),
                    None => time_of(id).unwrap_or(Timestamp::from_millis(0)),
                },
            },
            position: headers.count(POSITION).unwrap_or(0),
            failures: headers.count(FAILURES).unwrap_or(0),
            crashes: headers.count(CRASHES).unwrap_or(0),
            errors: ErrorLog::from_bytes(Bytes::copy_from_slice(headers.bytes(ERRORS).unwrap_or_default())),
            wait: Duration::from_millis(
                headers.number(WAIT).and_then(|wait| wait.try_into().ok()).unwrap_or(0),
            ),
            returns: headers.count(DELIVERY_COUNT).unwrap_or(0),
            is_again: headers.0.inner().contains_key(AGAIN),
        })
    }

    /// A message of a queue of dead letters.
    pub(crate) fn read_dead(
        &mut self,
        handler: &Arc<str>,
        properties: &BasicProperties,
        body: Vec<u8>,
    ) -> Result<(DeadLetter, u32), String> {
        let parcel = self.read(properties, body)?;
        let empty = FieldTable::default();
        let headers = Fields(properties.headers().as_ref().unwrap_or(&empty));
        let word = |name| headers.bytes(name).and_then(|bytes| std::str::from_utf8(bytes).ok());
        let (death, errors) = match headers.bytes(DEAD_ID) {
            Some(_) => {
                let id = word(DEAD_ID).and_then(|id| id.parse().ok()).ok_or("it has no number")?;
                let reason =
                    word(DEAD_REASON).and_then(DeadReason::from_word).ok_or("it has no known reason")?;
                let died_at = Timestamp::from_millis(headers.number(DIED_AT).unwrap_or(0));
                (Death { id: DeliveryId(id), reason, died_at }, parcel.errors)
            }
            None => {
                let why = word(FIRST_DEATH).ok_or("it has no number")?;
                let died_at = headers.died_at();
                // The same whenever it is read.
                let millis = u128::from(died_at.as_millis().unsigned_abs());
                let chance =
                    u128::from(xxhash_rust::xxh3::xxh3_64(parcel.envelope.id.to_string().as_bytes()));
                let message = format!(
                    "the broker gave it up ({why}), perhaps before it ran: a policy applies to the queues of the bus; remove it, \
                     and replay this"
                );
                let error = AttemptError { attempt: parcel.failures + 1, failed_at: died_at, message };
                let id = DeliveryId((millis << 64) | chance);
                (Death { id, reason: DeadReason::Exhausted, died_at }, parcel.errors.with(error))
            }
        };
        let dead = DeadLetter {
            id: death.id,
            handler: handler.clone(),
            envelope: parcel.envelope,
            failures: parcel.failures,
            errors,
            reason: death.reason,
            died_at: death.died_at,
            holds_key: false,
        };
        Ok((dead, parcel.position))
    }

    fn share(&mut self, name: &str) -> Arc<str> {
        if let Some(shared) = self.names.get(name) {
            return shared.clone();
        }
        let shared: Arc<str> = name.into();
        if self.names.len() < Self::MAX_NAMES {
            self.names.insert(name.into(), shared.clone());
        }
        shared
    }
}

struct Fields<'a>(&'a FieldTable);

impl<'a> Fields<'a> {
    fn number(&self, name: &str) -> Option<i64> {
        match self.0.inner().get(name)? {
            AMQPValue::LongLongInt(value) => Some(*value),
            AMQPValue::LongInt(value) => Some(i64::from(*value)),
            AMQPValue::ShortInt(value) => Some(i64::from(*value)),
            AMQPValue::ShortShortInt(value) => Some(i64::from(*value)),
            AMQPValue::LongUInt(value) => Some(i64::from(*value)),
            AMQPValue::ShortUInt(value) => Some(i64::from(*value)),
            AMQPValue::ShortShortUInt(value) => Some(i64::from(*value)),
            _ => None,
        }
    }

    /// When the broker last made a dead letter of it.
    fn died_at(&self) -> Timestamp {
        let Some(AMQPValue::FieldArray(deaths)) = self.0.inner().get(DEATHS) else {
            return Timestamp::from_millis(0);
        };
        let seconds = match deaths.as_slice().first() {
            Some(AMQPValue::FieldTable(death)) => match death.inner().get("time") {
                Some(AMQPValue::Timestamp(seconds)) => i64::try_from(*seconds).unwrap_or(0),
                _ => 0,
            },
            _ => 0,
        };
        Timestamp::from_millis(seconds.saturating_mul(1_000))
    }

    fn count(&self, name: &str) -> Option<u32> {
        self.number(name).and_then(|value| u32::try_from(value).ok())
    }

    fn bytes(&self, name: &str) -> Option<&'a [u8]> {
        match self.0.inner().get(name)? {
            AMQPValue::LongString(value) => Some(value.as_bytes()),
            AMQPValue::ByteArray(value) => Some(value.as_slice()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parcel() -> Parcel {
        let headers = Headers::from([("tenant".to_owned(), "n\u{f6}rd \0".to_owned())]);
        Parcel {
            envelope: Envelope {
                id: EventId::from_uuid(uuid::Uuid::from_u128(7)),
                name: "orders.created".into(),
                version: 3,
                key: Some("ä".repeat(256).into()),
                payload: Bytes::from_static(b"\x01\x02"),
                headers: Some(Arc::new(headers)),
                published_at: Timestamp::from_millis(1_700_000_000_123),
            },
            position: 4,
            failures: 2,
            crashes: 1,
            errors: ErrorLog::from_bytes(Bytes::from_static(b"\x80")),
            wait: Duration::from_micros(1_500),
            returns: 0,
            is_again: false,
        }
    }

    #[test]
    fn a_delivery_comes_back_as_it_was_sent() {
        let sent = parcel();
        let read =
            Reader::default().read(&properties(&sent, "a.b", None), sent.envelope.payload.to_vec()).unwrap();
        assert_eq!(read.envelope, sent.envelope);
        assert_eq!((read.position, read.failures, read.crashes), (4, 2, 1));
        assert_eq!((read.errors, read.wait), (sent.errors, Duration::from_millis(2)));
    }

    #[test]
    fn the_time_of_publication_comes_back_with_or_without_its_header() {
        let mut sent = parcel();
        for (id, millis, has_header) in [
            (0x0000_0000_0005_7000_8000_0000_0000_0001, 5, false),
            (0x0000_0000_0005_7000_8000_0000_0000_0001, 6, true),
            (0x0000_0000_0005_4000_8000_0000_0000_0001, 5, true),
        ] {
            sent.envelope.id = EventId::from_uuid(uuid::Uuid::from_u128(id));
            sent.envelope.published_at = Timestamp::from_millis(millis);
            let written = properties(&sent, "a.b", None);
            let headers = written.headers().clone().unwrap();
            assert_eq!(headers.inner().contains_key(PUBLISHED_AT), has_header);
            let read = Reader::default().read(&written, Vec::new()).unwrap();
            assert_eq!(read.envelope.published_at, sent.envelope.published_at);
        }
    }

    #[test]
    fn a_copy_says_that_it_is_one() {
        let sent = parcel();
        let first = properties(&sent, "a.b", None);
        let mut reader = Reader::default();
        let mut read = |properties: &BasicProperties| reader.read(properties, Vec::new()).unwrap();
        assert!(!read(&first).is_again);
        let copy = read(&sent_again(&first));
        assert!(copy.is_again);
        assert_eq!((copy.envelope.id, copy.failures), (sent.envelope.id, 2));
    }

    #[test]
    fn a_dead_letter_comes_back_with_its_reason() {
        let death = Death {
            id: DeliveryId(u128::MAX - 5),
            reason: DeadReason::Discarded,
            died_at: Timestamp::from_millis(12),
        };
        let written = properties(&parcel(), "a.b", Some(&death));
        let (dead, position) = Reader::default().read_dead(&"a.b".into(), &written, vec![1, 2]).unwrap();
        assert_eq!(
            (dead.id, dead.reason, dead.died_at, position),
            (death.id, death.reason, death.died_at, 4)
        );
    }

    #[test]
    fn what_the_broker_gave_up_is_a_dead_letter_that_says_so() {
        let mut death = FieldTable::default();
        death.insert(short("time"), AMQPValue::Timestamp(1_700_000_100));
        let mut written = properties(&parcel(), "a.b", None);
        let mut headers = written.headers().clone().unwrap();
        headers.insert(short(FIRST_DEATH), text(b"delivery_limit"));
        headers.insert(short(DEATHS), AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death)].into()));
        written = written.with_headers(headers);
        let read = || Reader::default().read_dead(&"a.b".into(), &written, vec![1, 2]).unwrap().0;
        let dead = read();
        assert_eq!((dead.id, dead.failures), (read().id, 2));
        assert_eq!(dead.died_at, Timestamp::from_millis(1_700_000_100_000));
        let errors = dead.errors.entries();
        assert!(errors.last().unwrap().message.contains("delivery_limit"), "{errors:?}");
    }

    #[test]
    fn a_foreign_message_is_told_apart() {
        let mut reader = Reader::default();
        assert!(reader.read(&BasicProperties::default(), Vec::new()).unwrap_err().contains("message_id"));
        let foreign = BasicProperties::default().with_message_id(short("hello"));
        assert!(reader.read(&foreign, Vec::new()).unwrap_err().contains("no event id"));
    }
}
