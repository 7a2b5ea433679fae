//! The publisher: the one task of a process that stores plain publish calls.
//!
//! Whatever waits when a statement returns is stored together by the next one: the more callers, the larger the groups,
//! and one sync of the server's disk for each group. The task owns its connection, so no dropped future can leave anything
//! half done on it. It ends when the last handle is gone and everything accepted is done.
//!
//! After the statement, on its own, at most once in an interval, it wakes the workers of other processes.

use std::sync::Arc;
use std::time::Duration;

use event_bus_core::backend::{Publication, Stored};
use event_bus_core::{Error, ErrorKind, Result};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::connection::{Client, Shared, revive};
use crate::error::{Cause, error, translate};
use crate::publish::{Handlers, Rows, handler_ids, unknown_names};
use crate::store;

/// Calls that may wait. Beyond it callers wait for room.
const QUEUE: usize = 1_024;

/// The most deliveries in one statement, and their most bytes: more would not make it cheaper, and everybody in it waits
/// for all of it.
const MAX_WEIGHT: usize = 1_000;
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// Pauses between tries while the server cannot be reached.
const PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// How long waking others may take: publish calls wait for it.
const WAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// A handle to the publisher.
#[derive(Clone)]
pub(crate) struct Publisher {
    queue: mpsc::Sender<Request>,
    shared: Arc<Shared>,
}

enum Request {
    Publish {
        publication: Publication,
        deadline: Instant,
        reply: oneshot::Sender<Result<Stored>>,
    },
    /// Something was stored elsewhere.
    Wake,
    /// Something is about to be committed in a transaction of the caller's.
    WakeLater,
}

/// When a transaction of the caller's has probably committed: nobody tells us, and the workers' own looks are rarer.
const LATER: [Duration; 3] =
    [Duration::from_millis(4), Duration::from_millis(40), Duration::from_millis(250)];

/// The most such times that are kept.
const MAX_LATER: usize = 64;

impl Publisher {
    /// Starts a publisher in the present runtime.
    pub(crate) fn start(shared: &Arc<Shared>) -> Self {
        let (queue, requests) = mpsc::channel(QUEUE);
        let task = Task {
            shared: shared.clone(),
            requests,
            kept: None,
            wake_due: None,
            woken_at: None,
            later: Vec::new(),
        };
        tokio::spawn(task.run());
        Self { queue, shared: shared.clone() }
    }

    /// Whether its task is gone, with the runtime it ran in.
    pub(crate) fn is_dead(&self) -> bool {
        self.queue.is_closed()
    }

    /// Stores a publication that has neither a delay nor an idempotency key.
    ///
    /// # Cancel safety
    /// A dropped future leaves the publication stored whole or not at all.
    pub(crate) async fn publish(&self, publication: Publication) -> Result<Stored> {
        let deadline = Instant::now() + self.shared.config.write_timeout;
        let (reply, answer) = oneshot::channel();
        let request = Request::Publish { publication, deadline, reply };
        match tokio::time::timeout_at(deadline, self.queue.send(request)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(gone(ErrorKind::Unavailable)),
            Err(_) => {
                let message = format!(
                    "publish calls to {} queue up for longer than the write timeout",
                    self.shared.place
                );
                return Err(error(ErrorKind::Unavailable, "publish", message));
            }
        }
        answer.await.unwrap_or_else(|_| Err(gone(ErrorKind::OutcomeUnknown)))
    }

    /// Wakes the workers of other processes soon. If the queue is full, what is in it will.
    pub(crate) fn wake(&self) {
        let _ = self.queue.try_send(Request::Wake);
    }

    /// Wakes workers when a transaction that was published in has probably committed.
    pub(crate) fn wake_later(&self) {
        let _ = self.queue.try_send(Request::WakeLater);
    }
}

fn gone(kind: ErrorKind) -> Error {
    error(kind, "publish", "the publisher has ended with its runtime")
}

struct Waiting {
    publication: Publication,
    deadline: Instant,
    reply: oneshot::Sender<Result<Stored>>,
}

