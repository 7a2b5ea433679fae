//! What befalls Redis alone.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::super::scene::{IDEMPOTENT, Scene};
use super::not_redis;
use super::servers::under_load;
use crate::fleet::Node;
use crate::history::{Fact, RunEnd};
use crate::proxy::{Flow, Proxy};
use crate::servers::Redis;

super::rows! {
    "R1" "scripts flushed, clients killed; out of memory, busy, loading, too few replicas, slow disk" harassed, why_not: not_redis;
    "R2" "a replica is promoted that had not everything, while a worker still reaches the old primary; then planned back" failed_over, why_not: not_redis;
    // What was charged to a suspect may be in the tail as well, and is then charged once more.
    "R3" "kill -9 of the server, and the last bytes of the append-only file are gone" beheaded, why_not: not_redis, expects: [Attempts];
    "R4" "a server that does not keep what it acknowledges is refused" forgetful, why_not: not_redis;
}

/// Words of an operator, who has all the patience.
async fn ask(host: &str, command: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(host).await?;
    stream.write_all(format!("{command}\r\nQUIT\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Says something to a server and waits until it has done it.
async fn say_to(host: &str, command: &str) -> String {
    let answer = ask(host, command).await.unwrap();
    assert!(!answer.starts_with('-'), "{command}: {answer}");
    answer
}

async fn say(scene: &Scene, command: &str) -> String {
    say_to(&scene.store.server().host(), command).await
}

/// Waits until what a server says of itself is so.
async fn until_it_says(host: &str, section: &str, is_so: impl Fn(&str) -> bool) {
    while !is_so(&say_to(host, &format!("INFO {section}")).await) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How often a server has refused something with this word.
async fn refusals(host: &str, word: &str) -> u64 {
    let info = say_to(host, "INFO errorstats").await;
    let counted = info.lines().find_map(|line| line.strip_prefix(&format!("errorstat_{word}:count=")));
    counted.map_or(0, |count| count.trim().parse().unwrap())
}

async fn until_refused(host: &str, word: &str) {
    let before = refusals(host, word).await;
    while refusals(host, word).await == before {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What an operator and a disk do.
const HARASSMENTS: u32 = 7;

async fn harassed(scene: &mut Scene) -> Vec<Node> {
    let mut random = scene.random.fork();
    let workers = under_load(scene, async |scene| {
        // Each of them at least twice, in any order.
        let mut harassments: Vec<_> = (0..HARASSMENTS).chain(0..HARASSMENTS).collect();
        random.shuffle(&mut harassments);
        for harassment in harassments {
            harass(scene, harassment).await;
            tokio::time::sleep(Duration::from_millis(random.u64(20..150))).await;
        }
    })
    .await;
    let host = scene.store.server().host();
    for word in ["NOSCRIPT", "OOM", "BUSY", "LOADING", "NOREPLICAS"] {
        assert!(refusals(&host, word).await > 0, "nobody was answered {word}: the row shows nothing");
    }
    workers
}

async fn harass(scene: &Scene, how: u32) {
    let host = scene.store.server().host();
    match how {
        0 => drop(say(scene, "SCRIPT FLUSH").await),
        1 => drop(say(scene, "CLIENT KILL TYPE normal SKIPME yes").await),
        2 => {
            say(scene, "CONFIG SET maxmemory 1mb").await;
            until_refused(&host, "OOM").await;
            say(scene, "CONFIG SET maxmemory 0").await;
        }
        3 => {
            say(scene, "CONFIG SET min-replicas-to-write 1").await;
            until_refused(&host, "NOREPLICAS").await;
            say(scene, "CONFIG SET min-replicas-to-write 0").await;
        }
        4 => {
            // Somebody's script does not end; who asks meanwhile is told so after a while.
            say(scene, "CONFIG SET busy-reply-threshold 20").await;
            let busy = async { drop(ask(&host, "EVAL \"while true do end\" 0").await) };
            let killing = async {
                tokio::time::sleep(Duration::from_millis(400)).await;
                while !ask(&host, "SCRIPT KILL").await.is_ok_and(|answer| answer.starts_with("+OK")) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::join!(busy, killing);
            say(scene, "CONFIG SET busy-reply-threshold 5000").await;
        }
        5 => {
            // It reads its file again, so slowly that others are answered meanwhile.
            say(scene, "CONFIG SET key-load-delay 200").await;
            say(scene, "DEBUG LOADAOF").await;
            say(scene, "CONFIG SET key-load-delay 0").await;
        }
        _ => {
            // A disk that takes its time for every write: the server stands meanwhile.
            say(scene, "CONFIG SET appendfsync always").await;
            for _ in 0..4 {
                say(scene, "DEBUG SLEEP 0.15").await;
            }
            say(scene, "CONFIG SET appendfsync everysec").await;
        }
    }
}

/// The calls of which something was published, but neither done nor kept, once everything is at rest; with the time at
/// which each had returned. What was done, and was then to be done once more because that had been forgotten, is lost as
/// well if the second run did not come to its end.
fn lost_calls(scene: &Scene) -> BTreeMap<u64, u64> {
    let records = scene.fleet.history().records;
    let mut runs = HashMap::new();
    let mut done: HashSet<(&String, u64)> = HashSet::new();
    let mut calls = HashMap::new();
    let mut lost = BTreeMap::new();
    for record in &records {
        match &record.fact {
            Fact::PublishIntent { call, events, .. } => drop(calls.insert(*call, events)),
            Fact::RunStart { run, worker, handler, event, .. } => {
                runs.insert((*worker, *run), (handler, *event));
                done.remove(&(handler, *event));
            }
            Fact::RunEnd { run, worker, end: RunEnd::Done } => done.extend(runs.remove(&(*worker, *run))),
            _ => {}
        }
    }
    for record in &records {
        let Fact::PublishOk { call } = &record.fact else { continue };
        let mut deliveries =
            calls[call].iter().flat_map(|event| event.handlers.iter().map(|h| (h, event.event)));
        if deliveries.any(|delivery| !done.contains(&delivery)) {
            lost.insert(*call, record.at);
        }
    }
    lost
}

/// The time of what was written down last.
fn now(scene: &Scene) -> u64 {
    scene.fleet.history().records.last().map_or(0, |record| record.at)
}

fn write_down(scene: &Scene, lost: impl IntoIterator<Item = u64>) {
    for call in lost {
        scene.fleet.ledger.write(Fact::StoreLost { call });
    }
}

/// A publisher, until it is killed, of events that all succeed at once: what was counted before a failover need not be
/// known after it.
fn publisher_of(scene: &mut Scene, url: &str) -> Node {
    scene.publisher(url, 100_000, &[IDEMPOTENT])
}

async fn failed_over(scene: &mut Scene) -> Vec<Node> {
    let old = scene.store.server().host();
    // Without this an old primary goes on for as long as somebody reaches it, as the README says.
    for setting in ["min-replicas-to-write 1", "min-replicas-max-lag 2", "repl-diskless-sync-delay 0"] {
        say(scene, &format!("CONFIG SET {setting}")).await;
    }
    let replication = Proxy::start(&old).await;
    let primary = replication.address().to_string().replace(':', " ");
    let replica = Redis::start(&[
        ("replicaof", &*primary),
        ("repl-diskless-sync-delay", "0"),
        ("min-replicas-to-write", "0"),
    ])
    .await;
    let new = replica.host();
    until_it_says(new, "replication", |info| info.contains("master_link_status:up")).await;
    until_it_says(&old, "replication", |info| info.contains("min_slaves_good_slaves:1")).await;

    // The address that follows the primary. One worker uses it, one the old server's own.
    let front = Proxy::start(&old).await;
    let url = front.url(&scene.store.url);
    let at_old = scene.worker().await;
    let following = scene.worker_behind(&front).await;
    let publisher = publisher_of(scene, &url);
    scene.until_more(60).await;
    let numbers = [at_old.number, following.number];
    // More than can be done before the old primary stops.
    let backlog = scene.notes(200, 2, Duration::from_millis(100));
    let (parted, promoted) = scene
        .in_doubt(&numbers, async {
            // From now on what is acknowledged is on the old primary alone.
            let parted = now(scene);
            replication.set_both(Flow::BlackHole);
            for call in backlog.chunks(2) {
                scene.fleet.publish(call).await;
            }
            until_refused(&old, "NOREPLICAS").await;
            // A failover is not quicker than the old primary stops, and its workers with it.
            tokio::time::sleep(scene.medium.lease()).await;
            let promoted = now(scene);
            say_to(new, "REPLICAOF NO ONE").await;
            front.lead_to(new);
            front.cut();
            until_begun_since(scene, following.number, promoted).await;
            (parted, promoted)
        })
        .await;
    let runs_of_old = begun_since(scene, at_old.number, promoted);
    assert_eq!(runs_of_old, 0, "a worker runs on at a primary that was replaced");

    // The old one comes back as a replica, gets all, and is made the primary again by plan.
    scene
        .in_doubt(&numbers, async {
            say_to(&old, &format!("REPLICAOF {}", new.replace(':', " "))).await;
            until_it_says(&old, "replication", |info| info.contains("master_link_status:up")).await;
            scene.until_more(20).await;
            say_to(new, &format!("FAILOVER TO {}", old.replace(':', " "))).await;
            until_it_says(new, "replication", |info| info.contains("role:slave")).await;
            // Those who are still led there are told that it cannot be written.
            while refusals(new, "READONLY").await == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            say_to(&old, "CONFIG SET min-replicas-to-write 0").await;
            let back = now(scene);
            front.lead_to(&old);
            front.cut();
            until_begun_since(scene, at_old.number, back).await;
            publisher.kill_publisher();
            scene.rest().await;
        })
        .await;
    let records = scene.fleet.history().records;
    let refused = records.iter().find(|record| matches!(record.fact, Fact::PublishErr { .. }));
    assert!(refused.is_none(), "a failover is waited for, not refused: {refused:?}");
    let lost = lost_calls(scene);
    assert!(!lost.is_empty(), "nothing was lost: the row shows nothing");
    for (call, at) in &lost {
        assert!(*at >= parted, "call {call} had returned before the replica was parted, and is lost");
    }
    write_down(scene, lost.into_keys());
    at_old.stop().await;
    following.stop().await;
    Vec::new()
}

/// How many runs a worker has begun since then.
fn begun_since(scene: &Scene, worker: u32, since: u64) -> usize {
    let records = scene.fleet.history().records;
    let is_wanted = |fact: &Fact| matches!(fact, Fact::RunStart { worker: of, .. } if *of == worker);
    records.iter().filter(|record| record.at > since && is_wanted(&record.fact)).count()
}

async fn until_begun_since(scene: &Scene, worker: u32, since: u64) {
    while begun_since(scene, worker, since) == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn beheaded(scene: &mut Scene) -> Vec<Node> {
    let mut random = scene.random.fork();
    let workers = vec![scene.worker().await, scene.worker().await];
    let numbers: Vec<_> = workers.iter().map(|worker| worker.number).collect();
    let url = scene.store.url.clone();
    let publisher = publisher_of(scene, &url);
    scene.until_more(30).await;
    let mut in_tails = BTreeSet::new();
    scene
        .in_doubt(&numbers, async {
            for round in 0..6 {
                let file = append_only_file(scene).await;
                // Now in the middle of everything, now with events at the end of the file that nobody has seen yet.
                let standing = if round % 2 == 0 { &[][..] } else { &workers[..] };
                for worker in standing {
                    worker.stall(Duration::from_millis(500)).await;
                }
                until_published(scene, 5).await;
                scene.store.server().kill().await;
                standing.iter().for_each(Node::thaw);
                let known = acknowledged(scene);
                let kept = behead(&file, random.usize(1..6_000));
                in_tails.extend(known.into_iter().filter(|call| !is_in(&kept, *call)));
                scene.store.server().restart().await;
                // No key is stuck: runs go on, after the quarantine.
                scene.until_more(15).await;
            }
            publisher.kill_publisher();
            scene.rest().await;
        })
        .await;
    let lost = lost_calls(scene);
    assert!(!lost.is_empty(), "nothing was lost: the row shows nothing");
    for call in lost.keys() {
        assert!(in_tails.contains(call), "call {call} is lost, and was in no tail that was cut off");
    }
    write_down(scene, lost.into_keys());
    workers
}

/// The file that the server appends to.
async fn append_only_file(scene: &Scene) -> PathBuf {
    let answer = say(scene, "CONFIG GET dir").await;
    let directory = Path::new(answer.lines().nth(4).unwrap()).join("appendonlydir");
    let files = std::fs::read_dir(&directory).expect("a server whose files can be reached").flatten();
    let increments =
        files.map(|file| file.path()).filter(|path| path.to_string_lossy().ends_with(".incr.aof"));
    increments.max().unwrap()
}

/// Waits until so many more calls have returned Ok.
async fn until_published(scene: &Scene, count: usize) {
    let wanted = scene.published() + count;
    while scene.published() < wanted {
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

/// Calls that have returned Ok.
fn acknowledged(scene: &Scene) -> Vec<u64> {
    let records = scene.fleet.history().records;
    let call = |fact: &Fact| if let Fact::PublishOk { call } = fact { Some(*call) } else { None };
    records.iter().filter_map(|record| call(&record.fact)).collect()
}

/// Cuts the last bytes off, and answers with what is whole in what is left: scripts are whole or not at all.
fn behead(file: &Path, bytes: usize) -> Vec<u8> {
    const END: &[u8] = b"\r\nEXEC\r\n";
    let mut kept = std::fs::read(file).unwrap();
    kept.truncate(kept.len().saturating_sub(bytes));
    std::fs::write(file, &kept).unwrap();
    let end = kept.windows(END.len()).rposition(|window| window == END).map_or(0, |at| at + END.len());
    kept.truncate(end);
    kept
}

/// Whether a call is in a file: its idempotency key stands there, once.
fn is_in(kept: &[u8], call: u64) -> bool {
    let publisher = call / 1_000_000;
    let name = format!(":i:{publisher}-{call}\r\n").into_bytes();
    publisher == 0 || kept.windows(name.len()).any(|window| window == name)
}

async fn forgetful(scene: &mut Scene) -> Vec<Node> {
    for setting in [("appendonly", "no"), ("maxmemory-policy", "allkeys-lru")] {
        let server = Redis::start(&[setting]).await;
        let url = format!("{}?bus=faults", server.url());
        let worker = scene.fleet.start_at(&url, &["--work"]);
        assert!(worker.fails().await, "a worker starts on a server with {setting:?}");
    }
    vec![scene.worker().await]
}
