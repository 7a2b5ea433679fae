use event_bus_macros::{Event, Events};
use serde::{Deserialize, Serialize};

#[derive(Clone, Serialize, Deserialize, Event)]
#[event(crate = event_bus_core, name = "orders.placed")]
struct OrderPlaced;

#[derive(Clone, Serialize, Deserialize)]
struct Order;

#[derive(Events)]
#[event(crate = event_bus_core)]
enum OrderEvent {
    Placed(OrderPlaced),
    Order(Order),
}

fn main() {}
