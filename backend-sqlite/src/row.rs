//! Rows of the store as deliveries.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use event_bus_core::backend::{
    Delivery, DeliveryId, Envelope, ErrorLog, EventId, Headers, Partition, Timestamp,
};
use sqlx::sqlite::SqliteRow;
use sqlx::{Decode, Row as _, Sqlite, ValueRef as _};
use uuid::Uuid;

/// A handler's deliveries have the ids from `handler << SEQ_BITS` on; the same number stands in the `.sql` files. Of the 63
/// bits that SQLite's ids have, this leaves room for half a million handlers and for 8.8 * 10^12 deliveries of each: 279 years
/// at a thousand a second.
const SEQ_BITS: u32 = 43;

/// The greatest number that a handler can give to a delivery, and the greatest id of a handler.
pub(crate) const MAX_SEQ: i64 = (1 << SEQ_BITS) - 1;
pub(crate) const MAX_HANDLER: i64 = (1 << (62 - SEQ_BITS)) - 1;

/// The first id of a handler's range; the range of the next handler begins where it ends.
pub(crate) const fn range_start(handler: i64) -> i64 {
    handler << SEQ_BITS
}

pub(crate) const fn range_end(handler: i64) -> i64 {
    (handler + 1) << SEQ_BITS
}

/// The handler in whose range an id lies.
pub(crate) const fn handler_of(id: i64) -> i64 {
    id >> SEQ_BITS
}

/// One more for this handler; how many that makes.
pub(crate) fn count_up(counts: &mut Vec<(i64, i64)>, handler: i64) -> i64 {
    // There are few handlers, and the last one is likely to come again.
    match counts.iter_mut().rev().find(|(known, _)| *known == handler) {
        Some((_, count)) => {
            *count += 1;
            *count
        }
        None => {
            counts.push((handler, 1));
            1
        }
    }
}

/// The id of the delivery with this number (from 1), behind the ids in `before`, one for each handler.
pub(crate) fn numbered(before: &[(i64, i64)], handler: i64, number: i64) -> i64 {
    let before = before.iter().rev().find(|(known, _)| *known == handler).map_or(0, |(_, id)| *id);
    before + number
}

/// An id as core knows it.
pub(crate) fn public_id(id: i64) -> DeliveryId {
    // Ids are positive.
    DeliveryId(u128::from(id.unsigned_abs()))
}

/// The id that core got from here; `None` if it cannot be one of ours.
pub(crate) fn private_id(id: DeliveryId) -> Option<i64> {
    i64::try_from(id.0).ok()
}

/// Event names seen so far, shared by their envelopes.
#[derive(Default)]
pub(crate) struct Names(HashMap<Box<str>, Arc<str>>);

impl Names {
    /// More names than any application has: beyond it somebody writes random ones, and sharing is given up.
    const MAX: usize = 4_096;

    pub(crate) fn share(&mut self, name: &str) -> Arc<str> {
        if let Some(shared) = self.0.get(name) {
            return shared.clone();
        }
        let shared: Arc<str> = name.into();
        if self.0.len() < Self::MAX {
            self.0.insert(name.into(), shared.clone());
        }
        shared
    }
}

/// What all deliveries of a claim have in common.
pub(crate) struct Reading<'a> {
    pub(crate) names: &'a mut Names,
    pub(crate) now: Timestamp,
    pub(crate) fence: u64,
}

/// A row that cannot be a delivery, and why.
#[derive(Debug)]
pub(crate) struct Unreadable {
    pub(crate) id: i64,
    pub(crate) why: String,
}

/// The id of a row of `claim.sql` or `refill.sql`.
pub(crate) fn id(row: &SqliteRow) -> sqlx::Result<i64> {
    row.try_get_unchecked(0)
}

/// How many bytes of payload a row of `claim.sql` or `refill.sql` has.
pub(crate) fn payload_bytes(row: &SqliteRow) -> i64 {
    let payload: Result<&[u8], _> = row.try_get_unchecked(5);
    payload.map_or(0, |payload| i64::try_from(payload.len()).unwrap_or(i64::MAX))
}

