//! The lanes against a model of the store, under random sequences of everything an engine does with them.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::Order;
use crate::envelope::{Envelope, EventId, Timestamp};

fn specs(priorities: &[u8], window: usize) -> Vec<HandlerSpec> {
    let names = priorities.iter().enumerate();
    names
        .map(|(n, priority)| HandlerSpec {
            name: format!("handler-{n}").into(),
            priority: *priority,
            order: Order::Hold,
            window,
        })
        .collect()
}

fn delivery(handler: u32, id: u128, key: Option<&str>) -> Delivery {
    let envelope = Envelope {
        id: EventId::from_uuid(Uuid::from_u128(id)),
        name: "an.event".into(),
        version: 1,
        key: key.map(Arc::from),
        payload: Bytes::from_static(b"payload"),
        headers: None,
        published_at: Timestamp::from_millis(0),
    };
    Delivery {
        id: DeliveryId(id),
        partition: Partition { handler: HandlerIndex(handler), number: 0 },
        envelope,
        failures: 0,
        crashes: 0,
        errors: Default::default(),
        due_in: None,
        is_held: false,
        fence: 0,
    }
}

fn lanes(priorities: &[u8], window: usize) -> Lanes {
    Lanes::new(&specs(priorities, window), &vec![4; priorities.len()], Duration::from_secs(1))
}

#[tokio::test]
async fn a_lane_lets_out_one_delivery_at_a_time_and_free_ones_pass() {
    let now = Instant::now();
    let mut lanes = lanes(&[0], 100);
    for (id, key) in [(1, Some("a")), (2, Some("a")), (3, None), (4, Some("b"))] {
        assert_eq!(lanes.offer(delivery(0, id, key), now), Offer::Accepted);
    }
    assert_eq!(lanes.offer(delivery(0, 2, Some("a")), now), Offer::Known);
    let taken: Vec<_> = std::iter::from_fn(|| lanes.take(now)).collect();
    assert_eq!(taken.iter().map(|d| d.id.0).collect::<Vec<_>>(), [1, 3, 4]);
    lanes.not_running(HandlerIndex(0));
    lanes.go_on(&taken[0], now);
    assert_eq!(lanes.take(now).map(|d| d.id.0), Some(2));
}

#[tokio::test]
async fn a_failed_head_holds_its_lane_until_it_is_due() {
    let now = Instant::now();
    let mut lanes = lanes(&[0], 100);
    lanes.offer(delivery(0, 1, Some("a")), now);
    lanes.offer(delivery(0, 2, Some("a")), now);
    let head = lanes.take(now).unwrap();
    lanes.not_running(HandlerIndex(0));
    let due = now + Duration::from_secs(5);
    lanes.put_back(head, due, now);
    assert!(lanes.take(now).is_none());
    assert_eq!(lanes.next_wake(), Some(due));
    lanes.wake(due);
    assert_eq!(lanes.take(due).map(|d| d.id.0), Some(1));
}

#[tokio::test]
async fn the_most_urgent_handler_goes_first_and_equals_share() {
    let now = Instant::now();
    let mut lanes = lanes(&[5, 1, 5], 100);
    for id in 0..6 {
        lanes.offer(delivery(0, id, None), now);
        lanes.offer(delivery(1, id, None), now);
        lanes.offer(delivery(2, id, None), now);
    }
    let handlers: Vec<_> = std::iter::from_fn(|| lanes.take(now)).map(|d| d.handler().0).collect();
    // Four may run of each handler.
    assert_eq!(handlers, [1, 1, 1, 1, 0, 2, 0, 2, 0, 2, 0, 2]);
}

