//! One run of one delivery: decode, call, time limit, panic barrier. The same in a worker, inside `publish` and in tests.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;

use crate::context::Context;
use crate::handler::Handler;
use crate::registry::{Registered, RunError, decode};
use crate::retry::RunEnd;

/// Runs a delivery through its handler. Never panics, whatever the handler does.
///
/// # Cancel safety
/// A dropped future drops the handler's future at its current await point.
pub async fn run(handler: &Registered, cx: &Context) -> RunEnd {
    match guarded(handler.call(cx), handler.options().timeout).await {
        Ok(()) => RunEnd::Done,
        Err(end) => end,
    }
}

/// Runs a delivery through a handler that is at hand with its type, registered or not, and returns what it returned.
/// Never panics, whatever the handler does.
///
/// # Errors
/// The end of the run, if it is not [`RunEnd::Done`].
///
/// # Cancel safety
/// A dropped future drops the handler's future at its current await point.
pub async fn run_typed<H: Handler>(handler: &H, cx: &Context) -> Result<H::Output, RunEnd> {
    let call = async {
        let event = decode::<H::Event>(cx).map_err(RunError::Undecodable)?;
        handler.handle(event, cx).await.map_err(RunError::Failed)
    };
    guarded(call, handler.options().timeout).await
}

/// The time limit and the panic barrier.
async fn guarded<T>(
    call: impl Future<Output = Result<T, RunError>>,
    timeout: Option<Duration>,
) -> Result<T, RunEnd> {
    let call = AssertUnwindSafe(call).catch_unwind();
    let result = match timeout {
        None => call.await,
        Some(limit) => tokio::time::timeout(limit, call).await.map_err(|_| RunEnd::TimedOut(limit))?,
    };
    match result {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(RunError::Failed(failure))) => Err(RunEnd::Failed(failure)),
        Ok(Err(RunError::Undecodable(error))) => Err(RunEnd::Undecodable(error)),
        Err(panic) => Err(RunEnd::Panicked(panic_text(panic.as_ref()))),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text =
        panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without a text").to_owned()
}
