//! What befalls Postgres alone.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::super::scene::{IDEMPOTENT, Scene};
use super::not_postgres;
use super::servers::under_load;
use crate::fleet::Node;
use crate::history::Fact;
use crate::node::{HANDLERS, published};
use crate::proxy::{Direction, Flow, Proxy, Sign, Then};
use crate::servers::{PgBouncer, Postgres};
use crate::suite::{Act, Note, note};

super::rows! {
    "S5" "sessions are terminated at random" terminated, why_not: not_postgres;
    "S5F" "all connections of the server are taken, and sessions are terminated" no_connection_left, why_not: not_postgres;
    "S5D" "deadlocks, serialization failures and lock time-outs in every kind of statement" conflicts, why_not: not_postgres;
    "S6" "a publisher's open transaction holds a lower id of a key" late_id, why_not: not_postgres;
    "S7" "the listening connection is reset again and again" listener_reset, why_not: not_postgres;
    "S8" "failover to a standby that lagged, while workers of the old primary hear nothing" failover, why_not: not_postgres;
    "S9" "publishers behind PgBouncer, which is killed, as sessions and the server are" pooler, why_not: not_postgres;
    "T1" "kill -9 of a worker with the default settings: the take-over" killed_by_default, why_not: not_postgres;
    "T2" "SIGSTOP of a worker with the default settings for 20 s: the take-over" stopped_by_default, why_not: not_postgres;
}

/// Sessions of clients, except for the one that asks.
const OTHERS: &str =
    "from pg_stat_activity where pid <> pg_backend_pid() and backend_type = 'client backend'";

/// A connection to the server itself.
async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

async fn execute(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.unwrap();
}

async fn number(connection: &mut PgConnection, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(connection).await.unwrap()
}

/// When all is done, nobody has left a transaction open.
async fn nobody_idles_in_a_transaction(scene: &Scene) {
    scene.rest().await;
    let mut connection = connect(scene.store.server().own_url()).await;
    let left =
        number(&mut connection, &format!("select count(*) {OTHERS} and state like 'idle in transaction%'"))
            .await;
    assert_eq!(left, 0, "sessions are left idle in a transaction");
}

