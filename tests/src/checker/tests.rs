//! The checker is told stories, each beside its twin: one breaks a promise, the other comes as near as may be.

use super::*;
use crate::history::{Dead, Fact, Pending, Published, RunEnd};

const FAIL: RunEnd = RunEnd::Retry { delay: 10 };

/// A history in the making. Every line takes 100 ns; handlers are `hold`, `release` and `park`, all with 2 attempts.
#[derive(Default)]
struct Story {
    history: History,
    time: u64,
    pending: Vec<Pending>,
    dead: Vec<Dead>,
    stores_twice: bool,
}

impl Story {
    fn new() -> Self {
        Self::default().fact(Fact::WorkerStart { worker: 1 }).fact(Fact::WorkerStart { worker: 2 })
    }

    fn fact(mut self, fact: Fact) -> Self {
        self.time += 100;
        self.history.records.push(Record { at: self.time, fact });
        self
    }

    fn wait(mut self, nanos: u64) -> Self {
        self.time += nanos;
        self
    }

    fn event(event: u64, handler: &str, key: Option<&str>) -> Published {
        let hash = event;
        Published {
            event,
            key: key.map(str::to_owned),
            hash,
            handlers: vec![handler.to_owned()],
            is_garbage: false,
        }
    }

    /// Calls publish; the call's number is that of its first event.
    fn calls(self, handler: &str, key: Option<&str>, events: &[u64]) -> Self {
        self.calls_later(handler, key, events, 0)
    }

    fn calls_later(self, handler: &str, key: Option<&str>, events: &[u64], delay: u64) -> Self {
        let call = events[0];
        let events = events.iter().map(|event| Self::event(*event, handler, key)).collect();
        self.fact(Fact::PublishIntent { call, publisher: 1, delay, events })
    }

    fn ok(self, call: u64) -> Self {
        self.fact(Fact::PublishOk { call })
    }

    /// Publishes under key `k`, and hears Ok.
    fn publishes(self, handler: &str, event: u64) -> Self {
        self.calls(handler, Some("k"), &[event]).ok(event)
    }

    fn free(self, handler: &str, event: u64) -> Self {
        self.calls(handler, None, &[event]).ok(event)
    }

    fn starts_with(
        self,
        worker: u32,
        handler: &str,
        event: u64,
        key: Option<&str>,
        attempt: u32,
        fence: u64,
    ) -> Self {
        let run = event * 1_000 + u64::from(attempt);
        let (handler, key) = (handler.to_owned(), key.map(str::to_owned));
        self.fact(Fact::RunStart { run, worker, handler, event, key, hash: event, attempt, fence })
    }

    fn starts(self, worker: u32, handler: &str, event: u64, attempt: u32) -> Self {
        self.starts_with(worker, handler, event, Some("k"), attempt, 0)
    }

    fn ends(self, worker: u32, event: u64, attempt: u32, end: RunEnd) -> Self {
        self.fact(Fact::RunEnd { run: event * 1_000 + u64::from(attempt), worker, end })
    }

    /// Runs on worker 1 from start to end.
    fn runs(self, handler: &str, event: u64, attempt: u32, end: RunEnd) -> Self {
        self.starts(1, handler, event, attempt).ends(1, event, attempt, end)
    }

    fn crash(self, worker: u32) -> Self {
        self.fact(Fact::WorkerCrash { worker })
    }

    fn dead_with(
        mut self,
        handler: &str,
        event: u64,
        reason: &str,
        failures: u32,
        change: impl Fn(&mut Dead),
    ) -> Self {
        let mut dead = Dead {
            handler: handler.into(),
            event,
            key: Some("k".into()),
            hash: event,
            reason: reason.into(),
            failures,
            errors: (1..=failures).collect(),
            holds_key: handler == "park",
        };
        change(&mut dead);
        self.dead.push(dead);
        self
    }

    fn exhausted(self, handler: &str, event: u64) -> Self {
        self.dead_with(handler, event, "exhausted", 2, |_| {})
    }

    fn pending(mut self, handler: &str, event: u64) -> Self {
        self.pending.push(Pending { handler: handler.into(), event, state: "ready".into() });
        self
    }

    /// On a backend that may store a call twice.
    fn on_one_that_sends_again(mut self) -> Self {
        self.stores_twice = true;
        self
    }

