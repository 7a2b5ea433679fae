use event_bus_core::Value;
use event_bus_macros::Event;
use serde::{Deserialize, Serialize};

#[derive(Clone, Serialize, Deserialize, Event)]
#[event(crate = event_bus_core, name = "e", version = 2, upcast = lift)]
struct WrongSignature;

fn lift(payload: Value) -> Value {
    payload
}

fn main() {}
