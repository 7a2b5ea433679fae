//! One opaque error for every call of the bus and of its backends.

use std::error::Error as StdError;
use std::fmt;

/// The result of a call to the bus or to a backend.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Box<dyn StdError + Send + Sync + 'static>;

/// What went wrong, where, and what the caller can do about it.
///
/// `Display` prints this level only; the chain is in [`source`](StdError::source). No text contains a password:
/// backends show URLs without their credentials.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    operation: &'static str,
    backend: Option<&'static str>,
    message: String,
    source: Option<Source>,
}

/// The kinds of [`Error`], each an instruction to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The store could not be reached or is too busy; nothing was written. Try again later.
    Unavailable,
    /// The connection was lost while the answer was awaited: the write may or may not have happened.
    /// Repeat it with an idempotency key, or accept a possible second copy.
    OutcomeUnknown,
    /// This worker lost its right to the deliveries it held. The engine drops them and opens a new session;
    /// another worker goes on.
    LeaseLost,
    /// The event breaks a limit (size, key, name). Fix the event; repeating is useless.
    InvalidEvent,
    /// The bus, a handler, a URL or the store is set up wrongly. Fix the setting named in the message.
    InvalidConfiguration,
    /// The backend does not offer what was asked for. Choose another backend or do without.
    Unsupported,
    /// The bus or the worker was shut down. Build a new one.
    Closed,
    /// The store holds something that this version cannot read. Look at it by hand.
    Corrupt,
    /// A handler failed inside `publish` (inline backend only). All failures stand in the message and the chain.
    HandlerFailed,
}

impl ErrorKind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::OutcomeUnknown => "outcome unknown",
            Self::LeaseLost => "lease lost",
            Self::InvalidEvent => "invalid event",
            Self::InvalidConfiguration => "invalid configuration",
            Self::Unsupported => "unsupported",
            Self::Closed => "closed",
            Self::Corrupt => "corrupt",
            Self::HandlerFailed => "handler failed",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Error {
    /// An error of `kind` in `operation` (the name of the public call: `"publish"`, `"build"`, `"claim"`).
    /// `message` says what happened and what to do, in lower case and without a full stop.
    pub fn new(kind: ErrorKind, operation: &'static str, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, operation, backend: None, message: message.into(), source: None }))
    }

    /// The [`Unsupported`](ErrorKind::Unsupported) error of `backend` for `capability`.
    pub fn unsupported(operation: &'static str, backend: &'static str, capability: &str) -> Self {
        Self::new(
            ErrorKind::Unsupported,
            operation,
            format!("the {backend} backend does not offer {capability}"),
        )
        .with_backend(backend)
    }

    /// Names the backend in which it happened.
    #[must_use]
    pub fn with_backend(mut self, backend: &'static str) -> Self {
        self.0.backend = Some(backend);
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What the caller can do.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the same call may succeed later without any change.
    pub fn is_transient(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Unavailable | ErrorKind::OutcomeUnknown | ErrorKind::LeaseLost)
    }

    /// The public call that failed.
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// The backend in which it happened, if one was involved.
    pub fn backend(&self) -> Option<&'static str> {
        self.0.backend
    }

    /// The message without operation and backend.
    pub fn message(&self) -> &str {
        &self.0.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.operation)?;
        if let Some(backend) = self.0.backend {
            write!(f, " ({backend})")?;
        }
        write!(f, ": {}: {}", self.0.kind, self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("operation", &self.0.operation)
            .field("backend", &self.0.backend)
            .field("message", &self.0.message)
            .field("source", &self.0.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

/// The whole chain of an error on one line: `publish: unavailable: …: connection refused`.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_prints_its_own_level_and_the_chain_stays_in_source() {
        let error = Error::new(ErrorKind::Unavailable, "publish", "the file is locked")
            .with_backend("sqlite")
            .with_source("database is locked");
        assert_eq!(error.to_string(), "publish (sqlite): unavailable: the file is locked");
        assert_eq!(chain(&error), "publish (sqlite): unavailable: the file is locked: database is locked");
        assert!(error.is_transient());
    }
}
