//! Handlers inside `publish`: mostly the mirror cases.

use std::sync::Arc;

use event_bus::InlineBackend;
use event_bus::async_trait;
use event_bus::backend::{Backend, Capabilities};
use event_bus_conformance::suite::{Harness, Sandbox};

pub(crate) struct Inline;

struct Nowhere;

#[async_trait]
impl Harness for Inline {
    fn name(&self) -> &'static str {
        "inline"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE
    }

    async fn sandbox(&self) -> Arc<dyn Sandbox> {
        Arc::new(Nowhere)
    }
}

#[async_trait]
impl Sandbox for Nowhere {
    fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(InlineBackend::new())
    }
}
