//! What all parts of a session share.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use event_bus_core::backend::{HandlerSpec, Notice, WorkerSpec};
use event_bus_core::clock::BootTime;
use event_bus_core::{Error, ErrorKind};
use futures_util::FutureExt as _;
use lapin::options::BasicAckOptions;
use lapin::types::DeliveryTag;
use lapin::{Channel, Connection};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::backend::Shared;
use crate::buffer::{Ack, Buffer};

use crate::error::error;
use crate::post::{self, Undelivered};
use crate::publisher::Letter;
use crate::topology::Place;
use crate::trust::Trust;

/// How long a session's own letters may take. While a broker is blocked by an alarm, nothing that must be stored can be
/// stored, and saying it twice would not help: the call waits, and ends with its session.
const FOR_AS_LONG_AS_IT_TAKES: Duration = Duration::from_secs(24 * 60 * 60);

/// What a line's task is told.
pub(crate) enum Command {
    /// Take in all that the broker has handed out so far.
    Barrier(oneshot::Sender<()>),
    /// Give the queue back in peace.
    Close(oneshot::Sender<()>),
    /// The same, unless something has come from it: only the task itself knows for certain.
    CloseIfIdle(oneshot::Sender<()>),
}

/// A subscription to a queue.
#[derive(Clone)]
pub(crate) struct Subscription {
    pub(crate) channel: Channel,
    pub(crate) commands: mpsc::Sender<Command>,
}

struct State {
    buffer: Buffer,
    /// One for each line.
    subscriptions: Vec<Option<Subscription>>,
    next_subscription: u64,
    notices: VecDeque<Notice>,
    has_work: bool,
    end: Option<(ErrorKind, String)>,
    is_closed: bool,
    trust: Trust,
}

/// A session's common ground.
pub(crate) struct Core {
    pub(crate) shared: Arc<Shared>,
    pub(crate) worker: WorkerSpec,
    pub(crate) connection: Connection,
    state: Mutex<State>,
    news: Notify,
    /// True when the session's tasks shall end.
    pub(crate) stop: watch::Sender<bool>,
    /// Somebody gave a queue back, or left.
    pub(crate) look_now: Notify,
}

