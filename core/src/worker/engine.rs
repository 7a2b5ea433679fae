//! The engine of one session: claim → lanes → executor → settle, in one task that owns all state.
//!
//! Each turn starts what can start, sends what can be sent, then waits until something happened and takes in all of it.
//! Nothing is chosen at random, so a simulation replays exactly.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use crate::backend::{
    Capabilities, ClaimRequest, Claimed, HandlerSpec, Notice, Session, SettleBatch, Settlement,
};
use crate::clock::Environment;
use crate::delivery::{Delivery, HandlerIndex, Outcome, Partition};
use crate::error::{Error, ErrorKind, Result};
use crate::retry::{self, RunEnd};

use super::call::Call;
use super::claims::Claims;
use super::executor::{Ended, Executor, RunScope};
use super::lanes::Lanes;
use super::settle::Settling;
use super::stats::Counters;
use super::suspects::Suspects;
use super::{Drained, Stop, StopSignal};

/// How often a handler's full window is looked through for lanes to park.
const RELIEF_INTERVAL: Duration = Duration::from_millis(50);

/// How long, after the grace time, cancelled runs may take to reach an await point and outcomes to be stored.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How long runs may go on after they were cancelled before that is reported.
const CANCEL_REPORT: Duration = Duration::from_secs(5);

/// How a session of the engine ended.
pub(super) enum EngineEnd {
    /// It was asked to.
    Stopped(Result<Drained>),
    /// The right to work was lost, or the store said so: a new session may be opened.
    SessionOver(Error),
}

/// What an engine is made of.
pub(super) struct Parts {
    pub(super) scope: Arc<RunScope>,
    pub(super) environment: Environment,
    pub(super) handlers: Arc<[HandlerSpec]>,
    pub(super) capabilities: Capabilities,
    pub(super) concurrency: usize,
    pub(super) poll_interval: Duration,
    pub(super) stats: Arc<Counters>,
}

pub(super) struct Engine {
    scope: Arc<RunScope>,
    environment: Environment,
    handlers: Arc<[HandlerSpec]>,
    capabilities: Capabilities,
    stats: Arc<Counters>,
    session: Arc<dyn Session>,
    lanes: Lanes,
    executor: Executor,
    suspects: Suspects,
    settling: Settling,
    claims: Claims,
    revoking: Vec<Partition>,
    releasing: Option<Partition>,
    release: Call<Result<()>>,
    /// Partitions lost while outcomes of theirs were under way.
    lost_meanwhile: HashSet<Partition>,
    /// Deliveries that came back to this session before it was told that it had given them up.
    early: Vec<Delivery>,
    next_relief: Option<Instant>,
    draining: Option<Draining>,
    timer: Pin<Box<Sleep>>,
}

struct Draining {
    /// Then what still runs is cancelled.
    deadline: Instant,
    is_over: bool,
    drained: Drained,
}

/// What happened since the last turn.
#[derive(Default)]
struct News {
    ended: Vec<Ended>,
    stored: Vec<Arc<SettleBatch>>,
    claimed: Vec<(Arc<ClaimRequest>, Claimed)>,
    notices: Vec<Notice>,
    released: Option<Result<()>>,
    stop: Option<Stop>,
    fatal: Option<Error>,
    is_time: bool,
}

impl Engine {
    pub(super) fn new(parts: Parts) -> Self {
        let session = parts.scope.session.clone();
        let concurrency: Vec<_> = parts
            .scope
            .registry
            .handlers()
            .iter()
            .map(|handler| handler.options().concurrency.unwrap_or(parts.concurrency).min(parts.concurrency))
            .collect();
        Self {
            lanes: Lanes::new(&parts.handlers, &concurrency, parts.poll_interval),
            executor: Executor::new(parts.scope.clone(), parts.concurrency),
            suspects: Suspects::default(),
            settling: Settling::new(session.clone()),
            claims: Claims::new(session.clone(), &parts.handlers, parts.poll_interval),
            scope: parts.scope,
            environment: parts.environment,
            handlers: parts.handlers,
            capabilities: parts.capabilities,
            stats: parts.stats,
            session,
            revoking: Vec::new(),
            releasing: None,
            release: Call::none(),
            lost_meanwhile: HashSet::new(),
            early: Vec::new(),
            next_relief: None,
            draining: None,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
        }
    }

