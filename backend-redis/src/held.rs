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
    /// Up to where parked lanes have been handed out. Only lanes of which something is parked.
    marks: HashMap<(Partition, Arc<str>), DeliveryId>,
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
        self.marks.retain(|(of, _), _| *of != partition);
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

    /// Up to where a lane with parked deliveries has been handed out.
    pub(crate) fn mark(&self, partition: Partition, key: &Arc<str>) -> Option<DeliveryId> {
        self.marks.get(&(partition, key.clone())).copied()
    }

    pub(crate) fn set_mark(&mut self, partition: Partition, key: Arc<str>, mark: Option<DeliveryId>) {
        match mark {
            Some(mark) => self.marks.insert((partition, key), mark),
            None => self.marks.remove(&(partition, key)),
        };
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
        held.set_mark(one, "a".into(), Some(id(9)));
        held.drop_partition(one);
        assert_eq!((held.place(one, id(1)), held.mark(one, &"a".into())), (None, None));
        assert_eq!(held.place(two, id(1)), Some(Place::Stream));
    }
}
