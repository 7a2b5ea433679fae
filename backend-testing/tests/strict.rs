//! Modes and assertions: every sentence about them, with its failure text.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail loudly")]

mod common;

use std::future::IntoFuture;
use std::panic::Location;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use common::*;
use event_bus_core::{ErrorKind, EventBus, Publish};
use event_bus_testing::*;

#[tokio::test]
async fn an_asserted_event_leaves_nothing_to_report() {
    let (testing, bus) = bus();
    let mut test = testing.session();
    test.set_mode(Mode::Strict);
    bus.publish(&completed("a")).await.unwrap();
    let call = completed("a");
    assert_event_published!(test, CallCompleted { call_id, .. } if *call_id == call.call_id);
    assert_no_events!(test);
}

#[tokio::test]
async fn an_assertion_gives_the_value_or_the_event() {
    let (testing, bus) = bus();
    let mut test = testing.session();
    test.set_mode(Mode::Strict);
    bus.publish_all(&[billed("a", 3), billed("b", 4), billed("c", 5)]).await.unwrap();
    let minutes = assert_event_published!(test, CallBilled { minutes, .. } => *minutes);
    assert_eq!(minutes, 3);
    let id =
        assert_event_published!(test, CallBilled { minutes, call_id } if *minutes > 4 => call_id.clone());
    assert_eq!(id, "c");
    let event = assert_event_published!(test, CallBilled { .. });
    assert_eq!(event, billed("b", 4));
}

#[tokio::test]
async fn an_assertion_takes_the_first_match_so_two_equal_events_need_two() {
    let (testing, bus) = bus();
    let mut test = testing.session();
    test.set_mode(Mode::Strict);
    bus.publish(&Tick).and(&Tick).await.unwrap();
    assert_event_published!(test, Tick);
    let text = panic_of(|| assert_no_events!(test));
    assert!(text.contains("events were published where none were expected"), "{text}");
    assert!(text.contains("1. Tick at ") && !text.contains("2. "), "{text}");
    assert_event_published!(test, Tick);
    let text = panic_of(|| assert_event_published!(test, Tick));
    assert!(text.contains("no event published in strict mode matches `Tick`"), "{text}");
    assert!(text.contains("asserted before:\n  1. Tick at "), "{text}");
}

#[tokio::test]
async fn events_of_default_mode_are_recorded_and_never_match() {
    let (testing, bus) = bus();
    let mut test = testing.session();
    assert_eq!(test.mode(), Mode::Default);
    bus.publish(&completed("seed")).await.unwrap();
    test.set_mode(Mode::Strict);
    refute_event_published!(test, CallCompleted { .. });
    assert_no_events!(test);
    let text = panic_of(|| assert_event_published!(test, CallCompleted { .. }));
    let line =
        "published in default mode, which never matches:\n  1. CallCompleted { call_id: \"seed\" } at ";
    assert!(text.contains(line), "{text}");
    assert_eq!(test.published::<CallCompleted>(), [completed("seed")]);
}

#[tokio::test]
async fn a_miss_shows_the_pattern_and_what_was_published() {
    let (testing, bus) = bus();
    let mut test = testing.session();
    test.set_mode(Mode::Strict);
    bus.publish(&billed("a", 3)).await.unwrap();
    let published = here!(above 1);
    let text = panic_of(|| assert_event_published!(test, CallBilled { minutes, .. } if *minutes == 4));
    assert!(text.contains("matches `CallBilled { minutes, .. } if *minutes == 4`"), "{text}");
    let line = format!("not yet asserted:\n  1. CallBilled {{ call_id: \"a\", minutes: 3 }} at {published}");
    assert!(text.contains(&line), "{text}");
    assert_event_published!(test, CallBilled { .. });
}

#[tokio::test]
async fn a_miss_in_a_silent_test_says_so() {
    let (testing, _bus) = bus();
    let test = testing.session();
    let text = panic_of(|| assert_event_published!(test, Tick));
    assert!(text.contains("this test has published nothing"), "{text}");
}

#[tokio::test]
async fn a_refutation_shows_the_event_and_the_line() {
    let (testing, bus) = bus();
    let mut test = testing.session();
    test.set_mode(Mode::Strict);
    bus.publish(&billed("a", 3)).await.unwrap();
    let published = here!(above 1);
    refute_event_published!(test, CallBilled { minutes, .. } if *minutes > 3);
    refute_event_published!(test, CallCompleted { .. });
    let text = panic_of(|| refute_event_published!(test, CallBilled { minutes, .. } if *minutes <= 3,));
    assert!(
        text.contains("an event that matches `CallBilled { minutes, .. } if *minutes <= 3` was published"),
        "{text}"
    );
    assert!(text.contains(&format!("CallBilled {{ call_id: \"a\", minutes: 3 }} at {published}")), "{text}");
    assert_event_published!(test, CallBilled { .. });
    refute_event_published!(test, CallBilled { .. });
}

