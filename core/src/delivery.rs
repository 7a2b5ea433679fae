//! One event for one handler: what a worker holds, what it says about it, and what is left when it failed for good.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::envelope::{Envelope, Timestamp};

/// The position of a handler in [`WorkerSpec::handlers`](crate::backend::WorkerSpec::handlers): the same for a whole
/// session, and much smaller than its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HandlerIndex(pub u32);

impl HandlerIndex {
    /// As an index into a slice.
    pub fn get(self) -> usize {
        self.0 as usize
    }
}

/// The store's own number for a delivery. Opaque to core, except that within one lane a later delivery has a greater
/// number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId(pub u128);

impl fmt::Display for DeliveryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A part of one handler's deliveries that one worker owns at a time, where the medium divides them: a slot, or a
/// partition queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition {
    /// Whose deliveries.
    pub handler: HandlerIndex,
    /// Which part; [`Partition::WHOLE`] where the medium does not divide.
    pub number: u16,
}

impl Partition {
    /// The number of a partition that is all of a handler's deliveries, and of free deliveries.
    pub const WHOLE: u16 = u16::MAX;
}

/// A delivery in a worker's hands.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The store's number.
    pub id: DeliveryId,
    /// Whose it is, and by which ownership the session holds it.
    pub partition: Partition,
    /// The event.
    pub envelope: Envelope,
    /// Attempts that ended in a failure, as stored.
    pub failures: u32,
    /// How often its owner vanished while it may have been running. Such a delivery is a *suspect*: its start is
    /// recorded before it runs.
    pub crashes: u32,
    /// The last errors, as stored.
    pub errors: ErrorLog,
    /// For a keyed delivery that keeps its place: how long it must still wait. Its lane waits with it.
    pub due_in: Option<Duration>,
    /// It lies in the dead letters and holds its key ([`Exhausted::HoldKey`](crate::Exhausted::HoldKey)): it must not
    /// run, and nothing behind it may.
    pub is_held: bool,
    /// A number that grows whenever the ownership of the partition changes hands; 0 where the medium has none.
    pub fence: u64,
}

impl Delivery {
    /// The handler it is for.
    pub fn handler(&self) -> HandlerIndex {
        self.partition.handler
    }

    /// The number of the next run: failures so far plus one.
    pub fn attempt(&self) -> u32 {
        self.failures.saturating_add(1)
    }
}

/// What a worker says about a delivery. All numbers are absolute, so that saying it twice changes nothing.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It is done: forget it.
    Complete,
    /// A suspect is about to run as `attempt`: if the owner vanishes now, that attempt counts as failed.
    Start {
        /// The number of the run that begins.
        attempt: u32,
    },
    /// It failed: store `failures` and `errors`, and hand it out again after `delay`.
    Retry {
        /// All failures so far.
        failures: u32,
        /// How long to wait, from now.
        delay: Duration,
        /// The last errors, all of them.
        errors: ErrorLog,
        /// `true`: it stays at the head of its lane, and this session goes on holding it in memory.
        /// `false`: it leaves this session, and is handed out anew when it is due.
        keeps_place: bool,
    },
    /// Not now: hand it out again after `delay`; failures stay as they are and no start counts as open.
    Snooze {
        /// How long to wait, from now.
        delay: Duration,
        /// As in [`Outcome::Retry`].
        keeps_place: bool,
    },
    /// To the dead letters.
    Dead {
        /// Why.
        reason: DeadReason,
        /// All failures.
        failures: u32,
        /// The last errors, all of them.
        errors: ErrorLog,
        /// Leave a marker that holds the key until replay or purge.
        holds_key: bool,
    },
    /// It did not run and will not: anyone may have it, at once.
    Release,
}

impl Outcome {
    /// Whether the delivery leaves the session and may be handed out again under the same number.
    pub(crate) fn can_come_back(&self) -> bool {
        match self {
            Self::Retry { keeps_place, .. } | Self::Snooze { keeps_place, .. } => !keeps_place,
            // The marker of a dead letter that holds its key, or the delivery once it is replayed.
            Self::Dead { holds_key, .. } => *holds_key,
            Self::Release => true,
            Self::Complete | Self::Start { .. } => false,
        }
    }
}

/// Why a delivery lies in the dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DeadReason {
    /// All attempts failed.
    Exhausted,
    /// The handler returned [`Failure::discard`](crate::Failure::discard).
    Discarded,
    /// The payload could not be decoded.
    Undecodable,
}

impl DeadReason {
    /// The word in which stores keep it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exhausted => "exhausted",
            Self::Discarded => "discarded",
            Self::Undecodable => "undecodable",
        }
    }

    /// The reason kept as `word`.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Exhausted, Self::Discarded, Self::Undecodable]
            .into_iter()
            .find(|reason| reason.as_str() == word)
    }
}

impl fmt::Display for DeadReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One failed attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptError {
    /// Which attempt failed.
    pub attempt: u32,
    /// When it ended, by the worker's clock.
    pub failed_at: Timestamp,
    /// What the handler said: the error and its causes, at most 2,000 bytes.
    pub message: String,
}

/// The last errors of a delivery, as stored bytes (a CBOR array of [`AttemptError`]); empty for most deliveries, and
/// then without cost.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ErrorLog(Bytes);

impl ErrorLog {
    /// How many errors are kept: the newest ones.
    pub const KEEPS: usize = 10;
    /// How long a kept message can be, in bytes.
    pub const MESSAGE_BYTES: usize = 2_000;

    /// Takes stored bytes as they are.
    pub const fn from_bytes(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// The bytes to store.
    pub const fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// Whether there is no error.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The errors, oldest first. Bytes that cannot be read give none: the log explains, it decides nothing.
    pub fn entries(&self) -> Vec<AttemptError> {
        if self.0.is_empty() {
            return Vec::new();
        }
        ciborium::from_reader(self.0.as_ref()).unwrap_or_default()
    }

    /// This log and one error more.
    #[must_use]
    pub fn with(&self, mut error: AttemptError) -> Self {
        let mut end = error.message.len().min(Self::MESSAGE_BYTES);
        while !error.message.is_char_boundary(end) {
            end -= 1;
        }
        error.message.truncate(end);
        let mut entries = self.entries();
        entries.push(error);
        let surplus = entries.len().saturating_sub(Self::KEEPS);
        crate::codec::encode(&entries[surplus..]).map_or_else(|_| self.clone(), Self)
    }
}

impl fmt::Debug for ErrorLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries()).finish()
    }
}

/// A delivery that failed for good, with everything needed to understand and to replay it.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// The store's number of the dead letter, for `replay` and `purge`. Later dead letters have greater numbers.
    pub id: DeliveryId,
    /// The name of the handler.
    pub handler: Arc<str>,
    /// The event.
    pub envelope: Envelope,
    /// Failed attempts.
    pub failures: u32,
    /// The last errors.
    pub errors: ErrorLog,
    /// Why it is here.
    pub reason: DeadReason,
    /// Since when.
    pub died_at: Timestamp,
    /// Whether its key stands still until it is replayed or purged.
    pub holds_key: bool,
}

impl DeadLetter {
    /// The payload as JSON-like text, without knowing its type.
    pub fn readable_payload(&self) -> String {
        crate::codec::readable(&self.envelope.payload)
    }
}