    fn violations(mut self) -> Vec<Violation> {
        let rest = Fact::Rest {
            pending: std::mem::take(&mut self.pending),
            dead_letters: std::mem::take(&mut self.dead),
        };
        self.violations_without_rest_after(rest)
    }

    fn violations_without_rest_after(self, rest: Fact) -> Vec<Violation> {
        let rules = |is_ordered, holds_key| HandlerRules { max_attempts: 2, is_ordered, holds_key };
        let handlers =
            [("hold", rules(true, false)), ("release", rules(false, false)), ("park", rules(true, true))];
        let handlers = handlers.into_iter().map(|(name, rules)| (name.to_owned(), rules)).collect();
        let rules = Rules { handlers, stores_twice: self.stores_twice };
        check(&self.fact(rest).history, &rules)
    }

    /// Must break exactly these promises.
    #[track_caller]
    fn breaks(self, kinds: &[Kind]) {
        let violations = self.violations();
        let found: Vec<_> = violations.iter().map(|violation| violation.kind).collect();
        let text: Vec<_> = violations.iter().map(ToString::to_string).collect();
        assert_eq!(found, kinds, "\n{}", text.join("\n"));
        assert!(
            violations.iter().all(|violation| !violation.evidence.is_empty()),
            "no evidence: {violations:?}"
        );
    }

    #[track_caller]
    fn breaks_nothing(self) {
        self.breaks(&[]);
    }
}

mod loss {
    use super::*;

    #[test]
    fn published_and_never_run_is_lost() {
        Story::new().publishes("hold", 1).breaks(&[Kind::Loss]);
        Story::new().publishes("hold", 1).runs("hold", 1, 1, RunEnd::Done).breaks_nothing();
    }

    #[test]
    fn one_handler_of_two_is_not_enough() {
        let mut event = Story::event(1, "hold", Some("k"));
        event.handlers.push("release".into());
        let call = Fact::PublishIntent { call: 1, publisher: 1, delay: 0, events: vec![event] };
        Story::new().fact(call).ok(1).runs("hold", 1, 1, RunEnd::Done).breaks(&[Kind::Loss]);
    }

    #[test]
    fn failed_and_never_tried_again_is_lost() {
        Story::new().publishes("hold", 1).runs("hold", 1, 1, FAIL).breaks(&[Kind::Loss]);
        Story::new()
            .publishes("hold", 1)
            .runs("hold", 1, 1, FAIL)
            .runs("hold", 1, 2, FAIL)
            .breaks(&[Kind::Loss]);
        let story = Story::new().publishes("hold", 1).runs("hold", 1, 1, FAIL).runs("hold", 1, 2, FAIL);
        story.exhausted("hold", 1).breaks_nothing();
    }

    #[test]
    fn a_run_that_was_cut_short_is_no_success() {
        let story = || Story::new().publishes("hold", 1).starts(1, "hold", 1, 1);
        story().crash(1).breaks(&[Kind::Loss]);
        story().ends(1, 1, 1, RunEnd::Done).crash(1).breaks_nothing();
    }

    #[test]
    fn what_is_left_pending_is_lost_even_after_a_success() {
        let story = || Story::new().publishes("hold", 1).runs("hold", 1, 1, RunEnd::Done);
        story().pending("hold", 1).breaks(&[Kind::Loss]);
    }

    #[test]
    fn an_unknown_publish_may_be_lost_but_not_left_over() {
        let story = || Story::new().calls("hold", Some("k"), &[1]).fact(Fact::PublishUnknown { call: 1 });
        story().breaks_nothing();
        story().runs("hold", 1, 1, RunEnd::Done).breaks_nothing();
        story().pending("hold", 1).breaks(&[Kind::Loss]);
    }

    #[test]
    fn what_the_store_was_allowed_to_lose_is_missed_by_nobody_and_holds_nobody_up() {
        let story = || Story::new().publishes("hold", 1).publishes("hold", 2);
        let lost = |story: Story| story.runs("hold", 2, 1, RunEnd::Done).fact(Fact::StoreLost { call: 1 });
        lost(story()).breaks_nothing();
        lost(story().publishes("hold", 3)).breaks(&[Kind::Loss]);
    }

    #[test]
    fn a_purged_dead_letter_is_not_lost() {
        let story = Story::new().publishes("hold", 1).runs("hold", 1, 1, RunEnd::Discard);
        story.fact(Fact::Purge { handler: "hold".into(), event: 1 }).breaks_nothing();
    }
}

