//! What a session has handed out and not been told the outcome of.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use event_bus_core::backend::{DeliveryId, HandlerIndex, Partition};

/// Where a delivery lies in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the stream of its slot, or of the free deliveries.
    Stream,
    /// In its lane: it was parked once.
    Lane,
}

/// A stretch of the free deliveries that belongs to this worker.
#[derive(Debug)]
struct Range {
    last: DeliveryId,
    left: usize,
}

/// All that is out.
#[derive(Default)]
pub(crate) struct Held {
    places: HashMap<(Partition, DeliveryId), Place>,
    /// By handler and first id.
    ranges: HashMap<HandlerIndex, BTreeMap<DeliveryId, Range>>,
    /// Lanes of which something is parked.
    lanes: HashMap<(Partition, Arc<str>), Lane>,
}

/// A lane with parked deliveries.
struct Lane {
    /// Up to where it is handed out: what stands behind this is parked.
    mark: DeliveryId,
    /// The same as the lowest park says that was stored since the lane was last asked for. Whether the answer knows of
    /// that park nobody can tell.
    parked_meanwhile: Option<DeliveryId>,
}

impl Held {
    pub(crate) fn add(&mut self, partition: Partition, id: DeliveryId, place: Place) {
        self.places.insert((partition, id), place);
    }

    pub(crate) fn place(&self, partition: Partition, id: DeliveryId) -> Option<Place> {
        self.places.get(&(partition, id)).copied()
    }

    pub(crate) fn remove(&mut self, partition: Partition, id: DeliveryId) {
        if self.places.remove(&(partition, id)).is_none() || partition.number != Partition::WHOLE {
            return;
        }
        let Some(ranges) = self.ranges.get_mut(&partition.handler) else { return };
        if let Some((_, range)) = ranges.range_mut(..=id).next_back()
            && id <= range.last
        {
            range.left = range.left.saturating_sub(1);
        }
    }

    /// Forgets all of a partition.
    pub(crate) fn drop_partition(&mut self, partition: Partition) {
        self.places.retain(|(of, _), _| *of != partition);
        self.lanes.retain(|(of, _), _| *of != partition);
    }

    /// A stretch of `count` free deliveries is this worker's; false if that is known.
    pub(crate) fn add_range(
        &mut self,
        handler: HandlerIndex,
        first: DeliveryId,
        last: DeliveryId,
        count: usize,
    ) -> bool {
        let ranges = self.ranges.entry(handler).or_default();
        let is_new = !ranges.contains_key(&first);
        if is_new {
            ranges.insert(first, Range { last, left: count });
        }
        is_new
    }

    /// The starts of the stretches of a handler.
    pub(crate) fn range_starts(&self, handler: HandlerIndex) -> Vec<DeliveryId> {
        self.ranges.get(&handler).map(|ranges| ranges.keys().copied().collect()).unwrap_or_default()
    }

    /// Stretches of which nothing is left once these free deliveries of a handler are gone.
    pub(crate) fn finished_ranges(&self, handler: HandlerIndex, gone: &[DeliveryId]) -> Vec<DeliveryId> {
        let Some(ranges) = self.ranges.get(&handler) else { return Vec::new() };
        let mut counts: BTreeMap<DeliveryId, usize> = BTreeMap::new();
        for id in gone {
            if let Some((first, range)) = ranges.range(..=*id).next_back()
                && *id <= range.last
            {
                *counts.entry(*first).or_default() += 1;
            }
        }
        let is_empty = |first: &DeliveryId, gone: usize| ranges.get(first).is_some_and(|r| r.left <= gone);
        let emptied = counts.iter().filter(|(first, gone)| is_empty(first, **gone)).map(|(first, _)| *first);
        // A range of which nothing could be read is empty from the beginning.
        let empty = ranges.iter().filter(|(_, range)| range.left == 0).map(|(first, _)| *first);
        let mut finished: Vec<_> = emptied.chain(empty).collect();
        finished.sort_unstable();
        finished.dedup();
        finished
    }

    pub(crate) fn forget_ranges(&mut self, handler: HandlerIndex, firsts: &[DeliveryId]) {
        if let Some(ranges) = self.ranges.get_mut(&handler) {
            for first in firsts {
                ranges.remove(first);
            }
        }
    }

