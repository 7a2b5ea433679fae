//! A worker's hold on the store, as core sees it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use event_bus_core::backend::{
    ClaimRequest, Claimed, Connection, Delivery, Notice, Outcome, Partition, Session, SettleBatch, WorkerSpec,
};
use event_bus_core::clock::BootTime;
use event_bus_core::{Error, ErrorKind, Result, SLOTS};
use sqlx::postgres::PgConnection;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::connection::{SESSION_SILENCE, Shared, TRUST, connect_session, locked, session_statement_timeout};
use crate::error::{error, translate};
use crate::keeper::{Handler, Keeper, Operation, Quarantine};
use crate::listen;
use crate::migrate;
use crate::publish::handler_ids;
use crate::row::{self, Place};
use crate::store;
use crate::transaction;

/// How often the trust in the session is looked at.
const WATCH: Duration = Duration::from_millis(100);

/// Operations that may wait for the keeper; core makes at most one of each at a time.
const QUEUE: usize = 8;

/// What a session, its keeper, its listener and its watch share.
pub(crate) struct State {
    notices: Mutex<VecDeque<Notice>>,
    /// Something happened that [`Session::wait`] reports.
    pub(crate) bell: Arc<Notify>,
    /// Ownership may have changed: the keeper shall look.
    pub(crate) look: Notify,
    /// When the last answered statement was sent.
    heard_at: AtomicU64,
    over: OnceLock<String>,
    is_closed: AtomicBool,
}

impl State {
    fn new(sent_at: BootTime) -> Self {
        Self {
            notices: Mutex::default(),
            bell: Arc::default(),
            look: Notify::new(),
            heard_at: AtomicU64::new(sent_at.as_nanos()),
            over: OnceLock::new(),
            is_closed: AtomicBool::new(false),
        }
    }

    /// A statement that was sent then was answered: the session held its lock at that time or later.
    pub(crate) fn heard(&self, sent_at: BootTime) {
        self.heard_at.fetch_max(sent_at.as_nanos(), Ordering::AcqRel);
    }

    /// Whether the session is believed in.
    pub(crate) fn is_trusted(&self) -> bool {
        self.over.get().is_none()
            && BootTime::from_nanos(self.heard_at.load(Ordering::Acquire)).elapsed() < TRUST
    }

    /// The right to everything is gone.
    pub(crate) fn end(&self, why: impl Into<String>) {
        // The first reason counts.
        let _ = self.over.set(why.into());
        self.bell.notify_one();
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.get().is_some()
    }

    pub(crate) fn say(&self, notice: Notice) {
        locked(&self.notices).push_back(notice);
        self.bell.notify_one();
    }

    /// The error of whoever still wants something.
    pub(crate) fn refusal(&self, operation: &'static str) -> Error {
        match self.over.get() {
            Some(why) => error(ErrorKind::LeaseLost, operation, why.clone()),
            None => error(ErrorKind::Closed, operation, "the session is closed"),
        }
    }

    fn check(&self, operation: &'static str) -> Result<()> {
        if self.is_closed.load(Ordering::Acquire) || self.is_over() {
            return Err(self.refusal(operation));
        }
        if !self.is_trusted() {
            self.end(format!("the database has not answered for {TRUST:?}"));
            return Err(self.refusal(operation));
        }
        Ok(())
    }
}

/// A live worker. Dropped without [`close`](Session::close), it leaves an unclean end.
pub(crate) struct PostgresSession {
    shared: Arc<Shared>,
    state: Arc<State>,
    worker: i32,
    /// The store's ids of the handlers, by position.
    handlers: Vec<i32>,
    operations: mpsc::Sender<Operation>,
    /// Deliveries that were given back since the last claim.
    released: Mutex<Vec<i64>>,
    helpers: Vec<JoinHandle<()>>,
}

