//! The caller's own transactions.

use std::path::Path;

use event_bus_core::backend::{Connection, Delivery, Publication, Stored};
use event_bus_core::{Error, ErrorKind, Result};
use sqlx::pool::PoolConnection;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Sqlite, Transaction};

use crate::apply::fenced;
use crate::config::SqliteConfig;
use crate::error::{error, translate};
use crate::publish::{Handlers, before, store_publications};
use crate::row;
use crate::store;

/// Stores a publication in the caller's transaction.
pub(crate) async fn publish_in(
    config: &SqliteConfig,
    connection: Connection<'_>,
    publication: &Publication,
) -> Result<Stored> {
    let connection = downcast(connection, "publish")?;
    let failed = |failure: sqlx::Error| translate("publish", &config.path, &failure);
    store::savepoint(connection).await.map_err(failed)?;
    match publish(config, connection, publication).await {
        Ok(stored) => {
            store::keep(connection).await.map_err(failed)?;
            Ok(stored)
        }
        Err(failure) => {
            // If this fails as well, the transaction is over already.
            let _ = store::undo(connection).await;
            Err(failed(failure))
        }
    }
}

async fn publish(
    config: &SqliteConfig,
    connection: &mut SqliteConnection,
    publication: &Publication,
) -> sqlx::Result<Stored> {
    let now = config.clock.now();
    if let Some(key) = &publication.idempotency_key
        && !store::remember(connection, key, now, before(now, config.dedupe_retention)).await?
    {
        return Ok(Stored::Duplicate);
    }
    store_publications(connection, &[publication], &Handlers::new(), &mut Handlers::new(), now).await?;
    Ok(Stored::New)
}

/// Forgets a delivery in the caller's transaction.
pub(crate) async fn complete_in(
    path: &Path,
    connection: Connection<'_>,
    delivery: &Delivery,
    fence: u64,
) -> Result<()> {
    let connection = downcast(connection, "complete_in")?;
    let Some(id) = row::private_id(delivery.id) else { return Err(fenced("complete_in")) };
    let is_done = store::complete_in(connection, id, fence)
        .await
        .map_err(|failure| translate("complete_in", path, &failure))?;
    if is_done { Ok(()) } else { Err(fenced("complete_in")) }
}

/// The connection behind a value of a type we know.
fn downcast<'a>(
    connection: Connection<'a>,
    operation: &'static str,
) -> Result<&'a mut SqliteConnection, Error> {
    if connection.is::<Transaction<'static, Sqlite>>() {
        let transaction = connection.downcast_mut::<Transaction<'static, Sqlite>>();
        return transaction.map(|transaction| &mut **transaction).ok_or_else(|| unknown(operation));
    }
    if connection.is::<PoolConnection<Sqlite>>() {
        let pooled = connection.downcast_mut::<PoolConnection<Sqlite>>();
        return pooled.map(|pooled| &mut **pooled).ok_or_else(|| unknown(operation));
    }
    connection.downcast_mut::<SqliteConnection>().ok_or_else(|| unknown(operation))
}

fn unknown(operation: &'static str) -> Error {
    error(
        ErrorKind::InvalidConfiguration,
        operation,
        "this is no connection of the sqlite backend; pass a `&mut` to a sqlx `SqliteConnection`, \
         `PoolConnection<Sqlite>` or `Transaction<'static, Sqlite>` of sqlx 0.9",
    )
}
