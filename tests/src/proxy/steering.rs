//! What a test tells a proxy.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

/// Which way bytes flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Requests.
    ToServer,
    /// Answers.
    ToClient,
}

impl Direction {
    pub(super) const fn index(self) -> usize {
        match self {
            Self::ToServer => 0,
            Self::ToClient => 1,
        }
    }
}

/// How bytes flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flow {
    /// At once.
    #[default]
    Pass,
    /// Later, in order.
    Delay {
        /// By this much.
        delay: Duration,
        /// And up to this much more.
        jitter: Duration,
    },
    /// Slowly.
    Throttle {
        /// So many in a second.
        bytes_per_second: u64,
    },
    /// Not at all, as when a cable is pulled: the connection stays, the sender's buffers fill, and what lies in them comes
    /// late if all is well again in time. That a peer has closed is not seen either.
    BlackHole,
}

/// What a trap waits for in the bytes of one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sign {
    /// These bytes.
    Contains(Vec<u8>),
    /// So many bytes, from now on.
    Bytes(u64),
}

/// What happens then to the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// What was read goes on (of [`Sign::Bytes`]: so many bytes and no more), then the connection is reset.
    Cut,
    /// It is reset before what was read goes on.
    Swallow,
    /// What was read, and what follows in this direction, is kept until [`Proxy::release`](super::Proxy::release), even if
    /// the sender gives up and closes meanwhile: a request that arrives late.
    Hold,
}

/// All that is told.
#[derive(Default)]
pub(super) struct Steering {
    pub(super) flows: [Flow; 2],
    pub(super) is_refusing: bool,
    pub(super) cuts: u64,
    pub(super) half_closes: [u64; 2],
    pub(super) releases: u64,
    pub(super) armed: Vec<Armed>,
}

/// A trap that was set.
#[derive(Clone)]
pub(super) struct Armed {
    pub(super) direction: Direction,
    pub(super) sign: Sign,
    pub(super) then: Then,
    /// Taken by the connection that springs it.
    spring: Arc<Mutex<Option<oneshot::Sender<()>>>>,
}

impl Armed {
    pub(super) fn new(direction: Direction, sign: Sign, then: Then) -> (Self, oneshot::Receiver<()>) {
        let (spring, sprung) = oneshot::channel();
        (Self { direction, sign, then, spring: Arc::new(Mutex::new(Some(spring))) }, sprung)
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.spring, &other.spring)
    }

    /// Whether this call springs it.
    pub(super) fn spring(&self) -> bool {
        let spring = self.spring.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Whoever set it may not wait for it.
        spring.map(|spring| spring.send(())).is_some()
    }
}
