//! What a handler can ask about the run it is in.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;

use crate::backend::{Connection, Session};
use crate::delivery::Delivery;
use crate::envelope::EventId;
use crate::error::{Error, ErrorKind, Result};
use crate::handler::HandlerOptions;
use crate::worker::RunScope;

/// What a handler can ask about its delivery and the run it is in.
pub struct Context {
    delivery: Arc<Delivery>,
    place: Place,
}

/// Where a run takes place.
enum Place {
    /// In a worker: everything is shared, because a context is made for each run.
    Worker(Arc<RunScope>),
    /// Inside `publish`, or in a test.
    Detached { handler: Arc<str>, max_attempts: u32, session: Option<Arc<dyn Session>> },
}

impl Context {
    /// A context for a run outside a worker: inside `publish`, or in a test.
    pub fn detached(handler: Arc<str>, delivery: Arc<Delivery>, max_attempts: u32) -> Self {
        Self { delivery, place: Place::Detached { handler, max_attempts, session: None } }
    }

    /// A context for a run outside a worker, with all attempts that `options` allow.
    pub fn with_options(handler: Arc<str>, options: &HandlerOptions, delivery: Arc<Delivery>) -> Self {
        Self::detached(handler, delivery, options.max_attempts)
    }

    /// The same, with a session that answers [`complete_in`](Context::complete_in): for tests.
    #[must_use]
    pub fn with_session(mut self, answers: Arc<dyn Session>) -> Self {
        if let Place::Detached { session, .. } = &mut self.place {
            *session = Some(answers);
        }
        self
    }

    /// A context for a run in a worker.
    pub(crate) fn of_worker(delivery: Arc<Delivery>, scope: Arc<RunScope>) -> Self {
        Self { delivery, place: Place::Worker(scope) }
    }

    /// The delivery in hand.
    pub(crate) fn delivery(&self) -> &Delivery {
        &self.delivery
    }

    /// The identity of the event: the same for every handler and every attempt.
    pub fn event_id(&self) -> EventId {
        self.delivery.envelope.id
    }

    /// The identity of the delivery: event and handler. The same for every attempt, so it serves as an idempotency key
    /// towards other systems.
    pub fn delivery_id(&self) -> String {
        format!("{}/{}", self.delivery.envelope.id, self.handler())
    }

    /// The handler's name.
    pub fn handler(&self) -> &str {
        match &self.place {
            Place::Worker(scope) => scope.handler(&self.delivery).map_or("", |handler| handler.name()),
            Place::Detached { handler, .. } => handler,
        }
    }

    /// The event's name as it was published (perhaps an alias).
    pub fn event_name(&self) -> &str {
        &self.delivery.envelope.name
    }

    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.delivery.attempt()
    }

    /// How many attempts there are.
    pub fn max_attempts(&self) -> u32 {
        match &self.place {
            Place::Worker(scope) => {
                scope.handler(&self.delivery).map_or(1, |handler| handler.options().max_attempts)
            }
            Place::Detached { max_attempts, .. } => *max_attempts,
        }
    }

    /// Whether a failure of this attempt is final.
    pub fn is_last_attempt(&self) -> bool {
        self.attempt() >= self.max_attempts()
    }

    /// The partition key.
    pub fn partition_key(&self) -> Option<&str> {
        self.delivery.envelope.key.as_deref()
    }

    /// When the event was published, by the publisher's clock.
    pub fn published_at(&self) -> SystemTime {
        self.delivery.envelope.published_at.to_system_time()
    }

    /// A header that travelled with the event.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// All headers that travelled with the event, in the order of their names.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.delivery
            .envelope
            .headers
            .iter()
            .flat_map(|headers| headers.iter())
            .map(|(n, v)| (n.as_str(), v.as_str()))
    }

    /// A number that grows whenever this key's ownership passes to another worker: hand it to other systems, so that
    /// they can refuse a worker that lost its right and does not know it yet. 0 where the backend has none.
    pub fn fence(&self) -> u64 {
        self.delivery.fence
    }

    /// Tells a long run that the worker wants to stop.
    pub fn shutdown(&self) -> &Shutdown {
        static NEVER: Shutdown = Shutdown::never();
        match &self.place {
            Place::Worker(scope) => &scope.shutdown,
            Place::Detached { .. } => &NEVER,
        }
    }

    /// Completes this delivery inside the handler's own transaction: its writes and the acknowledgement commit together,
    /// so the effect happens once. Commit afterwards and return `Ok`.
    ///
    /// # Errors
    /// `Unsupported` where the backend has no transactions; `LeaseLost` if another worker has taken over: return the
    /// error without committing.
    ///
    /// # Cancel safety
    /// A dropped future leaves the transaction in an unknown state: roll it back (dropping it does).
    pub async fn complete_in<C: std::any::Any + Send>(&self, connection: &mut C) -> Result<()> {
        let connection: Connection<'_> = connection;
        match &self.place {
            Place::Worker(scope) => scope.session.complete_in(connection, &self.delivery).await,
            Place::Detached { session: Some(session), .. } => {
                session.complete_in(connection, &self.delivery).await
            }
            Place::Detached { session: None, .. } => Err(Error::new(
                ErrorKind::Unsupported,
                "complete_in",
                "this handler runs outside a worker; there is no stored delivery to complete",
            )),
        }
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("handler", &self.handler())
            .field("delivery", &self.delivery)
            .finish_non_exhaustive()
    }
}

/// A token that is triggered when a worker begins to shut down.
#[derive(Clone, Debug)]
pub struct Shutdown(Option<watch::Receiver<bool>>);

impl Shutdown {
    pub(crate) fn new(receiver: watch::Receiver<bool>) -> Self {
        Self(Some(receiver))
    }

    pub(crate) const fn never() -> Self {
        Self(None)
    }

    /// Whether the worker is shutting down.
    pub fn is_triggered(&self) -> bool {
        self.0.as_ref().is_some_and(|receiver| *receiver.borrow())
    }

    /// Resolves when the worker begins to shut down.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn triggered(&self) {
        if let Some(receiver) = &self.0 {
            // An error means that the worker is gone altogether, which is a shutdown as well.
            let _ = receiver.clone().wait_for(|is_shutting_down| *is_shutting_down).await;
        } else {
            std::future::pending().await
        }
    }
}
