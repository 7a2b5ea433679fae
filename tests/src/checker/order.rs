//! *key-order*: no run of a later delivery of a key starts before the earlier one is through.
//!
//! One delivery comes before another if its publish call had returned before the other's was made, or if it stands before
//! it in the same batch. It is *through* while its latest run has brought it to an end: a success, or the last attempt of
//! a handler whose dead letters hold nothing. A repeated run (after an unclean event) opens it again, until that run has
//! ended as well: a rewound line keeps its order.

use std::collections::{BTreeSet, HashMap};

use super::index::{Delivery, Index, NEVER, Run};
use super::{Found, Kind};
use crate::history::RunEnd;

pub(super) fn check(index: &Index<'_>, found: &mut Found<'_>) {
    let mut lanes: HashMap<(u32, &str), Vec<usize>> = HashMap::new();
    for (position, delivery) in index.deliveries.iter().enumerate() {
        if let Some(key) = delivery.event.key.as_deref().filter(|_| index.rules(delivery.handler).is_ordered)
        {
            lanes.entry((delivery.handler, key)).or_default().push(position);
        }
    }
    let mut lanes: Vec<_> = lanes.into_values().collect();
    lanes.sort_unstable();
    for lane in lanes {
        check_lane(index, &lane, found);
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// A run of the delivery starts.
    Start,
    /// It was replayed: its place is here now.
    Replayed,
    /// It is through.
    Through,
}

fn check_lane(index: &Index<'_>, lane: &[usize], found: &mut Found<'_>) {
    let mut steps = Vec::new();
    let mut open = Open::default();
    for position in lane {
        let delivery = &index.deliveries[*position];
        if !steps_of(index, delivery, *position, &mut steps) {
            open.insert(delivery, None, *position);
        }
    }
    steps.sort_unstable();
    let mut places: HashMap<usize, usize> = HashMap::new();
    for (at, step, position) in steps {
        let delivery = &index.deliveries[position];
        let place = places.get(&position).copied();
        match step {
            Step::Start => {
                if let Some(before) = open.before(delivery, place) {
                    report(index, at, delivery, &index.deliveries[before], found);
                }
                open.insert(delivery, place, position);
            }
            Step::Through => open.remove(delivery, place, position),
            Step::Replayed => {
                places.insert(position, at);
                open.insert(delivery, Some(at), position);
            }
        }
    }
}

fn report(index: &Index<'_>, at: usize, later: &Delivery<'_>, first: &Delivery<'_>, found: &mut Found<'_>) {
    let text = format!("a run of {} started before {} was through", index.name(later), index.name(first));
    let runs = first.runs.iter().map(|run| &index.runs[*run]);
    let runs = runs.flat_map(|run| [run.start, run.end]).filter(|run| *run != NEVER);
    let calls = [first.call.intent, later.call.intent, at];
    found.add(Kind::Order, text, runs.chain(calls).chain(first.call.ok));
}

/// Adds the steps of a delivery. Answers whether it never holds anybody up: what cannot be decoded does not.
fn steps_of(
    index: &Index<'_>,
    delivery: &Delivery<'_>,
    position: usize,
    steps: &mut Vec<(usize, Step, usize)>,
) -> bool {
    let rules = index.rules(delivery.handler);
    let is_gone = !delivery.dead.is_empty() || delivery.purged.is_some();
    let lives = index.lives(delivery);
    let last_life = lives.len() - 1;
    for (life, (began, runs)) in lives.iter().enumerate() {
        // A held dead letter comes back in its old place; another one joins the end of its line.
        if life > 0 && !rules.holds_key {
            steps.push((*began, Step::Replayed, position));
        }
        let ended_dead = life < last_life || is_gone;
        if runs.is_empty() && ended_dead && !rules.holds_key {
            steps.push((*began, Step::Through, position));
        }
        for (number, run) in runs.iter().enumerate() {
            steps.push((run.start, Step::Start, position));
            let is_last = number + 1 == runs.len();
            let died = is_last && ended_dead || is_last_attempt(run, rules.max_attempts);
            let is_through = run.how == Some(RunEnd::Done) || died && !rules.holds_key;
            if is_through && run.end != NEVER {
                steps.push((run.end, Step::Through, position));
            }
        }
    }
    if let Some(purged) = delivery.purged {
        steps.push((purged, Step::Through, position));
    }
    delivery.event.is_garbage
}

fn is_last_attempt(run: &Run<'_>, max_attempts: u32) -> bool {
    match run.how {
        Some(RunEnd::Discard) => true,
        Some(end) => end.failure().is_some() && run.attempt >= max_attempts,
        None => false,
    }
}

/// The deliveries of a lane that are not through, by what orders them.
#[derive(Default)]
struct Open {
    /// By the return of their calls, or by their replays. Delayed ones have no place and are not here.
    calls: BTreeSet<(usize, usize)>,
    /// By their place in each batch. Replayed ones have left it.
    batches: HashMap<u64, BTreeSet<(usize, usize)>>,
}

impl Open {
    fn insert(&mut self, delivery: &Delivery<'_>, replayed: Option<usize>, position: usize) {
        let undelayed = delivery.call.ok.filter(|_| delivery.call.delay == 0);
        if let Some(place) = replayed.or(undelayed) {
            self.calls.insert((place, position));
        }
        // What ran was stored, whatever the call answered.
        if replayed.is_none() && (delivery.call.ok.is_some() || !delivery.runs.is_empty()) {
            self.batches.entry(delivery.call.number).or_default().insert((delivery.batch, position));
        }
    }

    fn remove(&mut self, delivery: &Delivery<'_>, replayed: Option<usize>, position: usize) {
        if let Some(place) = replayed.or(delivery.call.ok) {
            self.calls.remove(&(place, position));
        }
        if let Some(batch) = self.batches.get_mut(&delivery.call.number) {
            batch.remove(&(delivery.batch, position));
        }
    }

    /// A delivery that is not through and comes before this one.
    fn before(&self, delivery: &Delivery<'_>, replayed: Option<usize>) -> Option<usize> {
        let made = replayed.unwrap_or(delivery.call.intent);
        let call = self.calls.first().filter(|(place, _)| *place < made);
        let batch = || {
            let batch = self.batches.get(&delivery.call.number).filter(|_| replayed.is_none())?;
            batch.first().filter(|(at, _)| *at < delivery.batch)
        };
        call.or_else(batch).map(|(_, position)| *position)
    }
}
