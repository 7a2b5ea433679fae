//! What a case has in hand.

use std::sync::Arc;
use std::time::Duration;

use event_bus::backend::DeadLetterFilter;
use event_bus::prelude::*;
use event_bus::{Builder, DeadLetter, ErrorKind, Worker};

use super::actor::{Actor, First, Role};
use super::harness::{Harness, Sandbox};
use super::stage::Stage;

/// Long enough for any run of a case.
const GRACE: Duration = Duration::from_secs(20);

/// A store, and a stage for handlers.
pub struct World {
    pub(super) harness: Arc<dyn Harness>,
    pub(super) sandbox: Arc<dyn Sandbox>,
    /// What the handlers do.
    pub stage: Arc<Stage>,
}

/// Options under which a case takes no time: 3 attempts, 2 ms apart.
pub(super) fn quick() -> HandlerOptions {
    HandlerOptions::new().max_attempts(3).backoff(Backoff::fixed(Duration::from_millis(2)))
}

impl World {
    pub(super) async fn new(harness: Arc<dyn Harness>) -> Self {
        let sandbox = harness.sandbox().await;
        Self { sandbox, harness, stage: Stage::new() }
    }

    /// A bus to be, in a process of its own as far as the store can tell.
    pub(super) fn builder(&self) -> Builder {
        EventBus::builder()
            .shared_backend(self.sandbox.backend())
            // What a worker is not told of it finds soon: cases shall be quick.
            .poll_interval(Duration::from_millis(20))
    }

    pub(super) fn actor<R: Role>(&self, options: HandlerOptions) -> Actor<R> {
        Actor::new(self.stage.clone(), options)
    }

    /// A bus with the first handler alone, ready for use.
    pub(super) async fn bus(&self) -> EventBus {
        self.bus_with(quick()).await
    }

    /// As [`bus`](Self::bus), with these options.
    pub(super) async fn bus_with(&self, options: HandlerOptions) -> EventBus {
        ready(self.builder().handler(self.actor::<First>(options))).await
    }
}

/// Builds and migrates.
pub(super) async fn ready(builder: Builder) -> EventBus {
    let bus = builder.build().expect("a bus that can be built");
    bus.migrate().await.expect("a store that can be prepared");
    bus
}

/// Lets everything end that runs, and stores it.
pub(super) async fn stop(worker: Worker) {
    worker.shutdown(GRACE).await.expect("a clean shutdown");
}

/// Waits until the store holds nothing but dead letters.
pub(crate) async fn rest(bus: &EventBus) {
    until_counted(bus, |ready, waiting, _| ready + waiting == 0).await;
}

/// Waits until the numbers of ready, waiting and dead deliveries are so.
pub(crate) async fn until_counted(bus: &EventBus, is_so: impl Fn(u64, u64, u64) -> bool) {
    loop {
        let (ready, waiting, dead) = counted(bus).await;
        if is_so(ready, waiting, dead) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// How many deliveries are ready, waiting and dead.
pub(crate) async fn counted(bus: &EventBus) -> (u64, u64, u64) {
    let counts = bus.counts().await.expect("counts");
    counts.iter().fold((0, 0, 0), |sum, handler| {
        (sum.0 + handler.ready, sum.1 + handler.waiting, sum.2 + handler.dead)
    })
}

/// All dead letters.
pub(crate) async fn dead(bus: &EventBus) -> Vec<DeadLetter> {
    bus.dead_letters(&DeadLetterFilter::default(), None, 10_000).await.expect("dead letters")
}

/// Waits until that many dead letters are there.
pub(super) async fn until_dead(bus: &EventBus, count: usize) -> Vec<DeadLetter> {
    until_counted(bus, |_, _, dead| dead >= count as u64).await;
    dead(bus).await
}

/// A refusal of that kind, whose text says all that.
pub(super) fn assert_refused<T: std::fmt::Debug>(
    answer: event_bus::Result<T>,
    kind: ErrorKind,
    texts: &[&str],
) {
    let error = answer.expect_err("a refusal");
    let text = event_bus::chain(&error);
    assert_eq!(error.kind(), kind, "{text}");
    for part in texts {
        assert!(text.contains(part), "{text:?} does not name {part:?}");
    }
    assert!(!text.ends_with('.'), "an error has no full stop: {text:?}");
}
