//! The rows, by what the fault befalls.

mod backlogs;
mod everything;
mod letters;
mod network;
mod payloads;
mod postgres;
mod rabbitmq;
mod redis;
mod servers;
mod sqlite;
mod surroundings;
mod workers;

use std::pin::Pin;

use super::medium::Medium;
use super::scene::Scene;
use super::surroundings::Need;
use crate::checker::Kind;
use crate::fleet::Node;

/// A fault.
#[derive(Clone, Copy)]
pub(super) struct Row {
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    /// Why it cannot be run on a medium.
    pub(super) why_not: fn(Medium) -> Option<&'static str>,
    /// What the checker finds although all is as it must be.
    pub(super) expects: &'static [Kind],
    /// The media on which it takes some seconds only: it is part of the fast subset there.
    pub(super) fast: &'static [Medium],
    /// What must be there before the server is.
    pub(super) needs: &'static [Need],
    /// Brings it about, heals it, and answers with the workers that are left.
    pub(super) run: Run,
}

pub(super) type Run = for<'s> fn(&'s mut Scene) -> Pin<Box<dyn Future<Output = Vec<Node>> + Send + 's>>;

/// Rows of a file: `rows! { "W1" "a title" a_function, fast: [Sqlite]; "W9" "another" another, why_not: f, expects:
/// [Overlap]; }`.
macro_rules! rows {
    ($($id:literal $title:literal $run:ident
       $(, why_not: $why:expr)? $(, expects: [$($kind:ident),*])? $(, needs: [$($need:ident),*])?
       $(, fast: [$($medium:ident),*])?;)*) => {
        pub(super) fn rows() -> Vec<super::Row> {
            vec![$(super::Row {
                id: $id,
                title: $title,
                why_not: {
                    let why: &[fn(super::Medium) -> Option<&'static str>] = &[$($why)?];
                    why.first().copied().unwrap_or(|_| None)
                },
                expects: &[$($(crate::checker::Kind::$kind),*)?],
                fast: &[$($(super::Medium::$medium),*)?],
                needs: &[$($(super::Need::$need),*)?],
                run: |scene| Box::pin($run(scene)),
            }),*]
        }
    };
}
use rows;

/// All of them.
pub(super) fn all() -> Vec<Row> {
    [
        workers::rows(),
        backlogs::rows(),
        payloads::rows(),
        letters::rows(),
        surroundings::rows(),
        network::rows(),
        servers::rows(),
        postgres::rows(),
        redis::rows(),
        rabbitmq::rows(),
        sqlite::rows(),
        everything::rows(),
    ]
    .concat()
}

fn without_server(medium: Medium) -> Option<&'static str> {
    (!medium.has_server()).then_some("there is no server and no connection: the store is a file")
}

fn without_idempotency_keys(medium: Medium) -> Option<&'static str> {
    let has_no_keys = (!medium.has_idempotency_keys()).then_some("it has no idempotency keys");
    without_server(medium).or(has_no_keys)
}

fn not_postgres(medium: Medium) -> Option<&'static str> {
    (medium != Medium::Postgres).then_some("it is about Postgres")
}

fn not_redis(medium: Medium) -> Option<&'static str> {
    (medium != Medium::Redis).then_some("it is about Redis")
}

fn not_rabbitmq(medium: Medium) -> Option<&'static str> {
    (medium != Medium::RabbitMq).then_some("it is about RabbitMQ")
}

fn not_sqlite(medium: Medium) -> Option<&'static str> {
    (medium != Medium::Sqlite).then_some("it is about a file")
}
