//! The texts of all statements, for one schema.
//!
//! The `.sql` files say `event_bus.`, so that they can be read and tried as they are; here it becomes the schema's name.

use std::sync::Arc;

/// Comments are for readers, not for the server.
fn text(source: &str, schema: &str) -> Arc<str> {
    let lines = source.lines().filter(|line| !line.trim_start().starts_with("--"));
    in_schema(&lines.collect::<Vec<_>>().join("\n"), schema).into()
}

pub(crate) fn in_schema(sql: &str, schema: &str) -> String {
    sql.replace("event_bus.", &format!("{schema}."))
}

macro_rules! statements {
    ($($name:ident),* $(,)?) => {
        /// One text for each file in `queries/`.
        #[derive(Debug)]
        pub(crate) struct Statements {
            $(pub(crate) $name: Arc<str>,)*
        }

        impl Statements {
            pub(crate) fn new(schema: &str) -> Self {
                Self { $($name: text(include_str!(concat!("queries/", stringify!($name), ".sql")), schema),)* }
            }
        }
    };
}

statements! {
    add_handlers,
    bury,
    bury_worker,
    claim_free,
    claim_keyed,
    complete,
    complete_in,
    counts,
    dead_ids,
    dead_letters,
    end_silent_workers,
    enter,
    enter_handlers,
    first_parked,
    forget_keys,
    give_back,
    handlers,
    history,
    leave,
    let_go,
    load,
    meta,
    next_due,
    notify,
    park,
    parked_lanes,
    promote,
    publish,
    publish_once,
    purge,
    refill,
    release,
    replay,
    session,
    set_meta,
    start,
    survey,
    take,
    turn_history,
    wait_apart,
    wait_in_place,
}

#[cfg(test)]
mod tests {
    use event_bus_conformance::servers;
    use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};

    use super::*;
    use crate::PostgresBackend;

    /// What runs for every delivery, or while everybody waits, and whether it may follow an index without a condition.
    fn hot(sql: &Statements) -> Vec<(&'static str, &Arc<str>, bool)> {
        vec![
            ("bury", &sql.bury, false),
            ("bury_worker", &sql.bury_worker, false),
            ("claim_free", &sql.claim_free, false),
            ("claim_keyed", &sql.claim_keyed, false),
            ("complete", &sql.complete, false),
            ("complete_in", &sql.complete_in, false),
            ("first_parked", &sql.first_parked, false),
            ("forget_keys", &sql.forget_keys, false),
            ("leave", &sql.leave, false),
            ("let_go", &sql.let_go, false),
            // The first of all, and no more.
            ("next_due", &sql.next_due, true),
            ("park", &sql.park, false),
            ("parked_lanes", &sql.parked_lanes, false),
            ("promote", &sql.promote, false),
            ("publish", &sql.publish, false),
            ("publish_once", &sql.publish_once, false),
            ("purge", &sql.purge, false),
            ("refill", &sql.refill, false),
            ("replay", &sql.replay, false),
            ("start", &sql.start, false),
            ("take", &sql.take, false),
            ("wait_apart", &sql.wait_apart, false),
            ("wait_in_place", &sql.wait_in_place, false),
        ]
    }

    const LARGE: [&str; 5] = ["delivery", "parked", "scheduled", "dead", "dedupe"];

    const FILL: &str = "
        insert into event_bus.delivery (handler_id, slot, event_id, name, version, key, payload, published_at)
            select 1 + n % 3, n % 65 - 1, gen_random_uuid(), 'n', 1, case when n % 65 > 0 then 'k' || n % 1000 end, '\\x00', 0
            from generate_series(1, 1000000) n;
        insert into event_bus.parked
            select handler_id, slot, key, id, event_id, name, version, payload, headers, published_at, 0, 0, 0, null, null, false
            from event_bus.delivery where slot >= 0 limit 100000;
        insert into event_bus.scheduled (due_at, handler_id, slot, event_id, name, version, payload, published_at)
            select now() + n * interval '1 second', 1, -1, gen_random_uuid(), 'n', 1, '\\x00', 0 from generate_series(1, 100000) n;
        insert into event_bus.dead
            (handler_id, slot, origin_id, event_id, name, version, payload, published_at, failures, crashes, reason, holds_key)
            select 1, -1, n, gen_random_uuid(), 'n', 1, '\\x00', 0, 1, 0, 'exhausted', false from generate_series(1, 100000) n;
        insert into event_bus.dedupe (key) select 'k' || n from generate_series(1, 100000) n;
        analyze;
    ";

    /// The plan of a statement whatever its values are, as a worker's session would make it.
    async fn plan(connection: &mut PgConnection, name: &str, text: &str) -> Vec<String> {
        let run = async |connection: &mut PgConnection, sql: String| {
            sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(connection).await.unwrap()
        };
        run(connection, format!("prepare {name} as {text}")).await;
        let types = "select unnest(parameter_types)::text from pg_prepared_statements where name = ";
        let types = run(connection, format!("{types}'{name}'")).await;
        let values: Vec<String> =
            types.iter().map(|row| format!("null::{}", row.get::<&str, _>(0))).collect();
        let values = if values.is_empty() { String::new() } else { format!("({})", values.join(", ")) };
        let rows = run(connection, format!("explain (costs off) execute {name}{values}")).await;
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// The large table that a line of a plan reads, if it does.
    fn read_table(line: &str) -> Option<&'static str> {
        let (how, what) = line.split_once(" on ")?;
        let is_read = how.contains("Scan") && !how.contains("CTE") && !how.contains("Bitmap Index");
        let table = what.split_whitespace().next()?;
        LARGE.into_iter().find(|large| is_read && *large == table)
    }

    #[tokio::test]
    async fn no_hot_statement_reads_a_large_table_from_end_to_end() {
        let database = servers::postgres().await.database().await;
        let backend = PostgresBackend::from_url(database.url()).unwrap();
        let mut connection = PgConnection::connect(database.url()).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(backend.migrations_sql())).execute(&mut connection).await.unwrap();
        sqlx::raw_sql(FILL).execute(&mut connection).await.unwrap();
        sqlx::raw_sql("set plan_cache_mode = force_generic_plan; set enable_seqscan = off; set jit = off")
            .execute(&mut connection)
            .await
            .unwrap();
        let statements = Statements::new("event_bus");
        let mut wrong = Vec::new();
        for (name, text, may_follow) in hot(&statements) {
            let lines = plan(&mut connection, name, text).await;
            for (position, line) in lines.iter().enumerate() {
                let Some(table) = read_table(line) else { continue };
                let details = lines[position + 1..].iter().take_while(|line| !line.contains("->"));
                let has_condition = details
                    .into_iter()
                    .any(|line| line.contains("Index Cond") || line.contains("Recheck Cond"));
                if line.contains("Seq Scan") || !(has_condition || may_follow) {
                    wrong.push(format!("{name} reads all of {table}:\n{}", lines.join("\n")));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    }
}
