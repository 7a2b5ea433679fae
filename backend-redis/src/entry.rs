//! Envelopes as the entries of streams hold them.
//!
//! One blob an event, which its deliveries share when they are published: version byte, event id, version of the event,
//! time, name, headers, payload. The key stands beside it, because scripts park by key.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use event_bus_core::backend::{Envelope, ErrorLog, EventId, Timestamp};
use uuid::Uuid;

/// The first byte of a blob.
const FORMAT: u8 = 1;

/// The bytes to store.
pub(crate) fn encode(envelope: &Envelope) -> Vec<u8> {
    let mut blob = Vec::with_capacity(64 + envelope.name.len() + envelope.size());
    blob.push(FORMAT);
    blob.extend_from_slice(envelope.id.as_uuid().as_bytes());
    blob.extend_from_slice(&envelope.version.to_be_bytes());
    blob.extend_from_slice(&envelope.published_at.as_millis().to_be_bytes());
    put_text(&mut blob, &envelope.name);
    let headers = envelope.headers.as_deref();
    put_length(&mut blob, headers.map_or(0, BTreeMap::len));
    for (name, value) in headers.into_iter().flatten() {
        put_text(&mut blob, name);
        put_text(&mut blob, value);
    }
    blob.extend_from_slice(&envelope.payload);
    blob
}

fn put_length(blob: &mut Vec<u8>, length: usize) {
    // Core refuses events of gigabytes long before.
    blob.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
}

fn put_text(blob: &mut Vec<u8>, text: &str) {
    put_length(blob, text.len());
    blob.extend_from_slice(text.as_bytes());
}

/// The envelope in a blob, or why it cannot be read. The payload is not copied.
pub(crate) fn decode(blob: Bytes, key: Option<Arc<str>>, names: &mut Names) -> Result<Envelope, String> {
    let mut reader = Reader { blob, at: 0 };
    let [format] = reader.array()?;
    if format != FORMAT {
        return Err(format!("the entry is of format {format}, which this version does not know"));
    }
    let id = EventId::from_uuid(Uuid::from_bytes(reader.array()?));
    let version = u32::from_be_bytes(reader.array()?);
    let published_at = Timestamp::from_millis(i64::from_be_bytes(reader.array()?));
    let name = names.share(reader.text()?);
    let count = reader.length()?;
    let mut headers = BTreeMap::new();
    for _ in 0..count {
        let name = reader.text()?.to_owned();
        headers.insert(name, reader.text()?.to_owned());
    }
    let payload = reader.rest();
    let headers = (!headers.is_empty()).then(|| Arc::new(headers));
    Ok(Envelope { id, name, version, key, payload, headers, published_at })
}

struct Reader {
    blob: Bytes,
    at: usize,
}

impl Reader {
    fn slice(&mut self, length: usize) -> Result<&[u8], String> {
        let end = self.at.saturating_add(length);
        let slice = self.blob.get(self.at..end).ok_or("the entry ends too early")?;
        self.at = end;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.slice(N)?.try_into().map_err(|_| "the entry ends too early".to_owned())
    }

    fn length(&mut self) -> Result<usize, String> {
        Ok(usize::try_from(u32::from_be_bytes(self.array()?)).unwrap_or(usize::MAX))
    }

    fn text(&mut self) -> Result<&str, String> {
        let length = self.length()?;
        std::str::from_utf8(self.slice(length)?).map_err(|_| "a text in the entry is not UTF-8".to_owned())
    }

    fn rest(self) -> Bytes {
        self.blob.slice(self.at.min(self.blob.len())..)
    }
}

/// What a delivery has beside its event once it failed, waits or is suspected; the same text stands in `shared.lua`.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct State {
    pub(crate) failures: u32,
    pub(crate) crashes: u32,
    pub(crate) due_at: i64,
    pub(crate) is_held: bool,
    pub(crate) errors: ErrorLog,
}

