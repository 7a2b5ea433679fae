//! What is measured: a store, and beside it the bare driver doing the same with the best statements known.

use event_bus::async_trait;
use hdrhistogram::Histogram;

use crate::AnyError;

/// A kind of store.
#[async_trait]
pub trait Target: Send + Sync {
    /// The backend's word.
    fn name(&self) -> &'static str;

    /// An empty store that nobody else uses; gone when it is dropped.
    async fn fresh(&self) -> Result<Box<dyn Store>, AnyError>;
}

/// An empty store.
#[async_trait]
pub trait Store: Send + Sync {
    /// Its address, for `connect`.
    fn url(&self) -> String;

    /// How many deliveries may stand behind one key before others wait with it. `None`: as many as one likes.
    fn longest_line(&self) -> Option<usize> {
        None
    }

    /// What the bare driver does with `count` payloads, apart from what the bus keeps in this store. `None` where nobody has
    /// measured such a thing.
    async fn raw(&self, question: Raw, count: usize, payload: &[u8]) -> Result<Option<Measured>, AnyError>;
}

/// A question to the bare driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raw {
    /// One payload a call, as 16 tasks would.
    Singles,
    /// 1,000 payloads a call.
    Batches,
    /// Reading and acknowledging a backlog of that many. It is loaded before the clock starts.
    Drain,
    /// From the call that stores to the reader, at 200 per second.
    Latency,
    /// Singles by 16 tasks, read and acknowledged at the same time.
    PublishAndProcess,
}

/// What the bare driver did.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// How, in a few words: `raw sqlx, update + delete of 500`.
    pub how: &'static str,
    pub figure: Figure,
}

#[derive(Clone, Copy, Debug)]
pub enum Figure {
    PerSecond(f64),
    Latency { p50_ms: f64, p99_ms: f64 },
}

impl Figure {
    /// Of nanoseconds.
    pub fn latency(nanos: &Histogram<u64>) -> Self {
        let ms = |quantile| nanos.value_at_quantile(quantile) as f64 / 1e6;
        Self::Latency { p50_ms: ms(0.5), p99_ms: ms(0.99) }
    }
}
