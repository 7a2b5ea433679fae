//! What the bus does per second, beside what the bare driver does, in one run.
//!
//! `cargo xtask bench` runs everything; `cargo xtask bench engine b e1000` some of it; `--quick` with a tenth of the events.
//! Prints one JSON line a measurement and a table at the end. Only ratios from one run mean anything: machines differ and
//! are noisy.

#![allow(unreachable_pub, missing_docs, reason = "a program: nothing of it is seen from outside")]

mod engine;
mod event;
mod memory;
mod raw_sqlite;
mod report;
mod scenarios;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use report::Report;
use scenarios::Scale;

#[derive(Parser)]
#[command(about = "Benchmarks of the event bus")]
struct Arguments {
    /// What to measure; everything when left out.
    workloads: Vec<Workload>,
    /// A tenth of the events.
    #[arg(long)]
    quick: bool,
    /// Repeats each measurement and reports the median.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Appends the JSON lines to this file as well.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Where database files are made; must be a disk, not memory.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Used by the benchmarks themselves: drains this database in a process of its own and prints its memory.
    #[arg(long, hide = true)]
    drain: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Workload {
    /// The engine alone over an in-memory store: deliveries per second, bytes per waiting delivery.
    Engine,
    /// 16 publishers, one call an event.
    A1,
    /// Batches of 1,000.
    A2,
    /// Draining a preloaded backlog with a handler that does nothing.
    B,
    /// Latency from publish to handler at 200 per second.
    C,
    /// 16 publishers, single events, processed at the same time.
    D,
    /// Keyed drain, 1,000 keys.
    E1000,
    /// Keyed drain, 10 keys.
    E10,
    /// Draining 10,000, 100,000 and 1,000,000; memory of the worker's process.
    Backlog,
    /// Fan-out to 1 and to 5 handlers.
    FanOut,
    /// Other keys' latency with one key blocked and 100,000 behind it.
    Blocked,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

async fn run(arguments: Arguments) -> Result<(), AnyError> {
    if let Some(file) = arguments.drain {
        return scenarios::drain_in_this_process(&file).await;
    }
    let mut report = Report::new(arguments.json)?;
    let scale = Scale {
        divisor: if arguments.quick { 10 } else { 1 },
        runs: arguments.runs.max(1),
        dir: arguments.dir.unwrap_or_else(std::env::temp_dir),
    };
    let all = Workload::value_variants();
    for workload in if arguments.workloads.is_empty() { all } else { &arguments.workloads } {
        match workload {
            Workload::Engine => engine::measure(&scale, &mut report).await?,
            Workload::A1 => scenarios::publish_singles(&scale, &mut report).await?,
            Workload::A2 => scenarios::publish_batches(&scale, &mut report).await?,
            Workload::B => scenarios::drain(&scale, &mut report, "b", None).await?,
            Workload::C => scenarios::latency(&scale, &mut report).await?,
            Workload::D => scenarios::publish_and_process(&scale, &mut report).await?,
            Workload::E1000 => scenarios::drain(&scale, &mut report, "e1000", Some(1_000)).await?,
            Workload::E10 => scenarios::drain(&scale, &mut report, "e10", Some(10)).await?,
            Workload::Backlog => scenarios::backlog(&scale, &mut report).await?,
            Workload::FanOut => scenarios::fan_out(&scale, &mut report).await?,
            Workload::Blocked => scenarios::blocked_key(&scale, &mut report).await?,
        }
    }
    report.print_table();
    Ok(())
}