mod phantom {
    use super::*;

    #[test]
    fn what_nobody_published_does_not_run() {
        Story::new().runs("hold", 1, 1, RunEnd::Done).breaks(&[Kind::Phantom]);
    }

    #[test]
    fn a_run_at_a_handler_it_was_not_for_is_a_phantom() {
        let story = Story::new().publishes("hold", 1).runs("hold", 1, 1, RunEnd::Done);
        story.runs("release", 1, 1, RunEnd::Done).breaks(&[Kind::Phantom]);
    }

    #[test]
    fn a_run_before_its_intent_is_a_phantom() {
        let story = Story::new().runs("hold", 1, 1, RunEnd::Done).publishes("hold", 1);
        story.breaks(&[Kind::Loss, Kind::Phantom]);
    }

    #[test]
    fn what_failed_to_publish_does_not_run_but_may_when_nobody_knows() {
        let story = || Story::new().calls("hold", Some("k"), &[1]);
        story().fact(Fact::PublishErr { call: 1 }).runs("hold", 1, 1, RunEnd::Done).breaks(&[Kind::Phantom]);
        story().runs("hold", 1, 1, RunEnd::Done).fact(Fact::PublishUnknown { call: 1 }).breaks_nothing();
    }

    #[test]
    fn another_payload_or_another_key_is_a_phantom() {
        let start = |key: &str, hash| Fact::RunStart {
            run: 1_001,
            worker: 1,
            handler: "hold".into(),
            event: 1,
            key: Some(key.into()),
            hash,
            attempt: 1,
            fence: 0,
        };
        let story = |start| Story::new().publishes("hold", 1).fact(start).ends(1, 1, 1, RunEnd::Done);
        story(start("k", 2)).breaks(&[Kind::Phantom]);
        story(start("l", 1)).breaks(&[Kind::Phantom]);
        story(start("k", 1)).breaks_nothing();
    }

    #[test]
    fn a_dead_letter_or_a_rest_of_nothing_is_a_phantom() {
        Story::new().exhausted("hold", 1).breaks(&[Kind::Phantom]);
        Story::new().pending("hold", 1).breaks(&[Kind::Phantom]);
        let story = Story::new().calls("hold", Some("k"), &[1]).fact(Fact::PublishErr { call: 1 });
        let story = story.fact(Fact::Purge { handler: "hold".into(), event: 2 });
        story.breaks(&[Kind::Phantom]);
    }

    #[test]
    fn garbage_never_runs_and_ends_in_the_dead_letters() {
        let story = || {
            let mut event = Story::event(1, "hold", Some("k"));
            event.is_garbage = true;
            Story::new()
                .fact(Fact::PublishIntent { call: 1, publisher: 1, delay: 0, events: vec![event] })
                .ok(1)
        };
        let dead = |story: Story| story.dead_with("hold", 1, "undecodable", 0, |dead| dead.errors = vec![1]);
        dead(story()).breaks_nothing();
        dead(story()).publishes("hold", 2).runs("hold", 2, 1, RunEnd::Done).breaks_nothing();
        dead(story().runs("hold", 1, 1, RunEnd::Done)).breaks(&[Kind::Phantom]);
        story().breaks(&[Kind::Loss]);
    }
}

mod exclusive {
    use super::*;

    #[test]
    fn two_runs_of_a_key_do_not_overlap() {
        let story = || Story::new().calls("release", Some("k"), &[1, 2]).ok(1);
        let overlap = story().starts(1, "release", 1, 1).starts(2, "release", 2, 1);
        overlap.ends(1, 1, 1, RunEnd::Done).ends(2, 2, 1, RunEnd::Done).breaks(&[Kind::Overlap]);
        story().runs("release", 1, 1, RunEnd::Done).runs("release", 2, 1, RunEnd::Done).breaks_nothing();
    }

    #[test]
    fn a_long_run_overlaps_with_the_one_after_the_next() {
        let story = Story::new().calls("release", Some("k"), &[1, 2, 3]).ok(1).starts(1, "release", 1, 1);
        let story = story.starts(2, "release", 2, 1).ends(2, 2, 1, RunEnd::Done);
        let story = story.starts(2, "release", 3, 1).ends(2, 3, 1, RunEnd::Done).ends(1, 1, 1, RunEnd::Done);
        story.breaks(&[Kind::Overlap, Kind::Overlap]);
    }

