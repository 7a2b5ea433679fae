//! What is published twice, half, too large, by nobody who is known, or is no event at all.

use std::collections::BTreeMap;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use event_bus::backend::{Addressed, DeadLetterFilter, Envelope, EventId, Publication};
use event_bus::{ErrorKind, Receipt};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqliteConnection};

use super::super::medium::Medium;
use super::super::scene::{IDEMPOTENT, Scene};
use crate::fleet::Node;
use crate::history::{Fact, Published, hash};
use crate::node::{HANDLERS, idempotency_key, notes_of, published};
use crate::suite::actor::{FIRST, THIRD};
use crate::suite::note::Later;
use crate::suite::{Act, Note};

super::rows! {
    "P1" "published again under one idempotency key: at once from eight sides, over a kill of the server, after the publisher's death" published_twice, why_not: without_keys, fast: [Sqlite, Redis];
    "P2" "what is stored is no event: garbage, cut off, another shape, spoiled in the store; kill -9" garbage, fast: [Sqlite, Postgres, Redis, RabbitMq];
    "P3" "a deploy: publishers know a handler and an event that the workers do not; kill -9" deploy, fast: [Sqlite, Postgres, Redis, RabbitMq];
    "P4" "a handler is gone for good, and what it left is purged" removed_handler, fast: [Sqlite, Postgres, Redis, RabbitMq];
    "P5" "kill -9 of a publisher in a call of thousands of events for two handlers" killed_in_a_batch, fast: [Sqlite, Redis];
    "D2" "events at the size limit, over it, far over it; kill -9" sizes, fast: [Sqlite, Postgres, Redis, RabbitMq];
}

fn without_keys(medium: Medium) -> Option<&'static str> {
    (!medium.has_idempotency_keys()).then_some("it has no idempotency keys")
}

/// Publishes under a key, again and again until it is known what became of it.
async fn publish_as(scene: &Scene, key: &str, notes: &[Note]) -> Receipt {
    loop {
        match scene.fleet.bus.publish_all(notes).idempotency_key(key).await {
            Ok(receipt) => return receipt,
            Err(error) if error.is_transient() || error.kind() == ErrorKind::OutcomeUnknown => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(error) => panic!("{}", event_bus::chain(&error)),
        }
    }
}

/// Shows: of calls with one idempotency key one is stored, whoever makes them and whatever dies meanwhile; and a call whose
/// publisher died can be made again by another process.
async fn published_twice(scene: &mut Scene) -> Vec<Node> {
    let worker = scene.worker().await;
    for round in 0..10 {
        let notes = scene.notes(3, 3, Duration::ZERO);
        let call = 900_000 + round;
        let events = notes.iter().map(|note| published(note, &HANDLERS)).collect();
        scene.fleet.ledger.write(Fact::PublishIntent { call, publisher: 0, delay: 0, events });
        let key = format!("round {round}");
        let sides = futures_util::future::join_all((0..8).map(|_| publish_as(scene, &key, &notes)));
        let (receipts, is_certain) = if round == 5 && scene.medium.has_server() {
            let outage = async {
                scene.store.server().kill().await;
                scene.store.server().restart().await;
            };
            let (receipts, ()) =
                scene.in_doubt(&[worker.number], async { tokio::join!(sides, outage) }).await;
            (receipts, false)
        } else {
            (sides.await, true)
        };
        scene.fleet.ledger.write(Fact::PublishOk { call });
        let first = receipts.iter().filter(|receipt| !receipt.is_duplicate()).count();
        // Whose answer was lost with the server's life finds its own call remembered.
        assert!(first == 1 || (first == 0 && !is_certain), "{first} of 8 calls with one key were stored");
    }
    let url = scene.store.url.clone();
    let publisher = scene.publisher(&url, 3_000, &[IDEMPOTENT]);
    let known = scene.published();
    while scene.published() < known + 10 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let process = publisher.number;
    publisher.kill_publisher();
    again(scene, process).await;
    vec![worker]
}

