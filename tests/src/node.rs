//! A program that publishes and works as an application would, and writes down what it does: so that `kill -9` is real.
//!
//! ```text
//! node --url sqlite:///tmp/bus.db --history node-1.jsonl --number 1 --work
//! node --url sqlite:///tmp/bus.db --history node-2.jsonl --number 2 --publish 300 --keys 5 --batch 10
//! ```
//!
//! Its handlers do what the payload says ([`Act`](crate::suite::Act)), by the number of the attempt. It works until its
//! standard input says `stop`, drains and ends; when the input ends without a word, so does the program, at once.

mod ledger;
mod manners;
mod options;
mod publisher;
mod worker;

use std::io::BufRead as _;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use event_bus::prelude::*;
use tokio::sync::oneshot;

pub use ledger::Ledger;
pub(crate) use ledger::{note_in, published};
pub(crate) use manners::Manners;
pub(crate) use publisher::{HANDLERS, idempotency_key, notes_of, publish_call};
pub use worker::{BACKOFF, MAX_ATTEMPTS};

use event_bus::backend::DeadLetterFilter;
use options::Options;

use crate::history::Fact;
use crate::suite::Paper;
use crate::suite::actor::{First, Role, Second, Third};
use worker::{NewPaper, Scripted, Sheet};

/// Long enough for every run of a script.
const GRACE: Duration = Duration::from_secs(20);

/// The program.
pub fn main() -> ExitCode {
    crate::suite::quiet_scripted_panics();
    let ended = Options::read(std::env::args().skip(1)).and_then(|options| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.map_err(|error| error.to_string())?.block_on(run(options))
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("node: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> Result<(), String> {
    let in_words = |error: event_bus::Error| event_bus::chain(&error);
    let ledger = Ledger::open(&options.history).map_err(|error| error.to_string())?;
    let late = Arc::new(OnceLock::new());
    let bus = bus(&options.url, &ledger, options.number, &options.manners, &late).await.map_err(in_words)?;
    // It is new: nobody has set it.
    let _ = late.set(bus.clone());
    let stop = stop_word();
    let worker = match options.is_worker {
        true => {
            ledger.write(Fact::WorkerStart { worker: options.number });
            Some(bus.start().await.map_err(in_words)?)
        }
        false => None,
    };
    publisher::publish(&bus, &ledger, &options).await;
    if options.is_replaying {
        replay(&bus).await;
    }
    if let Some(worker) = worker {
        // Only the word ends it in peace; without one the thread that listens ends the process.
        let _ = stop.await;
        worker.shutdown(options.grace.unwrap_or(GRACE)).await.map_err(in_words)?;
        ledger.write(Fact::WorkerStop { worker: options.number });
    }
    Ok(())
}

/// A bus on the store at `url`, with the handlers of a node, which publish through `late` once it is set; a server that is
/// down is waited for.
pub(crate) async fn bus(
    url: &str,
    ledger: &Ledger,
    number: u32,
    manners: &Manners,
    late: &Arc<OnceLock<EventBus>>,
) -> event_bus::Result<EventBus> {
    let builder = EventBus::builder().connect(url).await?.poll_interval(Duration::from_millis(50));
    let manners = Arc::new(manners.clone());
    let builder = match manners.is_new {
        true => with_handlers::<NewPaper>(builder, ledger, number, &manners, late),
        false => with_handlers::<Paper>(builder, ledger, number, &manners, late),
    };
    let bus = match manners.concurrency {
        Some(deliveries) => builder.concurrency(deliveries),
        None => builder,
    }
    .build()?;
    while let Err(error) = bus.migrate().await {
        if !error.is_transient() {
            return Err(error);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(bus)
}

/// The handlers that the process knows.
fn with_handlers<P: Sheet>(
    mut builder: event_bus::Builder,
    ledger: &Ledger,
    number: u32,
    manners: &Arc<Manners>,
    late: &Arc<OnceLock<EventBus>>,
) -> event_bus::Builder {
    if manners.knows(First::NAME) {
        builder = builder.handler(Scripted::<First, P>::new(ledger, number, manners, late));
    }
    if manners.knows(Second::NAME) {
        builder = builder.handler(Scripted::<Second, P>::new(ledger, number, manners, late));
    }
    if manners.knows(Third::NAME) {
        builder = builder.handler(Scripted::<Third, P>::new(ledger, number, manners, late));
    }
    builder
}

/// Replays all dead letters of the first handler, one after the other, until there are none.
async fn replay(bus: &EventBus) {
    let of_first = DeadLetterFilter { handler: Some(First::NAME.to_owned()), ..DeadLetterFilter::default() };
    loop {
        let replayed = match bus.dead_letters(&of_first, None, 100).await {
            Ok(letters) if letters.is_empty() => return,
            Ok(letters) => {
                let ids = Some(letters.iter().map(|letter| letter.id).collect());
                bus.replay(&DeadLetterFilter { ids, ..DeadLetterFilter::default() }).await.map(drop)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = replayed {
            eprintln!("replay failed: {}", event_bus::chain(&error));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Resolves when the standard input says `stop`.
fn stop_word() -> oneshot::Receiver<()> {
    let (say, hears) = oneshot::channel();
    std::thread::spawn(move || {
        let has_said = std::io::stdin().lock().lines().map_while(Result::ok).any(|line| line == "stop");
        if has_said {
            // It fails only when nobody works.
            let _ = say.send(());
        } else {
            std::process::exit(1);
        }
    });
    hears
}
