//! The keeper: the one task that owns a worker's session, and with it the worker's life.
//!
//! The session holds an advisory lock. Everything that this worker writes about its deliveries is written here, so a write
//! that reaches the tables proves that the lock was held: nobody else can have had them. A request that is delivered late
//! either runs while the lock is held, or finds a closed connection. A lost answer ends the session.
//!
//! # Floors
//!
//! A claim reads a slot from its first row on, for a publisher may commit a small id late. What is done is deleted, but as
//! long as a transaction somewhere in the database stays open, the dead rows cannot be removed, and every claim would walk
//! over all of them. So the keeper knows a floor for each slot: below it nothing can be new. It follows from three facts. A
//! publisher's transaction has its number before it draws its first id (`publish.sql`). An id that was handed out here has
//! been drawn, so all smaller ones belong to transactions that have begun; the next survey says up to which number. And
//! when a later survey says that all transactions up to that number have ended, every row up to that id is visible to later
//! claims, or never will be.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use event_bus_core::backend::{ClaimRequest, Claimed, Delivery, Partition, SettleBatch};
use event_bus_core::clock::BootTime;
use event_bus_core::{Error, ErrorKind, Result};
use sqlx::Connection as _;
use sqlx::postgres::PgConnection;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::connection::Shared;
use crate::error::{Cause, error, translate};
use crate::listen::LEASES;
use crate::row::{self, FREE, Names, Place};
use crate::session::State;
use crate::store::{self, Places};

/// The longest time between two looks at who owns what, which are the session's beats as well. The time until a worker
/// that vanished is noticed.
const MAX_BEAT: Duration = Duration::from_millis(500);

/// How long a clean end may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// What core asks for.
pub(crate) enum Operation {
    Claim {
        request: ClaimRequest,
        /// Deliveries that were given back, and whose giving back core knows to be stored.
        given_back: Vec<i64>,
        reply: oneshot::Sender<Result<Claimed>>,
    },
    Settle {
        batch: SettleBatch,
        reply: oneshot::Sender<Result<()>>,
    },
    Release {
        partition: Partition,
        reply: oneshot::Sender<Result<()>>,
    },
    Close {
        reply: oneshot::Sender<Result<()>>,
    },
}

/// A handler of this worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handler {
    pub(crate) id: i32,
    pub(crate) window: i32,
}

/// The tables have another history than before: they are a copy that was made before it ended (a standby that lagged, a
/// backup). What they say about who owns what may be out of date, locks are not copied, and an owner that hears nothing
/// from the old server believes in its session for a while. So nothing is taken until its trust must have ended.
#[derive(Debug)]
pub(crate) struct Quarantine {
    pub(crate) until: Instant,
    pub(crate) history: String,
}

/// A lease that this worker has.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) epoch: i64,
    /// Nothing is handed out before: the last owner may not know yet that it is none.
    pub(crate) ready_at: Instant,
    /// The key after which parked lanes have not been reported yet; `None` when all have been.
    pub(crate) unreported: Option<String>,
    pub(crate) is_revoked: bool,
    /// Up to here nothing can be new.
    pub(crate) floor: i64,
    /// The last claim brought all that was asked for: there is more.
    pub(crate) is_full: bool,
    /// A line behind a stuck head lies in it, and core gives it back as fast as it is handed out.
    pub(crate) is_clogged: bool,
}

pub(crate) struct Keeper {
    pub(crate) shared: Arc<Shared>,
    pub(crate) state: Arc<State>,
    pub(crate) connection: PgConnection,
    pub(crate) worker: i32,
    /// The server's version.
    pub(crate) version: i32,
    pub(crate) handlers: Vec<Handler>,
    /// By the position of the handler.
    pub(crate) leases: Vec<BTreeMap<i16, Lease>>,
    /// All that is in core's hands.
    pub(crate) held: HashMap<i64, (usize, i16)>,
    /// Of those, what was given back and comes back with a later claim.
    pub(crate) given_back: HashSet<i64>,
    /// What was claimed again of it meanwhile.
    pub(crate) stash: Vec<Delivery>,
    /// Up to which ids the store knows this worker to hold deliveries, by handler.
    pub(crate) loaded_to: Vec<i64>,
    /// Taken out of parked lines by a claim that failed afterwards; in slots of this worker.
    pub(crate) strays: Vec<Place>,
    pub(crate) names: Names,
    /// Where the next claim begins among the slots, so that none is always the last.
    pub(crate) turn: usize,
    /// The greatest id that was handed out.
    pub(crate) top: i64,
    /// Greatest ids handed out so far, each with the first transaction that had not begun then.
    pub(crate) marks: VecDeque<(i64, i64)>,
    /// Up to this id, whatever will ever be there is there.
    pub(crate) final_to: i64,
    /// Of each handler, up to where nothing free can be new, and how often free deliveries had come back then.
    pub(crate) free_floors: Vec<(i64, i64)>,
    /// A claim failed: what it had locked was passed over by others, who must look again.
    pub(crate) must_give_back: bool,
    pub(crate) quarantine: Option<Quarantine>,
    /// When it looks next at who owns what.
    pub(crate) next_beat: Instant,
    pub(crate) forget_keys_at: Instant,
}

