//! What happened in a run of the system, as those saw it who took part: publishers, handlers, workers, and at the end the
//! store. A simulation keeps it in memory; real processes write it as JSON lines, one record a line, unbuffered, so that
//! it survives a `kill -9`.
//!
//! A publish call is recorded from the outside (before it is made, after it returned), a run from the inside (by the
//! handler, as its first and its last act). So one call that is recorded before another truly came before it, and two
//! runs that are recorded to overlap truly did.
//!
//! Times are nanoseconds of one monotonic clock that all writers share: tokio's clock in a simulation,
//! `CLOCK_MONOTONIC_RAW` between processes of one machine. Records of several writers are merged by time; records of one
//! time keep the order in which they were written.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Records in the order of time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// The records.
    pub records: Vec<Record>,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When, in nanoseconds.
    pub at: u64,
    /// What.
    #[serde(flatten)]
    pub fact: Fact,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fact", rename_all = "snake_case")]
pub enum Fact {
    /// A publisher is about to publish. Repeats of the same call under one idempotency key are one call.
    PublishIntent {
        /// Names the call; unique in a history.
        call: u64,
        /// Who publishes.
        publisher: u32,
        /// The delay asked for, in nanoseconds.
        #[serde(default)]
        delay: u64,
        /// The events, in the order of the batch.
        events: Vec<Published>,
    },
    /// The call returned Ok: everything is stored.
    PublishOk {
        /// Which call.
        call: u64,
    },
    /// The call failed and nothing was stored.
    PublishErr {
        /// Which call.
        call: u64,
    },
    /// The call failed or was dropped, and nobody knows what was stored.
    PublishUnknown {
        /// Which call.
        call: u64,
    },
    /// The store lost what this call had stored, and was allowed to: its durability does not cover what befell it. Written
    /// at the end, by who saw that nothing of it is left and that it lay in what could be lost.
    StoreLost {
        /// Which call.
        call: u64,
    },
    /// A handler was called.
    RunStart {
        /// Names the run; unique per worker.
        run: u64,
        /// Where.
        worker: u32,
        /// Which handler.
        handler: String,
        /// The number of the event.
        event: u64,
        /// The key, as the handler saw it.
        key: Option<String>,
        /// The hash of the payload, as the handler saw it.
        hash: u64,
        /// Which attempt it was told.
        attempt: u32,
        /// The fence it was told.
        fence: u64,
    },
    /// A run ended.
    RunEnd {
        /// Which run.
        run: u64,
        /// Where.
        worker: u32,
        /// How.
        end: RunEnd,
    },
    /// A worker starts. Its number is never used again.
    WorkerStart {
        /// Which.
        worker: u32,
    },
    /// A worker ended cleanly: `shutdown` returned Ok.
    WorkerStop {
        /// Which.
        worker: u32,
    },
    /// A worker was killed; its runs ended with it.
    WorkerCrash {
        /// Which.
        worker: u32,
    },
    /// A worker hears and says nothing for a while.
    WorkerStall {
        /// Which.
        worker: u32,
        /// For how long, in nanoseconds.
        lasts: u64,
    },
    /// A worker lost its right to everything it held; written when the store took it, and again when the worker knew.
    SessionLost {
        /// Which.
        worker: u32,
    },
    /// A worker lost its right to a part of a handler's deliveries; written as for [`Fact::SessionLost`].
    PartitionLost {
        /// Which.
        worker: u32,
        /// Whose deliveries.
        handler: String,
    },
    /// A dead letter is about to be replayed (and was).
    Replay {
        /// Whose.
        handler: String,
        /// The number of the event.
        event: u64,
    },
    /// A dead letter is about to be purged (and was).
    Purge {
        /// Whose.
        handler: String,
        /// The number of the event.
        event: u64,
    },
    /// What the store held when everything had come to rest.
    Rest {
        /// Deliveries that are neither done nor dead.
        pending: Vec<Pending>,
        /// The dead letters, in the order of the store.
        dead_letters: Vec<Dead>,
    },
}

/// An event of a publish call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// The number by which the test knows it; unique in a history, and part of the payload.
    pub event: u64,
    /// Its partition key.
    pub key: Option<String>,
    /// The [`hash`] of its payload.
    pub hash: u64,
    /// The handlers it is for.
    pub handlers: Vec<String>,
    /// The stored payload cannot be decoded: no handler may ever be called with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_garbage: bool,
}

