//! What befalls RabbitMQ alone.

use std::any::Any;
use std::collections::BTreeMap;
use std::time::Duration;

use event_bus::backend::DeadLetterFilter;
use futures_util::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, BasicQosOptions,
    ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde::{Deserialize, Serialize};

use super::super::medium::Medium;
use super::super::scene::Scene;
use super::not_rabbitmq;
use crate::fleet::Node;
use crate::history::Fact;
use crate::servers::RabbitMq;
use crate::suite::actor::FIRST;
use crate::suite::{Act, Note, note};

super::rows! {
    "Q1" "kill -9 with full hands and a consumer that waits, twice in a row" killed_with_full_hands, why_not: not_rabbitmq;
    "Q2" "workers leave in peace with full hands" left_with_full_hands, why_not: not_rabbitmq;
    "Q3" "workers of another version, prefetch, routing or number of partitions" unlike_the_others, why_not: not_rabbitmq;
    "Q4" "memory alarm and disk alarm under load" alarmed, why_not: not_rabbitmq;
    "Q5" "queues, bindings and exchanges are deleted" deleted, why_not: not_rabbitmq;
    "Q6" "a consumer_timeout shorter than a wait, with recycling and without" timed_out, why_not: not_rabbitmq;
    "Q7" "a policy limits deliveries to three" limited, why_not: not_rabbitmq, expects: [Attempts];
    "Q8" "a channel error of one queue; a message beyond the broker's limit" erroneous, why_not: not_rabbitmq;
    "Q9" "a slot moves to another queue under load" never, why_not: no_repartitioning;
    "Q10" "three nodes: the leaders' node is killed, then another one stopped" clustered, why_not: not_rabbitmq;
    "S2R" "a clean restart moves no key to another queue" routed_as_before, why_not: not_rabbitmq;
}

/// How many deliveries a queue hands out, whoever consumes.
const PREFETCH: usize = 1_000;

/// Of the medium.
const PARTITIONS: usize = 4;

/// Between two looks at the broker.
const LOOK: Duration = Duration::from_millis(20);

/// The numbers of notes that are given out by hand begin here.
const BY_HAND: u64 = 900_000;

fn no_repartitioning(medium: Medium) -> Option<&'static str> {
    not_rabbitmq(medium).or(Some(
        "the number of partitions of a bus is fixed: another one is refused with the way out, see Q3",
    ))
}

/// Never called: [`no_repartitioning`].
async fn never(_: &mut Scene) -> Vec<Node> {
    Vec::new()
}

fn broker(scene: &Scene) -> &RabbitMq {
    let server: &dyn Any = scene.store.server();
    server.downcast_ref().expect("a medium whose server is RabbitMQ")
}

fn queue(rest: &str) -> String {
    format!("event-bus.v1.{rest}")
}

/// The queues of the first handler's partitions.
fn partitions() -> Vec<String> {
    (0..PARTITIONS).map(|number| queue(&format!("p{number}.{FIRST}"))).collect()
}

