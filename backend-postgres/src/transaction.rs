//! The caller's own transactions.

use std::sync::Arc;

use event_bus_core::backend::{Connection, Publication, Stored};
use event_bus_core::{Error, ErrorKind, Result};
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgConnection;
use sqlx::{Postgres, Transaction};

use crate::connection::{Hands, Shared};
use crate::error::{error, translate};
use crate::publish::{Handlers, Rows, delay_ms, handler_ids, unknown_names};
use crate::row::Place;
use crate::store;

/// Looks up the handlers of a publication; new ones get their ids, in a statement of its own: in the caller's transaction
/// others would wait for it.
pub(crate) async fn know_handlers(
    shared: &Arc<Shared>,
    hands: &Arc<Hands>,
    publication: &Publication,
) -> Result<Arc<Handlers>> {
    let mut handlers = shared.handlers();
    let unknown = unknown_names([publication], &handlers);
    if !unknown.is_empty() {
        let learned = hands
            .run("publish", false, move |connection, at| {
                Box::pin(async move { handler_ids(at, connection, &unknown).await })
            })
            .await?;
        Arc::make_mut(&mut handlers).extend(learned.clone());
        shared.learn(learned);
    }
    Ok(handlers)
}

/// Stores a publication in the caller's transaction.
pub(crate) async fn publish_in(
    shared: &Shared,
    handlers: &Handlers,
    connection: Connection<'_>,
    publication: &Publication,
) -> Result<Stored> {
    let connection = downcast(connection, "publish")?;
    let stored = store_on(shared, handlers, connection, publication).await;
    stored.map_err(|failure| translate("publish", &shared.place, &failure, false))
}

/// Whether a publication may share a statement with others: nothing of it makes others wait, or waits for others.
pub(crate) fn is_plain(shared: &Shared, publication: &Publication) -> bool {
    publication.idempotency_key.is_none()
        && publication.delay.is_zero()
        && !(shared.config.is_strict && publication.events.iter().any(|event| event.envelope.key.is_some()))
}

/// Stores one publication on a connection. Its handlers are known.
pub(crate) async fn store_on(
    shared: &Shared,
    handlers: &Handlers,
    connection: &mut PgConnection,
    publication: &Publication,
) -> sqlx::Result<Stored> {
    let at = shared.at_client();
    let rows = Rows::of([publication], handlers)?;
    if is_plain(shared, publication) {
        store::publish(at, connection, &rows).await?;
        return Ok(Stored::New);
    }
    let (key, delay) = (publication.idempotency_key.as_deref(), delay_ms(publication.delay));
    // What is delayed gets its place when it is due: there is no order to keep here.
    let is_strict = shared.config.is_strict && delay == 0;
    let is_new = store::publish_once(at, connection, &rows, key, delay, is_strict).await?;
    Ok(if is_new { Stored::New } else { Stored::Duplicate })
}

/// Forgets a delivery in the caller's transaction.
pub(crate) async fn complete_in(
    shared: &Shared,
    connection: Connection<'_>,
    place: Place,
    worker: i32,
    epoch: i64,
) -> Result<()> {
    let connection = downcast(connection, "complete_in")?;
    let is_done = store::complete_in(shared.at_client(), connection, place, worker, epoch)
        .await
        .map_err(|failure| translate("complete_in", &shared.place, &failure, false))?;
    if is_done {
        return Ok(());
    }
    Err(error(ErrorKind::LeaseLost, "complete_in", "the right to this delivery is gone; roll back"))
}

/// The connection behind a value of a type we know.
fn downcast<'a>(connection: Connection<'a>, operation: &'static str) -> Result<&'a mut PgConnection, Error> {
    if connection.is::<Transaction<'static, Postgres>>() {
        let transaction = connection.downcast_mut::<Transaction<'static, Postgres>>();
        return transaction.map(|transaction| &mut **transaction).ok_or_else(|| unknown(operation));
    }
    if connection.is::<PoolConnection<Postgres>>() {
        let pooled = connection.downcast_mut::<PoolConnection<Postgres>>();
        return pooled.map(|pooled| &mut **pooled).ok_or_else(|| unknown(operation));
    }
    connection.downcast_mut::<PgConnection>().ok_or_else(|| unknown(operation))
}

fn unknown(operation: &'static str) -> Error {
    error(
        ErrorKind::InvalidConfiguration,
        operation,
        "this is no connection of the postgres backend; pass a `&mut` to a sqlx `PgConnection`, \
         `PoolConnection<Postgres>` or `Transaction<'static, Postgres>` of sqlx 0.9",
    )
}
