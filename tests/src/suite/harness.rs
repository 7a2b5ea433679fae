//! What a backend brings to be tested.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use event_bus::backend::{Backend, Capabilities};
use event_bus::{Context, Publish, Receipt, Result};

/// A backend in one of its modes.
#[async_trait]
pub trait Harness: Send + Sync + 'static {
    /// How its cases are called: `sqlite`, `postgres-polling`.
    fn name(&self) -> &'static str;

    /// What it claims. Pinned here, so that a capability cannot vanish unnoticed.
    fn capabilities(&self) -> Capabilities;

    /// A fresh store that nobody else uses; gone when it is dropped. A missing server is a panic that says how to get one.
    async fn sandbox(&self) -> Arc<dyn Sandbox>;

    /// Whether sandboxes have [`Sandbox::outage`].
    fn has_outages(&self) -> bool {
        false
    }

    /// Whether sandboxes have [`Sandbox::tamper`].
    fn can_tamper(&self) -> bool {
        false
    }

    /// Whether a process that was stopped keeps its right to work for as long as it stands.
    fn keeps_stopped_workers(&self) -> bool {
        false
    }

    /// How long it takes until others follow a worker that was killed. Cases have that much more time, a dozen times.
    fn takeover(&self) -> Duration {
        Duration::ZERO
    }

    /// How many deliveries can stand behind a stuck head before other keys must wait with them, if there is a limit.
    fn longest_line(&self) -> Option<usize> {
        None
    }

    /// The program of this crate called `node`, if sandboxes have a [`Sandbox::url`] for it.
    fn node(&self) -> Option<PathBuf> {
        None
    }
}

/// A store of one case.
#[async_trait]
pub trait Sandbox: Send + Sync {
    /// A new handle on the store, which shares nothing with the others in memory: another process, as far as one can be
    /// had within one.
    fn backend(&self) -> Arc<dyn Backend>;

    /// The store's address, for programs.
    fn url(&self) -> String {
        panic!("this harness has no url")
    }

    /// A transaction of the application's own.
    async fn transaction(&self) -> Box<dyn Transaction> {
        panic!("this harness has no transactions")
    }

    /// The effects of transactions that were committed.
    async fn effects(&self) -> Vec<u64> {
        panic!("this harness has no transactions")
    }

    /// Makes the store useless until the answer is told to end.
    async fn outage(&self) -> Box<dyn Outage> {
        panic!("this harness has no outages")
    }

    /// Changes what the store says about itself.
    async fn tamper(&self, tamper: Tamper) {
        panic!("this harness cannot do {tamper:?}")
    }
}

/// A transaction of the application, on the store that the bus uses.
#[async_trait]
pub trait Transaction: Send {
    /// Publishes within it.
    async fn publish<'a>(&'a mut self, publish: Publish<'a>) -> Result<Receipt>;

    /// Completes a delivery within it.
    async fn complete(&mut self, cx: &Context) -> Result<()>;

    /// Writes something of the application's own.
    async fn effect(&mut self, number: u64);

    /// Makes it so.
    async fn commit(self: Box<Self>);

    /// Makes it undone.
    async fn rollback(self: Box<Self>);
}

/// A time without the store.
#[async_trait]
pub trait Outage: Send {
    /// The store is back.
    async fn end(self: Box<Self>);
}

/// What a store may say about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tamper {
    /// It was upgraded to version 99 by a newer binary.
    NewerSchema,
    /// It was created with another number of slots.
    OtherSlots,
}
