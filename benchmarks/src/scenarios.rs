//! One scenario a question, each over the public API and a fresh store, beside the bare driver.

use std::time::{Duration, Instant};

use event_bus::EventBus;
use event_bus::prelude::*;
use hdrhistogram::Histogram;
use tokio::sync::mpsc;

use crate::AnyError;
use crate::engine::peak_bytes;
use crate::event::{Counter, Ticked, nanos, rate};
use crate::report::Report;
use crate::target::{Figure, Raw, Store, Target};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    pub divisor: usize,
    pub runs: usize,
}

/// Rates of the bus and of the bare driver, taken in turns.
#[derive(Default)]
struct Rates {
    ours: Vec<f64>,
    raw: Vec<f64>,
    how: &'static str,
}

impl Rates {
    async fn add_raw(&mut self, store: &dyn Store, question: Raw, count: usize) -> Result<(), AnyError> {
        let payload = event_bus::codec::encode(&Ticked::new(1, None))?;
        if let Some(measured) = store.raw(question, count, &payload).await?
            && let Figure::PerSecond(rate) = measured.figure
        {
            self.how = measured.how;
            self.raw.push(rate);
        }
        Ok(())
    }

    fn report(self, report: &mut Report, workload: &str, what: &str, unit: &'static str) {
        let ours = report.add(workload, what, unit, self.ours);
        if !self.raw.is_empty() {
            let raw = report.add(workload, self.how, unit, self.raw);
            report.add(workload, "ours / raw", "ratio", vec![ours / raw]);
        }
    }
}

/// A bus whose handler counts.
async fn counting_bus(url: &str, counter: &Counter) -> Result<EventBus, AnyError> {
    let counted = counter.clone();
    let builder = EventBus::builder().handle_fn("bench.nothing", move |_: Ticked| {
        counted.add();
        async { Ok(()) }
    });
    let bus = builder.connect(url).await?.build()?;
    bus.migrate().await?;
    Ok(bus)
}

/// A1: 16 publishers, one call an event.
pub async fn publish_singles(target: &dyn Target, scale: Scale, report: &mut Report) -> Result<(), AnyError> {
    let count = 64_000 / scale.divisor;
    let mut rates = Rates::default();
    for _ in 0..scale.runs {
        let store = target.fresh().await?;
        let bus = counting_bus(&store.url(), &Counter::default()).await?;
        let start = Instant::now();
        publish_from(16, &bus, count).await?;
        rates.ours.push(rate(count, start));
        rates.add_raw(&*store, Raw::Singles, count).await?;
    }
    rates.report(report, "a1", "publish, 16 tasks", "events/s");
    Ok(())
}

async fn publish_from(tasks: usize, bus: &EventBus, count: usize) -> Result<(), AnyError> {
    let mut publishers = tokio::task::JoinSet::new();
    for task in 0..tasks {
        let bus = bus.clone();
        publishers.spawn(async move {
            for number in 0..count / tasks {
                bus.publish(&Ticked::new((task * count + number) as u64, None)).await?;
            }
            Ok::<(), event_bus::Error>(())
        });
    }
    while let Some(publisher) = publishers.join_next().await {
        publisher??;
    }
    Ok(())
}

/// A2: batches of 1,000.
pub async fn publish_batches(target: &dyn Target, scale: Scale, report: &mut Report) -> Result<(), AnyError> {
    let count = 300_000 / scale.divisor;
    let mut rates = Rates::default();
    for _ in 0..scale.runs {
        let store = target.fresh().await?;
        let bus = counting_bus(&store.url(), &Counter::default()).await?;
        let start = Instant::now();
        preload(&bus, count, None).await?;
        rates.ours.push(rate(count, start));
        rates.add_raw(&*store, Raw::Batches, count).await?;
    }
    rates.report(report, "a2", "publish_all of 1,000", "events/s");
    Ok(())
}

async fn preload(bus: &EventBus, count: usize, keys: Option<u64>) -> Result<(), AnyError> {
    let batch = Ticked::many(1_000, keys);
    for _ in 0..count / 1_000 {
        bus.publish_all(&batch).await?;
    }
    Ok(())
}

/// B and E: draining a preloaded backlog.
pub async fn drain(
    target: &dyn Target,
    scale: Scale,
    report: &mut Report,
    workload: &str,
    keys: Option<u64>,
) -> Result<(), AnyError> {
    let count = 200_000 / scale.divisor;
    let mut rates = Rates::default();
    for _ in 0..scale.runs {
        let store = target.fresh().await?;
        let counter = Counter::default();
        let bus = counting_bus(&store.url(), &counter).await?;
        preload(&bus, count, keys).await?;
        rates.ours.push(drained(&bus, &counter, count).await?);
        rates.add_raw(&*store, Raw::Drain, count).await?;
    }
    let what = keys.map_or("drain".to_owned(), |keys| format!("keyed drain, {keys} keys"));
    rates.report(report, workload, &what, "deliveries/s");
    Ok(())
}

