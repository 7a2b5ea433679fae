//! What the owner of a queue remembers beside it: failures, waits and starts of the deliveries it holds, how often the queue
//! changed hands, and whether each owner left in peace.
//!
//! The journal is one message in a queue of its own that keeps exactly the newest. It is written, and the write confirmed,
//! before an outcome that it must outlive is called stored. It is small: only deliveries that failed, or whose start was
//! recorded, have an entry.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use event_bus_core::backend::{AttemptError, ErrorLog, EventId, Timestamp};
use event_bus_core::{ErrorKind, Result, codec};
use serde::{Deserialize, Serialize};

use crate::error::error;
use crate::wire::Parcel;

/// A journal that grows over this loses the texts of all errors but the newest of each delivery. What decides (failures,
/// starts, waits) is never lost.
const MAX_BYTES: usize = 512 * 1024;

/// What is remembered of one delivery.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Entry {
    pub(crate) failures: u32,
    /// The attempt whose start was recorded; 0 if none is open.
    pub(crate) started: u32,
    pub(crate) due_at: Option<Timestamp>,
    pub(crate) errors: ErrorLog,
}

/// The journal of one queue.
#[derive(Clone, Debug, Default)]
pub(crate) struct Journal {
    /// Counts the owners: the fence of their deliveries.
    pub(crate) epoch: u64,
    /// How the last 64 owners left, the newest in the lowest bit: 1 if it vanished.
    ends: u64,
    entries: HashMap<EventId, Entry>,
    /// Entries that earlier owners made and whose deliveries have not been seen. Those that are left when the queue has
    /// returned all that was held belong to deliveries that are gone.
    unseen: HashSet<EventId>,
}

#[derive(Serialize, Deserialize)]
struct Written {
    epoch: u64,
    ends: u64,
    is_closed: bool,
    entries: Vec<WrittenEntry>,
}

#[derive(Serialize, Deserialize)]
struct WrittenEntry {
    event: EventId,
    failures: u32,
    started: u32,
    due_at: Option<Timestamp>,
    errors: Bytes,
}

impl Journal {
    /// The journal of the owner that comes after the one who wrote this; `None` if there was none.
    pub(crate) fn following(written: Option<&[u8]>) -> Result<Self> {
        let Some(written) = written else { return Ok(Self { epoch: 1, ..Self::default() }) };
        let read: Written = ciborium::from_reader(written).map_err(|failure| {
            error(
                ErrorKind::Corrupt,
                "claim",
                "a journal cannot be read; purge its queue to go on without it",
            )
            .with_source(failure.to_string())
        })?;
        let mut entries = HashMap::with_capacity(read.entries.len());
        for entry in read.entries {
            // Its worker vanished in an attempt whose start it had recorded: that attempt failed.
            let is_charged = !read.is_closed && entry.started > entry.failures;
            let failures = if is_charged { entry.started } else { entry.failures };
            let remembered = Entry {
                failures,
                started: 0,
                due_at: entry.due_at.filter(|_| !is_charged),
                errors: ErrorLog::from_bytes(entry.errors),
            };
            entries.insert(entry.event, remembered);
        }
        let ends = (read.ends << 1) | u64::from(!read.is_closed);
        Ok(Self { epoch: read.epoch + 1, ends, unseen: entries.keys().copied().collect(), entries })
    }

    /// As bytes; `is_closed` says that this owner leaves, and that nothing of it runs.
    pub(crate) fn written(&self, is_closed: bool) -> Result<Bytes> {
        let whole = self.encoded(is_closed, false)?;
        if whole.len() <= MAX_BYTES { Ok(whole) } else { self.encoded(is_closed, true) }
    }

    fn encoded(&self, is_closed: bool, is_short: bool) -> Result<Bytes> {
        let entries = self.entries.iter().map(|(event, entry)| WrittenEntry {
            event: *event,
            failures: entry.failures,
            started: if is_closed { 0 } else { entry.started },
            due_at: entry.due_at,
            errors: if is_short { newest(&entry.errors) } else { entry.errors.as_bytes().clone() },
        });
        let written = Written { epoch: self.epoch, ends: self.ends, is_closed, entries: entries.collect() };
        codec::encode(&written).map_err(|text| error(ErrorKind::Corrupt, "settle", text))
    }

    /// How many of the owners that had this delivery in their hands vanished. The broker counts how often it took it back;
    /// what it took back comes first to each next owner, so those were the last ones.
    pub(crate) fn crashes(&self, parcel: &Parcel) -> u32 {
        let last = match parcel.returns {
            0 => return parcel.crashes,
            returns @ 1..=63 => (1_u64 << returns) - 1,
            _ => u64::MAX,
        };
        parcel.crashes + (self.ends & last).count_ones()
    }

