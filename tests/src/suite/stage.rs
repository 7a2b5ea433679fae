//! What the handlers of a case do, seen from the inside, and the gates that hold them.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use event_bus::{Context, EventId};
use tokio::sync::watch;
use tokio::time::Instant;

use super::note::Paper;

/// Shared by all handlers of a case, in all its buses.
pub struct Stage {
    seen: Mutex<Seen>,
    changes: watch::Sender<u64>,
}

/// Everything that happened so far.
#[derive(Default)]
pub struct Seen {
    /// In its order.
    pub moments: Vec<Moment>,
    runs: HashMap<(&'static str, u64), usize>,
    running: HashSet<Line>,
    done: HashMap<&'static str, usize>,
    at_once: HashMap<&'static str, usize>,
    most_at_once: HashMap<&'static str, usize>,
    open: HashSet<u64>,
    violations: Vec<String>,
}

/// What runs one at a time.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Line {
    Lane(&'static str, String),
    Free(&'static str, u64),
}

/// A run begins or ends.
#[derive(Clone)]
pub struct Moment {
    /// When.
    pub at: Instant,
    /// Whose run.
    pub handler: &'static str,
    /// Of which event.
    pub number: u64,
    /// What.
    pub what: What,
}

/// What happens.
#[derive(Clone)]
pub enum What {
    /// A run begins.
    Begins(Arc<Told>),
    /// It ended: the handler returned Ok.
    Done,
    /// It ended: the handler returned an error, or panicked.
    Failed,
    /// It ended: its future was dropped.
    Cut,
}

/// What a handler is told about its run.
pub struct Told {
    /// The event.
    pub paper: Paper,
    /// Its identity.
    pub event_id: EventId,
    /// The delivery's identity.
    pub delivery_id: String,
    /// The event's name.
    pub event_name: String,
    /// Which attempt.
    pub attempt: u32,
    /// Of how many.
    pub max_attempts: u32,
    /// Whether it is the last one.
    pub is_last_attempt: bool,
    /// The key.
    pub key: Option<String>,
    /// The headers.
    pub headers: Vec<(String, String)>,
    /// When it was published.
    pub published_at: SystemTime,
}

impl Stage {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { seen: Mutex::default(), changes: watch::Sender::new(0) })
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Seen) -> T) -> T {
        let answer = change(&mut self.lock());
        self.changes.send_modify(|count| *count += 1);
        answer
    }

    /// Waits until it is so.
    pub async fn until(&self, is_so: impl Fn(&Seen) -> bool) {
        let mut changes = self.changes.subscribe();
        while !is_so(&self.lock()) {
            changes.changed().await.expect("the stage lives as long as its case");
        }
    }

    /// Waits until that many runs of a handler returned Ok.
    pub async fn until_done(&self, handler: &str, count: usize) {
        self.until(|seen| seen.done.get(handler).is_some_and(|done| *done >= count)).await;
    }

    /// Waits until a run of this event has begun.
    pub async fn until_begun(&self, handler: &str, number: u64) {
        self.until(|seen| seen.begun(handler).contains(&number)).await;
    }

    /// Answers a question about what happened so far.
    pub fn ask<T>(&self, question: impl FnOnce(&Seen) -> T) -> T {
        question(&self.lock())
    }

    /// The events whose runs began at a handler, in that order.
    pub fn begun(&self, handler: &str) -> Vec<u64> {
        self.ask(|seen| seen.begun(handler))
    }

    /// The events whose runs returned Ok at a handler, in that order.
    pub fn done(&self, handler: &str) -> Vec<u64> {
        self.ask(|seen| seen.numbers(handler, |what| matches!(what, What::Done)))
    }

    /// What the runs of an event at a handler were told.
    pub fn told(&self, handler: &str, number: u64) -> Vec<Arc<Told>> {
        self.ask(|seen| {
            let begins = seen.of(handler).filter(|moment| moment.number == number);
            begins
                .filter_map(|moment| match &moment.what {
                    What::Begins(told) => Some(told.clone()),
                    _ => None,
                })
                .collect()
        })
    }

    /// The attempts of an event at a handler.
    pub fn attempts(&self, handler: &str, number: u64) -> Vec<u32> {
        self.told(handler, number).iter().map(|told| told.attempt).collect()
    }

    /// The most runs of a handler that ever were under way together.
    pub fn most_at_once(&self, handler: &str) -> usize {
        self.ask(|seen| seen.most_at_once.get(handler).copied().unwrap_or(0))
    }

    /// Lets those pass that wait for the gate of this number.
    pub fn open(&self, number: u64) {
        self.change(|seen| seen.open.insert(number));
    }

    pub(super) async fn gate(&self, number: u64) {
        self.until(|seen| seen.open.contains(&number)).await;
    }

    /// A run begins; answers which run of this event it is, from 0, and what says when it ends.
    pub(super) fn begin(
        self: &Arc<Self>,
        handler: &'static str,
        paper: &Paper,
        cx: &Context,
    ) -> (usize, Running) {
        let number = paper.note().number;
        let line = match cx.partition_key() {
            Some(key) => Line::Lane(handler, key.to_owned()),
            None => Line::Free(handler, number),
        };
        let told = Told {
            paper: paper.clone(),
            event_id: cx.event_id(),
            delivery_id: cx.delivery_id(),
            event_name: cx.event_name().to_owned(),
            attempt: cx.attempt(),
            max_attempts: cx.max_attempts(),
            is_last_attempt: cx.is_last_attempt(),
            key: cx.partition_key().map(str::to_owned),
            headers: cx.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            published_at: cx.published_at(),
        };
        let run = self.change(|seen| {
            if !seen.running.insert(line.clone()) {
                seen.violations.push(format!(
                    "event {number} of key {:?} began at {handler} while another run of that line was under way",
                    told.key
                ));
            }
            let at_once = seen.at_once.entry(handler).or_default();
            *at_once += 1;
            let at_once = *at_once;
            let most = seen.most_at_once.entry(handler).or_default();
            *most = at_once.max(*most);
            seen.moments.push(Moment {
                at: Instant::now(),
                handler,
                number,
                what: What::Begins(Arc::new(told)),
            });
            let runs = seen.runs.entry((handler, number)).or_default();
            *runs += 1;
            *runs - 1
        });
        (run, Running { stage: self.clone(), handler, number, line, what: Some(What::Cut) })
    }

    /// What must never happen, in any case.
    pub(super) fn violations(&self) -> Result<(), String> {
        self.ask(|seen| if seen.violations.is_empty() { Ok(()) } else { Err(seen.violations.join("\n")) })
    }
}