    #[test]
    fn the_same_key_of_another_handler_is_another_line() {
        let story = Story::new().publishes("hold", 1).publishes("release", 2);
        let story = story.starts(1, "hold", 1, 1).starts(1, "release", 2, 1);
        story.ends(1, 1, 1, RunEnd::Done).ends(1, 2, 1, RunEnd::Done).breaks_nothing();
    }

    #[test]
    fn free_deliveries_overlap_unless_they_are_the_same() {
        let story = |second| {
            let story = Story::new().free("hold", 1).free("hold", 2);
            let story =
                story.starts_with(1, "hold", 1, None, 1, 0).starts_with(2, "hold", second, None, 1, 0);
            story.ends(1, 1, 1, RunEnd::Done).ends(2, second, 1, RunEnd::Done)
        };
        story(2).breaks_nothing();
        story(1).breaks(&[Kind::Loss, Kind::Overlap, Kind::Repeat]);
    }

    #[test]
    fn a_crash_ends_runs_and_a_lost_session_does_not() {
        let story = || Story::new().publishes("hold", 1).starts(1, "hold", 1, 1);
        story().crash(1).starts(2, "hold", 1, 1).ends(2, 1, 1, RunEnd::Done).breaks_nothing();
        let lost = story().fact(Fact::SessionLost { worker: 1 }).starts(2, "hold", 1, 1);
        lost.ends(1, 1, 1, RunEnd::Cancelled).ends(2, 1, 1, RunEnd::Done).breaks(&[Kind::Overlap]);
        let lost = story().fact(Fact::SessionLost { worker: 1 }).ends(1, 1, 1, RunEnd::Cancelled);
        lost.starts(2, "hold", 1, 1).ends(2, 1, 1, RunEnd::Done).breaks_nothing();
    }

    #[test]
    fn a_fence_never_falls() {
        let story = |second| {
            let story = Story::new().publishes("hold", 1).publishes("hold", 2);
            let story = story.starts_with(1, "hold", 1, Some("k"), 1, 5).ends(1, 1, 1, RunEnd::Done);
            story.starts_with(2, "hold", 2, Some("k"), 1, second).ends(2, 2, 1, RunEnd::Done)
        };
        story(4).breaks(&[Kind::Fence]);
        story(5).breaks_nothing();
        story(6).breaks_nothing();
    }
}

mod order {
    use super::*;

    #[test]
    fn published_first_runs_first() {
        let story = |handler| {
            let story = Story::new().publishes(handler, 1).publishes(handler, 2);
            story.runs(handler, 2, 1, RunEnd::Done).runs(handler, 1, 1, RunEnd::Done)
        };
        story("hold").breaks(&[Kind::Order]);
        story("release").breaks_nothing();
    }

    #[test]
    fn overlapping_publishes_have_no_order() {
        let story = Story::new().calls("hold", Some("k"), &[1]).calls("hold", Some("k"), &[2]).ok(1).ok(2);
        story.runs("hold", 2, 1, RunEnd::Done).runs("hold", 1, 1, RunEnd::Done).breaks_nothing();
    }

    #[test]
    fn a_publish_whose_answer_was_lost_has_no_place_before_others() {
        let story = Story::new().calls("hold", Some("k"), &[1]).fact(Fact::PublishUnknown { call: 1 });
        let story = story.publishes("hold", 2);
        story.runs("hold", 2, 1, RunEnd::Done).runs("hold", 1, 1, RunEnd::Done).breaks_nothing();
    }

    #[test]
    fn a_batch_keeps_its_order_delayed_or_not() {
        for delay in [0, 10] {
            let story = || Story::new().calls_later("hold", Some("k"), &[1, 2], delay).ok(1);
            story().runs("hold", 2, 1, RunEnd::Done).runs("hold", 1, 1, RunEnd::Done).breaks(&[Kind::Order]);
            story().runs("hold", 1, 1, RunEnd::Done).runs("hold", 2, 1, RunEnd::Done).breaks_nothing();
        }
    }

    #[test]
    fn what_is_published_meanwhile_passes_a_delayed_event() {
        let story = Story::new().calls_later("hold", Some("k"), &[1], 500).ok(1).publishes("hold", 2);
        story.runs("hold", 2, 1, RunEnd::Done).runs("hold", 1, 1, RunEnd::Done).breaks_nothing();
    }

