//! Every sentence of the crate's documentation, as a test.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly, its helpers as well")]

use std::borrow::Cow;
use std::error::Error as _;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use event_bus_core::backend::{Backend as _, Capabilities, DeadLetterFilter};
use event_bus_core::retry::RunEnd;
use event_bus_core::{
    Context, ErrorKind, Event, EventBus, Failure, Handler, HandlerOptions, Partitioned, async_trait,
};
use event_bus_inline::{FailedRuns, InlineBackend, MAX_DEPTH};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Placed {
    order: String,
    /// Does not survive the codec.
    #[serde(skip)]
    scratch: Option<String>,
}

impl Partitioned for Placed {
    fn partition_key(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(&self.order))
    }
}

impl Event for Placed {
    const NAME: &'static str = "orders.placed";
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Paid;

impl Partitioned for Paid {}

impl Event for Paid {
    const NAME: &'static str = "orders.paid";
}

fn placed(order: &str) -> Placed {
    Placed { order: order.to_owned(), scratch: None }
}

type BoxFuture = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

/// What handlers noted, in the order in which they did.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<String>>>);

impl Notes {
    fn add(&self, note: impl Into<String>) {
        self.0.lock().unwrap().push(note.into());
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// A closure that notes `handler:order` and then ends as `end` says.
fn noting<End>(
    notes: &Notes,
    handler: &'static str,
    end: End,
) -> impl Fn(Placed) -> BoxFuture + Send + Sync + use<End>
where
    End: Fn() -> Result<(), Failure> + Send + Sync + Clone + 'static,
{
    let notes = notes.clone();
    move |event: Placed| {
        let (notes, end) = (notes.clone(), end.clone());
        Box::pin(async move {
            notes.add(format!("{handler}:{}", event.order));
            // A handler that yields must not let its neighbour overtake it.
            tokio::task::yield_now().await;
            end()
        })
    }
}

#[tokio::test]
async fn handlers_run_inside_publish_event_by_event_in_the_order_of_their_registration() {
    let notes = Notes::default();
    let bus = EventBus::builder()
        .handle_fn("z.first", noting(&notes, "first", || Ok(())))
        .handle_fn("a.second", noting(&notes, "second", || Ok(())))
        .backend(InlineBackend::new())
        .build()
        .unwrap();
    let receipt = bus.publish_all(&[placed("1"), placed("2")]).await.unwrap();
    assert_eq!(notes.all(), ["first:1", "second:1", "first:2", "second:2"]);
    assert_eq!(receipt.deliveries(), 4);
    assert_eq!(receipt.event_ids().len(), 2);
}

#[tokio::test]
async fn the_payload_goes_through_the_codec() {
    let seen = Arc::new(Mutex::new(None));
    let keep = seen.clone();
    let bus = EventBus::builder()
        .handle_fn("stock", move |event: Placed| {
            *keep.lock().unwrap() = Some(event);
            async { Ok(()) }
        })
        .backend(InlineBackend::new())
        .build()
        .unwrap();
    bus.publish(&Placed { order: "1".into(), scratch: Some("lost".into()) }).await.unwrap();
    assert_eq!(seen.lock().unwrap().take(), Some(placed("1")));
}

/// An event whose own bytes it cannot read.
#[derive(Clone, Serialize)]
struct Unreadable;

impl<'de> Deserialize<'de> for Unreadable {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("no way back"))
    }
}

impl Partitioned for Unreadable {}

impl Event for Unreadable {
    const NAME: &'static str = "orders.unreadable";
}

#[tokio::test]
async fn an_event_that_cannot_be_decoded_is_a_failure() {
    let bus = EventBus::builder()
        .handle_fn("stock", |_: Unreadable| async { Ok(()) })
        .backend(InlineBackend::new())
        .build()
        .unwrap();
    let error = bus.publish(&Unreadable).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HandlerFailed);
    assert!(error.message().contains("no way back"), "{error}");
}