/// How a run ended. Delays are in nanoseconds; of a backoff with jitter the least possible one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum RunEnd {
    /// The handler returned Ok.
    Done,
    /// It failed and shall be tried again after `delay`, if an attempt is left.
    Retry {
        /// How long to wait at least.
        delay: u64,
    },
    /// It panicked: as `Retry`.
    Panic {
        /// How long to wait at least.
        delay: u64,
    },
    /// It took too long: as `Retry`.
    Timeout {
        /// How long to wait at least.
        delay: u64,
    },
    /// It failed and shall not be tried again.
    Discard,
    /// It shall be called again after `delay`, without using up an attempt.
    Snooze {
        /// How long to wait at least.
        delay: u64,
    },
    /// Its future was dropped before it had come to an end.
    Cancelled,
}

impl RunEnd {
    /// Whether it used up an attempt, with the delay before the next one.
    pub const fn failure(self) -> Option<u64> {
        match self {
            Self::Retry { delay } | Self::Panic { delay } | Self::Timeout { delay } => Some(delay),
            Self::Done | Self::Discard | Self::Snooze { .. } | Self::Cancelled => None,
        }
    }
}

/// A delivery that is left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// Whose.
    pub handler: String,
    /// The number of the event.
    pub event: u64,
    /// What the store says about it: why it is not running.
    #[serde(default)]
    pub state: String,
}

/// A dead letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dead {
    /// Whose.
    pub handler: String,
    /// The number of the event.
    pub event: u64,
    /// Its key.
    pub key: Option<String>,
    /// The hash of its payload.
    pub hash: u64,
    /// The word of its reason: `exhausted`, `discarded`, `undecodable`.
    pub reason: String,
    /// Failed attempts.
    pub failures: u32,
    /// The attempts of which an error is kept, oldest first.
    pub errors: Vec<u32>,
    /// Whether it holds its key.
    pub holds_key: bool,
}

/// The hash of a payload in a history.
pub fn hash(payload: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(payload)
}

impl History {
    /// One history of the histories of several writers.
    pub fn merge(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut records: Vec<_> = parts.into_iter().flat_map(|part| part.records).collect();
        records.sort_by_key(|record| record.at);
        Self { records }
    }

    /// As JSON lines.
    pub fn to_lines(&self) -> String {
        let mut lines = String::new();
        for record in &self.records {
            lines.push_str(&record.to_string());
            lines.push('\n');
        }
        lines
    }

    /// Reads JSON lines. A last line without its end is what a killed process was writing: it is left out.
    ///
    /// # Errors
    /// The number of the first line that is no record, and why.
    pub fn from_lines(text: &str) -> Result<Self, String> {
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let lines = whole.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let records = lines
            .map(|(number, line)| {
                serde_json::from_str(line).map_err(|error| format!("line {}: {error}", number + 1))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { records })
    }
}

impl fmt::Display for Record {
    /// Its JSON line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history() -> History {
        let facts = [
            Fact::PublishIntent {
                call: 1,
                publisher: 2,
                delay: 0,
                events: vec![Published {
                    event: 7,
                    key: Some("k".into()),
                    hash: u64::MAX,
                    handlers: vec!["a".into()],
                    is_garbage: false,
                }],
            },
            Fact::RunEnd { run: 1, worker: 1, end: RunEnd::Retry { delay: 5 } },
            Fact::Rest { pending: vec![], dead_letters: vec![] },
        ];
        let records =
            facts.into_iter().enumerate().map(|(at, fact)| Record { at: at as u64, fact }).collect();
        History { records }
    }

    #[test]
    fn json_lines_bring_back_the_same_history() {
        let history = history();
        assert_eq!(History::from_lines(&history.to_lines()).unwrap(), history);
    }

    #[test]
    fn a_line_cut_off_by_a_kill_is_left_out() {
        let mut lines = history().to_lines();
        lines.push_str("{\"at\":9,\"fa");
        assert_eq!(History::from_lines(&lines).unwrap(), history());
    }

    #[test]
    fn a_line_that_is_no_record_is_named() {
        let error = History::from_lines("\nnonsense\n").unwrap_err();
        assert!(error.starts_with("line 2: "), "{error}");
    }

    #[test]
    fn merging_sorts_by_time_and_keeps_each_writers_order() {
        let record = |at, run| Record { at, fact: Fact::RunEnd { run, worker: 0, end: RunEnd::Done } };
        let one = History { records: vec![record(1, 1), record(3, 2), record(3, 3)] };
        let two = History { records: vec![record(2, 4)] };
        let runs: Vec<_> = History::merge([one, two])
            .records
            .iter()
            .map(|record| match record.fact {
                Fact::RunEnd { run, .. } => run,
                _ => 0,
            })
            .collect();
        assert_eq!(runs, [1, 4, 2, 3]);
    }
}