    #[test]
    fn another_key_does_not_wait() {
        let story = Story::new().publishes("hold", 1).calls("hold", Some("l"), &[2]).ok(2);
        let story = story.starts_with(1, "hold", 2, Some("l"), 1, 0).ends(1, 2, 1, RunEnd::Done);
        story.runs("hold", 1, 1, RunEnd::Done).breaks_nothing();
    }

    #[test]
    fn a_failed_head_holds_its_key() {
        let story = |handler| {
            let story = Story::new().publishes(handler, 1).publishes(handler, 2).runs(handler, 1, 1, FAIL);
            story.runs(handler, 2, 1, RunEnd::Done).runs(handler, 1, 2, RunEnd::Done)
        };
        story("hold").breaks(&[Kind::Order]);
        story("release").breaks_nothing();
    }

    #[test]
    fn a_snoozed_head_holds_its_key() {
        let story = Story::new().publishes("hold", 1).publishes("hold", 2);
        let story = story.runs("hold", 1, 1, RunEnd::Snooze { delay: 1 }).runs("hold", 2, 1, RunEnd::Done);
        story.runs("hold", 1, 1, RunEnd::Done).breaks(&[Kind::Order]);
    }

    #[test]
    fn an_exhausted_head_lets_its_key_go_on_unless_it_holds_it() {
        let story = |handler| {
            let story = Story::new().publishes(handler, 1).publishes(handler, 2).runs(handler, 1, 1, FAIL);
            let story = story.runs(handler, 1, 2, FAIL).exhausted(handler, 1);
            story.runs(handler, 2, 1, RunEnd::Done)
        };
        story("hold").breaks_nothing();
        story("park").breaks(&[Kind::Order]);
    }

    #[test]
    fn a_held_key_goes_on_after_a_purge_or_a_successful_replay() {
        let story = || {
            let story = Story::new().publishes("park", 1).publishes("park", 2);
            story.runs("park", 1, 1, RunEnd::Discard)
        };
        let purge = Fact::Purge { handler: "park".into(), event: 1 };
        let replay = Fact::Replay { handler: "park".into(), event: 1 };
        story().fact(purge.clone()).runs("park", 2, 1, RunEnd::Done).breaks_nothing();
        story().runs("park", 2, 1, RunEnd::Done).fact(purge).breaks(&[Kind::Order]);
        // The replayed run is the first attempt of a new life; story runs are told apart by their attempt.
        let again = |story: Story| story.starts(2, "park", 1, 1).ends(2, 1, 1, RunEnd::Done);
        again(story().fact(replay.clone())).runs("park", 2, 1, RunEnd::Done).breaks_nothing();
        again(story().fact(replay).runs("park", 2, 1, RunEnd::Done)).breaks(&[Kind::Order]);
    }

    #[test]
    fn a_replayed_dead_letter_joins_the_end_of_its_line() {
        let replay = Fact::Replay { handler: "hold".into(), event: 1 };
        let story =
            || Story::new().publishes("hold", 1).publishes("hold", 2).runs("hold", 1, 1, RunEnd::Discard);
        let again = |story: Story| story.starts(2, "hold", 1, 1).ends(2, 1, 1, RunEnd::Done);
        again(story().fact(replay.clone()).runs("hold", 2, 1, RunEnd::Done)).breaks_nothing();
        again(story().fact(replay.clone())).runs("hold", 2, 1, RunEnd::Done).breaks(&[Kind::Order]);
        let later = story().runs("hold", 2, 1, RunEnd::Done).fact(replay).publishes("hold", 3);
        again(later.runs("hold", 3, 1, RunEnd::Done)).breaks(&[Kind::Order]);
    }

    #[test]
    fn a_rewound_line_keeps_its_order() {
        let story = || {
            let story = Story::new().publishes("hold", 1).publishes("hold", 2);
            story.runs("hold", 1, 1, RunEnd::Done).runs("hold", 2, 1, RunEnd::Done).crash(1)
        };
        let run = |story: Story, event, attempt, end| {
            story.starts(2, "hold", event, attempt).ends(2, event, attempt, end)
        };
        let good = run(run(story(), 1, 1, RunEnd::Done), 2, 1, RunEnd::Done);
        good.breaks_nothing();
        // The head of the rewound line fails: what follows must wait, though it has all succeeded before.
        let bad = run(run(run(story(), 1, 1, FAIL), 2, 1, RunEnd::Done), 1, 2, RunEnd::Done);
        bad.breaks(&[Kind::Order]);
        let good = run(run(run(story(), 1, 1, FAIL), 1, 2, RunEnd::Done), 2, 1, RunEnd::Done);
        good.breaks_nothing();
    }