/// A row of `claim.sql` or `refill.sql`.
pub(crate) fn delivery(
    row: &SqliteRow,
    id: i64,
    partition: Partition,
    reading: &mut Reading<'_>,
) -> Result<Delivery, Unreadable> {
    read(row, id, partition, reading).map_err(|why| Unreadable { id, why })
}

fn read(
    row: &SqliteRow,
    id: i64,
    partition: Partition,
    reading: &mut Reading<'_>,
) -> Result<Delivery, String> {
    let envelope = envelope(row, 1, reading.names)?;
    let due_at: Option<i64> = column(row, 11, "due_at")?;
    let is_held: i64 = column(row, 12, "is_held")?;
    Ok(Delivery {
        id: public_id(id),
        partition,
        envelope,
        failures: count(row, 8, "failures")?,
        crashes: count(row, 9, "crashes")?,
        errors: errors(row, 10)?,
        due_in: due_at
            .map(|due_at| Timestamp::from_millis(due_at).since(reading.now))
            .filter(|wait| *wait > Duration::ZERO),
        is_held: is_held != 0,
        fence: reading.fence,
    })
}

/// The envelope in the seven columns from `first` on: event id, name, version, key, payload, headers, published at.
pub(crate) fn envelope(row: &SqliteRow, first: usize, names: &mut Names) -> Result<Envelope, String> {
    let event_id: &[u8] = column(row, first, "event_id")?;
    let event_id =
        Uuid::from_slice(event_id).map_err(|_| format!("event_id has {} bytes, not 16", event_id.len()))?;
    let name: &str = column(row, first + 1, "name")?;
    let key: Option<&str> = column(row, first + 3, "key")?;
    let payload: Vec<u8> = column(row, first + 4, "payload")?;
    let headers: Option<&str> = column(row, first + 5, "headers")?;
    Ok(Envelope {
        id: EventId::from_uuid(event_id),
        name: names.share(name),
        version: count(row, first + 2, "version")?,
        key: key.map(Arc::from),
        payload: Bytes::from(payload),
        headers: headers.map(parse_headers).transpose()?.flatten(),
        published_at: Timestamp::from_millis(column(row, first + 6, "published_at")?),
    })
}

pub(crate) fn errors(row: &SqliteRow, index: usize) -> Result<ErrorLog, String> {
    let errors: Option<Vec<u8>> = column(row, index, "errors")?;
    Ok(errors.map_or_else(ErrorLog::default, |bytes| ErrorLog::from_bytes(Bytes::from(bytes))))
}

pub(crate) fn count(row: &SqliteRow, index: usize, name: &str) -> Result<u32, String> {
    let value: i64 = column(row, index, name)?;
    u32::try_from(value).map_err(|_| format!("{name} is {value}"))
}

pub(crate) fn column<'r, T>(row: &'r SqliteRow, index: usize, name: &str) -> Result<T, String>
where
    T: Decode<'r, Sqlite> + Nullable,
{
    let value = row.try_get_raw(index).map_err(|error| error.to_string())?;
    if value.is_null() && !T::IS_NULLABLE {
        return Err(format!("{name} is null"));
    }
    T::decode(value).map_err(|error| format!("{name} cannot be read: {error}"))
}

/// Which Rust types stand for a column that may be null.
pub(crate) trait Nullable {
    const IS_NULLABLE: bool = false;
}

impl Nullable for i64 {}
impl Nullable for &str {}
impl Nullable for &[u8] {}
impl Nullable for Vec<u8> {}
impl<T> Nullable for Option<T> {
    const IS_NULLABLE: bool = true;
}

/// Headers are stored as a JSON object of strings, so that they can be read and searched with SQL.
pub(crate) fn headers_text(headers: &Headers) -> Option<String> {
    if headers.is_empty() { None } else { serde_json::to_string(headers).ok() }
}

fn parse_headers(text: &str) -> Result<Option<Arc<Headers>>, String> {
    let headers: Headers =
        serde_json::from_str(text).map_err(|error| format!("headers are no object of strings: {error}"))?;
    Ok((!headers.is_empty()).then(|| Arc::new(headers)))
}
