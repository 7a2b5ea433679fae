//! Dead letters: looked at, replayed and purged over AMQP alone. Each of these holds the lock of the bus, so that no two
//! processes see half of them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use event_bus_core::backend::{DeadLetter, DeadLetterFilter, DeliveryId, EventId};
use event_bus_core::{ErrorKind, Result};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions};
use lapin::{Channel, Connection};
use tokio::time::Instant;

use crate::backend::Shared;
use crate::buffer::Tags;
use crate::error::{Cause, error, translate};
use crate::link::{close_channel, within};
use crate::topology::{self, short};
use crate::wire::{Parcel, Reader};

/// How many dead letters are asked for at once.
const ASKED_AT_ONCE: usize = 32;

/// Between two looks at a queue to which something comes back.
const LOOK: Duration = Duration::from_millis(2);

/// One that was taken out to be looked at.
struct Taken {
    /// More than one if its death was written down twice: a confirmation was lost, and so it was sent again.
    tags: Vec<u64>,
    dead: DeadLetter,
    position: u32,
}

/// What becomes of those that match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Stays,
    Replayed,
    Purged,
}

/// Those that match, in the order of their numbers.
pub(crate) async fn list(
    shared: &Arc<Shared>,
    filter: &DeadLetterFilter,
    after: Option<DeliveryId>,
    limit: usize,
) -> Result<Vec<DeadLetter>> {
    let mut found = apply(shared, "dead_letters", filter.clone(), Fate::Stays).await?;
    found.retain(|dead| after.is_none_or(|after| dead.id > after));
    found.sort_by_key(|dead| dead.id);
    found.truncate(limit);
    Ok(found)
}

/// Makes deliveries of those that match.
pub(crate) async fn replay(shared: &Arc<Shared>, filter: &DeadLetterFilter) -> Result<u64> {
    let replayed = apply(shared, "replay", filter.clone(), Fate::Replayed).await?;
    Ok(u64::try_from(replayed.len()).unwrap_or(u64::MAX))
}

/// Deletes those that match.
pub(crate) async fn purge(shared: &Arc<Shared>, filter: &DeadLetterFilter) -> Result<u64> {
    let purged = apply(shared, "purge", filter.clone(), Fate::Purged).await?;
    Ok(u64::try_from(purged.len()).unwrap_or(u64::MAX))
}

async fn apply(
    shared: &Arc<Shared>,
    operation: &'static str,
    filter: DeadLetterFilter,
    fate: Fate,
) -> Result<Vec<DeadLetter>> {
    let mut handlers = shared.administration.handlers(operation).await?;
    handlers.retain(|handler| filter.handler.as_deref().is_none_or(|wanted| wanted == &**handler));
    let shared = shared.clone();
    let administration = shared.administration.clone();
    administration
        .alone(operation, move |_, connection| async move {
            let mut found = Vec::new();
            for handler in handlers {
                found.extend(of_handler(&shared, operation, &connection, &handler, &filter, fate).await?);
            }
            Ok(found)
        })
        .await
}

async fn of_handler(
    shared: &Arc<Shared>,
    operation: &'static str,
    connection: &Connection,
    handler: &Arc<str>,
    filter: &DeadLetterFilter,
    fate: Fate,
) -> Result<Vec<DeadLetter>> {
    let limit = shared.config.request_timeout;
    let queue = shared.names.dead(handler);
    let channel = within(limit, operation, connection.create_channel()).await?;
    let (count, _) = match topology::look(&channel, &queue).await {
        Ok(counts) => counts,
        // A handler whose queues were deleted by hand has no dead letters.
        Err(failure) if Cause::of(&failure) == Cause::NotFound => return Ok(Vec::new()),
        Err(failure) => return Err(translate(operation, &failure)),
    };
    if count == 0 {
        close_channel(&channel, limit).await;
        return Ok(Vec::new());
    }
    let (mut matching, mut others) =
        take_all(shared, operation, &channel, &queue, handler, count, filter).await?;
    let result = match fate {
        Fate::Stays => Ok(()),
        Fate::Purged => acknowledge(shared, operation, &channel, &queue, &matching).await,
        Fate::Replayed => {
            // In the order of their publication, as far as it is known: time, place within the call, and then death.
            matching.sort_by_key(|taken| (taken.dead.envelope.published_at, taken.position, taken.dead.id));
            match publish(shared, operation, handler, &matching).await {
                Ok(()) => acknowledge(shared, operation, &channel, &queue, &matching).await,
                Err(failure) => Err(failure),
            }
        }
    };
    if fate == Fate::Stays || result.is_err() {
        others.extend(matching.iter().flat_map(|taken| &taken.tags));
    }
    put_back(shared, operation, &channel, &queue, &others).await?;
    close_channel(&channel, limit).await;
    result.map(|()| matching.into_iter().map(|taken| taken.dead).collect())
}

