use event_bus_macros::{Event, Events};
use serde::{Deserialize, Serialize};

#[derive(Clone, Deserialize, Serialize, Event, Events)]
#[event(name = "orders", crate = ::event_bus_core)]
enum Both {
    Placed(OrderPlaced),
}

#[derive(Events)]
#[event(alias = "a", version = 2, upcast = lift, partition_key = id, partitioned)]
enum EventKeys {
    Placed(OrderPlaced),
}

#[derive(Events)]
#[event(skip)]
enum Unknown {
    Placed(OrderPlaced),
}

#[derive(Events)]
#[event(crate)]
enum NoPath {
    Placed(OrderPlaced),
}

#[derive(Events)]
enum Inner {
    #[event(rename = "placed")]
    Placed(#[event(skip)] OrderPlaced),
}

#[derive(Clone, Deserialize, Serialize)]
struct OrderPlaced;

fn main() {}
