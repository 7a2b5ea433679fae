//! The engine alone: lanes, executor, settle buffer over a store that costs nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use event_bus::EventBus;
use event_bus::prelude::*;
use tokio::sync::Semaphore;

use crate::AnyError;
use crate::event::{Counter, Ticked, rate};
use crate::memory::MemoryBackend;
use crate::report::Report;
use crate::scenarios::Scale;

/// Deliveries per second for free and keyed deliveries, and bytes per waiting delivery.
pub async fn measure(scale: Scale, report: &mut Report) -> Result<(), AnyError> {
    let count = 1_000_000 / scale.divisor;
    let payload = event_bus::codec::encode(&Ticked::new(1, None))?;
    // First, before other runs leave freed memory behind that would be used again unseen.
    let bytes = waiting_memory(count.min(200_000), &payload).await?;
    report.add("engine", "memory of a waiting delivery", "bytes", vec![bytes]);
    for (what, keys) in [("free", None), ("1,000 keys", Some(1_000)), ("10 keys", Some(10))] {
        let mut samples = Vec::new();
        for _ in 0..scale.runs {
            let counter = Counter::default();
            let counted = counter.clone();
            let bus = EventBus::builder()
                .backend(MemoryBackend::preloaded(Ticked::NAME, &payload, count, keys))
                .handle_fn("bench.nothing", move |_: Ticked| {
                    counted.add();
                    async { Ok(()) }
                })
                .build()?;
            let start = Instant::now();
            let worker = bus.start().await?;
            counter.wait_for(count as u64).await;
            samples.push(rate(count, start));
            worker.shutdown(Duration::from_secs(5)).await?;
        }
        report.add("engine", what, "deliveries/s", samples);
    }
    Ok(())
}

/// Fills a window with deliveries that wait behind one that does not end, and compares the process's memory.
async fn waiting_memory(count: usize, payload: &bytes::Bytes) -> Result<f64, AnyError> {
    let gate = Arc::new(Semaphore::new(0));
    let opener = gate.clone();
    let before = resident_bytes()?;
    let bus = EventBus::builder()
        .backend(MemoryBackend::preloaded(Ticked::NAME, payload, count, Some(1_000)))
        .window(count)
        .concurrency(1)
        .handle_fn("bench.blocked", move |_: Ticked| {
            let gate = gate.clone();
            async move {
                gate.acquire().await?.forget();
                Ok(())
            }
        })
        .build()?;
    let worker = bus.start().await?;
    // The store empties into the engine: what it held is counted as well, so this is an upper bound.
    while worker.stats().started_total == 0 {
        tokio::task::yield_now().await;
    }
    let after = resident_bytes()?;
    opener.add_permits(1);
    worker.shutdown(Duration::ZERO).await?;
    Ok((after.saturating_sub(before)) as f64 / count as f64)
}

/// The resident memory of this process.
pub fn resident_bytes() -> Result<u64, AnyError> {
    memory_line("VmRSS:")
}

/// The most this process ever had.
pub fn peak_bytes() -> Result<u64, AnyError> {
    memory_line("VmHWM:")
}

fn memory_line(name: &str) -> Result<u64, AnyError> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line =
        status.lines().find_map(|line| line.strip_prefix(name)).ok_or("no such line in /proc/self/status")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024)
}
