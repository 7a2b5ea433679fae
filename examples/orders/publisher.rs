//! Publishes the events in batches, each exactly once, whatever happens in between.

use std::collections::HashSet;
use std::error::Error as _;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use event_bus::inline::FailedRuns;
use event_bus::prelude::*;
use event_bus::{ErrorKind, Receipt};

use crate::Stop;
use crate::events::{OrderEvent, OrderPlaced};
use crate::ledger::Record;
use crate::witness::Witness;

/// Events in one atomic publish call.
const BATCH: usize = 50;

/// How often a call is repeated while the store is out of reach, and how long to wait in between.
const REPEATS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(200);

/// Publishes what the ledger does not know as published.
pub struct Publisher<'a> {
    bus: &'a EventBus,
    witness: &'a Arc<Witness>,
    run: &'a str,
    confirmed: HashSet<usize>,
}

impl<'a> Publisher<'a> {
    /// A publisher for the run called `run`, of which `records` tell.
    pub fn new(bus: &'a EventBus, witness: &'a Arc<Witness>, run: &'a str, records: &[Record]) -> Self {
        let confirmed = records.iter().filter_map(|record| match record {
            Record::Published { batch } => Some(*batch),
            _ => None,
        });
        Self { bus, witness, run, confirmed: confirmed.collect() }
    }

    /// Publishes one batch after the other: the order of the calls is the order of each key.
    pub async fn publish(&self) -> Result<(), Stop> {
        let events = self.witness.books().events.clone();
        for (batch, start) in (0..events.len()).step_by(BATCH).enumerate() {
            if !self.confirmed.contains(&batch) {
                let range = start..(start + BATCH).min(events.len());
                self.publish_batch(batch, &events[range.clone()], range).await?;
            }
        }
        Ok(())
    }

    async fn publish_batch(
        &self,
        batch: usize,
        events: &[OrderEvent],
        range: Range<usize>,
    ) -> Result<(), Stop> {
        self.witness.publishing(batch, range.clone());
        let mut repeats = 0;
        let stored = loop {
            match self.call(batch, events).await {
                Ok(receipt) if receipt.is_duplicate() => break None,
                Ok(receipt) => break Some(receipt.deliveries()),
                // Handlers ran inside the call (inline), and some failed: the run of each stands in the ledger.
                Err(error) if error.kind() == ErrorKind::HandlerFailed => {
                    let failed = error.source().and_then(|source| source.downcast_ref::<FailedRuns>());
                    self.witness.returned(failed.map_or(0, |failed| failed.runs().len()));
                    break None;
                }
                // The key makes repeating safe, even if the answer was lost and not the call.
                Err(error) if error.is_transient() && repeats < REPEATS => {
                    repeats += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(error.into()),
            }
        };
        let wanted = self.witness.books().wanted_in(range);
        if let Some(stored) = stored.filter(|stored| *stored != wanted) {
            return Err(Stop::Failed(format!(
                "batch {batch}: {stored} deliveries were stored, {wanted} are right"
            )));
        }
        self.witness.published(batch);
        Ok(())
    }

    /// One call for events of several types: all are stored, or none.
    async fn call(&self, batch: usize, events: &[OrderEvent]) -> event_bus::Result<Receipt> {
        let call = self.bus.publish_all::<OrderPlaced>(&[]);
        let call = events.iter().fold(call, |call, event| event.add_to(call));
        match self.bus.backend().capabilities().idempotency_key {
            true => call.idempotency_key(format!("orders/{}/{batch}", self.run)).await,
            false => call.await,
        }
    }
}
