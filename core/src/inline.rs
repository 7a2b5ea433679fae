//! Running handlers inside `publish`: what backends do that have no worker.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use crate::backend::{
    Addressed, Delivery, DeliveryId, Envelope, ErrorLog, EventId, HandlerIndex, Partition, Session,
};
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::handler::FailureKind;
use crate::registry::{Registered, Registry};
use crate::retry::RunEnd;
use crate::run::run;

/// How deep calls of `publish` may stand inside one another through handlers that publish: 32.
///
/// Handlers that publish in a circle would otherwise overflow the stack and take the process with them, where a durable
/// backend merely never comes to rest. Real chains are a few events deep; in a debug build
/// a level of trivial handlers takes about 10 KiB of a thread's 2 MiB.
pub const MAX_DEPTH: u32 = 32;

tokio::task_local! {
    /// How many publish calls this task stands in.
    static DEPTH: u32;
}

/// Runs all handlers of all events, in order, whoever fails. `answers` is the session behind
/// [`complete_in`](Context::complete_in), if there is one; `backend` the word for errors.
///
/// # Errors
/// `HandlerFailed` with [`FailedRuns`] in its source; `Unsupported` beyond [`MAX_DEPTH`].
///
/// # Cancel safety
/// A dropped future drops the running handler at its await point; the handlers before it have run, those after it have
/// not.
pub async fn run_all(
    registry: &Registry,
    events: &[Addressed],
    answers: Option<Arc<dyn Session>>,
    backend: &'static str,
) -> Result<()> {
    let depth = DEPTH.try_with(|depth| *depth).unwrap_or(0);
    if depth >= MAX_DEPTH {
        let wish = format!("publish calls more than {MAX_DEPTH} deep; do handlers publish in a circle?");
        return Err(Error::unsupported("publish", backend, &wish));
    }
    let failed = DEPTH.scope(depth + 1, run_each(registry, events, answers)).await;
    if failed.failed.is_empty() {
        return Ok(());
    }
    let error = Error::new(ErrorKind::HandlerFailed, "publish", failed.to_string());
    Err(error.with_backend(backend).with_source(failed))
}

async fn run_each(
    registry: &Registry,
    events: &[Addressed],
    answers: Option<Arc<dyn Session>>,
) -> FailedRuns {
    let mut failed = FailedRuns { runs: 0, failed: Vec::new() };
    for event in events {
        for (index, handler) in handlers_of(event, registry) {
            let delivery = first_delivery(DeliveryId(event.envelope.id.as_uuid().as_u128()), index, event);
            // The first attempt, which is the last one as well.
            let mut cx = Context::detached(handler.name().clone(), Arc::new(delivery), 1);
            if let Some(session) = &answers {
                cx = cx.with_session(session.clone());
            }
            failed.runs += 1;
            let end = run(handler, &cx).await;
            failed.failed.extend(FailedRun::from_end(handler.name(), &event.envelope, end));
        }
    }
    failed
}

/// The handlers an event is for. It was addressed by the same registry, so each is there.
pub fn handlers_of<'a>(
    event: &'a Addressed,
    registry: &'a Registry,
) -> impl Iterator<Item = (HandlerIndex, &'a Registered)> {
    event.handlers.iter().filter_map(|name| {
        let mut handlers = (0_u32..).map(HandlerIndex).zip(registry.handlers());
        handlers.find(|(_, handler)| handler.name() == name)
    })
}

/// A delivery before its first attempt, in no store.
pub fn first_delivery(id: DeliveryId, handler: HandlerIndex, event: &Addressed) -> Delivery {
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

/// All failed runs of one `publish` call: the source of its [`HandlerFailed`](ErrorKind::HandlerFailed) error.
///
/// ```
/// # use event_bus_core::inline::FailedRuns;
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
    fn from_end(handler: &Arc<str>, envelope: &Envelope, end: RunEnd) -> Option<Self> {
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
                    write!(f, "asked to wait for {delay:?}, and nobody can wait inside publish")
                }
                FailureKind::Discard => write!(f, "discarded: {failure}"),
                _ => write!(f, "{failure}"),
            },
            end => f.write_str(&end.error().unwrap_or_default()),
        }
    }
}
