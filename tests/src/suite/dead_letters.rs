//! *dead-letters*: what failed for good is kept whole, can be read, replayed in order and purged.

use std::time::Duration;

use event_bus::backend::DeadLetterFilter;
use event_bus::prelude::*;
use event_bus::{DeadReason, EventBus};

use super::actor::{FIRST, First, SECOND, Second};
use super::note::{Act, memo, note};
use super::world::{World, counted, dead, quick, ready, rest, stop, until_counted, until_dead};

cases! { "dead_letters";
    an_exhausted_delivery_lies_there_with_everything_about_it [Worker, DeadLetters];
    a_discarded_delivery_lies_there_at_once [Worker, DeadLetters];
    the_newest_errors_are_kept [Worker, DeadLetters];
    an_undecodable_event_lies_there_unrun_and_blocks_nothing [Worker, DeadLetters];
    they_are_listed_in_pages [Worker, DeadLetters];
    they_are_found_by_what_they_are [Worker, DeadLetters];
    a_replayed_one_has_all_its_attempts_again [Worker, DeadLetters];
    one_is_replayed_and_the_others_stay [Worker, DeadLetters];
    a_bulk_replay_keeps_the_order_of_each_key [Worker, DeadLetters];
    a_replayed_one_joins_the_end_of_its_line [Worker, DeadLetters];
    a_replayed_one_can_die_again [Worker, DeadLetters];
    purged_ones_are_gone [Worker, DeadLetters];
    they_need_no_worker_and_survive_one [Worker, DeadLetters];
    listing_is_refused_where_there_are_none lacks DeadLetters;
    replay_is_refused_where_there_are_none lacks DeadLetters;
    purge_is_refused_where_there_are_none lacks DeadLetters;
}

fn everything() -> DeadLetterFilter {
    DeadLetterFilter::default()
}

/// A bus whose worker has buried these notes; nothing else is in the store.
async fn buried(world: &World, notes: &[super::note::Note]) -> EventBus {
    let bus = world.bus().await;
    let worker = bus.start().await.unwrap();
    bus.publish_all(notes).await.unwrap();
    until_dead(&bus, notes.len()).await;
    stop(worker).await;
    bus
}

async fn an_exhausted_delivery_lies_there_with_everything_about_it(world: &World) {
    let bus = world.bus().await;
    let worker = bus.start().await.unwrap();
    let mut event = note(4_711).key("a").always(Act::Fail);
    event.text = "readable".to_owned();
    let receipt = bus.publish(&event).header("tenant", "north").await.unwrap();
    let dead = until_dead(&bus, 1).await.remove(0);
    stop(worker).await;
    assert_eq!(&*dead.handler, FIRST);
    assert_eq!((dead.reason, dead.failures, dead.holds_key), (DeadReason::Exhausted, 3, false));
    assert_eq!([dead.envelope.id], *receipt.event_ids());
    assert_eq!((&*dead.envelope.name, dead.envelope.version), ("suite.note", 1));
    assert_eq!(dead.envelope.key.as_deref(), Some("a"));
    assert_eq!(dead.envelope.headers.as_ref().unwrap()["tenant"], "north");
    assert_eq!(dead.envelope.payload, event_bus::codec::encode(&event).unwrap());
    assert!(dead.died_at >= dead.envelope.published_at);
    let errors = dead.errors.entries();
    assert_eq!(errors.iter().map(|error| error.attempt).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(errors.iter().all(|error| error.message == "it was told to fail"), "{errors:?}");
    let readable = dead.readable_payload();
    assert!(readable.contains("\"number\": 4711") && readable.contains("\"readable\""), "{readable}");
}

async fn a_discarded_delivery_lies_there_at_once(world: &World) {
    let bus = buried(world, &[note(1).acts([Act::Fail, Act::Discard])]).await;
    let dead = dead(&bus).await.remove(0);
    assert_eq!((dead.reason, dead.failures), (DeadReason::Discarded, 2));
    let errors = dead.errors.entries();
    assert_eq!(
        errors.iter().map(|error| &*error.message).collect::<Vec<_>>(),
        ["it was told to fail", "it was told to give up"]
    );
}

async fn the_newest_errors_are_kept(world: &World) {
    let bus = world.bus_with(quick().max_attempts(13)).await;
    let worker = bus.start().await.unwrap();
    bus.publish(&note(1).always(Act::Fail)).await.unwrap();
    let dead = until_dead(&bus, 1).await.remove(0);
    stop(worker).await;
    assert_eq!(dead.failures, 13);
    let attempts: Vec<_> = dead.errors.entries().iter().map(|error| error.attempt).collect();
    assert_eq!(attempts, (4..=13).collect::<Vec<_>>());
}

/// Another shape under the name of the note.
#[derive(Clone, Serialize, Deserialize, Event)]
#[event(name = "suite.note", partitioned)]
struct Imposter(String);

impl Partitioned for Imposter {
    fn partition_key(&self) -> Option<std::borrow::Cow<'_, str>> {
        Some("a".into())
    }
}

