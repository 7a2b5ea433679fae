//! How many deliveries there are, over AMQP alone: the broker says what lies ready in its queues, the workers say what they
//! hold of them.
//!
//! Both move while they are counted. So the queues are read, then the workers asked, then both once more; if nothing moved
//! in the workers' hands in between, what was read there and then is one picture. Waits are read before the lines into which
//! they lead, so that what ends its wait meanwhile is counted twice at worst, and never missed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use event_bus_core::backend::HandlerCounts;
use event_bus_core::{ErrorKind, Result, codec};
use futures_util::StreamExt as _;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::time::Instant;

use crate::backend::Shared;
use crate::error::{Cause, error, not_prepared, translate};
use crate::link::{close_channel, within};
use crate::steward::{Counted, Word};
use crate::topology::{self, DELAYS_MS, short};

const OPERATION: &str = "counts";

/// How long the workers' answers are waited for before everything is asked again, for one of them may just have died. Each
/// time twice as long: they may all be slow.
const FIRST_PATIENCE: Duration = Duration::from_millis(500);

/// How often everything is read before a moving picture is good enough.
const READINGS: u32 = 8;

/// What the broker says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Queues {
    counts: BTreeMap<Arc<str>, HandlerCounts>,
    /// Queues that are served, and by how many.
    served: HashMap<String, u32>,
}

/// Counts of all handlers of the bus.
pub(crate) async fn counts(shared: &Arc<Shared>) -> Result<Vec<HandlerCounts>> {
    let deadline = Instant::now() + shared.config.request_timeout;
    let handlers = shared.administration.handlers(OPERATION).await?;
    let mut asker = Asker::new(shared).await?;
    let mut answer = Err(error(
        ErrorKind::Unavailable,
        OPERATION,
        "a worker that holds deliveries did not say how many; it may be stopped or cut off",
    ));
    let mut readings = 0;
    let mut patience = FIRST_PATIENCE;
    while Instant::now() < deadline {
        let queues = asker.queues(&handlers).await?;
        if queues.served.is_empty() {
            answer = Ok(queues.counts.into_values().collect());
            break;
        }
        let Some(first) = asker.workers(&queues.served, patience).await? else {
            patience *= 2;
            continue;
        };
        let queues = asker.queues(&handlers).await?;
        let Some(second) = asker.workers(&queues.served, patience).await? else { continue };
        let stamps = |counted: &[Counted]| {
            let mut stamps: Vec<_> = counted.iter().map(|counted| (counted.worker, counted.stamp)).collect();
            stamps.sort_unstable();
            stamps
        };
        readings += 1;
        let stands_still = stamps(&first) == stamps(&second);
        let total = added(queues, &second);
        let is_empty = total.iter().all(|counts| counts.ready + counts.waiting == 0);
        // A picture that moves may be wrong by what moves; but "nothing" is said only when it is certain.
        if stands_still || (readings >= READINGS && !is_empty) {
            answer = Ok(total);
            break;
        }
    }
    asker.close().await;
    answer
}

fn added(queues: Queues, workers: &[Counted]) -> Vec<HandlerCounts> {
    let mut counts = queues.counts;
    for queue in workers.iter().flat_map(|counted| &counted.queues) {
        if let Some(counts) = counts.get_mut(&*queue.handler) {
            counts.ready += queue.ready;
            counts.waiting += queue.waiting;
        }
    }
    counts.into_values().collect()
}

struct Asker<'s> {
    shared: &'s Arc<Shared>,
    channel: Channel,
    reply_to: String,
    answers: Consumer,
}

impl<'s> Asker<'s> {
    async fn new(shared: &'s Arc<Shared>) -> Result<Self> {
        let limit = shared.config.request_timeout;
        let channel = shared.administration.channel(OPERATION).await?;
        let options =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let queue =
            within(limit, OPERATION, channel.queue_declare(short(""), options, FieldTable::default()))
                .await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consume = channel.basic_consume(queue.name().clone(), short(""), options, FieldTable::default());
        let answers = within(limit, OPERATION, consume).await?;
        Ok(Self { shared, channel, reply_to: queue.name().to_string(), answers })
    }