#[tokio::test]
async fn a_full_window_of_a_stalled_lane_is_parked_so_that_others_have_room() {
    let mut now = Instant::now();
    let mut lanes = lanes(&[0], 8);
    for id in 1..=8 {
        lanes.offer(delivery(0, id, Some("stuck")), now);
    }
    let head = lanes.take(now).unwrap();
    assert!(lanes.demand(HandlerIndex(0)).is_none());
    assert!(lanes.is_stuck(HandlerIndex(0)));
    lanes.relieve(HandlerIndex(0), now);
    assert!(lanes.take_parks().is_empty(), "a lane that just started is not stalled");
    now += STALLED_AFTER;
    lanes.relieve(HandlerIndex(0), now);
    let parks = lanes.take_parks();
    assert_eq!(parks.len(), 1);
    assert_eq!((parks[0].from, parks[0].claimed.len()), (DeliveryId(2), 7));
    assert_eq!(lanes.demand(HandlerIndex(0)).map(|demand| demand.limit), Some(7));
    // A newcomer of the lane stands behind the parked ones, another key does not.
    assert_eq!(lanes.offer(delivery(0, 9, Some("stuck")), now), Offer::Parked);
    assert_eq!(lanes.offer(delivery(0, 10, Some("free")), now), Offer::Accepted);
    let later = lanes.take_parks();
    assert!(!lanes.wants_lanes(), "nothing is asked back before the store has answered");
    for park in parks.iter().chain(&later) {
        lanes.parked(park, now);
    }
    let demands = lanes.lane_demands(&mut Vec::new());
    assert_eq!(demands.len(), 1);
    lanes.refilled(&demands, &[]);
    for id in 2..=9 {
        assert_eq!(lanes.offer(delivery(0, id, Some("stuck")), now), Offer::Accepted);
    }
    lanes.refill_ended(&demands, now);
    lanes.not_running(HandlerIndex(0));
    lanes.forget(&head);
    lanes.go_on(&head, now);
    let next: Vec<_> = std::iter::from_fn(|| lanes.take(now)).map(|d| d.id.0).collect();
    assert_eq!(next, [10, 2]);
}

#[tokio::test]
async fn a_held_head_parks_its_lane_and_is_looked_at_again_less_and_less_often() {
    let mut now = Instant::now();
    let mut lanes = lanes(&[0], 100);
    let held = |id| Delivery { is_held: true, ..delivery(0, id, Some("a")) };
    lanes.offer(held(1), now);
    lanes.offer(delivery(0, 2, Some("a")), now);
    assert!(lanes.take(now).is_none());
    let mut waits = Vec::new();
    for _ in 0..3 {
        for park in lanes.take_parks() {
            lanes.parked(&park, now);
        }
        let due = lanes.next_wake().unwrap();
        waits.push((due - now).as_secs());
        now = due;
        lanes.wake(now);
        let demands = lanes.lane_demands(&mut Vec::new());
        assert_eq!(demands[0].limit, if waits.is_empty() { 64 } else { 1 });
        let still = [ParkedLane { partition: demands[0].partition, key: "a".into(), first: DeliveryId(2) }];
        lanes.refilled(&demands, &still);
        lanes.offer(held(1), now);
        lanes.refill_ended(&demands, now);
    }
    assert_eq!(waits, [1, 2, 4]);
}

/// A lane whose last delivery in memory is out, while a claim for what is parked behind it is under way.
fn asked_for(lanes: &mut Lanes, now: Instant) -> (Arc<Delivery>, Vec<LaneDemand>) {
    lanes.offer(delivery(0, 1, Some("a")), now);
    let head = lanes.take(now).unwrap();
    let partition = head.partition;
    lanes.learn_parked(&ParkedLane { partition, key: "a".into(), first: DeliveryId(2) }, now);
    lanes.put_back(head, now, now);
    let head = lanes.take(now).unwrap();
    let demands = lanes.lane_demands(&mut Vec::new());
    assert_eq!(demands.len(), 1);
    (head, demands)
}

/// The store says that the lane is not parked any more; it does not know what was parked since.
#[tokio::test]
async fn a_key_that_is_held_while_its_lane_is_claimed_stays_held() {
    let mut now = Instant::now();
    let mut lanes = lanes(&[0], 100);
    let (head, demands) = asked_for(&mut lanes, now);
    lanes.not_running(HandlerIndex(0));
    lanes.hold(&head, now);
    lanes.forget(&head);
    lanes.refilled(&demands, &[]);
    assert_eq!(lanes.offer(delivery(0, 2, Some("a")), now), Offer::Parked);
    lanes.refill_ended(&demands, now);
    for park in lanes.take_parks() {
        lanes.parked(&park, now);
    }
    now = lanes.next_wake().unwrap();
    lanes.wake(now);
    assert!(lanes.take(now).is_none(), "nothing runs behind a dead letter that holds its key");
    assert_eq!(lanes.lane_demands(&mut Vec::new()).len(), 1);
}

