//! The seam: what a store must do so that the engine can keep the promises on it.
//!
//! Backends store and move; core decides. A backend never looks into a payload, never counts an attempt by itself,
//! never chooses a delay and never drops anything. It answers a few questions: [`Backend::publish`] on the publisher's
//! side, and on the worker's side a [`Session`] with [`claim`](Session::claim), [`settle`](Session::settle),
//! [`wait`](Session::wait), [`release`](Session::release) and [`close`](Session::close).
//!
//! The same few calls fit a store that is polled (SQL), one that runs scripts (Redis) and one that pushes (RabbitMQ,
//! whose session buffers what was pushed until it is claimed). What differs is declared in
//! [`Capabilities`].
//!
//! # Words
//!
//! A *lane* is one handler's deliveries of one key. A *free* delivery has no key. A *keyed* delivery of a handler with
//! [`Order::Hold`] keeps its place in its lane while it waits for a retry. A delivery published with a delay, a free
//! one that waits for a retry and one of an [`Order::Release`] handler have no place: they enter their line when they
//! become due.

use std::any::Any;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use crate::Order;
use crate::bus::EventBus;
pub use crate::capabilities::Capabilities;
pub use crate::delivery::{
    AttemptError, DeadLetter, DeadReason, Delivery, DeliveryId, ErrorLog, HandlerIndex, Outcome, Partition,
};
pub use crate::envelope::{Envelope, EventId, Headers, Timestamp};
use crate::error::{Error, Result};
use crate::registry::Registry;

/// The caller's own database connection or transaction, whose type only its backend knows.
pub type Connection<'a> = &'a mut (dyn Any + Send);