    async fn close(self) {
        close_channel(&self.channel, self.shared.config.request_timeout).await;
    }

    async fn queues(&self, handlers: &[Arc<str>]) -> Result<Queues> {
        let names = &self.shared.names;
        // In the order of a delivery's way, so that none is missed while it goes on.
        let mut asked: Vec<(Arc<str>, What, String)> = Vec::new();
        for handler in handlers {
            for delay in DELAYS_MS.iter().rev() {
                asked.push((handler.clone(), What::Waiting, names.delay_queue(*delay, handler)));
            }
        }
        for handler in handlers {
            for place in names.places() {
                asked.push((handler.clone(), What::Line, names.queue(place, handler)));
            }
            asked.push((handler.clone(), What::Dead, names.dead(handler)));
        }
        let queues: Vec<_> = asked.iter().map(|(_, _, queue)| queue.clone()).collect();
        let looked = tokio::time::timeout(
            self.shared.config.request_timeout,
            topology::look_at_all(&self.channel, &queues),
        );
        let looked = match looked.await {
            Ok(looked) => looked.map_err(|failure| match Cause::of(&failure) {
                Cause::NotFound => not_prepared(OPERATION, names.namespace()),
                _ => translate(OPERATION, &failure),
            })?,
            Err(_) => return Err(crate::error::no_answer(OPERATION)),
        };
        let mut all = Queues::default();
        for ((handler, what, queue), (messages, consumers)) in asked.into_iter().zip(looked) {
            let counts = all.counts.entry(handler.clone()).or_insert_with(|| HandlerCounts {
                handler: handler.to_string(),
                ..HandlerCounts::default()
            });
            match what {
                What::Waiting => counts.waiting += u64::from(messages),
                What::Dead => counts.dead += u64::from(messages),
                What::Line => {
                    counts.ready += u64::from(messages);
                    if consumers > 0 {
                        all.served.insert(queue, consumers);
                    }
                }
            }
        }
        Ok(all)
    }

    /// What the workers hold; `None` if not all that serve a queue have answered in time.
    async fn workers(
        &mut self,
        served: &HashMap<String, u32>,
        patience: Duration,
    ) -> Result<Option<Vec<Counted>>> {
        let question = fastrand::u64(..);
        let word = Word::Count { question, reply_to: self.reply_to.clone() };
        let body = codec::encode(&word).map_err(|text| error(ErrorKind::Corrupt, OPERATION, text))?;
        let shared = self.shared;
        let letter = shared.post.note(&shared.names.presence(), "", format!("count/{question}"), body);
        let deadline = Instant::now() + patience;
        if shared.notes.send(OPERATION, [letter].into(), deadline).await.is_err() {
            return Ok(None);
        }
        let mut open = served.clone();
        let mut counted: Vec<Counted> = Vec::new();
        while !open.is_empty() {
            let Ok(next) = tokio::time::timeout_at(deadline, self.answers.next()).await else {
                return Ok(None);
            };
            let Some(Ok(message)) = next else {
                return Err(error(ErrorKind::Unavailable, OPERATION, "the channel was lost"));
            };
            let Ok(answer) = ciborium::from_reader::<Counted, _>(&*message.data) else { continue };
            if answer.question != question {
                continue;
            }
            for queue in &answer.queues {
                if let Some(consumers) = open.get_mut(&queue.queue) {
                    *consumers -= 1;
                    if *consumers == 0 {
                        open.remove(&queue.queue);
                    }
                }
            }
            counted.push(answer);
        }
        Ok(Some(counted))
    }
}

#[derive(Clone, Copy, Debug)]
enum What {
    Waiting,
    Line,
    Dead,
}
