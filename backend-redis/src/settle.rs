//! Outcomes on their way to the store.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use event_bus_core::Result;
use event_bus_core::backend::{
    AttemptError, DeadReason, DeliveryId, ErrorLog, HandlerIndex, Outcome, Park, Partition, SettleBatch,
};
use event_bus_core::clock::{Clock as _, SystemClock};

use crate::error::Failure;
use crate::held::Place;
use crate::ids;
use crate::link::Link;
use crate::script::{self, Call};
use crate::worker::Worker;

/// An entry that cannot be a delivery, and why.
pub(crate) struct Unreadable {
    pub(crate) partition: Partition,
    pub(crate) id: DeliveryId,
    pub(crate) key: Option<Arc<str>>,
    pub(crate) why: String,
}

/// A session's own connection for outcomes, and the number of the batch that is next.
pub(crate) struct Settler {
    link: Link,
    /// Raised when a batch is known to be stored: a repeat has the number of what it repeats.
    number: u64,
}

impl Settler {
    pub(crate) fn new(link: Link) -> Self {
        Self { link, number: 1 }
    }

    /// Stores a batch.
    pub(crate) async fn settle(&mut self, worker: &Worker, batch: &SettleBatch) -> Result<()> {
        let plan = Plan::of(worker, batch);
        if plan.is_empty() {
            return Ok(());
        }
        let call = plan.call(worker, self.number);
        let failed = |failure: Failure| worker.failed("settle", failure);
        let word = self.link.eval(&call).await.and_then(|mut reply| reply.text()).map_err(failed)?;
        match &*word {
            "OK" | "ALREADY" => {}
            "FENCED" => return Err(worker.fenced("settle")),
            word => return Err(failed(Failure::Garbled(format!("the script said {word}")))),
        }
        self.number += 1;
        plan.stored(worker);
        Ok(())
    }
}

/// What of a batch has to be stored: the outcomes of what this session holds.
#[derive(Default)]
struct Plan<'b> {
    /// Done, by where they lie: the bulk.
    complete: BTreeMap<(HandlerIndex, u16), Vec<DeliveryId>>,
    single: Vec<Single<'b>>,
    parks: &'b [Park],
    /// Free deliveries that leave, and the ranges they empty.
    gone: HashMap<HandlerIndex, Vec<DeliveryId>>,
    finished: Vec<(HandlerIndex, Vec<DeliveryId>)>,
}

struct Single<'b> {
    partition: Partition,
    id: DeliveryId,
    key: &'b str,
    shared_key: Option<&'b Arc<str>>,
    outcome: &'b Outcome,
}

impl<'b> Plan<'b> {
    fn of(worker: &Worker, batch: &'b SettleBatch) -> Self {
        let held = worker.held();
        let mut plan = Self::default();
        for settlement in &batch.settlements {
            let delivery = &*settlement.delivery;
            let (partition, id) = (delivery.partition, delivery.id);
            let Some(place) = held.place(partition, id) else { continue };
            if partition.number == Partition::WHOLE && leaves(&settlement.outcome) {
                plan.gone.entry(partition.handler).or_default().push(id);
            }
            if settlement.outcome == Outcome::Complete && place == Place::Stream {
                plan.complete.entry((partition.handler, partition.number)).or_default().push(id);
                continue;
            }
            let shared_key = delivery.envelope.key.as_ref();
            plan.single.push(Single {
                partition,
                id,
                key: shared_key.map_or("", |key| key),
                shared_key,
                outcome: &settlement.outcome,
            });
        }
        plan.parks = &batch.parks;
        for (handler, gone) in &plan.gone {
            let finished = held.finished_ranges(*handler, gone);
            if !finished.is_empty() {
                plan.finished.push((*handler, finished));
            }
        }
        plan
    }

    fn is_empty(&self) -> bool {
        self.complete.is_empty() && self.single.is_empty() && self.parks.is_empty()
    }

    fn call(&self, worker: &Worker, number: u64) -> Call {
        let mut call = begin(worker, &number.to_string());
        for ((handler, slot), ids) in &self.complete {
            call.arg("C").arg(handler.get() + 1);
            slot_arg(&mut call, *slot).arg(ids.len());
            for id in ids {
                call.arg(ids::text(*id));
            }
        }
        for single in &self.single {
            single.add_to(&mut call, worker);
        }
        for (handler, ranges) in &self.finished {
            call.arg("G").arg(handler.get() + 1).arg(ranges.len());
            for first in ranges {
                call.arg(ids::text(*first));
            }
        }
        for park in self.parks {
            call.arg("P").arg(park.partition.handler.get() + 1).arg(park.partition.number).arg(&*park.key);
            call.arg(ids::fixed(ids::before(park.from)))
                .arg(park.claimed.len() + 1)
                .arg(ids::text(park.from));
            for id in &park.claimed {
                call.arg(ids::text(*id));
            }
        }
        call
    }

