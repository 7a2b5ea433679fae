//! Listing, replaying and purging dead letters; counting deliveries.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use event_bus_core::backend::{
    DeadLetter, DeadLetterFilter, DeadReason, DeliveryId, Envelope, ErrorLog, EventId, HandlerCounts,
    Timestamp,
};
use event_bus_core::{ErrorKind, Result, SLOTS};
use redis::Value;

use crate::backend::Shared;
use crate::entry::{self, Names};
use crate::error::{Failure, error};
use crate::ids;
use crate::link::Link;
use crate::reply::Reply;
use crate::script::{self, Script};

/// How many dead letters are read at once.
const PAGE: usize = 200;

/// How many dead letters are moved by one script: everybody waits that long.
const CHUNK: usize = 200;

/// A dead letter, and which delivery it was.
struct Found {
    letter: DeadLetter,
    origin: DeliveryId,
}

pub(crate) async fn dead_letters(
    shared: &Shared,
    link: &Link,
    filter: &DeadLetterFilter,
    after: Option<DeliveryId>,
    limit: usize,
) -> Result<Vec<DeadLetter>> {
    let mut letters = Vec::new();
    find(shared, link, "dead_letters", filter, after, limit, |found| letters.push(found.letter)).await?;
    Ok(letters)
}

/// Reads through the dead letters in the order of their ids, and shows those that match.
async fn find(
    shared: &Shared,
    link: &Link,
    operation: &'static str,
    filter: &DeadLetterFilter,
    after: Option<DeliveryId>,
    limit: usize,
    mut show: impl FnMut(Found),
) -> Result<()> {
    let failed = |failure: Failure| failure.into_error(operation, &shared.server);
    let key = format!("{}:dead", shared.base);
    let mut names = Names::default();
    let mut left = limit;
    let mut wanted = filter.ids.clone();
    if let Some(ids) = &mut wanted {
        ids.sort_unstable();
        ids.dedup();
        ids.retain(|id| after.is_none_or(|after| *id > after));
        ids.reverse();
    }
    let mut from = after.map_or_else(|| "-".to_owned(), |after| format!("({}", ids::text(after)));
    while left > 0 {
        let mut range = redis::cmd("XRANGE");
        match &mut wanted {
            Some(ids) => {
                let Some(id) = ids.pop() else { break };
                range.arg(&key).arg(ids::text(id)).arg(ids::text(id));
            }
            None => {
                range.arg(&key).arg(&from).arg("+").arg("COUNT").arg(PAGE);
            }
        }
        let mut page = link.command(&range).await.and_then(Reply::of).map_err(failed)?;
        let mut count = 0;
        while !page.is_empty() && left > 0 {
            let mut entry = page.array().map_err(failed)?;
            let id = entry.bytes().map_err(failed)?;
            let id = ids::parse(&id).ok_or_else(|| failed(Failure::Garbled("no stream id".to_owned())))?;
            from = format!("({}", ids::text(id));
            count += 1;
            let found = found(id, entry.array().map_err(failed)?, &mut names).map_err(failed)?;
            if matches(&found.letter, filter) {
                left -= 1;
                show(found);
            }
        }
        if wanted.is_none() && count < PAGE {
            break;
        }
    }
    Ok(())
}

