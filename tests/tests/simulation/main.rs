//! The engine under simulation: seeded lives of a few workers over a store that fails in every way the contract permits,
//! under a paused clock, each checked for broken promises.
//!
//! `EVENT_BUS_SIM_SEEDS=10000` says how many seeds (default 300), `EVENT_BUS_SIM_FIRST=5000` with which to begin;
//! `EVENT_BUS_SIM_SEED=17` replays one and prints its whole history, with `RUST_LOG=trace` beside what the engine and the
//! store log.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test: nothing of it is seen from outside, and it fails by panicking"
)]

mod controller;
mod events;
mod handlers;
mod plan;
mod publishers;
mod world;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use event_bus_conformance::history::History;

/// How long one seed may take on the wall clock. A seed takes milliseconds; what takes longer loops without waiting.
const SEED_LIMIT: Duration = Duration::from_secs(120);

/// How many failing seeds are shown in full.
const SHOWN: usize = 3;

/// What became of a seed.
pub struct Outcome {
    history: History,
    /// Broken promises, in words, by kind.
    violations: Vec<(String, String)>,
    /// What happened, counted.
    tally: BTreeMap<&'static str, u64>,
}

fn simulate(seed: u64) -> Outcome {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(controller::simulate(seed))
}

#[test]
fn ten_thousand_lives_break_no_promise() {
    if let Some(seed) = number("EVENT_BUS_SIM_SEED") {
        return replay(seed);
    }
    let count = number("EVENT_BUS_SIM_SEEDS").unwrap_or(300);
    let first = number("EVENT_BUS_SIM_FIRST").unwrap_or(0);
    let begun = Instant::now();
    let next = AtomicU64::new(first);
    let failures = Mutex::new(Vec::new());
    let total: Mutex<BTreeMap<&'static str, u64>> = Mutex::default();
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let watch = Watch::start();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    watch.seed(seed);
                    let outcome = simulate(seed);
                    let mut total = total.lock().unwrap();
                    for (what, count) in &outcome.tally {
                        *total.entry(what).or_default() += count;
                    }
                    if !outcome.violations.is_empty() {
                        failures.lock().unwrap().push((seed, outcome.violations));
                    }
                }
            });
        }
    });
    println!("{count} seeds in {:.1?}: {:?}", begun.elapsed(), total.into_inner().unwrap());
    let mut failures = failures.into_inner().unwrap();
    failures.sort_by_key(|(seed, _)| *seed);
    report(count, &failures);
}

fn report(count: u64, failures: &[(u64, Vec<(String, String)>)]) {
    if failures.is_empty() {
        return;
    }
    let mut kinds: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for (seed, violations) in failures {
        for (kind, _) in violations {
            let seeds = kinds.entry(kind).or_default();
            if seeds.last() != Some(seed) {
                seeds.push(*seed);
            }
        }
    }
    for (seed, violations) in failures.iter().take(SHOWN) {
        println!("seed {seed}:");
        for (_, text) in violations.iter().take(5) {
            println!("  {text}");
        }
    }
    for (kind, seeds) in &kinds {
        println!("{kind}: {} seeds, {:?}", seeds.len(), &seeds[..seeds.len().min(12)]);
    }
    let seed = failures[0].0;
    panic!(
        "{} of {count} seeds broke a promise. Replay one with its history:\n  EVENT_BUS_SIM_SEED={seed} cargo test --release \
         -p event-bus-conformance --test simulation -- --nocapture",
        failures.len()
    );
}

fn replay(seed: u64) {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_ansi(false)
        .with_timer(VirtualTime)
        .init();
    let outcome = simulate(seed);
    println!("{}", outcome.history.to_lines());
    println!("{:?}", outcome.tally);
    for (_, text) in &outcome.violations {
        println!("{text}");
    }
    assert!(outcome.violations.is_empty(), "seed {seed} breaks a promise");
}

/// Dates log lines as the history is dated.
struct VirtualTime;

impl tracing_subscriber::fmt::time::FormatTime for VirtualTime {
    fn format_time(&self, w: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        let now = world::BEGUN.get().map_or(Duration::ZERO, |begun| begun.elapsed());
        write!(w, "{}", now.as_nanos())
    }
}

#[test]
fn the_same_seed_lives_the_same_life() {
    for seed in 0..20 {
        let (one, two) = (simulate(seed), simulate(seed));
        for (position, (one, two)) in one.history.records.iter().zip(&two.history.records).enumerate() {
            assert_eq!(one, two, "seed {seed}, record {position}");
        }
        assert_eq!(one.history.records.len(), two.history.records.len(), "seed {seed}");
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}, which is no number")))
}

/// Ends the process, with the seed, when a seed takes for ever.
struct Watch {
    seed: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
}

impl Watch {
    fn start() -> Self {
        let watch = Self { seed: Arc::new(AtomicU64::new(u64::MAX)), is_over: Arc::default() };
        let (seed, is_over) = (watch.seed.clone(), watch.is_over.clone());
        std::thread::spawn(move || {
            let (mut known, mut since) = (u64::MAX, Instant::now());
            while !is_over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(500));
                let now = seed.load(Ordering::Relaxed);
                if now != known {
                    (known, since) = (now, Instant::now());
                } else if known != u64::MAX && since.elapsed() > SEED_LIMIT {
                    println!("seed {known} loops: EVENT_BUS_SIM_SEED={known} replays it");
                    std::process::exit(101);
                }
            }
        });
        watch
    }

    fn seed(&self, seed: u64) {
        self.seed.store(seed, Ordering::Relaxed);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}
