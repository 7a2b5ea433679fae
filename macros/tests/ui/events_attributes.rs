use event_bus_macros::{Event, Events};

#[derive(Event, Events)]
#[event(name = "orders")]
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

struct OrderPlaced;

fn main() {}
