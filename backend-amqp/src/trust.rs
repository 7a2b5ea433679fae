//! For how long a session trusts that its queues are its own.

use std::time::Duration;

use event_bus_core::clock::BootTime;

/// How long a session believes that the broker has not given its queues to others: one heartbeat from the sending of the last
/// question that was answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trust {
    heartbeat: Duration,
    until: BootTime,
}

impl Trust {
    pub(crate) fn new(heartbeat: Duration, now: BootTime) -> Self {
        Self { heartbeat, until: now.plus(heartbeat) }
    }

    /// A question that was sent then was answered.
    pub(crate) fn renew(&mut self, sent: BootTime) {
        self.until = self.until.max(sent.plus(self.heartbeat));
    }

    /// How long it lasts; zero: no longer.
    pub(crate) fn left(&self, now: BootTime) -> Duration {
        self.until.since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARTBEAT: Duration = Duration::from_secs(5);

    #[test]
    fn an_answer_is_worth_a_heartbeat_from_its_question_and_not_from_its_arrival() {
        let start = BootTime::from_nanos(100_000_000_000);
        let mut trust = Trust::new(HEARTBEAT, start);
        trust.renew(start.plus(Duration::from_secs(2)));
        // An older question whose answer comes late takes nothing back.
        trust.renew(start.plus(Duration::from_secs(1)));
        assert_eq!(trust.left(start.plus(Duration::from_secs(6))), Duration::from_secs(1));
        assert!(trust.left(start.plus(Duration::from_secs(7))).is_zero());
    }

    #[test]
    fn an_answer_to_a_question_from_before_a_suspension_is_worth_nothing() {
        let asked = BootTime::from_nanos(100_000_000_000);
        let awake = asked.plus(Duration::from_secs(3_600));
        let mut trust = Trust::new(HEARTBEAT, asked);
        trust.renew(asked);
        assert!(trust.left(awake).is_zero());
    }
}
