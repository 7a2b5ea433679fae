//! The same event and the same handler everywhere: about 200 bytes, and nothing to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use event_bus::prelude::*;
use tokio::sync::Notify;

/// An event of about 200 bytes of CBOR.
#[derive(Clone, Debug, Serialize, Deserialize, Event)]
#[event(name = "bench.ticked", partitioned)]
pub struct Ticked {
    pub number: u64,
    pub key: Option<String>,
    pub sent_at_nanos: u64,
    pub filling: String,
}

impl Partitioned for Ticked {
    fn partition_key(&self) -> Option<std::borrow::Cow<'_, str>> {
        self.key.as_deref().map(std::borrow::Cow::Borrowed)
    }
}

impl Ticked {
    pub fn new(number: u64, keys: Option<u64>) -> Self {
        Self {
            number,
            key: keys.map(|keys| format!("key-{}", number % keys)),
            sent_at_nanos: nanos(),
            filling: "x".repeat(140),
        }
    }

    pub fn many(count: usize, keys: Option<u64>) -> Vec<Self> {
        (0..count as u64).map(|number| Self::new(number, keys)).collect()
    }
}

/// Nanoseconds of the wall clock, for latencies within one machine.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures the real world")]
pub fn nanos() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// Counts runs and wakes who waits for a number of them.
#[derive(Clone, Default)]
pub struct Counter(Arc<(AtomicU64, AtomicU64, Notify)>);

impl Counter {
    pub fn add(&self) {
        let count = self.0.0.fetch_add(1, Ordering::Relaxed) + 1;
        if count == self.0.1.load(Ordering::Relaxed) {
            self.0.2.notify_one();
        }
    }

    /// Waits until `count` runs have ended.
    pub async fn wait_for(&self, count: u64) {
        self.0.1.store(count, Ordering::SeqCst);
        while self.0.0.load(Ordering::SeqCst) < count {
            self.0.2.notified().await;
        }
    }
}

/// Events per second since `start`.
pub fn rate(count: usize, start: Instant) -> f64 {
    count as f64 / start.elapsed().as_secs_f64()
}
