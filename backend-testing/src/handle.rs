//! What joins other tasks, threads and buses to a test.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::thread::ThreadId;

use event_bus_core::{Event, EventBus};

use crate::Mode;
use crate::backend::TestingBackend;
use crate::faults::Fault;
use crate::ownership::{Scoped, on_this_thread};
use crate::state::State;

/// A cheap clone of a session's identity, to join code that has no session in reach. It does not keep the test open: what
/// it joins and publishes after the session has ended belongs to no test.
#[derive(Clone)]
pub struct TestHandle {
    pub(crate) state: Arc<State>,
}

impl TestHandle {
    /// The mode the test is in.
    pub fn mode(&self) -> Mode {
        self.state.lock().mode
    }

    /// The future as part of this test, in whatever task it runs: `tokio::spawn(test.scope(work()))`. Tasks that it
    /// spawns are not joined by that.
    pub fn scope<F: Future>(&self, future: F) -> Scoped<F> {
        Scoped::new(self.state.clone(), future)
    }

    /// The closure as part of this test, on whatever thread it runs: `thread::spawn(test.on_thread(|| work()))`.
    pub fn on_thread<T, F>(&self, work: F) -> impl FnOnce() -> T + use<T, F>
    where
        F: FnOnce() -> T,
    {
        let state = self.state.clone();
        move || on_this_thread(state, work)
    }

    /// Makes all that runs on a thread part of this test until the test ends, the tasks that run there included: for
    /// threads that are there already, and for a current-thread runtime with tasks that cannot be joined
    /// (`test.allow_thread(thread::current().id())`).
    ///
    /// # Panics
    /// If the thread is another test's.
    #[track_caller]
    pub fn allow_thread(&self, thread: ThreadId) {
        if let Err(other) = self.state.owners().allow(thread, &self.state) {
            fail(&format!("this thread is part of the test whose session was created at {}", show(other)));
        }
    }

    /// A bus that carries this test wherever it goes: same handlers, same settings.
    ///
    /// # Panics
    /// If no bus was built over the backend yet.
    #[track_caller]
    #[must_use]
    pub fn bus(&self) -> EventBus {
        match self.state.shared.bus() {
            Ok(bus) => bus.with_backend(Arc::new(TestingBackend::bound_to(self.state.clone()))),
            Err(error) => fail(error.message()),
        }
    }

    /// All events of a type that the test has published so far, in every mode, asserted or not, in order.
    #[must_use]
    pub fn published<E: Event>(&self) -> Vec<E> {
        self.state.all()
    }

    /// Makes something go wrong.
    pub fn inject(&self, fault: Fault) {
        self.state.lock().faults.add(fault);
    }

    /// How many injected faults have not struck yet: 0 at the end of a test that means what it says.
    pub fn faults_left(&self) -> usize {
        self.state.lock().faults.left()
    }

    /// Behind `assert_event_published!`.
    #[doc(hidden)]
    #[track_caller]
    pub fn __take<E: Event, T>(&self, pattern: &str, look: impl Fn(&E) -> Option<T>) -> (E, T) {
        match self.state.take(pattern, look) {
            Ok(taken) => taken,
            Err(text) => fail(&text),
        }
    }

    /// Behind `refute_event_published!`.
    #[doc(hidden)]
    #[track_caller]
    pub fn __refute<E: Event>(&self, pattern: &str, look: impl Fn(&E) -> bool) {
        if let Some(text) = self.state.find(pattern, look) {
            fail(&text);
        }
    }

    /// Behind `assert_no_events!`.
    #[doc(hidden)]
    #[track_caller]
    pub fn __refute_all(&self) {
        if let Some(text) = self.state.find_any() {
            fail(&text);
        }
    }

    #[track_caller]
    pub(crate) fn own_caller(&self) {
        if let Err(other) = self.state.owners().add(&self.state) {
            fail(&format!(
                "this task has a session already, created at {}; drop that first, or use detached_session()",
                show(other)
            ));
        }
    }
}

impl fmt::Debug for TestHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seen = self.state.lock();
        f.debug_struct("TestHandle")
            .field("mode", &seen.mode)
            .field("events", &seen.records.len())
            .finish_non_exhaustive()
    }
}

/// Joins a future to a test: `tokio::spawn(work().in_test(&test))`.
pub trait InTest: Future + Sized {
    /// See [`TestHandle::scope`].
    fn in_test(self, test: &TestHandle) -> Scoped<Self> {
        test.scope(self)
    }
}

impl<F: Future> InTest for F {}

fn show(location: &Location<'_>) -> String {
    format!("{}:{}", location.file(), location.line())
}

/// A failed test.
#[track_caller]
#[expect(clippy::panic, reason = "this is how a test fails")]
pub(crate) fn fail(text: &str) -> ! {
    panic!("{text}")
}
