//! *bounded-attempts*: how often a delivery ran, as which attempt, and when; *drain*: nothing is repeated without a reason.
//!
//! An unclean event may lose the report of the last run of its worker (that attempt is then made again), and may charge
//! one attempt whose start was recorded (that number is then passed over). Nothing else changes the count.

use super::index::{Delivery, Index, NEVER, Run};
use super::{Found, Kind};
use crate::history::RunEnd;

pub(super) fn check(index: &Index<'_>, found: &mut Found<'_>) {
    // Two copies cannot be told apart, nor their runs.
    for delivery in index.deliveries.iter().filter(|delivery| !delivery.call.is_doubled) {
        for (began, runs) in index.lives(delivery) {
            check_life(index, delivery, began, &runs, found);
        }
    }
}

fn check_life(
    index: &Index<'_>,
    delivery: &Delivery<'_>,
    began: usize,
    runs: &[&Run<'_>],
    found: &mut Found<'_>,
) {
    let name = index.name(delivery);
    let max_attempts = index.rules(delivery.handler).max_attempts;
    if let Some(first) = runs.first() {
        let highest = index.count_unclean(delivery.handler, began, first.start).saturating_add(1);
        check_number(&name, 1..=highest, first, [began], found);
        let delay = if began == delivery.call.intent { delivery.call.delay } else { 0 };
        check_delay(index, &name, began, delay, first, found);
    }
    for pair in runs.windows(2) {
        check_pair(index, delivery, pair[0], pair[1], found);
    }
    for run in runs.iter().filter(|run| run.attempt > max_attempts) {
        let text = format!("{name} ran as attempt {} of {max_attempts}", run.attempt);
        found.add(Kind::Attempts, text, [run.start]);
    }
    let counted: Vec<_> = runs.iter().filter(|run| counts(index, run)).collect();
    if counted.len() as u64 > u64::from(max_attempts) + 1 {
        let text = format!("{name} ran {} times; max_attempts is {max_attempts}", counted.len());
        found.add(Kind::Attempts, text, counted.iter().map(|run| run.start));
    }
}

/// Whether a run is one of the `max_attempts + 1`: a snoozed one is not, nor one that a shutdown cut short.
fn counts(index: &Index<'_>, run: &Run<'_>) -> bool {
    match run.how {
        Some(RunEnd::Snooze { .. }) => false,
        Some(RunEnd::Cancelled) => index.lost_its_right(run),
        _ => true,
    }
}

fn check_pair(
    index: &Index<'_>,
    delivery: &Delivery<'_>,
    run: &Run<'_>,
    next: &Run<'_>,
    found: &mut Found<'_>,
) {
    let name = index.name(delivery);
    let unclean = index.unclean(run, run.start, next.start);
    let evidence = || [run.start, run.end].into_iter().chain(unclean).filter(|at| *at != NEVER);
    let (reported, delay) = match run.how {
        Some(RunEnd::Done | RunEnd::Discard) => {
            if unclean.is_none() {
                let text = format!("{name} ran again after it was done, without an unclean event");
                found.add(Kind::Repeat, text, evidence().chain([next.start]));
            }
            (run.attempt, 0)
        }
        Some(RunEnd::Snooze { delay }) => (run.attempt, delay),
        Some(RunEnd::Cancelled) | None => (run.attempt, 0),
        Some(end) => (run.attempt.saturating_add(1), end.failure().unwrap_or(0)),
    };
    let charges = index.count_unclean(delivery.handler, run.start, next.start);
    let lowest = if unclean.is_some() { run.attempt } else { reported };
    check_number(&name, lowest..=reported.saturating_add(charges), next, evidence(), found);
    if unclean.is_none() && run.end != NEVER {
        check_delay(index, &name, run.end, delay, next, found);
    }
}

fn check_number(
    name: &impl std::fmt::Display,
    allowed: std::ops::RangeInclusive<u32>,
    run: &Run<'_>,
    evidence: impl IntoIterator<Item = usize>,
    found: &mut Found<'_>,
) {
    if !allowed.contains(&run.attempt) {
        let (lowest, highest) = (allowed.start(), allowed.end());
        let expected = if lowest == highest { lowest.to_string() } else { format!("{lowest} to {highest}") };
        let text = format!("{name} ran as attempt {}, expected was {expected}", run.attempt);
        found.add(Kind::Attempts, text, evidence.into_iter().chain([run.start]));
    }
}

fn check_delay(
    index: &Index<'_>,
    name: &impl std::fmt::Display,
    from: usize,
    delay: u64,
    run: &Run<'_>,
    found: &mut Found<'_>,
) {
    let waited = index.time(run.start).saturating_sub(index.time(from));
    if waited < delay {
        let text = format!("{name} ran after {waited} ns; it should have waited {delay} ns");
        found.add(Kind::Early, text, [from, run.start]);
    }
}
