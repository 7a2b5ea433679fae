//! Publishes.

use std::time::Duration;

use event_bus::prelude::*;

use super::ledger::{Ledger, published};
use super::options::Options;
use crate::history::Fact;
use crate::suite::actor::{FIRST, SECOND, THIRD};
use crate::suite::{Act, Note, note};

/// The handlers of a node.
pub(crate) const HANDLERS: [&str; 3] = [FIRST, SECOND, THIRD];

/// Events and calls of one process are numbered from here.
fn first_number(process: u32) -> u64 {
    u64::from(process) * 1_000_000
}

/// Those of its handlers from here.
pub(super) fn first_number_of_handlers(process: u32) -> u64 {
    first_number(process) + 500_000
}

/// What a process publishes: so many events in calls of `batch` over `keys`.
pub(crate) fn notes_of(
    process: u32,
    count: u64,
    keys: u64,
    batch: u64,
    acts_of: Option<&fastrand::Rng>,
) -> Vec<Note> {
    let first = first_number(process);
    let mut random = acts_of.cloned();
    (0..count)
        .map(|position| {
            let key = format!("k{}", position / batch % keys);
            // One handler sees all, the other every third key.
            let mut note = note(first + position).key(key);
            if let Some(random) = &mut random {
                note = note.acts(acts(random));
            }
            if (position / batch % keys).is_multiple_of(3) { note } else { note.read_by(FIRST) }
        })
        .collect()
}

/// The idempotency key of a call of a process.
pub(crate) fn idempotency_key(process: u32, call: u64) -> String {
    format!("{process}-{call}")
}

pub(super) async fn publish(bus: &EventBus, ledger: &Ledger, options: &Options) {
    let first = first_number(options.number);
    let notes = notes_of(options.number, options.publish, options.keys, options.batch, options.acts.as_ref());
    for (call, batch) in (first..).zip(notes.chunks(usize::try_from(options.batch).unwrap_or(1))) {
        match options.is_idempotent {
            true => publish_until_known(bus, ledger, call, options.number, batch).await,
            false => publish_call(bus, ledger, call, options.number, batch).await,
        }
        tokio::time::sleep(options.pause).await;
    }
}

/// What a handler does with an event: most often it succeeds at once.
fn acts(random: &mut fastrand::Rng) -> Vec<Act> {
    let moment = Duration::from_millis(random.u64(1..30));
    match random.u32(0..40) {
        0 => vec![Act::Fail],
        1 => vec![Act::Fail, Act::Fail],
        2 => vec![Act::Panic],
        3 => vec![Act::Fail, Act::Panic, Act::Fail],
        4 => vec![Act::Discard],
        5 => vec![Act::FailFor(moment)],
        6 => vec![Act::Snooze(moment)],
        7 => vec![Act::Block(moment)],
        8..20 => vec![Act::Sleep(moment)],
        _ => Vec::new(),
    }
}

/// Publishes in one call that is made again, under one idempotency key, until somebody knows what became of it.
async fn publish_until_known(bus: &EventBus, ledger: &Ledger, call: u64, publisher: u32, notes: &[Note]) {
    let events = notes.iter().map(|note| published(note, &HANDLERS)).collect();
    ledger.write(Fact::PublishIntent { call, publisher, delay: 0, events });
    let key = idempotency_key(publisher, call);
    while let Err(error) = bus.publish_all(notes).idempotency_key(&*key).await {
        if !error.is_transient() && error.kind() != event_bus::ErrorKind::OutcomeUnknown {
            eprintln!("publish failed: {}", event_bus::chain(&error));
            ledger.write(Fact::PublishErr { call });
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ledger.write(Fact::PublishOk { call });
}

/// Publishes in one call, and writes down what became of it.
pub(crate) async fn publish_call(bus: &EventBus, ledger: &Ledger, call: u64, publisher: u32, notes: &[Note]) {
    let events = notes.iter().map(|note| published(note, &HANDLERS)).collect();
    ledger.write(Fact::PublishIntent { call, publisher, delay: 0, events });
    ledger.write(match bus.publish_all(notes).await {
        Ok(_) => Fact::PublishOk { call },
        Err(error) if error.kind() == event_bus::ErrorKind::OutcomeUnknown => Fact::PublishUnknown { call },
        Err(error) => {
            eprintln!("publish failed: {}", event_bus::chain(&error));
            Fact::PublishErr { call }
        }
    });
}
