//! What PostgreSQL says, as core's errors.

use event_bus_core::{Error, ErrorKind};

pub(crate) const NAME: &str = "postgres";

/// An error of this backend.
pub(crate) fn error(kind: ErrorKind, operation: &'static str, message: impl Into<String>) -> Error {
    Error::new(kind, operation, message).with_backend(NAME)
}

/// What an error means for us (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// No connection, or it is gone.
    Lost,
    /// The server ends this connection, or does not serve yet.
    Ending,
    /// Something is locked, or took too long: nothing was done.
    Busy,
    /// The server is full: its disk, its memory, its connections.
    Full,
    /// A standby, or a transaction that was begun read only.
    ReadOnly,
    NoTables,
    NoDatabase,
    Denied,
    /// A worker behind a pooler, or a setting that the server does not take.
    Refused,
    /// The event itself.
    Data,
    /// TLS or authentication as configured cannot work.
    Configuration,
    Corrupt,
    Other,
}

impl Cause {
    pub(crate) fn of(source: &sqlx::Error) -> Self {
        match source {
            sqlx::Error::Database(database) => {
                Self::of_code(&database.code().unwrap_or_default(), database.message())
            }
            // So rustls refuses a server.
            sqlx::Error::Io(refused)
                if refused.kind() == std::io::ErrorKind::InvalidData
                    && refused.to_string().contains("peer certificate") =>
            {
                Self::Configuration
            }
            sqlx::Error::Io(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => Self::Lost,
            // What is read from a connection that was cut in the middle of a message.
            sqlx::Error::Protocol(_) => Self::Lost,
            sqlx::Error::Tls(_) | sqlx::Error::Configuration(_) => Self::Configuration,
            sqlx::Error::Encode(_) => Self::Data,
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => Self::Corrupt,
            _ => Self::Other,
        }
    }

    fn of_code(code: &str, message: &str) -> Self {
        match code {
            "57P01" | "57P02" | "57P03" | "57P05" | "25P03" => Self::Ending,
            "55P03" | "57014" | "40001" | "40P01" => Self::Busy,
            "25006" => Self::ReadOnly,
            "42P01" | "3F000" | "42703" => Self::NoTables,
            "3D000" => Self::NoDatabase,
            "42501" | "28000" | "28P01" => Self::Denied,
            "08P01" if message.contains("startup parameter") => Self::Refused,
            "42704" | "22023" => Self::Refused,
            _ => match code.get(..2).unwrap_or_default() {
                "08" => Self::Lost,
                "53" | "58" => Self::Full,
                "22" | "23" | "54" => Self::Data,
                "XX" => Self::Corrupt,
                _ => Self::Other,
            },
        }
    }

    /// Whether the connection is of no more use.
    pub(crate) fn ends_connection(self, source: &sqlx::Error) -> bool {
        matches!(self, Self::Lost | Self::Ending) || !matches!(source, sqlx::Error::Database(_))
    }
}

/// The error of `operation` on the database at `place`, with the way out. `is_write`: if no answer came, the write may or
/// may not have happened.
pub(crate) fn translate(operation: &'static str, place: &str, source: &sqlx::Error, is_write: bool) -> Error {
    let (kind, message) = match Cause::of(source) {
        Cause::Lost if is_write && !matches!(source, sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed) => {
            (ErrorKind::OutcomeUnknown, format!("the connection to {place} was lost before the answer came"))
        }
        Cause::Lost => (ErrorKind::Unavailable, format!("{place} cannot be reached")),
        Cause::Ending => (
            ErrorKind::Unavailable,
            format!("{place} ended the connection, it is being stopped or restarted"),
        ),
        Cause::Busy => (
            ErrorKind::Unavailable,
            format!("a statement on {place} waited or took too long; look for a transaction that stays open"),
        ),
        Cause::Full => (
            ErrorKind::Unavailable,
            format!("{place} is out of resources; look at its disk, its memory and max_connections"),
        ),
        Cause::ReadOnly => (
            ErrorKind::Unavailable,
            format!("{place} takes no writes: it is a standby, or the transaction was begun read only"),
        ),
        Cause::NoTables => (
            ErrorKind::InvalidConfiguration,
            format!(
                "{place} has no tables of the event bus, or old ones; call `migrate` before anything else"
            ),
        ),
        Cause::NoDatabase => {
            (ErrorKind::InvalidConfiguration, format!("the database of {place} does not exist; create it"))
        }
        Cause::Denied => (
            ErrorKind::InvalidConfiguration,
            format!("{place} does not let this role in, or not do this; check user, password and grants"),
        ),
        Cause::Refused => (
            ErrorKind::InvalidConfiguration,
            format!(
                "{place} refuses the settings of the session; behind a pooler say `pooler`, and give workers a `direct_url`"
            ),
        ),
        Cause::Data => (ErrorKind::InvalidEvent, "PostgreSQL does not store this event".to_owned()),
        Cause::Configuration => (
            ErrorKind::InvalidConfiguration,
            format!("the connection to {place} is set up wrongly (TLS, certificates)"),
        ),
        Cause::Corrupt => (ErrorKind::Corrupt, format!("{place} holds something that cannot be read")),
        Cause::Other => (ErrorKind::Unavailable, format!("{place} refused a statement")),
    };
    error(kind, operation, message).with_source(source.to_string())
}
