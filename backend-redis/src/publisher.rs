//! Publishing: the calls of a process that wait together share a script.
//!
//! One call of the script at a time, numbered: a repeat after a lost answer is told from a new call, so publishing is
//! repeated without fear, and a copy that arrives late changes nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use event_bus_core::backend::{Publication, Stored};
use event_bus_core::{Error, ErrorKind, Result, slot};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use uuid::Uuid;

use crate::backend::{SCHEMA, Shared};
use crate::config::Durability;
use crate::entry;
use crate::error::{Failure, error};
use crate::link::Link;
use crate::script::{self, Call};

/// How many calls wait before further ones wait outside. Each is an event or a batch, and all of them wait for the same
/// server.
const WAITING: usize = 1_024;

/// The most calls in one script: half a millisecond of the server's time, for which others wait.
const GROUP: usize = 256;

/// The most bytes in one script, the call that crosses it included.
const GROUP_BYTES: usize = 4 * 1024 * 1024;

/// The pauses between two tries.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_millis(500);

/// How long the number of a call is remembered: longer than any copy of it can be under way.
const NUMBER_KEPT: Duration = Duration::from_secs(60 * 60);

struct Request {
    publication: Publication,
    deadline: Instant,
    reply: oneshot::Sender<Result<Stored>>,
}

/// Publishes for one process. A cheap clone.
#[derive(Clone)]
pub(crate) struct Publisher(mpsc::Sender<Request>);

impl Publisher {
    /// Starts the task that publishes. It ends when nobody holds the publisher any more.
    pub(crate) fn start(shared: &Arc<Shared>) -> Self {
        let (sender, requests) = mpsc::channel(WAITING);
        let link = Link::new(shared, shared.config.command_timeout, None);
        let task = Task {
            shared: shared.clone(),
            link,
            id: Uuid::from_u128(fastrand::u128(..)).to_string(),
            number: 0,
        };
        tokio::spawn(task.work(requests));
        Self(sender)
    }

    /// Whether its task is gone, with the runtime that it lived in.
    pub(crate) fn is_dead(&self) -> bool {
        self.0.is_closed()
    }

