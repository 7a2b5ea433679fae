//! A call to the store that runs beside the engine, and the pause after a failed one.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep};

use crate::error::{Error, ErrorKind, Result};

/// At most one call under way. It runs in a task of its own, so that reading rows and running handlers share the cores;
/// it is cancelled when this is dropped.
pub(super) struct Call<T>(Option<JoinHandle<T>>);

impl<T: Send + 'static> Call<Result<T>> {
    pub(super) fn none() -> Self {
        Self(None)
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.0.is_some()
    }

    pub(super) fn start(&mut self, call: impl Future<Output = Result<T>> + Send + 'static) {
        self.0 = Some(tokio::spawn(call));
    }

    /// Its answer; pending if there is no call.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<T>> {
        let Some(task) = &mut self.0 else { return Poll::Pending };
        match Pin::new(task).poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(result) => {
                self.0 = None;
                Poll::Ready(result.unwrap_or_else(|error| {
                    // A panicking backend must not take the worker with it: a new session starts clean.
                    Err(Error::new(ErrorKind::Closed, "session", "a call of the backend panicked")
                        .with_source(error))
                }))
            }
        }
    }
}

impl<T> Drop for Call<T> {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// A pause that doubles with each failure in a row, with up to 25 % jitter.
pub(super) struct Pause {
    first: Duration,
    max: Duration,
    next: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Pause {
    pub(super) fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, next: first, sleep: None }
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.sleep.is_some()
    }

    /// Begins the next pause and says how long it is.
    pub(super) fn start(&mut self, fraction: f64) -> Duration {
        let pause = self.next.mul_f64(1.0 + 0.25 * fraction);
        self.next = (self.next * 2).min(self.max);
        self.sleep = Some(Box::pin(tokio::time::sleep_until(Instant::now() + pause)));
        pause
    }

    /// The last attempt succeeded.
    pub(super) fn reset(&mut self) {
        self.next = self.first;
        self.sleep = None;
    }

    /// Ready when a pause is over; pending if there is none.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(sleep) = &mut self.sleep else { return Poll::Pending };
        let poll = sleep.as_mut().poll(cx);
        if poll.is_ready() {
            self.sleep = None;
        }
        poll
    }
}
