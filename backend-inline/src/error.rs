//! What `publish` answers when handlers failed inside it.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use event_bus_core::backend::{Envelope, EventId};
use event_bus_core::retry::RunEnd;
use event_bus_core::{Error, ErrorKind, FailureKind};

/// All failed runs of one `publish` call: the source of its [`HandlerFailed`](ErrorKind::HandlerFailed) error.
///
/// ```
/// # use event_bus_inline::FailedRuns;
/// # use std::error::Error as _;
/// # fn look(error: &event_bus_core::Error) {
/// let failed = error.source().and_then(|source| source.downcast_ref::<FailedRuns>());
/// for run in failed.into_iter().flat_map(|failed| failed.runs()) {
///     println!("{} failed on event {}", run.handler(), run.event_id());
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct FailedRuns {
    runs: usize,
    failed: Vec<FailedRun>,
}

impl FailedRuns {
    pub(crate) fn new(runs: usize, failed: Vec<FailedRun>) -> Self {
        Self { runs, failed }
    }

    /// The failed runs in the order in which they ran; at least one.
    pub fn runs(&self) -> &[FailedRun] {
        &self.failed
    }
}

impl fmt::Display for FailedRuns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} handler runs failed", self.failed.len(), self.runs)?;
        for (position, run) in self.failed.iter().enumerate() {
            f.write_str(if position == 0 { ": " } else { "; " })?;
            write!(f, "{run}")?;
        }
        Ok(())
    }
}

impl StdError for FailedRuns {}

impl From<FailedRuns> for Error {
    fn from(failed: FailedRuns) -> Self {
        Error::new(ErrorKind::HandlerFailed, "publish", failed.to_string())
            .with_backend("inline")
            .with_source(failed)
    }
}

/// One handler's failure on one event.
#[derive(Debug)]
pub struct FailedRun {
    handler: Arc<str>,
    event: Arc<str>,
    event_id: EventId,
    end: RunEnd,
}

impl FailedRun {
    /// `None` if the run did not fail.
    pub(crate) fn from_end(handler: &Arc<str>, envelope: &Envelope, end: RunEnd) -> Option<Self> {
        (!matches!(end, RunEnd::Done)).then(|| Self {
            handler: handler.clone(),
            event: envelope.name.clone(),
            event_id: envelope.id,
            end,
        })
    }

    /// The handler's name.
    pub fn handler(&self) -> &str {
        &self.handler
    }

    /// The event's name.
    pub fn event_name(&self) -> &str {
        &self.event
    }

    /// The event's identity.
    pub fn event_id(&self) -> EventId {
        self.event_id
    }

    /// How the run ended.
    pub fn end(&self) -> &RunEnd {
        &self.end
    }

    /// The handler's own error, if it returned one: downcast it to look into it.
    pub fn cause(&self) -> Option<&(dyn StdError + Send + Sync + 'static)> {
        match &self.end {
            RunEnd::Failed(failure) => failure.cause(),
            _ => None,
        }
    }
}

impl fmt::Display for FailedRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}: ", self.handler, self.event)?;
        match &self.end {
            RunEnd::Failed(failure) => match failure.kind() {
                FailureKind::Snooze(delay) => {
                    write!(f, "asked to wait for {delay:?}, and the inline backend cannot wait")
                }
                FailureKind::Discard => write!(f, "discarded: {failure}"),
                _ => write!(f, "{failure}"),
            },
            end => f.write_str(&end.error().unwrap_or_default()),
        }
    }
}
