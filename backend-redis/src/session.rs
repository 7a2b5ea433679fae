//! A worker's hold on the store.

use std::sync::Arc;

use async_trait::async_trait;
use event_bus_core::backend::{
    ClaimRequest, Claimed, HandlerSpec, Notice, Partition, Session, SettleBatch, WorkerSpec,
};
use event_bus_core::clock::BootTime;
use event_bus_core::{ErrorKind, Result, SLOTS};
use tokio::sync::Mutex as AsyncMutex;
use tokio::task::JoinSet;

use crate::backend::{SCHEMA, Shared};
use crate::claim::Reader;
use crate::error::{Failure, error};
use crate::keeper::{self, Keeper, TRUST};
use crate::leases::registration;
use crate::link::Link;
use crate::script;
use crate::settle::Settler;
use crate::wake;
use crate::worker::Worker;

/// A worker. Dropped without [`close`](Session::close), it leaves an unclean end.
pub(crate) struct RedisSession {
    worker: Arc<Worker>,
    reader: AsyncMutex<Reader>,
    settler: AsyncMutex<Settler>,
    /// For what is neither claimed nor settled.
    link: Link,
    _tasks: JoinSet<()>,
    _leaver: Leaver,
}

impl RedisSession {
    /// Enters a worker.
    pub(crate) async fn open(shared: &Arc<Shared>, spec: &WorkerSpec) -> Result<Arc<Self>> {
        let config = &shared.config;
        let incarnation = spec.incarnation.to_string();
        let failed = |failure: Failure| failure.into_error("open", &shared.server);

        // Beats go their own way, behind no claim, and an answer that comes after the trust has run out is of no use.
        let beat_timeout = config.command_timeout.min(config.lease / 2);
        let first = Link::new(shared, config.command_timeout, None);
        let run = first.run().await.map_err(failed)?;
        let sent = BootTime::now();
        register(shared, &first, &incarnation, &spec.handlers).await?;
        let trusted_until = sent.plus(config.lease.mul_f64(TRUST));
        let worker =
            Worker::new(shared.clone(), incarnation, spec.handlers.clone(), run.clone(), trusted_until);
        let worker = Arc::new(worker);
        // From here on a dropped future gives back what it has.
        let leaver = Leaver(worker.clone());

        let link = |timeout| Link::new(shared, timeout, Some(&run));
        let mut keeper = Keeper::new(worker.clone(), link(beat_timeout));
        // Without slots yet if this fails: the keeper goes on.
        if let Err(failure) = keeper.beat().await {
            tracing::debug!(%failure, "the first beat failed, trying again");
        }
        let mut tasks = JoinSet::new();
        tasks.spawn(keeper.keep());
        tasks.spawn(keeper::guard(worker.clone()));
        tasks.spawn(wake::listen(worker.clone()));
        Ok(Arc::new(Self {
            reader: AsyncMutex::new(Reader::new(link(config.command_timeout), spec.handlers.len())),
            settler: AsyncMutex::new(Settler::new(link(config.command_timeout))),
            link: link(config.command_timeout),
            worker,
            _tasks: tasks,
            _leaver: leaver,
        }))
    }
}

async fn register(shared: &Shared, link: &Link, incarnation: &str, handlers: &[HandlerSpec]) -> Result<()> {
    let failed = |failure: Failure| failure.into_error("open", &shared.server);
    let names = || handlers.iter().map(|handler| &*handler.name);
    let mut call = script::REGISTER.call(&shared.base);
    call.arg(incarnation).arg(registration(shared.config.lease, names())).arg(SCHEMA).arg(SLOTS);
    for name in names() {
        call.arg(name);
    }
    let mut reply = link.eval(&call).await.map_err(failed)?;
    let schema = reply.optional_text().map_err(failed)?.unwrap_or_default();
    let slots = reply.optional_text().map_err(failed)?.unwrap_or_default();
    shared.check_meta("open", &schema, &slots)
}

/// Ends a worker: cleanly, or as lost. Nothing of it runs any more.
async fn leave(shared: &Shared, link: &Link, incarnation: &str, how: &str) -> Result<(), Failure> {
    let mut call = script::LEAVE.call(&shared.base);
    call.arg("").arg(incarnation).arg(how).arg("");
    link.eval(&call).await.map(drop)
}

#[async_trait]
impl Session for RedisSession {
    async fn claim(&self, request: &ClaimRequest) -> Result<Claimed> {
        self.worker.check("claim")?;
        self.reader.lock().await.claim(&self.worker, request).await
    }

    async fn settle(&self, batch: &SettleBatch) -> Result<()> {
        self.worker.check("settle")?;
        self.settler.lock().await.settle(&self.worker, batch).await
    }

    fn is_trusted(&self) -> bool {
        self.worker.check("run").is_ok()
    }

    async fn wait(&self) -> Notice {
        loop {
            let news = self.worker.news.notified();
            if let Some(partition) = self.worker.next_revoke() {
                return Notice::Revoke(partition);
            }
            if let Err(why) = self.worker.check("wait") {
                return Notice::Ended(why);
            }
            tokio::select! {
                () = self.worker.work.notified() => return Notice::Work,
                () = news => {}
            }
        }
    }

    async fn release(&self, partition: Partition) -> Result<()> {
        let worker = &self.worker;
        worker.check("release")?;
        let slot = (partition.handler, partition.number);
        let epoch = worker.slots().get(&slot).map(|owned| owned.epoch);
        let (Some(epoch), Some(handler)) = (epoch, worker.handlers.get(partition.handler.get())) else {
            return Ok(());
        };
        let failed = |failure: Failure| worker.failed("release", failure);
        let mut call = script::RELEASE.call(&worker.shared.base);
        call.arg(&worker.incarnation).arg(&*handler.name).arg(partition.number).arg(epoch);
        let word = self.link.eval(&call).await.and_then(|mut reply| reply.text()).map_err(failed)?;
        if word != "OK" {
            return Err(worker.fenced("release"));
        }
        worker.slots().remove(&slot);
        worker.held().drop_partition(partition);
        worker.moves.notify_one();
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        if !self.worker.close() {
            return Ok(());
        }
        let (shared, incarnation) = (&self.worker.shared, &self.worker.incarnation);
        let mut left = leave(shared, &self.link, incarnation, "clean").await;
        if matches!(left, Err(Failure::NotSent(_) | Failure::Unknown(_))) {
            // A connection that was cut since it was last used fails once; a worker that has left already may say so again.
            left = leave(shared, &self.link, incarnation, "clean").await;
        }
        left.map_err(|failure| {
            let why = failure.into_error("close", &shared.server);
            error(
                ErrorKind::Unavailable,
                "close",
                format!("{}; others wait for the lease to end", why.message()),
            )
        })
    }
}

/// Tells the store that a worker is over, when it was not closed.
struct Leaver(Arc<Worker>);

impl Drop for Leaver {
    /// Every run of a worker holds its session, so none is left: others need not wait for the lease to end.
    fn drop(&mut self) {
        if self.0.is_closed() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (shared, incarnation) = (self.0.shared.clone(), self.0.incarnation.clone());
        runtime.spawn(async move {
            let link = Link::new(&shared, shared.config.command_timeout, None);
            if let Err(failure) = leave(&shared, &link, &incarnation, "lost").await {
                tracing::debug!(%failure, "the end of a session could not be told; its lease ends by itself");
            }
        });
    }
}