/// Starts a worker on a full store and stops the clock when the store is empty again: durable completion.
async fn drained(bus: &EventBus, counter: &Counter, count: usize) -> Result<f64, AnyError> {
    let start = Instant::now();
    let worker = bus.start().await?;
    counter.wait_for(count as u64).await;
    worker.shutdown(Duration::from_secs(30)).await?;
    let rate = rate(count, start);
    let left: u64 =
        bus.counts().await?.iter().map(|counts| counts.ready + counts.waiting + counts.dead).sum();
    if left > 0 { Err(format!("{left} deliveries are left in the store").into()) } else { Ok(rate) }
}

/// C: latency from publish to handler at 200 per second.
pub async fn latency(target: &dyn Target, scale: Scale, report: &mut Report) -> Result<(), AnyError> {
    let count = 2_000 / scale.divisor;
    let (mut p50, mut p99) = (Vec::new(), Vec::new());
    let (mut raw_p50, mut raw_p99, mut how) = (Vec::new(), Vec::new(), "");
    let payload = event_bus::codec::encode(&Ticked::new(1, None))?;
    for _ in 0..scale.runs {
        let store = target.fresh().await?;
        let (bus, mut latencies) = latency_bus(&store.url()).await?;
        let worker = bus.start().await?;
        let mut every = tokio::time::interval(Duration::from_millis(5));
        let mut histogram = Histogram::<u64>::new(3)?;
        for number in 0..count {
            every.tick().await;
            bus.publish(&Ticked::new(number as u64, None)).await?;
        }
        for _ in 0..count {
            histogram.record(latencies.recv().await.ok_or("the handler is gone")?)?;
        }
        p50.push(histogram.value_at_quantile(0.5) as f64 / 1e6);
        p99.push(histogram.value_at_quantile(0.99) as f64 / 1e6);
        worker.shutdown(Duration::from_secs(5)).await?;
        if let Some(measured) = store.raw(Raw::Latency, count, &payload).await?
            && let Figure::Latency { p50_ms, p99_ms } = measured.figure
        {
            how = measured.how;
            raw_p50.push(p50_ms);
            raw_p99.push(p99_ms);
        }
    }
    for (quantile, ours, raw) in [("p50", p50, raw_p50), ("p99", p99, raw_p99)] {
        let ours = report.add("c", &format!("publish to handler at 200/s, {quantile}"), "ms", ours);
        if !raw.is_empty() {
            let raw = report.add("c", &format!("{how}, {quantile}"), "ms", raw);
            report.add("c", &format!("ours / raw, {quantile}"), "ratio", vec![ours / raw]);
        }
    }
    Ok(())
}

async fn latency_bus(url: &str) -> Result<(EventBus, mpsc::UnboundedReceiver<u64>), AnyError> {
    let (report, latencies) = mpsc::unbounded_channel();
    let builder = EventBus::builder().handle_fn("bench.latency", move |event: Ticked| {
        // Nobody listening is no failure of the handler.
        let _ = report.send(nanos().saturating_sub(event.sent_at_nanos));
        async { Ok(()) }
    });
    let bus = builder.connect(url).await?.build()?;
    bus.migrate().await?;
    Ok((bus, latencies))
}

/// D: 16 publishers, single events, processed at the same time.
pub async fn publish_and_process(
    target: &dyn Target,
    scale: Scale,
    report: &mut Report,
) -> Result<(), AnyError> {
    let count = 64_000 / scale.divisor;
    let mut rates = Rates::default();
    for _ in 0..scale.runs {
        let store = target.fresh().await?;
        let counter = Counter::default();
        let bus = counting_bus(&store.url(), &counter).await?;
        let worker = bus.start().await?;
        let start = Instant::now();
        publish_from(16, &bus, count).await?;
        counter.wait_for(count as u64).await;
        worker.shutdown(Duration::from_secs(30)).await?;
        rates.ours.push(rate(count, start));
        rates.add_raw(&*store, Raw::PublishAndProcess, count).await?;
    }
    rates.report(report, "d", "publish (16 tasks) and process", "events/s");
    Ok(())
}

/// Draining backlogs of three sizes, each in a process of its own, whose peak memory is reported.
pub async fn backlog(target: &dyn Target, scale: Scale, report: &mut Report) -> Result<(), AnyError> {
    for count in [10_000, 100_000, 1_000_000] {
        let count = count / scale.divisor;
        let store = target.fresh().await?;
        let url = store.url();
        preload(&counting_bus(&url, &Counter::default()).await?, count, Some(1_000)).await?;
        let output = tokio::task::spawn_blocking(move || {
            std::process::Command::new(std::env::current_exe()?).arg("--drain").arg(url).output()
        })
        .await??;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        let text = String::from_utf8(output.stdout)?;
        let mut figures = text.split_whitespace().map(str::parse::<f64>);
        let rate = figures.next().ok_or("no rate")??;
        let megabytes = figures.next().ok_or("no memory")?? / 1e6;
        report.add("backlog", &format!("drain of {count}"), "deliveries/s", vec![rate]);
        report.add("backlog", &format!("peak memory of the worker, {count}"), "MB", vec![megabytes]);
    }
    Ok(())
}