/// The place of the last panic, which the panic hook is told of. Tests of this file that need it take turns.
fn place_of_panic(work: impl FnOnce()) -> String {
    static TURN: Mutex<()> = Mutex::new(());
    static HOOK: OnceLock<()> = OnceLock::new();
    thread_local!(static PLACE: Mutex<String> = const { Mutex::new(String::new()) });
    let _turn = TURN.lock();
    HOOK.get_or_init(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let place = info.location().map(|at| format!("{}:{}", at.file(), at.line())).unwrap_or_default();
            PLACE.with(|last| *last.lock().unwrap() = place);
            before(info);
        }));
    });
    panic_of(work);
    PLACE.with(|last| last.lock().unwrap().clone())
}

#[tokio::test]
async fn assertions_fail_at_the_callers_line() {
    let (testing, bus) = bus();
    let mut test = testing.session();
    test.set_mode(Mode::Strict);
    bus.publish(&Tick).await.unwrap();
    assert_eq!(place_of_panic(|| drop(assert_event_published!(test, CallBilled { .. }))), here!(0));
    assert_eq!(place_of_panic(|| refute_event_published!(test, Tick)), here!(0));
    assert_eq!(place_of_panic(|| assert_no_events!(test)), here!(0));
    assert_eq!(place_of_panic(|| test.set_mode(Mode::Default)), here!(0));
}

#[tokio::test]
async fn the_end_of_a_strict_test_lists_every_unasserted_event_in_publish_order() {
    let (testing, bus) = bus();
    let mut test = testing.session();
    let created = here!(above 1);
    bus.publish(&completed("noise")).await.unwrap();
    test.set_mode(Mode::Strict);
    bus.publish(&billed("z", 1)).await.unwrap();
    let first = here!(above 1);
    bus.publish(&completed("taken")).await.unwrap();
    bus.publish(&completed("a")).await.unwrap();
    let second = here!(above 1);
    assert_event_published!(test, CallCompleted { call_id } if call_id == "taken");
    assert_eq!(
        end_of(test),
        format!(
            "unasserted events published in strict mode\n\nnot asserted:\n  \
             1. CallBilled {{ call_id: \"z\", minutes: 1 }} at {first}\n  \
             2. CallCompleted {{ call_id: \"a\" }} at {second}\n\n\
             the session was created at {created}"
        )
    );
}

#[tokio::test]
#[should_panic(expected = "unasserted events published in strict mode")]
async fn dropping_a_strict_session_with_events_left_panics() {
    let (testing, bus) = bus();
    let mut test = testing.session();
    test.set_mode(Mode::Strict);
    bus.publish(&Tick).await.unwrap();
}

#[tokio::test]
#[should_panic(expected = "the first panic")]
async fn a_thread_that_panics_already_is_left_alone() {
    let (testing, bus) = bus();
    let mut test = testing.session();
    test.set_mode(Mode::Strict);
    bus.publish(&Tick).await.unwrap();
    panic!("the first panic");
}

#[tokio::test]
async fn an_event_without_debug_is_shown_by_its_payload() {
    let (testing, bus) = bus();
    let mut test = testing.session();
    test.set_mode(Mode::Strict);
    bus.publish(&Quiet { word: "sh".into() }).await.unwrap();
    let text = end_of(test);
    assert!(text.contains("1. quiet {\"word\": \"sh\"} at "), "{text}");
}

#[track_caller]
fn publish_call<'a>(bus: &'a EventBus, event: &'a CallCompleted) -> Publish<'a> {
    assert!(Location::caller().file().ends_with("strict.rs"));
    bus.publish(event)
}

#[track_caller]
fn publish_deep<'a>(
    bus: &'a EventBus,
    event: &'a CallCompleted,
) -> impl IntoFuture<Output = event_bus_core::Result<event_bus_core::Receipt>> + 'a {
    publish_call(bus, event).header("tenant", "acme")
}

#[tokio::test]
async fn the_line_is_the_callers_through_builders_and_helpers() {
    let (testing, bus) = bus();
    let mut test = testing.session();
    test.set_mode(Mode::Strict);
    let (one, two) = (completed("1"), billed("2", 2));
    let line = here!(1);
    bus.publish(&one).and(&two).await.unwrap();
    assert_eq!(list_of(&mut test), [line.clone(), line]);

    let line = here!(1);
    bus.publish(&one).delay(Duration::from_secs(3)).await.unwrap();
    assert_eq!(list_of(&mut test), [line]);

    let line = here!(1);
    bus.publish_all(&[one.clone(), one.clone()]).idempotency_key("k").await.unwrap();
    assert_eq!(list_of(&mut test), [line.clone(), line]);

    let line = here!(1);
    publish_call(&bus, &one).await.unwrap();
    assert_eq!(list_of(&mut test), [line]);

    let line = here!(1);
    let later = publish_deep(&bus, &one);
    later.into_future().await.unwrap();
    assert_eq!(list_of(&mut test), [line]);
}