    #[test]
    fn a_head_that_died_of_crashes_lets_its_key_go_on() {
        let story = Story::new().publishes("hold", 1).publishes("hold", 2).starts(1, "hold", 1, 1).crash(1);
        let story = story.fact(Fact::WorkerStart { worker: 3 }).starts(3, "hold", 1, 1).crash(3);
        let story = story.starts(2, "hold", 1, 2).crash(2).fact(Fact::WorkerStart { worker: 4 });
        let story = story.starts(4, "hold", 2, 1).ends(4, 2, 1, RunEnd::Done);
        story.exhausted("hold", 1).breaks_nothing();
    }
}

mod attempts {
    use super::*;

    #[test]
    fn a_reported_failure_is_counted_once() {
        let story = |attempt| {
            let story = Story::new().publishes("hold", 1).runs("hold", 1, 1, FAIL);
            story.starts(2, "hold", 1, attempt).ends(2, 1, attempt, RunEnd::Done)
        };
        story(1).breaks(&[Kind::Attempts]);
        story(2).breaks_nothing();
        story(3).breaks(&[Kind::Attempts, Kind::Attempts]);
    }

    #[test]
    fn the_first_run_is_attempt_one() {
        Story::new().publishes("hold", 1).runs("hold", 1, 2, RunEnd::Done).breaks(&[Kind::Attempts]);
    }

    #[test]
    fn a_snooze_uses_up_no_attempt() {
        let story = |attempt| {
            let story = Story::new().publishes("hold", 1).runs("hold", 1, 1, RunEnd::Snooze { delay: 1 });
            story.starts(2, "hold", 1, attempt).ends(2, 1, attempt, RunEnd::Done)
        };
        story(1).breaks_nothing();
        story(2).breaks(&[Kind::Attempts]);
    }

    #[test]
    fn a_crash_may_lose_a_report_or_charge_an_attempt() {
        let story = |attempt| {
            let story = Story::new().publishes("hold", 1).starts(1, "hold", 1, 1).crash(1);
            story.starts(2, "hold", 1, attempt).ends(2, 1, attempt, RunEnd::Done)
        };
        story(1).breaks_nothing();
        story(2).breaks_nothing();
        let lost = Story::new().publishes("hold", 1).runs("hold", 1, 1, FAIL).crash(1);
        lost.starts(2, "hold", 1, 1).ends(2, 1, 1, RunEnd::Done).breaks_nothing();
    }

    #[test]
    fn the_crash_of_another_worker_loses_no_report() {
        let story = Story::new().publishes("hold", 1).runs("hold", 1, 1, FAIL).crash(2);
        let story = story.fact(Fact::WorkerStart { worker: 3 });
        story.starts(3, "hold", 1, 1).ends(3, 1, 1, RunEnd::Done).breaks(&[Kind::Attempts]);
    }

    #[test]
    fn a_lost_partition_loses_reports_of_its_handler_only() {
        let story = |lost: &str| {
            let story = Story::new().publishes("hold", 1).runs("hold", 1, 1, FAIL);
            let story = story.fact(Fact::PartitionLost { worker: 1, handler: lost.into() });
            story.starts(2, "hold", 1, 1).ends(2, 1, 1, RunEnd::Done)
        };
        story("hold").breaks_nothing();
        story("release").breaks(&[Kind::Attempts]);
    }

    #[test]
    fn one_run_more_than_attempts_and_no_more() {
        let run = |story: Story, worker: u32, attempt| {
            let story = story.fact(Fact::WorkerStart { worker }).starts(worker, "hold", 1, attempt);
            story.crash(worker)
        };
        let story = || run(run(run(Story::new().publishes("hold", 1), 3, 1), 4, 1), 5, 2);
        story().exhausted("hold", 1).breaks_nothing();
        run(story(), 6, 2).exhausted("hold", 1).breaks(&[Kind::Attempts]);
    }

