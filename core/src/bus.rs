//! The bus: handlers and a backend, put together once, then passed around as a value.

use std::collections::HashMap;
use std::fmt;
use std::panic::Location;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::backend::{Backend, DeadLetter, DeadLetterFilter, DeliveryId, HandlerCounts};
use crate::clock::Environment;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Events};
use crate::handler::{Exhausted, Failure, Handler, HandlerOptions};
use crate::publish::Publish;
use crate::registry::{Registered, Registry};
use crate::worker::{Worker, WorkerSettings};

/// Publishes events, and starts workers that deliver them to the handlers.
///
/// A cheap clone; there is no global state. A process may publish without working, and work without publishing.
#[derive(Clone)]
pub struct EventBus {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) registry: Arc<Registry>,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) environment: Environment,
    pub(crate) worker: WorkerSettings,
    pub(crate) max_event_bytes: usize,
    /// Names of events published so far, shared by their envelopes.
    names: RwLock<HashMap<&'static str, Arc<str>>>,
}

impl EventBus {
    /// A bus to be: add handlers and a backend, then [`build`](Builder::build).
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Creates or upgrades what the store needs. Idempotent, safe from many nodes at once.
    ///
    /// # Errors
    /// `InvalidConfiguration`: the store is newer than this binary, or is not fit for the purpose; `Unavailable`: try
    /// again.
    ///
    /// # Cancel safety
    /// A dropped future leaves the store at a complete step; calling again finishes the work.
    pub async fn migrate(&self) -> Result<()> {
        self.inner.backend.prepare().await
    }

    /// Publishes one event: `bus.publish(&event).await?`.
    ///
    /// The answer is a builder that is a future; add [`delay`](Publish::delay), [`and`](Publish::and) and the rest
    /// before awaiting it. Nothing happens until then.
    #[track_caller]
    pub fn publish<'a, E: Event>(&'a self, event: &'a E) -> Publish<'a> {
        Publish::one(self, event, Location::caller())
    }

    /// Publishes events of one type in their order, all or none. An empty slice is `Ok` and does nothing.
    #[track_caller]
    pub fn publish_all<'a, E: Event>(&'a self, events: &'a [E]) -> Publish<'a> {
        Publish::many(self, events, Location::caller())
    }

    /// Starts a worker: it claims and runs deliveries until it is told to stop.
    ///
    /// # Errors
    /// `InvalidConfiguration` if the store cannot serve a worker. A store that is merely out of reach is no error: the
    /// worker keeps trying and reports.
    ///
    /// # Cancel safety
    /// A dropped future leaves no worker behind.
    pub async fn start(&self) -> Result<Worker> {
        Worker::start(self.inner.clone()).await
    }

    /// Works until `stop` resolves (`bus.run_until(tokio::signal::ctrl_c())`), then shuts down with 30 seconds of grace.
    ///
    /// # Errors
    /// As for [`start`](EventBus::start) and [`Worker::shutdown`].
    ///
    /// # Cancel safety
    /// A dropped future stops the worker without grace.
    pub async fn run_until<T>(&self, stop: impl Future<Output = T>) -> Result<()> {
        let mut worker = self.start().await?;
        tokio::select! {
            _ = stop => worker.shutdown(Duration::from_secs(30)).await.map(drop),
            end = worker.ended() => end,
        }
    }

    /// Dead letters that match `filter`, in the order of their ids, at most `limit`, only those after `after`.
    ///
    /// # Errors
    /// `Unsupported` where the backend keeps none.
    ///
    /// # Cancel safety
    /// Only reads.
    pub async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        after: Option<DeliveryId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>> {
        self.inner.backend.dead_letters(filter, after, limit).await
    }

    /// Gives dead letters a new life, with all attempts before them. Each joins the end of its key's line, in the order
    /// of original publication; one that holds its key comes back in its old place. Returns how many.
    ///
    /// # Errors
    /// `Unsupported` where the backend keeps none.
    ///
    /// # Cancel safety
    /// A dropped future leaves each dead letter as it was or replayed; calling again goes on.
    pub async fn replay(&self, filter: &DeadLetterFilter) -> Result<u64> {
        self.inner.backend.replay(filter).await
    }

    /// Deletes dead letters and lets go of the keys they hold. Returns how many.
    ///
    /// # Errors
    /// `Unsupported` where the backend keeps none.
    ///
    /// # Cancel safety
    /// A dropped future leaves each dead letter as it was or deleted.
    pub async fn purge(&self, filter: &DeadLetterFilter) -> Result<u64> {
        self.inner.backend.purge(filter).await
    }

    /// How many deliveries the store holds, per handler.
    ///
    /// # Errors
    /// `Unsupported` where the medium cannot count.
    ///
    /// # Cancel safety
    /// Only reads.
    pub async fn counts(&self) -> Result<Vec<HandlerCounts>> {
        self.inner.backend.counts().await
    }

    /// The same handlers and settings over another backend, which is not told of it
    /// ([`attach`](Backend::attach), [`built`](Backend::built)).
    #[must_use]
    pub fn with_backend(&self, backend: Arc<dyn Backend>) -> Self {
        let Inner { registry, environment, worker, max_event_bytes, names, .. } = &*self.inner;
        Self {
            inner: Arc::new(Inner {
                registry: registry.clone(),
                backend,
                environment: environment.clone(),
                worker: worker.clone(),
                max_event_bytes: *max_event_bytes,
                names: RwLock::new(names.read().unwrap_or_else(PoisonError::into_inner).clone()),
            }),
        }
    }

    /// The clock and the randomness it was built with.
    pub fn environment(&self) -> &Environment {
        &self.inner.environment
    }

    /// The backend, to ask what it offers.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.inner.backend
    }

    /// The handlers of this bus.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.inner.registry
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }
}

