//! What befalls a file.

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _};

use super::super::scene::Scene;
use super::not_sqlite;
use crate::fleet::Node;

super::rows! {
    "L1" "several processes publish and work on one file" several_processes, why_not: not_sqlite, fast: [Sqlite];
    "L2" "kill -9 at any instant, 200 times; the file is copied meanwhile" killed_in_commit, why_not: not_sqlite;
    "L3" "a reader that never ends; the write-ahead log stays bounded after it" long_reader, why_not: not_sqlite;
}

/// The write-ahead log may grow to this when nobody keeps it from being reused.
const BOUND: u64 = 16 << 20;

fn file(scene: &Scene) -> std::path::PathBuf {
    scene.store.directory.as_ref().expect("a file").path().join("bus.db")
}

async fn open(path: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(path).busy_timeout(Duration::from_secs(30));
    options.disable_statement_logging().connect().await.unwrap()
}

/// Nobody else writes until this is dropped.
pub(super) async fn write_lock(scene: &Scene) -> SqliteConnection {
    let mut connection = open(&file(scene)).await;
    sqlx::raw_sql("begin immediate").execute(&mut connection).await.unwrap();
    connection
}

async fn several_processes(scene: &mut Scene) -> Vec<Node> {
    let workers = vec![scene.worker().await, scene.worker().await, scene.worker().await];
    let url = scene.store.url.clone();
    let publishers = [1, 2, 3].map(|seed| scene.publisher(&url, 200, &["--acts-of", &seed.to_string()]));
    for publisher in publishers {
        publisher.ended().await;
    }
    workers
}

async fn killed_in_commit(scene: &mut Scene) -> Vec<Node> {
    let url = scene.store.url.clone();
    for round in 0..200 {
        let worker = scene.worker().await;
        let publisher = scene.publisher(&url, 100_000, &["--pause-ms", "0"]);
        scene.fleet.until_begun(&worker, 2).await;
        tokio::time::sleep(Duration::from_micros(scene.random.u64(0..5_000))).await;
        if round % 10 == 0 {
            check_copy(scene).await;
        }
        worker.kill().await;
        publisher.kill_publisher();
    }
    check(&file(scene)).await;
    vec![scene.worker().await]
}

/// A copy of the file and its log, taken while others write, opens; what a backup that copies files gets, if it is lucky
/// enough to copy the log last.
async fn check_copy(scene: &Scene) {
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("bus.db");
    // Nobody writes between the two, or it would be no instant.
    let lock = write_lock(scene).await;
    for end in ["", "-wal"] {
        let from = format!("{}{end}", file(scene).display());
        if Path::new(&from).exists() {
            std::fs::copy(from, format!("{}{end}", copy.display())).unwrap();
        }
    }
    drop(lock);
    check(&copy).await;
}

async fn check(path: &Path) {
    let mut connection = open(path).await;
    let verdict: String =
        sqlx::query_scalar("pragma integrity_check").fetch_one(&mut connection).await.unwrap();
    assert_eq!(verdict, "ok", "{}", path.display());
    connection.close().await.unwrap();
}

async fn long_reader(scene: &mut Scene) -> Vec<Node> {
    let worker = scene.worker().await;
    let url = scene.store.url.clone();
    let mut reader = open(&file(scene)).await;
    sqlx::raw_sql("begin; select count(*) from sqlite_master").execute(&mut reader).await.unwrap();
    let publisher = scene.publisher(&url, 3_000, &["--pause-ms", "0"]);
    publisher.ended().await;
    scene.rest().await;
    drop(reader);
    let publisher = scene.publisher(&url, 3_000, &["--pause-ms", "0"]);
    publisher.ended().await;
    scene.rest().await;
    let log = std::fs::metadata(format!("{}-wal", file(scene).display())).unwrap().len();
    assert!(log <= BOUND, "the write-ahead log has {log} bytes after its reader has gone");
    vec![worker]
}