/// The places that a failed check lists.
fn list_of(test: &mut TestSession) -> Vec<String> {
    let text = panic_of(|| test.set_mode(Mode::Default));
    assert_eq!(test.mode(), Mode::Strict);
    text.lines()
        .filter_map(|line| line.starts_with("  ").then(|| line.rsplit_once(" at ")).flatten())
        .map(|(_, at)| at.to_owned())
        .collect()
}

#[tokio::test]
async fn leaving_strict_checks_first_and_a_failed_check_is_reported_once() {
    let (testing, bus) = bus();
    let mut test = testing.session();
    test.set_mode(Mode::Strict);
    bus.publish(&completed("a")).await.unwrap();
    for mode in [Mode::Default, Mode::Inline] {
        bus.publish(&completed("b")).await.unwrap();
        let text = panic_of(|| test.set_mode(mode));
        assert!(text.starts_with("unasserted events published in strict mode"), "{text}");
        assert_eq!(text.contains("CallCompleted { call_id: \"a\" }"), mode == Mode::Default, "{text}");
        assert_eq!(test.mode(), Mode::Strict, "the mode stays");
    }
    // Reported events are no longer there for assertions, and no later check lists them.
    refute_event_published!(test, CallCompleted { .. });
    let text = panic_of(|| assert_event_published!(test, CallCompleted { .. }));
    assert!(text.contains("listed by a failed check before:\n  1. CallCompleted"), "{text}");
    assert_no_events!(test);
    test.set_mode(Mode::Default);
    assert_eq!(test.mode(), Mode::Default);
}

#[tokio::test]
async fn strict_to_strict_checks_nothing() {
    let (testing, bus) = bus();
    let mut test = testing.session();
    test.set_mode(Mode::Strict);
    bus.publish(&Tick).await.unwrap();
    test.set_mode(Mode::Strict);
    assert_event_published!(test, Tick);
}

#[tokio::test]
async fn all_events_of_a_type_come_as_a_vec_whatever_their_mode() {
    let (testing, bus) = bus();
    let mut test = testing.session();
    bus.publish(&billed("a", 1)).await.unwrap();
    test.set_mode(Mode::Strict);
    bus.publish(&billed("b", 2)).and(&Tick).await.unwrap();
    assert_event_published!(test, CallBilled { .. });
    assert_event_published!(test, Tick);
    test.set_mode(Mode::Inline);
    bus.publish(&billed("c", 3)).await.unwrap();
    assert_eq!(test.published::<CallBilled>(), [billed("a", 1), billed("b", 2), billed("c", 3)]);
    assert_eq!(test.published::<CallCompleted>(), []);
}

#[tokio::test]
async fn a_guard_may_ask_the_session() {
    let (testing, bus) = bus();
    let mut test = testing.session();
    test.set_mode(Mode::Strict);
    bus.publish(&Tick).await.unwrap();
    assert_event_published!(test, Tick if test.mode() == Mode::Strict);
}

#[tokio::test]
async fn an_idempotency_key_is_remembered_by_the_test() {
    let (testing, bus) = bus();
    let test = testing.session();
    assert!(!bus.publish(&Tick).idempotency_key("k").await.unwrap().is_duplicate());
    assert!(bus.publish(&Tick).idempotency_key("k").await.unwrap().is_duplicate());
    assert_eq!(test.published::<Tick>().len(), 1);
    drop(test);
    let _next = testing.session();
    assert!(!bus.publish(&Tick).idempotency_key("k").await.unwrap().is_duplicate());
}

#[tokio::test]
async fn publishing_within_a_transaction_is_recorded() {
    let (testing, bus) = bus();
    let test = testing.session();
    let mut transaction = "any type will do";
    bus.publish(&Tick).within(&mut transaction).await.unwrap();
    bus.publish_all::<Tick>(&[]).await.unwrap();
    assert_eq!(test.published::<Tick>(), [Tick]);
}

#[tokio::test]
async fn a_second_bus_over_the_same_backend_is_refused_when_it_is_built() {
    let (testing, _bus) = bus();
    let error = EventBus::builder().backend(testing).build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfiguration);
    assert!(error.message().contains("give each bus its own"), "{error}");
}

#[tokio::test]
async fn a_worker_may_be_started_and_has_nothing_to_do() {
    let (testing, bus) =
        bus_with(|b| b.handle_fn("never", |_: Tick| async { Err("ran".parse::<u8>().unwrap_err().into()) }));
    let _test = testing.session();
    bus.migrate().await.unwrap();
    let worker = bus.start().await.unwrap();
    bus.publish(&Tick).await.unwrap();
    let drained = worker.shutdown(Duration::ZERO).await.unwrap();
    assert_eq!((drained.finished, drained.cancelled), (0, 0));
}