    /// Stores a publication.
    ///
    /// # Cancel safety
    /// A dropped future leaves it stored whole or not at all.
    pub(crate) async fn publish(&self, publication: Publication, timeout: Duration) -> Result<Stored> {
        let deadline = Instant::now() + timeout;
        let (reply, answer) = oneshot::channel();
        match tokio::time::timeout_at(deadline, self.0.reserve()).await {
            Ok(Ok(place)) => place.send(Request { publication, deadline, reply }),
            Ok(Err(_)) => return Err(gone()),
            Err(_) => return Err(late()),
        }
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

fn gone() -> Error {
    error(ErrorKind::Closed, "publish", "the runtime in which the bus publishes has ended")
}

fn late() -> Error {
    error(ErrorKind::Unavailable, "publish", "the server did not keep up; nothing was stored")
}

struct Task {
    shared: Arc<Shared>,
    link: Link,
    id: String,
    number: u64,
}

impl Task {
    async fn work(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut group = Vec::new();
        while let Some(first) = requests.recv().await {
            let mut bytes = size(&first.publication);
            group.push(first);
            while group.len() < GROUP && bytes < GROUP_BYTES {
                let Ok(next) = requests.try_recv() else { break };
                bytes += size(&next.publication);
                group.push(next);
            }
            let now = Instant::now();
            for late in group.extract_if(.., |request| request.deadline <= now) {
                answer(late, Err(self::late()));
            }
            if !group.is_empty() {
                let is_crowded = group.len() > 1;
                self.store(&mut group).await;
                if is_crowded {
                    // Those who were just answered come back in a moment: with them the next group is twice as large.
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    async fn store(&mut self, group: &mut Vec<Request>) {
        self.number += 1;
        let call = self.call(group);
        let deadline = group.iter().map(|request| request.deadline).max().unwrap_or_else(Instant::now);
        let mut was_perhaps_stored = false;
        let mut pause = FIRST_PAUSE;
        let failure = loop {
            let failure = match self.try_store(&call).await {
                Ok(answers) => {
                    for (position, request) in group.drain(..).enumerate() {
                        let is_duplicate = answers.as_bytes().get(position) == Some(&b'1');
                        answer(request, Ok(if is_duplicate { Stored::Duplicate } else { Stored::New }));
                    }
                    return;
                }
                Err(failure) => failure,
            };
            was_perhaps_stored |= failure.is_perhaps_stored;
            if !failure.is_passing || Instant::now() + pause >= deadline {
                break failure;
            }
            tracing::warn!(failure = failure.text, "publish failed, will be repeated");
            tokio::time::sleep(pause.mul_f64(1.0 - 0.3 * fastrand::f64())).await;
            pause = (pause * 2).min(MAX_PAUSE);
        };
        let kind = if was_perhaps_stored { ErrorKind::OutcomeUnknown } else { failure.kind };
        for request in group.drain(..) {
            answer(request, Err(error(kind, "publish", failure.text.clone())));
        }
    }

    async fn try_store(&self, call: &Call) -> Result<String, Unstored> {
        let server = &self.shared.server;
        let failed = |failure: Failure| Unstored::of(failure, server);
        let mut reply = self.link.eval(call).await.map_err(failed)?;
        let word = reply.text().map_err(failed)?;
        let answers = match &*word {
            "OK" | "ALREADY" => reply.text().map_err(failed)?,
            "UNPREPARED" => {
                let stored = reply.text().map_err(failed)?;
                return Err(Unstored {
                    text: crate::backend::schema_problem(&self.shared, &stored),
                    kind: ErrorKind::InvalidConfiguration,
                    is_passing: false,
                    is_perhaps_stored: false,
                });
            }
            word => return Err(failed(Failure::Garbled(format!("the script said {word}")))),
        };
        if let Durability::Replicated(wanted) = self.shared.config.durability {
            self.wait_for_replicas(wanted).await?;
        }
        Ok(answers)
    }

    /// The script was run on this connection just before, so what it wrote is what is waited for.
    async fn wait_for_replicas(&self, wanted: u32) -> Result<(), Unstored> {
        let timeout = self.shared.config.command_timeout / 2;
        let mut wait = redis::cmd("WAIT");
        wait.arg(wanted).arg(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        let unstored = |text: String| Unstored {
            text: format!("the server {} has stored it; {text}", self.shared.server),
            kind: ErrorKind::OutcomeUnknown,
            is_passing: true,
            is_perhaps_stored: true,
        };
        let reached = match self.link.command(&wait).await {
            Ok(redis::Value::Int(reached)) => u32::try_from(reached).unwrap_or(0),
            Ok(_) => return Err(unstored("WAIT gave no number".to_owned())),
            Err(failure) => return Err(unstored(format!("then it {failure}"))),
        };
        if reached < wanted {
            return Err(unstored(format!("{reached} replicas have it, {wanted} are wanted")));
        }
        Ok(())
    }

    fn call(&self, group: &[Request]) -> Call {
        let mut handlers: Vec<&Arc<str>> = Vec::new();
        let mut positions: HashMap<&Arc<str>, usize> = HashMap::new();
        for name in
            group.iter().flat_map(|request| &request.publication.events).flat_map(|e| e.handlers.iter())
        {
            positions.entry(name).or_insert_with(|| {
                handlers.push(name);
                handlers.len()
            });
        }
        let mut call = script::PUBLISH.call(&self.shared.base);
        call.arg(SCHEMA).arg(&self.id).arg(self.number);
        call.arg(millis(NUMBER_KEPT)).arg(millis(self.shared.config.dedupe_retention)).arg(handlers.len());
        for name in handlers {
            call.arg(&**name);
        }
        for request in group {
            let publication = &request.publication;
            call.arg(publication.idempotency_key.as_deref().unwrap_or(""));
            call.arg(millis(publication.delay)).arg(publication.events.len());
            let position = |name: &Arc<str>| positions.get(name).copied().unwrap_or(0);
            // Mostly all events of a call are for the same handlers: said once.
            let common = publication.events.first().map(|event| &event.handlers);
            let common =
                common.filter(|first| publication.events.iter().all(|event| event.handlers == **first));
            let common: &[Arc<str>] = common.map_or(&[], |handlers| handlers);
            call.arg(common.len());
            for name in common {
                call.arg(position(name));
            }
            for event in &publication.events {
                call.arg(entry::encode(&event.envelope));
                match &event.envelope.key {
                    Some(key) => call.arg(slot(key)).arg(&**key),
                    None => call.arg("f"),
                };
                if common.is_empty() {
                    call.arg(event.handlers.len());
                    for name in event.handlers.iter() {
                        call.arg(position(name));
                    }
                }
            }
        }
        call
    }
}

/// Why a group is not known to be stored.
struct Unstored {
    text: String,
    kind: ErrorKind,
    is_passing: bool,
    is_perhaps_stored: bool,
}

impl Unstored {
    fn of(failure: Failure, server: &str) -> Self {
        let is_passing = failure.is_passing();
        let is_perhaps_stored = matches!(failure, Failure::Unknown(_) | Failure::Garbled(_));
        let error = failure.into_error("publish", server);
        Self { text: error.message().to_owned(), kind: error.kind(), is_passing, is_perhaps_stored }
    }
}

fn answer(request: Request, answer: Result<Stored>) {
    // Whoever asked may have gone.
    let _ = request.reply.send(answer);
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// About how many bytes it takes.
fn size(publication: &Publication) -> usize {
    publication.events.iter().map(|event| event.envelope.size() + 64 * event.handlers.len()).sum()
}
