use event_bus_core::Event;
use event_bus_macros::Event;
use serde::{Deserialize, Serialize};

#[derive(Clone, Serialize, Deserialize, Event)]
#[event(crate = event_bus_core, name = "e", version = 2, upcast = Self::upcast)]
struct CallsItself;

fn main() {
    let _ = CallsItself::NAME;
}
