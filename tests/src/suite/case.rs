//! A case, and what it needs.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use event_bus::backend::Capabilities;
use futures_util::FutureExt as _;

use super::harness::Harness;
use super::world::World;

/// How long a case may take before it has failed. Cases take a fraction of a second; this is for a machine under load.
pub const DEADLINE: Duration = Duration::from_secs(30);

pub(super) type Run = for<'w> fn(&'w World) -> Pin<Box<dyn Future<Output = ()> + Send + 'w>>;

/// One sentence about a bus.
#[derive(Clone, Copy)]
pub struct Case {
    /// The promise it belongs to.
    pub guarantee: &'static str,
    /// The sentence.
    pub name: &'static str,
    /// What a backend must offer for it.
    pub needs: &'static [Need],
    /// What a backend must lack for it: the mirror of the cases that need it.
    pub lacks: Option<Need>,
    pub(super) run: Run,
}

/// What not every backend or harness offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// [`Capabilities::durable`]: workers.
    Worker,
    /// [`Capabilities::transactional_publish`].
    TransactionalPublish,
    /// [`Capabilities::transactional_complete`].
    TransactionalComplete,
    /// [`Capabilities::delay`].
    Delay,
    /// [`Capabilities::idempotency_key`].
    IdempotencyKey,
    /// [`Capabilities::atomic_publish`].
    AtomicPublish,
    /// [`Capabilities::dead_letters`].
    DeadLetters,
    /// [`Capabilities::hold_key`].
    HoldKey,
    /// A harness that can take the store away.
    Outage,
    /// A harness that can change what a store says about itself.
    Tamper,
    /// A harness with programs.
    Processes,
}

impl Need {
    fn is_met(self, capabilities: &Capabilities, harness: &dyn Harness) -> bool {
        match self {
            Self::Worker => capabilities.durable,
            Self::TransactionalPublish => capabilities.transactional_publish,
            Self::TransactionalComplete => capabilities.transactional_complete,
            Self::Delay => capabilities.delay,
            Self::IdempotencyKey => capabilities.idempotency_key,
            Self::AtomicPublish => capabilities.atomic_publish,
            Self::DeadLetters => capabilities.dead_letters,
            Self::HoldKey => capabilities.hold_key,
            Self::Outage => harness.has_outages(),
            Self::Tamper => harness.can_tamper(),
            Self::Processes => harness.node().is_some(),
        }
    }

    const fn what(self) -> &'static str {
        match self {
            Self::Worker => "no workers",
            Self::TransactionalPublish => "no publishing within a transaction",
            Self::TransactionalComplete => "no completing within a transaction",
            Self::Delay => "no delays",
            Self::IdempotencyKey => "no idempotency keys",
            Self::AtomicPublish => "no atomic publish",
            Self::DeadLetters => "no dead letters",
            Self::HoldKey => "no held keys",
            Self::Outage => "no outages in the harness",
            Self::Tamper => "no tampering in the harness",
            Self::Processes => "no processes in the harness",
        }
    }
}

impl Case {
    /// Whether it is a sentence about this backend at all: the mirror of something offered is not.
    pub fn applies_to(&self, harness: &dyn Harness) -> bool {
        self.lacks.is_none_or(|need| !need.is_met(&harness.capabilities(), harness))
    }

    /// Why it cannot be run, in a few words.
    pub fn why_ignored(&self, harness: &dyn Harness) -> Option<&'static str> {
        let capabilities = harness.capabilities();
        self.needs.iter().find(|need| !need.is_met(&capabilities, harness)).map(|need| need.what())
    }

    /// Runs it.
    ///
    /// # Errors
    /// What went wrong, and all that the handlers did.
    pub async fn run(&self, harness: Arc<dyn Harness>) -> Result<(), String> {
        let world = World::new(harness).await;
        let case = AssertUnwindSafe((self.run)(&world)).catch_unwind();
        let deadline = DEADLINE + world.harness.takeover() * 12;
        let verdict = match tokio::time::timeout(deadline, case).await {
            Ok(Ok(())) => world.stage.violations(),
            Ok(Err(panic)) => Err(text(panic.as_ref())),
            Err(_) => Err(format!("still waiting after {deadline:?}")),
        };
        verdict.map_err(|why| format!("{why}\n{}", world.stage))
    }
}

pub(crate) fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic").to_owned()
}

/// The cases of a file: `cases! { "key_order"; a_sentence [Worker]; another [Worker, Delay]; }`; `lacks` makes a mirror.
macro_rules! cases {
    ($guarantee:literal; $($name:ident $([$($need:ident),*])? $(lacks $lack:ident)?;)*) => {
        pub(super) fn cases() -> Vec<super::Case> {
            vec![$(super::Case {
                guarantee: $guarantee,
                name: stringify!($name),
                needs: &[$($(super::Need::$need),*)?],
                lacks: { let lacks: &[super::Need] = &[$(super::Need::$lack)?]; lacks.first().copied() },
                run: |world| Box::pin($name(world)),
            }),*]
        }
    };
}
