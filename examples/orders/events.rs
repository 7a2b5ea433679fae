//! What happens to an order: four events, and the set of them that most handlers take.

use event_bus::Publish;
use event_bus::prelude::*;

/// A customer ordered something.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(name = "orders.order_placed", partition_key = order_id)]
pub struct OrderPlaced {
    pub order_id: String,
    /// Which event of its order this is, from 1: the line a handler must keep.
    pub revision: u32,
    pub at: String,
    pub customer: Customer,
    pub items: Vec<Item>,
    pub total_cents: u64,
}

/// Who ordered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Customer {
    pub id: String,
    pub name: String,
    pub email: String,
    pub city: String,
    pub country: String,
}

/// One line of an order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Item {
    pub sku: String,
    pub quantity: u32,
    pub unit_cents: u64,
}

/// A payment arrived, perhaps one of several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(name = "orders.order_paid", partition_key = order_id)]
pub struct OrderPaid {
    pub order_id: String,
    pub revision: u32,
    pub at: String,
    pub method: String,
    pub amount_cents: u64,
}

/// A parcel left the warehouse.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(name = "orders.order_shipped", partition_key = order_id)]
pub struct OrderShipped {
    pub order_id: String,
    pub revision: u32,
    pub at: String,
    pub carrier: String,
    pub tracking: String,
    pub parcel: u32,
    pub parcels: u32,
}

/// The order will not be carried out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(name = "orders.order_cancelled", partition_key = order_id)]
pub struct OrderCancelled {
    pub order_id: String,
    pub revision: u32,
    pub at: String,
    pub reason: String,
}

/// Everything that happens to an order: a set of events for a handler, and one line of the input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Events)]
#[serde(tag = "event")]
pub enum OrderEvent {
    #[serde(rename = "order_placed")]
    Placed(OrderPlaced),
    #[serde(rename = "order_paid")]
    Paid(OrderPaid),
    #[serde(rename = "order_shipped")]
    Shipped(OrderShipped),
    #[serde(rename = "order_cancelled")]
    Cancelled(OrderCancelled),
}

/// What an event says about its place: whose, and which one.
pub trait OfOrder {
    /// The order's number, which is the partition key.
    fn order_id(&self) -> &str;
    /// Which event of its order it is, from 1.
    fn revision(&self) -> u32;
}

macro_rules! of_order {
    ($($event:ty),*) => {$(
        impl OfOrder for $event {
            fn order_id(&self) -> &str {
                &self.order_id
            }

            fn revision(&self) -> u32 {
                self.revision
            }
        }
    )*};
}

of_order!(OrderPlaced, OrderPaid, OrderShipped, OrderCancelled);

impl OrderEvent {
    fn place(&self) -> &dyn OfOrder {
        match self {
            Self::Placed(event) => event,
            Self::Paid(event) => event,
            Self::Shipped(event) => event,
            Self::Cancelled(event) => event,
        }
    }

    /// Adds this event, whatever its type, to a publish call.
    pub fn add_to<'a>(&'a self, call: Publish<'a>) -> Publish<'a> {
        match self {
            Self::Placed(event) => call.and(event),
            Self::Paid(event) => call.and(event),
            Self::Shipped(event) => call.and(event),
            Self::Cancelled(event) => call.and(event),
        }
    }
}

impl OfOrder for OrderEvent {
    fn order_id(&self) -> &str {
        self.place().order_id()
    }

    fn revision(&self) -> u32 {
        self.place().revision()
    }
}
