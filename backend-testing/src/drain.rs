//! Runs what was recorded, as a worker would, on a virtual clock.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use event_bus_core::backend::{Outcome, Timestamp};
use event_bus_core::clock::{Clock, Environment, Randomness};
use event_bus_core::retry::{outcome, outcome_before_run};
use event_bus_core::run::run;
use event_bus_core::{Context, DeadLetter, DeadReason, EventBus};

use crate::backend::Answering;
use crate::faults::FaultKind;
use crate::handle::fail;
use crate::line::Entry;
use crate::ownership::Scoped;
use crate::session::TestSession;
use crate::state::State;

/// How many runs one [`drain`](TestSession::drain) allows: many more than a test means, few enough to end soon when
/// handlers publish in a circle or snooze for ever.
pub const MAX_RUNS: usize = 10_000;

/// One run in a [`drain`](TestSession::drain).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeliveryRun {
    /// The handler's name.
    pub handler: String,
    /// The event's name.
    pub event: String,
    /// Which attempt it was, from 1. (One more than there are, if its attempts were used up by crashes: then it went to
    /// the dead letters without another run.)
    pub attempt: u32,
    /// When it ran: virtual time since the session was created.
    pub at: Duration,
    /// What became of the delivery.
    pub end: RunResult,
}

/// What became of a delivery after a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RunResult {
    /// Done.
    Completed,
    /// It failed, and runs again after this long.
    Retried(Duration),
    /// It asked to wait this long; no attempt was used up.
    Snoozed(Duration),
    /// To the dead letters.
    Dead(DeadReason),
    /// It succeeded, and [`Fault::deliver_twice`](crate::Fault::deliver_twice) delivers it once more.
    Repeated,
    /// Its outcome was lost by [`Fault::crash_before_ack`](crate::Fault::crash_before_ack); it comes back.
    Crashed,
}

/// What a [`drain`](TestSession::drain) did.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct DrainReport {
    /// Every run, in order.
    pub runs: Vec<DeliveryRun>,
    /// Runs after which the delivery was done.
    pub completed: usize,
    /// Runs that failed and were tried again.
    pub retried: usize,
    /// Runs that asked to wait.
    pub snoozed: usize,
    /// Runs that succeeded and were repeated by a fault.
    pub repeated: usize,
    /// Runs whose outcome was lost by a fault.
    pub crashed: usize,
    /// Deliveries that failed for good, in the order in which they did.
    pub dead_letters: Vec<DeadLetter>,
    /// Deliveries that are left because a dead one holds their key.
    pub held: usize,
    /// How far the virtual clock moved.
    pub elapsed: Duration,
}

impl DrainReport {
    /// How many dead letters have this reason.
    #[must_use]
    pub fn dead(&self, reason: DeadReason) -> usize {
        self.dead_letters.iter().filter(|dead| dead.reason == reason).count()
    }

    fn add(&mut self, run: DeliveryRun, dead: Option<DeadLetter>) {
        match run.end {
            RunResult::Completed => self.completed += 1,
            RunResult::Retried(_) => self.retried += 1,
            RunResult::Snoozed(_) => self.snoozed += 1,
            RunResult::Repeated => self.repeated += 1,
            RunResult::Crashed => self.crashed += 1,
            RunResult::Dead(_) => {}
        }
        self.dead_letters.extend(dead);
        self.runs.push(run);
    }
}

impl TestSession {
    /// Runs all deliveries that were recorded in default and strict mode, and those that handlers publish meanwhile,
    /// until none is left: with the retries, delays and dead letters of a worker, one at a time, in the order of their
    /// keys. Nobody sleeps: waiting moves a virtual clock.
    ///
    /// What the handlers publish belongs to this test, in the mode it is in.
    ///
    /// # Panics
    /// After [`MAX_RUNS`] runs.
    ///
    /// # Cancel safety
    /// A dropped future puts the delivery that was running back as it was.
    pub async fn drain(&mut self) -> DrainReport {
        let mut report = DrainReport::default();
        let before = self.state.lock().line.now();
        while let Some((run, dead)) = self.run_next().await {
            report.add(run, dead);
            if report.runs.len() > MAX_RUNS {
                let text = report.runs.last().map(|run| format!("{} on {}", run.handler, run.event));
                fail(&format!(
                    "drain ran {MAX_RUNS} deliveries and more are left, the next like {}: do handlers publish in a circle, \
                     or snooze for ever?",
                    text.unwrap_or_default()
                ));
            }
        }
        let seen = self.state.lock();
        report.held = seen.line.held();
        report.elapsed = seen.line.now().saturating_sub(before);
        report
    }