impl Seen {
    fn of(&self, handler: &str) -> impl Iterator<Item = &Moment> {
        self.moments.iter().filter(move |moment| moment.handler == handler)
    }

    fn numbers(&self, handler: &str, is_wanted: impl Fn(&What) -> bool) -> Vec<u64> {
        self.of(handler).filter(|moment| is_wanted(&moment.what)).map(|moment| moment.number).collect()
    }

    /// The events whose runs began at a handler, in that order.
    pub fn begun(&self, handler: &str) -> Vec<u64> {
        self.numbers(handler, |what| matches!(what, What::Begins(_)))
    }

    /// How many runs of a handler are under way.
    pub fn running(&self, handler: &str) -> usize {
        self.at_once.get(handler).copied().unwrap_or(0)
    }
}

/// A run under way.
pub(super) struct Running {
    stage: Arc<Stage>,
    handler: &'static str,
    number: u64,
    line: Line,
    what: Option<What>,
}

impl Running {
    pub(super) fn will_be(&mut self, what: What) {
        self.what = Some(what);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let what = match self.what.take() {
            Some(What::Cut) | None if std::thread::panicking() => What::Failed,
            Some(what) => what,
            None => What::Cut,
        };
        self.stage.change(|seen| {
            seen.running.remove(&self.line);
            if matches!(what, What::Done) {
                *seen.done.entry(self.handler).or_default() += 1;
            }
            if let Some(count) = seen.at_once.get_mut(self.handler) {
                *count -= 1;
            }
            seen.moments.push(Moment {
                at: Instant::now(),
                handler: self.handler,
                number: self.number,
                what,
            });
        });
    }
}

impl fmt::Display for Stage {
    /// The last moments.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seen = self.lock();
        writeln!(f, "what the handlers did ({} moments, the last ones):", seen.moments.len())?;
        let start = seen.moments.first().map(|moment| moment.at);
        for moment in &seen.moments[seen.moments.len().saturating_sub(60)..] {
            let at = start.map(|start| moment.at - start).unwrap_or_default();
            let what = match &moment.what {
                What::Begins(told) => format!("begins, attempt {}, key {:?}", told.attempt, told.key),
                What::Done => "is done".to_owned(),
                What::Failed => "failed".to_owned(),
                What::Cut => "was cut off".to_owned(),
            };
            writeln!(f, "  {at:>12.3?} {} event {} {what}", moment.handler, moment.number)?;
        }
        Ok(())
    }
}
