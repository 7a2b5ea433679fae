//! How the handlers of a node behave beside what each event says.

use std::path::PathBuf;
use std::time::Duration;

use event_bus::prelude::*;

use super::worker::{BACKOFF, MAX_ATTEMPTS};
use crate::suite::actor::{FIRST, SECOND};

/// The same for all handlers of a process, where nothing else is said.
#[derive(Clone, Debug)]
pub(crate) struct Manners {
    /// The handlers it knows.
    pub(crate) handlers: Vec<String>,
    /// How long a run may take.
    pub(crate) timeout: Option<Duration>,
    /// How long to wait between two attempts.
    pub(crate) backoff: Duration,
    pub(crate) max_attempts: u32,
    /// The second handler lets others of a key pass a failed one.
    pub(crate) second_releases: bool,
    /// The priority of the second handler.
    pub(crate) second_priority: u8,
    /// While this file is there, every run fails: what it needs is down.
    pub(crate) outage: Option<PathBuf>,
    /// Every run gives its delivery up.
    pub(crate) discards: bool,
    /// How many deliveries run at once.
    pub(crate) concurrency: Option<usize>,
    /// It knows the event type of the next release.
    pub(crate) is_new: bool,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            handlers: [FIRST, SECOND].map(str::to_owned).into(),
            timeout: None,
            backoff: BACKOFF,
            max_attempts: MAX_ATTEMPTS,
            second_releases: false,
            second_priority: 0,
            outage: None,
            discards: false,
            concurrency: None,
            is_new: false,
        }
    }
}

impl Manners {
    /// Whether it knows this handler.
    pub(super) fn knows(&self, handler: &str) -> bool {
        self.handlers.iter().any(|known| known == handler)
    }

    /// The options of a handler.
    pub(super) fn options(&self, handler: &str) -> HandlerOptions {
        let mut options =
            HandlerOptions::new().max_attempts(self.max_attempts).backoff(Backoff::fixed(self.backoff));
        if let Some(timeout) = self.timeout {
            options = options.timeout(timeout);
        }
        if handler == SECOND {
            options = options.priority(self.second_priority);
            if self.second_releases {
                options = options.on_failure(Order::Release);
            }
        }
        options
    }

    /// Whether what the handlers need is down.
    pub(super) fn is_down(&self) -> bool {
        self.outage.as_ref().is_some_and(|file| file.exists())
    }
}
