//! What lies between a simulated process and the store.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

/// A connection that can stall and be cut.
#[derive(Debug, Default)]
pub(super) struct Link(Mutex<Line>);

#[derive(Clone, Copy, Debug, Default)]
struct Line {
    is_cut: bool,
    stalls_until: Option<Instant>,
}

impl Link {
    /// Nothing passes any more, ever: the process at this end is dead.
    pub(super) fn cut(&self) {
        self.with(|line| line.is_cut = true);
    }

    pub(super) fn is_cut(&self) -> bool {
        self.with(|line| line.is_cut)
    }

    /// Nothing passes until then.
    pub(super) fn stall(&self, until: Instant) {
        self.with(|line| line.stalls_until = line.stalls_until.max(Some(until)));
    }

    /// Waits until something can pass; for ever, if it is cut.
    pub(super) async fn pass(&self) {
        loop {
            let line = self.with(|line| *line);
            if line.is_cut {
                std::future::pending::<()>().await;
            }
            match line.stalls_until.filter(|until| *until > Instant::now()) {
                Some(until) => tokio::time::sleep_until(until).await,
                None => return,
            }
        }
    }

    fn with<T>(&self, look: impl FnOnce(&mut Line) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