#[tokio::test]
async fn a_lane_that_is_parked_while_it_is_claimed_stays_parked() {
    let mut now = Instant::now();
    let mut lanes = lanes(&[0], 4);
    let (head, demands) = asked_for(&mut lanes, now);
    // They fill the window, so that the lane is parked.
    lanes.offer(delivery(0, 8, None), now);
    lanes.offer(delivery(0, 9, None), now);
    lanes.not_running(HandlerIndex(0));
    lanes.put_back(head, now + STALLED_AFTER * 10, now);
    now += STALLED_AFTER;
    lanes.relieve(HandlerIndex(0), now);
    lanes.refilled(&demands, &[]);
    assert_eq!(lanes.offer(delivery(0, 2, Some("a")), now), Offer::Parked);
    lanes.refill_ended(&demands, now);
    now += STALLED_AFTER * 20;
    lanes.wake(now);
    let next: Vec<_> = std::iter::from_fn(|| lanes.take(now)).map(|d| d.id.0).collect();
    assert_eq!(next, [8, 9], "the head of the lane lies in the store");
}

/// One thing an engine does.
#[derive(Clone, Debug)]
enum Step {
    Publish { handler: u32, key: Option<u8> },
    Claim,
    Take,
    Complete(usize),
    Retry(usize),
    Pass(u64),
    Relieve(u32),
    AnswerParks,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..2_u32, proptest::option::weighted(0.8, 0..3_u8)).prop_map(|(handler, key)| Step::Publish { handler, key }),
        4 => Just(Step::Claim),
        6 => Just(Step::Take),
        4 => any::<usize>().prop_map(Step::Complete),
        2 => any::<usize>().prop_map(Step::Retry),
        3 => (1..100_u64).prop_map(Step::Pass),
        2 => (0..2_u32).prop_map(Step::Relieve),
        2 => Just(Step::AnswerParks),
    ];
    proptest::collection::vec(step, 1..200)
}

/// A store that keeps deliveries by (handler, id), hands each out once unless it is parked, and obeys parks.
struct Model {
    lanes: Lanes,
    now: Instant,
    next_id: u128,
    /// What is not completed: key, handed out?, parked?
    store: BTreeMap<(u32, u128), (Option<u8>, bool, bool)>,
    out: Vec<Arc<Delivery>>,
    open_parks: Vec<Park>,
}

