//! What the bus does per second, beside what the bare driver does, in one run.
//!
//! `cargo xtask bench` runs everything; `cargo xtask bench sqlite b e1000` some of it; `--quick` with a tenth of the events.
//! Prints one JSON line a measurement and a table at the end. Only ratios from one run mean anything: machines differ and
//! are noisy.

#![allow(unreachable_pub, missing_docs, reason = "a program: nothing of it is seen from outside")]

mod engine;
mod event;
mod memory;
mod report;
mod scenarios;
mod target;
mod targets;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use report::Report;
use scenarios::Scale;
use target::Target;

#[derive(Parser)]
#[command(about = "Benchmarks of the event bus")]
struct Arguments {
    /// Of which backends and which workloads; everything that is left out is measured.
    #[arg(value_parser = Choice::parse, value_name = "BACKEND|WORKLOAD", long_help = choices())]
    choices: Vec<Choice>,
    /// A tenth of the events.
    #[arg(long)]
    quick: bool,
    /// Repeats each measurement and reports the median.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Appends the JSON lines to this file as well.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Where SQLite's files are made; must be a disk, not memory.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Used by the benchmarks themselves: drains this store in a process of its own and prints its memory.
    #[arg(long, hide = true)]
    drain: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Backend {
    /// The engine alone over an in-memory store: deliveries per second, bytes per waiting delivery.
    Engine,
    /// A private server, or the one that EVENT_BUS_TEST_POSTGRES_URL names.
    Postgres,
    /// A server of its own, append-only file each second.
    Redis,
    /// RabbitMQ, quorum queues.
    Amqp,
    /// Files, no server.
    Sqlite,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Backend(Backend),
    Workload(Workload),
}

impl Choice {
    fn parse(word: &str) -> Result<Self, String> {
        let backend = Backend::from_str(word, true).map(Self::Backend);
        backend.or_else(|_| Workload::from_str(word, true).map(Self::Workload)).map_err(|_| choices())
    }
}

/// The words one can choose from.
fn choices() -> String {
    fn words<V: ValueEnum>() -> String {
        let values = V::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        let lines = values.map(|value| {
            format!(
                "  {:<8} {}\n",
                value.get_name(),
                value.get_help().map(ToString::to_string).unwrap_or_default()
            )
        });
        lines.collect()
    }
    format!("Backends:\n{}Workloads:\n{}", words::<Backend>(), words::<Workload>())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Workload {
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
    /// Other keys' latency with one key blocked and 100,000 behind it, or as many as the store allows.
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
    if let Some(url) = arguments.drain {
        return scenarios::drain_in_this_process(&url).await;
    }
    let mut report = Report::new(arguments.json)?;
    let scale = Scale { divisor: if arguments.quick { 10 } else { 1 }, runs: arguments.runs.max(1) };
    let dir = arguments.dir.unwrap_or_else(std::env::temp_dir);
    let chosen = |is_one: fn(&Choice) -> bool| arguments.choices.iter().any(is_one);
    let (any_backend, any_workload) =
        (!chosen(|c| matches!(c, Choice::Backend(_))), !chosen(|c| matches!(c, Choice::Workload(_))));
    for backend in Backend::value_variants() {
        if !any_backend && !arguments.choices.contains(&Choice::Backend(*backend)) {
            continue;
        }
        let target: Box<dyn Target> = match backend {
            Backend::Engine => {
                // It has workloads of its own.
                if any_workload {
                    engine::measure(scale, &mut report).await?;
                }
                continue;
            }
            Backend::Postgres => Box::new(targets::postgres::Postgres),
            Backend::Redis => Box::new(targets::redis::Redis),
            Backend::Amqp => Box::new(targets::amqp::Amqp),
            Backend::Sqlite => Box::new(targets::sqlite::Sqlite { dir: dir.clone() }),
        };
        report.of(target.name());
        for workload in Workload::value_variants() {
            if any_workload || arguments.choices.contains(&Choice::Workload(*workload)) {
                measure(*workload, &*target, scale, &mut report).await?;
            }
        }
    }
    report.print_table();
    Ok(())
}

async fn measure(
    workload: Workload,
    target: &dyn Target,
    scale: Scale,
    report: &mut Report,
) -> Result<(), AnyError> {
    match workload {
        Workload::A1 => scenarios::publish_singles(target, scale, report).await,
        Workload::A2 => scenarios::publish_batches(target, scale, report).await,
        Workload::B => scenarios::drain(target, scale, report, "b", None).await,
        Workload::C => scenarios::latency(target, scale, report).await,
        Workload::D => scenarios::publish_and_process(target, scale, report).await,
        Workload::E1000 => scenarios::drain(target, scale, report, "e1000", Some(1_000)).await,
        Workload::E10 => scenarios::drain(target, scale, report, "e10", Some(10)).await,
        Workload::Backlog => scenarios::backlog(target, scale, report).await,
        Workload::FanOut => scenarios::fan_out(target, scale, report).await,
        Workload::Blocked => scenarios::blocked_key(target, scale, report).await,
    }
}
