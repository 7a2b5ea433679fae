//! What goes wrong, drawn from a seed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How often each thing goes wrong: shares of calls, in `0.0..=1.0`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FaultPlan {
    /// A call fails before it had any effect.
    pub error_before: f64,
    /// A call takes effect and fails all the same.
    pub error_after: f64,
    /// A call fails, and is executed later, perhaps after newer ones.
    pub late: f64,
    /// A call takes up to [`FaultPlan::slowest`] before its effect, and again after it.
    pub slow: f64,
    /// The longest such time.
    pub slowest: Duration,
    /// A claim's answer has a delivery twice.
    pub duplicate: f64,
    /// A claim's answer travels for up to four times [`FaultPlan::slowest`], while other calls take effect and are answered.
    pub stale: f64,
    /// A wake-up gets lost.
    pub lost_wake_up: f64,
    /// A call finds the session gone.
    pub lost_session: f64,
}

/// A plan and the dice.
#[derive(Debug)]
pub struct Faults {
    plan: FaultPlan,
    rng: Mutex<fastrand::Rng>,
    is_healed: AtomicBool,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fate {
    /// It does what it should.
    Fine,
    ErrorBefore,
    ErrorAfter,
    /// It fails, and is executed after this long.
    Late(Duration),
    /// The session is lost with it.
    LostSession,
}

/// A call as the dice have it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drawn {
    pub(super) fate: Fate,
    pub(super) before: Duration,
    pub(super) after: Duration,
}

impl Drawn {
    pub(super) const FINE: Self = Self { fate: Fate::Fine, before: Duration::ZERO, after: Duration::ZERO };
}

impl Faults {
    /// Faults of this plan; the same for the same seed and the same calls.
    pub fn new(plan: FaultPlan, seed: u64) -> Self {
        Self { plan, rng: Mutex::new(fastrand::Rng::with_seed(seed)), is_healed: AtomicBool::new(false) }
    }

    /// From now on nothing goes wrong. (What is late stays late.)
    pub fn heal(&self) {
        self.is_healed.store(true, Ordering::Relaxed);
    }

    pub(super) fn draw(&self) -> Drawn {
        if self.is_healed.load(Ordering::Relaxed) {
            return Drawn::FINE;
        }
        let plan = self.plan;
        self.with(|rng| {
            let slow = |rng: &mut fastrand::Rng| {
                if rng.f64() < plan.slow { plan.slowest.mul_f64(rng.f64()) } else { Duration::ZERO }
            };
            let (before, after) = (slow(rng), slow(rng));
            let fates = [
                (plan.error_before, Fate::ErrorBefore),
                (plan.error_after, Fate::ErrorAfter),
                (plan.late, Fate::Late(plan.slowest.mul_f64(4.0 * rng.f64()))),
                (plan.lost_session, Fate::LostSession),
            ];
            let mut left = rng.f64();
            let fate = fates.into_iter().find(|(share, _)| {
                left -= share;
                left < 0.0
            });
            Drawn { fate: fate.map_or(Fate::Fine, |(_, fate)| fate), before, after }
        })
    }

    pub(super) fn loses_wake_up(&self) -> bool {
        self.chance(self.plan.lost_wake_up)
    }

    pub(super) fn duplicates(&self) -> bool {
        self.chance(self.plan.duplicate)
    }

    /// How long a claim's answer travels.
    pub(super) fn staleness(&self) -> Duration {
        if self.chance(self.plan.stale) { self.part_of(self.plan.slowest * 4) } else { Duration::ZERO }
    }

    /// A number below `end`, or 0.
    pub(super) fn below(&self, end: usize) -> usize {
        self.with(|rng| if end == 0 { 0 } else { rng.usize(..end) })
    }

    /// A part of `whole`.
    pub(super) fn part_of(&self, whole: Duration) -> Duration {
        self.with(|rng| whole.mul_f64(rng.f64()))
    }

    fn chance(&self, share: f64) -> bool {
        share > 0.0 && !self.is_healed.load(Ordering::Relaxed) && self.with(|rng| rng.f64() < share)
    }

    fn with<T>(&self, draw: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        draw(&mut self.rng.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
