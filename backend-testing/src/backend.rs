//! The backend: hands each publish call to the test it belongs to.

use std::fmt;
use std::panic::Location;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use event_bus_core::backend::{
    Backend, Capabilities, ClaimRequest, Claimed, Connection, Delivery, Notice, Publication, Session,
    SettleBatch, Stored, Watched, Watcher, WorkerSpec,
};
use event_bus_core::registry::Registry;
use event_bus_core::{Error, ErrorKind, EventBus, Result};

use crate::TestSession;
use crate::ownership::Owners;
use crate::state::State;
use crate::strays::Strays;

/// The word for logs and errors.
pub(crate) const NAME: &str = "testing";

/// Records what is published, test by test. See the [crate's documentation](crate).
///
/// A cheap clone: give one to the bus and keep one for [`session`](TestingBackend::session). It serves one bus, made for
/// one test or shared by all tests of the process. It offers delays, idempotency keys and transactions; an event
/// published within a transaction is recorded at once, and a rollback does not take it back.
#[derive(Clone, Default)]
pub struct TestingBackend {
    shared: Arc<Shared>,
    /// The test that a bus from `test.bus()` belongs to.
    bound: Option<Arc<State>>,
}

/// What all tests over one backend share.
#[derive(Default)]
pub(crate) struct Shared {
    is_attached: AtomicBool,
    /// The bus that was built, over a backend of its own: this one would own itself in a circle.
    bus: OnceLock<EventBus>,
    pub(crate) owners: Owners,
    pub(crate) strays: Strays,
}

impl Shared {
    pub(crate) fn bus(&self) -> Result<&EventBus> {
        self.bus.get().ok_or_else(|| {
            let message =
                "no bus was built over this testing backend; give a clone of it to Builder::backend";
            Error::new(ErrorKind::InvalidConfiguration, "publish", message).with_backend(NAME)
        })
    }
}

impl TestingBackend {
    /// A backend that knows no test yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// One test's view, in [`Mode::Default`](crate::Mode::Default). What the calling task publishes from now on belongs
    /// to it (or the calling thread, outside spawned tasks).
    ///
    /// # Panics
    /// If the calling task has a session of this backend already.
    #[track_caller]
    #[must_use = "dropping the session ends the test"]
    pub fn session(&self) -> TestSession {
        let session = self.detached_session();
        session.own_caller();
        session
    }

    /// As [`session`](TestingBackend::session), but the calling task does not belong to it: only what is joined does, and
    /// what publishes on its [`bus`](crate::TestHandle::bus). For several sessions in one task.
    #[track_caller]
    #[must_use = "dropping the session ends the test"]
    pub fn detached_session(&self) -> TestSession {
        TestSession::new(State::new(self.shared.clone(), Location::caller()))
    }

    pub(crate) fn bound_to(state: Arc<State>) -> Self {
        Self { shared: state.shared.clone(), bound: Some(state) }
    }
}

impl fmt::Debug for TestingBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestingBackend").field("is_bound", &self.bound.is_some()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Watcher for TestingBackend {
    async fn published(&self, call: Watched) -> Result<Stored> {
        match self.bound.clone().or_else(|| self.shared.owners.find()) {
            Some(state) => state.publish(call).await,
            None => {
                self.shared.strays.note(&call);
                Ok(Stored::New)
            }
        }
    }
}

#[async_trait]
impl Backend for TestingBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        // Not durable: nothing is left to a worker. No dead letters: they belong to a test, which shows them.
        Capabilities { durable: false, dead_letters: false, parking: false, ..Capabilities::ALL }
    }

    fn attach(&self, _: &Arc<Registry>) -> Result<()> {
        if self.shared.is_attached.swap(true, Ordering::Relaxed) {
            let message = "this testing backend already serves another bus; give each bus its own";
            return Err(Error::new(ErrorKind::InvalidConfiguration, "build", message).with_backend(NAME));
        }
        Ok(())
    }

    fn built(&self, bus: &EventBus) {
        // Attached only once, so it is still empty.
        let _ = self.shared.bus.set(bus.with_backend(Arc::new(Self::new())));
    }

    fn watcher(&self) -> Option<&dyn Watcher> {
        Some(self)
    }

    async fn prepare(&self) -> Result<()> {
        Ok(())
    }

    async fn publish(&self, publication: Publication) -> Result<Stored> {
        let debug = vec![None; publication.events.len()];
        self.published(Watched { publication, debug }).await
    }

    async fn publish_in(&self, _: Connection<'_>, publication: Publication) -> Result<Stored> {
        self.publish(publication).await
    }

    async fn open(&self, _: &WorkerSpec) -> Result<Arc<dyn Session>> {
        Ok(Arc::new(Answering))
    }
}

/// A worker's session with nothing to claim; it says yes to `complete_in`.
pub(crate) struct Answering;

#[async_trait]
impl Session for Answering {
    async fn claim(&self, _: &ClaimRequest) -> Result<Claimed> {
        Ok(Claimed::default())
    }

    async fn settle(&self, _: &SettleBatch) -> Result<()> {
        Ok(())
    }

    async fn complete_in(&self, _: Connection<'_>, _: &Delivery) -> Result<()> {
        Ok(())
    }

    async fn wait(&self) -> Notice {
        std::future::pending().await
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}
