use event_bus_macros::Event;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Event)]
#[event(crate = event_bus_core, name = "e")]
struct NotClone;

fn main() {}
