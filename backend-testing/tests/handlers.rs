//! Inline mode and `run_event`: handlers that run where the test can see them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail loudly")]

mod common;

use std::error::Error as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use event_bus_core::{Context, ErrorKind, EventBus, Failure, Handler, HandlerOptions, async_trait};
use event_bus_testing::*;

#[tokio::test]
async fn inline_runs_handlers_inside_publish_and_only_from_then_on() {
    let ran: Arc<Mutex<Vec<u32>>> = Arc::default();
    let notes = ran.clone();
    let (testing, bus) = bus_with(|b| {
        b.handle_fn("mail", move |event: CallBilled| {
            notes.lock().unwrap().push(event.minutes);
            async { Ok(()) }
        })
    });
    let mut test = testing.session();
    bus.publish(&billed("a", 1)).await.unwrap();
    test.set_mode(Mode::Inline);
    let receipt = bus.publish(&billed("a", 2)).delay(Duration::from_secs(60)).await.unwrap();
    assert_eq!((receipt.deliveries(), ran.lock().unwrap().clone()), (1, vec![2]));
    test.set_mode(Mode::Strict);
    bus.publish(&billed("a", 3)).await.unwrap();
    assert_eq!(*ran.lock().unwrap(), [2]);
    assert_event_published!(test, CallBilled { .. });
    // What was recorded can still be drained, what ran inline does not run again.
    assert_eq!(test.drain().await.completed, 2);
    assert_eq!(*ran.lock().unwrap(), [2, 1, 3]);
}

#[tokio::test]
async fn inline_runs_all_handlers_and_returns_every_failure() {
    let (testing, bus) = bus_with(|b| {
        b.handle_fn("stock", |_: Tick| async { Err(Failure::retry("no shelf")) })
            .handle_fn("books", |_: Tick| async { Ok(()) })
            .handle_fn("mail", |_: Tick| async { Err(Failure::snooze(Duration::from_secs(1))) })
    });
    let mut test = testing.session();
    test.set_mode(Mode::Inline);
    let error = bus.publish(&Tick).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HandlerFailed);
    assert_eq!(
        error.message(),
        "2 of 3 handler runs failed: stock on tick: no shelf; mail on tick: asked to wait for 1s, and nobody \
         can wait inside publish"
    );
    let failed: &FailedRuns = error.source().unwrap().downcast_ref().unwrap();
    assert_eq!(failed.runs()[1].handler(), "mail");
}

#[tokio::test]
async fn what_inline_handlers_publish_belongs_to_the_test_and_a_circle_is_stopped() {
    let slot: Arc<Mutex<Option<EventBus>>> = Arc::default();
    let inside = slot.clone();
    let (testing, bus) = bus_with(|b| {
        b.handle_fn("echo", move |event: Tick| {
            let bus = inside.lock().unwrap().clone().unwrap();
            async move {
                bus.publish(&event).await?;
                Ok(())
            }
        })
    });
    *slot.lock().unwrap() = Some(bus.clone());
    let mut test = testing.detached_session();
    test.set_mode(Mode::Inline);
    let error = test.bus().publish(&Tick).await.unwrap_err();
    assert!(error.message().contains("do handlers publish in a circle?"), "{error}");
    assert_eq!(test.published::<Tick>().len(), 33);
    slot.lock().unwrap().take();
}

struct Invoicing;

#[async_trait]
impl Handler for Invoicing {
    const NAME: &'static str = "invoicing";
    type Event = CallBilled;
    type Output = String;

    fn interested(&self, event: &CallBilled) -> bool {
        event.minutes > 0
    }

    fn options(&self) -> HandlerOptions {
        HandlerOptions::new().timeout(Duration::from_secs(3)).max_attempts(7)
    }

