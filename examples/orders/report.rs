//! The end of a run: a table for the eye, and the verdict for the exit status.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use event_bus::backend::{DeadLetterFilter, HandlerCounts};
use event_bus::prelude::*;
use event_bus::{DeadLetter, DeadReason, ErrorKind, EventId};

use crate::events::OfOrder as _;
use crate::handlers::{EXPECTATIONS, Fate, MAX_ATTEMPTS};
use crate::witness::{Books, HandlerBook, Track};

/// What the store itself says; `None` where the backend does not offer it.
pub struct StoreState {
    dead: Option<Vec<DeadLetter>>,
    counts: Option<Vec<HandlerCounts>>,
}

impl StoreState {
    /// Asks the store.
    pub async fn of(bus: &EventBus) -> event_bus::Result<Self> {
        let dead =
            if bus.backend().capabilities().dead_letters { Some(all_dead_letters(bus).await?) } else { None };
        let counts = match bus.counts().await {
            Ok(counts) => Some(counts),
            Err(error) if error.kind() == ErrorKind::Unsupported => None,
            Err(error) => return Err(error),
        };
        Ok(Self { dead, counts })
    }

    /// The dead letters of this run.
    pub fn deaths(&self, books: &Books) -> Vec<Death> {
        let Some(dead) = &self.dead else { return deaths_seen(books) };
        let events: HashMap<EventId, usize> = books
            .handlers
            .iter()
            .flat_map(|handler| handler.deliveries.iter().enumerate())
            .filter_map(|(event, track)| track.event_id.map(|id| (id, event)))
            .collect();
        let death = |letter: &DeadLetter| {
            let handler =
                EXPECTATIONS.iter().position(|expectation| *expectation.handler == *letter.handler)?;
            // An event that no run of this program has seen was left here by another one.
            let event = *events.get(&letter.envelope.id)?;
            let seen = books.handlers[handler].deliveries[event].failures();
            let is_by_crashes = letter.reason == DeadReason::Exhausted && seen < letter.failures;
            Some(Death { handler, event, is_by_crashes })
        };
        dead.iter().filter_map(death).collect()
    }
}

/// A delivery in the dead letters.
#[derive(Clone, Copy)]
pub struct Death {
    pub handler: usize,
    pub event: usize,
    /// It used up its attempts, and the program did not see all of them fail: it was running when the process died, again
    /// and again. That is what the bus promises for what kills its process.
    pub is_by_crashes: bool,
}

/// Every dead letter, page by page.
async fn all_dead_letters(bus: &EventBus) -> event_bus::Result<Vec<DeadLetter>> {
    const PAGE: usize = 500;
    let mut all: Vec<DeadLetter> = Vec::new();
    loop {
        let last = all.last().map(|letter| letter.id);
        let page = bus.dead_letters(&DeadLetterFilter::default(), last, PAGE).await?;
        let is_last = page.len() < PAGE;
        all.extend(page);
        if is_last {
            return Ok(all);
        }
    }
}

/// What this program saw fail for good.
fn deaths_seen(books: &Books) -> Vec<Death> {
    let deaths = books.handlers.iter().enumerate().flat_map(|(handler, book)| {
        let dead = book.deliveries.iter().enumerate().filter(|(_, track)| track.has_died);
        dead.map(move |(event, _)| Death { handler, event, is_by_crashes: false })
    });
    deaths.collect()
}

/// One row for each handler.
pub fn table(books: &Books, store: &StoreState, started: Instant) -> String {
    let head = [
        "handler",
        "deliveries",
        "runs",
        "retries",
        "repeats",
        "dead",
        "order violations",
        "per second",
        "p50 ms",
        "p99 ms",
    ];
    let deaths = store.deaths(books);
    let mut rows = vec![head.map(str::to_owned)];
    for (index, (book, expectation)) in books.handlers.iter().zip(&EXPECTATIONS).enumerate() {
        let quantile = |q| match book.latency.is_empty() {
            true => "–".to_owned(),
            false => format!("{:.1}", book.latency.value_at_quantile(q) as f64 / 1_000.0),
        };
        rows.push([
            expectation.handler.to_owned(),
            book.wanted().to_string(),
            book.runs.to_string(),
            book.retries.to_string(),
            book.repeats.to_string(),
            deaths.iter().filter(|death| death.handler == index).count().to_string(),
            book.violations().count().to_string(),
            per_second(book, started),
            quantile(0.5),
            quantile(0.99),
        ]);
    }
    let widths: Vec<usize> = (0..head.len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            // Names to the left, numbers to the right.
            text.push_str(&if column == 0 { format!("{cell:width$}") } else { format!("  {cell:>width$}") });
        }
        text.push('\n');
    }
    text
}

