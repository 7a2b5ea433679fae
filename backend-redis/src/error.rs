//! What the server says, as core's errors.

use std::fmt;

use event_bus_core::{Error, ErrorKind};
use redis::{RedisError, ServerErrorKind};

pub(crate) const NAME: &str = "redis";

/// An error of this backend.
pub(crate) fn error(kind: ErrorKind, operation: &'static str, message: impl Into<String>) -> Error {
    Error::new(kind, operation, message).with_backend(NAME)
}

/// A request that was not answered as it should have been.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It was not sent: nothing happened.
    NotSent(String),
    /// It was sent, and the answer did not come: perhaps it was executed.
    Unknown(String),
    /// The server refused it for now: nothing was written.
    Refused(String),
    /// The server refused it, and will go on doing so until somebody changes something.
    Denied(String),
    /// The server is set up in a way in which no promise could be kept.
    Unfit(String),
    /// The server is another one, or was started again, since this worker's session was opened.
    OtherRun,
    /// The answer makes no sense.
    Garbled(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSent(text) => write!(f, "cannot be reached: {text}"),
            Self::Unknown(text) => write!(f, "did not answer: {text}"),
            Self::Refused(text) => write!(f, "refused the request: {text}"),
            Self::Denied(text) => write!(f, "denied the request: {text}"),
            Self::Unfit(text) => f.write_str(text),
            Self::OtherRun => f.write_str("was started again, or another server took its place"),
            Self::Garbled(text) => write!(f, "gave an answer that cannot be read: {text}"),
        }
    }
}

impl Failure {
    /// What an error of a request that was sent means.
    pub(crate) fn of(source: &RedisError) -> Self {
        let text = source.to_string();
        match source.kind() {
            redis::ErrorKind::Server(kind) => match kind {
                ServerErrorKind::BusyLoading
                | ServerErrorKind::MasterDown
                | ServerErrorKind::ReadOnly
                | ServerErrorKind::TryAgain
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::Moved
                | ServerErrorKind::Ask
                | ServerErrorKind::NoScript => Self::Refused(text),
                _ => Self::Denied(text),
            },
            redis::ErrorKind::Extension => match source.code() {
                // Out of memory, another script runs, too few replicas, the disk is full: all of these pass.
                Some("OOM" | "BUSY" | "NOREPLICAS" | "MISCONF") => Self::Refused(text),
                _ => Self::Denied(text),
            },
            redis::ErrorKind::AuthenticationFailed | redis::ErrorKind::InvalidClientConfig => {
                Self::Denied(text)
            }
            redis::ErrorKind::Parse | redis::ErrorKind::UnexpectedReturnType => Self::Garbled(text),
            _ => Self::Unknown(text),
        }
    }

    /// Whether the connection should be thrown away.
    pub(crate) fn breaks_connection(source: &RedisError) -> bool {
        match source.kind() {
            redis::ErrorKind::Server(kind) => matches!(
                kind,
                ServerErrorKind::BusyLoading
                    | ServerErrorKind::MasterDown
                    | ServerErrorKind::ReadOnly
                    | ServerErrorKind::ClusterDown
                    | ServerErrorKind::Moved
            ),
            redis::ErrorKind::Extension => false,
            _ => true,
        }
    }

    /// Whether the same request may succeed later without any change.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::NotSent(_) | Self::Unknown(_) | Self::Refused(_))
    }

    /// As an error of `operation`, in which a lost answer is no more than a failure.
    pub(crate) fn into_error(self, operation: &'static str, server: &str) -> Error {
        let kind = match &self {
            Self::NotSent(_) | Self::Unknown(_) | Self::Refused(_) => ErrorKind::Unavailable,
            Self::Denied(_) | Self::Unfit(_) => ErrorKind::InvalidConfiguration,
            Self::OtherRun => ErrorKind::LeaseLost,
            Self::Garbled(_) => ErrorKind::Corrupt,
        };
        error(kind, operation, format!("the server {server} {self}"))
    }
}