/// A store of deliveries.
///
/// # For implementors
///
/// Every call may be made from many tasks at once. A call that cannot reach the store answers
/// [`Unavailable`](crate::ErrorKind::Unavailable) within a bounded time, never by waiting for ever.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// One lower-case word for logs and errors: `"sqlite"`.
    fn name(&self) -> &'static str;

    /// What it offers. Constant for the life of the backend; core refuses what is missing before any call is made.
    fn capabilities(&self) -> Capabilities;

    /// Told once, when a bus is built over it, which handlers there are. Only backends that run handlers themselves
    /// (inline, testing) need to keep it.
    ///
    /// # Errors
    /// `InvalidConfiguration` if it cannot serve these handlers: `build` fails with it.
    fn attach(&self, registry: &Arc<Registry>) -> Result<()> {
        let _ = registry;
        Ok(())
    }

    /// Told once, when a bus has been built over it. Whoever keeps it keeps [`EventBus::with_backend`] of it: a clone
    /// would own this backend in a circle.
    fn built(&self, bus: &EventBus) {
        let _ = bus;
    }

    /// The testing backend's way in: if there is a watcher, it takes every publish call in place of
    /// [`publish`](Backend::publish) and [`publish_in`](Backend::publish_in).
    fn watcher(&self) -> Option<&dyn Watcher> {
        None
    }

    /// Creates or upgrades what the store needs.
    ///
    /// # Guarantees
    /// - *idempotent*: repeating it changes nothing; many nodes may call it at once.
    /// - *forward only*: a store that is newer than this binary is refused, untouched.
    ///
    /// # Errors
    /// `InvalidConfiguration`: newer schema, other slot count, a store that is not durable; the operator acts.
    /// `Unavailable`: try again.
    ///
    /// # Cancel safety
    /// A dropped future leaves the store before or after each single step; calling again finishes the work.
    async fn prepare(&self) -> Result<()>;

    /// Stores the deliveries of one publish call.
    ///
    /// # Guarantees
    /// - *durable-before-ok*: when it returns Ok, every delivery is stored as safely as the store stores anything.
    /// - *atomic* (with [`Capabilities::atomic_publish`]): all deliveries or none.
    /// - *key-order*: if one call returned before another was made, its deliveries come first in every lane; within a
    ///   call the order of [`Publication::events`] decides.
    /// - *idempotency* (with [`Capabilities::idempotency_key`]): while a key is remembered, a second call with it
    ///   stores nothing and says so; a call that failed leaves no trace of its key.
    ///
    /// # Not guaranteed
    /// An order between calls that overlap in time.
    ///
    /// # Errors
    /// `Unavailable`: nothing was stored. `OutcomeUnknown`: perhaps. Others: nothing was stored, repeating is useless.
    ///
    /// # Cancel safety
    /// A dropped future leaves the publication stored whole or not at all, and nothing half-open.
    async fn publish(&self, publication: Publication) -> Result<Stored>;

    /// As [`publish`](Backend::publish), inside the caller's own transaction: the deliveries are stored if and when it
    /// commits.
    ///
    /// # Errors
    /// `Unsupported` without [`Capabilities::transactional_publish`]; `InvalidConfiguration` if `connection` is not of a
    /// type this backend understands (the message lists those it does).
    ///
    /// # Cancel safety
    /// A dropped future leaves the transaction in an unknown state: roll it back.
    async fn publish_in(&self, connection: Connection<'_>, publication: Publication) -> Result<Stored> {
        let _ = (connection, publication);
        Err(Error::unsupported("publish", self.name(), "publishing within a transaction"))
    }

    /// Becomes a worker for these handlers. May wait for long: a standby returns when it takes over.
    ///
    /// # Guarantees
    /// - *one-at-a-time*: two sessions never hold the same keyed delivery at once, nor the same free one, unless one of
    ///   them has lost its right and its writes are refused.
    /// - *bounded-attempts*: what a vanished owner may have been running comes with [`Delivery::crashes`] raised by one,
    ///   and if its start was recorded ([`Outcome::Start`]) with that attempt counted in [`Delivery::failures`].
    ///
    /// # Errors
    /// `Unavailable`: core tries again with a backoff. `InvalidConfiguration` and `Unsupported`: the worker ends.
    ///
    /// # Cancel safety
    /// A dropped future leaves no ownership behind.
    async fn open(&self, worker: &WorkerSpec) -> Result<Arc<dyn Session>>;

    /// Dead letters that match, in the order of their ids, at most `limit`, only those after `after`.
    ///
    /// # Errors
    /// `Unsupported` without [`Capabilities::dead_letters`].
    ///
    /// # Cancel safety
    /// Only reads.
    async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        after: Option<DeliveryId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>> {
        let _ = (filter, after, limit);
        Err(Error::unsupported("dead_letters", self.name(), "dead letters"))
    }

    /// Makes deliveries of dead letters again, with all attempts before them, and forgets the dead letters. One that
    /// holds its key comes back in its old place; the others join the end of their lines in the order of their original
    /// publication. Returns how many.
    ///
    /// # Guarantees
    /// - *atomic* for each dead letter: it is either dead or a delivery, never both nor neither.
    ///
    /// # Errors
    /// `Unsupported` without [`Capabilities::dead_letters`].
    ///
    /// # Cancel safety
    /// A dropped future leaves each dead letter as it was or replayed; calling again goes on.
    async fn replay(&self, filter: &DeadLetterFilter) -> Result<u64> {
        let _ = filter;
        Err(Error::unsupported("replay", self.name(), "dead letters"))
    }

    /// Deletes dead letters and lets go of the keys they hold. Returns how many.
    ///
    /// # Errors
    /// `Unsupported` without [`Capabilities::dead_letters`].
    ///
    /// # Cancel safety
    /// A dropped future leaves each dead letter as it was or deleted.
    async fn purge(&self, filter: &DeadLetterFilter) -> Result<u64> {
        let _ = filter;
        Err(Error::unsupported("purge", self.name(), "dead letters"))
    }

    /// How many deliveries the store holds, per handler, in the order of handler names.
    ///
    /// # Errors
    /// `Unsupported` where the medium cannot count.
    ///
    /// # Cancel safety
    /// Only reads.
    async fn counts(&self) -> Result<Vec<HandlerCounts>> {
        Err(Error::unsupported("counts", self.name(), "counting deliveries"))
    }
}

/// Looks at what is published instead of storing it.
#[async_trait]
pub trait Watcher: Send + Sync {
    /// Takes one publish call.
    ///
    /// # Errors
    /// Those of [`Backend::publish`].
    ///
    /// # Cancel safety
    /// As for [`Backend::publish`].
    async fn published(&self, call: Watched) -> Result<Stored>;
}

/// One publish call with everything a failing test wants to show.
#[derive(Clone, Debug)]
pub struct Watched {
    /// The call, with the events that no handler is interested in.
    pub publication: Publication,
    /// [`Event::debug`](crate::Event::debug) of each event.
    pub debug: Vec<Option<String>>,
}

/// One publish call: what to store, for whom.
#[derive(Clone, Debug)]
pub struct Publication {
    /// The events in the order of the call, each with at least one handler (save for a [`Watcher`]).
    pub events: Vec<Addressed>,
    /// How long to wait before the deliveries enter their lines.
    pub delay: Duration,
    /// Stores nothing if a publication with this key is remembered.
    pub idempotency_key: Option<Arc<str>>,
    /// Where `publish` was called in the user's source.
    pub location: &'static Location<'static>,
}

impl Publication {
    /// How many deliveries it makes.
    pub fn deliveries(&self) -> usize {
        self.events.iter().map(|event| event.handlers.len()).sum()
    }
}

/// An event and the handlers it is for.
#[derive(Clone, Debug)]
pub struct Addressed {
    /// The event.
    pub envelope: Envelope,
    /// The names of the interested handlers, in the order of their registration.
    pub handlers: Arc<[Arc<str>]>,
}

