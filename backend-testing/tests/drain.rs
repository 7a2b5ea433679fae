//! Drain: what a worker would do, on a virtual clock; and faults.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail loudly")]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use event_bus_core::{
    Backoff, Builder, Context, DeadReason, ErrorKind, EventBus, Exhausted, Failure, Handler, HandlerOptions,
    Order, async_trait,
};
use event_bus_testing::*;

/// What handlers noted, and how each call of a handler shall end.
#[derive(Clone, Default)]
struct Script {
    notes: Arc<Mutex<Vec<String>>>,
    /// Call ids that fail, and how often.
    failing: Arc<Mutex<Vec<(String, u32)>>>,
}

impl Script {
    fn note(&self, note: String) {
        self.notes.lock().unwrap().push(note);
    }

    fn notes(&self) -> Vec<String> {
        std::mem::take(&mut *self.notes.lock().unwrap())
    }

    fn fail(&self, call_id: &str, times: u32) {
        self.failing.lock().unwrap().push((call_id.to_owned(), times));
    }

    fn result(&self, call_id: &str) -> Result<(), Failure> {
        let mut failing = self.failing.lock().unwrap();
        match failing.iter_mut().find(|(id, times)| id == call_id && *times > 0) {
            Some((_, times)) => {
                *times -= 1;
                Err(Failure::retry("the printer is out of paper"))
            }
            None => Ok(()),
        }
    }
}

struct Printer {
    script: Script,
    options: HandlerOptions,
}

#[async_trait]
impl Handler for Printer {
    const NAME: &'static str = "printer";
    type Event = CallBilled;
    type Output = ();

    fn options(&self) -> HandlerOptions {
        self.options.clone()
    }

    async fn handle(&self, event: CallBilled, cx: &Context) -> Result<(), Failure> {
        self.script.note(format!("{}/{} attempt {}", event.call_id, event.minutes, cx.attempt()));
        cx.complete_in(&mut ()).await?;
        self.script.result(&event.call_id)
    }
}

fn fixed() -> HandlerOptions {
    HandlerOptions::new().max_attempts(3).backoff(Backoff::fixed(Duration::from_secs(60)))
}

fn printing(options: HandlerOptions) -> (Script, TestingBackend, EventBus) {
    let script = Script::default();
    let printer = Printer { script: script.clone(), options };
    let (testing, bus) = bus_with(|builder: Builder| builder.handler(printer));
    (script, testing, bus)
}

fn ends(report: &DrainReport) -> Vec<RunResult> {
    report.runs.iter().map(|run| run.end).collect()
}

#[tokio::test]
async fn it_runs_recorded_deliveries_with_retries_on_a_virtual_clock() {
    let (script, testing, bus) = printing(fixed());
    let mut test = testing.session();
    script.fail("a", 2);
    bus.publish(&billed("a", 1)).await.unwrap();
    let report = test.drain().await;
    assert_eq!(script.notes(), ["a/1 attempt 1", "a/1 attempt 2", "a/1 attempt 3"]);
    assert_eq!((report.completed, report.retried, report.held), (1, 2, 0));
    assert_eq!(report.elapsed, Duration::from_secs(120));
    let at: Vec<_> = report.runs.iter().map(|run| run.at.as_secs()).collect();
    assert_eq!(at, [0, 60, 120]);
    assert!(report.dead_letters.is_empty());
    assert!(test.drain().await.runs.is_empty(), "nothing is left");
}

#[tokio::test]
async fn it_runs_in_strict_mode_as_well_and_the_events_must_still_be_asserted() {
    let (_, testing, bus) = printing(fixed());
    let mut test = testing.session();
    test.set_mode(Mode::Strict);
    bus.publish(&billed("a", 1)).await.unwrap();
    assert_eq!(test.drain().await.completed, 1);
    assert_event_published!(test, CallBilled { .. });
}

