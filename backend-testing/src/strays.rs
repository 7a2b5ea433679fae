//! Publish calls that belong to no test: counted and named, so that they do not vanish.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use event_bus_core::backend::Watched;

use crate::Mode;
use crate::record::{Record, list};

/// How many are remembered; of older ones only the number is left.
const KEEPS: usize = 100;

#[derive(Default)]
pub(crate) struct Strays {
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    count: u64,
    last: VecDeque<Record>,
}

impl Strays {
    pub(crate) fn note(&self, call: &Watched) {
        let mut seen = self.lock();
        for record in Record::of_call(call, Mode::Default) {
            seen.count += 1;
            if seen.last.len() == KEEPS {
                seen.last.pop_front();
            }
            seen.last.push_back(record);
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.lock().count
    }

    /// Adds those since `count` was asked to the text of a failure.
    pub(crate) fn explain(&self, since: u64, text: &mut String) {
        let seen = self.lock();
        let new = usize::try_from(seen.count.saturating_sub(since)).unwrap_or(usize::MAX);
        let heading = format!(
            "{new} event(s) were published meanwhile by code that belongs to no test (join a spawned task with \
             `.in_test(&test)`, a thread with `test.on_thread(..)`, or hand out `test.bus()`)"
        );
        list(text, &heading, seen.last.iter().skip(seen.last.len().saturating_sub(new)));
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        // The count and the list are changed together; at worst a panic leaves one name out.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
