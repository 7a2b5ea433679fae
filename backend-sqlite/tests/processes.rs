//! Several processes on one file, and what is left when one is killed.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::*;
use event_bus_core::backend::Backend as _;
use event_bus_sqlite::SqliteBackend;
use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;

const ROLE: &str = "EVENT_BUS_SQLITE_CHILD";

/// This test binary again, as another process.
fn child(role: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["the_other_process", "--exact", "--ignored", "--nocapture"])
        .env(ROLE, format!("{role} {}", path.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "what the tests below start as another process"]
fn the_other_process() {
    let Ok(task) = std::env::var(ROLE) else { return };
    let (role, path) = task.split_once(' ').unwrap();
    let backend = SqliteBackend::open(path).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        match role {
            "publish" => publish_for_ever(&backend).await,
            "work" => {
                let session = backend.open(&worker(&[handler("a")])).await.unwrap();
                let claimed = claim(&session, 1, 10).await.deliveries;
                say(&format!("claimed {}", claimed.len()));
                std::future::pending::<()>().await;
            }
            _ => panic!("no such role: {role}"),
        }
    });
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

/// Eight publishers, three events a call; says which calls were answered.
async fn publish_for_ever(backend: &SqliteBackend) {
    let publishers: Vec<_> = (0..8)
        .map(|publisher| {
            let backend = backend.clone();
            let run = std::process::id();
            tokio::spawn(async move {
                for n in 0_u64.. {
                    let call = format!("{run}-{publisher}-{n}");
                    backend.publish(events(&[&call, &call, &call], None)).await.unwrap();
                    say(&format!("stored {call}"));
                }
            })
        })
        .collect();
    for publisher in publishers {
        publisher.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_survives_a_kill_at_any_instant_and_no_call_is_half_stored() {
    let store = Store::new().await;
    let mut answered = Vec::new();
    for round in 0..12 {
        let mut child = child("publish", &store.path());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // A different instant of its life each time; what it managed to say after that counts as well.
        for _ in 0..1 + round * 13 {
            answered.extend(lines.next().unwrap());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        answered.extend(lines.map_while(Result::ok));
    }
    let mut connection = SqliteConnectOptions::new().filename(store.path()).connect().await.unwrap();
    let verdict: String =
        sqlx::query_scalar("pragma integrity_check").fetch_one(&mut connection).await.unwrap();
    assert_eq!(verdict, "ok");

    let session = store.open(&[handler("a")]).await;
    let mut stored: BTreeMap<String, usize> = BTreeMap::new();
    for text in texts(&claim(&session, 1, 1_000_000).await.deliveries) {
        *stored.entry(text).or_default() += 1;
    }
    assert!(stored.values().all(|parts| *parts == 3), "a call was stored in part");
    let answered: Vec<_> = answered.iter().filter_map(|line| line.strip_prefix("stored ")).collect();
    assert!(answered.len() > 500, "{} answers", answered.len());
    for call in answered {
        assert!(stored.contains_key(call), "{call} was answered and is gone");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over_from_a_killed_process_and_knows_what_is_in_doubt() {
    let store = Store::new().await;
    store.publish(events(&["1", "2"], None)).await;
    let mut child = child("work", &store.path());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line == "claimed 2"));
    let spec = worker(&[handler("a")]);
    let mut standby = store.backend.open(&spec);
    assert!(poll_once(&mut standby).await.is_none(), "the other process works");
    child.kill().unwrap();
    let session = standby.await.unwrap();
    child.wait().unwrap();
    let claimed = claim(&session, 1, 10).await.deliveries;
    assert_eq!(claimed.iter().map(|delivery| delivery.crashes).collect::<Vec<_>>(), [1, 1]);
}
