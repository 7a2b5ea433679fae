use event_bus_macros::{Event, Events};
use serde::{Deserialize, Serialize};

#[derive(Clone, Serialize, Deserialize, Event)]
#[event(crate = event_bus_core, name = "orders.placed", alias = "orders.created")]
struct OrderPlaced;

#[derive(Clone, Serialize, Deserialize, Event)]
#[event(crate = event_bus_core, name = "orders.created")]
struct OrderCreated;

#[derive(Clone, Serialize, Deserialize, Event)]
#[event(crate = event_bus_core, name = "orders.cancelled", alias = "orders.placed")]
struct OrderCancelled;

#[derive(Clone, Serialize, Deserialize, Event)]
#[event(crate = event_bus_core, name = "orders.shipped", alias = "orders.create")]
struct OrderShipped;

#[derive(Events)]
#[event(crate = event_bus_core)]
enum OrderEvent {
    Placed(OrderPlaced),
    Created(OrderCreated),
    Cancelled(OrderCancelled),
    Shipped(OrderShipped),
}

fn main() {}