/// Takes everything out that lies there now: what matches, and the tags of the rest.
async fn take_all(
    shared: &Arc<Shared>,
    operation: &'static str,
    channel: &Channel,
    queue: &str,
    handler: &Arc<str>,
    count: u32,
    filter: &DeadLetterFilter,
) -> Result<(Vec<Taken>, Vec<u64>)> {
    let mut reader = Reader::default();
    let mut all: HashMap<EventId, Taken> = HashMap::new();
    let mut others = Vec::new();
    let gets = (0..count).map(|_| channel.basic_get(short(queue), BasicGetOptions::default()));
    let mut gets = stream::iter(gets).buffered(ASKED_AT_ONCE);
    loop {
        let next = tokio::time::timeout(shared.config.request_timeout, gets.try_next()).await;
        let next = next.map_err(|_| crate::error::no_answer(operation))?;
        let Some(got) = next.map_err(|failure| translate(operation, &failure))? else { break };
        let Some(message) = got else { continue };
        let tag = message.delivery.delivery_tag;
        match reader.read_dead(handler, &message.delivery.properties, message.delivery.data) {
            Ok((dead, position)) => match all.entry(dead.envelope.id) {
                Entry::Vacant(entry) => {
                    entry.insert(Taken { tags: vec![tag], dead, position });
                }
                Entry::Occupied(entry) => {
                    let same = entry.into_mut();
                    same.tags.push(tag);
                    // Known by the same number whoever looks.
                    if dead.id < same.dead.id {
                        same.dead = dead;
                    }
                }
            },
            Err(why) => {
                tracing::error!(queue, why, "a message in a queue of dead letters is none and is left alone");
                others.push(tag);
            }
        }
    }
    let (matching, rest): (Vec<_>, Vec<_>) =
        all.into_values().partition(|taken| matches(filter, &taken.dead));
    others.extend(rest.into_iter().flat_map(|taken| taken.tags));
    Ok((matching, others))
}

fn matches(filter: &DeadLetterFilter, dead: &DeadLetter) -> bool {
    filter.ids.as_ref().is_none_or(|ids| ids.contains(&dead.id))
        && filter.event.as_deref().is_none_or(|event| *event == *dead.envelope.name)
        && filter.key.as_ref().is_none_or(|key| dead.envelope.key.as_deref() == Some(key))
        && filter.reason.is_none_or(|reason| reason == dead.reason)
        && filter.died_before.is_none_or(|before| dead.died_at < before)
}

async fn publish(
    shared: &Arc<Shared>,
    operation: &'static str,
    handler: &Arc<str>,
    replayed: &[Taken],
) -> Result<()> {
    let letters = replayed.iter().map(|taken| {
        let parcel = Parcel {
            envelope: taken.dead.envelope.clone(),
            position: taken.position,
            failures: 0,
            crashes: 0,
            errors: Default::default(),
            wait: Duration::ZERO,
            returns: 0,
            is_again: false,
        };
        shared.post.delivery(&parcel, handler)
    });
    let deadline = Instant::now() + shared.config.publish_timeout;
    // The lock is held: a missing topology cannot be repaired here, and is an error.
    match shared.publisher.send(operation, letters.collect(), deadline).await {
        Ok(()) => Ok(()),
        Err(crate::publisher::Unsent::Failed(failure)) => Err(failure),
        Err(crate::publisher::Unsent::Unroutable(_)) => Err(error(
            ErrorKind::InvalidConfiguration,
            operation,
            format!("queues of the handler {handler:?} are missing; call `migrate`"),
        )),
    }
}

async fn acknowledge(
    shared: &Arc<Shared>,
    operation: &'static str,
    channel: &Channel,
    queue: &str,
    taken: &[Taken],
) -> Result<()> {
    let limit = shared.config.request_timeout;
    let tags = taken.iter().flat_map(|taken| taken.tags.iter().copied()).collect();
    // Its tags count from 1: the channel is new.
    for (tag, multiple) in Tags::default().acknowledge(tags) {
        within(limit, operation, channel.basic_ack(tag, BasicAckOptions { multiple })).await?;
    }
    // A channel keeps acknowledgements back while its queue is busy, and forgets them when it is closed. What goes through the
    // queue itself, and a question after it, let it get rid of them.
    let get = channel.basic_get(short(queue), BasicGetOptions::default());
    let newer = within(limit, operation, get).await?;
    within(limit, operation, topology::look(channel, queue)).await?;
    match newer {
        Some(newer) => put_back(shared, operation, channel, queue, &[newer.delivery.delivery_tag]).await,
        None => Ok(()),
    }
}

/// Puts messages back, and waits until the next one who looks will find them. They have no order that could suffer: each has
/// its number.
async fn put_back(
    shared: &Arc<Shared>,
    operation: &'static str,
    channel: &Channel,
    queue: &str,
    tags: &[u64],
) -> Result<()> {
    let limit = shared.config.request_timeout;
    for tag in tags {
        let options = BasicNackOptions { requeue: true, multiple: false };
        within(limit, operation, channel.basic_nack(*tag, options)).await?;
    }
    let count = u32::try_from(tags.len()).unwrap_or(u32::MAX);
    let are_back = async {
        while topology::look(channel, queue).await?.0 < count {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    };
    within(limit, operation, are_back).await
}
