//! A worker's hold on the broker.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use event_bus_core::backend::{
    ClaimRequest, Claimed, Delivery, DeliveryId, Notice, Outcome, Partition, Session, SettleBatch, WorkerSpec,
};
use event_bus_core::{ErrorKind, Result};
use futures_util::future::join_all;
use tokio::sync::Mutex as AsyncMutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::backend::Shared;
use crate::buffer::Ack;
use crate::core::{Command, Core};
use crate::error::error;
use crate::line;
use crate::link::{self, close_connection};
use crate::publisher::Letter;
use crate::steward::{self, Steward};
use crate::topology;
use crate::wire::{Death, Parcel};

/// How long a queue that was given back is watched until the broker has taken everything back. Others can have it from
/// the first moment on; this is for those who count.
const SETTLING: Duration = Duration::from_millis(500);

/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(2);

/// The owner of some queues. Dropped without [`close`](Session::close), it leaves an unclean end.
pub(crate) struct AmqpSession {
    core: Arc<Core>,
    steward: AsyncMutex<Option<JoinHandle<()>>>,
}

impl AmqpSession {
    pub(crate) async fn open(shared: &Arc<Shared>, worker: &WorkerSpec) -> Result<Self> {
        let connection = link::connect(&shared.config, "open", "worker").await?;
        let core = Core::new(shared.clone(), worker.clone(), connection);
        let session = Self { core: core.clone(), steward: AsyncMutex::new(None) };
        let mut steward = Steward::new(core.clone()).await?;
        tokio::spawn(steward::keep_trust(core));
        steward.begin().await;
        *session.steward.lock().await = Some(tokio::spawn(steward.run()));
        Ok(session)
    }

    /// What is to be written, and what can be acknowledged at once.
    fn plan(&self, batch: &SettleBatch) -> Plan {
        let (now, wall) = (Instant::now(), self.core.shared.config.clock.now());
        let shared = &self.core.shared;
        let mut plan = Plan::default();
        let mut journals = BTreeSet::new();
        self.core.with(|buffer| {
            for settlement in &batch.settlements {
                let delivery = &*settlement.delivery;
                let id = delivery.id;
                // Lost or said before: nothing to be done.
                let Some(line) = buffer.out(id) else { continue };
                let Some(handler) = self.core.worker.handlers.get(delivery.handler().get()) else { continue };
                let mut copy = |buffer: &crate::buffer::Buffer, letter: Letter| {
                    plan.copied.push(id);
                    if !buffer.is_copied(id) {
                        plan.letters.push((letter, Some(id)));
                    }
                };
                match &settlement.outcome {
                    Outcome::Complete => plan.acks.extend(buffer.remove(id)),
                    Outcome::Start { attempt } => {
                        buffer.record_start(id, *attempt);
                        journals.insert(line);
                    }
                    Outcome::Retry { failures, delay, errors, keeps_place: true } => {
                        buffer.keep(id, *failures, errors.clone(), *delay, now, wall);
                        journals.insert(line);
                    }
                    Outcome::Snooze { delay, keeps_place: true } => {
                        buffer.keep(id, delivery.failures, delivery.errors.clone(), *delay, now, wall);
                        journals.insert(line);
                    }
                    Outcome::Retry { failures, delay, errors, keeps_place: false } => {
                        let mut parcel = parcel(delivery, buffer.position(id), *delay);
                        parcel.failures = *failures;
                        parcel.errors = errors.clone();
                        copy(buffer, shared.post.delivery(&parcel, &handler.name));
                    }
                    Outcome::Snooze { delay, keeps_place: false } => {
                        let parcel = parcel(delivery, buffer.position(id), *delay);
                        copy(buffer, shared.post.delivery(&parcel, &handler.name));
                    }
                    Outcome::Dead { reason, failures, errors, .. } => {
                        let mut parcel = parcel(delivery, buffer.position(id), Duration::ZERO);
                        parcel.failures = *failures;
                        parcel.errors = errors.clone();
                        let number = DeliveryId(shared.dead_numbers.next(wall));
                        let death = Death { id: number, reason: *reason, died_at: wall };
                        copy(buffer, shared.post.dead(&parcel, &handler.name, &death));
                    }
                    Outcome::Release => {
                        if buffer.unstart(id) {
                            journals.insert(line);
                        }
                        plan.released.push(id);
                    }
                }
            }
            for park in &batch.parks {
                buffer.park(park);
            }
        });
        plan.letters.extend(journals.into_iter().filter_map(|line| Some((self.journal(line, false)?, None))));
        plan
    }

    fn journal(&self, line: usize, is_closed: bool) -> Option<Letter> {
        let (handler, place) = self.core.place(line)?;
        let written = self.core.with(|buffer| {
            buffer.line(line).filter(|line| line.is_active).map(|line| line.journal.written(is_closed))
        })?;
        match written {
            Ok(written) => self.core.shared.post.journal(place, &handler, written),
            Err(failure) => {
                tracing::error!(error = %failure, "a journal could not be written");
                None
            }
        }
    }

