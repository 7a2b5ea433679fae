//! Publishes events that succeed.

use event_bus::prelude::*;

use super::ledger::{Ledger, published};
use super::options::Options;
use crate::history::Fact;
use crate::suite::actor::{FIRST, SECOND};
use crate::suite::{Note, note};

/// The handlers of a node.
pub(crate) const HANDLERS: [&str; 2] = [FIRST, SECOND];

/// Events and calls of one process are numbered from here.
fn first_number(process: u32) -> u64 {
    u64::from(process) * 1_000_000
}

pub(super) async fn publish(bus: &EventBus, ledger: &Ledger, options: &Options) {
    let first = first_number(options.number);
    let notes: Vec<_> = (0..options.publish)
        .map(|position| {
            let key = format!("k{}", position / options.batch % options.keys);
            // One handler sees all, the other every third key.
            let note = note(first + position).key(key);
            if (position / options.batch % options.keys).is_multiple_of(3) {
                note
            } else {
                note.read_by(FIRST)
            }
        })
        .collect();
    for (call, batch) in (first..).zip(notes.chunks(usize::try_from(options.batch).unwrap_or(1))) {
        publish_call(bus, ledger, call, options.number, batch).await;
    }
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
