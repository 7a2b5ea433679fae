//! What follows from a run: the one place that decides about attempts, delays and dead letters.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Environment;
use crate::codec::DecodeError;
use crate::delivery::{AttemptError, DeadReason, Delivery, ErrorLog, Outcome};
use crate::handler::{Exhausted, Failure, FailureKind, HandlerOptions, Order};

/// How long a delivery of an unknown event, or of a newer version of one, waits before it is looked at again: long
/// enough to cost nothing, short enough for a rolling deploy.
const UNKNOWN_EVENT_DELAY: Duration = Duration::from_secs(30);

/// How long to wait before the next attempt.
#[derive(Clone)]
pub struct Backoff(Kind);

#[derive(Clone)]
enum Kind {
    Exponential { base: Duration, unit: Duration, max: Duration },
    Fixed(Duration),
    Custom(Arc<dyn Fn(u32) -> Duration + Send + Sync>),
}

impl Backoff {
    /// The longest delay of [`Backoff::default`]: 24 hours.
    pub const MAX: Duration = Duration::from_secs(24 * 60 * 60);

    /// `base + 2^n · unit` before attempt n + 1, at most `max`, plus up to 10 % at random so that what failed together
    /// does not come back together.
    pub fn exponential(base: Duration, unit: Duration, max: Duration) -> Self {
        Self(Kind::Exponential { base, unit, max })
    }

    /// The same delay each time, without jitter.
    pub fn fixed(delay: Duration) -> Self {
        Self(Kind::Fixed(delay))
    }

    /// The delay after failure number n (from 1).
    pub fn custom(delay: impl Fn(u32) -> Duration + Send + Sync + 'static) -> Self {
        Self(Kind::Custom(Arc::new(delay)))
    }

    /// The delay after failure number `failures`; `fraction` in `0.0..1.0` is the jitter's draw.
    pub fn delay(&self, failures: u32, fraction: f64) -> Duration {
        match &self.0 {
            Kind::Exponential { base, unit, max } => {
                let factor = 2_u32.checked_pow(failures).unwrap_or(u32::MAX);
                let delay = base.saturating_add(unit.saturating_mul(factor)).min(*max);
                delay.saturating_add(delay.mul_f64(0.1 * fraction.clamp(0.0, 1.0)))
            }
            Kind::Fixed(delay) => *delay,
            Kind::Custom(delay) => delay(failures),
        }
    }
}

impl Default for Backoff {
    /// 15 s + 2^n s after failure n, at most 24 h, plus up to 10 %: 17 s, 19 s, 23 s, 31 s.
    fn default() -> Self {
        Self::exponential(Duration::from_secs(15), Duration::from_secs(1), Self::MAX)
    }
}

impl fmt::Debug for Backoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Exponential { base, unit, max } => {
                write!(f, "exponential({base:?} + 2^n * {unit:?}, at most {max:?})")
            }
            Kind::Fixed(delay) => write!(f, "fixed({delay:?})"),
            Kind::Custom(_) => f.write_str("custom"),
        }
    }
}

/// How a run ended.
#[derive(Debug)]
pub enum RunEnd {
    /// The handler returned `Ok`.
    Done,
    /// The handler returned `Err`.
    Failed(Failure),
    /// The handler panicked with this text.
    Panicked(String),
    /// The run took longer than its timeout.
    TimedOut(Duration),
    /// The handler was not called: the payload is not an event it knows.
    Undecodable(DecodeError),
}

impl RunEnd {
    /// The text under which this end is remembered; `None` for success and snooze.
    pub fn error(&self) -> Option<String> {
        match self {
            Self::Done => None,
            Self::Failed(failure) if matches!(failure.kind(), FailureKind::Snooze(_)) => None,
            Self::Failed(failure) => Some(failure.to_string()),
            Self::Panicked(text) => Some(format!("panicked: {text}")),
            Self::TimedOut(limit) => Some(format!("timed out after {limit:?}")),
            Self::Undecodable(error) => Some(error.to_string()),
        }
    }
}

