use event_bus_macros::Event;
use serde::Serialize;

#[derive(Clone, Serialize, Event)]
#[event(crate = event_bus_core, name = "e")]
struct NotDeserialized;

fn main() {}
