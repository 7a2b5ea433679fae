//! A life, drawn from its seed before it begins.

use std::time::Duration;

use event_bus_conformance::checker::{HandlerRules, Rules};
use event_bus_conformance::simulation::{Config, FaultPlan, Layout};
use event_bus_core::{Backoff, Exhausted, HandlerOptions, Order};
use fastrand::Rng;

use crate::handlers::NAMES;

/// What a handler does with an event, run by run; afterwards it succeeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    Done(Duration),
    Fail(Duration),
    RetryAfter(Duration),
    Panic,
    Discard,
    Snooze(Duration),
    /// Until it is cancelled or times out.
    Hang,
    /// Kills its worker.
    Crash,
}

/// What is done to the workers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    Start,
    Crash,
    Drop,
    Shutdown { grace: Duration },
    LoseSession,
    LosePartition,
    Stall(Duration),
    Rebalance,
}

pub struct HandlerPlan {
    pub options: HandlerOptions,
    pub rules: HandlerRules,
    pub backoff: Backoff,
    pub timeout: Option<Duration>,
}

pub struct WorkerPlan {
    pub concurrency: usize,
    pub window: usize,
    pub poll_interval: Duration,
}

pub struct Plan {
    pub seed: u64,
    pub config: Config,
    pub faults: FaultPlan,
    pub handlers: Vec<HandlerPlan>,
    pub workers: WorkerPlan,
    pub slots: usize,
    /// At which time what is done to which slot.
    pub actions: Vec<(Duration, usize, Action)>,
    pub publishers: usize,
    /// Calls of each publisher.
    pub calls: usize,
    pub keys: usize,
    /// The longest pause of a publisher.
    pub gap: Duration,
    /// How rough the handlers are: the share of events that do not simply succeed.
    pub trouble: f64,
    /// How many events kill their worker, per mille.
    pub poison: u64,
    /// A worker may know only some of the handlers.
    pub is_mixed: bool,
}

impl Plan {
    pub fn draw(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let rng = &mut rng;
        let may_park = rng.f64() < 0.8;
        let config = config(rng, may_park);
        let handlers = (0..rng.usize(2..=4)).map(|_| handler(rng, may_park)).collect();
        let slots = rng.usize(1..=3);
        let calls = rng.usize(4..=20);
        let gap = millis(rng, &[5, 50, 300, 1_500]);
        let faults = faults(rng);
        let is_calm = rng.f64() < 0.15;
        let span = gap.mul_f64(calls as f64 / 2.0) + Duration::from_secs(5);
        Self {
            seed,
            config,
            faults: if is_calm { FaultPlan::default() } else { faults },
            handlers,
            workers: WorkerPlan {
                concurrency: rng.usize(1..=8),
                window: pick(rng, &[1, 2, 4, 8, 32]),
                poll_interval: millis(rng, &[100, 400, 1_000]),
            },
            slots,
            actions: actions(rng, slots, span),
            publishers: rng.usize(1..=3),
            calls,
            keys: pick(rng, &[1, 2, 3, 6]),
            gap,
            trouble: rng.f64() * 0.6,
            poison: if rng.f64() < 0.1 { 20 } else { 0 },
            is_mixed: rng.f64() < 0.2,
        }
    }

    pub fn rules(&self) -> Rules {
        let handlers = NAMES.iter().zip(&self.handlers);
        Rules {
            handlers: handlers.map(|(name, handler)| ((*name).to_owned(), handler.rules)).collect(),
            stores_twice: false,
        }
    }

    /// Dice of their own for one question, the same whenever it is asked.
    pub fn dice(&self, question: u64, about: u64) -> Rng {
        Rng::with_seed(
            self.seed
                ^ question.wrapping_mul(0x9e37_79b9_7f4a_7c15)
                ^ about.wrapping_mul(0xd134_2543_de82_ef95),
        )
    }

    pub fn is_interested(&self, handler: usize, number: u64) -> bool {
        self.dice(1 + handler as u64, number).f64() < 0.7
    }

    /// What a handler does with an event.
    pub fn script(&self, handler: usize, number: u64) -> Vec<Step> {
        let mut rng = self.dice(101 + handler as u64, number);
        let rng = &mut rng;
        if rng.u64(..1_000) < self.poison {
            return vec![Step::Crash; 30];
        }
        if rng.f64() >= self.trouble {
            return vec![Step::Done(run_time(rng))];
        }
        let can_hang = self.handlers[handler].timeout.is_some();
        if rng.f64() < 0.1 {
            return vec![Step::Fail(run_time(rng)); 30];
        }
        let steps = rng.usize(1..=4);
        (0..steps)
            .map(|_| match rng.u32(..10) {
                0..=3 => Step::Fail(run_time(rng)),
                4 => Step::RetryAfter(millis(rng, &[0, 20, 700, 4_000])),
                5 => Step::Panic,
                6 if rng.f64() < 0.4 => Step::Discard,
                7 if can_hang => Step::Hang,
                8 => Step::Done(Duration::from_millis(rng.u64(500..4_000))),
                _ => Step::Snooze(millis(rng, &[0, 10, 800, 3_000])),
            })
            .collect()
    }
}

