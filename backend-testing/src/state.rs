//! What one test has seen.

use std::collections::HashSet;
use std::panic::Location;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_bus_core::backend::{Stored, Watched};
use event_bus_core::inline::run_all;
use event_bus_core::{Event, Result, codec};

use crate::Mode;
use crate::backend::{Answering, NAME, Shared};
use crate::faults::Faults;
use crate::line::Line;
use crate::ownership::{Owners, Scoped};
use crate::record::{Record, Standing, list};

/// The state of a session: shared with everything that was joined to it.
pub(crate) struct State {
    pub(crate) shared: Arc<Shared>,
    created_at: &'static Location<'static>,
    strays_before: u64,
    seen: Mutex<Seen>,
}

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) mode: Mode,
    pub(crate) records: Vec<Record>,
    pub(crate) line: Line,
    pub(crate) faults: Faults,
    idempotency_keys: HashSet<Arc<str>>,
    is_over: bool,
}

/// What is left to do of a publish call once it has been noted.
enum Noted {
    Answer(Result<Stored>),
    RunInline(Result<Stored>),
}

impl State {
    pub(crate) fn new(shared: Arc<Shared>, created_at: &'static Location<'static>) -> Arc<Self> {
        let strays_before = shared.strays.count();
        Arc::new(Self { shared, created_at, strays_before, seen: Mutex::default() })
    }

    pub(crate) fn created_at(&self) -> &'static Location<'static> {
        self.created_at
    }

    pub(crate) fn owners(&self) -> &Owners {
        &self.shared.owners
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Seen> {
        // An assertion may panic while it is held; what it guards is valid between any two statements.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One publish call that belongs to this test.
    pub(crate) async fn publish(self: Arc<Self>, call: Watched) -> Result<Stored> {
        match self.note(&call) {
            Noted::Answer(answer) => answer,
            Noted::RunInline(answer) => {
                let bus = self.shared.bus()?;
                let run = run_all(bus.registry(), &call.publication.events, Some(Arc::new(Answering)), NAME);
                Scoped::new(self.clone(), run).await?;
                answer
            }
        }
    }

    fn note(&self, call: &Watched) -> Noted {
        let mut seen = self.lock();
        if seen.is_over {
            // A task that outlived its test: nobody is there to look at this any more.
            drop(seen);
            self.shared.strays.note(call);
            return Noted::Answer(Ok(Stored::New));
        }
        let fault = seen.faults.of_publish(&call.publication);
        let answer = match fault {
            Some(error) if error.kind() != event_bus_core::ErrorKind::OutcomeUnknown => {
                return Noted::Answer(Err(error));
            }
            Some(error) => Err(error),
            None => Ok(Stored::New),
        };
        if let Some(key) = &call.publication.idempotency_key
            && !seen.idempotency_keys.insert(key.clone())
        {
            return Noted::Answer(answer.and(Ok(Stored::Duplicate)));
        }
        let mode = seen.mode;
        seen.records.extend(Record::of_call(call, mode));
        if mode == Mode::Inline {
            return Noted::RunInline(answer);
        }
        match self.shared.bus() {
            Ok(bus) => {
                seen.line.add(&call.publication, bus.registry());
                Noted::Answer(answer)
            }
            Err(error) => Noted::Answer(Err(error)),
        }
    }

    /// The text of a failed check, if strict events are left; they count as reported from now on.
    pub(crate) fn report_unasserted(&self) -> Option<String> {
        let mut seen = self.lock();
        if !seen.records.iter().any(Record::is_open) {
            return None;
        }
        let mut text = "unasserted events published in strict mode".to_owned();
        list(&mut text, "not asserted", seen.records.iter().filter(|record| record.is_open()));
        for record in seen.records.iter_mut().filter(|record| record.is_open()) {
            record.standing = Standing::Reported;
        }
        drop(seen);
        self.sign(&mut text);
        Some(text)
    }

    /// The end of the test; the text of the failed check, if there is one.
    pub(crate) fn end(self: &Arc<Self>) -> Option<String> {
        self.owners().remove(self);
        self.lock().is_over = true;
        self.report_unasserted()
    }

    /// Takes the first strict event that is still open and that `look` likes.
    ///
    /// # Errors
    /// The text of the failed assertion.
    pub(crate) fn take<E: Event, T>(
        &self,
        pattern: &str,
        look: impl Fn(&E) -> Option<T>,
    ) -> Result<(E, T), String> {
        for (position, event) in self.open_events::<E>() {
            if let Some(value) = look(&event) {
                self.lock().records[position].standing = Standing::Taken;
                return Ok((event, value));
            }
        }
        let seen = self.lock();
        let mut text = format!("no event published in strict mode matches `{pattern}`");
        if seen.records.is_empty() {
            text.push_str("\n\nthis test has published nothing");
        }
        seen.list_all(&mut text);
        drop(seen);
        self.sign(&mut text);
        Err(text)
    }

    /// The text of a failed refutation: some strict event that is still open is one that `look` likes.
    pub(crate) fn find<E: Event>(&self, pattern: &str, look: impl Fn(&E) -> bool) -> Option<String> {
        let (position, _) = self.open_events::<E>().into_iter().find(|(_, event)| look(event))?;
        let found = self.lock().records[position].to_string();
        let mut text = format!("an event that matches `{pattern}` was published:\n  {found}");
        self.sign(&mut text);
        Some(text)
    }

    /// The text of a failed `assert_no_events!`.
    pub(crate) fn find_any(&self) -> Option<String> {
        let seen = self.lock();
        seen.records.iter().find(|record| record.is_open())?;
        let mut text = "events were published where none were expected".to_owned();
        list(&mut text, "not asserted", seen.records.iter().filter(|record| record.is_open()));
        drop(seen);
        self.sign(&mut text);
        Some(text)
    }

    /// The events of a type that an assertion could take, with their positions. The user's own code must see them
    /// without the lock: a guard may ask the session something.
    fn open_events<E: Event>(&self) -> Vec<(usize, E)> {
        let seen = self.lock();
        let open = seen.records.iter().enumerate().filter(|(_, record)| record.is_open());
        open.filter_map(|(position, record)| Some((position, decode(record)?))).collect()
    }

    /// All events of a type, in every mode, asserted or not.
    pub(crate) fn all<E: Event>(&self) -> Vec<E> {
        self.lock().records.iter().filter_map(decode).collect()
    }

    /// The end of each failure text: what belongs to no test, and whose text this is.
    fn sign(&self, text: &mut String) {
        self.shared.strays.explain(self.strays_before, text);
        let at = self.created_at;
        text.push_str(&format!("\n\nthe session was created at {}:{}", at.file(), at.line()));
    }
}

impl Seen {
    fn list_all(&self, text: &mut String) {
        let of = |mode, standing| {
            self.records.iter().filter(move |record| record.mode == mode && record.standing == standing)
        };
        list(text, "published and not yet asserted", of(Mode::Strict, Standing::Open));
        list(text, "asserted before", of(Mode::Strict, Standing::Taken));
        list(text, "listed by a failed check before", of(Mode::Strict, Standing::Reported));
        list(text, "published in default mode, which never matches", of(Mode::Default, Standing::Open));
        list(text, "published in inline mode, which never matches", of(Mode::Inline, Standing::Open));
    }
}

/// The event as a handler would get it, if it is one of this type.
fn decode<E: Event>(record: &Record) -> Option<E> {
    let envelope = &record.envelope;
    (*envelope.name == *E::NAME).then(|| codec::decode(envelope.version, &envelope.payload).ok()).flatten()
}
