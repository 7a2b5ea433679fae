//! Outcomes on their way to the store: one batch at a time, repeated until it is answered.

use std::collections::HashSet;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use crate::backend::{Park, Session, SettleBatch, Settlement};
use crate::clock::Randomness;
use crate::delivery::{Delivery, Outcome, Partition};
use crate::error::{Error, Result};

use super::call::{Call, Pause};
use super::lanes::{Identity, NumberHasher, identity};

/// The most outcomes in one batch. Larger ones save nothing more, and a repeat after a lost answer costs more.
const MAX_BATCH: usize = 1_000;

/// Collects outcomes while the batch before them is being written: the busier the store, the larger the batches.
pub(super) struct Settling {
    session: Arc<dyn Session>,
    pending: SettleBatch,
    in_flight: Option<Arc<SettleBatch>>,
    /// Of those in flight, the ones that can come back under the same number.
    gives_up: HashSet<Identity, NumberHasher>,
    call: Call<Result<()>>,
    pause: Pause,
}

impl Settling {
    pub(super) fn new(session: Arc<dyn Session>) -> Self {
        Self {
            session,
            pending: SettleBatch::default(),
            in_flight: None,
            gives_up: HashSet::default(),
            call: Call::none(),
            pause: Pause::new(Duration::from_millis(20), Duration::from_secs(2)),
        }
    }

    pub(super) fn push(&mut self, delivery: Arc<Delivery>, outcome: Outcome) {
        self.pending.settlements.push(Settlement { delivery, outcome });
    }

    pub(super) fn park(&mut self, parks: Vec<Park>) {
        self.pending.parks.extend(parks);
    }

    /// Whether everything said is stored.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_none() && self.pending.settlements.is_empty() && self.pending.parks.is_empty()
    }

    pub(super) fn has_any_of(&self, partition: Partition) -> bool {
        let batches = self.in_flight.as_deref().into_iter().chain([&self.pending]);
        batches.into_iter().any(|batch| {
            batch.settlements.iter().any(|settlement| settlement.delivery.partition == partition)
                || batch.parks.iter().any(|park| park.partition == partition)
        })
    }

    /// The deliveries of a partition whose outcomes have been sent and not answered.
    pub(super) fn under_way(&self, partition: Partition) -> Vec<Arc<Delivery>> {
        let sent = self.in_flight.iter().flat_map(|batch| &batch.settlements);
        sent.map(|settlement| settlement.delivery.clone())
            .filter(|delivery| delivery.partition == partition)
            .collect()
    }

    /// Whether an outcome with which this delivery leaves the session has been sent and not answered. A claim that brings
    /// it brings it anew, then: nothing is handed out that was held when the claim was made.
    pub(super) fn gives_up(&self, delivery: &Delivery) -> bool {
        self.gives_up.contains(&identity(delivery))
    }

    /// Drops what has not been sent of a partition that was lost, and returns its outcomes.
    pub(super) fn drop_partition(&mut self, partition: Partition) -> Vec<Settlement> {
        self.pending.parks.retain(|park| park.partition != partition);
        let is_lost = |settlement: &mut Settlement| settlement.delivery.partition == partition;
        self.pending.settlements.extract_if(.., is_lost).collect()
    }

    /// Sends what has been collected, if nothing is under way.
    pub(super) fn send(&mut self) {
        if self.call.is_under_way() || self.pause.is_waiting() {
            return;
        }
        if self.in_flight.is_none() {
            if self.pending.settlements.is_empty() && self.pending.parks.is_empty() {
                return;
            }
            let mut batch = std::mem::take(&mut self.pending);
            if batch.settlements.len() > MAX_BATCH {
                // Parks come after the outcomes before them, so they wait for the last part.
                self.pending.settlements = batch.settlements.split_off(MAX_BATCH);
                self.pending.parks = std::mem::take(&mut batch.parks);
            }
            let can_come_back =
                batch.settlements.iter().filter(|settlement| settlement.outcome.can_come_back());
            self.gives_up.extend(can_come_back.map(|settlement| identity(&settlement.delivery)));
            self.in_flight = Some(Arc::new(batch));
        }
        if let Some(batch) = self.in_flight.clone() {
            let session = self.session.clone();
            self.call.start(async move { session.settle(&batch).await });
        }
    }

    /// The batch that was stored, or the error that ends the session. Transient errors are retried here.
    pub(super) fn poll_stored(
        &mut self,
        task: &mut TaskContext<'_>,
        randomness: &Randomness,
    ) -> Poll<Result<Arc<SettleBatch>, Error>> {
        loop {
            if self.pause.poll(task).is_ready() {
                self.send();
            }
            match self.call.poll(task) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => {
                    self.pause.reset();
                    self.gives_up.clear();
                    if let Some(batch) = self.in_flight.take() {
                        return Poll::Ready(Ok(batch));
                    }
                }
                Poll::Ready(Err(error)) if is_fatal(&error) => return Poll::Ready(Err(error)),
                Poll::Ready(Err(error)) => {
                    let pause = self.pause.start(randomness.fraction());
                    tracing::warn!(
                        error = crate::error::chain(&error),
                        ?pause,
                        "settle failed, will be repeated"
                    );
                }
            }
        }
    }
}

/// Whether an error of claim or settle ends the session. What is neither transient nor final is repeated as well: giving
/// up outcomes helps nobody, and the log says what to repair.
pub(super) fn is_fatal(error: &Error) -> bool {
    matches!(error.kind(), crate::ErrorKind::LeaseLost | crate::ErrorKind::Closed)
}
