//! The backend: takes a publication and runs it on the spot.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use event_bus_core::backend::{Backend, Capabilities, Publication, Session, Stored, WorkerSpec};
use event_bus_core::inline::run_all;
use event_bus_core::registry::Registry;
use event_bus_core::{Error, ErrorKind, Result};

/// The word for logs and errors.
const NAME: &str = "inline";

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
        run_all(registry, &publication.events, None, NAME).await?;
        Ok(Stored::New)
    }

    async fn open(&self, _: &WorkerSpec) -> Result<Arc<dyn Session>> {
        Err(Error::unsupported("start", NAME, "a worker: its handlers run inside publish"))
    }
}