impl State {
    /// Reads `failures crashes started due_at held errors`; empty text is a delivery that nothing happened to.
    pub(crate) fn read(text: &Bytes) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let mut numbers = [0_i64; 5];
        let mut at = 0;
        for number in &mut numbers {
            let rest = text.get(at..).unwrap_or_default();
            let end = rest.iter().position(|byte| *byte == b' ').ok_or("the state ends too early")?;
            let digits = std::str::from_utf8(&rest[..end]).map_err(|_| "the state is not UTF-8")?;
            *number = digits.parse().map_err(|_| format!("{digits:?} in the state is no number"))?;
            at += end + 1;
        }
        let [failures, crashes, _, due_at, is_held] = numbers;
        let count =
            |number: i64| u32::try_from(number).map_err(|_| format!("{number} in the state is no count"));
        Ok(Self {
            failures: count(failures)?,
            crashes: count(crashes)?,
            due_at,
            is_held: is_held != 0,
            errors: ErrorLog::from_bytes(text.slice(at.min(text.len())..)),
        })
    }
}

/// Event names seen so far, shared by their envelopes.
#[derive(Default)]
pub(crate) struct Names(HashMap<Box<str>, Arc<str>>);

impl Names {
    /// More names than any application has: beyond it somebody writes random ones, and sharing is given up.
    const MAX: usize = 4_096;

    pub(crate) fn share(&mut self, name: &str) -> Arc<str> {
        if let Some(shared) = self.0.get(name) {
            return shared.clone();
        }
        let shared: Arc<str> = name.into();
        if self.0.len() < Self::MAX {
            self.0.insert(name.into(), shared.clone());
        }
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope() -> Envelope {
        Envelope {
            id: EventId::from_uuid(Uuid::from_u128(7)),
            name: "orders.order_created".into(),
            version: 3,
            key: Some("order-1".into()),
            payload: Bytes::from_static(b"\x00\xff payload"),
            headers: Some(Arc::new(BTreeMap::from([("tenant".to_owned(), "\"acme\" \u{1f6b2}".to_owned())]))),
            published_at: Timestamp::from_millis(-5),
        }
    }

    #[test]
    fn an_envelope_is_read_as_it_was_written() {
        let mut bare = envelope();
        bare.headers = None;
        bare.payload = Bytes::new();
        for envelope in [envelope(), bare] {
            let blob = Bytes::from(encode(&envelope));
            assert_eq!(decode(blob, envelope.key.clone(), &mut Names::default()), Ok(envelope));
        }
    }

    #[test]
    fn a_cut_or_unknown_entry_says_why() {
        let blob = Bytes::from(encode(&envelope()));
        let head = blob.len() - envelope().payload.len();
        for length in 0..head {
            assert!(decode(blob.slice(..length), None, &mut Names::default()).is_err(), "{length}");
        }
        let why = decode(Bytes::from_static(&[9; 80]), None, &mut Names::default()).unwrap_err();
        assert!(why.contains("format 9"), "{why}");
        let huge = [&blob[..1 + 16 + 4 + 8], &[0xff; 8]].concat();
        assert!(decode(huge.into(), None, &mut Names::default()).is_err());
    }

    #[test]
    fn a_state_is_read_as_the_scripts_write_it() {
        let state = State::read(&Bytes::from_static(b"3 1 4 1526919030474 1 \x81 \x00")).unwrap();
        assert_eq!(
            (state.failures, state.crashes, state.due_at, state.is_held),
            (3, 1, 1_526_919_030_474, true)
        );
        assert_eq!(&state.errors.as_bytes()[..], b"\x81 \x00");
        assert_eq!(State::read(&Bytes::new()), Ok(State::default()));
        for damaged in ["3", "3 1 4 5", "a 1 4 5 0 ", "-1 0 0 0 0 "] {
            assert!(State::read(&Bytes::from(damaged)).is_err(), "{damaged}");
        }
    }
}