    /// What is remembered of a delivery that has come.
    pub(crate) fn seen(&mut self, parcel: &Parcel) -> Option<&Entry> {
        if parcel.returns > 0 {
            self.unseen.remove(&parcel.envelope.id);
        } else {
            // Nothing that was held before is still to come; and if this one was here before, it died, and was replayed.
            for gone in self.unseen.drain() {
                self.entries.remove(&gone);
            }
        }
        self.entries.get(&parcel.envelope.id)
    }

    pub(crate) fn entry(&mut self, event: EventId) -> &mut Entry {
        self.entries.entry(event).or_default()
    }

    #[cfg(test)]
    fn peek(&self, event: EventId) -> Option<&Entry> {
        self.entries.get(&event)
    }

    /// Takes back that a start was recorded; false if none was.
    pub(crate) fn unstart(&mut self, event: EventId) -> bool {
        match self.entries.get_mut(&event) {
            Some(entry) if entry.started > 0 => {
                entry.started = 0;
                true
            }
            _ => false,
        }
    }

    /// Its delivery is gone. It is left out when the journal is next written.
    pub(crate) fn forget(&mut self, event: EventId) {
        self.entries.remove(&event);
    }
}

/// The newest error alone.
fn newest(errors: &ErrorLog) -> Bytes {
    let entries = errors.entries();
    let last: Vec<&AttemptError> = entries.last().into_iter().collect();
    if last.is_empty() { Bytes::new() } else { codec::encode(&last).unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_bus_core::backend::Envelope;
    use std::time::Duration;

    fn event(number: u128) -> EventId {
        EventId::from_uuid(uuid::Uuid::from_u128(number))
    }

    fn returned(returns: u32) -> Parcel {
        Parcel {
            envelope: Envelope {
                id: event(1),
                name: "a".into(),
                version: 1,
                key: None,
                payload: Bytes::new(),
                headers: None,
                published_at: Timestamp::from_millis(0),
            },
            position: 0,
            failures: 0,
            crashes: 0,
            errors: ErrorLog::default(),
            wait: Duration::ZERO,
            returns,
            is_again: false,
        }
    }

    #[test]
    fn an_owner_that_left_in_peace_makes_no_suspects() {
        let first = Journal::following(None).unwrap();
        let second = Journal::following(Some(&first.written(true).unwrap())).unwrap();
        assert_eq!((second.epoch, second.crashes(&returned(1))), (2, 0));
        let third = Journal::following(Some(&second.written(false).unwrap())).unwrap();
        assert_eq!(
            (third.crashes(&returned(0)), third.crashes(&returned(1)), third.crashes(&returned(2))),
            (0, 1, 1)
        );
    }

    #[test]
    fn a_recorded_start_is_charged_only_if_its_owner_vanished() {
        let mut journal = Journal::following(None).unwrap();
        *journal.entry(event(1)) = Entry { failures: 1, started: 2, ..Entry::default() };
        let vanished = Journal::following(Some(&journal.written(false).unwrap())).unwrap();
        assert_eq!(vanished.peek(event(1)).map(|entry| entry.failures), Some(2));
        let left = Journal::following(Some(&journal.written(true).unwrap())).unwrap();
        assert_eq!(left.peek(event(1)).map(|entry| (entry.failures, entry.started)), Some((1, 0)));
    }

    #[test]
    fn what_is_remembered_of_a_delivery_ends_when_the_broker_gives_it_up() {
        let mut journal = Journal::following(None).unwrap();
        *journal.entry(event(1)) = Entry { failures: 2, ..Entry::default() };
        let next = || Journal::following(Some(&journal.written(false).unwrap())).unwrap();
        assert_eq!(next().seen(&returned(1)).map(|entry| entry.failures), Some(2));
        assert_eq!(next().seen(&returned(0)), None, "it comes for the first time: it was replayed");
    }

    #[test]
    fn a_journal_that_grows_too_long_loses_texts_and_no_numbers() {
        let mut journal = Journal::following(None).unwrap();
        let error = |attempt| AttemptError {
            attempt,
            failed_at: Timestamp::from_millis(1),
            message: "x".repeat(ErrorLog::MESSAGE_BYTES),
        };
        let log = (1..=10).fold(ErrorLog::default(), |log, attempt| log.with(error(attempt)));
        for number in 0..100 {
            *journal.entry(event(number)) = Entry { failures: 10, errors: log.clone(), ..Entry::default() };
        }
        let written = journal.written(false).unwrap();
        assert!(written.len() <= MAX_BYTES);
        let read = Journal::following(Some(&written)).unwrap();
        let entry = read.peek(event(3)).unwrap();
        assert_eq!((entry.failures, entry.errors.entries().len()), (10, 1));
        assert_eq!(entry.errors.entries()[0].attempt, 10);
    }
}
