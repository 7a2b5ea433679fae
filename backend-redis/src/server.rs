//! Whether a server can keep what it is given, and who it is.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{InfoDict, Value};

use crate::config::{Durability, RedisConfig};
use crate::error::Failure;

/// The oldest server whose scripts and streams behave as these scripts need it.
const OLDEST: (u32, u32) = (7, 0);

/// Looks at a server before anything is asked of it. Returns its run id, which changes when it is started again.
pub(crate) async fn check(
    connection: &mut MultiplexedConnection,
    config: &RedisConfig,
) -> Result<Arc<str>, Failure> {
    let info: InfoDict =
        redis::cmd("INFO").query_async(connection).await.map_err(|error| before_use(&error))?;
    if info.get::<u8>("loading") == Some(1) {
        return Err(Failure::NotSent("it is still loading its data".to_owned()));
    }
    if info.get::<String>("redis_mode").as_deref() == Some("sentinel") {
        return Err(Failure::Unfit(
            "is a Sentinel, which keeps no data and is not asked for the primary; use an address that follows the primary"
                .to_owned(),
        ));
    }
    check_version(&info)?;
    if info.get::<u8>("cluster_enabled") == Some(1) {
        return Err(Failure::Unfit(
            "runs in cluster mode, which this backend does not follow through a resharding or a failover; use a server \
             of its own for the bus"
                .to_owned(),
        ));
    }
    if info.get::<String>("role").is_some_and(|role| role != "master") {
        return Err(Failure::Unfit(
            "is a replica, which cannot be written; connect to the primary".to_owned(),
        ));
    }
    if !config.allow_volatile {
        check_memory(&info)?;
        check_disk(connection, config).await?;
    }
    if let Durability::Replicated(wanted) = config.durability {
        let connected = info.get::<u32>("connected_slaves").unwrap_or(0);
        if connected < wanted {
            return Err(Failure::NotSent(format!(
                "it has {connected} connected replicas, and durability Replicated({wanted}) needs {wanted}"
            )));
        }
    }
    let run_id = info.get::<String>("run_id").unwrap_or_default();
    if run_id.is_empty() {
        return Err(Failure::Unfit(
            "does not tell its run id (INFO), without which a restart goes unseen".to_owned(),
        ));
    }
    Ok(run_id.into())
}

fn before_use(error: &redis::RedisError) -> Failure {
    match Failure::of(error) {
        // Nothing but a look was lost.
        Failure::Unknown(text) | Failure::Refused(text) => Failure::NotSent(text),
        failure => failure,
    }
}

fn check_version(info: &InfoDict) -> Result<(), Failure> {
    let version = info.get::<String>("redis_version").unwrap_or_default();
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found < OLDEST {
        return Err(Failure::Unfit(format!(
            "is of version {version:?}; this backend needs Redis 7.0 or newer"
        )));
    }
    Ok(())
}

fn check_memory(info: &InfoDict) -> Result<(), Failure> {
    let policy = info.get::<String>("maxmemory_policy").unwrap_or_default();
    if policy != "noeviction" {
        return Err(Failure::Unfit(format!(
            "may throw events away when its memory is full (maxmemory-policy is {policy:?}); set it to noeviction, or say \
             allow_volatile"
        )));
    }
    Ok(())
}

async fn check_disk(connection: &mut MultiplexedConnection, config: &RedisConfig) -> Result<(), Failure> {
    // INFO tells whether the append-only file is on; only CONFIG tells how often it is written.
    let info: InfoDict = redis::cmd("INFO")
        .arg("persistence")
        .query_async(connection)
        .await
        .map_err(|error| before_use(&error))?;
    if info.get::<u8>("aof_enabled") != Some(1) {
        return Err(Failure::Unfit(
            "keeps no append-only file, so a restart loses what was published; set appendonly yes, or say \
             allow_volatile"
                .to_owned(),
        ));
    }
    let appendfsync = appendfsync(connection).await;
    match (config.durability, appendfsync) {
        (Durability::Fsync, Ok(how)) if how == "always" => Ok(()),
        (Durability::Fsync, Ok(how)) => Err(Failure::Unfit(format!(
            "writes its append-only file {how:?}, and durability Fsync needs appendfsync always"
        ))),
        (Durability::Fsync, Err(Failure::Denied(_))) => Err(Failure::Unfit(
            "does not allow CONFIG GET appendfsync, so durability Fsync cannot be verified".to_owned(),
        )),
        (_, Ok(how)) if how == "no" => Err(Failure::Unfit(
            "leaves it to the operating system when its append-only file is written (appendfsync no); set it to \
             everysec, or say allow_volatile"
                .to_owned(),
        )),
        (_, Ok(_) | Err(Failure::Denied(_))) => Ok(()),
        (_, Err(failure)) => Err(failure),
    }
}

async fn appendfsync(connection: &mut MultiplexedConnection) -> Result<String, Failure> {
    let mut command = redis::cmd("CONFIG");
    command.arg("GET").arg("appendfsync");
    let value: Value = command.query_async(connection).await.map_err(|error| before_use(&error))?;
    let pair: Vec<String> =
        redis::from_redis_value(value).map_err(|error| Failure::Garbled(error.to_string()))?;
    pair.into_iter().nth(1).ok_or_else(|| Failure::Garbled("CONFIG GET appendfsync says nothing".to_owned()))
}
