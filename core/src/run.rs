//! One run of one delivery: decode, call, time limit, panic barrier. The same in a worker, inside `publish` and in tests.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;

use crate::context::Context;
use crate::registry::{Registered, RunError};
use crate::retry::RunEnd;

/// Runs a delivery through its handler. Never panics, whatever the handler does.
///
/// # Cancel safety
/// A dropped future drops the handler's future at its current await point.
pub async fn run(handler: &Registered, cx: &Context) -> RunEnd {
    let call = AssertUnwindSafe(handler.call(cx)).catch_unwind();
    let result = match handler.options().timeout {
        None => call.await,
        Some(limit) => match tokio::time::timeout(limit, call).await {
            Ok(result) => result,
            Err(_) => return RunEnd::TimedOut(limit),
        },
    };
    match result {
        Ok(Ok(())) => RunEnd::Done,
        Ok(Err(RunError::Failed(failure))) => RunEnd::Failed(failure),
        Ok(Err(RunError::Undecodable(error))) => RunEnd::Undecodable(error),
        Err(panic) => RunEnd::Panicked(panic_text(panic.as_ref())),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text =
        panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without a text").to_owned()
}
