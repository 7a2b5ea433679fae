//! Deliveries whose owner vanished while they may have been running.
//!
//! One of them may be what killed it. So the start of each is recorded before it runs: if the worker vanishes again, that
//! run counts as a failed attempt. And one that is under strong suspicion, or on its last attempt, runs when no other
//! suspect does: so a delivery that kills its process is charged, and its neighbours are not.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::delivery::{Delivery, Partition};

use super::lanes::{Identity, identity};

/// Suspects that wait, and those that are being recorded or running.
#[derive(Default)]
pub(super) struct Suspects {
    waiting: VecDeque<(Arc<Delivery>, bool)>,
    active: HashMap<Identity, Phase>,
    is_one_alone: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Recording,
    Running,
}

impl Suspects {
    pub(super) fn is_suspect(delivery: &Delivery) -> bool {
        delivery.crashes > 0
    }

    pub(super) fn push(&mut self, delivery: Arc<Delivery>, max_attempts: u32) {
        let must_be_alone = delivery.crashes >= 2 || delivery.attempt() >= max_attempts;
        self.waiting.push_back((delivery, must_be_alone));
    }

    /// How many slots are spoken for by suspects whose start is being recorded.
    pub(super) fn recording(&self) -> usize {
        self.active.values().filter(|phase| **phase == Phase::Recording).count()
    }

    /// The next suspect whose start can be recorded; `may_run` says whether its handler may run another.
    pub(super) fn next(&mut self, mut may_run: impl FnMut(&Delivery) -> bool) -> Option<Arc<Delivery>> {
        if self.is_one_alone {
            return None;
        }
        let position = self.waiting.iter().position(|(delivery, must_be_alone)| {
            (!must_be_alone || self.active.is_empty()) && may_run(delivery)
        })?;
        let (delivery, must_be_alone) = self.waiting.remove(position)?;
        self.is_one_alone = must_be_alone;
        self.active.insert(identity(&delivery), Phase::Recording);
        Some(delivery)
    }

    /// Its start is recorded; false if it was given up meanwhile.
    pub(super) fn recorded(&mut self, delivery: &Delivery) -> bool {
        match self.active.get_mut(&identity(delivery)) {
            Some(phase) => {
                *phase = Phase::Running;
                true
            }
            None => false,
        }
    }

    /// It no longer runs.
    pub(super) fn ended(&mut self, delivery: &Delivery) {
        if self.active.remove(&identity(delivery)).is_some() && self.active.is_empty() {
            self.is_one_alone = false;
        }
    }

    /// Whether any of a partition is being recorded.
    pub(super) fn records_any_of(&self, partition: Partition) -> bool {
        self.active.iter().any(|((of, _), phase)| *of == partition && *phase == Phase::Recording)
    }

    /// Takes back those of a partition that wait.
    pub(super) fn drop_waiting(&mut self, partition: Option<Partition>) -> Vec<Arc<Delivery>> {
        let is_dropped =
            |(delivery, _): &mut (Arc<Delivery>, bool)| partition.is_none_or(|of| delivery.partition == of);
        let mut kept = VecDeque::new();
        let mut dropped = Vec::new();
        for mut suspect in self.waiting.drain(..) {
            if is_dropped(&mut suspect) {
                dropped.push(suspect.0);
            } else {
                kept.push_back(suspect);
            }
        }
        self.waiting = kept;
        dropped
    }
}
