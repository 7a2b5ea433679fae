//! From publications to rows.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use event_bus_core::backend::{Headers, Publication, Timestamp};
use sqlx::sqlite::SqliteConnection;

use crate::row;
use crate::store::{self, NewDelivery};

/// The ids of handler names.
pub(crate) type Handlers = HashMap<Arc<str>, i64>;

/// Stores the deliveries of publications, in their order.
pub(crate) async fn store_publications(
    connection: &mut SqliteConnection,
    publications: &[&Publication],
    handlers: &Handlers,
    new_handlers: &mut Handlers,
    now: Timestamp,
) -> sqlx::Result<()> {
    if publications.is_empty() {
        return Ok(());
    }
    for name in publications.iter().flat_map(|p| &p.events).flat_map(|event| event.handlers.iter()) {
        if !handlers.contains_key(name) && !new_handlers.contains_key(name) {
            let id = store::handler(connection, name).await?;
            new_handlers.insert(name.clone(), id);
        }
    }
    let id_of = |name: &Arc<str>| handlers.get(name).or_else(|| new_handlers.get(name)).copied().unwrap_or(0);

    let mut texts = HeaderTexts::default();
    let mut ready = Vec::new();
    let mut later = Vec::new();
    let mut counts: Vec<(i64, i64)> = Vec::new();
    for publication in publications {
        let due_at = (!publication.delay.is_zero()).then(|| after(now, publication.delay));
        for event in &publication.events {
            let headers = texts.position(event.envelope.headers.as_ref());
            for name in event.handlers.iter() {
                let handler = id_of(name);
                match due_at {
                    Some(due_at) => later.push((due_at, handler, &event.envelope, headers)),
                    None => {
                        let number = row::count_up(&mut counts, handler);
                        ready.push((number, handler, &event.envelope, headers));
                    }
                }
            }
        }
    }
    if !ready.is_empty() {
        let firsts = store::allocate(connection, &counts).await?;
        let rows: Vec<_> = ready
            .into_iter()
            .map(|(number, handler, envelope, headers)| {
                let id = row::numbered(&firsts, handler, number);
                (id, NewDelivery { handler, envelope, headers: texts.get(headers) })
            })
            .collect();
        store::publish(connection, &rows).await?;
    }
    if !later.is_empty() {
        let rows: Vec<_> = later
            .into_iter()
            .map(|(due_at, handler, envelope, headers)| {
                (due_at, NewDelivery { handler, envelope, headers: texts.get(headers) })
            })
            .collect();
        store::schedule(connection, &rows).await?;
    }
    Ok(())
}

/// The texts of headers: the events of one publish call share theirs, so they are written once.
#[derive(Default)]
struct HeaderTexts<'a> {
    last: Option<&'a Arc<Headers>>,
    texts: Vec<Arc<str>>,
    is_empty: bool,
}

impl<'a> HeaderTexts<'a> {
    fn position(&mut self, headers: Option<&'a Arc<Headers>>) -> Option<usize> {
        let headers = headers?;
        if !self.last.is_some_and(|last| Arc::ptr_eq(last, headers)) {
            self.last = Some(headers);
            let text = row::headers_text(headers);
            self.is_empty = text.is_none();
            self.texts.extend(text.map(Arc::from));
        }
        if self.is_empty { None } else { self.texts.len().checked_sub(1) }
    }

    fn get(&self, position: Option<usize>) -> Option<&Arc<str>> {
        self.texts.get(position?)
    }
}

/// When a wait of `delay` that begins now has surely passed: the clock shows whole milliseconds, so one more.
pub(crate) fn after(now: Timestamp, delay: Duration) -> Timestamp {
    now.plus(delay.saturating_add(Duration::from_millis(1)))
}

/// The point in time that lies `age` before now.
pub(crate) fn before(now: Timestamp, age: Duration) -> Timestamp {
    let millis = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millis(now.as_millis().saturating_sub(millis))
}