#[tokio::test]
async fn every_handler_runs_and_the_error_holds_all_failures() {
    let notes = Notes::default();
    let bus = EventBus::builder()
        .handle_fn("stock", noting(&notes, "stock", || Err(Failure::retry("the warehouse is closed"))))
        .handle_fn("mail", noting(&notes, "mail", || Ok(())))
        .handle_fn("invoices", noting(&notes, "invoices", || Err(Failure::discard("no address"))))
        .backend(InlineBackend::new())
        .build()
        .unwrap();
    let error = bus.publish_all(&[placed("1"), placed("2")]).await.unwrap_err();
    assert_eq!(notes.all(), ["stock:1", "mail:1", "invoices:1", "stock:2", "mail:2", "invoices:2"]);
    assert_eq!(error.kind(), ErrorKind::HandlerFailed);
    assert_eq!(error.backend(), Some("inline"));
    assert!(!error.is_transient());
    let one_event =
        "stock on orders.placed: the warehouse is closed; invoices on orders.placed: discarded: no address";
    assert_eq!(error.message(), format!("4 of 6 handler runs failed: {one_event}; {one_event}"));

    let failed: &FailedRuns = error.source().unwrap().downcast_ref().unwrap();
    let handlers: Vec<_> = failed.runs().iter().map(|run| run.handler()).collect();
    assert_eq!(handlers, ["stock", "invoices", "stock", "invoices"]);
    assert_eq!(failed.runs()[0].cause().unwrap().to_string(), "the warehouse is closed");
    assert_eq!(failed.runs()[0].event_name(), "orders.placed");
    assert_ne!(failed.runs()[0].event_id(), failed.runs()[2].event_id());
    // The chain says everything once.
    assert_eq!(event_bus_core::chain(&error), error.to_string());
}

