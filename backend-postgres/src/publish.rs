//! From publications to rows.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use event_bus_core::backend::{Headers, Publication};
use event_bus_core::slot;
use sqlx::postgres::PgConnection;
use uuid::Uuid;

use crate::connection::At;
use crate::row::{self, FREE};
use crate::store;

/// The ids of handler names.
pub(crate) type Handlers = HashMap<Arc<str>, i32>;

/// Longer delays than this are cut: a hundred years.
const MAX_DELAY_MS: i64 = 100 * 366 * 24 * 60 * 60 * 1_000;

/// A duration as the store takes it.
pub(crate) fn delay_ms(delay: Duration) -> i64 {
    // Rounded up: a delay is a lower bound.
    i64::try_from(delay.as_nanos().div_ceil(1_000_000)).unwrap_or(MAX_DELAY_MS).min(MAX_DELAY_MS)
}

/// The arrays of `publish.sql`: one element for each delivery.
#[derive(Default)]
pub(crate) struct Rows<'a> {
    pub(crate) handlers: Vec<i32>,
    pub(crate) slots: Vec<i16>,
    pub(crate) event_ids: Vec<Uuid>,
    pub(crate) names: Vec<&'a str>,
    pub(crate) versions: Vec<i32>,
    pub(crate) keys: Vec<Option<&'a str>>,
    pub(crate) payloads: Vec<&'a [u8]>,
    pub(crate) headers: Vec<Option<Arc<str>>>,
    pub(crate) published_at: Vec<i64>,
}

impl<'a> Rows<'a> {
    /// Fails only if a handler is not among those that were looked up.
    pub(crate) fn of(
        publications: impl IntoIterator<Item = &'a Publication>,
        handlers: &Handlers,
    ) -> sqlx::Result<Self> {
        let mut rows = Self::default();
        let mut last: Option<(&Arc<Headers>, Option<Arc<str>>)> = None;
        for event in publications.into_iter().flat_map(|publication| &publication.events) {
            let envelope = &event.envelope;
            // The events of one publish call share their headers, so they are written once.
            let headers = match (&envelope.headers, &last) {
                (None, _) => None,
                (Some(headers), Some((known, text))) if Arc::ptr_eq(headers, known) => text.clone(),
                (Some(headers), _) => {
                    let text: Option<Arc<str>> = row::headers_text(headers).map(Arc::from);
                    last = Some((headers, text.clone()));
                    text
                }
            };
            let slot = envelope.key.as_deref().map_or(FREE, |key| i16::try_from(slot(key)).unwrap_or(FREE));
            for name in event.handlers.iter() {
                let handler = handlers.get(name).copied();
                rows.handlers
                    .push(handler.ok_or_else(|| sqlx::Error::Protocol(format!("handler {name} has no id")))?);
                rows.slots.push(slot);
                rows.event_ids.push(*envelope.id.as_uuid());
                rows.names.push(&envelope.name);
                rows.versions.push(i32::try_from(envelope.version).unwrap_or(i32::MAX));
                rows.keys.push(envelope.key.as_deref());
                rows.payloads.push(&envelope.payload);
                rows.headers.push(headers.clone());
                rows.published_at.push(envelope.published_at.as_millis());
            }
        }
        Ok(rows)
    }
}

/// The names that publications are for and that are not known.
pub(crate) fn unknown_names<'a>(
    publications: impl IntoIterator<Item = &'a Publication>,
    handlers: &Handlers,
) -> Vec<Arc<str>> {
    let mut unknown: Vec<Arc<str>> = Vec::new();
    for name in publications.into_iter().flat_map(|p| &p.events).flat_map(|event| event.handlers.iter()) {
        if !handlers.contains_key(name) && !unknown.contains(name) {
            unknown.push(name.clone());
        }
    }
    unknown
}

/// The ids of these names; those that are new get theirs.
pub(crate) async fn handler_ids(
    at: At<'_>,
    connection: &mut PgConnection,
    names: &[Arc<str>],
) -> sqlx::Result<Handlers> {
    let names: Vec<&str> = names.iter().map(|name| &**name).collect();
    let mut known = store::handlers(at, connection, &names).await?;
    let missing: Vec<&str> = names.iter().copied().filter(|name| !known.contains_key(*name)).collect();
    if !missing.is_empty() {
        store::add_handlers(at, connection, &missing).await?;
        known.extend(store::handlers(at, connection, &missing).await?);
    }
    Ok(known)
}