impl Model {
    fn new() -> Self {
        Self {
            lanes: Lanes::new(&specs(&[0, 3], 6), &[2, 2], Duration::from_millis(10)),
            now: Instant::now(),
            next_id: 1,
            store: BTreeMap::new(),
            out: Vec::new(),
            open_parks: Vec::new(),
        }
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Publish { handler, key } => {
                self.store.insert((*handler, self.next_id), (*key, false, false));
                self.next_id += 1;
            }
            Step::Claim => self.claim(),
            Step::Take => {
                if let Some(delivery) = self.lanes.take(self.now) {
                    self.check_order(&delivery);
                    self.out.push(delivery);
                }
            }
            Step::Complete(pick) => {
                if let Some(delivery) = self.pick(*pick) {
                    self.lanes.not_running(delivery.handler());
                    self.lanes.go_on(&delivery, self.now);
                    self.store.remove(&(delivery.handler().0, delivery.id.0));
                    self.lanes.forget(&delivery);
                }
            }
            Step::Retry(pick) => {
                if let Some(delivery) = self.pick(*pick) {
                    self.lanes.not_running(delivery.handler());
                    if delivery.envelope.key.is_some() {
                        self.lanes.put_back(delivery, self.now + Duration::from_millis(20), self.now);
                    } else {
                        self.store.get_mut(&(delivery.handler().0, delivery.id.0)).unwrap().1 = false;
                        self.lanes.forget(&delivery);
                    }
                }
            }
            Step::Pass(millis) => {
                self.now += Duration::from_millis(*millis);
                self.lanes.wake(self.now);
            }
            Step::Relieve(handler) => self.lanes.relieve(HandlerIndex(*handler), self.now),
            Step::AnswerParks => self.answer_parks(),
        }
        let parks = self.lanes.take_parks();
        self.open_parks.extend(parks);
    }

    fn pick(&mut self, pick: usize) -> Option<Arc<Delivery>> {
        (!self.out.is_empty()).then(|| self.out.remove(pick % self.out.len()))
    }

    fn answer_parks(&mut self) {
        for park in std::mem::take(&mut self.open_parks) {
            let key: u8 = park.key.parse().unwrap();
            for ((handler, id), row) in &mut self.store {
                if *handler == park.partition.handler.0 && row.0 == Some(key) && *id >= park.from.0 {
                    assert!(
                        !self.out.iter().any(|out| out.handler().0 == *handler && out.id.0 == *id),
                        "parked what is out"
                    );
                    *row = (row.0, false, true);
                }
            }
            self.lanes.parked(&park, self.now);
        }
    }

    fn claim(&mut self) {
        let mut demands: Vec<_> =
            (0..2).filter_map(|handler| self.lanes.demand(HandlerIndex(handler))).collect();
        let asked = self.lanes.lane_demands(&mut demands);
        let mut handed = Vec::new();
        let mut still = Vec::new();
        for demand in &asked {
            let (handler, key) = (demand.partition.handler.0, demand.key.parse::<u8>().unwrap());
            let rows =
                self.store.iter_mut().filter(|((of, _), row)| *of == handler && row.0 == Some(key) && row.2);
            let mut rows = rows.collect::<Vec<_>>().into_iter();
            for (id, row) in rows.by_ref().take(demand.limit) {
                *row = (row.0, true, false);
                handed.push(*id);
            }
            if let Some(((_, id), _)) = rows.next() {
                still.push(ParkedLane {
                    partition: demand.partition,
                    key: demand.key.clone(),
                    first: DeliveryId(*id),
                });
            }
        }
        for demand in &demands {
            let rows =
                self.store.iter_mut().filter(|((of, _), row)| *of == demand.handler.0 && !row.1 && !row.2);
            for (id, row) in rows.take(demand.limit) {
                row.1 = true;
                handed.push(*id);
            }
        }
        self.lanes.refilled(&asked, &still);
        for (handler, id) in handed {
            let key = self.store[&(handler, id)].0.map(|key| key.to_string());
            self.lanes.offer(delivery(handler, id, key.as_deref()), self.now);
        }
        self.lanes.refill_ended(&asked, self.now);
    }

    /// What is taken is the oldest delivery of its lane that is not completed, and none of the lane is out.
    fn check_order(&self, delivery: &Delivery) {
        let handler = delivery.handler().0;
        let Some(key) = delivery.envelope.key.as_ref().map(|key| key.parse::<u8>().unwrap()) else { return };
        let oldest = self.store.iter().find(|((of, _), row)| *of == handler && row.0 == Some(key)).unwrap();
        assert_eq!(oldest.0.1, delivery.id.0, "an earlier delivery of the lane is not done");
        let same_lane =
            |out: &&Arc<Delivery>| out.handler().0 == handler && out.envelope.key == delivery.envelope.key;
        assert_eq!(self.out.iter().filter(same_lane).count(), 0, "two of one lane are out");
    }

    /// Whatever happened, everything can still be delivered.
    fn drain(&mut self) {
        for _ in 0..10_000 {
            if self.store.is_empty() {
                return;
            }
            self.answer_parks();
            self.apply(&Step::Claim);
            self.apply(&Step::Pass(60));
            self.apply(&Step::Take);
            self.apply(&Step::Complete(0));
        }
        panic!("stuck with {:?}", self.store);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn order_holds_and_nothing_gets_stuck_whatever_happens(steps in steps()) {
        let mut model = Model::new();
        for step in &steps {
            model.apply(step);
        }
        model.drain();
        prop_assert_eq!(model.lanes.bytes(), 0);
        prop_assert!(model.lanes.queues.iter().all(|queue| {
            queue.loaded == 0 && queue.running == 0 && queue.lanes.is_empty() && queue.parked_lanes == 0
        }), "something is left behind");
    }
}
