//! How a session reads: what it has handed out so far, and what comes next.

use std::collections::BTreeSet;
use std::sync::Arc;

use event_bus_core::backend::{
    AttemptError, ClaimRequest, Claimed, DeadReason, Delivery, Demand, ErrorLog, HandlerIndex, LaneDemand,
    ParkedLane, Partition, Timestamp,
};
use event_bus_core::{Error, Result};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use tokio::sync::oneshot;

use crate::apply::fenced;
use crate::backend::Shared;
use crate::error::translate;
use crate::operation::{Operation, Refill, RefillLane, Refilled, Settle};
use crate::row::{self, Names, Reading, Unreadable};
use crate::store::{self, Dead, Range};
use crate::writer::{Writer, received};

/// How many scheduled deliveries one claim gives their place.
const PROMOTE: i64 = 1_000;

/// How many parked lanes one claim reports.
const LANES: usize = 1_000;

/// What a claim needs and does not change.
pub(crate) struct Owner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) writer: Writer,
    pub(crate) fence: u64,
    /// The store's ids of the handlers, by [`HandlerIndex`].
    pub(crate) handlers: Vec<i64>,
}

impl Owner {
    fn partition(&self, position: usize) -> Partition {
        Partition {
            handler: HandlerIndex(u32::try_from(position).unwrap_or(u32::MAX)),
            number: Partition::WHOLE,
        }
    }

    fn partition_of(&self, id: i64) -> Option<Partition> {
        let owner = row::handler_of(id);
        self.handlers.iter().position(|handler| *handler == owner).map(|position| self.partition(position))
    }

    fn failed(&self, failure: &sqlx::Error) -> Error {
        translate("claim", &self.shared.config.path, failure)
    }
}

/// A session's own connection, and what it has handed out so far.
pub(crate) struct Reader {
    connection: SqliteConnection,
    /// A statement failed: the next claim connects anew.
    is_broken: bool,
    names: Names,
    /// The last id handed out of each handler. Sound as a cursor, see `claim.sql`.
    cursors: Vec<i64>,
    /// For each handler the key after which parked lanes have not been reported yet; `None` when all have been.
    unreported: Vec<Option<String>>,
    /// Deliveries behind the cursor that were given back.
    returned: BTreeSet<i64>,
    /// A refill that was asked for and not waited for: what it brings is nowhere else in memory.
    refilling: Option<(Vec<LaneDemand>, oneshot::Receiver<Result<Refilled>>)>,
    /// What the file looked like at the last look of `wait`.
    data_version: i64,
}

/// An answer in the making.
struct Answer {
    claimed: Claimed,
    now: Timestamp,
    bytes: usize,
    max_bytes: usize,
    unreadable: Vec<Unreadable>,
    /// How far the parked lanes of handlers are reported with this answer.
    reported: Vec<(usize, Option<String>)>,
}

impl Answer {
    fn is_full(&self) -> bool {
        self.bytes >= self.max_bytes
    }

    fn take(&mut self, owner: &Owner, names: &mut Names, id: i64, row: &SqliteRow) {
        // A row outside of every known range was not asked for.
        let Some(partition) = owner.partition_of(id) else { return };
        match row::delivery(row, id, partition, &mut Reading { names, now: self.now, fence: owner.fence }) {
            Ok(delivery) => self.add(delivery),
            Err(unreadable) => self.unreadable.push(unreadable),
        }
    }

    fn add(&mut self, delivery: Delivery) {
        self.bytes = self.bytes.saturating_add(delivery.envelope.payload.len());
        self.claimed.deliveries.push(delivery);
    }
}

impl Reader {
    pub(crate) fn new(connection: SqliteConnection, handlers: &[i64]) -> Self {
        Self {
            connection,
            is_broken: false,
            names: Names::default(),
            cursors: handlers.iter().map(|handler| row::range_start(*handler)).collect(),
            unreported: handlers.iter().map(|_| Some(String::new())).collect(),
            returned: BTreeSet::new(),
            refilling: None,
            data_version: 0,
        }
    }

    /// These deliveries were given back and can be handed out again.
    pub(crate) fn give_back(&mut self, ids: impl IntoIterator<Item = i64>) {
        self.returned.extend(ids);
    }

    /// Hands out what there is room for.
    pub(crate) async fn claim(&mut self, owner: &Owner, request: &ClaimRequest) -> Result<Claimed> {
        if self.is_broken {
            let connected = store::connect_reader(&owner.shared.config).await;
            self.connection = connected.map_err(|failure| owner.failed(&failure))?;
            self.is_broken = false;
        }
        let claimed = self.try_claim(owner, request).await;
        // Whatever it was, a new connection costs less than finding out whether this one is still good.
        self.is_broken = claimed.is_err();
        claimed
    }

