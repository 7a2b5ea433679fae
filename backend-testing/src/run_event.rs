//! One handler, one event, no bus.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use event_bus_core::backend::{Delivery, DeliveryId, Envelope, ErrorLog, HandlerIndex, Headers, Partition};
use event_bus_core::clock::Environment;
use event_bus_core::retry::RunEnd;
use event_bus_core::run::run_typed;
use event_bus_core::{Context, Event, Events, FailureKind, Handler, codec};

use crate::backend::Answering;

/// Runs a handler on an event, registered or not, without a bus: `run_event(&event, &handler).await?`.
///
/// It happens what happens in production: `interested` is asked, the event goes through its codec, `handle` is called
/// behind the handler's own timeout and the panic barrier, as the first attempt (see [`RunEvent::attempt`]).
pub fn run_event<'a, E: Event, H: Handler>(event: &'a E, handler: &'a H) -> RunEvent<'a, E, H> {
    RunEvent { event, handler, attempt: 1, headers: Headers::new() }
}

/// A run in the making; awaiting it runs.
///
/// # Errors
/// A [`RunFailure`] with its kind.
///
/// # Cancel safety
/// A dropped future drops the handler's at its current await point.
#[must_use = "nothing runs until this is awaited"]
pub struct RunEvent<'a, E, H> {
    event: &'a E,
    handler: &'a H,
    attempt: u32,
    headers: Headers,
}

impl<E, H> RunEvent<'_, E, H> {
    /// Which attempt the handler sees; default 1.
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.attempt = attempt.max(1);
        self
    }

    /// A header the handler sees.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }
}

impl<E: Event, H: Handler> RunEvent<'_, E, H> {
    async fn run(self) -> Result<Ran<H::Output>, RunFailure> {
        let event: &dyn Any = self.event;
        if !H::Event::inspect(event, |event| self.handler.interested(event)).unwrap_or(false) {
            return Ok(Ran::NotInterested);
        }
        let failure = |kind, text, end| RunFailure { handler: H::NAME, event: E::NAME, kind, text, end };
        let payload =
            codec::encode(self.event).map_err(|error| failure(RunFailureKind::Unencodable, error, None))?;
        let environment = Environment::default();
        let delivery = Delivery {
            id: DeliveryId(1),
            partition: Partition { handler: HandlerIndex(0), number: Partition::WHOLE },
            envelope: Envelope {
                id: environment.event_id(),
                name: E::NAME.into(),
                version: E::VERSION,
                key: self.event.partition_key().map(|key| Arc::from(&*key)),
                payload,
                headers: (!self.headers.is_empty()).then(|| Arc::new(self.headers)),
                published_at: environment.clock.now(),
            },
            failures: self.attempt - 1,
            crashes: 0,
            errors: ErrorLog::default(),
            due_in: None,
            is_held: false,
            fence: 0,
        };
        let cx = Context::with_options(H::NAME.into(), &self.handler.options(), Arc::new(delivery));
        let cx = cx.with_session(Arc::new(Answering));
        run_typed(self.handler, &cx).await.map(Ran::Processed).map_err(|end| {
            let kind = RunFailureKind::of(&end);
            let text = match (&end, kind) {
                (_, RunFailureKind::Snooze(delay)) => format!("asked to wait for {delay:?}"),
                (RunEnd::Failed(failure), RunFailureKind::Discard) => format!("discarded: {failure}"),
                _ => end.error().unwrap_or_default(),
            };
            failure(kind, text, Some(end))
        })
    }
}

impl<'a, E: Event, H: Handler> IntoFuture for RunEvent<'a, E, H> {
    type Output = Result<Ran<H::Output>, RunFailure>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl<E: Event, H: Handler> fmt::Debug for RunEvent<'_, E, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunEvent")
            .field("event", &E::NAME)
            .field("handler", &H::NAME)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

/// What a run came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ran<T> {
    /// The handler succeeded and returned this.
    Processed(T),
    /// The handler does not take events of this type, or is not interested in this one: nothing ran.
    NotInterested,
}

impl<T> Ran<T> {
    /// What the handler returned, if it ran.
    pub fn processed(self) -> Option<T> {
        match self {
            Self::Processed(value) => Some(value),
            Self::NotInterested => None,
        }
    }
}

/// A run that did not succeed.
#[derive(Debug)]
pub struct RunFailure {
    handler: &'static str,
    event: &'static str,
    kind: RunFailureKind,
    text: String,
    end: Option<RunEnd>,
}

/// How a run failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RunFailureKind {
    /// The handler asked for another attempt: by `?`, or by `Failure::retry`.
    Retry,
    /// For another attempt after this long.
    RetryAfter(Duration),
    /// For none: straight to the dead letters.
    Discard,
    /// To run again after this long, without using up an attempt.
    Snooze(Duration),
    /// It panicked.
    Panicked,
    /// It took longer than its timeout, which is this.
    TimedOut(Duration),
    /// The event could not be decoded from what it was encoded to.
    Undecodable,
    /// The event could not be encoded; `publish` would refuse it.
    Unencodable,
}

impl RunFailureKind {
    fn of(end: &RunEnd) -> Self {
        match end {
            RunEnd::Failed(failure) => match failure.kind() {
                FailureKind::RetryAfter(delay) => Self::RetryAfter(delay),
                FailureKind::Discard => Self::Discard,
                FailureKind::Snooze(delay) => Self::Snooze(delay),
                _ => Self::Retry,
            },
            RunEnd::Panicked(_) => Self::Panicked,
            RunEnd::TimedOut(limit) => Self::TimedOut(*limit),
            // `Done` is no failure and never comes here.
            RunEnd::Undecodable(_) | RunEnd::Done => Self::Undecodable,
        }
    }
}

impl RunFailure {
    /// How it failed.
    pub fn kind(&self) -> RunFailureKind {
        self.kind
    }

    /// What the handler said: the error with its causes, the text of the panic.
    pub fn message(&self) -> &str {
        &self.text
    }

    /// The handler's own error, if it returned one: downcast it to look into it.
    pub fn cause(&self) -> Option<&(dyn StdError + Send + Sync + 'static)> {
        match &self.end {
            Some(RunEnd::Failed(failure)) => failure.cause(),
            _ => None,
        }
    }
}

impl fmt::Display for RunFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed on {} ({:?}): {}", self.handler, self.event, self.kind, self.text)
    }
}

impl StdError for RunFailure {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause().map(|cause| cause as _)
    }
}

/// Behind `run_event!`.
#[doc(hidden)]
#[track_caller]
pub fn __expect_ran<T>(result: Result<Ran<T>, RunFailure>) -> Ran<T> {
    match result {
        Ok(ran) => ran,
        Err(failure) => crate::handle::fail(&failure.to_string()),
    }
}