struct Task {
    shared: Arc<Shared>,
    requests: mpsc::Receiver<Request>,
    kept: Option<Client>,
    /// When to wake others.
    wake_due: Option<Instant>,
    woken_at: Option<Instant>,
    /// When the callers' transactions have probably committed.
    later: Vec<Instant>,
}

impl Task {
    async fn run(mut self) {
        loop {
            let due = self.wake_due.into_iter().chain(self.later.iter().copied()).min();
            let first = match due {
                None => self.requests.recv().await,
                Some(due) => match tokio::time::timeout_at(due, self.requests.recv()).await {
                    Ok(first) => first,
                    Err(_) => {
                        self.time_has_come().await;
                        continue;
                    }
                },
            };
            let Some(first) = first else { break };
            // Callers whose answers have just been sent are about to ask again: let them join this group.
            tokio::task::yield_now().await;
            let group = self.gather(first);
            self.store(group).await;
            self.time_has_come().await;
        }
        if self.wake_due.is_some() {
            self.wake_others().await;
        }
        if let Some(client) = self.kept.take() {
            client.close().await;
        }
    }

    /// Wakes whom it is time to wake.
    async fn time_has_come(&mut self) {
        let now = Instant::now();
        let before = self.later.len();
        self.later.retain(|due| *due > now);
        if self.later.len() < before {
            self.shared.ring();
            self.plan_wake();
        }
        if self.wake_due.is_some_and(|due| due <= Instant::now()) {
            self.wake_others().await;
        }
    }

    fn gather(&mut self, first: Request) -> Vec<Waiting> {
        let (mut weight, mut bytes) = (0, 0);
        let mut group = Vec::new();
        let mut next = Some(first);
        while let Some(request) = next.take() {
            match request {
                Request::Wake => self.plan_wake(),
                Request::WakeLater => {
                    let now = Instant::now();
                    let room = MAX_LATER.saturating_sub(self.later.len());
                    self.later.extend(LATER.iter().take(room).map(|later| now + *later));
                }
                // Nobody waits for it any more, and nothing of it is stored.
                Request::Publish { reply, .. } if reply.is_closed() => {}
                Request::Publish { publication, deadline, reply } => {
                    weight += publication.deliveries();
                    bytes += publication
                        .events
                        .iter()
                        .map(|event| event.envelope.size() * event.handlers.len())
                        .sum::<usize>();
                    group.push(Waiting { publication, deadline, reply });
                }
            }
            if weight < MAX_WEIGHT && bytes < MAX_BYTES && group.len() < QUEUE {
                next = self.requests.try_recv().ok();
            }
        }
        group
    }

    fn plan_wake(&mut self) {
        if self.shared.config.is_notifying && self.wake_due.is_none() {
            let now = Instant::now();
            let due = self.woken_at.map_or(now, |woken_at| woken_at + self.shared.config.notify_interval);
            self.wake_due = Some(due.max(now));
        }
    }

    /// Wakes the workers of other processes. A failure costs nobody more than his poll interval.
    async fn wake_others(&mut self) {
        self.wake_due = None;
        self.woken_at = Some(Instant::now());
        let shared = self.shared.clone();
        let Ok(mut client) = revive(self.kept.take(), &shared.config).await else { return };
        let woken = async {
            let woken = store::notify(shared.at_client(), client.begin().await?, &shared.channel, "").await;
            client.end(woken).await
        };
        match tokio::time::timeout(WAKE_TIMEOUT.min(shared.config.write_timeout), woken).await {
            Ok(Ok(())) => self.kept = Some(client),
            Ok(Err(failure)) => {
                tracing::debug!(error = %failure, "the workers of other processes could not be woken");
            }
            Err(_) => {}
        }
    }

    /// Stores a group together; if one of them may be the reason why that fails, each alone.
    async fn store(&mut self, group: Vec<Waiting>) {
        if group.is_empty() {
            return;
        }
        let Some((group, failure)) = self.try_store(group).await else { return };
        let is_of_one = group.len() > 1 && Cause::of(&failure) == Cause::Data;
        if !is_of_one {
            self.fail(group, &failure, true);
            return;
        }
        tracing::warn!(calls = group.len(), error = %failure, "a group of publish calls failed, trying each alone");
        for waiting in group {
            if let Some((group, failure)) = self.try_store(vec![waiting]).await {
                self.fail(group, &failure, true);
            }
        }
    }

