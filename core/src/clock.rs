//! Time, randomness and identities, as arguments: so that a simulation can own them.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use uuid::Builder;

use crate::envelope::{EventId, Timestamp};

/// The wall clock, in which events and errors are dated. Waiting is measured by tokio's clock, never by this one.
pub trait Clock: Send + Sync + 'static {
    /// The present.
    fn now(&self) -> Timestamp;
}

/// The machine's wall clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads it")]
    fn now(&self) -> Timestamp {
        std::time::SystemTime::now().into()
    }
}

/// A point in time on a clock that goes on while the machine is suspended: what bounds a worker's trust in its right. `Instant`
/// stands still then on Linux, and a worker that slept through its right would not notice. Comparable within one boot of one
/// machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(Duration);

impl BootTime {
    /// The present. Elsewhere than on Linux the monotonic clock goes on during a suspension (macOS), or there is no better
    /// one.
    pub fn now() -> Self {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let now = clock_gettime(ClockId::Boottime);
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        let now = clock_gettime(ClockId::Monotonic);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        Self(Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0)))
    }

    /// So much later.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }

    /// How long after `earlier` this is; zero if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// How long ago this was.
    pub fn elapsed(self) -> Duration {
        Self::now().since(self)
    }

    /// As a number, for atomics.
    pub fn as_nanos(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }

    /// From such a number.
    pub fn from_nanos(nanos: u64) -> Self {
        Self(Duration::from_nanos(nanos))
    }
}

/// A source of random numbers; not for secrets.
pub struct Randomness(Mutex<fastrand::Rng>);

impl Randomness {
    /// The same numbers for the same seed.
    pub fn seeded(seed: u64) -> Self {
        Self(Mutex::new(fastrand::Rng::with_seed(seed)))
    }

    /// Other numbers in each process.
    pub fn from_system() -> Self {
        Self(Mutex::new(fastrand::Rng::new()))
    }

    /// A number in `0.0..1.0`.
    pub fn fraction(&self) -> f64 {
        self.with(fastrand::Rng::f64)
    }

    /// 128 random bits.
    pub fn bits(&self) -> u128 {
        self.with(|rng| rng.u128(..))
    }

    fn with<T>(&self, draw: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        // A panic while drawing leaves a valid generator behind.
        draw(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Randomness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Randomness")
    }
}

/// What a bus takes from the world around it.
#[derive(Clone)]
pub struct Environment {
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// Jitter and identities.
    pub randomness: Arc<Randomness>,
}

impl Environment {
    /// A version 7 UUID of the present.
    pub fn event_id(&self) -> EventId {
        let millis = u64::try_from(self.clock.now().as_millis()).unwrap_or(0);
        let random = self.randomness.bits().to_be_bytes();
        let mut tail = [0_u8; 10];
        tail.copy_from_slice(&random[..10]);
        EventId::from_uuid(Builder::from_unix_timestamp_millis(millis, &tail).into_uuid())
    }
}

impl Default for Environment {
    fn default() -> Self {
        Self { clock: Arc::new(SystemClock), randomness: Arc::new(Randomness::from_system()) }
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Environment")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_since_the_start_of_the_machine_goes_on() {
        let one = BootTime::now();
        while BootTime::now() == one {}
        assert!(BootTime::now() > one);
        assert_eq!(one.plus(Duration::from_secs(2)).since(one), Duration::from_secs(2));
        assert_eq!(one.since(one.plus(Duration::from_secs(2))), Duration::ZERO);
        assert_eq!(BootTime::from_nanos(one.as_nanos()), one);
    }
}