#[tokio::test]
async fn exhausted_deliveries_are_dead_letters_with_their_errors() {
    let (script, testing, bus) = printing(fixed());
    let mut test = testing.session();
    script.fail("a", 9);
    bus.publish(&billed("a", 1)).await.unwrap();
    let report = test.drain().await;
    assert_eq!((report.completed, report.retried, report.dead(DeadReason::Exhausted)), (0, 2, 1));
    let dead = &report.dead_letters[0];
    assert_eq!((&*dead.handler, dead.failures), ("printer", 3));
    assert_eq!(dead.readable_payload(), r#"{"call_id": "a", "minutes": 1}"#);
    let errors = dead.errors.entries();
    assert_eq!(errors.len(), 3);
    assert!(errors[2].message.contains("out of paper"), "{errors:?}");
    assert_eq!(
        errors[2].failed_at.since(errors[0].failed_at).as_secs() / 60,
        2,
        "dated on the virtual clock"
    );
}

#[tokio::test]
async fn a_key_waits_for_its_head_and_other_keys_do_not() {
    let (script, testing, bus) = printing(fixed());
    let mut test = testing.session();
    script.fail("a", 1);
    bus.publish_all(&[billed("a", 1), billed("a", 2), billed("b", 3)]).await.unwrap();
    test.drain().await;
    assert_eq!(script.notes(), ["a/1 attempt 1", "b/3 attempt 1", "a/1 attempt 2", "a/2 attempt 1"]);
}

#[tokio::test]
async fn a_released_key_goes_on_while_its_head_waits() {
    let (script, testing, bus) = printing(fixed().on_failure(Order::Release));
    let mut test = testing.session();
    script.fail("a", 1);
    bus.publish_all(&[billed("a", 1), billed("a", 2)]).await.unwrap();
    test.drain().await;
    assert_eq!(script.notes(), ["a/1 attempt 1", "a/2 attempt 1", "a/1 attempt 2"]);
}

#[tokio::test]
async fn a_dead_head_can_hold_its_key() {
    let (script, testing, bus) = printing(fixed().on_exhausted(Exhausted::HoldKey));
    let mut test = testing.session();
    script.fail("a", 3);
    bus.publish_all(&[billed("a", 1), billed("a", 2), billed("b", 3)]).await.unwrap();
    let report = test.drain().await;
    assert_eq!((report.completed, report.held), (1, 1));
    assert!(report.dead_letters[0].holds_key);
}

#[tokio::test]
async fn a_delayed_event_enters_its_line_when_it_is_due() {
    let (script, testing, bus) = printing(fixed());
    let mut test = testing.session();
    bus.publish(&billed("a", 1)).delay(Duration::from_secs(5)).await.unwrap();
    bus.publish(&billed("a", 2)).await.unwrap();
    let report = test.drain().await;
    assert_eq!(script.notes(), ["a/2 attempt 1", "a/1 attempt 1"]);
    assert_eq!(report.elapsed, Duration::from_secs(5));
}

#[tokio::test]
async fn the_more_urgent_handler_comes_first() {
    let (script, testing, bus) = {
        let script = Script::default();
        let (slow, fast) = (script.clone(), script.clone());
        let (testing, bus) = bus_with(|builder| {
            builder
                .handle_fn_with("slow", HandlerOptions::new().priority(9), move |_: Tick| {
                    slow.note("slow".into());
                    async { Ok(()) }
                })
                .handle_fn("fast", move |_: Tick| {
                    fast.note("fast".into());
                    async { Ok(()) }
                })
        });
        (script, testing, bus)
    };
    let mut test = testing.session();
    bus.publish_all(&[Tick, Tick]).await.unwrap();
    assert_eq!(test.drain().await.completed, 4);
    assert_eq!(script.notes(), ["fast", "fast", "slow", "slow"]);
}

#[tokio::test]
async fn drain_one_runs_the_next_one() {
    let (script, testing, bus) = printing(fixed());
    let mut test = testing.session();
    script.fail("a", 1);
    bus.publish(&billed("a", 1)).await.unwrap();
    let run = test.drain_one().await.unwrap();
    assert_eq!(run.end, RunResult::Retried(Duration::from_secs(60)));
    assert_eq!(
        (&*run.handler, &*run.event, run.attempt, run.at),
        ("printer", "calls.billed", 1, Duration::ZERO)
    );
    let run = test.drain_one().await.unwrap();
    assert_eq!((run.end, run.attempt, run.at.as_secs()), (RunResult::Completed, 2, 60));
    assert_eq!(test.drain_one().await, None);
}

#[tokio::test]
async fn every_way_out_of_a_handler_is_counted() {
    let calls = Arc::new(Mutex::new(0));
    let (testing, bus) = bus_with(|builder| {
        builder
            .handle_fn("discarding", |_: Tick| async { Err(Failure::discard("no")) })
            .handle_fn_with("panicking", fixed().max_attempts(1), |_: Tick| async {
                panic!("shelf 7 is missing")
            })
            .handle_fn("snoozing", move |_: Tick| {
                *calls.lock().unwrap() += 1;
                let is_first = *calls.lock().unwrap() == 1;
                async move { if is_first { Err(Failure::snooze(Duration::from_secs(9))) } else { Ok(()) } }
            })
    });
    let mut test = testing.session();
    bus.publish(&Tick).await.unwrap();
    let report = test.drain().await;
    assert_eq!((report.completed, report.snoozed, report.retried), (1, 1, 0));
    assert_eq!((report.dead(DeadReason::Discarded), report.dead(DeadReason::Exhausted)), (1, 1));
    assert_eq!(report.dead_letters[1].errors.entries()[0].message, "panicked: shelf 7 is missing");
    assert_eq!(report.runs.last().unwrap().attempt, 1, "a snooze uses up no attempt");
}

#[tokio::test]
async fn what_handlers_publish_belongs_to_the_test_and_is_drained_too() {
    let (testing, bus) = bus();
    drop((testing, bus));
    let slot: Arc<Mutex<Option<EventBus>>> = Arc::default();
    let inside = slot.clone();
    let (testing, bus) = bus_with(|builder| {
        builder
            .handle_fn("billing", move |event: CallCompleted| {
                let bus = inside.lock().unwrap().clone().unwrap();
                async move {
                    bus.publish(&billed(&event.call_id, 1)).await?;
                    Ok(())
                }
            })
            .handle_fn("mail", |_: CallBilled| async { Ok(()) })
    });
    *slot.lock().unwrap() = Some(bus.clone());
    let mut test = testing.detached_session();
    test.set_mode(Mode::Strict);
    test.bus().publish(&completed("a")).await.unwrap();
    assert_eq!(test.drain().await.completed, 2);
    assert_event_published!(test, CallCompleted { .. });
    assert_event_published!(test, CallBilled { call_id, .. } if call_id == "a");
}

#[tokio::test]
async fn a_circle_is_stopped_with_a_text() {
    let (testing, bus) =
        bus_with(|b| b.handle_fn("lazy", |_: Tick| async { Err(Failure::snooze(Duration::from_secs(1))) }));
    let task = tokio::spawn(async move {
        let mut test = testing.session();
        bus.publish(&Tick).await.unwrap();
        test.drain().await;
    });
    let text = text_of(&*task.await.unwrap_err().into_panic());
    assert!(
        text.contains("drain ran 10000 deliveries and more are left, the next like lazy on tick"),
        "{text}"
    );
}

#[tokio::test]
async fn a_dropped_drain_puts_the_running_delivery_back() {
    let (testing, bus) = bus_with(|b| {
        let calls = Arc::new(Mutex::new(0));
        b.handle_fn("stuck", move |_: Tick| {
            *calls.lock().unwrap() += 1;
            let is_first = *calls.lock().unwrap() == 1;
            async move {
                if is_first {
                    std::future::pending::<()>().await;
                }
                Ok(())
            }
        })
    });
    let mut test = testing.session();
    bus.publish(&Tick).await.unwrap();
    tokio::select! {
        biased;
        _ = test.drain() => unreachable!(),
        () = async {} => {}
    }
    assert_eq!(test.drain().await.completed, 1);
}

#[tokio::test]
async fn a_delivery_can_be_delivered_twice() {
    let (script, testing, bus) = printing(fixed());
    let mut test = testing.session();
    test.inject(Fault::deliver_twice().handler("printer"));
    bus.publish_all(&[billed("a", 1), billed("a", 2)]).await.unwrap();
    assert_eq!(test.faults_left(), 1);
    let report = test.drain().await;
    assert_eq!(script.notes(), ["a/1 attempt 1", "a/1 attempt 1", "a/2 attempt 1"]);
    assert_eq!((report.repeated, report.completed), (1, 2));
    assert_eq!(test.faults_left(), 0);
}

#[tokio::test]
async fn a_crash_before_the_acknowledgement_brings_the_delivery_back() {
    let (script, testing, bus) = printing(fixed());
    let mut test = testing.session();
    test.inject(Fault::crash_before_ack().event("calls.billed").times(2));
    bus.publish_all(&[billed("a", 1), billed("a", 2)]).await.unwrap();
    let report = test.drain().await;
    // The first crash costs nothing, the second is counted.
    assert_eq!(script.notes(), ["a/1 attempt 1", "a/1 attempt 1", "a/1 attempt 2", "a/2 attempt 1"]);
    assert_eq!((report.crashed, report.completed), (2, 2));
}

#[tokio::test]
async fn what_crashes_for_ever_ends_in_the_dead_letters() {
    let (script, testing, bus) = printing(fixed());
    let mut test = testing.session();
    test.inject(Fault::crash_before_ack().times(99));
    bus.publish(&billed("a", 1)).await.unwrap();
    let report = test.drain().await;
    assert_eq!(script.notes().len(), 4, "at most max_attempts + 1 runs");
    assert_eq!((report.crashed, report.dead(DeadReason::Exhausted)), (4, 1));
}

#[tokio::test]
async fn a_delivery_can_be_late_and_its_key_waits() {
    let (script, testing, bus) = printing(fixed());
    let mut test = testing.session();
    test.inject(Fault::delay(Duration::from_secs(7)));
    bus.publish_all(&[billed("a", 1), billed("a", 2), billed("b", 3)]).await.unwrap();
    let report = test.drain().await;
    assert_eq!(script.notes(), ["b/3 attempt 1", "a/1 attempt 1", "a/2 attempt 1"]);
    assert_eq!(report.elapsed, Duration::from_secs(7));
    assert_eq!(ends(&report), [RunResult::Completed; 3]);
}

#[tokio::test]
async fn a_publish_can_fail_and_leaves_nothing() {
    let (_, testing, bus) = printing(fixed());
    let mut test = testing.session();
    test.set_mode(Mode::Strict);
    test.inject(Fault::fail_publish(ErrorKind::Unavailable).event("calls.billed"));
    bus.publish(&Tick).await.unwrap();
    let error = bus.publish(&billed("a", 1)).idempotency_key("k").await.unwrap_err();
    assert_eq!(error.to_string(), "publish (testing): unavailable: this test injected the fault");
    assert!(error.is_transient());
    refute_event_published!(test, CallBilled { .. });
    assert!(!bus.publish(&billed("a", 1)).idempotency_key("k").await.unwrap().is_duplicate());
    assert_event_published!(test, CallBilled { .. });
    assert_event_published!(test, Tick);
}

#[tokio::test]
async fn the_answer_of_a_publish_can_be_lost() {
    let (_, testing, bus) = printing(fixed());
    let test = testing.session();
    test.inject(Fault::fail_publish(ErrorKind::OutcomeUnknown));
    let event = billed("a", 1);
    let error = bus.publish(&event).idempotency_key("k").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
    assert!(bus.publish(&event).idempotency_key("k").await.unwrap().is_duplicate());
    assert_eq!(test.published::<CallBilled>().len(), 1);
}