    /// What follows in memory.
    fn stored(self, worker: &Worker) {
        let mut returned = Vec::new();
        {
            let mut held = worker.held();
            for ((handler, number), ids) in &self.complete {
                for id in ids {
                    held.remove(Partition { handler: *handler, number: *number }, *id);
                }
            }
            for single in &self.single {
                if leaves(single.outcome) {
                    held.remove(single.partition, single.id);
                }
                if *single.outcome == Outcome::Release
                    && single.partition.number != Partition::WHOLE
                    && let Some(key) = single.shared_key
                {
                    returned.push((single.partition, single.id, key.clone()));
                }
            }
            for (handler, ranges) in &self.finished {
                held.forget_ranges(*handler, ranges);
            }
            for park in self.parks {
                for id in &park.claimed {
                    held.remove(park.partition, *id);
                }
                held.parked(park.partition, park.key.clone(), ids::before(park.from));
            }
        }
        if returned.is_empty() {
            return;
        }
        let mut slots = worker.slots();
        for (partition, id, key) in returned {
            if let Some(owned) = slots.get_mut(&(partition.handler, partition.number)) {
                owned.returned.insert(id, key);
            }
        }
    }
}

impl Single<'_> {
    fn add_to(&self, call: &mut Call, worker: &Worker) {
        let word = match self.outcome {
            Outcome::Complete => "L",
            Outcome::Start { .. } => "S",
            Outcome::Retry { keeps_place: true, .. } => "I",
            Outcome::Snooze { keeps_place: true, .. } => "Z",
            Outcome::Retry { .. } | Outcome::Snooze { .. } => "Y",
            Outcome::Dead { .. } => "D",
            Outcome::Release => "B",
        };
        call.arg(word).arg(self.partition.handler.get() + 1);
        slot_arg(call, self.partition.number);
        if matches!(word, "L" | "Y" | "D" | "B") {
            call.arg(self.key);
        }
        call.arg(ids::text(self.id));
        match self.outcome {
            Outcome::Complete | Outcome::Release => {}
            Outcome::Start { attempt } => {
                call.arg(*attempt);
            }
            Outcome::Retry { failures, delay, errors, .. } => {
                call.arg(*failures).arg(millis(*delay)).arg(&errors.as_bytes()[..]);
            }
            Outcome::Snooze { delay, keeps_place: true } => {
                call.arg(millis(*delay));
            }
            Outcome::Snooze { delay, .. } => {
                call.arg("").arg(millis(*delay)).arg("");
            }
            Outcome::Dead { reason, failures, errors, holds_key } => {
                let name = worker.handlers.get(self.partition.handler.get()).map_or("", |h| &*h.name);
                dead_args(call, name, *reason, *failures, errors, *holds_key);
            }
        }
    }
}

/// Whether a delivery with this outcome is not this session's any more.
fn leaves(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Complete | Outcome::Dead { .. } | Outcome::Release => true,
        Outcome::Retry { keeps_place, .. } | Outcome::Snooze { keeps_place, .. } => !keeps_place,
        Outcome::Start { .. } => false,
    }
}

/// Puts entries that cannot be deliveries aside, to the dead letters.
pub(crate) async fn bury(worker: &Worker, link: &Link, unreadable: &[Unreadable]) -> Result<(), Failure> {
    let mut call = begin(worker, "");
    for entry in unreadable {
        tracing::error!(id = ids::text(entry.id), why = entry.why, "a delivery in the store cannot be read");
        let name = worker.handlers.get(entry.partition.handler.get()).map_or("", |handler| &*handler.name);
        let error = AttemptError { attempt: 0, failed_at: SystemClock.now(), message: entry.why.clone() };
        call.arg("D").arg(entry.partition.handler.get() + 1);
        slot_arg(&mut call, entry.partition.number).arg(entry.key.as_deref().unwrap_or(""));
        call.arg(ids::text(entry.id));
        dead_args(&mut call, name, DeadReason::Undecodable, 0, &ErrorLog::default().with(error), false);
    }
    link.eval(&call).await?;
    let mut held = worker.held();
    for entry in unreadable {
        held.remove(entry.partition, entry.id);
    }
    Ok(())
}

fn begin(worker: &Worker, number: &str) -> Call {
    let mut call = script::SETTLE.call(&worker.shared.base);
    call.arg(&worker.incarnation).arg(number).arg(worker.handlers.len());
    for handler in worker.handlers.iter() {
        call.arg(&*handler.name);
    }
    call
}

fn slot_arg(call: &mut Call, slot: u16) -> &mut Call {
    match slot {
        Partition::WHOLE => call.arg("f"),
        slot => call.arg(slot),
    }
}

fn dead_args(
    call: &mut Call,
    handler: &str,
    reason: DeadReason,
    failures: u32,
    errors: &ErrorLog,
    holds_key: bool,
) {
    call.arg(handler).arg(reason.as_str()).arg(failures).arg(&errors.as_bytes()[..]);
    call.arg(if holds_key { "1" } else { "0" });
}

fn millis(delay: Duration) -> u64 {
    // Delays are lower bounds: a part of a millisecond is a whole one.
    u64::try_from(delay.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX)
}