    /// Whether the file has changed since the last look.
    pub(crate) async fn has_changed(&mut self) -> bool {
        match store::data_version(&mut self.connection).await {
            Ok(version) => std::mem::replace(&mut self.data_version, version) != version,
            // The next claim meets the same trouble and reports it.
            Err(_) => true,
        }
    }

    /// Everything a claim does. The reader changes only when nothing can be cancelled any more, so a dropped future
    /// forgets nothing.
    async fn try_claim(&mut self, owner: &Owner, request: &ClaimRequest) -> Result<Claimed> {
        let mut answer = Answer {
            claimed: Claimed::default(),
            now: owner.shared.config.clock.now(),
            bytes: 0,
            max_bytes: request.max_bytes,
            unreadable: Vec::new(),
            reported: Vec::new(),
        };
        answer.claimed.next_due_in = self.promote(owner, answer.now).await?;
        let demands = self.report_parked(owner, request, &mut answer).await?;
        self.refill(owner, request, &mut answer).await?;
        let still_returned = self.read_returned(owner, &demands, &mut answer).await?;
        let cursors = self.read_new(owner, &demands, &mut answer).await?;

        if !answer.unreadable.is_empty() {
            bury(owner, std::mem::take(&mut answer.unreadable), answer.now).await?;
        }
        for (position, reported) in answer.reported {
            self.unreported[position] = reported;
        }
        self.cursors = cursors;
        self.returned = still_returned;
        Ok(answer.claimed)
    }

    /// Gives what is due its place, and says when the next one is due.
    async fn promote(&mut self, owner: &Owner, now: Timestamp) -> Result<Option<std::time::Duration>> {
        let mut due_at = self.look(owner).await?;
        if due_at.is_some_and(|due_at| due_at <= now) {
            let fence = owner.fence;
            owner.writer.ask("claim", |reply| Operation::Promote { fence, limit: PROMOTE, reply }).await?;
            due_at = self.look(owner).await?;
        }
        Ok(due_at.map(|due_at| due_at.since(now)))
    }

    async fn look(&mut self, owner: &Owner) -> Result<Option<Timestamp>> {
        let (fence, due_at) =
            store::look(&mut self.connection).await.map_err(|failure| owner.failed(&failure))?;
        if fence == owner.fence { Ok(due_at) } else { Err(fenced("claim")) }
    }

    /// Reports lanes that an earlier session left parked. Handlers of which not all are reported get nothing else yet.
    async fn report_parked(
        &mut self,
        owner: &Owner,
        request: &ClaimRequest,
        answer: &mut Answer,
    ) -> Result<Vec<Demand>> {
        let mut demands = Vec::with_capacity(request.demands.len());
        for demand in &request.demands {
            let position = demand.handler.get();
            let (Some(handler), Some(unreported)) =
                (owner.handlers.get(position), self.unreported.get(position))
            else {
                continue;
            };
            let Some(after) = unreported else {
                demands.push(*demand);
                continue;
            };
            let limit = LANES.saturating_sub(answer.claimed.parked.len());
            let lanes =
                store::parked_lanes(&mut self.connection, *handler, after, i64::try_from(limit).unwrap_or(0))
                    .await
                    .map_err(|failure| owner.failed(&failure))?;
            if lanes.len() < limit {
                answer.reported.push((position, None));
                demands.push(*demand);
            } else {
                let last = lanes.last().map_or_else(|| after.clone(), |(key, _)| key.clone());
                answer.reported.push((position, Some(last)));
                answer.claimed.more.push(demand.handler);
            }
            let partition = owner.partition(position);
            answer.claimed.parked.extend(lanes.into_iter().map(|(key, first)| ParkedLane {
                partition,
                key: key.into(),
                first: row::public_id(first),
            }));
        }
        Ok(demands)
    }

    /// Hands out what was parked of the demanded lanes.
    async fn refill(&mut self, owner: &Owner, request: &ClaimRequest, answer: &mut Answer) -> Result<()> {
        if self.refilling.is_some() {
            // Of a claim that was dropped while it waited.
            self.await_refill(owner, answer).await?;
        }
        if request.lanes.is_empty() {
            return Ok(());
        }
        let lanes = request
            .lanes
            .iter()
            .filter_map(|lane| {
                Some(RefillLane {
                    handler: *owner.handlers.get(lane.partition.handler.get())?,
                    key: lane.key.clone(),
                    limit: i64::try_from(lane.limit).unwrap_or(i64::MAX),
                })
            })
            .collect();
        let refill =
            Refill { fence: owner.fence, lanes, max_bytes: answer.max_bytes.saturating_sub(answer.bytes) };
        let asked = owner.writer.submit("claim", |reply| Operation::Refill { refill, reply }).await?;
        self.refilling = Some((request.lanes.clone(), asked));
        self.await_refill(owner, answer).await
    }

