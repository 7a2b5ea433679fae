//! The worker: claim, run, settle; written once for every backend.
use crate::bus::Inner;
use crate::error::Result;
use std::sync::Arc;
use std::time::Duration;
/// A running worker.
#[derive(Debug)]
pub struct Worker;
/// What a shutdown did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Drained;
pub(crate) struct WorkerSettings {
    pub(crate) concurrency: usize,
    pub(crate) window: usize,
    pub(crate) poll_interval: Duration,
}
impl Default for WorkerSettings {
    fn default() -> Self {
        Self { concurrency: 64, window: 1024, poll_interval: Duration::from_secs(1) }
    }
}
impl WorkerSettings {
    pub(crate) fn problems(&self) -> Vec<String> {
        Vec::new()
    }
}
impl Worker {
    pub(crate) fn start(_bus: Arc<Inner>) -> Result<Self> {
        Ok(Self)
    }
    /// Stops.
    pub async fn shutdown(self, _grace: Duration) -> Result<Drained> {
        Ok(Drained)
    }
    /// Ends.
    pub async fn ended(&mut self) -> Result<()> {
        std::future::pending().await
    }
}