fn config(rng: &mut Rng, may_park: bool) -> Config {
    let layout = match rng.u32(..5) {
        0 => Layout::Whole,
        _ => Layout::Divided(rng.u16(1..=4)),
    };
    let mut config = Config { layout, ..Config::default() };
    config.capabilities.parking = may_park;
    config.capabilities.hold_key = may_park;
    config.capabilities.atomic_publish = rng.f64() < 0.8;
    config.renumbers = rng.bool();
    config.parks_lines = rng.bool();
    config.fences_free = rng.bool();
    config.told_per_claim = pick(rng, &[1, 3, 1_000]);
    config
}

fn faults(rng: &mut Rng) -> FaultPlan {
    let mut share = |shares: &[f64]| pick(rng, shares);
    FaultPlan {
        error_before: share(&[0.0, 0.02, 0.1, 0.3]),
        error_after: share(&[0.0, 0.02, 0.1, 0.3]),
        late: share(&[0.0, 0.02, 0.1]),
        slow: share(&[0.0, 0.1, 0.5]),
        slowest: Duration::from_millis(share(&[5.0, 40.0, 300.0, 900.0]) as u64),
        duplicate: share(&[0.0, 0.1, 0.3]),
        stale: share(&[0.0, 0.1, 0.3]),
        lost_wake_up: share(&[0.0, 0.2, 1.0]),
        lost_session: share(&[0.0, 0.0, 0.01, 0.03]),
    }
}

fn handler(rng: &mut Rng, may_park: bool) -> HandlerPlan {
    let max_attempts = rng.u32(1..=4);
    let order = if rng.f64() < 0.7 { Order::Hold } else { Order::Release };
    let exhausted = if order == Order::Hold && may_park && rng.f64() < 0.3 {
        Exhausted::HoldKey
    } else {
        Exhausted::Continue
    };
    let delay = millis(rng, &[0, 10, 300, 2_000]);
    let backoff = if rng.bool() {
        Backoff::fixed(delay)
    } else {
        Backoff::exponential(delay, Duration::from_millis(rng.u64(1..200)), Duration::from_secs(3))
    };
    let timeout = rng.bool().then(|| Duration::from_millis(rng.u64(100..3_000)));
    let mut options = HandlerOptions::new()
        .max_attempts(max_attempts)
        .priority(pick(rng, &[0, 0, 3, 9]))
        .on_failure(order)
        .on_exhausted(exhausted)
        .backoff(backoff.clone());
    if let Some(timeout) = timeout {
        options = options.timeout(timeout);
    }
    if rng.f64() < 0.3 {
        options = options.concurrency(rng.usize(1..=3));
    }
    let rules = HandlerRules {
        max_attempts,
        is_ordered: order == Order::Hold,
        holds_key: exhausted == Exhausted::HoldKey,
    };
    HandlerPlan { options, rules, backoff, timeout }
}

fn actions(rng: &mut Rng, slots: usize, span: Duration) -> Vec<(Duration, usize, Action)> {
    let mut actions: Vec<_> =
        (0..slots).map(|slot| (span.mul_f64(0.3 * rng.f64()), slot, Action::Start)).collect();
    // One worker is there from the beginning.
    actions[0].0 = Duration::ZERO;
    for _ in 0..rng.usize(0..=8) {
        let action = match rng.u32(..12) {
            0..=1 => Action::Crash,
            2 => Action::Drop,
            3..=4 => Action::Shutdown { grace: millis(rng, &[0, 300, 5_000]) },
            5 => Action::LoseSession,
            6..=7 => Action::LosePartition,
            8 => Action::Stall(millis(rng, &[500, 2_500, 9_000])),
            _ => Action::Rebalance,
        };
        let (at, slot) = (span.mul_f64(rng.f64()), rng.usize(..slots));
        actions.push((at, slot, action));
        if matches!(action, Action::Crash | Action::Drop | Action::Shutdown { .. }) {
            actions.push((at + millis(rng, &[1, 500, 6_000]), slot, Action::Start));
        }
    }
    actions.sort_by_key(|(at, slot, _)| (*at, *slot));
    actions
}

/// How long an ordinary run takes.
fn run_time(rng: &mut Rng) -> Duration {
    Duration::from_millis(pick(rng, &[0, 0, 0, 1, 20, 300]))
}

/// Up to one of these many milliseconds.
pub fn millis(rng: &mut Rng, choices: &[u64]) -> Duration {
    let most = pick(rng, choices);
    Duration::from_millis(if most == 0 { 0 } else { rng.u64(most / 2..=most) })
}

pub fn pick<T: Copy>(rng: &mut Rng, choices: &[T]) -> T {
    choices[rng.usize(..choices.len())]
}
