//! Finds in a history what must not happen: one [`Kind`] of violation per promise.
//!
//! The checker knows nothing of how a store or the engine works. It knows what was published, what ran, what is left,
//! and the *unclean events*: a crash, a lost session, a lost partition, a stall. Only after one of these may something
//! that had run run again, and only of the worker that it happened to.
//!
//! Everything is one pass over sorted positions: a million records take seconds.

mod attempts;
mod dead_letters;
mod exclusive;
mod index;
mod loss;
mod order;
mod phantom;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;

use crate::history::{History, Record};
use index::Index;

/// What a history is held against.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// The handlers, by name. A handler that is missing here but occurs in the history is a violation.
    pub handlers: HashMap<String, HandlerRules>,
    /// A call that was under way when connections were lost (an unclean event of any worker says so) may be stored twice: the
    /// backend sends again what was not confirmed, and knows no idempotency keys. Of such a call each copy has its own
    /// attempts.
    pub stores_twice: bool,
}

/// What a handler's options promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandlerRules {
    /// How often a delivery may be tried.
    pub max_attempts: u32,
    /// Whether a failed delivery holds its key (`Order::Hold`).
    pub is_ordered: bool,
    /// Whether an exhausted delivery holds its key (`Exhausted::HoldKey`).
    pub holds_key: bool,
}

/// Which promise is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The history contradicts itself: the test is wrong, not the bus.
    Malformed,
    /// *durable-before-ok*: published, but neither done nor dead at the end.
    Loss,
    /// Something ran that nobody published, or not as it was published.
    Phantom,
    /// *one-at-a-time*: two runs of one key, or of one delivery, at once.
    Overlap,
    /// A fence went back.
    Fence,
    /// *key-order*: a later delivery of a key started before an earlier one was through.
    Order,
    /// *bounded-attempts*: too many runs, or an attempt counted wrongly.
    Attempts,
    /// A run before its time.
    Early,
    /// *dead-letters*: one that must not be there, or is incomplete.
    DeadLetter,
    /// *drain*: something was repeated without an unclean event.
    Repeat,
    /// A worker that has ended goes on.
    Zombie,
}

/// A broken promise, with the records that show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which promise.
    pub kind: Kind,
    /// What happened, in a sentence.
    pub text: String,
    /// The records, in the order of time.
    pub evidence: Vec<Record>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.text)?;
        for record in &self.evidence {
            write!(f, "\n    {record}")?;
        }
        Ok(())
    }
}

/// Everything in `history` that breaks `rules`, in the order of kinds. Empty: all promises were kept.
///
/// The history must be complete (end with [`Fact::Rest`](crate::history::Fact::Rest)) and sorted by time.
pub fn check(history: &History, rules: &Rules) -> Vec<Violation> {
    let mut found = Found { history, violations: Vec::new() };
    let index = Index::new(rules, &mut found);
    loss::check(&index, &mut found);
    phantom::check(&index, &mut found);
    exclusive::check(&index, &mut found);
    order::check(&index, &mut found);
    attempts::check(&index, &mut found);
    dead_letters::check(&index, &mut found);
    let mut violations = found.violations;
    violations.sort_by_key(|violation| violation.kind);
    violations
}

/// The violations found so far.
struct Found<'h> {
    history: &'h History,
    violations: Vec<Violation>,
}

impl Found<'_> {
    /// Adds a violation; `evidence` are positions of records, in any order.
    fn add(&mut self, kind: Kind, text: impl Into<String>, evidence: impl IntoIterator<Item = usize>) {
        let mut positions: Vec<_> = evidence.into_iter().collect();
        positions.sort_unstable();
        positions.dedup();
        let evidence = positions.iter().filter_map(|at| self.history.records.get(*at)).cloned().collect();
        self.violations.push(Violation { kind, text: text.into(), evidence });
    }
}
