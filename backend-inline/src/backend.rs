//! The backend: takes a publication and runs it on the spot.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use event_bus_core::backend::{
    Addressed, Backend, Capabilities, Delivery, DeliveryId, ErrorLog, HandlerIndex, Partition, Publication,
    Session, Stored, WorkerSpec,
};
use event_bus_core::registry::{Registered, Registry};
use event_bus_core::retry::RunEnd;
use event_bus_core::run::run;
use event_bus_core::{Context, Error, ErrorKind, Result};

use crate::error::{FailedRun, FailedRuns};

/// The word for logs and errors.
const NAME: &str = "inline";

/// How deep calls of `publish` may stand inside one another through handlers that publish: 32.
///
/// Handlers that publish in a circle would otherwise overflow the stack and take the process with them, where a durable
/// backend merely never comes to rest. Real chains are a few events deep; in a debug build
/// a level of trivial handlers takes about 10 KiB of a thread's 2 MiB.
pub const MAX_DEPTH: u32 = 32;

tokio::task_local! {
    /// How many inline publish calls this task stands in.
    static DEPTH: u32;
}

/// Runs handlers inside `publish`, in order. See the [crate's documentation](crate) for what holds.
///
/// It serves the one bus it was built into: `build` of a second bus over the same shared backend fails.
///
/// # Cancel safety
/// A dropped `publish` drops the running handler at its await point; the handlers before it have run, those after it
/// have not.
#[derive(Debug, Default)]
pub struct InlineBackend {
    registry: OnceLock<Arc<Registry>>,
}

impl InlineBackend {
    /// A backend that stores nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs everything, and returns how many runs there were beside those that failed.
    async fn run_all(registry: &Registry, events: &[Addressed]) -> Result<(usize, Vec<FailedRun>)> {
        let mut runs = 0;
        let mut failed = Vec::new();
        for event in events {
            for name in event.handlers.iter() {
                let (index, handler) = find(registry, name)?;
                runs += 1;
                let end = run_once(index, handler, event).await;
                if let Some(failure) = FailedRun::from_end(handler.name(), &event.envelope, end) {
                    failed.push(failure);
                }
            }
        }
        Ok((runs, failed))
    }
}

#[async_trait]
impl Backend for InlineBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE
    }

    fn attach(&self, registry: &Arc<Registry>) -> Result<()> {
        self.registry.set(registry.clone()).map_err(|_| {
            let message =
                "this inline backend already runs the handlers of another bus; give each bus its own";
            Error::new(ErrorKind::InvalidConfiguration, "build", message).with_backend(NAME)
        })
    }

    async fn prepare(&self) -> Result<()> {
        Ok(())
    }

    async fn publish(&self, publication: Publication) -> Result<Stored> {
        let Some(registry) = self.registry.get() else {
            let message = "no bus was built over this backend, so it knows no handlers";
            return Err(Error::new(ErrorKind::InvalidConfiguration, "publish", message).with_backend(NAME));
        };
        let depth = DEPTH.try_with(|depth| *depth).unwrap_or(0);
        if depth >= MAX_DEPTH {
            let wish = format!("publish calls more than {MAX_DEPTH} deep; do handlers publish in a circle?");
            return Err(Error::unsupported("publish", NAME, &wish));
        }
        let (runs, failed) = DEPTH.scope(depth + 1, Self::run_all(registry, &publication.events)).await?;
        if failed.is_empty() { Ok(Stored::New) } else { Err(FailedRuns::new(runs, failed).into()) }
    }

    async fn open(&self, _: &WorkerSpec) -> Result<Arc<dyn Session>> {
        Err(Error::unsupported("start", NAME, "a worker: its handlers run inside publish"))
    }
}

fn find<'a>(registry: &'a Registry, name: &str) -> Result<(HandlerIndex, &'a Registered)> {
    let mut handlers = (0_u32..).map(HandlerIndex).zip(registry.handlers());
    handlers.find(|(_, handler)| &**handler.name() == name).ok_or_else(|| {
        let message = format!("no handler is called {name:?}");
        Error::new(ErrorKind::InvalidConfiguration, "publish", message).with_backend(NAME)
    })
}

/// The first attempt, which is the last one as well.
async fn run_once(index: HandlerIndex, handler: &Registered, event: &Addressed) -> RunEnd {
    let delivery = Delivery {
        id: DeliveryId(event.envelope.id.as_uuid().as_u128()),
        partition: Partition { handler: index, number: Partition::WHOLE },
        envelope: event.envelope.clone(),
        failures: 0,
        crashes: 0,
        errors: ErrorLog::default(),
        due_in: None,
        is_held: false,
        fence: 0,
    };
    run(handler, &Context::detached(handler.name().clone(), Arc::new(delivery), 1)).await
}