    async fn handle(&self, event: CallBilled, cx: &Context) -> Result<String, Failure> {
        cx.complete_in(&mut ()).await?;
        match event.minutes {
            1 => Err("x".parse::<u8>().unwrap_err().into()),
            2 => Err(Failure::retry_after(Duration::from_secs(2), "later")),
            3 => Err(Failure::discard("never")),
            4 => Err(Failure::snooze(Duration::from_secs(4))),
            5 => panic!("shelf 7 is missing"),
            6 => std::future::pending().await,
            _ => Ok(format!(
                "{} {}/{} {:?} {:?}",
                event.call_id,
                cx.attempt(),
                cx.max_attempts(),
                cx.partition_key(),
                cx.header("tenant")
            )),
        }
    }
}

#[tokio::test]
async fn run_event_needs_no_bus_and_returns_what_the_handler_returned() {
    let ran = run_event(&billed("a", 9), &Invoicing).await.unwrap();
    assert_eq!(ran, Ran::Processed("a 1/7 Some(\"a\") None".to_owned()));
    let ran = run_event(&billed("a", 9), &Invoicing).attempt(7).header("tenant", "acme").await.unwrap();
    assert_eq!(ran.processed().unwrap(), "a 7/7 Some(\"a\") Some(\"acme\")");
}

#[tokio::test]
async fn run_event_serves_registered_handlers_as_well() {
    let (_testing, _bus) = bus_with(|b| b.handler(Invoicing));
    assert!(matches!(run_event!(&billed("a", 9), &Invoicing), Ran::Processed(_)));
}

#[tokio::test]
async fn an_event_that_does_not_concern_the_handler_is_not_interesting() {
    assert_eq!(run_event(&billed("a", 0), &Invoicing).await.unwrap(), Ran::NotInterested);
    assert_eq!(run_event!(&Tick, &Invoicing), Ran::NotInterested);
}

#[tokio::test(start_paused = true)]
async fn a_failure_comes_with_its_kind() {
    let expected = [
        (1, RunFailureKind::Retry, "invoicing failed on calls.billed (Retry): invalid digit found in string"),
        (
            2,
            RunFailureKind::RetryAfter(Duration::from_secs(2)),
            "invoicing failed on calls.billed (RetryAfter(2s)): later",
        ),
        (3, RunFailureKind::Discard, "invoicing failed on calls.billed (Discard): discarded: never"),
        (
            4,
            RunFailureKind::Snooze(Duration::from_secs(4)),
            "invoicing failed on calls.billed (Snooze(4s)): asked to wait for 4s",
        ),
        (
            5,
            RunFailureKind::Panicked,
            "invoicing failed on calls.billed (Panicked): panicked: shelf 7 is missing",
        ),
        (
            6,
            RunFailureKind::TimedOut(Duration::from_secs(3)),
            "invoicing failed on calls.billed (TimedOut(3s)): timed out after 3s",
        ),
    ];
    for (minutes, kind, text) in expected {
        let failure = run_event(&billed("a", minutes), &Invoicing).await.unwrap_err();
        assert_eq!((failure.kind(), &*failure.to_string()), (kind, text));
        assert_eq!(failure.cause().is_some(), minutes <= 3);
    }
    let failure = run_event(&billed("a", 1), &Invoicing).await.unwrap_err();
    assert!(failure.cause().unwrap().is::<std::num::ParseIntError>());
}

#[tokio::test]
async fn run_event_panics_at_the_callers_line_if_the_handler_fails() {
    static LINE: Mutex<Option<u32>> = Mutex::new(None);
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if info.payload_as_str().is_some_and(|text| text.starts_with("invoicing failed on")) {
            *LINE.lock().unwrap() = info.location().map(std::panic::Location::line);
        }
        before(info);
    }));
    let line = line!() + 1;
    let task = tokio::spawn(async { run_event!(&billed("a", 3), &Invoicing) });
    let text = text_of(&*task.await.unwrap_err().into_panic());
    assert_eq!(text, "invoicing failed on calls.billed (Discard): discarded: never");
    assert_eq!(*LINE.lock().unwrap(), Some(line));
}
