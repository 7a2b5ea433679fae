//! What SQLite says, as core's errors.

use std::path::Path;

use event_bus_core::{Error, ErrorKind};

pub(crate) const NAME: &str = "sqlite";

/// An error of this backend.
pub(crate) fn error(kind: ErrorKind, operation: &'static str, message: impl Into<String>) -> Error {
    Error::new(kind, operation, message).with_backend(NAME)
}

/// What SQLite's primary result codes mean for us (<https://www.sqlite.org/rescode.html>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Another connection holds the lock.
    Busy,
    /// A deferred transaction read, another one wrote, and now the first cannot write any more.
    Stale,
    Full,
    InputOutput,
    Corrupt,
    ReadOnly,
    CannotOpen,
    NoTables,
    TooBig,
    Other,
}

const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const READONLY: i32 = 8;
const IOERR: i32 = 10;
const CORRUPT: i32 = 11;
const FULL: i32 = 13;
const CANTOPEN: i32 = 14;
const PROTOCOL: i32 = 15;
const TOOBIG: i32 = 18;
const NOTADB: i32 = 26;
const BUSY_SNAPSHOT: i32 = BUSY | (2 << 8);

impl Cause {
    pub(crate) fn of(source: &sqlx::Error) -> Self {
        match source {
            sqlx::Error::Database(database) => {
                let code = database.code().and_then(|code| code.parse::<i32>().ok()).unwrap_or(1);
                match (code, code & 0xff) {
                    (BUSY_SNAPSHOT, _) => Self::Stale,
                    (_, BUSY | LOCKED | PROTOCOL) => Self::Busy,
                    (_, FULL) => Self::Full,
                    (_, IOERR) => Self::InputOutput,
                    (_, CORRUPT | NOTADB) => Self::Corrupt,
                    (_, READONLY) => Self::ReadOnly,
                    (_, CANTOPEN) => Self::CannotOpen,
                    (_, TOOBIG) => Self::TooBig,
                    _ if database.message().contains("no such table: event_bus_") => Self::NoTables,
                    _ => Self::Other,
                }
            }
            sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed => Self::InputOutput,
            _ => Self::Other,
        }
    }

    /// Whether the connection should be thrown away.
    pub(crate) fn breaks_connection(self) -> bool {
        matches!(self, Self::InputOutput | Self::Corrupt | Self::CannotOpen | Self::Other)
    }
}

/// The error of `operation` on the file at `path`, with the way out.
pub(crate) fn translate(operation: &'static str, path: &Path, source: &sqlx::Error) -> Error {
    let file = path.display();
    let (kind, message) = match Cause::of(source) {
        Cause::Busy => (
            ErrorKind::Unavailable,
            format!(
                "{file} is locked by another connection for too long; look for a transaction that stays open"
            ),
        ),
        Cause::Stale => (
            ErrorKind::Unavailable,
            "the transaction began with a read and another one has written since; begin it with \
             `pool.begin_with(\"BEGIN IMMEDIATE\")`"
                .to_owned(),
        ),
        Cause::Full => (
            ErrorKind::Unavailable,
            format!("the disk of {file} is full; nothing was stored, free some space"),
        ),
        Cause::InputOutput => {
            (ErrorKind::Unavailable, format!("reading or writing {file} failed; look at its disk"))
        }
        Cause::Corrupt => (
            ErrorKind::Corrupt,
            format!(
                "{file} is damaged or is no SQLite database; run `pragma integrity_check` and restore a backup"
            ),
        ),
        Cause::ReadOnly => (
            ErrorKind::InvalidConfiguration,
            format!("{file} cannot be written; check the permissions of the file and of its directory"),
        ),
        Cause::CannotOpen => (
            ErrorKind::Unavailable,
            format!("{file} cannot be opened; check the path and its permissions, and call `migrate` once"),
        ),
        Cause::NoTables => (
            ErrorKind::InvalidConfiguration,
            format!("{file} has no tables of the event bus; call `migrate` before anything else"),
        ),
        Cause::TooBig => (ErrorKind::InvalidEvent, "the event is larger than SQLite stores".to_owned()),
        Cause::Other => (ErrorKind::Unavailable, format!("SQLite refused a statement on {file}")),
    };
    error(kind, operation, message).with_source(source.to_string())
}
