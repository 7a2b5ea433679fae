//! Watches every run from the outside, wrapped around the handlers, and judges what it sees: is a key's order kept, does
//! anything run twice at once, is anything lost?

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use event_bus::prelude::*;
use event_bus::{EventId, FailureKind};
use hdrhistogram::Histogram;
use tokio::sync::watch;

use crate::events::{OfOrder, OrderEvent};
use crate::handlers::{EXPECTATIONS, Fate};
use crate::ledger::{End, Ledger, Record};
use crate::report::Death;

/// What all handlers share.
pub struct Witness {
    books: Mutex<Books>,
    done: watch::Sender<usize>,
    kill_after: Option<u64>,
}

/// Everything that is known.
pub struct Books {
    ledger: Ledger,
    pub events: Vec<OrderEvent>,
    /// The places of an order's events in `events`, by revision.
    orders: HashMap<String, Vec<usize>>,
    /// In the order of [`EXPECTATIONS`].
    pub handlers: Vec<HandlerBook>,
    /// When this process published an event.
    published: Vec<Option<Instant>>,
    /// Deliveries that have succeeded or died.
    pub done: usize,
    /// Runs that ended in this process.
    ended_here: u64,
    /// Failures that publish calls have returned: where nobody tries again, each death is one of them.
    pub returned: usize,
    /// What could not be written down.
    pub ledger_error: Option<io::Error>,
}

/// What is known about one handler.
pub struct HandlerBook {
    /// One for each event.
    pub deliveries: Vec<Track>,
    pub runs: u64,
    pub retries: u64,
    /// Runs of something that had succeeded before: a crash came between the success and its acknowledgement.
    pub repeats: u64,
    violations: Vec<Violation>,
    /// Publish to success, in microseconds, of what this process published.
    pub latency: Histogram<u64>,
    /// Deliveries that this process brought to an end, and when the last one was.
    pub done_here: u64,
    pub last_done: Option<Instant>,
}

/// A run that broke the order of its key.
#[derive(Clone, Copy)]
pub struct Violation {
    pub event: usize,
    /// The earlier event that was not done when it started; `None` if another run of its order was under way.
    overtook: Option<usize>,
}

/// What is known about one delivery.
#[derive(Clone, Default)]
pub struct Track {
    pub is_wanted: bool,
    /// The bus's identity of the event, from the first run on.
    pub event_id: Option<EventId>,
    /// It came with a second identity: the event was published twice.
    pub is_doubled: bool,
    pub has_succeeded: bool,
    pub has_died: bool,
    /// Attempts that were seen to fail, a bit for each.
    failed_attempts: u32,
    /// Nobody saw it die: its worker died in each of its attempts.
    pub has_died_unseen: bool,
    is_running: bool,
}

impl Track {
    /// It needs no further run.
    pub fn is_done(&self) -> bool {
        self.has_succeeded || self.has_died
    }
}

impl Witness {
    /// Watches over `events`, remembering what stands in the ledger.
    pub fn new(
        events: Vec<OrderEvent>,
        ledger: Ledger,
        records: &[Record],
        kill_after: Option<u64>,
    ) -> Result<Arc<Self>, String> {
        let mut books = Books::new(events, ledger)?;
        for record in records {
            books.recall(record)?;
        }
        let done = watch::Sender::new(books.done);
        Ok(Arc::new(Self { books: Mutex::new(books), done, kill_after }))
    }

    /// The books. Never held across an await.
    pub fn books(&self) -> MutexGuard<'_, Books> {
        // A panic while they are open leaves them readable, and the program's own checks would show what is missing.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of deliveries that have succeeded or died, as it grows.
    pub fn done(&self) -> watch::Receiver<usize> {
        self.done.subscribe()
    }

    /// Wraps a handler, so that its runs are watched.
    pub fn over<H: Handler>(self: &Arc<Self>, handler: H) -> Watched<H> {
        Watched { handler, witness: self.clone() }
    }

    /// Says that a batch is about to be published.
    pub fn publishing(&self, batch: usize, events: std::ops::Range<usize>) {
        let mut books = self.books();
        books.append(&Record::Publishing { batch });
        books.published[events].fill(Some(Instant::now()));
    }

    /// Says that the bus has confirmed a batch.
    pub fn published(&self, batch: usize) {
        self.books().append(&Record::Published { batch });
    }

    /// Says how many failed runs a publish call has returned to its caller.
    pub fn returned(&self, failures: usize) {
        self.books().returned += failures;
    }

