//! An append-only file beside the database: what the program meant to publish and what its handlers did, in its own
//! words. After a crash it is what the store is checked against.
//!
//! Each record is one line and one `write`, made *before* the bus can know of what it says: what the operating system
//! has taken survives the death of the process (a power loss is the store's business, not this file's).

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use event_bus::EventId;
use serde::{Deserialize, Serialize};

use crate::input::Source;

/// The first line of a ledger.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Header {
    /// A random name, part of each idempotency key.
    pub run: String,
    pub source: Source,
    /// How many events the source gave.
    pub events: usize,
}

/// One line after the first.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// A batch is about to be published.
    Publishing { batch: usize },
    /// The bus has confirmed it.
    Published { batch: usize },
    /// A run has ended; the bus has not been told yet.
    Ended { handler: String, order: String, revision: u32, event_id: EventId, attempt: u32, end: End },
    /// A run broke the order of its key: it overtook this earlier event, or ran beside another one.
    Violation { handler: String, order: String, revision: u32, overtook: Option<u32> },
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    Succeeded,
    /// There is another attempt.
    Failed,
    /// There is none: it goes to the dead letters.
    Died,
}

/// The open file.
pub struct Ledger(File);

impl Ledger {
    /// Begins a new ledger.
    ///
    /// # Errors
    /// A text for the user.
    pub fn create(path: &Path, header: &Header) -> Result<Self, String> {
        let mut options = OpenOptions::new();
        let mut ledger = Self::lock(path, options.append(true).create_new(true).open(path))?;
        ledger.write(header).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(ledger)
    }

    /// Opens an old one and reads what stands in it. `None` if there is none, or if it ends within its first line.
    ///
    /// # Errors
    /// A text for the user.
    pub fn open(path: &Path) -> Result<Option<(Self, Header, Vec<Record>)>, String> {
        let failed = |error: io::Error| format!("{}: {error}", path.display());
        let file = OpenOptions::new().read(true).append(true).open(path);
        if matches!(&file, Err(error) if error.kind() == io::ErrorKind::NotFound) {
            return Ok(None);
        }
        let mut ledger = Self::lock(path, file)?;
        let mut text = String::new();
        ledger.0.read_to_string(&mut text).map_err(failed)?;
        // A crash in the middle of a `write` leaves half a line, which says nothing.
        let complete = text.rfind('\n').map_or(0, |end| end + 1);
        ledger.0.set_len(complete as u64).map_err(failed)?;
        let mut lines = text[..complete].lines().zip(1..);
        let Some((first, _)) = lines.next() else {
            std::fs::remove_file(path).map_err(failed)?;
            return Ok(None);
        };
        let not_ours =
            |line: usize, error| format!("{}:{line}: not a line of a ledger: {error}", path.display());
        let header = serde_json::from_str(first).map_err(|error| not_ours(1, error))?;
        let records = lines
            .map(|(text, line)| serde_json::from_str(text).map_err(|error| not_ours(line, error)))
            .collect::<Result<_, _>>()?;
        Ok(Some((ledger, header, records)))
    }

    /// One process at a time; the operating system lets go of the lock however the process ends.
    fn lock(path: &Path, file: io::Result<File>) -> Result<Self, String> {
        let file = file.map_err(|error| format!("{}: {error}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => {
                Err(format!("{}: another process is at work on it", path.display()))
            }
            Err(TryLockError::Error(error)) => {
                Err(format!("{}: it cannot be locked: {error}", path.display()))
            }
        }
    }

    /// Appends one record.
    pub fn append(&mut self, record: &Record) -> io::Result<()> {
        self.write(record)
    }

    fn write(&mut self, line: &impl Serialize) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        self.0.write_all(&bytes)
    }
}
