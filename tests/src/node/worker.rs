//! Handlers that do what the event says and write it down.

#![allow(clippy::panic, reason = "the script may ask for one")]

use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use event_bus::prelude::*;

use tokio::time::Instant;

use super::ledger::{Ledger, hash_of};
use super::manners::Manners;
use super::publisher::{first_number_of_handlers, publish_call};
use crate::history::{Fact, RunEnd};
use crate::suite::actor::{Role, SECOND, THIRD};
use crate::suite::note::{Later, SCRIPTED};
use crate::suite::{Act, Memo, Note, Paper, note};

/// How often a node tries a delivery if it is not told otherwise.
pub const MAX_ATTEMPTS: u32 = 3;

/// How long a node waits between two attempts.
pub const BACKOFF: Duration = Duration::from_millis(5);

/// A handler of a node, for events of the type `P`.
pub(super) struct Scripted<R, P = Paper> {
    ledger: Ledger,
    worker: u32,
    manners: Arc<Manners>,
    bus: Arc<OnceLock<EventBus>>,
    role: PhantomData<fn() -> (R, P)>,
}

/// What handlers take that do what the event says.
pub(super) trait Sheet: Events {
    fn note(&self) -> &Note;
}

impl Sheet for Paper {
    fn note(&self) -> &Note {
        Self::note(self)
    }
}

/// What the handlers of the next release take.
#[derive(Clone, Debug, PartialEq, Eq, Events)]
pub(super) enum NewPaper {
    Note(Note),
    Memo(Memo),
    Later(Later),
}

impl Sheet for NewPaper {
    fn note(&self) -> &Note {
        match self {
            Self::Note(note) | Self::Memo(Memo(note)) | Self::Later(Later(note)) => note,
        }
    }
}

/// Runs of a process are numbered through all of its handlers.
static RUNS: AtomicU64 = AtomicU64::new(1);

impl<R, P> Scripted<R, P> {
    /// Through `bus`, once it is there, it publishes.
    pub(super) fn new(
        ledger: &Ledger,
        worker: u32,
        manners: &Arc<Manners>,
        bus: &Arc<OnceLock<EventBus>>,
    ) -> Self {
        Self { ledger: ledger.clone(), worker, manners: manners.clone(), bus: bus.clone(), role: PhantomData }
    }

    /// Publishes as part of a run of `cause`.
    async fn publish(&self, cause: &Note, count: u64) {
        static CALLS: AtomicU64 = AtomicU64::new(0);
        static NOTES: AtomicU64 = AtomicU64::new(0);
        let Some(bus) = self.bus.get() else { return };
        let first = first_number_of_handlers(self.worker);
        let call = first + CALLS.fetch_add(1, Ordering::Relaxed);
        let notes: Vec<_> = (0..count)
            .map(|_| {
                let mut more = note(first + NOTES.fetch_add(1, Ordering::Relaxed)).read_by(SECOND);
                more.key.clone_from(&cause.key);
                more
            })
            .collect();
        publish_call(bus, &self.ledger, call, self.worker, &notes).await;
    }
}

/// Whether a handler is interested: the third one only in what names it.
pub(super) fn reads(handler: &str, note: &Note) -> bool {
    match note.readers.is_empty() {
        true => handler != THIRD,
        false => note.readers.iter().any(|reader| reader == handler),
    }
}

#[async_trait]
impl<R: Role, P: Sheet> Handler for Scripted<R, P> {
    const NAME: &'static str = R::NAME;
    type Event = P;
    type Output = ();

    fn interested(&self, paper: &P) -> bool {
        reads(R::NAME, paper.note())
    }

    fn options(&self) -> HandlerOptions {
        self.manners.options(R::NAME)
    }

    async fn handle(&self, paper: P, cx: &Context) -> Result<(), Failure> {
        let note = paper.note();
        let run = Run {
            ledger: &self.ledger,
            worker: self.worker,
            number: RUNS.fetch_add(1, Ordering::Relaxed),
            deadline: self.manners.timeout.map(|timeout| Instant::now() + timeout),
            delay: nanos(self.manners.backoff),
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
        let delay = run.delay;
        if self.manners.discards {
            run.ends(RunEnd::Discard);
            return Err(Failure::discard("everything is given up here"));
        }
        if self.manners.is_down() {
            run.ends(RunEnd::Retry { delay });
            return Err(Failure::retry("what it needs is down"));
        }
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
            // The number of the attempt stays the same, so the script alone would snooze for ever.
            Act::Snooze(delay) if has_snoozed(note.number) => tokio::time::sleep(delay).await,
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
            Act::Publish(count) => self.publish(note, count).await,
            Act::Abort => {
                let crash = Fact::WorkerCrash { worker: self.worker };
                self.ledger.write_and(crash, || std::process::abort());
            }
        }
        run.ends(RunEnd::Done);
        Ok(())
    }
}

/// Whether a run of this event has asked this process to be called later; it has from now on.
fn has_snoozed(event: u64) -> bool {
    static SNOOZED: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());
    !SNOOZED.lock().unwrap_or_else(PoisonError::into_inner).insert(event)
}

/// A run under way; dropped, it says how it ended.
struct Run<'l> {
    ledger: &'l Ledger,
    worker: u32,
    number: u64,
    /// When it is given up.
    deadline: Option<Instant>,
    /// How long to wait before the next attempt.
    delay: u64,
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
            let delay = self.delay;
            self.say(match self.deadline {
                _ if std::thread::panicking() => RunEnd::Panic { delay },
                Some(deadline) if deadline <= Instant::now() => RunEnd::Timeout { delay },
                _ => RunEnd::Cancelled,
            });
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
