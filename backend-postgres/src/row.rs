//! Rows of the store as deliveries.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use event_bus_core::backend::{
    Delivery, DeliveryId, Envelope, ErrorLog, EventId, Headers, Partition, Timestamp,
};
use sqlx::postgres::{PgRow, Postgres};
use sqlx::{Decode, Row as _, ValueRef as _};
use uuid::Uuid;

/// The slot of deliveries without a key.
pub(crate) const FREE: i16 = -1;

/// An id as core knows it.
pub(crate) fn public_id(id: i64) -> DeliveryId {
    // Ids are positive.
    DeliveryId(u128::from(id.unsigned_abs()))
}

/// The id that core got from here; `None` if it cannot be one of ours.
pub(crate) fn private_id(id: DeliveryId) -> Option<i64> {
    i64::try_from(id.0).ok()
}

/// The number of the partition that a slot is.
pub(crate) fn partition_number(slot: i16) -> u16 {
    u16::try_from(slot).unwrap_or(Partition::WHOLE)
}

/// The slot of a partition.
pub(crate) fn slot(partition: Partition) -> i16 {
    i16::try_from(partition.number).unwrap_or(FREE)
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

/// Where a row belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) handler: i32,
    pub(crate) slot: i16,
    pub(crate) id: i64,
}

/// The place of a row of `claim_free.sql`, `claim_keyed.sql` or `refill.sql`.
pub(crate) fn place(row: &PgRow) -> sqlx::Result<Place> {
    Ok(Place {
        handler: row.try_get_unchecked(0)?,
        slot: row.try_get_unchecked(1)?,
        id: row.try_get_unchecked(2)?,
    })
}

/// A row that cannot be a delivery, and why.
#[derive(Debug)]
pub(crate) struct Unreadable {
    pub(crate) place: Place,
    pub(crate) why: String,
}

/// A row of `claim_free.sql`, `claim_keyed.sql` or `refill.sql`.
pub(crate) fn delivery(
    row: &PgRow,
    place: Place,
    partition: Partition,
    fence: u64,
    names: &mut Names,
) -> Result<Delivery, Unreadable> {
    let mut read = || -> Result<Delivery, String> {
        let due_in: Option<i64> = column(row, 13, "due_in")?;
        Ok(Delivery {
            id: public_id(place.id),
            partition,
            envelope: envelope(row, 3, names)?,
            failures: count(row, 10, "failures")?,
            crashes: count(row, 11, "crashes")?,
            errors: errors(row, 12)?,
            due_in: due_in
                .and_then(|due_in| u64::try_from(due_in).ok())
                .filter(|due_in| *due_in > 0)
                .map(Duration::from_millis),
            is_held: column(row, 14, "is_held")?,
            fence,
        })
    };
    read().map_err(|why| Unreadable { place, why })
}

/// The envelope in the seven columns from `first` on: event id, name, version, key, payload, headers, published at.
pub(crate) fn envelope(row: &PgRow, first: usize, names: &mut Names) -> Result<Envelope, String> {
    let event_id: Uuid = column(row, first, "event_id")?;
    let name: &str = column(row, first + 1, "name")?;
    let key: Option<&str> = column(row, first + 3, "key")?;
    let payload: &[u8] = column(row, first + 4, "payload")?;
    let headers: Option<&str> = column(row, first + 5, "headers")?;
    Ok(Envelope {
        id: EventId::from_uuid(event_id),
        name: names.share(name),
        version: count(row, first + 2, "version")?,
        key: key.map(Arc::from),
        payload: Bytes::copy_from_slice(payload),
        headers: headers.map(parse_headers).transpose()?.flatten(),
        published_at: Timestamp::from_millis(column(row, first + 6, "published_at")?),
    })
}

pub(crate) fn errors(row: &PgRow, index: usize) -> Result<ErrorLog, String> {
    let errors: Option<Vec<u8>> = column(row, index, "errors")?;
    Ok(errors.map_or_else(ErrorLog::default, |bytes| ErrorLog::from_bytes(Bytes::from(bytes))))
}

pub(crate) fn count(row: &PgRow, index: usize, name: &str) -> Result<u32, String> {
    let value: i32 = column(row, index, name)?;
    u32::try_from(value).map_err(|_| format!("{name} is {value}"))
}

pub(crate) fn column<'r, T>(row: &'r PgRow, index: usize, name: &str) -> Result<T, String>
where
    T: Decode<'r, Postgres> + Nullable,
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
impl Nullable for i32 {}
impl Nullable for bool {}
impl Nullable for Uuid {}
impl Nullable for &str {}
impl Nullable for &[u8] {}
impl Nullable for Vec<u8> {}
impl<T> Nullable for Option<T> {
    const IS_NULLABLE: bool = true;
}

/// Headers are stored as a JSON object of strings, so that they can be read and searched with SQL (`headers::jsonb`).
pub(crate) fn headers_text(headers: &Headers) -> Option<String> {
    if headers.is_empty() { None } else { serde_json::to_string(headers).ok() }
}

fn parse_headers(text: &str) -> Result<Option<Arc<Headers>>, String> {
    let headers: Headers =
        serde_json::from_str(text).map_err(|error| format!("headers are no object of strings: {error}"))?;
    Ok((!headers.is_empty()).then(|| Arc::new(headers)))
}
