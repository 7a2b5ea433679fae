//! Which test a publish call belongs to.
//!
//! In this order, the first that answers:
//! 1. the bus itself, if it came from `test.bus()`;
//! 2. the future it runs in, if that was joined by `scope` or `in_test` (a task-local);
//! 3. the closure it runs in, if that was wrapped by `on_thread` (a thread-local);
//! 4. the tokio task, if the session was created in a spawned task;
//! 5. the thread, if it was allowed by `allow_thread`;
//! 6. the thread, if the session was created there, outside any spawned task: a plain test, or the main future of a
//!    runtime, which `block_on` keeps on its thread in both flavours.
//!
//! A spawned task never inherits the thread it happens to run on: with a runtime that several tests share it could be
//! anyone's.

use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::Location;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::thread::{self, ThreadId};

use tokio::task;
use tokio::task::futures::TaskLocalFuture;

use crate::state::State;

/// The tests that a piece of code was joined to, the innermost first: with several backends there are several.
pub(crate) struct Joined {
    state: Arc<State>,
    outer: Option<Arc<Joined>>,
}

tokio::task_local! {
    static FUTURE: Arc<Joined>;
}

thread_local! {
    static THREAD: RefCell<Option<Arc<Joined>>> = const { RefCell::new(None) };
}

/// What a session's creator runs in.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Own {
    Task(task::Id),
    Thread(ThreadId),
}

impl Own {
    fn current() -> Self {
        task::try_id().map_or_else(|| Self::Thread(thread::current().id()), Self::Task)
    }
}

/// The sessions of one backend, by what belongs to them.
#[derive(Default)]
pub(crate) struct Owners {
    maps: Mutex<Maps>,
}

#[derive(Default)]
struct Maps {
    own: HashMap<Own, Weak<State>>,
    threads: HashMap<ThreadId, Weak<State>>,
}

impl Owners {
    /// Gives the calling task, or thread, to a session.
    ///
    /// # Errors
    /// Where the session was created that has it already.
    pub(crate) fn add(&self, state: &Arc<State>) -> Result<(), &'static Location<'static>> {
        let own = Own::current();
        let mut maps = self.lock();
        if let Some(owner) = maps.own.get(&own).and_then(Weak::upgrade) {
            return Err(owner.created_at());
        }
        maps.own.insert(own, Arc::downgrade(state));
        Ok(())
    }

    /// Gives a thread, with all tasks that run on it, to a session.
    ///
    /// # Errors
    /// Where the session was created that has it already.
    pub(crate) fn allow(
        &self,
        thread: ThreadId,
        state: &Arc<State>,
    ) -> Result<(), &'static Location<'static>> {
        let mut maps = self.lock();
        match maps.threads.get(&thread).and_then(Weak::upgrade) {
            Some(owner) if !Arc::ptr_eq(&owner, state) => return Err(owner.created_at()),
            _ => maps.threads.insert(thread, Arc::downgrade(state)),
        };
        Ok(())
    }

    /// Forgets a session.
    pub(crate) fn remove(&self, state: &Arc<State>) {
        let is_other = |owner: &Weak<State>| !std::ptr::eq(owner.as_ptr(), Arc::as_ptr(state));
        let mut maps = self.lock();
        maps.own.retain(|_, owner| is_other(owner));
        maps.threads.retain(|_, owner| is_other(owner));
    }

    /// The session that the calling code belongs to.
    pub(crate) fn find(&self) -> Option<Arc<State>> {
        let joined = FUTURE.try_with(|joined| self.among(Some(joined))).ok().flatten();
        joined.or_else(|| THREAD.with_borrow(|joined| self.among(joined.as_ref()))).or_else(|| {
            let maps = self.lock();
            let own = Own::current();
            let of = |owner| maps.own.get(&owner);
            let task = matches!(own, Own::Task(_)).then(|| of(own)).flatten();
            let allowed = || maps.threads.get(&thread::current().id());
            let thread = || matches!(own, Own::Thread(_)).then(|| of(own)).flatten();
            task.or_else(allowed).or_else(thread).and_then(Weak::upgrade)
        })
    }

    fn among(&self, joined: Option<&Arc<Joined>>) -> Option<Arc<State>> {
        let chain = std::iter::successors(joined, |joined| joined.outer.as_ref());
        let mine = |joined: &&Arc<Joined>| std::ptr::eq(joined.state.owners(), self);
        chain.filter(|joined| mine(joined)).map(|joined| joined.state.clone()).next()
    }

    fn lock(&self) -> MutexGuard<'_, Maps> {
        // Each change is a single call on a map: a panic leaves no half of one.
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the calling code is joined to already.
fn outer() -> Option<Arc<Joined>> {
    FUTURE.try_with(Arc::clone).ok().or_else(|| THREAD.with_borrow(Option::clone))
}

/// Runs `work` on this thread as part of a test.
pub(crate) fn on_this_thread<T>(state: Arc<State>, work: impl FnOnce() -> T) -> T {
    /// Puts back what was there, also when `work` panics.
    struct Restore(Option<Arc<Joined>>);

    impl Drop for Restore {
        fn drop(&mut self) {
            let before = self.0.take();
            THREAD.with_borrow_mut(|joined| *joined = before);
        }
    }

    let joined = Arc::new(Joined { state, outer: outer() });
    let _restore = Restore(THREAD.with_borrow_mut(|current| current.replace(joined)));
    work()
}

/// A future that belongs to a test wherever it runs; see [`InTest`](crate::InTest).
#[must_use = "futures do nothing unless they are awaited"]
pub struct Scoped<F>(Stage<F>);

enum Stage<F> {
    /// Not polled yet, so it can still be moved: with what its creator is joined to.
    New(Option<(Arc<State>, Option<Arc<Joined>>, F)>),
    Running(Pin<Box<TaskLocalFuture<Arc<Joined>, F>>>),
}

// The future is pinned in its box, and before that not at all.
impl<F> Unpin for Scoped<F> {}

impl<F: Future> Scoped<F> {
    pub(crate) fn new(state: Arc<State>, future: F) -> Self {
        Self(Stage::New(Some((state, outer(), future))))
    }
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        if let Stage::New(new) = &mut self.0
            && let Some((state, of_creator, future)) = new.take()
        {
            // Inside another scope that counts; in a task of its own, what its creator was joined to.
            let joined = Arc::new(Joined { state, outer: outer().or(of_creator) });
            self.0 = Stage::Running(Box::pin(FUTURE.scope(joined, future)));
        }
        match &mut self.0 {
            Stage::Running(future) => future.as_mut().poll(cx),
            // It was taken and then set to running, above.
            Stage::New(_) => Poll::Pending,
        }
    }
}

impl<F> std::fmt::Debug for Scoped<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scoped")
    }
}
