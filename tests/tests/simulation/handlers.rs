//! Handlers that do what their script says, and write down what they see.

use std::sync::Arc;
use std::time::Duration;

use event_bus_conformance::history::{Fact, RunEnd, hash};
use event_bus_core::{Builder, Context, Failure, Handler, HandlerOptions, async_trait};
use tokio::time::Instant;

use crate::events::Happened;
use crate::plan::Step;
use crate::world::World;

pub const NAMES: [&str; 4] = ["sim.first", "sim.second", "sim.third", "sim.fourth"];

/// Handler number `N` of a worker.
struct Scripted<const N: usize> {
    world: Arc<World>,
    worker: u32,
}

/// Registers the handlers of these numbers.
pub fn register(mut builder: Builder, world: &Arc<World>, worker: u32, numbers: &[usize]) -> Builder {
    for number in numbers {
        let world = world.clone();
        builder = match number {
            0 => builder.handler(Scripted::<0> { world, worker }),
            1 => builder.handler(Scripted::<1> { world, worker }),
            2 => builder.handler(Scripted::<2> { world, worker }),
            _ => builder.handler(Scripted::<3> { world, worker }),
        };
    }
    builder
}

#[async_trait]
impl<const N: usize> Handler for Scripted<N> {
    const NAME: &'static str = NAMES[N];
    type Event = Happened;
    type Output = ();

    fn interested(&self, event: &Happened) -> bool {
        self.world.plan.is_interested(N, event.0.number)
    }

    fn options(&self) -> HandlerOptions {
        self.world.plan.handlers[N].options.clone()
    }

    async fn handle(&self, event: Happened, cx: &Context) -> Result<(), Failure> {
        let world = &self.world;
        if world.is_dead(self.worker) {
            std::future::pending::<()>().await;
        }
        let run = Run::start::<N>(world, self.worker, &event, cx);
        let wait = |duration: Duration| async move {
            if !duration.is_zero() {
                tokio::time::sleep(duration).await;
            }
        };
        let delay = run.backoff;
        match world.step(N, event.0.number) {
            Step::Done(after) => {
                wait(after).await;
                run.end(RunEnd::Done);
                Ok(())
            }
            Step::Fail(after) => {
                wait(after).await;
                run.end(RunEnd::Retry { delay });
                Err(Failure::retry("as it is written"))
            }
            Step::RetryAfter(delay) => {
                run.end(RunEnd::Retry { delay: nanos(delay) });
                Err(Failure::retry_after(delay, "as it is written"))
            }
            Step::Panic => {
                // Without the message of the panic hook.
                std::panic::resume_unwind(Box::new("as it is written"))
            }
            Step::Discard => {
                run.end(RunEnd::Discard);
                Err(Failure::discard("as it is written"))
            }
            Step::Snooze(delay) => {
                run.end(RunEnd::Snooze { delay: nanos(delay) });
                Err(Failure::snooze(delay))
            }
            Step::Hang => std::future::pending().await,
            Step::Crash => {
                world.kill(self.worker);
                std::future::pending().await
            }
        }
    }
}

/// A run that is written down, its end as well, however it ends.
struct Run {
    world: Arc<World>,
    worker: u32,
    number: u64,
    begun: Instant,
    timeout: Option<Duration>,
    backoff: u64,
    has_ended: bool,
}

impl Run {
    fn start<const N: usize>(world: &Arc<World>, worker: u32, event: &Happened, cx: &Context) -> Self {
        let number = world.next_run();
        let plan = &world.plan.handlers[N];
        world.count("runs");
        world.record(Fact::RunStart {
            run: number,
            worker,
            handler: NAMES[N].to_owned(),
            event: event.0.number,
            key: cx.partition_key().map(str::to_owned),
            hash: hash(event.0.text.as_bytes()),
            attempt: cx.attempt(),
            fence: cx.fence(),
        });
        Self {
            world: world.clone(),
            worker,
            number,
            begun: Instant::now(),
            timeout: plan.timeout,
            backoff: nanos(plan.backoff.delay(cx.attempt(), 0.0)),
            has_ended: false,
        }
    }

    fn end(mut self, end: RunEnd) {
        self.write(end);
    }

    fn write(&mut self, end: RunEnd) {
        self.has_ended = true;
        if !self.world.is_dead(self.worker) {
            self.world.record(Fact::RunEnd { run: self.number, worker: self.worker, end });
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let delay = self.backoff;
        if std::thread::panicking() {
            self.write(RunEnd::Panic { delay });
        } else if self.timeout.is_some_and(|timeout| self.begun.elapsed() >= timeout) {
            self.world.count("timeouts");
            self.write(RunEnd::Timeout { delay });
        } else {
            self.world.count("cancelled runs");
            self.write(RunEnd::Cancelled);
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap()
}
