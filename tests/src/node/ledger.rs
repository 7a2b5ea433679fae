//! A history on disk, one line a fact, written before the act: it survives the death of the process.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use event_bus::backend::Envelope;
use rustix::time::{ClockId, clock_gettime};

use crate::history::{Fact, Published, Record, hash};
use crate::suite::Note;

/// A history that grows. A cheap clone.
#[derive(Clone)]
pub struct Ledger(Arc<Mutex<File>>);

impl Ledger {
    /// Appends to a file.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self(Arc::new(Mutex::new(file))))
    }

    /// Writes a fact down, with the time; lines of one ledger are in the order of time.
    pub fn write(&self, fact: Fact) {
        self.write_and(fact, || ());
    }

    /// Writes a fact down and does something before anybody else can write.
    pub fn write_and<T>(&self, fact: Fact, act: impl FnOnce() -> T) -> T {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let record = Record { at: now(), fact };
        if let Err(error) = file.write_all(format!("{record}\n").as_bytes()) {
            // A history with holes accuses the innocent.
            eprintln!("the history cannot be written: {error}");
            std::process::abort();
        }
        act()
    }
}

/// Nanoseconds on a clock that all processes of this machine share, and that no row of the fault matrix puts wrong: they
/// do so to all others.
fn now() -> u64 {
    let now = clock_gettime(ClockId::MonotonicRaw);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// An event as a history knows it.
pub(crate) fn published(note: &Note, handlers: &[&str]) -> Published {
    let is_reader = |handler: &&&str| super::worker::reads(handler, note);
    Published {
        event: note.number,
        key: note.key.clone(),
        hash: hash_of(note),
        handlers: handlers.iter().filter(is_reader).map(|handler| (*handler).to_owned()).collect(),
        is_garbage: false,
    }
}

/// The hash of a note's payload.
pub(crate) fn hash_of(note: &Note) -> u64 {
    event_bus::codec::encode(note).map_or(0, |payload| hash(&payload))
}

/// The note in an envelope.
pub(crate) fn note_in(envelope: &Envelope) -> Option<Note> {
    event_bus::codec::decode(envelope.version, &envelope.payload).ok()
}