/// What follows from the end of a run.
pub fn outcome(
    end: &RunEnd,
    delivery: &Delivery,
    options: &HandlerOptions,
    environment: &Environment,
) -> Outcome {
    let delay_after_failure = || options.backoff.delay(delivery.attempt(), environment.randomness.fraction());
    match end {
        RunEnd::Done => Outcome::Complete,
        RunEnd::Failed(failure) => match failure.kind() {
            FailureKind::Retry => failed(end, delivery, options, environment, delay_after_failure()),
            FailureKind::RetryAfter(delay) => failed(end, delivery, options, environment, delay),
            FailureKind::Snooze(delay) => {
                Outcome::Snooze { delay, keeps_place: keeps_place(delivery, options) }
            }
            FailureKind::Discard => dead(DeadReason::Discarded, end, delivery, options, environment),
        },
        RunEnd::Panicked(_) | RunEnd::TimedOut(_) => {
            failed(end, delivery, options, environment, delay_after_failure())
        }
        RunEnd::Undecodable(DecodeError::Malformed(_)) => {
            dead(DeadReason::Undecodable, end, delivery, options, environment)
        }
        RunEnd::Undecodable(DecodeError::UnknownName { .. } | DecodeError::NewerVersion { .. }) => {
            let delay = UNKNOWN_EVENT_DELAY.mul_f64(1.0 + environment.randomness.fraction());
            Outcome::Snooze { delay, keeps_place: keeps_place(delivery, options) }
        }
    }
}

/// What follows when a delivery comes with its attempts already used up (its workers vanished under it, or the handler
/// now allows fewer); `None` if it may run.
pub fn outcome_before_run(
    delivery: &Delivery,
    options: &HandlerOptions,
    environment: &Environment,
) -> Option<Outcome> {
    (delivery.failures >= options.max_attempts).then(|| Outcome::Dead {
        reason: DeadReason::Exhausted,
        failures: delivery.failures,
        errors: with_lost_worker(delivery, environment),
        holds_key: holds_key(delivery, options),
    })
}

fn failed(
    end: &RunEnd,
    delivery: &Delivery,
    options: &HandlerOptions,
    environment: &Environment,
    delay: Duration,
) -> Outcome {
    if delivery.attempt() >= options.max_attempts {
        return dead(DeadReason::Exhausted, end, delivery, options, environment);
    }
    Outcome::Retry {
        failures: delivery.attempt(),
        delay,
        errors: with_error(end, delivery, environment),
        keeps_place: keeps_place(delivery, options),
    }
}

fn dead(
    reason: DeadReason,
    end: &RunEnd,
    delivery: &Delivery,
    options: &HandlerOptions,
    environment: &Environment,
) -> Outcome {
    let ran = reason != DeadReason::Undecodable;
    Outcome::Dead {
        reason,
        failures: if ran { delivery.attempt() } else { delivery.failures },
        errors: with_error(end, delivery, environment),
        // An undecodable payload blocks nothing.
        holds_key: ran && holds_key(delivery, options),
    }
}

fn keeps_place(delivery: &Delivery, options: &HandlerOptions) -> bool {
    delivery.envelope.key.is_some() && options.on_failure == Order::Hold
}

fn holds_key(delivery: &Delivery, options: &HandlerOptions) -> bool {
    delivery.envelope.key.is_some() && options.on_exhausted == Exhausted::HoldKey
}

fn with_error(end: &RunEnd, delivery: &Delivery, environment: &Environment) -> ErrorLog {
    let log = with_lost_worker(delivery, environment);
    match end.error() {
        Some(message) => log.with(AttemptError {
            attempt: delivery.attempt(),
            failed_at: environment.clock.now(),
            message,
        }),
        None => log,
    }
}

/// A failure that was counted because the worker vanished has no error of its own in the log: this adds it.
fn with_lost_worker(delivery: &Delivery, environment: &Environment) -> ErrorLog {
    if delivery.crashes == 0 || delivery.failures == 0 {
        return delivery.errors.clone();
    }
    let last = delivery.errors.entries().last().map_or(0, |error| error.attempt);
    if last >= delivery.failures {
        return delivery.errors.clone();
    }
    delivery.errors.with(AttemptError {
        attempt: delivery.failures,
        failed_at: environment.clock.now(),
        message: "the worker vanished during this attempt".to_owned(),
    })
}
