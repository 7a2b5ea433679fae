//! Names, arguments and bindings of everything this backend keeps on the broker, and how it is declared.
//!
//! ```text
//!                 ┌─ <handler>.p<i> ──► p<i>  (one active consumer) ── journal.p<i>
//! publisher ─► in ┼─ <handler>.free ──► free  (any number of consumers)
//!   (direct)      ├─ <handler>.suspect► suspect (one active consumer) ── journal.suspect
//!                 └─ <handler>.dead ──► dead
//!            delay.<ms> (topic) ─► delay.<ms>.<handler> ── after <ms> ──► in, under the same routing key
//!            presence (fanout)  ─► one queue a worker
//! ```
//!
//! With [`Routing::ConsistentHash`] the key `<handler>.keyed` leads to the handler's own hash exchange, which spreads over
//! the partition queues by the header [`KEY`](crate::wire::KEY).

use std::sync::Arc;

use event_bus_core::{Result, SLOTS, slot};
use futures_util::future::try_join_all;
use lapin::options::{ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, ExchangeKind};

use crate::config::{AmqpConfig, Routing};
use crate::error::translate;
use crate::wire::KEY;

/// The version of the topology. Part of every name: two versions never share a queue.
pub(crate) const VERSION: u32 = 1;

/// How many deliveries a partition queue hands out unacknowledged. The same for every consumer, for ever: what a consumer
/// leaves behind comes back in order only if the next one takes at least as many at once.
pub(crate) const PREFETCH: u16 = 1_000;

/// Explicit and endless. Without a limit what is given back goes to the end of the queue on brokers before 4.0; the default
/// from 4.0 on (20) buries what never ran; and -1 makes 3.10 drop what comes back.
const DELIVERY_LIMIT: i64 = 2_147_483_647;

/// The delays that queues can wait, in milliseconds: powers of four from 256 ms to 18.6 hours. Longer waits take several
/// rounds; what is left below the first is waited for in the worker. Time to live ends at the head of a queue only, so each
/// length has its own.
pub(crate) const DELAYS_MS: [u64; 10] =
    [1 << 8, 1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26];

/// How many channels declare at once: 64 quorum queues take 0.27 s by eight, 0.46 s one by one.
const DECLARING_CHANNELS: usize = 4;

/// How many queues are looked at together.
const ASKED_AT_ONCE: usize = 64;

/// Which of a handler's queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Place {
    /// Deliveries with a key, one of [`AmqpConfig::partitions`] parts.
    Partition(u16),
    /// Free deliveries whose worker may have died of them.
    Suspect,
    /// Free deliveries.
    Free,
}

impl Place {
    /// The longest wait for which there is a queue, if the wait is long enough for any.
    pub(crate) fn delay_for(wait_ms: u64) -> Option<u64> {
        DELAYS_MS.iter().rev().find(|level| **level <= wait_ms).copied()
    }
}

/// What everything is called.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    namespace: Arc<str>,
    partitions: u16,
    routing: Routing,
}

