//! What a worker has done so far.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        #[derive(Default)]
        pub(super) struct Counters { $(pub(super) $name: Counter),* }

        /// What a worker has done since it started.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct WorkerStats { $($(#[$doc])* pub $name: u64),* }

        impl Counters {
            pub(super) fn snapshot(&self) -> WorkerStats {
                WorkerStats { $($name: self.$name.0.load(Ordering::Relaxed)),* }
            }
        }
    };
}

stats! {
    /// Runs begun.
    started_total,
    /// Runs that ended with `Ok`.
    succeeded_total,
    /// Runs that ended with an error, a panic or a time-out.
    failed_total,
    /// Failures that were followed by another attempt.
    retried_total,
    /// Runs that asked to be tried later.
    snoozed_total,
    /// Deliveries sent to the dead letters.
    dead_lettered_total,
    /// Runs cut off by a shutdown or a lost right.
    cancelled_total,
    /// Sessions opened with the store: 1, and one more for each time the right was lost.
    sessions_total,
}

/// Written by the engine alone, read by anyone.
#[derive(Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