    /// Takes note of deliveries that lie in the dead letters without a run that ended so: their worker died each time.
    pub fn note_dead(&self, deaths: &[Death]) {
        let mut books = self.books();
        for death in deaths {
            let track = &mut books.handlers[death.handler].deliveries[death.event];
            if !track.is_done() {
                track.has_died = true;
                track.has_died_unseen = true;
                books.done += 1;
            }
        }
        self.done.send_replace(books.done);
    }

    fn begin(self: &Arc<Self>, handler: &str, event: &impl OfOrder, cx: &Context) -> Option<Run> {
        let mut books = self.books();
        let (handler, event) = books.find(handler, event.order_id(), event.revision())?;
        books.begin(handler, event, cx.event_id());
        Some(Run { witness: self.clone(), handler, event })
    }

    fn end(&self, run: &Run, cx: &Context, end: End) {
        let mut books = self.books();
        books.end(run.handler, run.event, cx, end);
        if self.kill_after.is_some_and(|limit| books.ended_here >= limit) {
            // Like a power cut for this process: nothing is flushed, dropped or told to the bus.
            std::process::abort();
        }
        if end != End::Failed {
            self.done.send_replace(books.done);
        }
    }
}

/// A handler under the eyes of the witness: the same name, events, options and result.
pub struct Watched<H> {
    handler: H,
    witness: Arc<Witness>,
}

#[async_trait]
impl<H: Handler> Handler for Watched<H>
where
    H::Event: OfOrder,
{
    const NAME: &'static str = H::NAME;
    type Event = H::Event;
    type Output = H::Output;

    fn interested(&self, event: &H::Event) -> bool {
        self.handler.interested(event)
    }

    fn options(&self) -> HandlerOptions {
        self.handler.options()
    }

    async fn handle(&self, event: H::Event, cx: &Context) -> Result<H::Output, Failure> {
        let Some(run) = self.witness.begin(H::NAME, &event, cx) else {
            return Err(Failure::discard(
                "this event is not part of this run: is the store shared with another one?",
            ));
        };
        let result = self.handler.handle(event, cx).await;
        let end = match &result {
            Ok(_) => End::Succeeded,
            Err(failure) if failure.kind() == FailureKind::Discard || cx.is_last_attempt() => End::Died,
            Err(_) => End::Failed,
        };
        self.witness.end(&run, cx, end);
        result
    }
}

/// A run under way; dropped when it ends, is cancelled or panics.
struct Run {
    witness: Arc<Witness>,
    handler: usize,
    event: usize,
}

impl Drop for Run {
    fn drop(&mut self) {
        self.witness.books().handlers[self.handler].deliveries[self.event].is_running = false;
    }
}

impl Books {
    fn new(events: Vec<OrderEvent>, ledger: Ledger) -> Result<Self, String> {
        let mut orders: HashMap<String, Vec<usize>> = HashMap::new();
        for (place, event) in events.iter().enumerate() {
            orders.entry(event.order_id().to_owned()).or_default().push(place);
        }
        let handlers = EXPECTATIONS
            .iter()
            .map(|expectation| {
                let track = |event| Track {
                    is_wanted: (expectation.fate)(event) != Fate::NotWanted,
                    ..Track::default()
                };
                HandlerBook::new(events.iter().map(track).collect())
            })
            .collect::<Result<_, String>>()?;
        let published = vec![None; events.len()];
        Ok(Self {
            ledger,
            events,
            orders,
            handlers,
            published,
            done: 0,
            ended_here: 0,
            returned: 0,
            ledger_error: None,
        })
    }

    /// How many deliveries there must be in all.
    pub fn wanted(&self) -> usize {
        self.handlers.iter().map(HandlerBook::wanted).sum()
    }

    /// How many deliveries these events make.
    pub fn wanted_in(&self, events: std::ops::Range<usize>) -> usize {
        let in_range =
            |handler: &HandlerBook| handler.deliveries[events.clone()].iter().filter(|t| t.is_wanted).count();
        self.handlers.iter().map(in_range).sum()
    }

    /// How many orders there are.
    pub fn orders(&self) -> usize {
        self.orders.len()
    }

    fn append(&mut self, record: &Record) {
        if let Err(error) = self.ledger.append(record) {
            self.ledger_error.get_or_insert(error);
        }
    }

    /// The places of a handler in [`EXPECTATIONS`] and of an event in `events`.
    fn find(&self, handler: &str, order: &str, revision: u32) -> Option<(usize, usize)> {
        let handler = EXPECTATIONS.iter().position(|expectation| expectation.handler == handler)?;
        let place = usize::try_from(revision).ok()?.checked_sub(1)?;
        Some((handler, *self.orders.get(order)?.get(place)?))
    }

