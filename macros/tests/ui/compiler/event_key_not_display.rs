use event_bus_macros::Event;
use serde::{Deserialize, Serialize};

#[derive(Clone, Serialize, Deserialize, Event)]
#[event(crate = event_bus_core, name = "e", partition_key = id)]
struct NotShown {
    id: Option<String>,
}

fn main() {}
