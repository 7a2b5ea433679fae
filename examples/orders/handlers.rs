//! Five modules of a shop that want to know what happens to an order. One is flaky, one rejects some orders for good,
//! one takes only what interests it, one is slow.

use std::fmt;
use std::time::Duration;

use event_bus::prelude::*;

use crate::events::{OfOrder, OrderCancelled, OrderEvent, OrderPaid, OrderPlaced};

/// Attempts of each delivery. The default as well; said here because the checks count on it.
pub const MAX_ATTEMPTS: u32 = 5;

/// Short, so that the example ends in seconds. A real handler is well served by the default (17 s, 19 s, 23 s, …).
fn options() -> HandlerOptions {
    let backoff =
        Backoff::exponential(Duration::from_millis(20), Duration::from_millis(5), Duration::from_secs(1));
    HandlerOptions::new().max_attempts(MAX_ATTEMPTS).backoff(backoff)
}

/// Reserves goods, through a warehouse system that does not always answer.
pub struct StockReservations;

#[derive(Debug)]
struct WarehouseIsSilent;

impl fmt::Display for WarehouseIsSilent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the warehouse system did not answer")
    }
}

impl std::error::Error for WarehouseIsSilent {}

#[async_trait]
impl Handler for StockReservations {
    const NAME: &'static str = "stock.reservations";
    type Event = OrderEvent;
    type Output = ();

    fn interested(&self, event: &OrderEvent) -> bool {
        !matches!(event, OrderEvent::Paid(_))
    }

    fn options(&self) -> HandlerOptions {
        options()
    }

    async fn handle(&self, event: OrderEvent, cx: &Context) -> Result<(), Failure> {
        if cx.attempt() <= silences(&event) {
            // Any error becomes a retry, as with `?`. The order's later events wait meanwhile.
            return Err(WarehouseIsSilent.into());
        }
        Ok(())
    }
}

/// How often the warehouse is silent about this event: twice, once, mostly never. Always the same for the same event, so
/// that the program knows what to expect.
fn silences(event: &OrderEvent) -> u32 {
    match event_bus::slot(&format!("{}/{}", event.order_id(), event.revision())) {
        0..4 => 2,
        4..10 => 1,
        _ => 0,
    }
}

/// The two events that change an invoice. A handler names the events it takes; the others never reach it.
#[derive(Events)]
pub enum BillingEvent {
    Placed(OrderPlaced),
    Cancelled(OrderCancelled),
}

impl OfOrder for BillingEvent {
    fn order_id(&self) -> &str {
        match self {
            Self::Placed(event) => event.order_id(),
            Self::Cancelled(event) => event.order_id(),
        }
    }

    fn revision(&self) -> u32 {
        match self {
            Self::Placed(event) => event.revision(),
            Self::Cancelled(event) => event.revision(),
        }
    }
}

/// Writes invoices, where it knows the tax of the country; no attempt will ever change that.
pub struct Invoices;

#[async_trait]
impl Handler for Invoices {
    const NAME: &'static str = "finance.invoices";
    type Event = BillingEvent;
    type Output = ();

    fn options(&self) -> HandlerOptions {
        options().timeout(Duration::from_secs(5))
    }

    async fn handle(&self, event: BillingEvent, _: &Context) -> Result<(), Failure> {
        match event {
            BillingEvent::Placed(order) if !is_taxed(&order) => {
                Err(Failure::discard(format!("no tax rule for country {:?}", order.customer.country)))
            }
            BillingEvent::Placed(_) | BillingEvent::Cancelled(_) => Ok(()),
        }
    }
}

fn is_taxed(order: &OrderPlaced) -> bool {
    !matches!(order.customer.country.as_str(), "BR" | "JP")
}

/// Looks at large payments only: what is not interesting is not even stored for it.
pub struct FraudReview;

#[async_trait]
impl Handler for FraudReview {
    const NAME: &'static str = "fraud.review";
    type Event = OrderPaid;
    type Output = ();

    fn interested(&self, payment: &OrderPaid) -> bool {
        is_large(payment)
    }

    fn options(&self) -> HandlerOptions {
        options()
    }

    async fn handle(&self, _: OrderPaid, _: &Context) -> Result<(), Failure> {
        Ok(())
    }
}

fn is_large(payment: &OrderPaid) -> bool {
    payment.amount_cents >= 15_000
}

/// Writes to the customer; the mail server takes its time and accepts sixteen connections.
pub struct CustomerMail;

#[async_trait]
impl Handler for CustomerMail {
    const NAME: &'static str = "mail.customer";
    type Event = OrderEvent;
    type Output = ();

    fn options(&self) -> HandlerOptions {
        options().concurrency(16)
    }

    async fn handle(&self, event: OrderEvent, _: &Context) -> Result<(), Failure> {
        let millis = 2 + u64::from(event_bus::slot(event.order_id())) / 10;
        tokio::time::sleep(Duration::from_millis(millis)).await;
        Ok(())
    }
}

/// Keeps the orders findable. Quick, and the least urgent.
pub struct SearchIndex;

#[async_trait]
impl Handler for SearchIndex {
    const NAME: &'static str = "search.index";
    type Event = OrderEvent;
    type Output = ();

    fn options(&self) -> HandlerOptions {
        options().priority(5)
    }

    async fn handle(&self, _: OrderEvent, _: &Context) -> Result<(), Failure> {
        Ok(())
    }
}

/// What must become of an event at a handler, whatever happens in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It has no delivery there.
    NotWanted,
    /// It succeeds at last, after this many failures.
    Succeeds { after: u32 },
    /// It ends in the dead letters.
    Rejected,
}

/// A handler and what must become of each event there: what the program holds against what the bus did.
pub struct Expectation {
    pub handler: &'static str,
    pub fate: fn(&OrderEvent) -> Fate,
}

/// All handlers in the order of their registration.
pub const EXPECTATIONS: [Expectation; 5] = [
    Expectation {
        handler: StockReservations::NAME,
        fate: |event| match event {
            OrderEvent::Paid(_) => Fate::NotWanted,
            _ => Fate::Succeeds { after: silences(event) },
        },
    },
    Expectation {
        handler: Invoices::NAME,
        fate: |event| match event {
            OrderEvent::Placed(order) if !is_taxed(order) => Fate::Rejected,
            OrderEvent::Placed(_) | OrderEvent::Cancelled(_) => Fate::Succeeds { after: 0 },
            _ => Fate::NotWanted,
        },
    },
    Expectation {
        handler: FraudReview::NAME,
        fate: |event| match event {
            OrderEvent::Paid(payment) if is_large(payment) => Fate::Succeeds { after: 0 },
            _ => Fate::NotWanted,
        },
    },
    Expectation { handler: CustomerMail::NAME, fate: |_| Fate::Succeeds { after: 0 } },
    Expectation { handler: SearchIndex::NAME, fate: |_| Fate::Succeeds { after: 0 } },
];