    /// Gives lines back in peace: what they hold goes to whoever comes next, at once and without suspicion.
    async fn give_back(&self, lines: &[usize]) {
        self.core.with(|buffer| {
            for line in lines {
                if let Some(line) = buffer.line_mut(*line) {
                    line.is_leaving = true;
                }
            }
        });
        let letters: Vec<_> = lines.iter().filter_map(|line| self.journal(*line, true)).collect();
        // Without it the end is an unclean one: nothing is lost, but what was held is under suspicion.
        let limit = self.core.shared.config.request_timeout;
        match tokio::time::timeout(limit, self.core.deliver("close", letters)).await {
            Ok(Ok(())) => {}
            Ok(Err(undelivered)) => {
                tracing::warn!(error = %undelivered.error, "a worker could not leave in peace");
            }
            Err(_) => tracing::warn!("a worker could not leave in peace: the broker does not confirm"),
        }
        join_all(lines.iter().map(|line| line::order(&self.core, *line, Command::Close))).await;
    }

    /// Waits until the broker has taken back what these queues had handed out.
    async fn until_settled(&self, queues: Vec<String>) {
        let watch = async {
            let limit = self.core.shared.config.request_timeout;
            let Ok(channel) = link::within(limit, "close", self.core.connection.create_channel()).await
            else {
                return;
            };
            loop {
                match topology::look_at_all(&channel, &queues).await {
                    Ok(counts) if counts.iter().all(|(_, consumers)| *consumers == 0) => return,
                    Ok(_) => tokio::time::sleep(LOOK).await,
                    Err(_) => return,
                }
            }
        };
        // Somebody else may have taken them already.
        let _ = tokio::time::timeout(SETTLING, watch).await;
    }
}

#[derive(Default)]
struct Plan {
    acks: Vec<Ack>,
    /// To be stored; with the delivery that each takes the place of.
    letters: Vec<(Letter, Option<DeliveryId>)>,
    copied: Vec<DeliveryId>,
    released: Vec<DeliveryId>,
}

fn parcel(delivery: &Delivery, position: u32, wait: Duration) -> Parcel {
    Parcel {
        envelope: delivery.envelope.clone(),
        position,
        failures: delivery.failures,
        crashes: delivery.crashes,
        errors: delivery.errors.clone(),
        wait,
        returns: 0,
        is_again: false,
    }
}

#[async_trait]
impl Session for AmqpSession {
    async fn claim(&self, request: &ClaimRequest) -> Result<Claimed> {
        self.core.check("claim")?;
        let (now, wall) = (Instant::now(), self.core.shared.config.clock.now());
        let (claimed, has_more) = self.core.with(|buffer| buffer.claim(request, now, wall));
        if has_more {
            self.core.has_work();
        }
        Ok(claimed)
    }

    async fn settle(&self, batch: &SettleBatch) -> Result<()> {
        self.core.check("settle")?;
        let plan = self.plan(batch);
        self.core.acknowledge(&plan.acks);
        let (letters, owners): (Vec<_>, Vec<_>) = plan.letters.into_iter().unzip();
        if !letters.is_empty()
            && let Err(undelivered) = self.core.deliver("settle", letters).await
        {
            // What is known to be stored is not said again when the batch is repeated.
            if let Some(lost) = undelivered.lost {
                let stored = (0..owners.len()).filter(|position| !lost.contains(position));
                let stored: Vec<_> = stored.filter_map(|position| owners[position]).collect();
                self.core.with(|buffer| stored.into_iter().for_each(|id| buffer.copied(id)));
            }
            return Err(undelivered.error);
        }
        let acks = self.core.with(|buffer| {
            plan.released.into_iter().for_each(|id| buffer.give_back(id));
            plan.copied.into_iter().filter_map(|id| buffer.remove(id)).collect::<Vec<_>>()
        });
        self.core.acknowledge(&acks);
        Ok(())
    }

    fn is_trusted(&self) -> bool {
        self.core.check("run").is_ok()
    }

    async fn wait(&self) -> Notice {
        self.core.news().await
    }

    async fn release(&self, partition: Partition) -> Result<()> {
        self.core.check("release")?;
        let Some(line) = self.core.with(|buffer| buffer.line_of(partition)) else { return Ok(()) };
        if self.core.subscription(line).is_some() {
            self.give_back(&[line]).await;
        }
        steward::say_vacated(&self.core);
        self.core.look_now.notify_one();
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        if !self.core.close() {
            return Ok(());
        }
        self.core.stop.send_replace(true);
        if let Some(steward) = self.steward.lock().await.take() {
            // It ends by itself, and only a panic could keep it from saying so.
            let _ = steward.await;
        }
        let held: Vec<_> = self.core.with(|buffer| {
            buffer.lines().filter(|(_, line)| line.subscription != 0).map(|(line, _)| line).collect()
        });
        let queues = held.iter().filter_map(|line| self.core.place(*line));
        let queues: Vec<_> =
            queues.map(|(handler, place)| self.core.shared.names.queue(place, &handler)).collect();
        self.give_back(&held).await;
        self.until_settled(queues).await;
        steward::say_left(&self.core).await;
        close_connection(&self.core.connection, self.core.shared.config.request_timeout).await;
        Ok(())
    }
}

impl Drop for AmqpSession {
    fn drop(&mut self) {
        self.core.end(ErrorKind::Closed, "the session was dropped");
        // With the connection everything ends that the session's tasks wait for. Without a runtime they have ended already.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let core = self.core.clone();
            runtime.spawn(async move {
                close_connection(&core.connection, core.shared.config.request_timeout).await;
            });
        }
    }
}

/// The error of a session whose connection is gone.
pub(crate) fn connection_lost() -> event_bus_core::Error {
    error(ErrorKind::LeaseLost, "wait", "the connection to the broker was lost")
}
