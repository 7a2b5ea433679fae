//! Handlers run inside `publish`, as with the inline backend.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use event_bus_core::backend::{Addressed, Delivery, DeliveryId, ErrorLog, HandlerIndex, Partition};
use event_bus_core::registry::Registry;
use event_bus_core::retry::RunEnd;
use event_bus_core::run::run;
use event_bus_core::{Context, Error, ErrorKind, FailureKind, Result};

use crate::backend::{Answering, NAME, handlers_of};

/// How deep publish calls may stand inside one another through handlers that publish, before it is taken for a circle.
const MAX_DEPTH: u32 = 32;

tokio::task_local! {
    static DEPTH: u32;
}

/// Runs all handlers of all events, whoever fails.
///
/// # Errors
/// `HandlerFailed`, with all failures.
pub(crate) async fn run_all(registry: &Registry, events: &[Addressed]) -> Result<()> {
    let depth = DEPTH.try_with(|depth| *depth).unwrap_or(0) + 1;
    if depth > MAX_DEPTH {
        let message = format!(
            "{MAX_DEPTH} publish calls stand inside one another through handlers that publish: do handlers publish in a \
             circle?"
        );
        return Err(Error::new(ErrorKind::HandlerFailed, "publish", message).with_backend(NAME));
    }
    let failed = DEPTH.scope(depth, run_each(registry, events)).await;
    if failed.failed.is_empty() {
        return Ok(());
    }
    let error = Error::new(ErrorKind::HandlerFailed, "publish", failed.to_string());
    Err(error.with_backend(NAME).with_source(failed))
}

async fn run_each(registry: &Registry, events: &[Addressed]) -> FailedRuns {
    let mut failed = FailedRuns { runs: 0, failed: Vec::new() };
    for event in events {
        for (index, handler) in handlers_of(event, registry) {
            let delivery = delivery(DeliveryId(event.envelope.id.as_uuid().as_u128()), index, event);
            let cx = Context::detached(handler.name().clone(), Arc::new(delivery), 1);
            failed.runs += 1;
            match run(handler, &cx.with_session(Arc::new(Answering))).await {
                RunEnd::Done => {}
                end => failed.failed.push(FailedRun {
                    handler: handler.name().clone(),
                    event: event.envelope.name.clone(),
                    end,
                }),
            }
        }
    }
    failed
}

/// A delivery before its first attempt.
pub(crate) fn delivery(id: DeliveryId, handler: HandlerIndex, event: &Addressed) -> Delivery {
    Delivery {
        id,
        partition: Partition { handler, number: Partition::WHOLE },
        envelope: event.envelope.clone(),
        failures: 0,
        crashes: 0,
        errors: ErrorLog::default(),
        due_in: None,
        is_held: false,
        fence: 0,
    }
}

/// The failed runs of one publish call in inline mode: the source of its [`HandlerFailed`](ErrorKind::HandlerFailed)
/// error.
#[derive(Debug)]
pub struct FailedRuns {
    runs: usize,
    failed: Vec<FailedRun>,
}

impl FailedRuns {
    /// In the order in which they ran; at least one.
    pub fn runs(&self) -> &[FailedRun] {
        &self.failed
    }
}

impl fmt::Display for FailedRuns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} handler runs failed", self.failed.len(), self.runs)?;
        for (position, run) in self.failed.iter().enumerate() {
            let start = if position == 0 { ": " } else { "; " };
            write!(f, "{start}{run}")?;
        }
        Ok(())
    }
}

impl StdError for FailedRuns {}

/// One handler's failure on one event.
#[derive(Debug)]
pub struct FailedRun {
    handler: Arc<str>,
    event: Arc<str>,
    end: RunEnd,
}

impl FailedRun {
    /// The handler's name.
    pub fn handler(&self) -> &str {
        &self.handler
    }

    /// The event's name.
    pub fn event_name(&self) -> &str {
        &self.event
    }

    /// How the run ended.
    pub fn end(&self) -> &RunEnd {
        &self.end
    }
}

impl fmt::Display for FailedRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}: ", self.handler, self.event)?;
        match &self.end {
            RunEnd::Failed(failure) => match failure.kind() {
                FailureKind::Snooze(delay) => {
                    write!(f, "asked to wait for {delay:?}, and inline mode cannot wait")
                }
                FailureKind::Discard => write!(f, "discarded: {failure}"),
                _ => write!(f, "{failure}"),
            },
            end => f.write_str(&end.error().unwrap_or_default()),
        }
    }
}
