//! Whose event is it? One bus for the process, many tests at once.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod common;

use std::sync::{Arc, Barrier, LazyLock};
use std::thread;

use common::*;
use event_bus_core::EventBus;
use event_bus_testing::*;
use futures_util::future::join_all;
use tokio::runtime::{Builder as Runtime, Runtime as Running};

/// What a whole test binary shares.
static SHARED: LazyLock<(TestingBackend, EventBus)> = LazyLock::new(bus);

fn multi_thread() -> Running {
    Runtime::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Publishes as code under test does that knows nothing of tests.
async fn publish(call_id: &str) {
    SHARED.1.publish(&completed(call_id)).await.unwrap();
}

fn ids(test: &TestHandle) -> Vec<String> {
    test.published::<CallCompleted>().into_iter().map(|event| event.call_id).collect()
}

/// One test of the two hundred: publishes from everywhere, and sees its own events only.
async fn one_test(name: &str, mut test: TestSession) {
    test.set_mode(Mode::Strict);
    let (own, task, thread, bound) =
        (format!("{name} own"), format!("{name} task"), format!("{name} thread"), format!("{name} bound"));
    publish(&own).await;
    tokio::task::yield_now().await;
    let of_task = task.clone();
    tokio::spawn(async move { publish(&of_task).await }.in_test(&test)).await.unwrap();
    let of_thread = thread.clone();
    let work = test.on_thread(move || futures_executor(publish(&of_thread)));
    tokio::task::spawn_blocking(work).await.unwrap();
    let (bus, of_bus) = (test.bus(), bound.clone());
    tokio::spawn(async move { bus.publish(&completed(&of_bus)).await.unwrap() }).await.unwrap();
    for expected in [&own, &task, &thread, &bound] {
        assert_event_published!(test, CallCompleted { call_id } if call_id == expected);
    }
    assert_no_events!(test);
    assert_eq!(ids(&test), [own, task, thread, bound]);
}

/// Runs a future where there is no runtime.
fn futures_executor<T>(future: impl Future<Output = T>) -> T {
    Runtime::new_current_thread().build().unwrap().block_on(future)
}

#[test]
fn two_hundred_parallel_tests_over_one_bus_never_see_one_anothers_events() {
    for round in 0..20 {
        // A hundred as tasks of one runtime, fifty as main futures of a runtime each, fifty as plain threads.
        let runtime = multi_thread();
        let tasks: Vec<_> = (0..100)
            .map(|number| {
                runtime.spawn(
                    async move { one_test(&format!("{round}/task {number}"), SHARED.0.session()).await },
                )
            })
            .collect();
        thread::scope(|scope| {
            for number in 0..100 {
                scope.spawn(move || {
                    let name = format!("{round}/thread {number}");
                    if number % 2 == 0 {
                        return futures_executor(async { one_test(&name, SHARED.0.session()).await });
                    }
                    let mut test = SHARED.0.session();
                    test.set_mode(Mode::Strict);
                    futures_executor(publish(&name));
                    assert_event_published!(test, CallCompleted { call_id } if *call_id == name);
                    assert_eq!(ids(&test), [name]);
                });
            }
        });
        for task in tasks {
            runtime.block_on(task).unwrap();
        }
    }
}

#[test]
fn all_of_them_can_be_alive_at_once() {
    let barrier = Arc::new(Barrier::new(200));
    thread::scope(|scope| {
        for number in 0..200 {
            let barrier = barrier.clone();
            scope.spawn(move || {
                let mut test = SHARED.0.session();
                test.set_mode(Mode::Strict);
                barrier.wait();
                futures_executor(publish(&number.to_string()));
                barrier.wait();
                assert_eq!(ids(&test), [number.to_string()]);
                assert_event_published!(test, CallCompleted { .. });
            });
        }
    });
}

#[test]
fn a_plain_test_owns_its_thread() {
    let test = SHARED.0.session();
    futures_executor(publish("plain"));
    assert_eq!(ids(&test), ["plain"]);
}

#[tokio::test]
async fn a_current_thread_test_owns_its_own_task() {
    let test = SHARED.0.session();
    publish("own").await;
    tokio::join!(publish("joined"), async { join_all([publish("nested")]).await });
    assert_eq!(ids(&test), ["own", "joined", "nested"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_multi_thread_test_owns_its_own_task() {
    let test = SHARED.0.session();
    publish("own").await;
    tokio::task::yield_now().await;
    tokio::join!(publish("joined"), async { join_all([publish("nested")]).await });
    tokio::task::block_in_place(|| futures_executor(publish("in place")));
    assert_eq!(ids(&test), ["own", "joined", "nested", "in place"]);
}

#[rstest::fixture]
fn test() -> TestSession {
    SHARED.0.session()
}

#[rstest::rstest]
fn rstest_works(test: TestSession, #[values("a", "b")] id: &str) {
    futures_executor(publish(id));
    assert_eq!(ids(&test), [id]);
}

#[rstest::rstest]
#[case("one")]
#[case("two")]
#[tokio::test(flavor = "multi_thread")]
async fn rstest_works_with_tokio(test: TestSession, #[case] id: &str) {
    publish(id).await;
    assert_eq!(ids(&test), [id]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spawned_tasks_are_joined_by_scope_and_in_test_and_nested_ones_by_a_handle() {
    let test = SHARED.0.session();
    tokio::spawn(test.scope(publish("scope"))).await.unwrap();
    tokio::spawn(publish("in_test").in_test(&test)).await.unwrap();
    let handle = test.handle();
    let outer = async move {
        tokio::spawn(publish("nested").in_test(&handle)).await.unwrap();
    };
    tokio::spawn(outer).await.unwrap();
    assert_eq!(ids(&test), ["scope", "in_test", "nested"]);
}

#[tokio::test]
async fn a_bound_bus_carries_its_test_anywhere() {
    let test = SHARED.0.session();
    let bus = test.bus();
    tokio::spawn({
        let bus = bus.clone();
        async move {
            let inner = bus.clone();
            tokio::spawn(async move { inner.publish(&completed("deep")).await }).await.unwrap().unwrap();
        }
    })
    .await
    .unwrap();
    thread::spawn(move || futures_executor(async { bus.publish(&completed("thread")).await.unwrap() }))
        .join()
        .unwrap();
    assert_eq!(ids(&test), ["deep", "thread"]);
}

#[test]
fn threads_are_joined_by_on_thread_and_allow_thread() {
    let test = SHARED.0.session();
    thread::spawn(test.on_thread(|| futures_executor(publish("wrapped")))).join().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            test.allow_thread(thread::current().id());
            futures_executor(async {
                publish("allowed").await;
                tokio::spawn(publish("its task")).await.unwrap();
            });
        });
    });
    assert_eq!(ids(&test), ["wrapped", "allowed", "its task"]);
}

#[test]
fn a_thread_of_another_test_cannot_be_allowed() {
    let (first, other) = (SHARED.0.detached_session(), SHARED.0.detached_session());
    let line = here!(above 1);
    first.allow_thread(thread::current().id());
    first.allow_thread(thread::current().id());
    let text = panic_of(|| other.allow_thread(thread::current().id()));
    assert_eq!(text, format!("this thread is part of the test whose session was created at {line}"));
    drop(first);
    other.allow_thread(thread::current().id());
}

#[tokio::test]
async fn a_task_has_one_session() {
    let first = SHARED.0.session();
    let line = here!(above 1);
    let text = panic_of(|| SHARED.0.session());
    assert!(text.contains(&format!("this task has a session already, created at {line}")), "{text}");
    drop(first);
    drop(SHARED.0.session());
}

#[tokio::test]
async fn detached_sessions_share_a_task_and_see_what_is_joined_to_them() {
    let tests: Vec<_> = (0..10).map(|_| SHARED.0.detached_session()).collect();
    join_all(tests.iter().enumerate().map(|(number, test)| {
        test.scope(async move {
            tokio::task::yield_now().await;
            publish(&number.to_string()).await;
        })
    }))
    .await;
    for (number, test) in tests.iter().enumerate() {
        assert_eq!(ids(test), [number.to_string()]);
    }
}

#[tokio::test]
async fn sessions_of_several_backends_live_side_by_side() {
    let ((other, other_bus), test) = (bus(), SHARED.0.session());
    let other = other.session();
    let both = async move {
        publish("shared").await;
        other_bus.publish(&completed("other")).await.unwrap();
    };
    tokio::spawn(both.in_test(&test).in_test(&other)).await.unwrap();
    assert_eq!((ids(&test), ids(&other)), (vec!["shared".to_owned()], vec!["other".to_owned()]));
}

#[tokio::test]
async fn what_belongs_to_no_test_is_counted_and_named_in_the_failure_text() {
    let (testing, bus) = bus();
    bus.publish(&completed("before the test")).await.unwrap();
    let mut test = testing.session();
    test.set_mode(Mode::Strict);
    let of_task = bus.clone();
    let line = here!(1);
    let stray = async move { of_task.publish(&billed("lost", 1)).await.unwrap() };
    tokio::spawn(stray).await.unwrap();
    assert_no_events!(test);
    let text = panic_of(|| assert_event_published!(test, CallBilled { .. }));
    assert!(
        text.contains("\n\n1 event(s) were published meanwhile by code that belongs to no test"),
        "{text}"
    );
    assert!(text.contains(&format!("1. CallBilled {{ call_id: \"lost\", minutes: 1 }} at {line}")), "{text}");
    assert!(text.contains(".in_test(&test)"), "{text}");
    assert!(!text.contains("before the test"), "{text}");

    bus.publish(&Tick).await.unwrap();
    let text = end_of(test);
    assert!(text.contains("CallBilled { call_id: \"lost\""), "the end names them too: {text}");
}

#[tokio::test]
async fn what_outlives_its_test_belongs_to_none() {
    let (testing, _bus) = bus();
    let first = testing.session();
    let bus = first.bus();
    drop(first);
    let test = testing.session();
    bus.publish(&completed("late")).await.unwrap();
    assert!(ids(&test).is_empty());
    let text = panic_of(|| assert_event_published!(test, Tick));
    assert!(text.contains("CallCompleted { call_id: \"late\" }"), "{text}");
}

#[tokio::test]
async fn the_count_stays_right_when_there_are_more_than_are_remembered() {
    let (testing, bus) = bus();
    let test = testing.detached_session();
    for _ in 0..150 {
        bus.publish(&Tick).await.unwrap();
    }
    let text = panic_of(|| assert_event_published!(test, Tick));
    assert!(text.contains("150 event(s) were published meanwhile"), "{text}");
    assert!(text.contains("  100. Tick") && !text.contains("  101. Tick"), "{text}");
}

#[test]
fn a_bus_bound_before_there_is_one_says_what_is_missing() {
    let test = TestingBackend::new().session();
    let text = panic_of(|| test.bus());
    assert!(text.contains("no bus was built over this testing backend"), "{text}");
}
