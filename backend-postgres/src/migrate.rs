//! Creating and upgrading the tables, and refusing stores that must not be touched.

use std::sync::Arc;

use event_bus_core::{ErrorKind, Result, SLOTS};
use sqlx::Connection as _;
use sqlx::postgres::PgConnection;

use crate::connection::{Shared, begin, connect_direct};
use crate::error::{Cause, error, translate};
use crate::statements::in_schema;
use crate::store;

/// The statements that lead from one version of the tables to the next; the first leads to version 1.
const MIGRATIONS: [&str; 1] = [include_str!("migrations/0001_tables.sql")];

/// The hash that assigns keys to slots; part of every store's format.
const HASH: &str = "xxh3-64";

/// The oldest server that has all that the statements use.
const OLDEST_SERVER: i32 = 130_000;

/// All migrations as one script, for people who run their own.
pub(crate) fn script(schema: &str) -> String {
    let mut script = format!("create schema if not exists {schema};\n\n");
    for sql in MIGRATIONS {
        script.push_str(&in_schema(sql, schema));
        script.push('\n');
    }
    let meta = format!(
        "insert into event_bus.meta (key, value) values ('schema', '{}'), ('slots', '{SLOTS}'), ('hash', '{HASH}');\n",
        MIGRATIONS.len()
    );
    script.push_str(&in_schema(&meta, schema));
    script
}

/// Creates or upgrades the tables, all in one transaction, in a task that nobody cancels. Other nodes wait for it.
pub(crate) async fn migrate(shared: &Arc<Shared>) -> Result<()> {
    let shared = shared.clone();
    let task = tokio::spawn(async move {
        let failed = |failure: sqlx::Error| translate("migrate", &shared.place, &failure, false);
        let mut connection = connect_direct(&shared.config).await.map_err(failed)?;
        let result = migrate_on(&shared, &mut connection).await;
        // On an error the connection goes, and what was begun with it.
        if result.is_ok() {
            let _ = connection.close().await;
        }
        result
    });
    match task.await {
        Ok(result) => result,
        Err(_) => Err(error(ErrorKind::Unavailable, "migrate", "the runtime is ending")),
    }
}

async fn migrate_on(shared: &Shared, connection: &mut PgConnection) -> Result<()> {
    let failed = |failure: sqlx::Error| translate("migrate", &shared.place, &failure, false);
    let schema = &shared.config.schema;
    // Behind a pooler nothing but a transaction stays on one server.
    store::run_script(connection, begin(&shared.config)).await.map_err(failed)?;
    // Who has no right to create anything may still find that there is nothing to do.
    if check_store(shared, connection, "migrate").await? == MIGRATIONS.len() {
        return store::run_script(connection, "commit".to_owned()).await.map_err(failed);
    }
    store::lock_migrations(connection, schema).await.map_err(failed)?;
    let present = check_store(shared, connection, "migrate").await?;
    let (_, _, has_schema) = store::look(connection, schema).await.map_err(failed)?;
    if !has_schema {
        store::run_script(connection, format!("create schema {schema}")).await.map_err(failed)?;
    }
    for (position, sql) in MIGRATIONS.iter().enumerate().skip(present) {
        store::run_script(connection, in_schema(sql, schema)).await.map_err(failed)?;
        let version = (position + 1).to_string();
        store::set_meta(shared.at_direct(), connection, "schema", &version).await.map_err(failed)?;
    }
    if present == 0 {
        store::set_meta(shared.at_direct(), connection, "slots", &SLOTS.to_string()).await.map_err(failed)?;
        store::set_meta(shared.at_direct(), connection, "hash", HASH).await.map_err(failed)?;
    }
    store::run_script(connection, "commit".to_owned()).await.map_err(failed)
}

/// Refuses a store that is not migrated, or that this binary must not touch.
pub(crate) async fn check_migrated(shared: &Shared, connection: &mut PgConnection) -> Result<()> {
    if check_store(shared, connection, "open").await? == MIGRATIONS.len() {
        return Ok(());
    }
    let message = format!("the tables in {} are not up to date; call `migrate`", shared.place);
    Err(error(ErrorKind::InvalidConfiguration, "open", message))
}

/// The version of the tables, 0 if there are none; refuses a store that this binary must not touch.
async fn check_store(
    shared: &Shared,
    connection: &mut PgConnection,
    operation: &'static str,
) -> Result<usize> {
    let refuse = |why: String| {
        Err(error(ErrorKind::InvalidConfiguration, operation, format!("{}: {why}", shared.place)))
    };
    let failed = |failure: sqlx::Error| translate(operation, &shared.place, &failure, false);
    let (server, has_tables, _) = store::look(connection, &shared.config.schema).await.map_err(failed)?;
    if server < OLDEST_SERVER {
        return refuse(format!(
            "PostgreSQL {} is too old, {} or newer is needed",
            server / 10_000,
            OLDEST_SERVER / 10_000
        ));
    }
    if !has_tables {
        return Ok(0);
    }
    let meta = match store::meta(shared.at_direct(), connection).await {
        Ok(meta) => meta,
        // They came and went since the look.
        Err(failure) if Cause::of(&failure) == Cause::NoTables => return Ok(0),
        Err(failure) => return Err(failed(failure)),
    };
    let value = |key: &str| {
        meta.iter().find(|(known, _)| known == key).map(|(_, value)| value.clone()).unwrap_or_default()
    };
    let (schema, newest) = (value("schema"), MIGRATIONS.len());
    let schema = match schema.parse::<usize>() {
        Ok(schema) if (1..=newest).contains(&schema) => schema,
        _ => {
            return refuse(format!(
                "its tables have version {schema:?}, this binary knows versions up to {newest}; use a newer binary"
            ));
        }
    };
    for (key, ours) in [("slots", SLOTS.to_string()), ("hash", HASH.to_owned())] {
        let theirs = value(key);
        if theirs != ours {
            return refuse(format!(
                "it was created with {key} {theirs:?}, this binary uses {ours:?}; use another schema"
            ));
        }
    }
    Ok(schema)
}
