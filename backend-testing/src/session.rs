//! One test.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::thread;

use crate::Mode;
use crate::handle::{TestHandle, fail};
use crate::state::State;

/// One test's view of what is published. Everything a [`TestHandle`] does it does as well.
///
/// # Panics
/// Dropping it in [`Mode::Strict`] with events left that were not asserted, unless the thread is panicking already.
pub struct TestSession {
    handle: TestHandle,
}

impl TestSession {
    pub(crate) fn new(state: Arc<State>) -> Self {
        Self { handle: TestHandle { state } }
    }

    /// What happens to events from now on.
    ///
    /// # Panics
    /// If strict mode is left while events are unasserted. The mode then stays strict, and the events count as reported:
    /// no later check lists them again.
    #[track_caller]
    pub fn set_mode(&mut self, mode: Mode) {
        if mode != Mode::Strict
            && let Some(text) = self.handle.state.report_unasserted()
        {
            fail(&text);
        }
        self.handle.state.lock().mode = mode;
    }

    /// What joins other code to this test.
    #[must_use]
    pub fn handle(&self) -> TestHandle {
        self.handle.clone()
    }
}

impl Deref for TestSession {
    type Target = TestHandle;

    fn deref(&self) -> &TestHandle {
        &self.handle
    }
}

impl Drop for TestSession {
    fn drop(&mut self) {
        // A second panic would end the process and hide the first one, which is the one that explains something.
        match self.handle.state.end() {
            Some(text) if !thread::panicking() => fail(&text),
            _ => {}
        }
    }
}

impl fmt::Debug for TestSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.handle, f)
    }
}
