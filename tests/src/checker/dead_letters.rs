//! *dead-letters*: exactly what was exhausted, discarded or undecodable lies there, and all of it.

use super::index::{Delivery, Index, NEVER, Run};
use super::{Found, Kind};
use crate::history::{Dead, RunEnd};

pub(super) fn check(index: &Index<'_>, found: &mut Found<'_>) {
    for delivery in index.deliveries.iter().filter(|delivery| !delivery.dead.is_empty()) {
        let lives = index.lives(delivery);
        let Some((began, runs)) = lives.last() else { continue };
        if delivery.dead.len() > 1 + usize::from(delivery.call.is_doubled) {
            let text =
                format!("{} lies in the dead letters {} times", index.name(delivery), delivery.dead.len());
            found.add(Kind::DeadLetter, text, delivery.dead.iter().map(|(at, _)| *at));
        }
        for (at, dead) in &delivery.dead {
            let evidence = runs.iter().flat_map(|run| [run.start, run.end]).filter(|end| *end != NEVER);
            let evidence: Vec<_> =
                [*began].into_iter().chain(evidence).chain(delivery.replays.iter().copied()).collect();
            for problem in problems(index, delivery, dead, *at, *began, runs) {
                let text = format!("the dead letter of {} {problem}: {dead:?}", index.name(delivery));
                found.add(Kind::DeadLetter, text, evidence.iter().copied());
            }
        }
    }
}

fn problems(
    index: &Index<'_>,
    delivery: &Delivery<'_>,
    dead: &Dead,
    at: usize,
    began: usize,
    runs: &[&Run<'_>],
) -> Vec<String> {
    let mut problems = Vec::new();
    let mut claim = |is_true: bool, otherwise: &str| {
        if !is_true {
            problems.push(otherwise.to_owned());
        }
    };
    let rules = index.rules(delivery.handler);
    claim(dead.hash == delivery.event.hash, "has another payload");
    claim(dead.key == delivery.event.key, "has another key");
    claim(!dead.errors.is_empty(), "has no error");
    let is_undecodable = dead.reason == "undecodable";
    // What was never decoded can be exhausted all the same, by workers that vanished.
    let is_lost =
        dead.reason == "exhausted" && index.count_unclean(delivery.handler, began, at) > dead.failures;
    let is_right = is_undecodable == delivery.event.is_garbage || (delivery.event.is_garbage && is_lost);
    claim(is_right, "has the wrong reason");
    let holds_key = rules.holds_key && delivery.event.key.is_some() && !is_undecodable;
    claim(dead.holds_key == holds_key, if holds_key { "does not hold its key" } else { "holds its key" });
    if is_undecodable {
        return problems;
    }
    claim(dead.errors.last() == Some(&dead.failures), "does not end with the error of its last failure");
    if delivery.call.is_doubled {
        // Which of the runs were of this copy nobody knows.
        return problems;
    }
    let last = runs.last();
    // After an unclean event of its worker nobody knows how the last run was stored.
    let is_certain = |run: &&&Run<'_>| index.unclean(run, run.start, at).is_none();
    match dead.reason.as_str() {
        "exhausted" => {
            claim(dead.failures >= rules.max_attempts, "still had attempts");
            // The first loss is free; each later one may charge a start that was recorded and never came to be.
            let charges = index.count_unclean(delivery.handler, began, at);
            claim(last.is_some() || charges > dead.failures, "was never run");
            let is_last = last.filter(is_certain).is_none_or(|run| {
                let has_failed = run.how.is_some_and(|end| end.failure().is_some());
                let reported = run.attempt.saturating_sub(u32::from(!has_failed));
                let charges = index.count_unclean(delivery.handler, run.start, at);
                reported.saturating_add(charges) >= rules.max_attempts
            });
            claim(is_last, "was given up, though its last run was not a last failure");
        }
        "discarded" => {
            claim(last.is_some(), "was never run");
            let is_discarded = last.filter(is_certain).is_none_or(|run| run.how == Some(RunEnd::Discard));
            claim(is_discarded, "was not discarded by its last run");
        }
        _ => claim(false, "has a reason nobody knows"),
    }
    problems
}