impl Core {
    pub(crate) fn new(shared: Arc<Shared>, worker: WorkerSpec, connection: Connection) -> Arc<Self> {
        let places: Vec<_> = shared.names.places().collect();
        let buffer = Buffer::new(worker.handlers.len(), &places);
        let state = State {
            subscriptions: buffer.lines().map(|_| None).collect(),
            buffer,
            next_subscription: 1,
            notices: VecDeque::new(),
            has_work: false,
            end: None,
            is_closed: false,
            trust: Trust::new(shared.config.heartbeat, BootTime::now()),
        };
        Arc::new(Self {
            shared,
            worker,
            connection,
            state: Mutex::new(state),
            news: Notify::new(),
            stop: watch::Sender::new(false),
            look_now: Notify::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that is done under this lock can panic half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at what is held, or changes it.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut Buffer) -> T) -> T {
        look(&mut self.state().buffer)
    }

    pub(crate) fn handler(&self, line: usize) -> Option<HandlerSpec> {
        let handler = self.with(|buffer| buffer.line(line).map(|line| line.partition.handler))?;
        self.worker.handlers.get(handler.get()).cloned()
    }

    pub(crate) fn place(&self, line: usize) -> Option<(Arc<str>, Place)> {
        let handler = self.handler(line)?;
        self.with(|buffer| buffer.line(line).map(|line| (handler.name, line.place)))
    }

    /// A new subscription of a line begins.
    pub(crate) fn subscribed(&self, line: usize, subscription: Subscription) -> u64 {
        let mut state = self.state();
        let number = state.next_subscription;
        state.next_subscription += 1;
        state.buffer.reset(line);
        if let Some(line) = state.buffer.line_mut(line) {
            line.subscription = number;
        }
        if let Some(slot) = state.subscriptions.get_mut(line) {
            *slot = Some(subscription);
        }
        number
    }

    pub(crate) fn subscription(&self, line: usize) -> Option<Subscription> {
        self.state().subscriptions.get(line).cloned().flatten()
    }

    /// The line is no longer this session's. If it was `lost`, the engine hears of it before it can be had again.
    pub(crate) fn unsubscribed(&self, line: usize, subscription: u64, is_lost: bool) {
        let mut state = self.state();
        if !state.buffer.is_current(line, subscription) {
            return;
        }
        let had_any = state.buffer.reset(line);
        if let Some(slot) = state.subscriptions.get_mut(line) {
            *slot = None;
        }
        if is_lost
            && had_any
            && let Some(partition) = state.buffer.line(line).map(|line| line.partition)
        {
            state.notices.push_back(Notice::Lost(partition));
        }
        drop(state);
        self.news.notify_one();
    }

    pub(crate) fn notify(&self, notice: Notice) {
        self.state().notices.push_back(notice);
        self.news.notify_one();
    }

    /// There is something to claim.
    pub(crate) fn has_work(&self) {
        self.state().has_work = true;
        self.news.notify_one();
    }

    /// The session is over.
    pub(crate) fn end(&self, kind: ErrorKind, why: impl Into<String>) {
        let mut state = self.state();
        if state.end.is_none() {
            state.end = Some((kind, why.into()));
        }
        drop(state);
        self.stop.send_replace(true);
        self.news.notify_one();
    }

    /// Whether the session is over without having been closed.
    pub(crate) fn has_ended(&self) -> bool {
        self.state().end.is_some()
    }

    /// It is about to be closed; false if it was before.
    pub(crate) fn close(&self) -> bool {
        let was_closed = std::mem::replace(&mut self.state().is_closed, true);
        self.news.notify_one();
        !was_closed
    }

    /// The broker answered a question that was asked at `sent`.
    pub(crate) fn trust(&self, sent: BootTime) {
        self.state().trust.renew(sent);
    }

    /// How long this session may still believe that its queues are its own.
    pub(crate) fn trusted_for(&self) -> Duration {
        self.state().trust.left(BootTime::now())
    }

    /// Refuses to go on when the right to is in doubt.
    pub(crate) fn check(&self, operation: &'static str) -> Result<(), Error> {
        let state = self.state();
        if let Some((kind, why)) = &state.end {
            return Err(error(*kind, operation, why.clone()));
        }
        if state.is_closed {
            return Err(error(ErrorKind::Closed, operation, "the session is closed"));
        }
        if state.trust.left(BootTime::now()).is_zero() {
            return Err(error(
                ErrorKind::LeaseLost,
                operation,
                "the broker has not answered for a heartbeat",
            ));
        }
        Ok(())
    }

    /// What the session has to report.
    pub(crate) async fn news(&self) -> Notice {
        loop {
            let notified = self.news.notified();
            {
                let mut state = self.state();
                if let Some(notice) = state.notices.pop_front() {
                    return notice;
                }
                if let Some((kind, why)) = state.end.clone() {
                    return Notice::Ended(error(kind, "wait", why));
                }
                if state.is_closed {
                    return Notice::Ended(error(ErrorKind::Closed, "wait", "the session is closed"));
                }
                if std::mem::take(&mut state.has_work) {
                    return Notice::Work;
                }
            }
            notified.await;
        }
    }

    /// Acknowledges. Nobody waits for it: an acknowledgement that is lost with its channel repeats a delivery.
    pub(crate) fn acknowledge(&self, acks: &[Ack]) {
        if acks.is_empty() {
            return;
        }
        let mut state = self.state();
        let state = &mut *state;
        let mut tags: BTreeMap<usize, Vec<DeliveryTag>> = BTreeMap::new();
        for ack in acks.iter().filter(|ack| state.buffer.is_current(ack.line, ack.subscription)) {
            tags.entry(ack.line).or_default().push(ack.tag);
        }
        for (line, tags) in tags {
            let (Some(Some(subscription)), Some(line)) =
                (state.subscriptions.get(line), state.buffer.line_mut(line))
            else {
                continue;
            };
            for (tag, multiple) in line.tags.acknowledge(tags) {
                // The first poll puts the frame into the driver's queue, in this order.
                let _ = subscription.channel.basic_ack(tag, BasicAckOptions { multiple }).now_or_never();
            }
        }
    }

    /// Stores letters of this session, for as long as it takes.
    pub(crate) async fn deliver(
        &self,
        operation: &'static str,
        letters: Vec<Letter>,
    ) -> Result<(), Undelivered> {
        let handlers: Vec<_> = self.worker.handlers.iter().map(|handler| handler.name.clone()).collect();
        let deadline = Instant::now() + FOR_AS_LONG_AS_IT_TAKES;
        let Shared { journals, administration, .. } = &*self.shared;
        post::deliver(journals, administration, operation, letters, &handlers, deadline).await
    }
}