/// What the table cannot say, if there is anything.
pub fn note(books: &Books, store: &StoreState) -> Option<String> {
    let killed = store.deaths(books).iter().filter(|death| death.is_by_crashes).count();
    (killed > 0)
        .then(|| format!("{killed} of the dead used up their attempts while the process died around them"))
}

/// Deliveries brought to an end, over the time from the start of this process to the last of them.
fn per_second(book: &HandlerBook, started: Instant) -> String {
    match book.last_done {
        Some(last) => format!("{:.0}", book.done_here as f64 / (last - started).as_secs_f64()),
        None => "–".to_owned(),
    }
}

/// Every broken promise in words; empty if all were kept.
pub fn broken(books: &Books, store: &StoreState, attempts: u32) -> Vec<String> {
    let mut broken = Vec::new();
    let deaths = store.deaths(books);
    for (index, (book, expectation)) in books.handlers.iter().zip(&EXPECTATIONS).enumerate() {
        let name = expectation.handler;
        let mut say = |places: Vec<usize>, what: &str| {
            if let Some(first) = places.first() {
                let (order, revision) = (books.events[*first].order_id(), books.events[*first].revision());
                let count = places.len();
                broken.push(format!(
                    "{name}: {count} {what}; the first is revision {revision} of order {order}"
                ));
            }
        };
        let tracks = || book.deliveries.iter().enumerate();
        let places = |is_bad: &dyn Fn(&Track) -> bool| {
            tracks().filter(|(_, track)| is_bad(track)).map(|(event, _)| event).collect::<Vec<_>>()
        };
        say(places(&|track| track.is_wanted && !track.is_done()), "deliveries are lost");
        say(
            places(&|track| !track.is_wanted && track.event_id.is_some()),
            "deliveries came that nobody wanted",
        );
        say(places(&|track| track.is_doubled), "events were published twice");
        say(
            book.violations().map(|violation| violation.event).collect(),
            "runs broke the order of their key",
        );

        let here = || deaths.iter().filter(|death| death.handler == index);
        let found: BTreeSet<usize> = here().map(|death| death.event).collect();
        let killed: BTreeSet<usize> =
            here().filter(|death| death.is_by_crashes).map(|death| death.event).collect();
        let expected: BTreeSet<usize> = books
            .events
            .iter()
            .enumerate()
            .filter(|(_, event)| match (expectation.fate)(event) {
                Fate::NotWanted => false,
                Fate::Succeeds { after } => after >= attempts,
                Fate::Rejected => true,
            })
            .map(|(event, _)| event)
            .collect();
        say(expected.difference(&found).copied().collect(), "dead letters are missing");
        let unexpected = found.difference(&expected).filter(|event| !killed.contains(event));
        say(unexpected.copied().collect(), "dead letters should not be there");
        if here().count() > found.len() {
            broken.push(format!("{name}: {} dead letters are there twice", here().count() - found.len()));
        }
        let counts = store.counts.iter().flatten().find(|counts| counts.handler == name);
        if let Some(left) = counts.filter(|counts| counts.ready + counts.waiting > 0) {
            broken.push(format!(
                "{name}: the store still holds {} ready, {} waiting",
                left.ready, left.waiting
            ));
        }
    }
    if store.dead.is_none() && books.returned != deaths.len() {
        let (returned, dead) = (books.returned, deaths.len());
        broken.push(format!("publish returned {returned} failures, and {dead} deliveries failed for good"));
    }
    if let Some(error) = &books.ledger_error {
        broken.push(format!("the ledger could not be written: {error}"));
    }
    broken
}

/// How many attempts each delivery has on this backend: inline nobody can try again.
pub fn attempts(bus: &EventBus) -> u32 {
    if bus.backend().capabilities().durable { MAX_ATTEMPTS } else { 1 }
}