    /// Works until it is told to stop or the session is over. Nothing of it runs any more when this returns (except, with
    /// an error, handlers that ignore their cancellation).
    pub(super) async fn run(mut self, stop: &mut StopSignal, shutdown: &watch::Sender<bool>) -> EngineEnd {
        loop {
            self.turn();
            if let Some(end) = self.drained() {
                return EngineEnd::Stopped(self.close(end).await);
            }
            let news = self.news(stop).await;
            if news.stop.is_some() {
                shutdown.send_replace(true);
            }
            if let Some(error) = self.take_in(news) {
                self.abandon().await;
                return match self.draining {
                    Some(_) => EngineEnd::Stopped(Err(error)),
                    None => EngineEnd::SessionOver(error),
                };
            }
        }
    }

    /// Starts what can start and sends what can be sent.
    fn turn(&mut self) {
        let now = Instant::now();
        self.lanes.wake(now);
        if self.draining.is_none() {
            self.claims.look_if_due(now);
            self.start_runs(now);
            self.relieve(now);
        }
        let parks = self.lanes.take_parks();
        if self.draining.is_none() {
            self.settling.park(parks);
        }
        self.settling.send();
        let gives_back = self.send_release();
        if self.draining.is_none() && !gives_back {
            self.claims.send(&mut self.lanes);
        }
    }

    fn start_runs(&mut self, now: Instant) {
        while self.executor.free_slots() > self.suspects.recording() {
            let lanes = &mut self.lanes;
            let Some(suspect) = self.suspects.next(|delivery| lanes.try_running(delivery.handler())) else {
                break;
            };
            let attempt = suspect.attempt();
            self.settling.push(suspect, Outcome::Start { attempt });
        }
        while self.executor.free_slots() > self.suspects.recording() {
            let Some(delivery) = self.lanes.take(now) else { break };
            let Some(handler) = self.scope.handler(&delivery) else { continue };
            if let Some(outcome) = retry::outcome_before_run(&delivery, handler.options(), &self.environment)
            {
                self.lanes.not_running(delivery.handler());
                self.conclude(delivery, None, outcome, now);
            } else if Suspects::is_suspect(&delivery) {
                self.lanes.not_running(delivery.handler());
                self.suspects.push(delivery, handler.options().max_attempts);
            } else {
                self.start(delivery);
            }
        }
    }

    fn start(&mut self, delivery: Arc<Delivery>) {
        // A slot was counted free before: it cannot be refused.
        if self.executor.start(delivery) {
            self.stats.started_total.increment();
        }
    }

    /// Parks lanes of handlers whose window is full of deliveries that cannot start, while the store has more.
    fn relieve(&mut self, now: Instant) {
        if !self.capabilities.parking || self.next_relief.is_some_and(|next| next > now) {
            return;
        }
        self.next_relief = None;
        for position in 0..u32::try_from(self.handlers.len()).unwrap_or(u32::MAX) {
            let handler = HandlerIndex(position);
            if self.claims.may_have(handler) && self.executor.has_free_slot() && self.lanes.is_stuck(handler)
            {
                self.lanes.relieve(handler, now);
                self.next_relief = Some(now + RELIEF_INTERVAL);
            }
        }
    }

    /// Gives a revoked partition back when nothing of it is left here. True while one is being given back: no claim is
    /// made meanwhile, and none may be under way, or its answer could bring deliveries that belong to somebody else by then.
    fn send_release(&mut self) -> bool {
        if self.release.is_under_way() {
            return true;
        }
        let is_done = |partition: &Partition| {
            !self.executor.runs_any_of(*partition)
                && !self.settling.has_any_of(*partition)
                && !self.suspects.records_any_of(*partition)
        };
        let Some(partition) = self.revoking.iter().copied().find(is_done) else { return false };
        if !self.claims.is_under_way() {
            self.releasing = Some(partition);
            let session = self.session.clone();
            self.release.start(async move { session.release(partition).await });
        }
        true
    }