/// Opens a session: connects, registers, and takes the first leases.
pub(crate) async fn open(shared: &Arc<Shared>, spec: &WorkerSpec) -> Result<PostgresSession> {
    let failed = |failure: sqlx::Error| translate("open", &shared.place, &failure, false);
    let timeout = tokio::time::timeout(TRUST, connect_session(&shared.config)).await;
    let late = |_| error(ErrorKind::Unavailable, "open", format!("{} does not answer in time", shared.place));
    let mut connection = timeout.map_err(late)?.map_err(failed)?;
    let entered = tokio::time::timeout(TRUST, enter(shared, &mut connection, spec)).await;
    let Entered { worker, version, handlers, quarantine, sent_at } = entered.map_err(late)??;

    let state = Arc::new(State::new(sent_at));
    shared.hang_bell(&state.bell);
    let (operations, requests) = mpsc::channel(QUEUE);
    let ids = handlers.iter().map(|handler| handler.id).collect();
    let mut keeper = Keeper::new(shared.clone(), state.clone(), connection, worker, version, handlers);
    keeper.quarantine = quarantine;
    let keeping = tokio::spawn(keeper.run(requests));
    let mut helpers = vec![tokio::spawn(watch(state.clone(), keeping))];
    if shared.config.is_notifying {
        helpers.push(tokio::spawn(listen::listen(shared.clone(), state.clone())));
    }
    Ok(PostgresSession {
        shared: shared.clone(),
        state,
        worker,
        handlers: ids,
        operations,
        released: Mutex::default(),
        helpers,
    })
}

struct Entered {
    worker: i32,
    version: i32,
    handlers: Vec<Handler>,
    quarantine: Option<Quarantine>,
    sent_at: BootTime,
}

async fn enter(shared: &Shared, connection: &mut PgConnection, spec: &WorkerSpec) -> Result<Entered> {
    let failed = |failure: sqlx::Error| translate("open", &shared.place, &failure, false);
    let refuse =
        |why: &str| Err(error(ErrorKind::InvalidConfiguration, "open", format!("{}: {why}", shared.place)));
    let facts = store::session(shared.at(), connection, SESSION_SILENCE).await.map_err(failed)?;
    if facts.statement_timeout != session_statement_timeout() {
        return refuse(
            "a worker needs a session of its own, and something in between (a pooler?) does not pass its settings on; \
             give it a `direct_url`",
        );
    }
    if facts.is_standby {
        // After a failover the address may lead to the new primary again.
        let message = format!("{} is a standby, workers need the primary", shared.place);
        return Err(error(ErrorKind::Unavailable, "open", message));
    }
    migrate::check_migrated(shared, connection).await?;
    let names: Vec<_> = spec.handlers.iter().map(|handler| handler.name.clone()).collect();
    let ids = handler_ids(shared.at(), connection, &names).await.map_err(failed)?;
    let mut handlers = Vec::with_capacity(spec.handlers.len());
    for handler in spec.handlers.iter() {
        let Some(id) = ids.get(&handler.name) else { return refuse("a handler has vanished from its table") };
        let window = i32::try_from(handler.window).unwrap_or(i32::MAX);
        handlers.push(Handler { id: *id, window });
    }
    let info = format!("process {}", std::process::id());
    let sent_at = BootTime::now();
    let (worker, is_locked) =
        store::enter(shared.at(), connection, spec.incarnation, &info).await.map_err(failed)?;
    if !is_locked {
        return Err(error(
            ErrorKind::Unavailable,
            "open",
            "the lock of a new worker is held by somebody else",
        ));
    }
    let ids: Vec<_> = handlers.iter().map(|handler| handler.id).collect();
    let windows: Vec<_> = handlers.iter().map(|handler| handler.window).collect();
    store::enter_handlers(shared.at(), connection, worker, &ids, &windows, i32::from(SLOTS))
        .await
        .map_err(failed)?;
    let quarantine = quarantine(shared, connection).await?;
    Ok(Entered { worker, version: facts.version, handlers, quarantine, sent_at })
}

/// Whether this server's tables are a copy that others may not know to be the one that counts now. Servers that do not
/// tell their history are taken as they are.
async fn quarantine(shared: &Shared, connection: &mut PgConnection) -> Result<Option<Quarantine>> {
    let failed = |failure: sqlx::Error| translate("open", &shared.place, &failure, false);
    let (history, noted) = match store::history(shared.at(), connection).await {
        Ok(found) => found,
        Err(failure) if matches!(failure, sqlx::Error::Database(_)) => {
            tracing::debug!(error = %failure, "the server does not tell its history; a failover will not be noticed");
            return Ok(None);
        }
        Err(failure) => return Err(failed(failure)),
    };
    match noted {
        Some(noted) if noted != history => {
            tracing::warn!(
                before = noted,
                now = history,
                wait = ?SESSION_SILENCE,
                "the database has another history than before (a failover, a restore?): until everybody must have \
                 noticed, this worker takes nothing"
            );
            Ok(Some(Quarantine { until: Instant::now() + SESSION_SILENCE, history }))
        }
        Some(_) => Ok(None),
        None => {
            store::turn_history(shared.at(), connection, &history).await.map_err(failed)?;
            Ok(None)
        }
    }
}