async fn an_undecodable_event_lies_there_unrun_and_blocks_nothing(world: &World) {
    let imposter = ready(world.builder().handle_fn(FIRST, |_: Imposter| async { Ok(()) })).await;
    let options = if world.harness.capabilities().hold_key {
        quick().on_exhausted(Exhausted::HoldKey)
    } else {
        quick()
    };
    let bus = world.bus_with(options).await;
    imposter.publish(&Imposter("no note at all".into())).await.unwrap();
    bus.publish(&note(2).key("a")).await.unwrap();
    let worker = bus.start().await.unwrap();
    world.stage.until_done(FIRST, 1).await;
    let dead = until_dead(&bus, 1).await.remove(0);
    rest(&bus).await;
    stop(worker).await;
    assert_eq!((dead.reason, dead.failures, dead.holds_key), (DeadReason::Undecodable, 0, false));
    assert!(dead.errors.entries()[0].message.contains("cannot be decoded"));
    assert!(dead.readable_payload().contains("no note at all"));
    assert_eq!(world.stage.begun(FIRST), [2]);
}

async fn they_are_listed_in_pages(world: &World) {
    let notes: Vec<_> = (0..25).map(|number| note(number).acts([Act::Discard])).collect();
    let bus = buried(world, &notes).await;
    let mut pages = Vec::new();
    let mut after = None;
    loop {
        let page = bus.dead_letters(&everything(), after, 10).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        pages.push(page);
    }
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [10, 10, 5]);
    let ids: Vec<_> = pages.iter().flatten().map(|dead| dead.id).collect();
    assert!(ids.is_sorted_by(|one, two| one < two));
    assert!(bus.dead_letters(&everything(), None, 0).await.unwrap().is_empty());
}

async fn they_are_found_by_what_they_are(world: &World) {
    let bus =
        ready(world.builder().handler(world.actor::<First>(quick())).handler(world.actor::<Second>(quick())))
            .await;
    let worker = bus.start().await.unwrap();
    let mut discarded = memo(3);
    discarded.0 = discarded.0.key("b").read_by(FIRST).acts([Act::Discard]);
    bus.publish(&note(1).key("a").read_by(FIRST).always(Act::Fail)).await.unwrap();
    bus.publish(&note(2).key("a").read_by(SECOND).always(Act::Fail)).await.unwrap();
    bus.publish(&discarded).await.unwrap();
    let all = until_dead(&bus, 3).await;
    stop(worker).await;
    let found = async |filter: DeadLetterFilter| {
        let found = bus.dead_letters(&filter, None, 100).await.unwrap();
        found
            .iter()
            .map(|dead| (dead.handler.to_string(), dead.envelope.name.to_string()))
            .collect::<Vec<_>>()
    };
    let (one, two, three) = (
        (FIRST.to_owned(), "suite.note".to_owned()),
        (SECOND.to_owned(), "suite.note".to_owned()),
        (FIRST.to_owned(), "suite.memo".to_owned()),
    );
    let sorted = |mut list: Vec<(String, String)>| {
        list.sort();
        list
    };
    let second = found(DeadLetterFilter { handler: Some(SECOND.into()), ..everything() }).await;
    assert_eq!(second, std::slice::from_ref(&two));
    let memos = found(DeadLetterFilter { event: Some("suite.memo".into()), ..everything() }).await;
    assert_eq!(memos, [three]);
    let key = found(DeadLetterFilter { key: Some("a".into()), ..everything() }).await;
    assert_eq!(sorted(key), sorted(vec![one.clone(), two]));
    let exhausted = DeadLetterFilter { reason: Some(DeadReason::Exhausted), ..everything() };
    assert_eq!(found(exhausted).await.len(), 2);
    let both = DeadLetterFilter { handler: Some(FIRST.into()), key: Some("a".into()), ..everything() };
    assert_eq!(found(both).await, [one]);
    let by_id = DeadLetterFilter { ids: Some(vec![all[0].id, all[2].id]), ..everything() };
    assert_eq!(found(by_id).await.len(), 2);
    assert!(found(DeadLetterFilter { ids: Some(vec![]), ..everything() }).await.is_empty());
    let past = DeadLetterFilter { died_before: Some(event_bus::Timestamp::from_millis(1)), ..everything() };
    assert!(found(past).await.is_empty());
    let future = all[0].died_at.plus(Duration::from_secs(3_600));
    assert_eq!(found(DeadLetterFilter { died_before: Some(future), ..everything() }).await.len(), 3);
    assert!(found(DeadLetterFilter { handler: Some("nobody".into()), ..everything() }).await.is_empty());
}

async fn a_replayed_one_has_all_its_attempts_again(world: &World) {
    let bus = buried(world, &[note(1).key("a").acts(vec![Act::Fail; 5])]).await;
    assert_eq!(bus.replay(&everything()).await.unwrap(), 1);
    assert!(dead(&bus).await.is_empty());
    let worker = bus.start().await.unwrap();
    world.stage.until_done(FIRST, 1).await;
    rest(&bus).await;
    stop(worker).await;
    assert_eq!(world.stage.attempts(FIRST, 1), [1, 2, 3, 1, 2, 3]);
    let ids: Vec<_> = world.stage.told(FIRST, 1).iter().map(|told| told.event_id).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "a replay is the same event");
}

