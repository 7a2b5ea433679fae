//! What happened: the typed domain event, and the set of events one handler takes.

use std::any::Any;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::{self, DecodeError};
use crate::partitioned::Partitioned;

/// A CBOR value: a payload whose Rust type is not known, as [`Event::upcast`] sees it.
pub type Value = ciborium::Value;

/// The longest name of an event or a handler, in bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// A domain event: a fact that modules tell each other.
///
/// Derive it: `#[derive(Event)] #[event(name = "orders.order_placed", partition_key = order_id)]`.
///
/// # The name is the identity
///
/// [`NAME`](Event::NAME) stands on the wire and in every store; it does not follow the Rust path, so moving or renaming
/// the type breaks nothing that is queued. A name is 1 to [`MAX_NAME_BYTES`] of `a-z A-Z 0-9 . _ - :`.
///
/// # Changing the shape
///
/// serde's own `default`, `rename` and `alias` cover most changes. For the rest raise [`VERSION`](Event::VERSION) and
/// write an [`upcast`](Event::upcast), which lifts the payload of an older version to this one before it is decoded.
pub trait Event: Partitioned + Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    /// The stable name.
    const NAME: &'static str;
    /// Former names, still decoded.
    const ALIASES: &'static [&'static str] = &[];
    /// The version of the payload's shape; 1 unless an upcast became necessary.
    const VERSION: u32 = 1;

    /// Lifts a payload written as version `from` (< [`VERSION`](Event::VERSION)) to this version.
    ///
    /// # Errors
    /// A text that says what is missing; the delivery goes to the dead letters with it.
    fn upcast(from: u32, payload: Value) -> Result<Value, String> {
        let _ = payload;
        Err(format!("{} has no upcast from version {from} to {}", Self::NAME, Self::VERSION))
    }

    /// The event as Rust's `Debug` shows it, for the failure texts of the testing backend, which alone asks for it.
    /// `None` if the type has no `Debug`: then its payload is shown. The derive writes it.
    fn debug(event: &Self) -> Option<String> {
        let _ = event;
        None
    }
}

/// The events one handler takes: a single [`Event`], or an enum of several (`#[derive(Events)]`).
pub trait Events: Sized + Send + Sync + 'static {
    /// The names in this set: each event's own name and its aliases.
    fn names() -> Vec<&'static str>;

    /// Whether `name` is in this set. Called for every delivery; must not allocate.
    fn accepts(name: &str) -> bool;

    /// Decodes the payload of the event called `name`, written as `version`.
    ///
    /// # Errors
    /// See [`DecodeError`].
    fn decode(name: &str, version: u32, payload: &[u8]) -> Result<Self, DecodeError>;

    /// Shows a published event to `look` as this set sees it; `None` if the event is not in the set.
    ///
    /// This is how [`Handler::interested`](crate::Handler::interested) is asked before anything is encoded.
    fn inspect<R>(event: &dyn Any, look: impl FnOnce(&Self) -> R) -> Option<R>;
}

impl<E: Event> Events for E {
    fn names() -> Vec<&'static str> {
        std::iter::once(E::NAME).chain(E::ALIASES.iter().copied()).collect()
    }

    fn accepts(name: &str) -> bool {
        name == E::NAME || E::ALIASES.contains(&name)
    }

    fn decode(name: &str, version: u32, payload: &[u8]) -> Result<Self, DecodeError> {
        if !Self::accepts(name) {
            return Err(DecodeError::UnknownName { name: name.to_owned() });
        }
        codec::decode::<E>(version, payload)
    }

    fn inspect<R>(event: &dyn Any, look: impl FnOnce(&Self) -> R) -> Option<R> {
        event.downcast_ref::<E>().map(look)
    }
}

/// Says why `name` cannot be the name of an event or a handler, if it cannot.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("a name must not be empty".into());
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(format!("a name has at most {MAX_NAME_BYTES} bytes, this one has {}", name.len()));
    }
    match name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ':'))) {
        Some(c) => Err(format!("the name {name:?} contains {c:?}; allowed are a-z A-Z 0-9 . _ - :")),
        None => Ok(()),
    }
}
