//! Creating and upgrading the tables, and refusing files that must not be touched.

use event_bus_core::{ErrorKind, Result, SLOTS};
use sqlx::Connection as _;
use sqlx::sqlite::SqliteConnection;

use crate::config::SqliteConfig;
use crate::error::{error, translate};
use crate::filesystem;
use crate::store::{self, FileFacts};

/// The statements that lead from one version of the tables to the next; the first leads to version 1.
const MIGRATIONS: [&str; 1] = [include_str!("migrations/0001_tables.sql")];

/// The hash that assigns keys to slots; part of every store's format.
const HASH: &str = "xxh3-64";

/// The first SQLite without the bug that can damage a write-ahead log with two writers
/// (<https://www.sqlite.org/wal.html#walresetbug>).
const OLDEST_LIBRARY: (u32, u32, u32) = (3, 51, 3);

/// Creates or upgrades the tables, all in one transaction: a dropped future drops the connection, which rolls back.
pub(crate) async fn migrate(config: &SqliteConfig) -> Result<()> {
    let failed = |failure: sqlx::Error| translate("migrate", &config.path, &failure);
    filesystem::check(config, "migrate")?;
    let mut connection = connect(config).await?;
    check_facts(&store::file_facts(&mut connection).await.map_err(failed)?, config)?;
    store::begin_plain(&mut connection).await.map_err(failed)?;
    run_migrations(&mut connection, config).await?;
    store::commit(&mut connection).await.map_err(failed)?;
    let _ = connection.close().await;
    Ok(())
}

/// A missing directory is a wrong path, and not a file that is out of reach for a while.
async fn connect(config: &SqliteConfig) -> Result<SqliteConnection> {
    store::connect_writer(config, true).await.map_err(|failure| {
        let parent = config.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        match parent.filter(|parent| !parent.is_dir()) {
            Some(parent) => error(
                ErrorKind::InvalidConfiguration,
                "migrate",
                format!(
                    "{} is no directory; create it, or correct the path of the database",
                    parent.display()
                ),
            ),
            None => translate("migrate", &config.path, &failure),
        }
    })
}

fn check_facts(facts: &FileFacts, config: &SqliteConfig) -> Result<()> {
    let refuse = |why: String| {
        Err(error(ErrorKind::InvalidConfiguration, "migrate", format!("{}: {why}", config.path.display())))
    };
    if version(&facts.library) < OLDEST_LIBRARY {
        let (major, minor, patch) = OLDEST_LIBRARY;
        let found = &facts.library;
        return refuse(format!(
            "SQLite {found} can damage a file that two processes write to; build with {major}.{minor}.{patch} or newer"
        ));
    }
    if facts.journal_mode != "wal" {
        return refuse(format!("the write-ahead log cannot be used (journal mode {})", facts.journal_mode));
    }
    if facts.encoding != "UTF-8" {
        return refuse(format!("the database is encoded in {}, only UTF-8 is supported", facts.encoding));
    }
    Ok(())
}

fn version(text: &str) -> (u32, u32, u32) {
    let mut parts = text.split('.').map(|part| part.parse().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    (next(), next(), next())
}

async fn run_migrations(connection: &mut SqliteConnection, config: &SqliteConfig) -> Result<()> {
    let failed = |failure: sqlx::Error| translate("migrate", &config.path, &failure);
    let present = check_store(connection, config, "migrate").await?;
    for (position, sql) in MIGRATIONS.iter().enumerate().skip(present) {
        store::run_migration(connection, sql).await.map_err(failed)?;
        store::set_meta(connection, "schema", &(position + 1).to_string()).await.map_err(failed)?;
    }
    if present == 0 {
        store::set_meta(connection, "slots", &SLOTS.to_string()).await.map_err(failed)?;
        store::set_meta(connection, "hash", HASH).await.map_err(failed)?;
    }
    Ok(())
}

/// Refuses a file that is not migrated, or that this binary must not touch.
pub(crate) async fn check_migrated(connection: &mut SqliteConnection, config: &SqliteConfig) -> Result<()> {
    if check_store(connection, config, "open").await? == MIGRATIONS.len() {
        return Ok(());
    }
    let message = format!("the tables in {} are not up to date; call `migrate`", config.path.display());
    Err(error(ErrorKind::InvalidConfiguration, "open", message))
}

/// The version of the tables in the file, 0 if there are none; refuses a file that this binary must not touch.
async fn check_store(
    connection: &mut SqliteConnection,
    config: &SqliteConfig,
    operation: &'static str,
) -> Result<usize> {
    let failed = |failure: sqlx::Error| translate(operation, &config.path, &failure);
    let refuse = |why: String| {
        Err(error(ErrorKind::InvalidConfiguration, operation, format!("{}: {why}", config.path.display())))
    };
    if !store::has_meta(connection).await.map_err(failed)? {
        return Ok(0);
    }
    let schema = store::meta(connection, "schema").await.map_err(failed)?.unwrap_or_default();
    let newest = MIGRATIONS.len();
    let schema = match schema.parse::<usize>() {
        Ok(schema) if (1..=newest).contains(&schema) => schema,
        _ => {
            return refuse(format!(
                "its tables have version {schema:?}, this binary knows versions up to {newest}; use a newer binary"
            ));
        }
    };
    for (key, ours) in [("slots", SLOTS.to_string()), ("hash", HASH.to_owned())] {
        let theirs = store::meta(connection, key).await.map_err(failed)?.unwrap_or_default();
        if theirs != ours {
            return refuse(format!(
                "it was created with {key} {theirs:?}, this binary uses {ours:?}; use another file"
            ));
        }
    }
    Ok(schema)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> FileFacts {
        FileFacts {
            library: "3.51.3".to_owned(),
            journal_mode: "wal".to_owned(),
            encoding: "UTF-8".to_owned(),
        }
    }

    #[test]
    fn an_old_library_another_journal_and_another_encoding_are_refused() {
        let config = SqliteConfig::new("orders.db");
        assert!(check_facts(&facts(), &config).is_ok());
        for (facts, expected) in [
            (FileFacts { library: "3.51.2".to_owned(), ..facts() }, "3.51.3 or newer"),
            (FileFacts { library: "3.9.0".to_owned(), ..facts() }, "3.51.3 or newer"),
            (FileFacts { journal_mode: "delete".to_owned(), ..facts() }, "journal mode delete"),
            (FileFacts { encoding: "UTF-16le".to_owned(), ..facts() }, "UTF-16le"),
        ] {
            let refused = check_facts(&facts, &config).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InvalidConfiguration);
            assert!(refused.to_string().contains(expected), "{refused}");
        }
        assert!(version("3.100.0") > OLDEST_LIBRARY);
    }
}