async fn one_is_replayed_and_the_others_stay(world: &World) {
    let notes: Vec<_> = (0..5).map(|number| note(number).acts([Act::Discard])).collect();
    let bus = buried(world, &notes).await;
    let third = dead(&bus).await[2].id;
    let filter = DeadLetterFilter { ids: Some(vec![third]), ..everything() };
    assert_eq!(bus.replay(&filter).await.unwrap(), 1);
    assert_eq!(bus.replay(&filter).await.unwrap(), 0);
    let worker = bus.start().await.unwrap();
    world.stage.until_done(FIRST, 1).await;
    rest(&bus).await;
    stop(worker).await;
    assert_eq!(dead(&bus).await.len(), 4);
    assert_eq!(world.stage.begun(FIRST).len(), 6);
}

/// Pain 2: a bulk replay neither runs a key's dead letters at once nor out of order.
async fn a_bulk_replay_keeps_the_order_of_each_key(world: &World) {
    let notes: Vec<_> =
        (0..120).map(|n| note(n).key(format!("k{}", n % 4)).acts([Act::Discard, Act::Fail])).collect();
    let bus = buried(world, &notes).await;
    assert_eq!(bus.replay(&everything()).await.unwrap(), 120);
    let worker = bus.start().await.unwrap();
    world.stage.until_done(FIRST, 120).await;
    rest(&bus).await;
    stop(worker).await;
    let done = world.stage.done(FIRST);
    for key in 0..4 {
        let line: Vec<_> = done.iter().filter(|number| **number % 4 == key).collect();
        assert!(line.is_sorted(), "{line:?}");
    }
}

async fn a_replayed_one_joins_the_end_of_its_line(world: &World) {
    let bus = buried(world, &[note(1).key("a").acts([Act::Discard])]).await;
    bus.publish_all(&[note(2).key("a"), note(3).key("a")]).await.unwrap();
    bus.replay(&everything()).await.unwrap();
    bus.publish(&note(4).key("a")).await.unwrap();
    let worker = bus.start().await.unwrap();
    world.stage.until_done(FIRST, 4).await;
    stop(worker).await;
    assert_eq!(world.stage.done(FIRST), [2, 3, 1, 4]);
}

async fn a_replayed_one_can_die_again(world: &World) {
    let bus = buried(world, &[note(1).key("a").always(Act::Fail)]).await;
    let first = dead(&bus).await[0].id;
    bus.replay(&everything()).await.unwrap();
    let worker = bus.start().await.unwrap();
    let again = until_dead(&bus, 1).await;
    stop(worker).await;
    assert!(again[0].id > first, "ids are never used twice");
    assert_eq!((again[0].failures, again[0].errors.entries().len()), (3, 3));
}

async fn purged_ones_are_gone(world: &World) {
    let notes: Vec<_> = (0..6).map(|n| note(n).key(format!("k{}", n % 2)).acts([Act::Discard])).collect();
    let bus = buried(world, &notes).await;
    let filter = DeadLetterFilter { key: Some("k1".into()), ..everything() };
    assert_eq!(bus.purge(&filter).await.unwrap(), 3);
    assert_eq!(bus.purge(&filter).await.unwrap(), 0);
    assert_eq!(dead(&bus).await.len(), 3);
    assert_eq!(bus.purge(&everything()).await.unwrap(), 3);
    assert_eq!(bus.replay(&everything()).await.unwrap(), 0);
    assert_eq!(counted(&bus).await, (0, 0, 0));
}

async fn they_need_no_worker_and_survive_one(world: &World) {
    drop(buried(world, &[note(1).acts([Act::Discard])]).await);
    let other = ready(world.builder()).await;
    assert_eq!(dead(&other).await.len(), 1);
    assert_eq!(other.replay(&everything()).await.unwrap(), 1);
    let bus = world.bus().await;
    until_counted(&bus, |ready, _, dead| ready == 1 && dead == 0).await;
    let worker = bus.start().await.unwrap();
    world.stage.until_done(FIRST, 1).await;
    stop(worker).await;
}

async fn refused<T: std::fmt::Debug>(answer: event_bus::Result<T>) {
    super::world::assert_refused(answer, event_bus::ErrorKind::Unsupported, &["dead letters"]);
}

async fn listing_is_refused_where_there_are_none(world: &World) {
    refused(world.bus().await.dead_letters(&everything(), None, 1).await).await;
}

async fn replay_is_refused_where_there_are_none(world: &World) {
    refused(world.bus().await.replay(&everything()).await).await;
}

async fn purge_is_refused_where_there_are_none(world: &World) {
    refused(world.bus().await.purge(&everything()).await).await;
}