    #[test]
    fn snoozes_and_clean_cancellations_are_not_among_the_counted_runs() {
        let mut story = Story::new().publishes("hold", 1);
        for end in
            [RunEnd::Snooze { delay: 1 }, RunEnd::Snooze { delay: 1 }, RunEnd::Cancelled, RunEnd::Cancelled]
        {
            story = story.runs("hold", 1, 1, end);
        }
        story.runs("hold", 1, 1, FAIL).runs("hold", 1, 2, RunEnd::Done).breaks_nothing();
    }

    #[test]
    fn a_retry_waits_for_its_delay() {
        let story = |delay| {
            let story = Story::new().publishes("hold", 1).runs("hold", 1, 1, RunEnd::Timeout { delay });
            story.runs("hold", 1, 2, RunEnd::Done)
        };
        story(101).breaks(&[Kind::Early]);
        story(100).breaks_nothing();
    }

    #[test]
    fn a_delayed_event_waits_for_its_delay() {
        let story = || Story::new().calls_later("hold", Some("k"), &[1], 1_000).ok(1);
        story().runs("hold", 1, 1, RunEnd::Done).breaks(&[Kind::Early]);
        story().wait(800).runs("hold", 1, 1, RunEnd::Done).breaks_nothing();
    }

    #[test]
    fn nothing_is_repeated_without_an_unclean_event() {
        let run = |story: Story| story.starts(2, "hold", 1, 1).ends(2, 1, 1, RunEnd::Done);
        let story = || Story::new().publishes("hold", 1).runs("hold", 1, 1, RunEnd::Done);
        run(story().fact(Fact::WorkerStop { worker: 1 })).breaks(&[Kind::Repeat]);
        run(story().fact(Fact::SessionLost { worker: 1 })).breaks_nothing();
        run(story().fact(Fact::SessionLost { worker: 2 })).breaks(&[Kind::Repeat]);
    }

    #[test]
    fn a_worker_that_has_ended_runs_nothing() {
        let stop = Fact::WorkerStop { worker: 1 };
        let story = || Story::new().publishes("hold", 1);
        story().fact(stop.clone()).runs("hold", 1, 1, RunEnd::Done).breaks(&[Kind::Zombie]);
        story().crash(1).runs("hold", 1, 1, RunEnd::Done).breaks(&[Kind::Zombie]);
        let unfinished = story().starts(1, "hold", 1, 1).fact(stop);
        unfinished.ends(1, 1, 1, RunEnd::Done).breaks(&[Kind::Loss, Kind::Zombie]);
    }
}

mod dead_letters {
    use super::*;

    fn failed() -> Story {
        Story::new().publishes("hold", 1).runs("hold", 1, 1, FAIL)
    }

    fn exhausted() -> Story {
        failed().runs("hold", 1, 2, FAIL)
    }

    #[test]
    fn nothing_is_given_up_early() {
        failed().exhausted("hold", 1).breaks(&[Kind::DeadLetter]);
        failed().dead_with("hold", 1, "exhausted", 1, |_| {}).breaks(&[Kind::DeadLetter, Kind::DeadLetter]);
        exhausted().exhausted("hold", 1).breaks_nothing();
        // With a crash after it, a further attempt may have been charged.
        failed().crash(1).exhausted("hold", 1).breaks_nothing();
    }

    #[test]
    fn nothing_dies_unrun() {
        let lost = |story: Story| story.fact(Fact::SessionLost { worker: 1 });
        let story = || lost(lost(Story::new().publishes("hold", 1)));
        story().exhausted("hold", 1).breaks(&[Kind::DeadLetter]);
        // The first loss is free and each later one may charge a recorded start: with three this can be honest.
        lost(story()).exhausted("hold", 1).breaks_nothing();
    }

    #[test]
    fn what_succeeded_is_not_dead() {
        let story = || Story::new().publishes("hold", 1).runs("hold", 1, 1, RunEnd::Done);
        story().exhausted("hold", 1).breaks(&[Kind::DeadLetter]);
        story().crash(1).exhausted("hold", 1).breaks_nothing();
    }