    /// A lane is asked for: up to where it is handed out; `None` if nothing of it is parked.
    pub(crate) fn ask(&mut self, partition: Partition, key: &Arc<str>) -> Option<DeliveryId> {
        let lane = self.lanes.get_mut(&(partition, key.clone()))?;
        lane.parked_meanwhile = None;
        Some(lane.mark)
    }

    /// The answer: it is handed out up to `last` by now, and `has_more` says whether something behind it is parked.
    pub(crate) fn answered(&mut self, partition: Partition, key: Arc<str>, last: DeliveryId, has_more: bool) {
        let name = (partition, key);
        let Some(lane) = self.lanes.get_mut(&name) else { return };
        match lane.parked_meanwhile {
            // The lower one is right, or hands something out again that is known to be out.
            Some(before) => lane.mark = last.min(before),
            None if has_more => lane.mark = last,
            None => {
                self.lanes.remove(&name);
            }
        }
    }

    /// A lane is parked behind `before`.
    pub(crate) fn parked(&mut self, partition: Partition, key: Arc<str>, before: DeliveryId) {
        let lane =
            self.lanes.entry((partition, key)).or_insert(Lane { mark: before, parked_meanwhile: None });
        lane.mark = lane.mark.min(before);
        lane.parked_meanwhile = lane.parked_meanwhile.into_iter().chain([before]).min();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: Partition = Partition { handler: HandlerIndex(0), number: Partition::WHOLE };

    fn id(number: u128) -> DeliveryId {
        DeliveryId(number)
    }

    #[test]
    fn a_range_is_finished_with_its_last_delivery() {
        let mut held = Held::default();
        assert!(held.add_range(FREE.handler, id(1), id(4), 3));
        assert!(!held.add_range(FREE.handler, id(1), id(4), 3));
        assert!(held.add_range(FREE.handler, id(7), id(7), 1));
        for number in [1, 2, 4, 7] {
            held.add(FREE, id(number), Place::Stream);
        }
        assert!(held.finished_ranges(FREE.handler, &[id(1), id(4)]).is_empty());
        held.remove(FREE, id(1));
        held.remove(FREE, id(1));
        assert_eq!(held.finished_ranges(FREE.handler, &[id(2), id(4), id(5)]), [id(1)]);
        assert_eq!(held.finished_ranges(FREE.handler, &[id(7)]), [id(7)]);
        held.forget_ranges(FREE.handler, &[id(7)]);
        assert_eq!(held.range_starts(FREE.handler), [id(1)]);
    }

    #[test]
    fn a_partition_is_forgotten_whole() {
        let mut held = Held::default();
        let (one, two) = (Partition { handler: HandlerIndex(0), number: 1 }, FREE);
        held.add(one, id(1), Place::Lane);
        held.add(two, id(1), Place::Stream);
        held.parked(one, "a".into(), id(9));
        held.drop_partition(one);
        assert_eq!((held.place(one, id(1)), held.ask(one, &"a".into())), (None, None));
        assert_eq!(held.place(two, id(1)), Some(Place::Stream));
    }

    #[test]
    fn what_is_parked_while_a_lane_is_asked_for_is_not_forgotten() {
        let (slot, key) = (Partition { handler: HandlerIndex(0), number: 1 }, Arc::<str>::from("a"));
        let mut held = Held::default();
        assert_eq!(held.ask(slot, &key), None);
        held.parked(slot, key.clone(), id(9));
        assert_eq!(held.ask(slot, &key), Some(id(9)));
        // The answer has all that was parked when it was given. Then more is, from 20 on.
        held.parked(slot, key.clone(), id(19));
        held.answered(slot, key.clone(), id(19), false);
        assert_eq!(held.ask(slot, &key), Some(id(19)));
        // The answer has what was parked meanwhile.
        held.parked(slot, key.clone(), id(22));
        held.answered(slot, key.clone(), id(27), false);
        assert_eq!(held.ask(slot, &key), Some(id(22)));
        held.answered(slot, key.clone(), id(27), true);
        assert_eq!(held.ask(slot, &key), Some(id(27)));
        held.answered(slot, key.clone(), id(30), false);
        assert_eq!(held.ask(slot, &key), None);
    }
}