    /// Runs the one delivery that is due next, and moves the virtual clock to it; `None` if none is left that can run.
    ///
    /// # Cancel safety
    /// As for [`drain`](TestSession::drain).
    pub async fn drain_one(&mut self) -> Option<DeliveryRun> {
        self.run_next().await.map(|(run, _)| run)
    }

    async fn run_next(&mut self) -> Option<(DeliveryRun, Option<DeadLetter>)> {
        let bus = self.state.shared.bus().ok()?;
        let taken = Taken::next(&self.state)?;
        let entry = taken.entry.as_ref()?;
        let environment = environment(bus, self.state.lock().line.now());
        let options = entry.handler.options();
        if let Some(outcome) = outcome_before_run(&entry.delivery, options, &environment) {
            return taken.settle(outcome, &environment, false);
        }
        let delivery = Arc::new(entry.delivery.clone());
        let cx = Context::with_options(entry.handler.name().clone(), options, delivery);
        let cx = cx.with_session(Arc::new(Answering));
        let end = Scoped::new(self.state.clone(), run(&entry.handler, &cx)).await;
        let outcome = outcome(&end, &entry.delivery, options, &environment);
        taken.settle(outcome, &environment, true)
    }
}

/// A delivery that runs: it goes back to its line unless it is settled.
struct Taken<'a> {
    state: &'a State,
    entry: Option<Entry>,
}

impl<'a> Taken<'a> {
    /// The next delivery that no fault delays.
    fn next(state: &'a State) -> Option<Self> {
        let mut guard = state.lock();
        let seen = &mut *guard;
        loop {
            let entry = seen.line.take()?;
            match seen.faults.delay(entry.handler.name(), &entry.delivery.envelope) {
                Some(delay) => seen.line.again(entry, delay, true),
                None => return Some(Self { state, entry: Some(entry) }),
            }
        }
    }

    fn settle(
        mut self,
        outcome: Outcome,
        environment: &Environment,
        has_run: bool,
    ) -> Option<(DeliveryRun, Option<DeadLetter>)> {
        let mut entry = self.entry.take()?;
        let mut guard = self.state.lock();
        let seen = &mut *guard;
        let envelope = entry.delivery.envelope.clone();
        let handler = entry.handler.name().clone();
        let mut run = DeliveryRun {
            handler: handler.to_string(),
            event: envelope.name.to_string(),
            attempt: entry.delivery.attempt(),
            at: seen.line.now(),
            end: RunResult::Completed,
        };
        if has_run && seen.faults.strikes(FaultKind::CrashBeforeAck, &handler, &envelope) {
            // The start of a suspect is recorded before it runs, so this crash counts.
            if entry.delivery.crashes > 0 {
                entry.delivery.failures = entry.delivery.attempt();
            }
            entry.delivery.crashes += 1;
            seen.line.put_back(entry);
            run.end = RunResult::Crashed;
            return Some((run, None));
        }
        let mut dead_letter = None;
        run.end = match outcome {
            Outcome::Complete if seen.faults.strikes(FaultKind::DeliverTwice, &handler, &envelope) => {
                seen.line.put_back(entry);
                RunResult::Repeated
            }
            Outcome::Complete => RunResult::Completed,
            Outcome::Retry { failures, delay, errors, keeps_place } => {
                entry.delivery.failures = failures;
                entry.delivery.errors = errors;
                seen.line.again(entry, delay, keeps_place);
                RunResult::Retried(delay)
            }
            Outcome::Snooze { delay, keeps_place } => {
                seen.line.again(entry, delay, keeps_place);
                RunResult::Snoozed(delay)
            }
            Outcome::Dead { reason, failures, errors, holds_key } => {
                dead_letter = Some(DeadLetter {
                    id: seen.line.new_id(),
                    handler,
                    envelope,
                    failures,
                    errors,
                    reason,
                    died_at: environment.clock.now(),
                    holds_key,
                });
                if holds_key {
                    seen.line.hold(entry);
                }
                RunResult::Dead(reason)
            }
            // Nothing here says either of them; whoever does would have the delivery run again.
            Outcome::Start { .. } | Outcome::Release => {
                seen.line.put_back(entry);
                RunResult::Snoozed(Duration::ZERO)
            }
        };
        Some((run, dead_letter))
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(entry) = mem::take(&mut self.entry) {
            self.state.lock().line.put_back(entry);
        }
    }
}

/// The world of a drain: the bus's clock and as much virtual time on top, and the same jitter in each test.
fn environment(bus: &EventBus, elapsed: Duration) -> Environment {
    struct Shifted(Timestamp);

    impl Clock for Shifted {
        fn now(&self) -> Timestamp {
            self.0
        }
    }

    let now = bus.environment().clock.now().plus(elapsed);
    Environment { clock: Arc::new(Shifted(now)), randomness: Arc::new(Randomness::seeded(0)) }
}
