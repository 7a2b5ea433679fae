//! What is published: two types of one shape, so that a line has events of both.

use std::any::Any;
use std::borrow::Cow;

use event_bus_core::codec::DecodeError;
use event_bus_core::{Event, Events, Partitioned};
use serde::{Deserialize, Serialize};

/// The shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Body {
    pub number: u64,
    pub key: Option<String>,
    pub text: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Placed(pub Body);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cancelled(pub Body);

impl Partitioned for Placed {
    fn partition_key(&self) -> Option<Cow<'_, str>> {
        self.0.key.as_deref().map(Cow::from)
    }
}

impl Event for Placed {
    const NAME: &'static str = "sim.placed";
}

impl Partitioned for Cancelled {
    fn partition_key(&self) -> Option<Cow<'_, str>> {
        self.0.key.as_deref().map(Cow::from)
    }
}

impl Event for Cancelled {
    const NAME: &'static str = "sim.cancelled";
}

/// What every handler takes.
pub struct Happened(pub Body);

impl Events for Happened {
    fn names() -> Vec<&'static str> {
        vec![Placed::NAME, Cancelled::NAME]
    }

    fn accepts(name: &str) -> bool {
        name == Placed::NAME || name == Cancelled::NAME
    }

    fn decode(name: &str, version: u32, payload: &[u8]) -> Result<Self, DecodeError> {
        if name == Placed::NAME {
            event_bus_core::codec::decode::<Placed>(version, payload).map(|event| Self(event.0))
        } else {
            <Cancelled as Events>::decode(name, version, payload).map(|event| Self(event.0))
        }
    }

    fn inspect<R>(event: &dyn Any, look: impl FnOnce(&Self) -> R) -> Option<R> {
        let placed = event.downcast_ref::<Placed>().map(|event| &event.0);
        let body = placed.or_else(|| event.downcast_ref::<Cancelled>().map(|event| &event.0))?;
        Some(look(&Self(body.clone())))
    }
}

/// The payload of an event that no handler can decode, and its number again.
pub fn garbage(number: u64) -> Vec<u8> {
    format!("\u{ff}{number}").into_bytes()
}

/// The number and the hash of a stored payload.
pub fn identify(payload: &[u8]) -> (u64, u64) {
    use event_bus_conformance::history::hash;
    match event_bus_core::codec::decode::<Placed>(1, payload) {
        Ok(event) => (event.0.number, hash(event.0.text.as_bytes())),
        Err(_) => {
            let text = String::from_utf8_lossy(payload);
            (text.trim_start_matches('\u{ff}').parse().unwrap_or(u64::MAX), hash(payload))
        }
    }
}
