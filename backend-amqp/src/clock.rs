//! The clock that bounds a worker's trust in its queues.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The clock goes on while a machine is suspended, which `Instant` does not: a laptop that wakes up must know that it
/// slept, and that the broker has given its queues to others meanwhile.
#[cfg(any(target_os = "linux", target_os = "android"))]
const CLOCK: ClockId = ClockId::Boottime;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const CLOCK: ClockId = ClockId::Monotonic;

/// A moment, comparable within one boot of one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(Duration);

impl Moment {
    pub(crate) fn now() -> Self {
        let now = clock_gettime(CLOCK);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        Self(Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0)))
    }

    pub(crate) fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }

    /// How long after `earlier` this is; zero if it is not.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// How long a session believes that the broker has not given its queues to others: one heartbeat from the sending of the last
/// question that was answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trust {
    heartbeat: Duration,
    until: Moment,
}

impl Trust {
    pub(crate) fn new(heartbeat: Duration, now: Moment) -> Self {
        Self { heartbeat, until: now.plus(heartbeat) }
    }

    /// A question that was sent then was answered.
    pub(crate) fn renew(&mut self, sent: Moment) {
        self.until = self.until.max(sent.plus(self.heartbeat));
    }

    /// How long it lasts; zero: no longer.
    pub(crate) fn left(&self, now: Moment) -> Duration {
        self.until.since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARTBEAT: Duration = Duration::from_secs(5);

    #[test]
    fn an_answer_is_worth_a_heartbeat_from_its_question_and_not_from_its_arrival() {
        let start = Moment(Duration::from_secs(100));
        let mut trust = Trust::new(HEARTBEAT, start);
        trust.renew(start.plus(Duration::from_secs(2)));
        // An older question whose answer comes late takes nothing back.
        trust.renew(start.plus(Duration::from_secs(1)));
        assert_eq!(trust.left(start.plus(Duration::from_secs(6))), Duration::from_secs(1));
        assert!(trust.left(start.plus(Duration::from_secs(7))).is_zero());
    }

    #[test]
    fn an_answer_to_a_question_from_before_a_suspension_is_worth_nothing() {
        let asked = Moment(Duration::from_secs(100));
        let awake = asked.plus(Duration::from_secs(3_600));
        let mut trust = Trust::new(HEARTBEAT, asked);
        trust.renew(asked);
        assert!(trust.left(awake).is_zero());
    }

    #[test]
    fn time_goes_on() {
        let one = Moment::now();
        while Moment::now() == one {}
        assert!(Moment::now() > one);
    }
}
