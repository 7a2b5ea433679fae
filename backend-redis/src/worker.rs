//! What the parts of a session share.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_bus_core::backend::{DeliveryId, HandlerIndex, HandlerSpec, Partition};
use event_bus_core::clock::BootTime;
use event_bus_core::{Error, ErrorKind};
use tokio::sync::Notify;

use crate::backend::Shared;
use crate::error::{Failure, error};
use crate::held::Held;

/// Names a partition within a session: handler and slot.
pub(crate) type SlotId = (HandlerIndex, u16);

/// A worker's session, as its claims, its settles and its keeper see it.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) incarnation: String,
    pub(crate) handlers: Arc<[HandlerSpec]>,
    /// The run of the server in which its rights are valid.
    pub(crate) run: Arc<str>,
    slots: Mutex<HashMap<SlotId, Owned>>,
    held: Mutex<Held>,
    revokes: Mutex<VecDeque<Partition>>,
    end: Mutex<Option<(ErrorKind, String)>>,
    is_closed: AtomicBool,
    /// Until when it may trust its rights, as [`BootTime::as_nanos`].
    trusted_until: AtomicU64,
    /// There may be something to claim.
    pub(crate) work: Notify,
    /// A notice other than work, or the end.
    pub(crate) news: Notify,
    /// Somebody came, went or gave a slot back.
    pub(crate) moves: Notify,
}

/// A slot that this session owns.
#[derive(Clone, Debug)]
pub(crate) struct Owned {
    pub(crate) epoch: u64,
    /// The last id handed out.
    pub(crate) cursor: DeliveryId,
    /// Parked lanes that core has not been told of.
    pub(crate) unreported: Vec<(Arc<str>, DeliveryId)>,
    /// Deliveries behind the cursor that were given back, with their keys.
    pub(crate) returned: BTreeMap<DeliveryId, Arc<str>>,
    /// Another worker shall have it.
    pub(crate) is_revoked: bool,
    /// There may be something new in it.
    pub(crate) has_news: bool,
}

impl Worker {
    pub(crate) fn new(
        shared: Arc<Shared>,
        incarnation: String,
        handlers: Arc<[HandlerSpec]>,
        run: Arc<str>,
        trusted_until: BootTime,
    ) -> Self {
        Self {
            shared,
            incarnation,
            handlers,
            run,
            slots: Mutex::default(),
            held: Mutex::default(),
            revokes: Mutex::default(),
            end: Mutex::default(),
            is_closed: AtomicBool::new(false),
            trusted_until: AtomicU64::new(trusted_until.as_nanos()),
            work: Notify::new(),
            news: Notify::new(),
            moves: Notify::new(),
        }
    }

    pub(crate) fn slots(&self) -> MutexGuard<'_, HashMap<SlotId, Owned>> {
        locked(&self.slots)
    }

    /// There is something new: free deliveries, and what lies in the slots of `hints` (`handler slot handler slot …`).
    pub(crate) fn hear(&self, hints: &str) {
        let mut words = hints.split_ascii_whitespace();
        {
            let mut slots = self.slots();
            while let (Some(name), Some(number)) = (words.next(), words.next()) {
                let index =
                    self.indices().find(|(_, handler)| &*handler.name == name).map(|(index, _)| index);
                if let (Some(index), Ok(number)) = (index, number.parse())
                    && let Some(owned) = slots.get_mut(&(index, number))
                {
                    owned.has_news = true;
                }
            }
        }
        self.work.notify_one();
    }

    /// There may be something new anywhere.
    pub(crate) fn hear_everything(&self) {
        self.slots().values_mut().for_each(|owned| owned.has_news = true);
        self.work.notify_one();
    }

    pub(crate) fn held(&self) -> MutexGuard<'_, Held> {
        locked(&self.held)
    }

    /// The positions of all handlers.
    pub(crate) fn indices(&self) -> impl Iterator<Item = (HandlerIndex, &HandlerSpec)> {
        (0..).map(HandlerIndex).zip(self.handlers.iter())
    }

    /// Its right is proved until then.
    pub(crate) fn trust_until(&self, moment: BootTime) {
        self.trusted_until.fetch_max(moment.as_nanos(), Ordering::AcqRel);
    }

    pub(crate) fn trusted_until(&self) -> BootTime {
        BootTime::from_nanos(self.trusted_until.load(Ordering::Acquire))
    }

    /// It is over; the first reason counts.
    pub(crate) fn end(&self, kind: ErrorKind, why: impl Into<String>) {
        locked(&self.end).get_or_insert_with(|| (kind, why.into()));
        self.news.notify_one();
        self.moves.notify_one();
    }

    pub(crate) fn close(&self) -> bool {
        let was_open = !self.is_closed.swap(true, Ordering::AcqRel);
        self.end(ErrorKind::Closed, "the session is closed");
        was_open
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    pub(crate) fn is_over(&self) -> bool {
        locked(&self.end).is_some()
    }

    /// Whether it may still act; if not, why.
    pub(crate) fn check(&self, operation: &'static str) -> Result<(), Error> {
        if BootTime::now() >= self.trusted_until() {
            self.end(
                ErrorKind::LeaseLost,
                format!("the server {} did not confirm this worker in time", self.shared.server),
            );
        }
        match &*locked(&self.end) {
            Some((kind, why)) => Err(error(*kind, operation, why.clone())),
            None => Ok(()),
        }
    }

    /// Ends the session if a failure says so, and makes an error of it.
    pub(crate) fn failed(&self, operation: &'static str, failure: Failure) -> Error {
        let error = failure.into_error(operation, &self.shared.server);
        if error.kind() == ErrorKind::LeaseLost {
            self.end(ErrorKind::LeaseLost, error.message());
        }
        error
    }

    /// The server says that this worker was declared dead.
    pub(crate) fn fenced(&self, operation: &'static str) -> Error {
        let why = "another worker has declared this one dead";
        self.end(ErrorKind::LeaseLost, why);
        error(ErrorKind::LeaseLost, operation, why)
    }

    pub(crate) fn revoke(&self, (handler, number): SlotId) {
        locked(&self.revokes).push_back(Partition { handler, number });
        self.news.notify_one();
    }

    pub(crate) fn next_revoke(&self) -> Option<Partition> {
        locked(&self.revokes).pop_front()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that is done under these locks can panic half way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
