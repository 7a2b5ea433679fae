//! What `#[derive(Events)]` writes.

use event_bus_core::codec::{self, DecodeError};
use event_bus_core::{Event, Events, Value};
use event_bus_macros::{Event, Events};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(crate = event_bus_core, name = "orders.placed", alias = "orders.created")]
struct OrderPlaced {
    id: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(crate = event_bus_core, name = "orders.cancelled", version = 2, upcast = without_reason)]
struct OrderCancelled {
    id: u32,
    reason: String,
}

fn without_reason(_: u32, payload: Value) -> Result<Value, String> {
    let mut fields = payload.into_map().map_err(|_| "the payload is no map")?;
    fields.push(("reason".into(), "unknown".into()));
    Ok(Value::Map(fields))
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(crate = event_bus_core, name = "calls.ended")]
struct CallEnded;

#[derive(Clone, Debug, PartialEq, Events)]
#[event(crate = event_bus_core)]
enum OrderEvent {
    Placed(OrderPlaced),
    Cancelled(OrderCancelled),
}

/// A set within a set: the inner one is `Clone`, the outer one need not be.
#[derive(Debug, PartialEq, Events)]
#[event(crate = event_bus_core)]
enum AnyEvent {
    Order(OrderEvent),
    Call(CallEnded),
}

#[test]
fn a_set_has_the_names_of_all_its_events() {
    assert_eq!(OrderEvent::names(), ["orders.placed", "orders.created", "orders.cancelled"]);
    assert_eq!(AnyEvent::names(), ["orders.placed", "orders.created", "orders.cancelled", "calls.ended"]);
}

#[test]
fn a_set_accepts_its_names_and_no_others() {
    for name in OrderEvent::names() {
        assert!(OrderEvent::accepts(name) && AnyEvent::accepts(name), "{name}");
    }
    assert!(!OrderEvent::accepts("calls.ended"));
    assert!(AnyEvent::accepts("calls.ended"));
}

#[test]
fn a_payload_is_decoded_into_the_variant_of_its_name() {
    let placed = codec::encode(&OrderPlaced { id: 7 }).unwrap();
    for name in ["orders.placed", "orders.created"] {
        assert_eq!(OrderEvent::decode(name, 1, &placed), Ok(OrderEvent::Placed(OrderPlaced { id: 7 })));
    }
    let nested = AnyEvent::decode("orders.placed", 1, &placed);
    assert_eq!(nested, Ok(AnyEvent::Order(OrderEvent::Placed(OrderPlaced { id: 7 }))));
}

#[test]
fn an_older_payload_is_lifted_within_a_set_too() {
    let old = codec::encode(&OrderPlaced { id: 7 }).unwrap();
    let lifted = OrderCancelled { id: 7, reason: "unknown".into() };
    assert_eq!(OrderEvent::decode("orders.cancelled", 1, &old), Ok(lifted.into()));
}

#[test]
fn a_name_outside_the_set_is_unknown() {
    let payload = codec::encode(&CallEnded).unwrap();
    let decoded = OrderEvent::decode("calls.ended", 1, &payload);
    assert_eq!(decoded, Err(DecodeError::UnknownName { name: "calls.ended".into() }));
}

#[test]
fn what_is_wrong_with_a_payload_is_said_by_its_event() {
    let payload = codec::encode(&CallEnded).unwrap();
    assert_eq!(
        AnyEvent::decode("calls.ended", 4, &payload),
        Err(DecodeError::NewerVersion { found: 4, known: 1 })
    );
    assert!(matches!(AnyEvent::decode("orders.placed", 1, &payload), Err(DecodeError::Malformed(_))));
}

#[test]
fn a_published_event_is_seen_as_its_variant() {
    let cancelled = OrderCancelled { id: 7, reason: "late".into() };
    let seen = OrderEvent::inspect(&cancelled, |set| *set == OrderEvent::from(cancelled.clone()));
    assert_eq!(seen, Some(true));
    let seen = AnyEvent::inspect(&cancelled, |set| *set == AnyEvent::Order(cancelled.clone().into()));
    assert_eq!(seen, Some(true));
}

#[test]
fn an_event_outside_the_set_is_not_looked_at() {
    assert_eq!(OrderEvent::inspect(&CallEnded, |_| ()), None);
    assert_eq!(AnyEvent::inspect(&CallEnded, |set| *set == AnyEvent::Call(CallEnded)), Some(true));
}

#[test]
fn a_set_is_made_from_each_of_its_events() {
    assert_eq!(OrderEvent::from(OrderPlaced { id: 1 }), OrderEvent::Placed(OrderPlaced { id: 1 }));
    let call: AnyEvent = CallEnded.into();
    assert_eq!(call, AnyEvent::Call(CallEnded));
}

#[derive(Events)]
#[event(crate = event_bus_core)]
enum Alone {
    Call(CallEnded),
}

#[test]
fn a_set_may_hold_a_single_event() {
    let payload = codec::encode(&CallEnded).unwrap();
    let Alone::Call(call) = Alone::decode(CallEnded::NAME, 1, &payload).unwrap();
    assert_eq!(call, CallEnded);
}