/// Ends the session when nothing was heard for too long, whatever the keeper is waiting for.
async fn watch(state: Arc<State>, mut keeping: JoinHandle<()>) {
    loop {
        tokio::select! {
            _ = &mut keeping => return,
            () = tokio::time::sleep(WATCH) => {}
        }
        if !state.is_trusted() {
            state.end(format!("the database has not answered for {TRUST:?}"));
            // Its connection goes with it.
            keeping.abort();
            return;
        }
    }
}

impl PostgresSession {
    async fn ask<T>(
        &self,
        operation: &'static str,
        make: impl FnOnce(oneshot::Sender<Result<T>>) -> Operation,
    ) -> Result<T> {
        self.state.check(operation)?;
        let (reply, answer) = oneshot::channel();
        let Ok(permit) = self.operations.reserve().await else { return Err(self.state.refusal(operation)) };
        permit.send(make(reply));
        answer.await.unwrap_or_else(|_| Err(self.state.refusal(operation)))
    }
}

impl Drop for PostgresSession {
    fn drop(&mut self) {
        for helper in self.helpers.drain(1..) {
            helper.abort();
        }
    }
}

#[async_trait]
impl Session for PostgresSession {
    async fn claim(&self, request: &ClaimRequest) -> Result<Claimed> {
        let claimed = self
            .ask("claim", |reply| Operation::Claim {
                request: request.clone(),
                given_back: std::mem::take(&mut *locked(&self.released)),
                reply,
            })
            .await?;
        // What the keeper claimed before the trust ended must not run after it.
        self.state.check("claim")?;
        Ok(claimed)
    }

    async fn settle(&self, batch: &SettleBatch) -> Result<()> {
        self.ask("settle", |reply| Operation::Settle { batch: batch.clone(), reply }).await?;
        let released = batch.settlements.iter().filter(|settlement| settlement.outcome == Outcome::Release);
        locked(&self.released)
            .extend(released.filter_map(|settlement| row::private_id(settlement.delivery.id)));
        Ok(())
    }

    async fn complete_in(&self, connection: Connection<'_>, delivery: &Delivery) -> Result<()> {
        self.state.check("complete_in")?;
        let handler = self.handlers.get(delivery.handler().get()).copied();
        let (Some(handler), Some(id)) = (handler, row::private_id(delivery.id)) else {
            return Err(error(
                ErrorKind::LeaseLost,
                "complete_in",
                "this delivery is not held by this session",
            ));
        };
        let place = Place { handler, slot: row::slot(delivery.partition), id };
        let epoch = i64::try_from(delivery.fence).unwrap_or(i64::MAX);
        transaction::complete_in(&self.shared, connection, place, self.worker, epoch).await
    }

    fn is_trusted(&self) -> bool {
        self.state.is_trusted()
    }

    async fn wait(&self) -> Notice {
        loop {
            if let Some(notice) = locked(&self.state.notices).pop_front() {
                return notice;
            }
            if let Err(end) = self.state.check("wait") {
                return Notice::Ended(end);
            }
            self.state.bell.notified().await;
            let has_notice = !locked(&self.state.notices).is_empty();
            if !has_notice && !self.state.is_over() && !self.state.is_closed.load(Ordering::Acquire) {
                return Notice::Work;
            }
        }
    }

    async fn release(&self, partition: Partition) -> Result<()> {
        self.ask("release", |reply| Operation::Release { partition, reply }).await
    }

    async fn close(&self) -> Result<()> {
        if self.state.is_closed.load(Ordering::Acquire) {
            return Ok(());
        }
        let closed = self.ask("close", |reply| Operation::Close { reply }).await;
        self.state.is_closed.store(true, Ordering::Release);
        self.state.bell.notify_one();
        closed
    }
}
