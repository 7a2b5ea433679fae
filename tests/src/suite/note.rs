//! The events of the suite. Each says by itself what its handlers do with it.

use std::borrow::Cow;
use std::time::Duration;

use event_bus::prelude::*;

/// Stands in the text of panics that were asked for.
pub(crate) const SCRIPTED: &str = "as the script says";

/// An event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Event)]
#[event(name = "suite.note", partitioned)]
pub struct Note {
    /// By which a case knows it.
    pub number: u64,
    /// Its partition key.
    pub key: Option<String>,
    /// What each run of it does; later runs succeed.
    pub acts: Vec<Act>,
    /// Whether the last act is repeated for ever.
    pub is_endless: bool,
    /// The handler that acts so; the others succeed. Empty: all of them.
    pub actor: String,
    /// The handlers that are interested. Empty: all of them.
    pub readers: Vec<String>,
    /// Anything.
    pub text: String,
}

/// An event of another type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Event)]
#[event(name = "suite.memo", partitioned)]
pub struct Memo(
    /// All else is as in a note.
    pub Note,
);

/// An event that only the next release knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Event)]
#[event(name = "suite.later", partitioned)]
pub(crate) struct Later(
    /// All else is as in a note.
    pub Note,
);

/// What the handlers of the suite take.
#[derive(Clone, Debug, PartialEq, Eq, Events)]
pub enum Paper {
    /// A note.
    Note(Note),
    /// A memo.
    Memo(Memo),
}

/// What a run does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Act {
    /// Returns Ok.
    Succeed,
    /// Returns an error.
    Fail,
    /// Returns an error, with its own delay.
    FailFor(Duration),
    /// Panics.
    Panic,
    /// Never ends by itself.
    Hang,
    /// Gives up.
    Discard,
    /// Asks to be called later.
    Snooze(Duration),
    /// Waits until the case opens the gate of this number, then succeeds.
    Wait,
    /// Waits until the case opens the gate of this number, then fails.
    WaitAndFail,
    /// Succeeds after this long. For programs; cases have gates.
    Sleep(Duration),
    /// Blocks its thread for this long, then succeeds. For programs.
    Block(Duration),
    /// Takes the process with it. For programs.
    Abort,
    /// Publishes so many notes of the same key, which only the second handler reads, then succeeds. For programs.
    Publish(u64),
}

impl Partitioned for Note {
    fn partition_key(&self) -> Option<Cow<'_, str>> {
        self.key.as_deref().map(Cow::Borrowed)
    }
}

impl Partitioned for Memo {
    fn partition_key(&self) -> Option<Cow<'_, str>> {
        self.0.partition_key()
    }
}

impl Partitioned for Later {
    fn partition_key(&self) -> Option<Cow<'_, str>> {
        self.0.partition_key()
    }
}

/// A note without a key, which every handler takes and likes.
pub fn note(number: u64) -> Note {
    Note {
        number,
        key: None,
        acts: Vec::new(),
        is_endless: false,
        actor: String::new(),
        readers: Vec::new(),
        text: String::new(),
    }
}

/// As [`note`].
pub fn memo(number: u64) -> Memo {
    Memo(note(number))
}

impl Note {
    /// With a partition key.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// What its runs do, one after the other.
    #[must_use]
    pub fn acts(mut self, acts: impl IntoIterator<Item = Act>) -> Self {
        self.acts = acts.into_iter().collect();
        self
    }

    /// What each of its runs does.
    #[must_use]
    pub fn always(mut self, act: Act) -> Self {
        self.acts = vec![act];
        self.is_endless = true;
        self
    }

    /// Only this handler acts.
    #[must_use]
    pub fn only_at(mut self, handler: &str) -> Self {
        self.actor = handler.to_owned();
        self
    }

    /// Only this handler is interested.
    #[must_use]
    pub fn read_by(mut self, handler: &str) -> Self {
        self.readers.push(handler.to_owned());
        self
    }

    /// What run number `run` (from 0) at `handler` does.
    pub fn act(&self, handler: &str, run: usize) -> Act {
        if !self.actor.is_empty() && self.actor != handler {
            return Act::Succeed;
        }
        let last = self.acts.last().filter(|_| self.is_endless);
        self.acts.get(run).or(last).cloned().unwrap_or(Act::Succeed)
    }
}

impl Paper {
    /// What is written on it.
    pub fn note(&self) -> &Note {
        match self {
            Self::Note(note) | Self::Memo(Memo(note)) => note,
        }
    }
}
