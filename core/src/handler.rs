//! Who wants to know: handlers, their options, and how they say that they failed.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use crate::context::Context;
use crate::event::Events;
use crate::retry::Backoff;

/// Something that reacts to events. Every registered, interested handler gets its own durable delivery of each event.
///
/// Write `#[async_trait]` above the implementation.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// The stable name under which deliveries are stored, by the rules of [`Event::NAME`](crate::Event::NAME).
    const NAME: &'static str;
    /// The event it takes, or a `#[derive(Events)]` enum of several. Events of one key come in order, whatever
    /// their type.
    type Event: Events;
    /// What a run returns to the caller of `run_event`; `()` where nothing is.
    type Output: Send + 'static;

    /// Whether this event concerns the handler at all. Asked in `publish`, before anything is stored, for all events
    /// of a batch; so it must be pure and quick. Default: yes.
    fn interested(&self, event: &Self::Event) -> bool {
        let _ = event;
        true
    }

    /// Priority, attempts, backoff and so on. Asked once, when the bus is built.
    fn options(&self) -> HandlerOptions {
        HandlerOptions::default()
    }

    /// Reacts to the event. Deliveries are at-least-once: a crash after the work and before its acknowledgement
    /// repeats it.
    ///
    /// # Errors
    /// `?` turns any error into a retry; [`Failure`] has the other ways out. A panic counts as a retry.
    ///
    /// # Cancel safety
    /// The future is dropped at an await point when its timeout passes, when the worker loses its right to the
    /// delivery, or when the grace time of a shutdown ends. The delivery is then not done.
    async fn handle(&self, event: Self::Event, cx: &Context) -> Result<Self::Output, Failure>;
}

/// How deliveries of one handler are run. Every invalid value is an error of `build`.
#[derive(Clone, Debug)]
pub struct HandlerOptions {
    pub(crate) priority: u8,
    pub(crate) max_attempts: u32,
    pub(crate) backoff: Backoff,
    pub(crate) timeout: Option<Duration>,
    pub(crate) concurrency: Option<usize>,
    pub(crate) on_failure: Order,
    pub(crate) on_exhausted: Exhausted,
}

impl Default for HandlerOptions {
    fn default() -> Self {
        Self {
            priority: 0,
            max_attempts: 5,
            backoff: Backoff::default(),
            timeout: None,
            concurrency: None,
            on_failure: Order::Hold,
            on_exhausted: Exhausted::Continue,
        }
    }
}

impl HandlerOptions {
    /// The defaults: priority 0, 5 attempts, exponential backoff, no timeout, [`Order::Hold`].
    pub fn new() -> Self {
        Self::default()
    }

    /// 0 (the most urgent, default) to 9. A worker starts a delivery of a handler only when no handler of a lower
    /// number has one that could start.
    #[must_use]
    pub fn priority(mut self, priority: u8) -> Self {
        self.priority = priority;
        self
    }

    /// How often a delivery is tried before it goes to the dead letters; at least 1, default 5.
    #[must_use]
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// How long to wait before the next attempt. Default: [`Backoff::default`].
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// How long one attempt may take; then its future is dropped and the attempt has failed. Default: no limit.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How many deliveries of this handler one worker runs at the same time; at least 1. Default: as many as the
    /// worker has slots.
    #[must_use]
    pub fn concurrency(mut self, deliveries: usize) -> Self {
        self.concurrency = Some(deliveries);
        self
    }

    /// What a failed delivery does to the later ones of its key. Default: [`Order::Hold`].
    #[must_use]
    pub fn on_failure(mut self, order: Order) -> Self {
        self.on_failure = order;
        self
    }

    /// What a delivery in the dead letters does to the later ones of its key. Default: [`Exhausted::Continue`].
    #[must_use]
    pub fn on_exhausted(mut self, exhausted: Exhausted) -> Self {
        self.on_exhausted = exhausted;
        self
    }

    /// Every invalid setting, in words.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.priority > 9 {
            problems.push(format!("priority {} is outside 0..=9", self.priority));
        }
        if self.max_attempts == 0 {
            problems.push("max_attempts is 0; a delivery needs at least 1".to_owned());
        }
        if self.concurrency == Some(0) {
            problems.push("concurrency is 0; at least 1 delivery must be able to run".to_owned());
        }
        if self.timeout == Some(Duration::ZERO) {
            problems.push("timeout is 0; leave it out for no limit".to_owned());
        }
        if self.on_failure == Order::Release && self.on_exhausted == Exhausted::HoldKey {
            problems.push(
                "on_exhausted(HoldKey) needs on_failure(Hold): a released key cannot be held".to_owned(),
            );
        }
        problems
    }
}

/// What a failed delivery does to the later deliveries of its partition key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// It holds the key: nothing later starts before it succeeded or lies in the dead letters.
    #[default]
    Hold,
    /// It lets the others pass and comes back when its delay is over. Still one at a time.
    Release,
}

/// What happens to a partition key when its head has used up its attempts (or was discarded).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exhausted {
    /// The head goes to the dead letters and the key goes on.
    #[default]
    Continue,
    /// The head goes to the dead letters and the key stands still until that dead letter is replayed (in its old
    /// place, so order is kept) or purged.
    HoldKey,
}

/// Why a run did not succeed, and what shall happen to the delivery.
///
/// `?` on any `std::error::Error` makes a [`retry`](Failure::retry). (`Failure` itself is not an `Error`, which is
/// what makes that possible.)
pub struct Failure {
    kind: FailureKind,
    cause: Option<Box<dyn StdError + Send + Sync + 'static>>,
}

/// What a [`Failure`] asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureKind {
    /// Another attempt after the handler's backoff.
    Retry,
    /// Another attempt after this long.
    RetryAfter(Duration),
    /// No further attempt: to the dead letters at once.
    Discard,
    /// Not now: try again after this long, and do not count this run as an attempt.
    Snooze(Duration),
}

impl Failure {
    /// Try again after the handler's backoff; to the dead letters when the attempts are used up.
    pub fn retry(cause: impl Into<Box<dyn StdError + Send + Sync + 'static>>) -> Self {
        Self { kind: FailureKind::Retry, cause: Some(cause.into()) }
    }

    /// Try again after `delay`; to the dead letters when the attempts are used up.
    pub fn retry_after(delay: Duration, cause: impl Into<Box<dyn StdError + Send + Sync + 'static>>) -> Self {
        Self { kind: FailureKind::RetryAfter(delay), cause: Some(cause.into()) }
    }

    /// Never try again: straight to the dead letters.
    pub fn discard(cause: impl Into<Box<dyn StdError + Send + Sync + 'static>>) -> Self {
        Self { kind: FailureKind::Discard, cause: Some(cause.into()) }
    }

    /// Try later without using up an attempt. The key is held meanwhile, as with a retry.
    pub fn snooze(delay: Duration) -> Self {
        Self { kind: FailureKind::Snooze(delay), cause: None }
    }

    /// What shall happen.
    pub fn kind(&self) -> FailureKind {
        self.kind
    }

    /// The error behind it; a snooze has none.
    pub fn cause(&self) -> Option<&(dyn StdError + Send + Sync + 'static)> {
        self.cause.as_deref()
    }
}

impl<E: StdError + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::retry(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Some(cause) => f.write_str(&crate::error::chain(cause.as_ref())),
            None => write!(f, "{:?}", self.kind),
        }
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failure").field("kind", &self.kind).field("cause", &self.cause).finish()
    }
}
