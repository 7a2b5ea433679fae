//! Thousands of order events through five handlers, on a store that survives a crash.
//!
//! ```console
//! cargo run --example orders                                     # shipped data, SQLite in a temporary file
//! cargo run --example orders -- --file orders.db --events 20000 --kill-after 5000
//! cargo run --example orders -- --file orders.db                 # goes on where the crash was
//! ```
//!
//! The program keeps a ledger of its own beside the database and holds it against what the bus did: nothing lost, nothing
//! published twice, the order of each key kept, exactly the rejected orders in the dead letters, nothing left over.
//!
//! Exit status: 0 all is well, 1 a promise was broken or the run failed, 2 arguments or input are wrong.

#![allow(clippy::print_stdout, reason = "a command line program talks to the terminal")]
#![allow(unreachable_pub, reason = "the modules of a program have no outside")]

mod events;
mod handlers;
mod input;
mod ledger;
mod publisher;
mod report;
mod start;
mod witness;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use event_bus::prelude::*;
use indicatif::{ProgressBar, ProgressStyle};

use crate::handlers::{CustomerMail, FraudReview, Invoices, SearchIndex, StockReservations};
use crate::publisher::Publisher;
use crate::report::StoreState;
use crate::witness::Witness;

/// Runs order events through five handlers and checks every promise of the bus.
#[derive(Debug, Parser)]
#[command(name = "orders")]
struct Arguments {
    /// The SQLite database; with --backend only the ledger beside it, FILE.ledger.jsonl [default: a temporary file]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Another backend, among those compiled in: sqlite:FILE, inline:
    #[arg(long, value_name = "URL")]
    backend: Option<String>,
    /// Order events as JSON lines [default: the shipped examples/data/orders.jsonl]
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// How many events: the first ones of the input, and generated ones after its end
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    events: Option<usize>,
    /// Abort the process when N runs have ended; start again on the same --file to finish the rest
    #[arg(long, value_name = "N", requires = "file", value_parser = clap::value_parser!(u64).range(1..))]
    kill_after: Option<u64>,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{error}")),
    }
}

/// Why the program cannot end with success.
enum Stop {
    /// The user must change something: exit status 2.
    Usage(String),
    /// Something went wrong on the way: exit status 1.
    Failed(String),
}

impl From<event_bus::Error> for Stop {
    fn from(error: event_bus::Error) -> Self {
        Self::Failed(event_bus::chain(&error))
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::Usage(reason)) => {
            eprintln!("{reason}");
            ExitCode::from(2)
        }
        Err(Stop::Failed(reason)) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Stop> {
    // Removed when it is dropped, at the end of this function.
    let scratch =
        tempfile::tempdir().map_err(|error| Stop::Failed(format!("no temporary directory: {error}")))?;
    let file = arguments.file.clone().unwrap_or_else(|| scratch.path().join("orders.db"));

    let builder = start::builder(&arguments, &file).await?;
    let (header, ledger, events, records) = start::open(&arguments, &file)?;
    let witness = Witness::new(events, ledger, &records, arguments.kill_after).map_err(Stop::Usage)?;
    let bus = builder
        .handler(witness.over(StockReservations))
        .handler(witness.over(Invoices))
        .handler(witness.over(FraudReview))
        .handler(witness.over(CustomerMail))
        .handler(witness.over(SearchIndex))
        .build()?;
    start::greet(&arguments, &bus, &witness);

    let started = Instant::now();
    bus.migrate().await?;
    let mut worker = bus.start().await?;
    let publisher = Publisher::new(&bus, &witness, &header.run, &records);
    tokio::select! {
        result = async { tokio::try_join!(publisher.publish(), all_done(&bus, &witness)) } => result.map(drop)?,
        end = worker.ended() => return end.map_err(Stop::from),
        _ = tokio::signal::ctrl_c() => {
            worker.shutdown(Duration::from_secs(30)).await?;
            return Err(Stop::Failed("stopped before the end; start again on the same --file to finish the rest".into()));
        }
    }
    worker.shutdown(Duration::from_secs(30)).await?;

    let store = StoreState::of(&bus).await?;
    let books = witness.books();
    println!("\n{}", report::table(&books, &store, started));
    if let Some(note) = report::note(&books, &store) {
        println!("{note}");
    }
    let broken = report::broken(&books, &store, report::attempts(&bus));
    if !broken.is_empty() {
        return Err(Stop::Failed(format!("BROKEN PROMISES\n  {}", broken.join("\n  "))));
    }
    println!("{:.1} s. Every promise was kept.", started.elapsed().as_secs_f64());
    Ok(())
}

/// Waits until every delivery has succeeded or died, and shows how far it is.
async fn all_done(bus: &EventBus, witness: &Arc<Witness>) -> Result<(), Stop> {
    /// Nothing here takes a second, retries included.
    const LOOK: Duration = Duration::from_secs(1);
    /// After so many seconds without any progress something is broken, and the report will say what.
    const PATIENCE: u32 = 30;
    let (wanted, mut done) = (witness.books().wanted(), witness.done());
    let bar = ProgressBar::new(wanted as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} deliveries, {per_sec}, {eta} left")
    {
        bar.set_style(style);
    }
    let mut idle = 0;
    loop {
        let now = *done.borrow_and_update();
        bar.set_position(now as u64);
        if now >= wanted || idle >= PATIENCE {
            bar.finish_and_clear();
            return Ok(());
        }
        if tokio::time::timeout(LOOK, done.changed()).await.is_ok() {
            idle = 0;
            continue;
        }
        idle += 1;
        // Perhaps the rest died without a run that could say so: each attempt took its worker with it.
        let deaths = StoreState::of(bus).await?.deaths(&witness.books());
        witness.note_dead(&deaths);
    }
}