impl Names {
    pub(crate) fn new(config: &AmqpConfig) -> Self {
        Self { namespace: config.namespace.clone(), partitions: config.partitions, routing: config.routing }
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Holds one message: what this bus is. Without a version in its name, so that every version finds it.
    pub(crate) fn catalogue(&self) -> String {
        format!("{}.catalogue", self.namespace)
    }

    /// Holds a message for each change of the catalogue, which nobody takes out: how many there are says whether what is
    /// known of the catalogue is still true.
    pub(crate) fn changes(&self) -> String {
        format!("{}.changes", self.namespace)
    }

    /// The queue whose exclusive owner may change the catalogue and take dead letters out.
    pub(crate) fn lock(&self) -> String {
        format!("{}.lock", self.namespace)
    }

    fn versioned(&self, rest: std::fmt::Arguments<'_>) -> String {
        format!("{}.v{VERSION}.{rest}", self.namespace)
    }

    pub(crate) fn entry(&self) -> String {
        self.versioned(format_args!("in"))
    }

    pub(crate) fn presence(&self) -> String {
        self.versioned(format_args!("presence"))
    }

    pub(crate) fn delay_exchange(&self, delay_ms: u64) -> String {
        self.versioned(format_args!("delay.{delay_ms}"))
    }

    pub(crate) fn delay_queue(&self, delay_ms: u64, handler: &str) -> String {
        self.versioned(format_args!("delay.{delay_ms}.{handler}"))
    }

    fn hash_exchange(&self, handler: &str) -> String {
        self.versioned(format_args!("hash.{handler}"))
    }

    pub(crate) fn queue(&self, place: Place, handler: &str) -> String {
        match place {
            Place::Partition(number) => self.versioned(format_args!("p{number}.{handler}")),
            Place::Suspect => self.versioned(format_args!("suspect.{handler}")),
            Place::Free => self.versioned(format_args!("free.{handler}")),
        }
    }

    /// Where the owner of a queue keeps what it must remember; free deliveries have no owner.
    pub(crate) fn journal(&self, place: Place, handler: &str) -> Option<String> {
        match place {
            Place::Partition(number) => Some(self.versioned(format_args!("journal.p{number}.{handler}"))),
            Place::Suspect => Some(self.versioned(format_args!("journal.suspect.{handler}"))),
            Place::Free => None,
        }
    }

    pub(crate) fn dead(&self, handler: &str) -> String {
        self.versioned(format_args!("dead.{handler}"))
    }

    /// All queues from which a worker takes deliveries of a handler.
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> + use<> {
        (0..self.partitions).map(Place::Partition).chain([Place::Suspect, Place::Free])
    }

    /// The routing key that leads a delivery with this key to its place.
    pub(crate) fn route(&self, handler: &str, key: Option<&str>) -> String {
        match (key, self.routing) {
            (None, _) => route_to(handler, Place::Free),
            (Some(key), Routing::Direct) => {
                route_to(handler, Place::Partition(slot(key) % self.partitions.max(1)))
            }
            (Some(_), Routing::ConsistentHash) => format!("{}.keyed", word(handler)),
        }
    }

    /// The routing key of the dead letters.
    pub(crate) fn route_to_dead(handler: &str) -> String {
        format!("{}.dead", word(handler))
    }
}

/// A handler's name as one word of a topic: its dots as slashes, which no name contains.
fn word(handler: &str) -> String {
    handler.replace('.', "/")
}

/// The routing key that leads to this very queue.
pub(crate) fn route_to(handler: &str, place: Place) -> String {
    let handler = word(handler);
    match place {
        Place::Partition(number) => format!("{handler}.p{number}"),
        Place::Suspect => format!("{handler}.suspect"),
        Place::Free => format!("{handler}.free"),
    }
}

/// A name as the protocol wants it. All names are short: see the limits of namespaces and handler names.
pub(crate) fn short(name: impl Into<String>) -> ShortString {
    ShortString::try_new(name).unwrap_or_default()
}

fn text(value: impl Into<Vec<u8>>) -> AMQPValue {
    AMQPValue::LongString(value.into().into())
}

fn table(entries: impl IntoIterator<Item = (&'static str, AMQPValue)>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert(short(name), value);
    }
    table
}

fn quorum(more: impl IntoIterator<Item = (&'static str, AMQPValue)>) -> FieldTable {
    let always =
        [("x-queue-type", text("quorum")), ("x-delivery-limit", AMQPValue::LongLongInt(DELIVERY_LIMIT))];
    table(always.into_iter().chain(more))
}

fn number(value: u64) -> AMQPValue {
    AMQPValue::LongLongInt(i64::try_from(value).unwrap_or(i64::MAX))
}

/// A queue to be, and where it is bound.
struct Declared {
    name: String,
    arguments: FieldTable,
    /// Exchange and routing key.
    binding: Option<(String, String)>,
}

/// Declares the queue of the catalogue, and that of its changes.
pub(crate) async fn declare_catalogue(channel: &Channel, names: &Names) -> lapin::Result<()> {
    declare_queue(channel, &names.changes(), quorum([])).await?;
    declare_queue(channel, &names.catalogue(), quorum([])).await
}

/// Declares what all handlers share.
pub(crate) async fn declare_shared(channel: &Channel, names: &Names) -> Result<()> {
    let declare = |name: String, kind| {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        channel.exchange_declare(short(name), kind, options, FieldTable::default())
    };
    let shared =
        [declare(names.entry(), ExchangeKind::Direct), declare(names.presence(), ExchangeKind::Fanout)];
    let delays = DELAYS_MS.iter().map(|delay| declare(names.delay_exchange(*delay), ExchangeKind::Topic));
    try_join_all(shared.into_iter().chain(delays)).await.map_err(|failure| translate("migrate", &failure))?;
    Ok(())
}

/// Declares all queues of these handlers.
pub(crate) async fn declare_handlers(
    connection: &Connection,
    names: &Names,
    handlers: &[Arc<str>],
) -> lapin::Result<()> {
    let mut queues = Vec::new();
    for handler in handlers {
        queues.extend(queues_of(names, handler));
    }
    let share = queues.len().div_ceil(DECLARING_CHANNELS).max(1);
    let declaring = queues.chunks(share).map(|queues| async move {
        let channel = connection.create_channel().await?;
        for queue in queues {
            declare_queue(&channel, &queue.name, queue.arguments.clone()).await?;
            if let Some((exchange, key)) = &queue.binding {
                bind(&channel, &queue.name, exchange, key).await?;
            }
        }
        channel.close(200, short("done")).await
    });
    try_join_all(declaring).await?;
    if names.routing == Routing::ConsistentHash {
        let channel = connection.create_channel().await?;
        for handler in handlers {
            declare_hash(&channel, names, handler).await?;
        }
        channel.close(200, short("done")).await?;
    }
    Ok(())
}

fn queues_of(names: &Names, handler: &str) -> Vec<Declared> {
    let entry = names.entry();
    let mut queues = Vec::new();
    for place in names.places() {
        // What the broker itself gives up, as a policy from outside may tell it to, becomes a dead letter and is not lost.
        let mut arguments = quorum([
            ("x-dead-letter-exchange", text(entry.clone())),
            ("x-dead-letter-routing-key", text(Names::route_to_dead(handler))),
            ("x-dead-letter-strategy", text("at-least-once")),
            ("x-overflow", text("reject-publish")),
        ]);
        if place != Place::Free {
            arguments.insert(short("x-single-active-consumer"), AMQPValue::Boolean(true));
        }
        let is_hashed = matches!(place, Place::Partition(_)) && names.routing == Routing::ConsistentHash;
        let binding = (entry.clone(), route_to(handler, place));
        queues.push(Declared { name: names.queue(place, handler), arguments, binding: Some(binding) });
        if is_hashed && let Some(last) = queues.last_mut() {
            last.binding = None;
        }
        if let Some(journal) = names.journal(place, handler) {
            // Keeps exactly the newest, also when its writer is killed between writing the new one and acknowledging the
            // one before.
            let newest = [("x-max-length", number(1)), ("x-overflow", text("drop-head"))];
            queues.push(Declared { name: journal, arguments: quorum(newest), binding: None });
        }
    }
    let dead = Names::route_to_dead(handler);
    queues.push(Declared {
        name: names.dead(handler),
        arguments: quorum([]),
        binding: Some((entry.clone(), dead)),
    });
    for delay in DELAYS_MS {
        let arguments = quorum([
            ("x-message-ttl", number(delay)),
            ("x-dead-letter-exchange", text(entry.clone())),
            ("x-dead-letter-strategy", text("at-least-once")),
            ("x-overflow", text("reject-publish")),
        ]);
        let binding = (names.delay_exchange(delay), format!("{}.*", word(handler)));
        queues.push(Declared { name: names.delay_queue(delay, handler), arguments, binding: Some(binding) });
    }
    queues
}

async fn declare_queue(channel: &Channel, name: &str, arguments: FieldTable) -> lapin::Result<()> {
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(short(name), options, arguments).await.map(drop)
}

async fn bind(channel: &Channel, queue: &str, exchange: &str, key: &str) -> lapin::Result<()> {
    let options = QueueBindOptions::default();
    channel.queue_bind(short(queue), short(exchange), short(key), options, FieldTable::default()).await
}

/// The handler's own hash exchange. Its queues are bound in the order of their numbers, one after the other: bound so, no
/// key moved over restarts of 3.10 in our measurements, and nearly all did in other orders.
async fn declare_hash(channel: &Channel, names: &Names, handler: &str) -> lapin::Result<()> {
    let exchange = names.hash_exchange(handler);
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let kind = ExchangeKind::Custom("x-consistent-hash".to_owned());
    channel.exchange_declare(short(&*exchange), kind, options, table([("hash-header", text(KEY))])).await?;
    for number in 0..names.partitions {
        bind(channel, &names.queue(Place::Partition(number), handler), &exchange, "1").await?;
    }
    let key = format!("{}.keyed", word(handler));
    let options = ExchangeBindOptions::default();
    channel
        .exchange_bind(short(exchange), short(names.entry()), short(key), options, FieldTable::default())
        .await
}

/// How many messages lie ready in a queue, and how many consumers are served from it. `None` if there is no such queue; the
/// channel is closed then.
pub(crate) async fn look(channel: &Channel, queue: &str) -> lapin::Result<(u32, u32)> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare(short(queue), options, FieldTable::default()).await?;
    Ok((queue.message_count(), queue.consumer_count()))
}

/// [`look`] for many queues, some questions on their way at a time, in the order of the names.
pub(crate) async fn look_at_all(channel: &Channel, queues: &[String]) -> lapin::Result<Vec<(u32, u32)>> {
    let mut counts = Vec::with_capacity(queues.len());
    for part in queues.chunks(ASKED_AT_ONCE) {
        let looks: Vec<_> = part.iter().map(|queue| look(channel, queue)).collect();
        counts.extend(try_join_all(looks).await?);
    }
    Ok(counts)
}

/// The slots of core as this topology knows them.
pub(crate) const fn slots() -> u16 {
    SLOTS
}
