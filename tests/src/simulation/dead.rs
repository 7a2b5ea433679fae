//! Dead letters: listing, replay, purge.

use std::sync::Arc;

use event_bus_core::backend::{
    DeadLetter, DeadLetterFilter, DeadReason, DeliveryId, Envelope, ErrorLog, Timestamp,
};

use super::state::{Row, State, delivery_id, row_id};

/// A dead letter.
pub(super) struct Corpse {
    pub(super) handler: Arc<str>,
    pub(super) queue: usize,
    pub(super) envelope: Envelope,
    pub(super) failures: u32,
    pub(super) errors: ErrorLog,
    pub(super) reason: DeadReason,
    pub(super) died_at: Timestamp,
    pub(super) born: u64,
    /// Where it holds its key.
    pub(super) marker: Option<Marker>,
}

/// The place of a dead letter that holds its key.
pub(super) struct Marker {
    pub(super) key: Arc<str>,
    pub(super) id: u64,
}

impl State {
    pub(super) fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        after: Option<DeliveryId>,
        limit: usize,
    ) -> Vec<DeadLetter> {
        let after = after.map_or(0, row_id);
        let dead = self.dead.range(after + 1..).filter(|(id, corpse)| corpse.matches(**id, filter));
        dead.take(limit).map(|(id, corpse)| corpse.letter(*id)).collect()
    }

    pub(super) fn replay(&mut self, filter: &DeadLetterFilter) -> u64 {
        let mut corpses = self.take_dead(filter);
        let count = corpses.len() as u64;
        corpses.sort_by_key(|corpse| corpse.born);
        for corpse in corpses {
            let row = Row::new(corpse.envelope, corpse.born);
            match corpse.marker {
                Some(marker) => {
                    self.change_marker(corpse.queue, &marker, |place| {
                        if let Some(place) = place {
                            *place = Row { token: place.token, ..row };
                        }
                        true
                    });
                }
                None => {
                    let id = self.next_id();
                    self.queues[corpse.queue].enter(id, row);
                }
            }
        }
        count
    }

    pub(super) fn purge(&mut self, filter: &DeadLetterFilter) -> u64 {
        let corpses = self.take_dead(filter);
        for corpse in &corpses {
            if let Some(marker) = &corpse.marker {
                self.change_marker(corpse.queue, marker, |_| false);
            }
        }
        corpses.len() as u64
    }

    fn take_dead(&mut self, filter: &DeadLetterFilter) -> Vec<Corpse> {
        let ids: Vec<_> =
            self.dead.iter().filter(|(id, corpse)| corpse.matches(**id, filter)).map(|(id, _)| *id).collect();
        ids.iter().filter_map(|id| self.dead.remove(id)).collect()
    }

    /// Changes a marker wherever it is; it is removed if `change` says so with `false`.
    fn change_marker(
        &mut self,
        queue: usize,
        marker: &Marker,
        change: impl FnOnce(Option<&mut Row>) -> bool,
    ) {
        let queue = &mut self.queues[queue];
        let part = queue.part_of(&marker.key);
        let part = &mut queue.parts[part];
        let parked = part.parked.get_mut(&marker.key);
        let place = part.line.waiting.get_mut(&marker.id);
        let place = place.or_else(|| part.line.held.get_mut(&marker.id).map(|(_, row)| row));
        let place = place.or_else(|| parked.and_then(|lane| lane.get_mut(&marker.id)));
        if change(place) {
            return;
        }
        part.line.waiting.remove(&marker.id);
        part.line.held.remove(&marker.id);
        if let Some(lane) = part.parked.get_mut(&marker.key) {
            lane.remove(&marker.id);
            if lane.is_empty() {
                part.parked.remove(&marker.key);
            }
        }
    }
}

impl Corpse {
    fn letter(&self, id: u64) -> DeadLetter {
        DeadLetter {
            id: delivery_id(id),
            handler: self.handler.clone(),
            envelope: self.envelope.clone(),
            failures: self.failures,
            errors: self.errors.clone(),
            reason: self.reason,
            died_at: self.died_at,
            holds_key: self.marker.is_some(),
        }
    }

    fn matches(&self, id: u64, filter: &DeadLetterFilter) -> bool {
        let is = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| found == Some(wanted))
        };
        filter.ids.as_ref().is_none_or(|ids| ids.contains(&delivery_id(id)))
            && is(&filter.handler, Some(&self.handler))
            && is(&filter.event, Some(&self.envelope.name))
            && is(&filter.key, self.envelope.key.as_deref())
            && filter.reason.is_none_or(|reason| reason == self.reason)
            && filter.died_before.is_none_or(|before| self.died_at < before)
    }
}
