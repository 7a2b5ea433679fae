//! Long and large; what it measured is printed:
//! `cargo nextest run --release -p event-bus-postgres --run-ignored only --no-capture soak`.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::common::*;

const EVENTS: usize = 1_000_000;
const BATCH: usize = 1_000;
const KEYS: usize = 1_000;

/// The most entries of indexes that may be read for one delivery.
const READ: i64 = 20;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
#[allow(clippy::print_stdout, reason = "it measures")]
async fn a_backlog_of_a_million_drains_while_an_idle_transaction_holds_back_vacuum() {
    let store = Store::new().await;
    let mut idle = store.connect().await;
    sqlx::raw_sql("begin isolation level repeatable read; select count(*) from event_bus.delivery")
        .execute(&mut idle)
        .await
        .unwrap();
    let began = Instant::now();
    for batch in 0..EVENTS / BATCH {
        let all = (0..BATCH).map(|position| {
            let number = batch * BATCH + position;
            let key = format!("k{}", number / 2 % KEYS);
            // Every other one has no key.
            envelope(&number.to_string(), (number.is_multiple_of(2)).then_some(&*key))
        });
        store.publish(publication(all.collect(), &["a"])).await;
    }
    println!("published {:.0} a second", EVENTS as f64 / began.elapsed().as_secs_f64());

    let session = store.open(&[handler("a")]).await;
    let mut seen = vec![false; EVENTS];
    let mut last = HashMap::<Box<str>, usize>::new();
    let (mut count, mut tenth) = (0, Instant::now());
    while count < EVENTS {
        let claimed = claim(&session, 1, 1_000).await.deliveries;
        if claimed.is_empty() {
            // Leases come with the first beat.
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        }
        for (delivery, text) in claimed.iter().zip(texts(&claimed)) {
            let number: usize = text.parse().unwrap();
            assert!(!std::mem::replace(&mut seen[number], true), "{number} came twice");
            if let Some(key) = &delivery.envelope.key {
                let before = last.insert((&**key).into(), number);
                assert!(before.is_none_or(|before| before < number), "{number} of {key} after {before:?}");
            }
        }
        let before = count;
        count += claimed.len();
        complete(&session, claimed).await;
        if before / (EVENTS / 10) < count / (EVENTS / 10) {
            let rate = EVENTS as f64 / 10.0 / tenth.elapsed().as_secs_f64();
            println!("{count} are done; {rate:.0} a second since the last line");
            tenth = Instant::now();
        }
    }
    assert_eq!(store.number("select count(*) from event_bus.delivery").await, 0);
    let size = "select pg_total_relation_size('event_bus.delivery')";
    println!("the table and its index have {} MB", store.number(size).await / 1_000_000);
    // Counters come a little late; a session tells its own when it ends at the latest.
    session.close().await.unwrap();
    drop(session);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let read = "select sum(idx_tup_read)::int8 from pg_stat_user_indexes where relname = 'delivery'";
    let read = store.number(read).await / i64::try_from(EVENTS).unwrap();
    println!("{read} entries of the index were read for each delivery");
    assert!(read <= READ, "{read} entries of the index were read for each delivery");
    sqlx::raw_sql("rollback").execute(&mut idle).await.unwrap();
}