/// What became of a publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stored {
    /// All its deliveries are stored.
    New,
    /// Its idempotency key was known: nothing was stored.
    Duplicate,
}

/// A worker that wants to open a session.
#[derive(Clone, Debug)]
pub struct WorkerSpec {
    /// Names this start of this worker; never used twice.
    pub incarnation: Uuid,
    /// The handlers it knows; a [`HandlerIndex`] is a position in this list.
    pub handlers: Arc<[HandlerSpec]>,
}

/// What a store needs to know of a handler.
#[derive(Clone, Debug)]
pub struct HandlerSpec {
    /// The stable name.
    pub name: Arc<str>,
    /// 0 (first) to 9; a claim that must choose between handlers takes the lower number first.
    pub priority: u8,
    /// Whether its keyed deliveries keep their place while they wait.
    pub order: Order,
    /// The most deliveries of it that this worker ever holds in memory: what an unclean end can put in doubt.
    pub window: usize,
}

/// A worker's hold on the store: it owns what it claims until it settles it, closes, or loses its right.
///
/// Core makes at most one `claim` and one `settle` call at a time, but one of each may be under way together.
#[async_trait]
pub trait Session: Send + Sync {
    /// Hands out deliveries: for each demand the oldest ones first, for each lane demand what was parked of that lane,
    /// oldest first.
    ///
    /// # Guarantees
    /// - *exclusive*: nothing is handed out that another session holds, or that this one held when the call was made: what
    ///   it gave up meanwhile comes back, under the same id, with a later claim.
    /// - *key-order*: within a lane deliveries come in the order of their ids; a delivery that keeps its place is handed
    ///   out even if it is not due, with [`Delivery::due_in`], and so is a held one, with [`Delivery::is_held`].
    /// - *fresh*: the answer reflects every settle that was answered before this call was made.
    /// - *no starvation*: deliveries of unknown handlers, of blocked or parked lanes do not slow a claim down.
    ///
    /// # Not guaranteed
    /// An order between lanes, or between free deliveries beyond "about the oldest first".
    ///
    /// # Errors
    /// Transient: core calls again after a backoff. `LeaseLost`, `Closed`: the session is over.
    ///
    /// # Cancel safety
    /// A dropped future leaves claimed deliveries in this session's hands; its end gives them back.
    async fn claim(&self, request: &ClaimRequest) -> Result<Claimed>;

    /// Stores outcomes in one write, in the order of the batch.
    ///
    /// # Guarantees
    /// - *fenced*: if the session lost its right, nothing is written.
    /// - *atomic*: the whole batch or nothing. (RabbitMQ: a prefix; the repeat completes it.)
    /// - *repeatable*: all values are absolute; saying them twice, or late, changes nothing more. An outcome for a
    ///   delivery that is gone is ignored.
    ///
    /// # Errors
    /// Transient: core repeats the same batch before it says anything newer. `LeaseLost`, `Closed`: the session is over.
    ///
    /// # Cancel safety
    /// A dropped future leaves the batch stored or not.
    async fn settle(&self, batch: &SettleBatch) -> Result<()>;

    /// Completes a delivery inside the handler's own transaction.
    ///
    /// # Errors
    /// `Unsupported` without [`Capabilities::transactional_complete`]; `LeaseLost` if the right to it is gone: the
    /// handler must roll back.
    ///
    /// # Cancel safety
    /// A dropped future leaves the transaction in an unknown state: roll it back.
    async fn complete_in(&self, connection: Connection<'_>, delivery: &Delivery) -> Result<()> {
        let _ = (connection, delivery);
        Err(Error::unsupported("complete_in", "this", "completing within a transaction"))
    }

    /// Whether the right to what was claimed is certain at this moment. Core asks right before each run: a process that stood
    /// still starts nothing by a right that may have run out meanwhile, although nobody could tell it so yet. A run that is
    /// not started for this is given back like a cancelled one.
    ///
    /// # For implementors
    /// Answer at once from what is known: when the last proof of the right was asked for, on a clock that goes on while the
    /// machine is suspended. A right that does not run out is always certain.
    fn is_trusted(&self) -> bool {
        true
    }

    /// Waits for something worth knowing. Hints may be lost: core claims at intervals in any case.
    ///
    /// # Cancel safety
    /// A dropped future loses nothing; the next call reports it.
    async fn wait(&self) -> Notice;

    /// Gives a partition back after [`Notice::Revoke`]: nothing of it runs and all outcomes are stored.
    ///
    /// # Errors
    /// As for `settle`.
    ///
    /// # Cancel safety
    /// A dropped future leaves the partition owned or given back.
    async fn release(&self, partition: Partition) -> Result<()> {
        let _ = partition;
        Ok(())
    }

