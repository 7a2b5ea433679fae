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
    handlers,
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
    wait_apart,
    wait_in_place,
}