/// Makes all calls of a process again that it had begun.
async fn again(scene: &Scene, process: u32) {
    let mut calls = BTreeMap::new();
    for record in scene.fleet.history().records {
        match record.fact {
            Fact::PublishIntent { call, publisher, .. } if publisher == process => {
                calls.insert(call, false);
            }
            Fact::PublishOk { call } => {
                calls.entry(call).and_modify(|is_known| *is_known = true);
            }
            _ => {}
        }
    }
    // As scenes tell their publishers.
    let notes = notes_of(process, 3_000, 7, 3, None);
    for ((call, was_answered), batch) in calls.into_iter().zip(notes.chunks(3)) {
        let receipt = publish_as(scene, &idempotency_key(process, call), batch).await;
        if was_answered {
            assert!(receipt.is_duplicate(), "call {call} was stored a second time");
        } else {
            scene.fleet.ledger.write(Fact::PublishOk { call });
        }
    }
}

/// Stores a delivery for the first handler that no publisher would make, and answers with the id of its event. What is
/// found of it later may be something else.
async fn store(scene: &mut Scene, key: &str, payload: &[u8], found: &[u8]) -> EventId {
    let number = scene.note(key).number;
    let id = id_of(number);
    let events = vec![Published {
        event: number,
        key: Some(key.to_owned()),
        hash: hash(found),
        handlers: vec![FIRST.to_owned()],
        is_garbage: true,
    }];
    let call = 800_000 + number;
    scene.fleet.garbage.insert(id, number);
    scene.fleet.ledger.write(Fact::PublishIntent { call, publisher: 0, delay: 0, events });
    let envelope = Envelope {
        id,
        name: "suite.note".into(),
        version: 1,
        key: Some(key.into()),
        payload: payload.to_vec().into(),
        headers: None,
        published_at: scene.fleet.bus.environment().clock.now(),
    };
    let publication = Publication {
        events: vec![Addressed { envelope, handlers: [Arc::from(FIRST)].into() }],
        delay: Duration::ZERO,
        idempotency_key: None,
        location: Location::caller(),
    };
    scene.fleet.bus.backend().publish(publication).await.unwrap();
    scene.fleet.ledger.write(Fact::PublishOk { call });
    id
}

/// An id that tells its number.
fn id_of(number: u64) -> EventId {
    format!("01990000-0000-7000-8000-{number:012x}").parse().unwrap()
}

/// Shows: what cannot be decoded goes to the dead letters at once, as it was, with the reason; what stands behind it in its
/// key goes on, also when the worker dies over it.
async fn garbage(scene: &mut Scene) -> Vec<Node> {
    let whole = event_bus::codec::encode(&scene.note("s1")).unwrap();
    let mut random = scene.random.fork();
    let noise: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(300).collect();
    let payloads =
        [noise, whole[..whole.len() / 2].to_vec(), Vec::new(), vec![0xa0], b"{\"number\":1}".to_vec()];
    for _ in 0..scene.pace.size(3, 20, 20) {
        let notes = scene.notes(16, 8, Duration::from_millis(2));
        scene.fleet.publish(&notes).await;
        for (position, payload) in payloads.iter().enumerate() {
            store(scene, &format!("s{position}"), payload, payload).await;
        }
        let notes = scene.notes(16, 8, Duration::from_millis(2));
        scene.fleet.publish(&notes).await;
    }
    spoil(scene).await;
    let one = scene.worker().await;
    scene.until_more(20).await;
    let two = scene.worker().await;
    one.kill().await;
    scene.rest().await;
    let expected = scene.fleet.garbage.len() as u64;
    let dead = scene.dead_of(FIRST).await;
    assert_eq!(dead, expected, "not all that cannot be decoded lies in the dead letters");
    vec![two]
}