/// The child of [`backlog`].
pub async fn drain_in_this_process(url: &str) -> Result<(), AnyError> {
    let counter = Counter::default();
    let bus = counting_bus(url, &counter).await?;
    let count: u64 = bus.counts().await?.iter().map(|counts| counts.ready).sum();
    let rate = drained(&bus, &counter, usize::try_from(count)?).await?;
    let peak = peak_bytes()?;
    use std::io::Write as _;
    writeln!(std::io::stdout(), "{rate} {peak}")?;
    Ok(())
}

/// Publishing and draining with one and with five handlers: cost per delivery.
pub async fn fan_out(target: &dyn Target, scale: Scale, report: &mut Report) -> Result<(), AnyError> {
    let count = 60_000 / scale.divisor;
    for handlers in [1, 5] {
        let (mut published, mut drained) = (Vec::new(), Vec::new());
        for _ in 0..scale.runs {
            let store = target.fresh().await?;
            let counter = Counter::default();
            let mut builder = EventBus::builder();
            for handler in 0..handlers {
                let counted = counter.clone();
                builder = builder.handle_fn(&format!("bench.nothing-{handler}"), move |_: Ticked| {
                    counted.add();
                    async { Ok(()) }
                });
            }
            let bus = builder.connect(&store.url()).await?.build()?;
            bus.migrate().await?;
            let start = Instant::now();
            preload(&bus, count, None).await?;
            published.push(rate(count * handlers, start));
            drained.push(self::drained(&bus, &counter, count * handlers).await?);
        }
        report.add("fan-out", &format!("publish_all to {handlers}"), "deliveries/s", published);
        report.add("fan-out", &format!("drain of {handlers}"), "deliveries/s", drained);
    }
    Ok(())
}

/// Other keys' latency without and with one key blocked and 100,000 behind it, or as many as the store allows.
pub async fn blocked_key(target: &dyn Target, scale: Scale, report: &mut Report) -> Result<(), AnyError> {
    let count = 1_000 / scale.divisor;
    let mut p99s = Vec::new();
    for is_blocked in [false, true] {
        let store = target.fresh().await?;
        let behind = (100_000 / scale.divisor).min(store.longest_line().unwrap_or(usize::MAX));
        let (report_latency, mut latencies) = mpsc::unbounded_channel();
        let backoff = Backoff::fixed(Duration::from_secs(3600));
        let options = HandlerOptions::new().backoff(backoff);
        let builder = EventBus::builder().handle_fn_with("bench.latency", options, move |event: Ticked| {
            let is_stuck = event.key.as_deref() == Some("stuck");
            let latency = nanos().saturating_sub(event.sent_at_nanos);
            let report = report_latency.clone();
            async move {
                if is_stuck {
                    return Err(Failure::retry("blocked on purpose"));
                }
                let _ = report.send(latency);
                Ok(())
            }
        });
        let bus = builder.connect(&store.url()).await?.build()?;
        bus.migrate().await?;
        if is_blocked {
            let mut batch = Ticked::many(1_000, None);
            batch.iter_mut().for_each(|event| event.key = Some("stuck".into()));
            for start in (0..behind).step_by(batch.len()) {
                bus.publish_all(&batch[..batch.len().min(behind - start)]).await?;
            }
        }
        let worker = bus.start().await?;
        let mut every = tokio::time::interval(Duration::from_millis(5));
        let mut histogram = Histogram::<u64>::new(3)?;
        // The first ones wait until the line behind the blocked key has been parked: that is measured, too, but apart.
        bus.publish(&Ticked::new(0, Some(1_000))).await?;
        let first = latencies.recv().await.ok_or("the handler is gone")? as f64 / 1e6;
        for number in 0..count {
            every.tick().await;
            bus.publish(&Ticked::new(number as u64, Some(1_000))).await?;
            histogram.record(latencies.recv().await.ok_or("the handler is gone")?)?;
        }
        let what =
            if is_blocked { format!("{behind} behind a blocked key") } else { "nothing blocked".to_owned() };
        report.add("blocked", &format!("first event of another key, {what}"), "ms", vec![first]);
        let p99 = histogram.value_at_quantile(0.99) as f64 / 1e6;
        p99s.push(report.add("blocked", &format!("other keys' p99, {what}"), "ms", vec![p99]));
        worker.shutdown(Duration::from_secs(5)).await?;
    }
    if let [free, blocked] = p99s[..] {
        report.add("blocked", "p99 blocked / free", "ratio", vec![blocked / free]);
    }
    Ok(())
}
