//! `#[derive(Event)]` and `#[derive(Events)]` for [event-bus](https://docs.rs/event-bus), which re-exports both beside
//! the traits they implement. Depend on that crate, not on this one.

mod attributes;
mod event;
mod events;
mod problems;

use proc_macro::TokenStream;
use syn::{DeriveInput, Error, parse_macro_input};

/// Makes a struct or an enum an event: implements `Event`, and `Partitioned` with it.
///
/// The type also derives `Clone`, `Serialize` and `Deserialize`, and is not generic: an event's name is one identity.
///
/// ```
/// # extern crate event_bus_core as event_bus;
/// # use event_bus_macros::Event;
/// use event_bus::{Event, Partitioned};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Clone, Serialize, Deserialize, Event)]
/// #[event(name = "orders.order_placed", partition_key = order_id)]
/// pub struct OrderPlaced {
///     pub order_id: String,
///     pub total: u64,
/// }
///
/// # fn main() {
/// let placed = OrderPlaced { order_id: "o-17".into(), total: 1200 };
/// assert_eq!(OrderPlaced::NAME, "orders.order_placed");
/// assert_eq!(placed.partition_key().as_deref(), Some("o-17"));
/// # }
/// ```
///
/// # Keys of `#[event(...)]`
///
/// All stand on the type itself, in one `#[event(...)]` or in several. What is wrong with them is said at compile time,
/// all of it at once.
///
/// | key | value | |
/// |---|---|---|
/// | `name` | `"orders.order_placed"` | Required. The event's identity on the wire and in every store, whatever becomes of the Rust type's name and place. 1 to 128 bytes of `a-z A-Z 0-9 . _ - :`. |
/// | `alias` | `"orders.order_created"` | A former name, still decoded. May be repeated. |
/// | `version` | `2` | The version of the payload's shape, from 1. Default 1: most changes need no other. |
/// | `upcast` | `path::of::a_function` | Lifts payloads of older versions. Required from version 2 on, refused before. |
/// | `partition_key` | `order_id`, or `0` in a tuple struct | The field by which events are kept in order. |
/// | `partitioned` | | There is an `impl Partitioned` written by hand. Not together with `partition_key`. |
/// | `crate` | `::event_bus` | The path of the crate `event-bus`, for those who renamed or re-exported it. This is the default. |
///
/// # The partition key
///
/// Events with the same key reach a handler one at a time, in the order in which they were published. Without
/// `partition_key` and `partitioned` events have no key and are independent of one another.
///
/// The field's type is any that implements `Display`; the key is what it displays. Text (`String`, `&'static str`,
/// `Cow<'static, str>`, `Box<str>`, `Arc<str>`) is borrowed, everything else costs one allocation a publication.
///
/// A key that is not one field (several fields, an `Option`, the fields of an enum) is written by hand:
///
/// ```
/// # extern crate event_bus_core as event_bus;
/// # use event_bus_macros::Event;
/// use std::borrow::Cow;
///
/// use event_bus::{Event, Partitioned};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Clone, Serialize, Deserialize, Event)]
/// #[event(name = "stock.moved", partitioned)]
/// pub struct StockMoved {
///     pub warehouse: u32,
///     pub article: String,
/// }
///
/// impl Partitioned for StockMoved {
///     fn partition_key(&self) -> Option<Cow<'_, str>> {
///         Some(format!("{}/{}", self.warehouse, self.article).into())
///     }
/// }
/// # fn main() {}
/// ```
///
/// # Changing an event
///
/// - The type's name or module: just change it, nothing stored follows it.
/// - The event's name: give the new one as `name` and the old one as `alias`.
/// - A field that is new, renamed or gone: serde's `default`, `rename` and `alias` do.
/// - Anything else: raise `version` and lift older payloads with `upcast`, a
///   `fn(from: u32, payload: Value) -> Result<Value, String>`. It is called with the version that was stored, for every
///   older one; an error sends the delivery to the dead letters with its text.
///
/// ```
/// # extern crate event_bus_core as event_bus;
/// # use event_bus_macros::Event;
/// use event_bus::{Event, Events, Value};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Clone, Serialize, Deserialize, Event)]
/// #[event(name = "orders.order_billed", version = 2, upcast = Self::lift)]
/// pub struct OrderBilled {
///     pub cents: u64,
/// }
///
/// impl OrderBilled {
///     /// Version 1 was the bare amount in euros.
///     fn lift(_from: u32, payload: Value) -> Result<Value, String> {
///         let euros = payload.as_integer().and_then(|euros| u64::try_from(euros).ok());
///         let euros = euros.ok_or("the amount is not a number of euros")?;
///         Ok(Value::Map(vec![("cents".into(), (euros * 100).into())]))
///     }
/// }
///
/// # fn main() {
/// let stored = event_bus::codec::encode(&12_u64).unwrap();
/// assert_eq!(OrderBilled::decode("orders.order_billed", 1, &stored).unwrap().cents, 1200);
/// # }
/// ```
#[proc_macro_derive(Event, attributes(event))]
pub fn derive_event(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    event::derive(&input).unwrap_or_else(Error::into_compile_error).into()
}

/// Makes an enum a set of events, for a handler that takes several: implements `Events`, and `From` for every variant.
///
/// Each variant holds one unnamed field, whose type is an event or another set.
///
/// ```
/// # extern crate event_bus_core as event_bus;
/// # use event_bus_macros::{Event, Events};
/// use event_bus::{Event, Events};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
/// #[event(name = "orders.order_placed", partition_key = order_id)]
/// pub struct OrderPlaced {
///     pub order_id: String,
/// }
///
/// #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
/// #[event(name = "orders.order_cancelled", partition_key = order_id)]
/// pub struct OrderCancelled {
///     pub order_id: String,
/// }
///
/// #[derive(Debug, PartialEq, Events)]
/// pub enum OrderEvent {
///     Placed(OrderPlaced),
///     Cancelled(OrderCancelled),
/// }
///
/// # fn main() {
/// assert_eq!(OrderEvent::names(), ["orders.order_placed", "orders.order_cancelled"]);
///
/// let placed = OrderPlaced { order_id: "o-17".into() };
/// let stored = event_bus::codec::encode(&placed).unwrap();
/// assert_eq!(OrderEvent::decode("orders.order_placed", 1, &stored), Ok(OrderEvent::from(placed)));
/// # }
/// ```
///
/// A handler of the set sees the events of one partition key in order, whichever of the set's types they have.
///
/// # What it costs
///
/// A handler is asked in `publish` whether it is interested, and sees the event as a variant of its set: for that the
/// event is cloned, once for every registered handler that takes a set with it. Events therefore are `Clone`, and a set
/// within another set must derive `Clone` as well.
///
/// # Names
///
/// No two events of a set share a name or an alias; the second would never be decoded. Among the events that stand
/// directly in the set this is checked at compile time.
///
/// # Keys of `#[event(...)]`
///
/// A set has no name, key or version of its own, so it knows only `#[event(crate = ::event_bus)]`, the path of the crate
/// `event-bus` for those who renamed or re-exported it. A type is one event or a set of them, never both.
#[proc_macro_derive(Events, attributes(event))]
pub fn derive_events(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    events::derive(&input).unwrap_or_else(Error::into_compile_error).into()
}