    /// Waits until something happened. When it did, all runs that are ready to go get their turn first: then one turn of
    /// the engine serves many of them, instead of one each.
    async fn news(&mut self, stop: &mut StopSignal) -> News {
        let mut news = News::default();
        let mut has_waited = false;
        std::future::poll_fn(|task| {
            if self.poll_news(task, stop, &mut news).is_pending() && !has_waited {
                return Poll::Pending;
            }
            if has_waited || self.executor.is_idle() || news.fatal.is_some() {
                return Poll::Ready(());
            }
            has_waited = true;
            task.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        news
    }

    fn poll_news(&mut self, task: &mut TaskContext<'_>, stop: &mut StopSignal, news: &mut News) -> Poll<()> {
        let randomness = &self.environment.randomness;
        let mut has_news = false;
        if self.draining.is_none()
            && let Poll::Ready(stop) = stop.poll(task)
        {
            news.stop = Some(stop);
            has_news = true;
        }
        has_news |= self.executor.poll_ended(task, &mut news.ended).is_ready();
        if self.draining.is_none() {
            match self.claims.poll_claimed(task, &mut self.lanes, randomness) {
                Poll::Ready(Ok(answer)) => {
                    news.claimed.extend(answer);
                    has_news = true;
                }
                Poll::Ready(Err(error)) => news.fatal = Some(error),
                Poll::Pending => {}
            }
        }
        match self.settling.poll_stored(task, randomness) {
            Poll::Ready(Ok(batch)) => {
                news.stored.push(batch);
                has_news = true;
            }
            Poll::Ready(Err(error)) => news.fatal = Some(error),
            Poll::Pending => {}
        }
        if let Poll::Ready(result) = self.release.poll(task) {
            news.released = Some(result);
            has_news = true;
        }
        if let Poll::Ready(notice) = self.claims.poll_notice(task) {
            news.notices.push(notice);
            has_news = true;
        }
        let deadline = self.next_deadline();
        if self.timer.deadline() != deadline {
            self.timer.as_mut().reset(deadline);
        }
        if self.timer.as_mut().poll(task).is_ready() {
            news.is_time = true;
            has_news = true;
        }
        if has_news || news.fatal.is_some() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn next_deadline(&self) -> Instant {
        match &self.draining {
            Some(draining) if draining.is_over => draining.deadline + LAST_WORDS,
            Some(draining) => draining.deadline,
            None => {
                let candidates = [self.lanes.next_wake(), self.next_relief, Some(self.claims.next_look())];
                candidates.into_iter().flatten().min().unwrap_or_else(|| self.claims.next_look())
            }
        }
    }

    /// Takes in what happened; the error that ends the session, if there is one.
    fn take_in(&mut self, news: News) -> Option<Error> {
        let now = Instant::now();
        for batch in news.stored {
            self.stored(&batch, now);
        }
        for ended in news.ended {
            self.ended(ended, now);
        }
        if news.fatal.is_some() {
            return news.fatal;
        }
        for notice in news.notices {
            match notice {
                Notice::Work => self.claims.look(),
                Notice::Revoke(partition) => self.revoke(partition, now),
                Notice::Lost(partition) => self.lose(partition, now),
                Notice::Ended(error) => return Some(error),
            }
        }
        for (asked, claimed) in news.claimed {
            self.claimed(&asked, claimed, now);
        }
        if let Some(result) = news.released {
            match result {
                Ok(()) => self.revoking.retain(|partition| Some(*partition) != self.releasing),
                Err(error) if super::settle::is_fatal(&error) => return Some(error),
                Err(error) => {
                    tracing::warn!(error = crate::error::chain(&error), "release failed, will be repeated")
                }
            }
            self.releasing = None;
        }
        if let Some(stop) = news.stop {
            self.begin_drain(stop, now);
        }
        if news.is_time {
            self.drain_if_due(now);
        }
        None
    }

    fn claimed(&mut self, asked: &ClaimRequest, mut claimed: Claimed, now: Instant) {
        self.claims.drop_lost(&mut claimed);
        self.lanes.refilled(&asked.lanes, &claimed.still_parked);
        for lane in claimed.parked.iter().filter(|lane| !self.revoking.contains(&lane.partition)) {
            self.lanes.learn_parked(lane, now);
        }
        for delivery in claimed.deliveries {
            if self.revoking.contains(&delivery.partition) {
                continue;
            }
            if self.settling.gives_up(&delivery) {
                self.early.push(delivery);
            } else {
                self.lanes.offer(delivery, now);
            }
        }
        self.lanes.refill_ended(&asked.lanes, now);
    }

    fn ended(&mut self, ended: Ended, now: Instant) {
        let Ended { delivery, end, is_doomed } = ended;
        self.lanes.not_running(delivery.handler());
        self.suspects.ended(&delivery);
        if is_doomed {
            // It was forgotten when the right to it was lost, and may have been claimed again since.
            self.stats.cancelled_total.increment();
            self.lanes.go_on(&delivery, now);
            return;
        }
        let Some(end) = end else {
            self.stats.cancelled_total.increment();
            if let Some(draining) = &mut self.draining {
                draining.drained.cancelled += 1;
            }
            self.settling.push(delivery, Outcome::Release);
            return;
        };
        if let Some(draining) = &mut self.draining {
            draining.drained.finished += 1;
        }
        let Some(handler) = self.scope.handler(&delivery) else { return };
        let outcome = retry::outcome(&end, &delivery, handler.options(), &self.environment);
        self.conclude(delivery, Some(&end), outcome, now);
    }

    /// Says what became of a delivery, and lets its lane go on where nothing needs to be stored first.
    fn conclude(&mut self, delivery: Arc<Delivery>, end: Option<&RunEnd>, outcome: Outcome, now: Instant) {
        self.report(&delivery, end, &outcome);
        match &outcome {
            // A lost acknowledgement repeats a success (a rewind, in order): no need to wait for it. A delivery that gives
            // up its place lets the others pass.
            Outcome::Complete
            | Outcome::Retry { keeps_place: false, .. }
            | Outcome::Snooze { keeps_place: false, .. } => self.lanes.go_on(&delivery, now),
            // Nothing later may start before it is certain that this one is dead, or when it comes back.
            _ => {}
        }
        self.settling.push(delivery, outcome);
    }

    fn report(&self, delivery: &Delivery, end: Option<&RunEnd>, outcome: &Outcome) {
        if matches!(outcome, Outcome::Complete) {
            self.stats.succeeded_total.increment();
            return;
        }
        let handler = self.handlers.get(delivery.handler().get()).map_or("", |handler| &*handler.name);
        let error = end.and_then(RunEnd::error).unwrap_or_default();
        let (event, event_id, attempt) = (&*delivery.envelope.name, delivery.envelope.id, delivery.attempt());
        if !error.is_empty() && !matches!(outcome, Outcome::Snooze { .. }) {
            self.stats.failed_total.increment();
        }
        match outcome {
            Outcome::Retry { delay, .. } => {
                self.stats.retried_total.increment();
                tracing::warn!(handler, event, %event_id, attempt, error, ?delay, "delivery failed, will be retried");
            }
            Outcome::Snooze { delay, .. } => {
                self.stats.snoozed_total.increment();
                if error.is_empty() {
                    tracing::debug!(handler, event, %event_id, ?delay, "delivery snoozed");
                } else {
                    tracing::warn!(handler, event, %event_id, error, ?delay, "delivery waits for a process that knows it");
                }
            }
            Outcome::Dead { reason, failures, .. } => {
                self.stats.dead_lettered_total.increment();
                tracing::error!(handler, event, %event_id, failures, error, %reason, "delivery went to the dead letters");
            }
            _ => {}
        }
    }

    fn stored(&mut self, batch: &SettleBatch, now: Instant) {
        for settlement in &batch.settlements {
            if self.lost_meanwhile.contains(&settlement.delivery.partition) {
                self.give_up(settlement, now);
            } else {
                self.settled(settlement, now);
            }
        }
        for park in batch.parks.iter().filter(|park| !self.lost_meanwhile.contains(&park.partition)) {
            self.lanes.parked(park, now);
        }
        self.lost_meanwhile.clear();
        for delivery in std::mem::take(&mut self.early) {
            self.lanes.offer(delivery, now);
        }
    }

    fn settled(&mut self, settlement: &Settlement, now: Instant) {
        let delivery = &settlement.delivery;
        match &settlement.outcome {
            Outcome::Complete => self.lanes.forget(delivery),
            Outcome::Start { .. } => {
                if !self.suspects.recorded(delivery) {
                    return;
                }
                if self.draining.is_some() || self.revoking.contains(&delivery.partition) {
                    self.suspects.ended(delivery);
                    self.lanes.not_running(delivery.handler());
                    self.settling.push(delivery.clone(), Outcome::Release);
                } else {
                    self.start(delivery.clone());
                }
            }
            Outcome::Retry { failures, delay, errors, keeps_place: true } => {
                let mut delivery = Delivery::clone(delivery);
                delivery.failures = *failures;
                delivery.errors = errors.clone();
                self.wait_in_place(delivery, *delay, now);
            }
            Outcome::Snooze { delay, keeps_place: true } => {
                self.wait_in_place(Delivery::clone(delivery), *delay, now);
            }
            Outcome::Retry { delay, .. } => {
                self.lanes.forget(delivery);
                self.claims.look_in(*delay, now);
            }
            Outcome::Snooze { delay, .. } => {
                self.lanes.forget(delivery);
                self.claims.look_in(*delay, now);
            }
            Outcome::Dead { holds_key, .. } => {
                if *holds_key {
                    self.lanes.hold(delivery, now);
                } else {
                    self.lanes.go_on(delivery, now);
                }
                self.lanes.forget(delivery);
            }
            Outcome::Release => {
                self.lanes.forget(delivery);
                self.lanes.go_on(delivery, now);
                self.claims.look();
            }
        }
    }

    fn wait_in_place(&mut self, delivery: Delivery, delay: Duration, now: Instant) {
        if self.revoking.contains(&delivery.partition) {
            self.lanes.forget(&delivery);
            self.lanes.go_on(&delivery, now);
        } else {
            self.lanes.put_back(Arc::new(delivery), now + delay, now);
        }
    }

    /// The right to it was lost before its outcome was stored. (It is forgotten already.)
    fn give_up(&mut self, settlement: &Settlement, now: Instant) {
        let delivery = &settlement.delivery;
        match &settlement.outcome {
            // Its lane has gone on long ago.
            Outcome::Complete
            | Outcome::Retry { keeps_place: false, .. }
            | Outcome::Snooze { keeps_place: false, .. } => {}
            Outcome::Start { .. } => {
                if self.suspects.recorded(delivery) {
                    self.suspects.ended(delivery);
                    self.lanes.not_running(delivery.handler());
                }
                self.lanes.go_on(delivery, now);
            }
            _ => self.lanes.go_on(delivery, now),
        }
    }

    fn drop_waiting_suspects(&mut self, partition: Option<Partition>, now: Instant) {
        for delivery in self.suspects.drop_waiting(partition) {
            self.lanes.forget(&delivery);
            self.lanes.go_on(&delivery, now);
        }
    }

    fn revoke(&mut self, partition: Partition, now: Instant) {
        if !self.revoking.contains(&partition) {
            self.revoking.push(partition);
        }
        self.lanes.drop_partition(partition);
        self.early.retain(|delivery| delivery.partition != partition);
        self.drop_waiting_suspects(Some(partition), now);
    }

    fn lose(&mut self, partition: Partition, now: Instant) {
        tracing::warn!(?partition, "lost the right to a partition; its runs are cancelled");
        self.revoking.retain(|revoked| *revoked != partition);
        self.claims.lost(partition);
        self.lanes.drop_partition(partition);
        self.early.retain(|delivery| delivery.partition != partition);
        self.drop_waiting_suspects(Some(partition), now);
        // Forgotten at once: the partition may come back, and its deliveries with it, before the last run has ended. Their
        // lanes stay closed until then.
        for delivery in self.executor.doom(partition) {
            self.lanes.forget(&delivery);
        }
        for settlement in self.settling.drop_partition(partition) {
            self.lanes.forget(&settlement.delivery);
            self.give_up(&settlement, now);
        }
        if self.settling.has_any_of(partition) {
            self.lost_meanwhile.insert(partition);
        }
        for delivery in self.settling.under_way(partition) {
            self.lanes.forget(&delivery);
        }
    }

    fn begin_drain(&mut self, stop: Stop, now: Instant) {
        self.draining =
            Some(Draining { deadline: now + stop.grace, is_over: false, drained: Drained::default() });
        self.drop_waiting_suspects(None, now);
        self.drain_if_due(now);
    }

    fn drain_if_due(&mut self, now: Instant) {
        if let Some(draining) = &mut self.draining
            && !draining.is_over
            && now >= draining.deadline
        {
            draining.is_over = true;
            self.executor.cancel_all();
        }
    }

    /// Whether a drain has come to its end, and how.
    fn drained(&self) -> Option<Result<Drained>> {
        let draining = self.draining.as_ref()?;
        if self.executor.is_idle() && self.settling.is_idle() {
            return Some(Ok(draining.drained));
        }
        let is_late = draining.is_over && Instant::now() >= draining.deadline + LAST_WORDS;
        is_late.then(|| {
            let handlers = self.executor.running_handlers();
            let what = if handlers.is_empty() {
                "outcomes could not be stored in time; those deliveries will run again".to_owned()
            } else {
                format!("handlers ignored their cancellation: {}", handlers.join(", "))
            };
            Err(Error::new(ErrorKind::Unavailable, "shutdown", what))
        })
    }

    async fn close(&mut self, end: Result<Drained>) -> Result<Drained> {
        let drained = end?;
        self.session.close().await?;
        Ok(drained)
    }

    /// The session is over: cancels everything and waits until nothing of it runs, so that a new session of this process
    /// never runs beside the old one.
    async fn abandon(&mut self) {
        self.executor.cancel_all();
        let mut ended = Vec::new();
        while !self.executor.is_idle() {
            let all = std::future::poll_fn(|task| self.executor.poll_ended(task, &mut ended));
            if tokio::time::timeout(CANCEL_REPORT, all).await.is_err() {
                let handlers = self.executor.running_handlers().join(", ");
                tracing::error!(handlers, "handlers ignore their cancellation; this worker waits for them");
            }
            for _ in ended.drain(..) {
                self.stats.cancelled_total.increment();
            }
        }
    }
}
