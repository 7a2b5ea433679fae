//! `bus.publish(..)`: a builder that is a future.

use std::any::Any;
use std::fmt;
use std::future::IntoFuture;
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::backend::{Addressed, Connection, Publication, Stored, Watched};
use crate::bus::{EventBus, Inner};
use crate::codec;
use crate::envelope::{Envelope, EventId, Headers};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, check_name};
use crate::partitioned::MAX_KEY_BYTES;

/// The longest idempotency key, in bytes.
const MAX_IDEMPOTENCY_KEY_BYTES: usize = 512;

/// The longest delay: 10 years. A longer one is a mistake in units.
const MAX_DELAY: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// An event without its type.
trait AnyEvent: Send + Sync {
    fn name(&self) -> &'static str;
    fn version(&self) -> u32;
    fn key(&self) -> Option<Arc<str>>;
    fn encode(&self) -> Result<Bytes, String>;
    fn debug(&self) -> Option<String>;
    fn as_any(&self) -> &dyn Any;
}

impl<E: Event> AnyEvent for E {
    fn name(&self) -> &'static str {
        E::NAME
    }

    fn version(&self) -> u32 {
        E::VERSION
    }

    fn key(&self) -> Option<Arc<str>> {
        self.partition_key().map(|key| Arc::from(&*key))
    }

    fn encode(&self) -> Result<Bytes, String> {
        codec::encode(self)
    }

    fn debug(&self) -> Option<String> {
        E::debug(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A publish call in the making; awaiting it publishes. Answers with a [`Receipt`].
///
/// # Errors
/// `InvalidEvent`: too large, or a key or name outside the limits; nothing was written. `Unsupported`: the backend lacks
/// what was asked for. `Unavailable`: nothing was written, try again. `OutcomeUnknown`: the answer was lost; repeat it
/// with an [`idempotency_key`](Publish::idempotency_key). `HandlerFailed`: inline backend only.
///
/// # Cancel safety
/// A dropped future leaves the call published whole or not at all (within a transaction: roll it back).
#[must_use = "nothing is published until this is awaited"]
pub struct Publish<'a> {
    bus: &'a EventBus,
    events: Vec<&'a dyn AnyEvent>,
    delay: Duration,
    idempotency_key: Option<String>,
    headers: Headers,
    connection: Option<Connection<'a>>,
    location: &'static Location<'static>,
}

impl<'a> Publish<'a> {
    pub(crate) fn one<E: Event>(
        bus: &'a EventBus,
        event: &'a E,
        location: &'static Location<'static>,
    ) -> Self {
        Self::new(bus, vec![event], location)
    }

    pub(crate) fn many<E: Event>(
        bus: &'a EventBus,
        events: &'a [E],
        location: &'static Location<'static>,
    ) -> Self {
        Self::new(bus, events.iter().map(|event| event as &dyn AnyEvent).collect(), location)
    }

    fn new(bus: &'a EventBus, events: Vec<&'a dyn AnyEvent>, location: &'static Location<'static>) -> Self {
        Self {
            bus,
            events,
            delay: Duration::ZERO,
            idempotency_key: None,
            headers: Headers::new(),
            connection: None,
            location,
        }
    }

    /// Adds an event, perhaps of another type: all of the call are stored, or none.
    pub fn and<E: Event>(mut self, event: &'a E) -> Self {
        self.events.push(event);
        self
    }

    /// The deliveries enter their lines after `delay` (a lower bound, by the store's clock), behind what was published
    /// meanwhile.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Publishes at most once under this key while the backend remembers it (see its documentation): the way to repeat
    /// a call whose outcome is unknown. 1 to 512 bytes.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// Text that travels beside each event of this call: a tenant, a trace context.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    /// Publishes inside the caller's own database transaction: `within(&mut *tx)`. The events exist if and when it
    /// commits. The backend's documentation lists the types it takes.
    pub fn within<C: Any + Send>(mut self, connection: &'a mut C) -> Self {
        self.connection = Some(connection);
        self
    }

    async fn send(self) -> Result<Receipt> {
        let bus = self.bus.inner();
        self.refuse_unsupported(bus)?;
        let watcher = bus.backend.watcher();
        let publication = self.publication(bus, watcher.is_some())?;
        let event_ids = publication.0;
        let Some(publication) = publication.1 else {
            return Ok(Receipt { event_ids, deliveries: 0, is_duplicate: false });
        };
        let deliveries = publication.deliveries();
        let stored = match (watcher, self.connection) {
            (Some(watcher), _) => {
                let debug = self.events.iter().map(|event| event.debug()).collect();
                watcher.published(Watched { publication, debug }).await
            }
            (None, Some(connection)) => bus.backend.publish_in(connection, publication).await,
            (None, None) => bus.backend.publish(publication).await,
        }?;
        Ok(match stored {
            Stored::New => Receipt { event_ids, deliveries, is_duplicate: false },
            Stored::Duplicate => Receipt { event_ids, deliveries: 0, is_duplicate: true },
        })
    }

    fn refuse_unsupported(&self, bus: &Inner) -> Result<()> {
        let capabilities = bus.backend.capabilities();
        let wishes = [
            (!self.delay.is_zero(), capabilities.delay, "a delay"),
            (self.idempotency_key.is_some(), capabilities.idempotency_key, "idempotency keys"),
            (
                self.connection.is_some(),
                capabilities.transactional_publish,
                "publishing within a transaction",
            ),
        ];
        for (is_wanted, is_offered, wish) in wishes {
            if is_wanted && !is_offered {
                return Err(Error::unsupported("publish", bus.backend.name(), wish));
            }
        }
        Ok(())
    }

    /// Checks, filters and encodes everything before anything is sent: an invalid event leaves nothing half written.
    /// A watcher is told of events that nobody is interested in as well.
    fn publication(&self, bus: &Inner, is_watched: bool) -> Result<(Vec<EventId>, Option<Publication>)> {
        if let Some(key) = &self.idempotency_key {
            check_text("idempotency key", key, MAX_IDEMPOTENCY_KEY_BYTES)?;
        }
        if self.delay > MAX_DELAY {
            return Err(invalid(format!("a delay of {:?} is longer than 10 years", self.delay)));
        }
        let headers = (!self.headers.is_empty()).then(|| Arc::new(self.headers.clone()));
        let interested: Vec<_> = self.events.iter().map(|event| interested(bus, *event)).collect();
        let published_at = bus.environment.clock.now();
        let mut event_ids = Vec::with_capacity(self.events.len());
        let mut addressed = Vec::with_capacity(self.events.len());
        for (event, handlers) in self.events.iter().zip(interested) {
            let name = event.name();
            check_name(name).map_err(invalid)?;
            let key = event.key();
            if let Some(key) = &key {
                check_text(&format!("partition key of {name}"), key, MAX_KEY_BYTES)?;
            }
            let payload =
                event.encode().map_err(|error| invalid(format!("{name} could not be encoded: {error}")))?;
            let envelope = Envelope {
                id: bus.environment.event_id(),
                name: bus.event_name(name),
                version: event.version(),
                key,
                payload,
                headers: headers.clone(),
                published_at,
            };
            if envelope.size() > bus.max_event_bytes {
                return Err(invalid(format!(
                    "{name} has {} bytes; the limit is {} (Builder::max_event_bytes). Store large data elsewhere and \
                     publish its address",
                    envelope.size(),
                    bus.max_event_bytes
                )));
            }
            event_ids.push(envelope.id);
            if is_watched || !handlers.is_empty() {
                addressed.push(Addressed { envelope, handlers });
            }
        }
        let publication = (!addressed.is_empty()).then(|| Publication {
            events: addressed,
            delay: self.delay,
            idempotency_key: self.idempotency_key.as_deref().map(Arc::from),
            location: self.location,
        });
        Ok((event_ids, publication))
    }
}

/// The interested handlers in the order of registration. Warns if none takes the event at all.
fn interested(bus: &Inner, event: &dyn AnyEvent) -> Arc<[Arc<str>]> {
    let handlers = bus.registry.handlers();
    if !handlers.iter().any(|handler| handler.takes(event.name())) {
        tracing::warn!(event = event.name(), "published an event that no handler is registered for");
    }
    handlers
        .iter()
        .filter(|handler| handler.is_interested(event.as_any()))
        .map(|h| h.name().clone())
        .collect()
}

fn check_text(what: &str, text: &str, max_bytes: usize) -> Result<()> {
    if text.is_empty() {
        return Err(invalid(format!("the {what} is empty; leave it out instead")));
    }
    if text.len() > max_bytes {
        return Err(invalid(format!("the {what} has {} bytes; the limit is {max_bytes}", text.len())));
    }
    if text.contains('\0') {
        return Err(invalid(format!("the {what} contains a NUL character")));
    }
    Ok(())
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidEvent, "publish", message)
}

impl<'a> IntoFuture for Publish<'a> {
    type Output = Result<Receipt>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<Receipt>> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

impl fmt::Debug for Publish<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publish")
            .field("events", &self.events.iter().map(|event| event.name()).collect::<Vec<_>>())
            .field("delay", &self.delay)
            .field("idempotency_key", &self.idempotency_key)
            .finish_non_exhaustive()
    }
}

/// What a publish call stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    event_ids: Vec<EventId>,
    deliveries: usize,
    is_duplicate: bool,
}

impl Receipt {
    /// The identities given to the events, in the order of the call. Of a duplicate none exists in the store.
    pub fn event_ids(&self) -> &[EventId] {
        &self.event_ids
    }

    /// How many deliveries were stored: events times interested handlers.
    pub fn deliveries(&self) -> usize {
        self.deliveries
    }

    /// Whether the idempotency key was known, so that nothing was stored.
    pub fn is_duplicate(&self) -> bool {
        self.is_duplicate
    }
}
