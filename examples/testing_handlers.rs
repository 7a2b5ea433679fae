//! How an application that uses the bus is tested: `cargo test --example testing_handlers`.
//!
//! Above, a little of a shop; below, its tests. The chapter `docs/testing.md` explains each of them. (`cargo run` shows
//! the shop at work, inline.)

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "it talks to a person, and its tests may fail loudly"
)]

use event_bus::InlineBackend;
use event_bus::prelude::*;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(name = "shop.order_placed", partition_key = order_id)]
struct OrderPlaced {
    order_id: String,
    cents: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(name = "shop.order_paid", partition_key = order_id)]
struct OrderPaid {
    order_id: String,
}

/// Charges each order once, however often its delivery comes.
#[derive(Default)]
struct Payment {
    charged: std::sync::Mutex<std::collections::BTreeMap<String, u64>>,
}

impl Payment {
    fn total(&self) -> u64 {
        self.charged.lock().map_or(0, |charged| charged.values().sum())
    }
}

/// What the handler holds: shared with whoever wants to look.
struct Charging(std::sync::Arc<Payment>);

#[async_trait]
impl Handler for Charging {
    const NAME: &'static str = "payment.charging";
    type Event = OrderPlaced;
    /// The amount charged.
    type Output = u64;

    /// Gifts are not charged.
    fn interested(&self, event: &OrderPlaced) -> bool {
        event.cents > 0
    }

    fn options(&self) -> HandlerOptions {
        HandlerOptions::new().max_attempts(3)
    }

    async fn handle(&self, event: OrderPlaced, _: &Context) -> Result<u64, Failure> {
        if event.cents > 1_000_000 {
            return Err(Failure::discard("a person must look at this"));
        }
        let mut charged = self.0.charged.lock().map_err(|_| Failure::retry("the till is jammed"))?;
        // The order's id is the key, so a second delivery changes nothing.
        charged.insert(event.order_id, event.cents);
        Ok(event.cents)
    }
}

/// The bus of the application over any backend: tests use the same function.
fn shop_bus(
    backend: impl event_bus::backend::Backend,
) -> event_bus::Result<(EventBus, std::sync::Arc<Payment>)> {
    let payment = std::sync::Arc::<Payment>::default();
    let bus = EventBus::builder().handler(Charging(payment.clone())).backend(backend).build()?;
    Ok((bus, payment))
}

async fn place_order(bus: &EventBus, order_id: &str, cents: u64) -> event_bus::Result<()> {
    let placed = OrderPlaced { order_id: order_id.into(), cents };
    if cents == 0 {
        // A gift counts as paid.
        return bus.publish(&placed).and(&OrderPaid { order_id: order_id.into() }).await.map(drop);
    }
    bus.publish(&placed).await.map(drop)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> event_bus::Result<()> {
    let (bus, payment) = shop_bus(InlineBackend::new())?;
    place_order(&bus, "A-17", 4_200).await?;
    place_order(&bus, "A-18", 0).await?;
    println!("charged {} cents; now try: cargo test --example testing_handlers", payment.total());
    Ok(())
}

#[cfg(test)]
mod tests {
    use event_bus::testing::*;

    use super::*;

    fn shop() -> (TestSession, EventBus, std::sync::Arc<Payment>) {
        let testing = TestingBackend::new();
        let (bus, payment) = shop_bus(testing.clone()).unwrap();
        (testing.session(), bus, payment)
    }

    #[tokio::test]
    async fn a_gift_is_paid_at_once() {
        let (mut test, bus, _) = shop();
        place_order(&bus, "noise", 100).await.unwrap();

        test.set_mode(Mode::Strict);
        place_order(&bus, "A-18", 0).await.unwrap();
        assert_event_published!(test, OrderPlaced { cents: 0, .. });
        assert_event_published!(test, OrderPaid { order_id } if order_id == "A-18");
    }

    #[tokio::test]
    async fn other_orders_are_not() {
        let (mut test, bus, _) = shop();
        test.set_mode(Mode::Strict);
        place_order(&bus, "A-17", 4_200).await.unwrap();
        let cents = assert_event_published!(test, OrderPlaced { cents, .. } => *cents);
        assert_eq!(cents, 4_200);
        refute_event_published!(test, OrderPaid { .. });
    }

    #[tokio::test]
    async fn charging_gives_the_amount_and_leaves_gifts_alone() {
        let charging = Charging(Default::default());
        let order = OrderPlaced { order_id: "A-17".into(), cents: 4_200 };
        assert_eq!(run_event!(&order, &charging), Ran::Processed(4_200));
        assert_eq!(run_event!(&OrderPlaced { cents: 0, ..order.clone() }, &charging), Ran::NotInterested);

        let failure = run_event(&OrderPlaced { cents: 2_000_000, ..order }, &charging).await.unwrap_err();
        assert_eq!(failure.kind(), RunFailureKind::Discard);
    }

    #[tokio::test]
    async fn an_order_is_charged_once_whatever_happens_to_its_delivery() {
        let (mut test, bus, payment) = shop();
        test.inject(Fault::deliver_twice());
        test.inject(Fault::crash_before_ack());
        place_order(&bus, "A-17", 4_200).await.unwrap();

        let report = test.drain().await;
        assert_eq!(report.runs.len(), 3);
        assert_eq!(payment.total(), 4_200);
        assert_eq!(test.faults_left(), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_request_in_a_task_of_its_own() {
        let (mut test, bus, payment) = shop();
        test.set_mode(Mode::Inline);
        let request = async move { place_order(&bus, "A-17", 4_200).await };
        tokio::spawn(request.in_test(&test)).await.unwrap().unwrap();
        assert_eq!(payment.total(), 4_200);
    }

    #[tokio::test]
    #[should_panic(expected = r#"OrderPlaced { order_id: "A-19", cents: 5 }"#)]
    async fn what_nobody_asserted_is_shown_as_its_debug() {
        let (mut test, bus, _) = shop();
        test.set_mode(Mode::Strict);
        place_order(&bus, "A-19", 5).await.unwrap();
    }
}