    async fn await_refill(&mut self, owner: &Owner, answer: &mut Answer) -> Result<()> {
        let Some((lanes, asked)) = &mut self.refilling else { return Ok(()) };
        let result = received("claim", asked.await);
        let lanes = std::mem::take(lanes);
        self.refilling = None;
        let refilled = result?;
        for (_, id, row) in refilled.rows {
            answer.take(owner, &mut self.names, id, &row);
            // Until this answer is out they are remembered as given back, lest a dropped future forget them.
            self.returned.insert(id);
        }
        for (position, first) in refilled.still {
            let Some(lane) = lanes.get(position) else { continue };
            answer.claimed.still_parked.push(ParkedLane {
                partition: lane.partition,
                key: lane.key.clone(),
                first: row::public_id(first),
            });
        }
        Ok(())
    }

    /// Hands out again what was given back. Returns what is still left of it.
    async fn read_returned(
        &mut self,
        owner: &Owner,
        demands: &[Demand],
        answer: &mut Answer,
    ) -> Result<BTreeSet<i64>> {
        let mut left = self.returned.clone();
        for delivery in &answer.claimed.deliveries {
            row::private_id(delivery.id).map(|id| left.remove(&id));
        }
        for unreadable in &answer.unreadable {
            left.remove(&unreadable.id);
        }
        for demand in demands {
            let Some(handler) = owner.handlers.get(demand.handler.get()) else { continue };
            let range = row::range_start(*handler)..row::range_end(*handler);
            let wanted: Vec<_> = left.range(range).copied().take(demand.limit).collect();
            if wanted.is_empty() || answer.is_full() {
                continue;
            }
            let rows = store::returned(&mut self.connection, &wanted)
                .await
                .map_err(|failure| owner.failed(&failure))?;
            let mut is_stopped = false;
            for row in rows {
                if answer.is_full() {
                    is_stopped = true;
                    break;
                }
                let id = row::id(&row).map_err(|failure| owner.failed(&failure))?;
                answer.take(owner, &mut self.names, id, &row);
                left.remove(&id);
            }
            if is_stopped {
                answer.claimed.more.push(demand.handler);
            } else {
                // Those that were not there are settled or parked meanwhile.
                for id in &wanted {
                    left.remove(id);
                }
            }
        }
        Ok(left)
    }

    /// Hands out what lies behind the cursors. Returns the new ones.
    async fn read_new(&mut self, owner: &Owner, demands: &[Demand], answer: &mut Answer) -> Result<Vec<i64>> {
        let mut room: Vec<_> = owner.handlers.iter().map(|_| 0_usize).collect();
        for demand in demands {
            let taken =
                answer.claimed.deliveries.iter().filter(|taken| taken.handler() == demand.handler).count();
            if let Some(room) = room.get_mut(demand.handler.get()) {
                *room = demand.limit.saturating_sub(taken);
            }
        }
        let mut cursors = self.cursors.clone();
        let mut ranges = Vec::with_capacity(demands.len());
        for demand in demands {
            let position = demand.handler.get();
            let (Some(handler), Some(after), Some(room)) =
                (owner.handlers.get(position), cursors.get(position), room.get(position))
            else {
                continue;
            };
            let limit = i64::try_from(*room).unwrap_or(i64::MAX);
            ranges.push(Range { after: *after, end: row::range_end(*handler), limit });
        }
        if answer.is_full() {
            answer.claimed.more.extend(demands.iter().map(|demand| demand.handler));
            return Ok(cursors);
        }
        let names = &mut self.names;
        store::claim(&mut self.connection, &ranges, |row| {
            let id = row::id(&row)?;
            if let Some(position) = owner.partition_of(id).map(|partition| partition.handler.get()) {
                cursors[position] = cursors[position].max(id);
                room[position] = room[position].saturating_sub(1);
            }
            answer.take(owner, names, id, &row);
            Ok(!answer.is_full())
        })
        .await
        .map_err(|failure| owner.failed(&failure))?;
        for demand in demands {
            if answer.is_full() || room.get(demand.handler.get()) == Some(&0) {
                answer.claimed.more.push(demand.handler);
            }
        }
        Ok(cursors)
    }
}

/// Rows that cannot be deliveries go to the dead letters as they are: they must not stop the worker, and nobody shall
/// lose them.
async fn bury(owner: &Owner, unreadable: Vec<Unreadable>, now: Timestamp) -> Result<()> {
    let dead = unreadable
        .into_iter()
        .map(|unreadable| {
            tracing::error!(
                id = unreadable.id,
                why = unreadable.why,
                "a delivery in the file cannot be read"
            );
            let error = AttemptError { attempt: 0, failed_at: now, message: unreadable.why };
            Dead {
                id: unreadable.id,
                reason: DeadReason::Undecodable,
                failures: 0,
                errors: ErrorLog::default().with(error),
                holds_key: false,
            }
        })
        .collect();
    let settle = Settle { fence: owner.fence, dead, ..Settle::default() };
    owner.writer.ask("claim", |reply| Operation::Settle { settle, reply }).await
}
