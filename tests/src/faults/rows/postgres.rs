//! What befalls Postgres alone.

use std::time::Duration;

use sqlx::{Connection as _, PgConnection};

use super::super::scene::Scene;
use super::not_postgres;
use super::servers::under_load;
use crate::fleet::Node;
use crate::history::Fact;
use crate::node::{HANDLERS, published};
use crate::suite::note;

super::rows! {
    "S5" "sessions are terminated at random" terminated, why_not: not_postgres;
    "S6" "a publisher's open transaction holds a lower id of a key" late_id, why_not: not_postgres;
}

async fn terminated(scene: &mut Scene) -> Vec<Node> {
    let workers = under_load(scene, async |scene| {
        for _ in 0..40 {
            let mut connection = PgConnection::connect(scene.store.server().own_url()).await.unwrap();
            let terminate = "select pg_terminate_backend(pid) from pg_stat_activity \
                             where pid <> pg_backend_pid() and backend_type = 'client backend' order by random() limit 2";
            sqlx::query(terminate).execute(&mut connection).await.unwrap();
            connection.close().await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    scene.rest().await;
    let mut connection = PgConnection::connect(scene.store.server().own_url()).await.unwrap();
    let idle = "select count(*) from pg_stat_activity where state like 'idle in transaction%'";
    let left: i64 = sqlx::query_scalar(idle).fetch_one(&mut connection).await.unwrap();
    assert_eq!(left, 0, "sessions are left idle in a transaction");
    workers
}

async fn late_id(scene: &mut Scene) -> Vec<Node> {
    let workers = vec![scene.worker().await, scene.worker().await];
    for round in 0..5 {
        let mut connection = PgConnection::connect(scene.store.server().own_url()).await.unwrap();
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
