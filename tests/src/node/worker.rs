//! Handlers that do what the event says and write it down.

#![allow(clippy::panic, reason = "the script may ask for one")]

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use event_bus::prelude::*;

use super::ledger::{Ledger, hash_of};
use crate::history::{Fact, RunEnd};
use crate::suite::actor::Role;
use crate::suite::note::SCRIPTED;
use crate::suite::{Act, Paper};

/// How often a node tries a delivery.
pub const MAX_ATTEMPTS: u32 = 3;

/// How long a node waits between two attempts.
pub const BACKOFF: Duration = Duration::from_millis(5);

/// A handler of a node.
pub(super) struct Scripted<R> {
    ledger: Ledger,
    worker: u32,
    role: PhantomData<fn() -> R>,
}

/// Runs of a process are numbered through all of its handlers.
static RUNS: AtomicU64 = AtomicU64::new(1);

impl<R> Scripted<R> {
    pub(super) fn new(ledger: &Ledger, worker: u32) -> Self {
        Self { ledger: ledger.clone(), worker, role: PhantomData }
    }
}

#[async_trait]
impl<R: Role> Handler for Scripted<R> {
    const NAME: &'static str = R::NAME;
    type Event = Paper;
    type Output = ();

    fn interested(&self, paper: &Paper) -> bool {
        let readers = &paper.note().readers;
        readers.is_empty() || readers.iter().any(|reader| reader == R::NAME)
    }

    fn options(&self) -> HandlerOptions {
        HandlerOptions::new().max_attempts(MAX_ATTEMPTS).backoff(Backoff::fixed(BACKOFF))
    }

    async fn handle(&self, paper: Paper, cx: &Context) -> Result<(), Failure> {
        let note = paper.note();
        let run = Run {
            ledger: &self.ledger,
            worker: self.worker,
            number: RUNS.fetch_add(1, Ordering::Relaxed),
            is_over: false,
        };
        self.ledger.write(Fact::RunStart {
            run: run.number,
            worker: self.worker,
            handler: R::NAME.to_owned(),
            event: note.number,
            key: cx.partition_key().map(str::to_owned),
            hash: hash_of(note),
            attempt: cx.attempt(),
            fence: cx.fence(),
        });
        let delay = nanos(BACKOFF);
        match note.act(R::NAME, cx.attempt() as usize - 1) {
            Act::Succeed | Act::Wait => {}
            Act::Sleep(time) => tokio::time::sleep(time).await,
            Act::Block(time) => std::thread::sleep(time),
            Act::Fail | Act::WaitAndFail => {
                run.ends(RunEnd::Retry { delay });
                return Err(Failure::retry("it was told to fail"));
            }
            Act::FailFor(delay) => {
                run.ends(RunEnd::Retry { delay: nanos(delay) });
                return Err(Failure::retry_after(delay, "it was told to fail"));
            }
            Act::Snooze(delay) => {
                run.ends(RunEnd::Snooze { delay: nanos(delay) });
                return Err(Failure::snooze(delay));
            }
            Act::Discard => {
                run.ends(RunEnd::Discard);
                return Err(Failure::discard("it was told to give up"));
            }
            Act::Hang => std::future::pending().await,
            Act::Panic => panic!("a panic {SCRIPTED}"),
            Act::Abort => {
                let crash = Fact::WorkerCrash { worker: self.worker };
                self.ledger.write_and(crash, || std::process::abort());
            }
        }
        run.ends(RunEnd::Done);
        Ok(())
    }
}

/// A run under way; dropped, it says how it ended.
struct Run<'l> {
    ledger: &'l Ledger,
    worker: u32,
    number: u64,
    is_over: bool,
}

impl Run<'_> {
    fn ends(mut self, end: RunEnd) {
        self.say(end);
    }

    fn say(&mut self, end: RunEnd) {
        self.is_over = true;
        self.ledger.write(Fact::RunEnd { run: self.number, worker: self.worker, end });
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            let delay = nanos(BACKOFF);
            self.say(if std::thread::panicking() { RunEnd::Panic { delay } } else { RunEnd::Cancelled });
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