    /// Learns what the ledger says.
    fn recall(&mut self, record: &Record) -> Result<(), String> {
        let (Record::Ended { handler, order, revision, .. }
        | Record::Violation { handler, order, revision, .. }) = record
        else {
            return Ok(());
        };
        let (handler, event) = self.find(handler, order, *revision).ok_or_else(|| {
            format!("the ledger knows order {order:?}, the input does not: was it changed?")
        })?;
        match record {
            Record::Ended { event_id, attempt, end, .. } => {
                self.handlers[handler].deliveries[event].see(*event_id);
                self.done += usize::from(self.handlers[handler].count(event, *attempt, *end));
            }
            Record::Violation { handler: name, overtook, .. } => {
                let overtook =
                    overtook.and_then(|revision| self.find(name, order, revision)).map(|(_, event)| event);
                self.handlers[handler].violations.push(Violation { event, overtook });
            }
            Record::Publishing { .. } | Record::Published { .. } => {}
        }
        Ok(())
    }

    /// Judges the start of a run: nothing of its order may be under way, nothing earlier may be open.
    fn begin(&mut self, handler: usize, event: usize, id: EventId) {
        let order = self.events[event].order_id().to_owned();
        let book = &mut self.handlers[handler];
        let mut violations = Vec::new();
        for place in &self.orders[&order] {
            let track = &book.deliveries[*place];
            if track.is_running {
                violations.push(Violation { event, overtook: None });
            }
            if *place < event && track.is_wanted && !track.is_done() {
                violations.push(Violation { event, overtook: Some(*place) });
            }
        }
        book.deliveries[event].see(id);
        book.deliveries[event].is_running = true;
        book.violations.extend(&violations);
        for violation in violations {
            self.append(&Record::Violation {
                handler: EXPECTATIONS[handler].handler.to_owned(),
                order: order.clone(),
                revision: self.events[event].revision(),
                overtook: violation.overtook.map(|place| self.events[place].revision()),
            });
        }
    }

    /// Writes down the end of a run, then counts it.
    fn end(&mut self, handler: usize, event: usize, cx: &Context, end: End) {
        self.append(&Record::Ended {
            handler: EXPECTATIONS[handler].handler.to_owned(),
            order: self.events[event].order_id().to_owned(),
            revision: self.events[event].revision(),
            event_id: cx.event_id(),
            attempt: cx.attempt(),
            end,
        });
        self.ended_here += 1;
        let book = &mut self.handlers[handler];
        if book.count(event, cx.attempt(), end) {
            let now = Instant::now();
            self.done += 1;
            book.done_here += 1;
            book.last_done = Some(now);
            if let (End::Succeeded, Some(published)) = (end, self.published[event]) {
                let micros = u64::try_from((now - published).as_micros()).unwrap_or(u64::MAX);
                book.latency.saturating_record(micros);
            }
        }
    }
}

impl HandlerBook {
    fn new(deliveries: Vec<Track>) -> Result<Self, String> {
        // An hour, in microseconds; two significant digits are plenty for a table.
        let latency = Histogram::new_with_bounds(1, 3_600_000_000, 2)
            .map_err(|error| format!("no histogram: {error}"))?;
        Ok(Self {
            deliveries,
            runs: 0,
            retries: 0,
            repeats: 0,
            violations: Vec::new(),
            latency,
            done_here: 0,
            last_done: None,
        })
    }

    /// How many deliveries the handler must get.
    pub fn wanted(&self) -> usize {
        self.deliveries.iter().filter(|track| track.is_wanted).count()
    }

    /// Runs that broke the order of their key. Overtaking what had died unseen is none: the earlier event already lay in
    /// the dead letters.
    pub fn violations(&self) -> impl Iterator<Item = &Violation> {
        self.violations.iter().filter(|violation| {
            violation.overtook.is_none_or(|earlier| !self.deliveries[earlier].has_died_unseen)
        })
    }

    /// Counts a run; says whether it brought its delivery to an end for the first time.
    fn count(&mut self, event: usize, attempt: u32, end: End) -> bool {
        let track = &mut self.deliveries[event];
        let was_done = track.is_done();
        self.runs += 1;
        if was_done {
            self.repeats += 1;
        } else if attempt > 1 {
            self.retries += 1;
        }
        match end {
            End::Succeeded => track.has_succeeded = true,
            End::Died => track.has_died = true,
            End::Failed => {}
        }
        if end != End::Succeeded {
            track.failed_attempts |= 1_u32.checked_shl(attempt).unwrap_or(0);
        }
        !was_done && track.is_done()
    }
}

impl Track {
    /// How many different attempts were seen to fail.
    pub fn failures(&self) -> u32 {
        self.failed_attempts.count_ones()
    }

    fn see(&mut self, id: EventId) {
        match self.event_id {
            None => self.event_id = Some(id),
            Some(known) => self.is_doubled |= known != id,
        }
    }
}