/// Events that were whole when they were published, and are not any more: somebody has written into the store itself, where
/// one can.
async fn spoil(scene: &mut Scene) {
    if !matches!(scene.medium, Medium::Sqlite | Medium::Postgres) {
        return;
    }
    const SPOILED: [u8; 3] = [0xff, 0x00, 0xff];
    let whole = event_bus::codec::encode(&scene.note("s2")).unwrap();
    for _ in 0..5 {
        let id = store(scene, "s2", &whole, &SPOILED).await;
        let event = id.as_uuid();
        let changed = match scene.medium {
            Medium::Sqlite => {
                let sql = format!(
                    "update event_bus_delivery set payload = x'ff00ff' where event_id = x'{}'",
                    event.simple()
                );
                let mut connection = SqliteConnection::connect(&scene.store.own_url).await.unwrap();
                sqlx::query(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap().rows_affected()
            }
            _ => {
                let sql =
                    format!("update event_bus.delivery set payload = '\\xff00ff' where event_id = '{event}'");
                let mut connection = PgConnection::connect(&scene.store.own_url).await.unwrap();
                sqlx::query(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap().rows_affected()
            }
        };
        assert_eq!(changed, 1, "the store has no such delivery");
    }
}

/// Shows: what the workers do not know yet waits without being retried to death and stands in nobody's way; the next
/// release runs it, in order, and what is older as well.
async fn deploy(scene: &mut Scene) -> Vec<Node> {
    let old = scene.worker().await;
    let count = scene.pace.size(40, 200, 200);
    // A worker that does not know an event looks again half a minute later.
    let later = scene.pace.size(0, 20, 20);
    for position in 0..count {
        let key = format!("s{}", position % 5);
        // A handler that only the next release has.
        let note = scene.note(&key).read_by(THIRD);
        scene.fleet.publish(&[note]).await;
        if position < later {
            // An event that only the next release knows, for a handler that there is, on a key of its own.
            let note = scene.note("later").read_by(FIRST);
            publish_later(scene, &note).await;
        }
        let known = scene.note(&key).read_by(FIRST);
        scene.fleet.publish(&[known]).await;
    }
    // All that is known runs, although the other stands before it in the store.
    until_left(scene, FIRST, later).await;
    until_left(scene, THIRD, count).await;
    assert_eq!(scene.dead_of(FIRST).await + scene.dead_of(THIRD).await, 0, "what is not known is dead");
    old.kill().await;
    let handlers = HANDLERS.join(",");
    let options = ["--new", "--handlers", &*handlers];
    let one = scene.worker_with(&options).await;
    scene.fleet.until_begun(&one, 10).await;
    one.kill().await;
    let two = scene.worker_with(&options).await;
    // A process of the old release is still there for a while, and takes nothing that it does not know.
    let left_over = scene.worker().await;
    left_over.stop().await;
    vec![two]
}

/// Stores an event as the next release publishes it.
async fn publish_later(scene: &Scene, note: &Note) {
    let call = 800_000 + note.number;
    let events = vec![published(note, &HANDLERS)];
    scene.fleet.ledger.write(Fact::PublishIntent { call, publisher: 0, delay: 0, events });
    let event = Later(note.clone());
    match scene.fleet.bus.publish(&event).await {
        Ok(receipt) => {
            assert_eq!(receipt.deliveries(), 1);
            scene.fleet.ledger.write(Fact::PublishOk { call });
        }
        Err(error) => panic!("{}", event_bus::chain(&error)),
    }
}

async fn until_left(scene: &Scene, handler: &str, count: u64) {
    while scene.left_of(handler).await != count {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Shows: what a handler leaves that nobody has any more waits without harm to others, and goes by a process that takes it
/// once to give it up; then it is purged.
async fn removed_handler(scene: &mut Scene) -> Vec<Node> {
    let worker = scene.worker().await;
    let count = scene.pace.size(40, 500, 500);
    for position in 0..count {
        let key = format!("s{}", position % 5);
        let gone = scene.note(&key).read_by(THIRD);
        let known = scene.note(&key).read_by(FIRST);
        scene.fleet.publish(&[gone, known]).await;
    }
    until_left(scene, FIRST, 0).await;
    until_left(scene, THIRD, count).await;
    // A file has one working process at a time.
    worker.stop().await;
    let one = scene.worker_with(&["--handlers", THIRD, "--discards"]).await;
    scene.fleet.until_begun(&one, 10).await;
    one.kill().await;
    let two = scene.worker_with(&["--handlers", THIRD, "--discards"]).await;
    until_left(scene, THIRD, 0).await;
    two.stop().await;
    let letters = scene.fleet.dead_letters().await;
    let of_it: Vec<_> = letters.iter().filter(|dead| dead.handler == THIRD).map(|dead| dead.event).collect();
    assert_eq!(of_it.len() as u64, count);
    scene.give_up(THIRD, of_it);
    let filter = DeadLetterFilter { handler: Some(THIRD.to_owned()), ..DeadLetterFilter::default() };
    assert_eq!(scene.fleet.bus.purge(&filter).await.unwrap(), count);
    assert_eq!(scene.dead_of(THIRD).await, 0);
    vec![scene.worker().await]
}

/// Shows: a call whose publisher dies in its middle is stored whole or not at all, where that is promised; elsewhere what is
/// stored of it is in order, and nothing is stored twice or half.
async fn killed_in_a_batch(scene: &mut Scene) -> Vec<Node> {
    scene_is_empty(scene).await;
    let batch = scene.pace.size(1_000, 10_000, 10_000);
    let url = scene.store.url.clone();
    let is_atomic = scene.fleet.bus.backend().capabilities().atomic_publish;
    let (mut whole, mut none, mut parts) = (0, 0, 0);
    let mut stored = 0;
    for _ in 0..5 {
        let size = batch.to_string();
        let intents = scene.fleet.count(|fact| matches!(fact, Fact::PublishIntent { .. }));
        let publisher = scene.fleet.start_at(&url, &["--publish", &size, "--keys", "1", "--batch", &size]);
        scene
            .fleet
            .until(|facts| facts.iter().filter(|f| matches!(f, Fact::PublishIntent { .. })).count() > intents)
            .await;
        let pause = scene.random.u64(0..scene.pace.size(60, 600, 600));
        tokio::time::sleep(Duration::from_millis(pause)).await;
        publisher.kill_publisher();
        let now = stored_in_peace(scene).await;
        // One handler sees all, and so does the other: the key is the first of three. A call of a publisher that died before
        // may have been stored since it was counted.
        let grown = now - stored;
        whole += grown / (2 * batch);
        none += u64::from(grown == 0);
        if !grown.is_multiple_of(2 * batch) {
            parts += 1;
            assert!(!is_atomic, "{grown} deliveries are stored of calls of {}", 2 * batch);
        }
        stored = now;
    }
    scene.remark(format!("of 5 calls {whole} were stored whole, {none} not at all, {parts} in part"));
    vec![scene.worker().await]
}

/// Lets what the scene began with run.
async fn scene_is_empty(scene: &mut Scene) {
    let worker = scene.worker().await;
    scene.rest().await;
    worker.stop().await;
}

/// How many deliveries the store holds, once that does not change any more: the server may still be storing what its client
/// had sent before it died.
async fn stored_in_peace(scene: &Scene) -> u64 {
    let mut known = None;
    loop {
        let mut sum = 0;
        for handler in HANDLERS {
            sum += scene.left_of(handler).await;
        }
        if known.replace(sum) == Some(sum) {
            return sum;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Shows: what is too large is refused before anything is sent, with all that is in its call; what is just not too large
/// comes out as it went in, also when its worker dies; and nobody else notices.
async fn sizes(scene: &mut Scene) -> Vec<Node> {
    let limit = event_bus::Builder::MAX_EVENT_BYTES;
    let one = scene.worker().await;
    let url = scene.store.url.clone();
    let publisher = scene.publisher(&url, 90, &[]);
    for over in [1, 32 << 20] {
        let small = scene.note("s1");
        let large = of_size(scene, limit + over);
        // Not written down: if anything of it runs, it is a phantom.
        let refusal = scene.fleet.bus.publish_all(&[small, large]).await.expect_err("a refusal");
        assert_eq!(refusal.kind(), ErrorKind::InvalidEvent, "{}", event_bus::chain(&refusal));
    }
    for _ in 0..scene.pace.size(2, 5, 5) {
        for size in [limit - 1, limit] {
            let large =
                fitted(scene.note("s0").read_by(FIRST).acts([Act::Sleep(Duration::from_millis(20))]), size);
            let small = scene.note("s0");
            scene.fleet.publish(&[large, small]).await;
        }
    }
    let two = scene.worker().await;
    one.kill().await;
    publisher.ended().await;
    vec![two]
}

/// A note that takes so many bytes with its key.
fn of_size(scene: &mut Scene, size: usize) -> Note {
    fitted(scene.note("s0").read_by(FIRST), size)
}

/// The note with a text that makes it so large.
fn fitted(mut note: Note, size: usize) -> Note {
    let key = note.key.as_ref().map_or(0, String::len);
    // The length of the text is a part of the text's encoding: as long for all texts of these sizes.
    note.text = "x".repeat(100_000);
    let rest = event_bus::codec::encode(&note).unwrap().len() + key - 100_000;
    note.text = "x".repeat(size - rest);
    note
}