/// Never fails because of what is in it: a dead letter may be dead because it cannot be read, and must be seen all the
/// more.
fn found(id: DeliveryId, mut fields: Reply, names: &mut Names) -> Result<Found, Failure> {
    let mut of: HashMap<Bytes, Bytes> = HashMap::new();
    while !fields.is_empty() {
        of.insert(fields.bytes()?, fields.bytes()?);
    }
    let field = |name: &'static str| of.get(name.as_bytes()).cloned().unwrap_or_default();
    let text = |name| String::from_utf8_lossy(&field(name)).into_owned();
    let key = (!field("k").is_empty()).then(|| Arc::from(text("k")));
    let blob = field("e");
    let envelope = entry::decode(blob.clone(), key.clone(), names).unwrap_or_else(|_| Envelope {
        id: EventId::from_uuid(uuid::Uuid::nil()),
        name: "?".into(),
        version: 0,
        key,
        payload: blob,
        headers: None,
        published_at: Timestamp::default(),
    });
    let letter = DeadLetter {
        id,
        handler: names.share(&text("h")),
        envelope,
        failures: text("f").parse().unwrap_or_default(),
        errors: ErrorLog::from_bytes(field("x")),
        reason: DeadReason::from_word(&text("r")).unwrap_or(DeadReason::Undecodable),
        died_at: Timestamp::from_millis(text("d").parse().unwrap_or_default()),
        holds_key: text("y") == "1",
    };
    Ok(Found { letter, origin: ids::parse(&field("o")).unwrap_or(id) })
}

fn matches(letter: &DeadLetter, filter: &DeadLetterFilter) -> bool {
    filter.handler.as_deref().is_none_or(|handler| *letter.handler == *handler)
        && filter.event.as_deref().is_none_or(|event| *letter.envelope.name == *event)
        && filter.key.as_deref().is_none_or(|key| letter.envelope.key.as_deref() == Some(key))
        && filter.reason.is_none_or(|reason| letter.reason == reason)
        && filter.died_before.is_none_or(|before| letter.died_at < before)
}

pub(crate) async fn replay(shared: &Shared, link: &Link, filter: &DeadLetterFilter) -> Result<u64> {
    in_chunks(shared, link, filter, "replay", &script::REPLAY).await
}

pub(crate) async fn purge(shared: &Shared, link: &Link, filter: &DeadLetterFilter) -> Result<u64> {
    in_chunks(shared, link, filter, "purge", &script::PURGE).await
}

/// Decides which once, then moves them in the order in which they were published: one that dies again meanwhile has
/// another id and stays dead.
async fn in_chunks(
    shared: &Shared,
    link: &Link,
    filter: &DeadLetterFilter,
    operation: &'static str,
    script: &'static Script,
) -> Result<u64> {
    let mut ids = Vec::new();
    find(shared, link, operation, filter, None, usize::MAX, |found| {
        ids.push((found.origin, found.letter.id))
    })
    .await?;
    ids.sort_unstable();
    let failed = |failure: Failure| failure.into_error(operation, &shared.server);
    let mut moved = 0;
    for chunk in ids.chunks(CHUNK) {
        let mut call = script.call(&shared.base);
        for (_, id) in chunk {
            call.arg(ids::text(*id));
        }
        match link.eval_value(&call).await.map_err(failed)? {
            Value::Int(count) => moved += u64::try_from(count).unwrap_or(0),
            _ => return Err(failed(Failure::Garbled("a number was expected".to_owned()))),
        }
    }
    Ok(moved)
}

pub(crate) async fn counts(shared: &Shared, link: &Link) -> Result<Vec<HandlerCounts>> {
    let failed = |failure: Failure| failure.into_error("counts", &shared.server);
    let mut call = script::COUNTS.call(&shared.base);
    call.arg(SLOTS);
    let value = link.eval_value(&call).await.map_err(failed)?;
    if matches!(value, Value::Nil) {
        return Err(error(
            ErrorKind::InvalidConfiguration,
            "counts",
            crate::backend::schema_problem(shared, ""),
        ));
    }
    let mut reply = Reply::of(value).map_err(failed)?;
    let mut counts = Vec::new();
    while !reply.is_empty() {
        counts.push(HandlerCounts {
            handler: reply.text().map_err(failed)?,
            ready: reply.count().map_err(failed)?,
            waiting: reply.count().map_err(failed)?,
            dead: reply.count().map_err(failed)?,
        });
    }
    counts.sort_by(|one, two| one.handler.cmp(&two.handler));
    Ok(counts)
}