impl fmt::Debug for EventBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventBus")
            .field("backend", &self.inner.backend.name())
            .field("registry", &self.inner.registry)
            .finish_non_exhaustive()
    }
}

impl Inner {
    /// The shared form of an event's name.
    pub(crate) fn event_name(&self, name: &'static str) -> Arc<str> {
        // A panic while the map is held leaves it valid.
        if let Some(shared) = self.names.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return shared.clone();
        }
        self.names
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(name)
            .or_insert_with(|| name.into())
            .clone()
    }
}

/// Puts a bus together. Every invalid setting is reported by [`build`](Builder::build), all at once.
#[derive(Default)]
pub struct Builder {
    handlers: Vec<Registered>,
    backend: Option<Arc<dyn Backend>>,
    environment: Environment,
    worker: WorkerSettings,
    max_event_bytes: Option<usize>,
}

impl Builder {
    /// The largest event by default: 1 MiB of payload, key and headers. Larger facts belong in a blob store, with their
    /// address in the event.
    pub const MAX_EVENT_BYTES: usize = 1024 * 1024;

    /// Registers a handler. The order of registration is the order in which handlers are asked and, inline, run.
    #[must_use]
    pub fn handler<H: Handler>(mut self, handler: H) -> Self {
        self.handlers.push(Registered::new(handler));
        self
    }

    /// Registers a closure with the default options:
    /// `.handle_fn("mail.welcome", |event: UserRegistered| async move { Ok(()) })`.
    #[must_use]
    pub fn handle_fn<E, F, Fut>(self, name: &str, run: F) -> Self
    where
        E: Events,
        F: Fn(E) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        self.handle_fn_with(name, HandlerOptions::default(), run)
    }

    /// Registers a closure with options.
    #[must_use]
    pub fn handle_fn_with<E, F, Fut>(mut self, name: &str, options: HandlerOptions, run: F) -> Self
    where
        E: Events,
        F: Fn(E) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        self.handlers.push(Registered::from_closure(name, options, run));
        self
    }

    /// The store. Required.
    #[must_use]
    pub fn backend(mut self, backend: impl Backend) -> Self {
        self.backend = Some(Arc::new(backend));
        self
    }

    /// A store that is already shared.
    #[must_use]
    pub fn shared_backend(mut self, backend: Arc<dyn Backend>) -> Self {
        self.backend = Some(backend);
        self
    }

    /// How many deliveries one worker runs at the same time; default 64, at least 1.
    #[must_use]
    pub fn concurrency(mut self, deliveries: usize) -> Self {
        self.worker.concurrency = deliveries;
        self
    }

    /// How many deliveries of each handler one worker holds in memory, running ones included; default 1024. More hides
    /// the round trip to the store better; fewer take less memory and leave more to other workers.
    #[must_use]
    pub fn window(mut self, deliveries: usize) -> Self {
        self.worker.window = deliveries;
        self
    }

    /// The longest pause between two looks into an idle store; default 1 second. Notifications make most looks
    /// unnecessary, but they are hints: this is what bounds the delay when one is lost.
    #[must_use]
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.worker.poll_interval = interval;
        self
    }

    /// The largest event, in bytes of payload, key and headers; default [`Builder::MAX_EVENT_BYTES`].
    #[must_use]
    pub fn max_event_bytes(mut self, bytes: usize) -> Self {
        self.max_event_bytes = Some(bytes);
        self
    }

    /// The clock and the randomness; for simulations.
    #[must_use]
    pub fn environment(mut self, environment: Environment) -> Self {
        self.environment = environment;
        self
    }

    /// The bus.
    ///
    /// # Errors
    /// `InvalidConfiguration` with every problem found: no backend, a name twice or malformed, an option out of range;
    /// `Unsupported` if a handler asks for what the backend lacks.
    pub fn build(self) -> Result<EventBus> {
        let mut problems = self.worker.problems();
        if self.max_event_bytes == Some(0) {
            problems.push("max_event_bytes is 0".to_owned());
        }
        if self.backend.is_none() {
            problems.push("no backend: call .backend(..) or .connect(url)".to_owned());
        }
        let registry = match Registry::new(self.handlers) {
            Ok(registry) => Some(registry),
            Err(more) => {
                problems.extend(more);
                None
            }
        };
        let (Some(backend), Some(registry), true) = (self.backend, registry, problems.is_empty()) else {
            return Err(Error::new(ErrorKind::InvalidConfiguration, "build", problems.join("; ")));
        };
        refuse_unsupported(&registry, &*backend)?;
        let registry = Arc::new(registry);
        backend.attach(&registry)?;
        let bus = EventBus {
            inner: Arc::new(Inner {
                registry,
                backend,
                environment: self.environment,
                worker: self.worker,
                max_event_bytes: self.max_event_bytes.unwrap_or(Self::MAX_EVENT_BYTES),
                names: RwLock::default(),
            }),
        };
        bus.inner.backend.built(&bus);
        Ok(bus)
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("handlers", &self.handlers)
            .field("backend", &self.backend.as_ref().map(|backend| backend.name()))
            .finish_non_exhaustive()
    }
}

fn refuse_unsupported(registry: &Registry, backend: &dyn Backend) -> Result<()> {
    let capabilities = backend.capabilities();
    for handler in registry.handlers() {
        // Without durability there are no retries, so no head ever holds a key: nothing to refuse.
        if capabilities.durable
            && !capabilities.hold_key
            && handler.options().on_exhausted == Exhausted::HoldKey
        {
            let wish = format!("on_exhausted(HoldKey), which handler {:?} asks for", handler.name());
            return Err(Error::unsupported("build", backend.name(), &wish));
        }
    }
    Ok(())
}