async fn terminated(scene: &mut Scene) -> Vec<Node> {
    let workers = under_load(scene, async |scene| {
        for _ in 0..40 {
            let mut connection = connect(scene.store.server().own_url()).await;
            let terminate = format!("select pg_terminate_backend(pid) {OTHERS} order by random() limit 2");
            execute(&mut connection, &terminate).await;
            connection.close().await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    nobody_idles_in_a_transaction(scene).await;
    workers
}

async fn no_connection_left(scene: &mut Scene) -> Vec<Node> {
    let workers = under_load(scene, async |scene| {
        let url = scene.store.server().own_url();
        let mut own = connect(url).await;
        let mut taken = Vec::new();
        // Until there is none, several times: what is terminated meanwhile finds its place taken.
        for _ in 0..3 {
            execute(
                &mut own,
                &format!("select pg_terminate_backend(pid) {OTHERS} and application_name = 'event-bus'"),
            )
            .await;
            while let Ok(one) = PgConnection::connect(url).await {
                taken.push(one);
            }
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        for one in taken {
            one.close().await.unwrap();
        }
    })
    .await;
    nobody_idles_in_a_transaction(scene).await;
    workers
}

/// What a statement hears that is chosen for an end; drawn anew for each.
const CONFLICTS: &str = "
    create sequence public.conflicts;
    create function public.conflict() returns trigger language plpgsql as $$
    begin
        if random() < 0.1 then
            -- This is not rolled back.
            perform nextval('public.conflicts');
            raise exception 'a conflict that the test wants' using errcode =
                (array['40001', '40P01', '55P03', '57014'])[1 + floor(random() * 4)::int];
        end if;
        return null;
    end $$;
";

async fn conflicts(scene: &mut Scene) -> Vec<Node> {
    // Statements that write any of these.
    const TABLES: [&str; 6] = ["delivery", "scheduled", "dedupe", "lease", "worker", "worker_handler"];
    let workers = under_load(scene, async |scene| {
        let mut connection = connect(scene.store.server().own_url()).await;
        execute(&mut connection, CONFLICTS).await;
        for table in TABLES {
            let trigger = format!(
                "create trigger conflict before insert or update or delete on event_bus.{table} \
                 for each statement execute function public.conflict()"
            );
            execute(&mut connection, &trigger).await;
        }
        tokio::time::sleep(Duration::from_secs(4)).await;
        for table in TABLES {
            execute(&mut connection, &format!("drop trigger conflict on event_bus.{table}")).await;
        }
        let conflicts = number(&mut connection, "select last_value from public.conflicts").await;
        assert!(conflicts > 20, "there were only {conflicts} conflicts");
        // And one that is no game: longer than a worker waits for a lock.
        execute(&mut connection, "begin; lock table event_bus.delivery in access exclusive mode").await;
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        execute(&mut connection, "commit").await;
    })
    .await;
    nobody_idles_in_a_transaction(scene).await;
    workers
}

async fn late_id(scene: &mut Scene) -> Vec<Node> {
    let workers = vec![scene.worker().await, scene.worker().await];
    for round in 0..5 {
        let mut connection = connect(scene.store.server().own_url()).await;
        let mut transaction = connection.begin().await.unwrap();
        // Its id is taken now, and seen only when others of the key have long run.
        let late = [note(900_000 + round).key("s1").read_by(HANDLERS[0])];
        let call = 900_000 + round;
        let events = late.iter().map(|note| published(note, &HANDLERS)).collect();
        scene.fleet.ledger.write(Fact::PublishIntent { call, publisher: 0, delay: 0, events });
        scene.fleet.bus.publish_all(&late).within(&mut *transaction).await.unwrap();
        for _ in 0..10 {
            let notes = scene.notes(8, 4, Duration::from_millis(5));
            scene.fleet.publish(&notes).await;
        }
        scene.until_more(40).await;
        transaction.commit().await.unwrap();
        scene.fleet.ledger.write(Fact::PublishOk { call });
        scene.rest().await;
    }
    workers
}

/// Nobody loses a right over this: it is not written down that they may, and a repeat would be a finding.
async fn listener_reset(scene: &mut Scene) -> Vec<Node> {
    let proxy = scene.proxy().await;
    let worker = scene.worker_behind(&proxy).await;
    let mut own = connect(scene.store.server().own_url()).await;
    let listeners = format!("select count(*) {OTHERS} and query like 'LISTEN%'");
    for _ in 0..5 {
        while number(&mut own, &listeners).await == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // The notification itself is lost with its connection, and so is every attempt to listen again.
        let lost =
            proxy.trap(Direction::ToClient, Sign::Contains(b"event_bus:event_bus".to_vec()), Then::Swallow);
        let refused: Vec<_> = (0..20)
            .map(|_| proxy.trap(Direction::ToServer, Sign::Contains(b"LISTEN".to_vec()), Then::Swallow))
            .collect();
        let notes = scene.notes(10, 5, Duration::ZERO);
        scene.fleet.publish(&notes).await;
        lost.sprung().await;
        while number(&mut own, &listeners).await > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let notes = scene.notes(10, 5, Duration::ZERO);
        scene.fleet.publish(&notes).await;
        scene.rest().await;
        // All of it has run, and nobody could hear of it.
        assert_eq!(number(&mut own, &listeners).await, 0, "somebody listens");
        drop(refused);
        proxy.pass();
    }
    worker.stop().await;
    Vec::new()
}

/// Publishes what nobody knows the fate of: the primary that takes it is about to be lost.
async fn publish_in_vain(scene: &Scene, notes: &[Note]) {
    let call = 900_000 + notes[0].number;
    let events = notes.iter().map(|note| published(note, &HANDLERS)).collect();
    scene.fleet.ledger.write(Fact::PublishIntent { call, publisher: 0, delay: 0, events });
    scene.fleet.bus.publish_all(notes).await.unwrap();
    scene.fleet.ledger.write(Fact::PublishUnknown { call });
}

/// Notes whose runs last longer than a worker believes in a server that says nothing.
fn long_ones(scene: &mut Scene, kind: &str, count: u64) -> Vec<Note> {
    let act = || vec![Act::Sleep(Duration::from_secs(12)); 4];
    (0..count).map(|key| scene.scripted(&format!("{kind}{key}"), act())).collect()
}

async fn failover(scene: &mut Scene) -> Vec<Node> {
    let primary = scene.store.server().own_url().to_owned();
    let mut own = connect(&primary).await;
    let elsewhere: Proxy = scene.proxy().await;
    let standby = Postgres::standby_of(&primary, &[("max_connections", "500")]).await;
    let mut there = connect(standby.url()).await;

    let one = scene.worker_behind(&elsewhere).await;
    let kept = long_ones(scene, "l", 4);
    scene.fleet.publish(&kept).await;
    scene.fleet.until_begun(&one, kept.len() + 3).await;
    let written = "select (pg_current_wal_lsn() - '0/0')::int8";
    let written = number(&mut own, written).await;
    while number(&mut there, "select (pg_last_wal_replay_lsn() - '0/0')::int8").await < written {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // From here on the standby hears nothing any more: of a second worker, of what it owns, of what is published.
    execute(&mut there, "alter system set primary_conninfo = ''").await;
    execute(&mut there, "select pg_reload_conf()").await;
    while number(&mut own, "select count(*) from pg_stat_replication").await > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let two = scene.worker_behind(&elsewhere).await;
    let least = "select coalesce(min(leases), 0) from (select count(l.worker_id) as leases from event_bus.worker w \
                 left join event_bus.lease l on l.worker_id = w.id group by w.id having (select count(*) from event_bus.worker) = 2) x";
    // Both have their share.
    while number(&mut own, least).await < 60 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let lost = long_ones(scene, "m", 12);
    publish_in_vain(scene, &lost).await;
    scene.fleet.until_begun(&two, 1).await;

    // The old primary is lost, and its workers only hear nothing any more.
    elsewhere.set_both(Flow::BlackHole);
    scene
        .in_doubt(&[one.number, two.number], async {
            scene.store.server().kill().await;
            execute(&mut there, "select pg_promote()").await;
            let known = number(&mut there, "select count(*) from event_bus.worker").await;
            assert_eq!(known, 1, "the standby did not lag");
        })
        .await;
    let url = format!("{}?handover_delay_ms=400", standby.url());
    scene.fleet.bus = Scene::bus_at(&url).await;
    let three = scene.fleet.worker_at(&url, &[]).await;
    let keys = kept.iter().chain(&lost).filter_map(|note| note.key.clone()).collect::<Vec<_>>();
    let after: Vec<_> = keys.iter().map(|key| scene.scripted(key, [Act::Succeed])).collect();
    scene.fleet.publish(&after).await;
    scene.in_doubt(&[one.number, two.number], scene.rest()).await;

    // They find the new primary where the old one was.
    elsewhere.lead_to(standby.host());
    scene.store.fail_over(standby);
    elsewhere.cut();
    elsewhere.pass();
    let notes = scene.notes(100, 20, Duration::from_millis(2));
    scene.fleet.publish(&notes).await;
    scene.fleet.until_begun(&two, 2).await;
    scene.rest().await;
    for worker in [one, two, three] {
        worker.stop().await;
    }
    Vec::new()
}

async fn pooler(scene: &mut Scene) -> Vec<Node> {
    let own = scene.store.server().own_url().to_owned();
    let host = scene.store.server().host();
    let (address, port) = host.split_once(':').unwrap();
    let bouncer = PgBouncer::start(&[("target", &format!("host={address} port={port} user=postgres"))]).await;
    let direct = own.replace(':', "%3A").replace('/', "%2F").replace('@', "%40");
    let url = format!("{}?pooler=true&direct_url={direct}", bouncer.url_of(&own));
    let workers = vec![scene.worker().await, scene.worker().await];
    let numbers: Vec<_> = workers.iter().map(|worker| worker.number).collect();
    let publishers =
        [5, 6].map(|seed: u64| scene.publisher(&url, 300, &["--acts-of", &seed.to_string(), IDEMPOTENT]));
    scene.until_more(20).await;
    scene
        .in_doubt(&numbers, async {
            for _ in 0..3 {
                bouncer.kill().await;
                bouncer.restart().await;
                tokio::time::sleep(Duration::from_millis(500)).await;
                let mut own = connect(&own).await;
                execute(
                    &mut own,
                    &format!("select pg_terminate_backend(pid) {OTHERS} order by random() limit 3"),
                )
                .await;
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            scene.store.server().kill().await;
            scene.store.server().restart().await;
        })
        .await;
    for publisher in publishers {
        scene.in_doubt(&numbers, publisher.ended()).await;
    }
    nobody_idles_in_a_transaction(scene).await;
    workers
}

/// Two workers with the default settings, of which the first runs something.
async fn by_default(scene: &mut Scene) -> [Node; 2] {
    let url = scene.store.patient_url.clone();
    let one = scene.fleet.worker_at(&url, &[]).await;
    let notes = scene.notes(1_600, 8, Duration::from_millis(50));
    scene.fleet.publish(&notes).await;
    let two = scene.fleet.worker_at(&url, &[]).await;
    scene.fleet.until_begun(&one, 20).await;
    let mut own = connect(scene.store.server().own_url()).await;
    while number(&mut own, "select count(*) from event_bus.worker").await < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    [one, two]
}

async fn killed_by_default(scene: &mut Scene) -> Vec<Node> {
    let [one, two] = by_default(scene).await;
    one.kill().await;
    vec![two]
}

async fn stopped_by_default(scene: &mut Scene) -> Vec<Node> {
    let [one, two] = by_default(scene).await;
    let lasts = Duration::from_secs(20);
    one.stall(lasts).await;
    tokio::time::sleep(lasts).await;
    let records = scene.fleet.history().records;
    let stalled_at = records.iter().find(|record| matches!(record.fact, Fact::WorkerStall { .. }));
    let stalled_at = stalled_at.map(|record| record.at).unwrap();
    let (mut last, mut worst) = (HashMap::new(), 0);
    for record in &records {
        let Fact::RunStart { worker, handler, key, .. } = &record.fact else { continue };
        if record.at < stalled_at {
            last.insert((handler, key), *worker);
        } else if last.remove(&(handler, key)) == Some(one.number) {
            worst = worst.max(record.at - stalled_at);
        }
    }
    println!(
        "     worst take-over from the stopped worker: {:.2} s",
        Duration::from_nanos(worst).as_secs_f32()
    );
    assert!(worst > 0, "nothing was taken over");
    scene.in_doubt(&[one.number], async { one.thaw() }).await;
    vec![one, two]
}