    /// Stores and answers a group, or hands it back with what went wrong. Waits for a server that is away.
    async fn try_store(&mut self, mut group: Vec<Waiting>) -> Option<(Vec<Waiting>, sqlx::Error)> {
        let mut pause = PAUSE;
        while !group.is_empty() {
            let deadline = group.iter().map(|waiting| waiting.deadline).max().unwrap_or_else(Instant::now);
            let failure = match self.connect(&group, deadline).await {
                Ok((mut client, handlers)) => {
                    match self.store_on(&mut client, &handlers, &group, deadline).await {
                        Ok(()) => {
                            self.kept = Some(client);
                            self.stored(group);
                            return None;
                        }
                        Err(failure) => {
                            let cause = Cause::of(&failure);
                            if !cause.ends_connection(&failure) {
                                self.kept = Some(client);
                            }
                            // Nothing of it is stored, and it may go better later.
                            if !matches!(cause, Cause::Busy | Cause::Ending | Cause::Full | Cause::ReadOnly) {
                                return Some((group, failure));
                            }
                            failure
                        }
                    }
                }
                Err(failure) if matches!(Cause::of(&failure), Cause::Lost | Cause::Ending | Cause::Full) => {
                    failure
                }
                Err(failure) => {
                    self.fail(group, &failure, false);
                    return None;
                }
            };
            let now = Instant::now();
            let (late, waiting) =
                group.into_iter().partition(|waiting: &Waiting| waiting.deadline <= now + pause);
            self.fail(late, &failure, false);
            group = waiting;
            if !group.is_empty() {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(MAX_PAUSE);
            }
        }
        None
    }

    /// A living connection that knows all handlers of the group.
    async fn connect(
        &mut self,
        group: &[Waiting],
        deadline: Instant,
    ) -> sqlx::Result<(Client, Arc<Handlers>)> {
        let shared = self.shared.clone();
        if self.kept.is_none() {
            shared.forget_handlers();
        }
        let connected = async {
            let mut client = revive(self.kept.take(), &shared.config).await?;
            let mut handlers = shared.handlers();
            let unknown = unknown_names(group.iter().map(|waiting| &waiting.publication), &handlers);
            if !unknown.is_empty() {
                let learned = handler_ids(shared.at_client(), client.begin().await?, &unknown).await;
                let learned = client.end(learned).await?;
                Arc::make_mut(&mut handlers).extend(learned.clone());
                shared.learn(learned);
            }
            Ok((client, handlers))
        };
        match tokio::time::timeout_at(deadline, connected).await {
            Ok(result) => result,
            Err(_) => Err(silence()),
        }
    }

    async fn store_on(
        &self,
        client: &mut Client,
        handlers: &Handlers,
        group: &[Waiting],
        deadline: Instant,
    ) -> sqlx::Result<()> {
        let at = self.shared.at_client();
        let rows = Rows::of(group.iter().map(|waiting| &waiting.publication), handlers)?;
        let stored = async {
            let stored = store::publish(at, client.begin().await?, &rows).await;
            client.end(stored).await
        };
        // The server's own time-out comes first, if the server is there.
        match tokio::time::timeout_at(deadline + MAX_PAUSE, stored).await {
            Ok(result) => result,
            Err(_) => Err(silence()),
        }
    }

    fn stored(&mut self, group: Vec<Waiting>) {
        for waiting in group {
            // Who does not wait any more does not hear it.
            let _ = waiting.reply.send(Ok(Stored::New));
        }
        self.shared.ring();
        self.plan_wake();
    }

    fn fail(&self, group: Vec<Waiting>, failure: &sqlx::Error, is_write: bool) {
        for waiting in group {
            let _ = waiting.reply.send(Err(translate("publish", &self.shared.place, failure, is_write)));
        }
    }
}

fn silence() -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer"))
}