#[tokio::test]
async fn a_retry_is_not_tried_again() {
    let runs = Arc::new(AtomicUsize::new(0));
    let count = runs.clone();
    let bus = EventBus::builder()
        .handle_fn("stock", move |_: Paid| {
            count.fetch_add(1, Ordering::Relaxed);
            async { Err(Failure::retry_after(Duration::from_millis(1), "later")) }
        })
        .backend(InlineBackend::new())
        .build()
        .unwrap();
    bus.publish(&Paid).await.unwrap_err();
    assert_eq!(runs.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_snooze_is_a_failure_because_inline_cannot_wait() {
    let bus = EventBus::builder()
        .handle_fn("stock", |_: Paid| async { Err(Failure::snooze(Duration::from_secs(60))) })
        .backend(InlineBackend::new())
        .build()
        .unwrap();
    let error = bus.publish(&Paid).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HandlerFailed);
    assert!(
        error
            .message()
            .contains("stock on orders.paid: asked to wait for 60s, and nobody can wait inside publish"),
        "{error}"
    );
}

#[tokio::test]
async fn a_panic_is_a_failure_and_the_others_still_run() {
    let notes = Notes::default();
    let bus = EventBus::builder()
        .handle_fn("stock", noting(&notes, "stock", || panic!("shelf 7 is missing")))
        .handle_fn("mail", noting(&notes, "mail", || Ok(())))
        .backend(InlineBackend::new())
        .build()
        .unwrap();
    let error = bus.publish(&placed("1")).await.unwrap_err();
    assert!(error.message().contains("stock on orders.placed: panicked: shelf 7 is missing"), "{error}");
    assert_eq!(notes.all(), ["stock:1", "mail:1"]);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_is_a_failure() {
    let options = HandlerOptions::new().timeout(Duration::from_secs(3));
    let bus = EventBus::builder()
        .handle_fn_with("stock", options, |_: Paid| std::future::pending())
        .backend(InlineBackend::new())
        .build()
        .unwrap();
    let error = bus.publish(&Paid).await.unwrap_err();
    assert!(error.message().contains("stock on orders.paid: timed out after 3s"), "{error}");
    let failed: &FailedRuns = error.source().unwrap().downcast_ref().unwrap();
    assert!(matches!(failed.runs()[0].end(), RunEnd::TimedOut(_)));
}

struct Picky(Notes);

#[async_trait]
impl Handler for Picky {
    const NAME: &'static str = "picky";
    type Event = Placed;
    type Output = ();

    fn interested(&self, event: &Placed) -> bool {
        event.order != "boring"
    }

    fn options(&self) -> HandlerOptions {
        HandlerOptions::new().max_attempts(7)
    }

    async fn handle(&self, event: Placed, cx: &Context) -> Result<(), Failure> {
        assert_eq!((cx.handler(), cx.event_name()), ("picky", "orders.placed"));
        assert_eq!(cx.partition_key(), Some(&*event.order));
        assert_eq!(cx.header("tenant"), Some("acme"));
        assert!(cx.attempt() == 1 && cx.is_last_attempt(), "inline there is only one attempt");
        self.0.add(event.order);
        Ok(())
    }
}

#[tokio::test]
async fn only_interested_handlers_run_and_they_see_their_context() {
    let notes = Notes::default();
    let bus =
        EventBus::builder().handler(Picky(notes.clone())).backend(InlineBackend::new()).build().unwrap();
    let receipt = bus.publish_all(&[placed("1"), placed("boring")]).header("tenant", "acme").await.unwrap();
    assert_eq!(notes.all(), ["1"]);
    assert_eq!(receipt.deliveries(), 1);
}

#[tokio::test]
async fn what_needs_a_store_is_refused_and_nothing_runs() {
    let notes = Notes::default();
    let bus = EventBus::builder()
        .handle_fn("stock", noting(&notes, "stock", || Ok(())))
        .backend(InlineBackend::new())
        .build()
        .unwrap();
    let event = placed("1");
    let mut connection = 0_u8;
    let refused = [
        bus.publish(&event).delay(Duration::from_secs(1)).await.unwrap_err(),
        bus.publish(&event).idempotency_key("once").await.unwrap_err(),
        bus.publish(&event).within(&mut connection).await.unwrap_err(),
        bus.dead_letters(&DeadLetterFilter::default(), None, 10).await.unwrap_err(),
        bus.replay(&DeadLetterFilter::default()).await.unwrap_err(),
        bus.purge(&DeadLetterFilter::default()).await.unwrap_err(),
        bus.counts().await.unwrap_err(),
    ];
    for error in refused {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.message().contains("inline backend"), "{error}");
    }
    assert!(notes.all().is_empty());
}

#[tokio::test]
async fn it_promises_nothing_and_needs_no_preparation() {
    assert_eq!(InlineBackend::new().capabilities(), Capabilities::NONE);
    let bus = EventBus::builder().backend(InlineBackend::new()).build().unwrap();
    bus.migrate().await.unwrap();
    bus.publish(&Paid).await.unwrap();
    bus.publish_all::<Paid>(&[]).await.unwrap();
}

#[tokio::test]
async fn a_second_bus_over_the_same_backend_is_refused_when_it_is_built() {
    let shared = Arc::new(InlineBackend::new());
    let first = EventBus::builder().shared_backend(shared.clone()).build();
    let error = EventBus::builder().shared_backend(shared).build().unwrap_err();
    assert!(first.is_ok());
    assert_eq!(error.kind(), ErrorKind::InvalidConfiguration);
    assert!(error.message().contains("give each bus its own"), "{error}");
}

#[tokio::test]
async fn a_handler_may_publish_on_the_same_bus() {
    let notes = Notes::default();
    let bus: Arc<OnceLock<EventBus>> = Arc::default();
    let (inside, note_placed, note_paid) = (bus.clone(), notes.clone(), notes.clone());
    let built = EventBus::builder()
        .handle_fn("payment", move |event: Placed| {
            let (bus, notes) = (inside.clone(), note_placed.clone());
            async move {
                notes.add(format!("begins {}", event.order));
                bus.get().unwrap().publish(&Paid).await?;
                notes.add(format!("ends {}", event.order));
                Ok(())
            }
        })
        .handle_fn("books", move |_: Paid| {
            note_paid.add("paid");
            async { Ok(()) }
        })
        .backend(InlineBackend::new())
        .build()
        .unwrap();
    bus.set(built).unwrap();
    bus.get().unwrap().publish(&placed("1")).await.unwrap();
    assert_eq!(notes.all(), ["begins 1", "paid", "ends 1"]);
}

#[tokio::test]
async fn handlers_that_publish_in_a_circle_are_stopped_with_an_error() {
    let runs = Arc::new(AtomicUsize::new(0));
    let bus: Arc<OnceLock<EventBus>> = Arc::default();
    let (inside, count) = (bus.clone(), runs.clone());
    let built = EventBus::builder()
        .handle_fn("echo", move |event: Paid| {
            let bus = inside.clone();
            count.fetch_add(1, Ordering::Relaxed);
            async move {
                bus.get().unwrap().publish(&event).await?;
                Ok(())
            }
        })
        .backend(InlineBackend::new())
        .build()
        .unwrap();
    bus.set(built).unwrap();
    let error = bus.get().unwrap().publish(&Paid).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HandlerFailed);
    assert!(error.message().contains("do handlers publish in a circle?"), "{error}");
    assert_eq!(runs.load(Ordering::Relaxed), MAX_DEPTH as usize);
}