    /// Gives everything back at once: a clean end, after which nothing is repeated and nobody waits. Core has settled
    /// everything that ran.
    ///
    /// # Errors
    /// The store could not be told; it finds out by itself later.
    ///
    /// # Cancel safety
    /// A dropped future leaves a clean or an unclean end.
    async fn close(&self) -> Result<()>;
}

/// What a session reports by itself.
#[derive(Debug)]
pub enum Notice {
    /// There may be something to claim.
    Work,
    /// Another worker shall have this partition: stop starting its deliveries, let the running ones end, then
    /// [`release`](Session::release) it. Core makes no claim while it releases.
    Revoke(Partition),
    /// The right to this partition is gone: its runs are cancelled, its outcomes dropped, and so is what a claim that was
    /// made before brings of it. A session can get it back only after it has told this, and hands its deliveries out anew
    /// to later claims.
    Lost(Partition),
    /// The session is over: as `Lost` for everything.
    Ended(Error),
}

/// What the engine has room for.
#[derive(Clone, Debug, Default)]
pub struct ClaimRequest {
    /// Handlers with room, those of low priority numbers first.
    pub demands: Vec<Demand>,
    /// Lanes whose parked deliveries are wanted again.
    pub lanes: Vec<LaneDemand>,
    /// Stop handing out when the payloads reach this sum; the one that crosses it is included.
    pub max_bytes: usize,
}

/// Room for deliveries of one handler.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// Whose.
    pub handler: HandlerIndex,
    /// At most this many; at least 1.
    pub limit: usize,
}

/// Room for parked deliveries of one lane.
#[derive(Clone, Debug)]
pub struct LaneDemand {
    /// The lane's partition.
    pub partition: Partition,
    /// The lane's key.
    pub key: Arc<str>,
    /// At most this many; at least 1. They are no longer parked when they are handed out.
    pub limit: usize,
}

/// What a claim handed out.
#[derive(Clone, Debug, Default)]
pub struct Claimed {
    /// The deliveries; those of lane demands come first.
    pub deliveries: Vec<Delivery>,
    /// Handlers of which there is more to claim right away.
    pub more: Vec<HandlerIndex>,
    /// Of the demanded lanes, those of which something is still parked.
    pub still_parked: Vec<ParkedLane>,
    /// Lanes of which the store holds parked deliveries that this session has not been told of: all of them in the
    /// first answers after a partition was acquired, before any delivery of it. Such a lane is parked from its very first
    /// delivery on: what an earlier owner held of it in memory (a head that waits) is parked with the rest when the
    /// partition changes hands, or what stands behind it would come first.
    pub parked: Vec<ParkedLane>,
    /// When the next waiting delivery becomes due, if the store knows: the engine claims again then.
    pub next_due_in: Option<Duration>,
}

/// A lane with parked deliveries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParkedLane {
    /// Its partition.
    pub partition: Partition,
    /// Its key.
    pub key: Arc<str>,
    /// The first parked one.
    pub first: DeliveryId,
}

/// What one settle call stores.
#[derive(Clone, Debug, Default)]
pub struct SettleBatch {
    /// Outcomes, each delivery at most once.
    pub settlements: Vec<Settlement>,
    /// Lanes to park, after the outcomes. Only with [`Capabilities::parking`].
    pub parks: Vec<Park>,
}

/// One delivery's outcome.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// The delivery.
    pub delivery: Arc<Delivery>,
    /// What became of it.
    pub outcome: Outcome,
}

/// Gives the claimed deliveries of a lane from `from` on back to the store, which hands them out only on a
/// [`LaneDemand`]. The store may park the rest of the lane with them where that is cheap; what it does not park is claimed
/// later and parked then.
#[derive(Clone, Debug)]
pub struct Park {
    /// The lane's partition.
    pub partition: Partition,
    /// The lane's key.
    pub key: Arc<str>,
    /// The first one: perhaps the marker of a dead letter that holds the key, which is no claimed delivery any more.
    pub from: DeliveryId,
    /// Those that this session had been handed.
    pub claimed: Vec<DeliveryId>,
}

/// Which dead letters: those that match every field that is set.
#[derive(Clone, Debug, Default)]
pub struct DeadLetterFilter {
    /// Exactly these.
    pub ids: Option<Vec<DeliveryId>>,
    /// Of this handler.
    pub handler: Option<String>,
    /// Of this event name.
    pub event: Option<String>,
    /// Of this partition key.
    pub key: Option<String>,
    /// With this reason.
    pub reason: Option<DeadReason>,
    /// Dead before this point in time.
    pub died_before: Option<Timestamp>,
}

/// How many deliveries of a handler the store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HandlerCounts {
    /// The handler's name, known to this process or not.
    pub handler: String,
    /// Stored and neither waiting nor held: ready or running.
    pub ready: u64,
    /// Waiting until a point in time.
    pub waiting: u64,
    /// Dead letters.
    pub dead: u64,
}