    #[test]
    fn a_dead_letter_is_complete() {
        let changed = |change: fn(&mut Dead)| exhausted().dead_with("hold", 1, "exhausted", 2, change);
        changed(|dead| dead.errors.clear()).breaks(&[Kind::DeadLetter, Kind::DeadLetter]);
        changed(|dead| dead.errors = vec![1]).breaks(&[Kind::DeadLetter]);
        changed(|dead| dead.hash = 9).breaks(&[Kind::DeadLetter]);
        changed(|dead| dead.key = None).breaks(&[Kind::DeadLetter]);
        changed(|dead| dead.holds_key = true).breaks(&[Kind::DeadLetter]);
        changed(|dead| dead.reason = "tired".into()).breaks(&[Kind::DeadLetter]);
        changed(|dead| dead.reason = "undecodable".into()).breaks(&[Kind::DeadLetter]);
        changed(|dead| dead.errors = vec![2]).breaks_nothing();
    }

    #[test]
    fn one_delivery_makes_one_dead_letter() {
        exhausted().exhausted("hold", 1).exhausted("hold", 1).breaks(&[Kind::DeadLetter]);
    }

    #[test]
    fn only_a_discarded_one_is_called_discarded() {
        let dead = |story: Story| story.dead_with("hold", 1, "discarded", 2, |_| {});
        dead(exhausted()).breaks(&[Kind::DeadLetter]);
        dead(failed().runs("hold", 1, 2, RunEnd::Discard)).breaks_nothing();
    }
}

mod copies {
    use super::*;

    /// A call, in the middle of which something is lost or not; its event then runs twice, each time from its first attempt.
    fn twice(lost: bool) -> Story {
        let story = Story::new().calls("hold", Some("k"), &[1]);
        let story = if lost { story.fact(Fact::SessionLost { worker: 2 }) } else { story };
        story.ok(1).runs("hold", 1, 1, FAIL).runs("hold", 1, 2, RunEnd::Done).runs("hold", 1, 1, RunEnd::Done)
    }

    #[test]
    fn a_call_under_way_when_connections_were_lost_may_be_stored_twice() {
        twice(true).on_one_that_sends_again().breaks_nothing();
        twice(true).breaks(&[Kind::Attempts, Kind::Repeat]);
        twice(false).on_one_that_sends_again().breaks(&[Kind::Attempts, Kind::Repeat]);
    }

    #[test]
    fn each_of_two_copies_may_die_and_no_more() {
        let dead = |copies: usize| {
            let story =
                Story::new().calls("hold", Some("k"), &[1]).fact(Fact::SessionLost { worker: 2 }).ok(1);
            let story = story.runs("hold", 1, 1, RunEnd::Discard).on_one_that_sends_again();
            (0..copies).fold(story, |story, _| story.dead_with("hold", 1, "discarded", 1, |_| {}))
        };
        dead(2).breaks_nothing();
        dead(3).breaks(&[Kind::DeadLetter]);
    }

    #[test]
    fn a_copy_runs_in_its_turn() {
        let story = Story::new().calls("hold", Some("k"), &[1]).fact(Fact::SessionLost { worker: 2 }).ok(1);
        let story = story.publishes("hold", 2).runs("hold", 1, 1, RunEnd::Done);
        let between = story.starts(1, "hold", 2, 1).starts(1, "hold", 1, 2).ends(1, 1, 2, RunEnd::Done);
        let story = between.ends(1, 2, 1, RunEnd::Done).on_one_that_sends_again();
        story.breaks(&[Kind::Overlap]);
    }
}

#[test]
fn a_history_without_its_end_is_malformed() {
    let violations = Story::new().violations_without_rest_after(Fact::WorkerStop { worker: 1 });
    assert_eq!(violations.iter().map(|violation| violation.kind).collect::<Vec<_>>(), [Kind::Malformed]);
}

#[test]
fn records_out_of_time_and_handlers_without_rules_are_malformed() {
    let mut story = Story::new();
    story.time = 0;
    story.breaks(&[Kind::Malformed]);
    let story = Story::new().publishes("unheard", 1).runs("unheard", 1, 1, RunEnd::Done);
    story.breaks(&[Kind::Malformed]);
}

/// A hundred thousand deliveries of ten keys: quadratic work would take minutes.
#[test]
fn a_long_history_is_checked_in_one_pass() {
    let mut story = Story::new();
    for event in 1..=100_000 {
        let key = format!("k{}", event % 10);
        story = story.calls("hold", Some(&key), &[event]).ok(event);
    }
    for event in 1..=100_000 {
        let key = format!("k{}", event % 10);
        story = story.starts_with(1, "hold", event, Some(&key), 1, 1).ends(1, event, 1, RunEnd::Done);
    }
    story.breaks_nothing();
}