/// The bare driver.
async fn bare(url: &str) -> (Connection, Channel) {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

/// How many messages lie in the partitions' queues.
async fn messages(server: &RabbitMq) -> Vec<u32> {
    let (connection, channel) = bare(server.url()).await;
    let mut counts = Vec::new();
    for queue in partitions() {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let looked = channel.queue_declare(queue.into(), options, FieldTable::default()).await.unwrap();
        counts.push(looked.message_count());
    }
    connection.close(200, "done".into()).await.unwrap();
    counts
}

/// All in one queue: its hands are full soon, and what two of them leave behind runs one by one afterwards.
async fn killed_with_full_hands(scene: &mut Scene) -> Vec<Node> {
    let one = scene.worker().await;
    scene.rest().await;
    let proxy = scene.proxy().await;
    let (_connection, channel) = bare(&proxy.url(broker(scene).url())).await;
    channel.basic_qos(PREFETCH as u16, BasicQosOptions::default()).await.unwrap();
    let options = BasicConsumeOptions::default();
    let queue = partitions().swap_remove(0);
    let waiting = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
    let mut waiting = waiting.await.unwrap();
    let is_there = |key: &String| usize::from(event_bus::slot(key)) % PARTITIONS == 0;
    let keys: Vec<_> = (0..).map(|number| format!("q{number}")).filter(is_there).take(8).collect();
    for _ in 0..4 {
        let mut notes = scene.notes(500, 1, Duration::from_millis(20));
        notes.iter_mut().zip(keys.iter().cycle()).for_each(|(note, key)| note.key = Some(key.clone()));
        scene.fleet.publish(&notes).await;
    }
    scene.fleet.until_begun(&one, 50).await;
    one.kill().await;
    // The broker goes on with who waits, from the first that was not acknowledged on.
    let mut last = BTreeMap::new();
    for _ in 0..PREFETCH {
        let message = waiting.next().await.expect("a consumer").unwrap();
        let note: Note = event_bus::codec::decode(1, &message.data).unwrap();
        let before = last.insert(note.key.clone(), note.number);
        assert!(before < Some(note.number), "{note:?} comes after {before:?}");
    }
    proxy.cut();
    let two = scene.worker().await;
    scene.fleet.until_begun(&two, 50).await;
    two.kill().await;
    vec![scene.worker().await]
}

/// Nobody vanishes: a repeat is a finding.
async fn left_with_full_hands(scene: &mut Scene) -> Vec<Node> {
    let heads: Vec<_> = (0..8)
        .map(|key| scene.scripted(&format!("s{key}"), [Act::FailFor(Duration::from_secs(2)), Act::Succeed]))
        .collect();
    scene.fleet.publish(&heads).await;
    let mut worker = scene.worker().await;
    for _ in 0..5 {
        let notes = scene.notes(1_500, 40, Duration::from_millis(20));
        scene.fleet.publish(&notes).await;
        scene.fleet.until_begun(&worker, 20).await;
        let next = scene.worker().await;
        worker.stop().await;
        worker = next;
    }
    vec![worker]
}

async fn unlike_the_others(scene: &mut Scene) -> Vec<Node> {
    let worker = scene.worker().await;
    let notes = scene.notes(300, 8, Duration::from_millis(5));
    scene.fleet.publish(&notes).await;
    let url = scene.store.url.clone();
    let other_partitions = url.replace("partitions=4", "partitions=8");
    let others = [other_partitions, format!("{url}&prefetch=10"), format!("{url}&routing=consistent-hash")];
    for url in others {
        let other = scene.fleet.start_at(&url, &["--work"]);
        assert!(other.fails().await, "a worker starts at {url}");
    }
    let known = catalogue(scene, 99).await;
    let other = scene.fleet.start_at(&url, &["--work"]);
    assert!(other.fails().await, "a worker starts on a bus of a newer version");
    catalogue(scene, known).await;
    vec![worker, scene.worker().await]
}

/// Writes the catalogue of the bus as a binary of this version would, and answers with the version that it had.
async fn catalogue(scene: &Scene, version: u32) -> u32 {
    #[derive(Serialize, Deserialize)]
    struct Catalogue {
        version: u32,
        slots: u16,
        partitions: u16,
        routing: String,
        handlers: Vec<String>,
    }
    let queue = "event-bus.catalogue";
    let (connection, channel) = bare(broker(scene).url()).await;
    let got = loop {
        if let Some(got) = channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap() {
            break got;
        }
        // Somebody has it in hand.
        tokio::time::sleep(LOOK).await;
    };
    let mut catalogue: Catalogue = ciborium::from_reader(&*got.delivery.data).unwrap();
    let known = std::mem::replace(&mut catalogue.version, version);
    let body = event_bus::codec::encode(&catalogue).unwrap();
    let properties = BasicProperties::default().with_delivery_mode(2);
    let options = BasicPublishOptions::default();
    channel.basic_publish("".into(), queue.into(), options, &body, properties).await.unwrap();
    got.delivery.acker.ack(BasicAckOptions::default()).await.unwrap();
    connection.close(200, "done".into()).await.unwrap();
    known
}

/// Nobody loses a connection over an alarm: nothing is marked as in doubt.
async fn alarmed(scene: &mut Scene) -> Vec<Node> {
    const ALARMS: [(&[&str], &[&str]); 2] = [
        (&["set_vm_memory_high_watermark", "absolute", "1MB"], &["set_vm_memory_high_watermark", "0.4"]),
        (&["set_disk_free_limit", "900000000000000"], &["set_disk_free_limit", "1000000"]),
    ];
    let workers = vec![scene.worker().await, scene.worker().await];
    let url = format!("{}&publish_timeout_ms=1000", scene.store.url);
    let mut publisher = scene.publisher(&url, 3_000, &["--acts-of", "4"]);
    for (on, off) in ALARMS {
        let notes = scene.notes(4_000, 10, Duration::from_millis(40));
        scene.fleet.publish(&notes).await;
        scene.until_more(50).await;
        let known = refused(scene);
        broker(scene).control(on).await;
        while refused(scene) == known {
            assert!(!publisher.has_ended(), "it publishes through an alarm");
            tokio::time::sleep(LOOK).await;
        }
        // What was handed out goes on all the while.
        scene.until_more(20).await;
        broker(scene).control(off).await;
        let known = scene.published();
        while scene.published() < known + 5 {
            tokio::time::sleep(LOOK).await;
        }
    }
    publisher.kill_publisher();
    workers
}

/// How many publish calls did not end well.
fn refused(scene: &Scene) -> usize {
    let records = scene.fleet.history().records;
    let is_refused = |fact: &Fact| matches!(fact, Fact::PublishErr { .. } | Fact::PublishUnknown { .. });
    records.iter().filter(|record| is_refused(&record.fact)).count()
}

async fn deleted(scene: &mut Scene) -> Vec<Node> {
    let workers = vec![scene.worker().await, scene.worker().await];
    let (_connection, channel) = bare(broker(scene).url()).await;
    // What lies in a queue goes with it: they are deleted when they are empty.
    for name in ["dead", "p0", "p1", "journal.p2", "free", "suspect", "journal.suspect", "delay.256"] {
        scene.rest().await;
        let name = queue(&format!("{name}.{FIRST}"));
        channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
        burst(scene).await;
        scene.rest().await;
    }
    let url = scene.store.url.clone();
    let mut publisher = scene.publisher(&url, 1_500, &[]);
    let exchange = queue("in");
    let until_more = async |scene: &Scene, publisher: &mut Node| {
        let wanted = scene.published() + 20;
        while scene.published() < wanted && !publisher.has_ended() {
            tokio::time::sleep(LOOK).await;
        }
    };
    while !publisher.has_ended() {
        until_more(scene, &mut publisher).await;
        for number in [0, 2] {
            let queue = queue(&format!("p{number}.{FIRST}"));
            let key = format!("{}.p{number}", FIRST.replace('.', "/"));
            let (queue, exchange) = (queue.as_str().into(), exchange.as_str().into());
            channel.queue_unbind(queue, exchange, key.into(), FieldTable::default()).await.unwrap();
        }
        until_more(scene, &mut publisher).await;
        let options = ExchangeDeleteOptions::default();
        channel.exchange_delete(exchange.as_str().into(), options).await.unwrap();
        until_more(scene, &mut publisher).await;
    }
    publisher.ended().await;
    assert_eq!(refused(scene), 0, "what was deleted is declared anew before a publish gives up");
    workers
}

/// Events for every queue of a handler.
async fn burst(scene: &mut Scene) {
    let wait = Duration::from_millis(400);
    let mut notes = scene.notes(40, 8, Duration::ZERO);
    notes.push(scene.scripted("s1", [Act::FailFor(wait), Act::Succeed]));
    notes.push(scene.scripted("s2", [Act::Discard]));
    let mut free = scene.scripted("", [Act::FailFor(wait), Act::Succeed]);
    free.key = None;
    notes.push(free);
    notes.extend(scene.notes(40, 8, Duration::ZERO));
    scene.fleet.publish(&notes).await;
}

async fn timed_out(scene: &mut Scene) -> Vec<Node> {
    const TIMED_OUT: &str = "delivery acknowledgement on channel";
    for (name, value) in [("consumer_timeout", "4000"), ("channel_tick_interval", "500")] {
        broker(scene).control(&["eval", &format!("application:set_env(rabbit, {name}, {value}).")]).await;
    }
    let waits = async |scene: &mut Scene| {
        let wait = Duration::from_secs(9);
        let mut notes = vec![scene.scripted("s1", [Act::FailFor(wait), Act::Succeed])];
        notes.extend(scene.notes(40, 4, Duration::ZERO));
        scene.fleet.publish(&notes).await;
    };
    let url = format!("{}&recycle_after_s=2", scene.store.url);
    let worker = scene.fleet.worker_at(&url, &[]).await;
    waits(scene).await;
    scene.rest().await;
    worker.stop().await;
    let log = broker(scene).logs().await;
    assert!(!log.contains(TIMED_OUT), "the broker closed a channel, although queues change hands before");
    let worker = scene.worker().await;
    waits(scene).await;
    scene.in_doubt(&[worker.number], scene.rest()).await;
    assert!(broker(scene).logs().await.contains(TIMED_OUT), "the broker's limit was never reached");
    vec![worker]
}

/// Whoever sets such a policy sees deliveries die that never ran, and loses none of them. (What ran in each of the workers and
/// then once more has run more often than it may.)
async fn limited(scene: &mut Scene) -> Vec<Node> {
    let policy = ["set_policy", "limit", "^event-bus", "{\"delivery-limit\":3}", "--apply-to", "queues"];
    broker(scene).control(&policy).await;
    let notes = scene.notes(1_000, 10, Duration::from_millis(5));
    scene.fleet.publish(&notes).await;
    for _ in 0..4 {
        let worker = scene.worker().await;
        scene.fleet.until_begun(&worker, 5).await;
        worker.kill().await;
    }
    let worker = scene.worker().await;
    scene.rest().await;
    broker(scene).control(&["clear_policy", "limit"]).await;
    let all = DeadLetterFilter::default();
    let dead = scene.fleet.bus.dead_letters(&all, None, 1).await.unwrap();
    let why = dead.first().expect("the broker gave none of them up").errors.entries();
    assert!(why.iter().any(|error| error.message.contains("delivery_limit")), "{why:?}");
    scene.fleet.bus.replay(&all).await.unwrap();
    vec![worker]
}

async fn erroneous(scene: &mut Scene) -> Vec<Node> {
    // Channels that are opened from now on take smaller messages than the bus sends.
    broker(scene).control(&["eval", "application:set_env(rabbit, max_message_size, 100000)."]).await;
    broker(scene).control(&["close_all_connections", "as the row says"]).await;
    let worker = scene.worker().await;
    let notes = scene.notes(1_500, 20, Duration::from_millis(10));
    scene.fleet.publish(&notes).await;
    scene.until_more(20).await;
    let before = workers_connections(broker(scene)).await;
    // An acknowledgement of what was acknowledged before: the broker closes the channel of this one queue.
    let again = format!(
        "[rabbit_channel:do(proplists:get_value(channel_pid, C), {{'basic.ack', 1, false}}) || C <- \
         rabbit_amqqueue:consumers_all(<<\"/\">>), element(4, proplists:get_value(queue_name, C)) =:= <<\"{}\">>].",
        &partitions()[1]
    );
    let told = broker(scene).control(&["eval", &again]).await;
    assert!(told.contains("ok"), "nobody consumes: {told}");
    let error = async {
        while !broker(scene).logs().await.contains("unknown delivery tag") {
            tokio::time::sleep(LOOK).await;
        }
    };
    scene.in_doubt(&[worker.number], error).await;
    let small: Vec<_> = (0..6).map(|_| scene.notes(20, 20, Duration::ZERO)).collect();
    let mut big = vec![note(BY_HAND).key("s1").read_by(FIRST)];
    big[0].text = "x".repeat(200_000);
    let known = scene.published();
    let fleet = &scene.fleet;
    let all = small.iter().take(3).chain([&big]).chain(small.iter().skip(3));
    futures_util::future::join_all(all.map(|notes| fleet.publish(notes))).await;
    assert_eq!((scene.published() - known, refused(scene)), (6, 1), "one is refused, and no other one");
    scene.rest().await;
    assert_eq!(workers_connections(broker(scene)).await, before, "one channel heals alone");
    vec![worker]
}

/// The connections over which workers consume.
async fn workers_connections(server: &RabbitMq) -> Vec<String> {
    let arguments = ["list_connections", "--quiet", "--no-table-headers", "pid", "client_properties"];
    let text = server.control(&arguments).await;
    let mut connections: Vec<_> =
        text.lines().filter(|line| line.contains("(worker)")).map(str::to_owned).collect();
    connections.sort_unstable();
    assert!(!connections.is_empty(), "no worker is connected: {text}");
    connections
}

async fn clustered(scene: &mut Scene) -> Vec<Node> {
    let first = broker(scene);
    let second = first.start_beside().await;
    let third = first.start_beside().await;
    // The bus was prepared on one node; its queues get members on the others, and their leaders move.
    for node in [&second, &third] {
        let grow = format!("rabbit_quorum_queue:grow('{}', <<\".*\">>, <<\".*\">>, all).", node.node_name());
        first.control(&["eval", &grow]).await;
    }
    let lead = format!(
        "[rabbit_quorum_queue:transfer_leadership(Q, '{}') || Q <- rabbit_amqqueue:list_by_type(rabbit_quorum_queue)].",
        second.node_name()
    );
    first.control(&["eval", &lead]).await;
    let query = scene.store.url.split_once('?').expect("options").1.to_owned();
    let at = |server: &RabbitMq| format!("{}?{query}", server.url());
    let (at_first, at_third) = (scene.store.url.clone(), at(&third));
    let one = scene.fleet.worker_at(&at_first, &[]).await;
    let two = scene.fleet.worker_at(&at_third, &[]).await;
    let numbers = [one.number, two.number];
    // More than it comes to: it goes on through everything.
    let publisher = scene.publisher(&at_third, 100_000, &["--acts-of", "5"]);
    scene.until_more(50).await;
    // They consume from leaders that vanish: who holds what is the same afterwards.
    second.kill().await;
    scene.in_doubt(&numbers, scene.until_more(200)).await;
    second.restart().await;
    scene.in_doubt(&numbers, scene.until_more(50)).await;
    second.pause().await;
    let lasts = scene.medium.lease() * 2;
    scene.in_doubt(&numbers, tokio::time::sleep(lasts)).await;
    second.resume().await;
    scene.in_doubt(&numbers, scene.until_more(50)).await;
    publisher.kill_publisher();
    scene.in_doubt(&numbers, scene.rest()).await;
    // A queue answers while most of its members are there.
    scene.kept.extend([Box::new(second) as Box<dyn Any + Send + Sync>, Box::new(third)]);
    vec![one, two]
}

async fn routed_as_before(scene: &mut Scene) -> Vec<Node> {
    let publish = async |scene: &mut Scene| {
        let before = messages(broker(scene)).await;
        let notes = scene.notes(200, 200, Duration::ZERO);
        scene.fleet.publish(&notes).await;
        let after = messages(broker(scene)).await;
        after.iter().zip(before).map(|(after, before)| after - before).collect::<Vec<_>>()
    };
    let before = publish(scene).await;
    scene.store.server().stop().await;
    scene.store.server().restart().await;
    assert_eq!(publish(scene).await, before, "keys moved");
    assert_eq!(before.iter().sum::<u32>(), 200);
    vec![scene.worker().await]
}