impl Keeper {
    pub(crate) fn new(
        shared: Arc<Shared>,
        state: Arc<State>,
        connection: PgConnection,
        worker: i32,
        version: i32,
        handlers: Vec<Handler>,
    ) -> Self {
        let now = Instant::now();
        let loaded_to = vec![0; handlers.len()];
        let free_floors = vec![(0, 0); handlers.len()];
        Self {
            shared,
            state,
            connection,
            worker,
            version,
            leases: handlers.iter().map(|_| BTreeMap::new()).collect(),
            held: HashMap::new(),
            given_back: HashSet::new(),
            stash: Vec::new(),
            loaded_to,
            strays: Vec::new(),
            handlers,
            names: Names::default(),
            turn: 0,
            top: 0,
            marks: VecDeque::new(),
            final_to: 0,
            free_floors,
            must_give_back: false,
            quarantine: None,
            next_beat: now,
            forget_keys_at: now,
        }
    }

    /// The time between two beats.
    pub(crate) fn beat_interval(&self) -> Duration {
        (self.shared.config.handover_delay / 4).min(MAX_BEAT)
    }

    pub(crate) async fn run(mut self, mut operations: mpsc::Receiver<Operation>) {
        let state = self.state.clone();
        self.tell(LEASES).await;
        while !state.is_over() {
            if Instant::now() >= self.next_beat {
                self.beat().await;
                continue;
            }
            let wake_at = self.next_ready().map_or(self.next_beat, |ready_at| ready_at.min(self.next_beat));
            let operation = tokio::select! {
                biased;
                operation = operations.recv() => operation,
                () = state.look.notified() => {
                    self.next_beat = Instant::now();
                    continue;
                }
                () = tokio::time::sleep_until(wake_at) => {
                    self.ready();
                    continue;
                }
            };
            match operation {
                // Dropped: an unclean end.
                None => break,
                Some(Operation::Claim { request, given_back, reply }) => {
                    let claimed = self.claim(&request, given_back).await;
                    // If nobody waits any more, the session's end gives it back.
                    let _ = reply.send(claimed);
                }
                Some(Operation::Settle { batch, reply }) => {
                    let settled = self.settle(&batch).await;
                    let _ = reply.send(settled);
                }
                Some(Operation::Release { partition, reply }) => {
                    let released = self.release(partition).await;
                    let _ = reply.send(released);
                }
                Some(Operation::Close { reply }) => {
                    let left = self.leave().await;
                    let _ = reply.send(left);
                    break;
                }
            }
        }
        // The server frees the lock when the connection is gone, however it goes.
        let _ = tokio::time::timeout(FAREWELL, self.connection.close()).await;
    }

    /// What an answer says about the session: every answer proves that the lock was held when it was made, an error as
    /// well, unless the connection is gone.
    pub(crate) fn heard<T>(
        &self,
        operation: &'static str,
        sent_at: BootTime,
        answer: sqlx::Result<T>,
    ) -> Result<T> {
        let failure = match answer {
            Ok(value) => {
                self.state.heard(sent_at);
                return Ok(value);
            }
            Err(failure) => failure,
        };
        if Cause::of(&failure).ends_connection(&failure) {
            self.state.end(format!("the session with {} is gone ({failure})", self.shared.place));
            return Err(self.state.refusal(operation));
        }
        self.state.heard(sent_at);
        Err(translate(operation, &self.shared.place, &failure, false))
    }

    /// The position of a handler of this worker.
    pub(crate) fn position(&self, handler: i32) -> Option<usize> {
        self.handlers.iter().position(|known| known.id == handler)
    }

    /// The place of a delivery in core's hands.
    pub(crate) fn place_of(&self, partition: Partition, id: i64) -> Option<Place> {
        let handler = self.handlers.get(partition.handler.get())?.id;
        Some(Place { handler, slot: row::slot(partition), id })
    }

    /// Wakes others, if they listen. A failure costs them no more than their own beat.
    pub(crate) async fn tell(&mut self, about: &str) {
        if self.shared.config.is_notifying {
            let sent_at = BootTime::now();
            let told =
                store::notify(self.shared.at(), &mut self.connection, &self.shared.channel, about).await;
            if let Err(failure) = self.heard("notify", sent_at, told) {
                tracing::debug!(error = %failure, "the other workers could not be told");
            }
        }
    }

    /// Ends in peace: everything is free at once, save for what it was itself still waiting for.
    async fn leave(&mut self) -> Result<()> {
        let mut free = Places::default();
        for (id, (position, slot)) in &self.held {
            if *slot == FREE
                && let Some(handler) = self.handlers.get(*position)
            {
                free.push(Place { handler: handler.id, slot: FREE, id: *id });
            }
        }
        let sent_at = BootTime::now();
        let unclean = self.unclean();
        let left = store::leave(self.shared.at(), &mut self.connection, self.worker, &free, &unclean).await;
        let left = self.heard("close", sent_at, left);
        if left.is_ok() {
            self.tell(LEASES).await;
            self.shared.ring();
        }
        left.map_err(|failure| {
            error(
                ErrorKind::Unavailable,
                "close",
                "the clean end could not be stored, others will wait for it",
            )
            .with_source(Error::to_string(&failure))
        })
    }
}
