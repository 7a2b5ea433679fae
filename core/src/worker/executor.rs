//! The slots in which deliveries run: each in a task of its own, behind a time limit and a panic barrier.

use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tracing::Instrument as _;

use crate::backend::Session;
use crate::context::{Context, Shutdown};
use crate::delivery::{Delivery, Partition};
use crate::registry::{Registered, Registry};
use crate::retry::RunEnd;
use crate::run::run;

/// What all runs of a session share.
pub(crate) struct RunScope {
    pub(crate) registry: Arc<Registry>,
    pub(crate) shutdown: Shutdown,
    pub(crate) session: Arc<dyn Session>,
}

impl RunScope {
    /// The handler of a delivery: its index is its position in the registry.
    pub(crate) fn handler(&self, delivery: &Delivery) -> Option<&Registered> {
        self.registry.handlers().get(delivery.handler().get())
    }
}

/// A run that ended.
pub(super) struct Ended {
    pub(super) delivery: Arc<Delivery>,
    /// `None`: it was cancelled.
    pub(super) end: Option<RunEnd>,
    /// The right to the delivery was lost meanwhile: whatever it did, its outcome must not be stored.
    pub(super) is_doomed: bool,
}

struct Run {
    delivery: Arc<Delivery>,
    abort: AbortHandle,
    is_doomed: bool,
}

/// A fixed number of slots.
pub(super) struct Executor {
    scope: Arc<RunScope>,
    slots: Vec<Option<Run>>,
    free: Vec<usize>,
    reports: mpsc::Receiver<(usize, Option<RunEnd>)>,
    reporter: mpsc::Sender<(usize, Option<RunEnd>)>,
    buffer: Vec<(usize, Option<RunEnd>)>,
}

impl Executor {
    pub(super) fn new(scope: Arc<RunScope>, slots: usize) -> Self {
        // A slot has at most one report under way, so this many never block.
        let (reporter, reports) = mpsc::channel(slots);
        Self {
            scope,
            slots: (0..slots).map(|_| None).collect(),
            free: (0..slots).rev().collect(),
            reports,
            reporter,
            buffer: Vec::new(),
        }
    }

    pub(super) fn has_free_slot(&self) -> bool {
        !self.free.is_empty()
    }

    pub(super) fn free_slots(&self) -> usize {
        self.free.len()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Starts a delivery; false if no slot is free.
    pub(super) fn start(&mut self, delivery: Arc<Delivery>) -> bool {
        let Some(handler) = self.scope.handler(&delivery) else { return false };
        let Some(slot) = self.free.pop() else { return false };
        let span = tracing::info_span!(
            "delivery",
            handler = &**handler.name(),
            event = &*delivery.envelope.name,
            event_id = %delivery.envelope.id,
            attempt = delivery.attempt(),
        );
        let scope = self.scope.clone();
        let of_task = delivery.clone();
        let mut report = Report { reporter: self.reporter.clone(), slot, end: None };
        let work = async move {
            let Some(handler) = scope.handler(&of_task) else { return };
            // The task may have waited for its thread for long.
            if !scope.session.is_trusted() {
                return;
            }
            let cx = Context::of_worker(of_task, scope.clone());
            // The report is dropped after this future, so a slot is free only when nothing of its run is left.
            report.ended(run(handler, &cx).await);
        };
        let task = if span.is_disabled() { tokio::spawn(work) } else { tokio::spawn(work.instrument(span)) };
        self.slots[slot] = Some(Run { delivery, abort: task.abort_handle(), is_doomed: false });
        true
    }

    /// Runs that ended since the last call; pending if there are none.
    pub(super) fn poll_ended(&mut self, task: &mut TaskContext<'_>, ended: &mut Vec<Ended>) -> Poll<()> {
        match self.reports.poll_recv_many(task, &mut self.buffer, self.slots.len()) {
            Poll::Ready(_) => {}
            Poll::Pending => return Poll::Pending,
        }
        for (slot, end) in self.buffer.drain(..) {
            if let Some(run) = self.slots.get_mut(slot).and_then(Option::take) {
                self.free.push(slot);
                ended.push(Ended { delivery: run.delivery, end, is_doomed: run.is_doomed });
            }
        }
        Poll::Ready(())
    }

    /// Cancels all runs at their next await point; each still ends with a report.
    pub(super) fn cancel_all(&self) {
        for run in self.slots.iter().flatten() {
            run.abort.abort();
        }
    }

    /// Cancels the runs of a partition that was lost, and returns their deliveries.
    pub(super) fn doom(&mut self, partition: Partition) -> Vec<Arc<Delivery>> {
        let mut doomed = Vec::new();
        for run in self.slots.iter_mut().flatten().filter(|run| run.delivery.partition == partition) {
            run.is_doomed = true;
            run.abort.abort();
            doomed.push(run.delivery.clone());
        }
        doomed
    }

    pub(super) fn runs_any_of(&self, partition: Partition) -> bool {
        self.slots.iter().flatten().any(|run| run.delivery.partition == partition)
    }

    /// The handlers of what still runs, for logs.
    pub(super) fn running_handlers(&self) -> Vec<&str> {
        let running = self.slots.iter().flatten();
        running.filter_map(|run| self.scope.handler(&run.delivery).map(|h| &**h.name())).collect()
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.cancel_all();
    }
}

/// Reports the end of a run when it is dropped, however the run ended.
struct Report {
    reporter: mpsc::Sender<(usize, Option<RunEnd>)>,
    slot: usize,
    end: Option<RunEnd>,
}

impl Report {
    /// The run came to its end; without this it was cancelled.
    fn ended(&mut self, end: RunEnd) {
        self.end = Some(end);
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        // It can fail only when the engine is gone, and then nobody is interested.
        let _ = self.reporter.try_send((self.slot, self.end.take()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::backend::{ClaimRequest, Claimed, Notice, SettleBatch};
    use crate::delivery::{DeliveryId, ErrorLog, HandlerIndex};
    use crate::envelope::{Envelope, EventId, Timestamp};
    use crate::error::Result;
    use crate::{Event, Failure, Handler, Partitioned};

    /// A right that runs out when it is told to.
    #[derive(Default)]
    struct Right {
        has_run_out: AtomicBool,
    }

    #[async_trait]
    impl Session for Right {
        async fn claim(&self, _: &ClaimRequest) -> Result<Claimed> {
            Ok(Claimed::default())
        }

        async fn settle(&self, _: &SettleBatch) -> Result<()> {
            Ok(())
        }

        fn is_trusted(&self) -> bool {
            !self.has_run_out.load(Ordering::Relaxed)
        }

        async fn wait(&self) -> Notice {
            std::future::pending().await
        }

        async fn close(&self) -> Result<()> {
            Ok(())
        }
    }

    #[derive(Clone, serde::Serialize, serde::Deserialize)]
    struct Ping;

    impl Partitioned for Ping {}

    impl Event for Ping {
        const NAME: &'static str = "test.ping";
    }

    struct Counting(Arc<AtomicUsize>);

    #[async_trait]
    impl Handler for Counting {
        const NAME: &'static str = "test.counting";
        type Event = Ping;
        type Output = ();

        async fn handle(&self, _: Ping, _: &Context) -> std::result::Result<(), Failure> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }

    fn delivery() -> Arc<Delivery> {
        Arc::new(Delivery {
            id: DeliveryId(1),
            partition: Partition { handler: HandlerIndex(0), number: 0 },
            failures: 0,
            crashes: 0,
            errors: ErrorLog::default(),
            due_in: None,
            is_held: false,
            fence: 0,
            envelope: Envelope {
                id: EventId::from_uuid(uuid::Uuid::nil()),
                name: Ping::NAME.into(),
                version: 1,
                key: None,
                payload: crate::codec::encode(&Ping).unwrap(),
                headers: None,
                published_at: Timestamp::default(),
            },
        })
    }

    #[tokio::test]
    async fn nothing_is_started_by_a_right_that_has_run_out() {
        let runs = Arc::new(AtomicUsize::new(0));
        let registry = Registry::new(vec![Registered::new(Counting(runs.clone()))]).unwrap();
        let session = Arc::new(Right::default());
        let scope =
            RunScope { registry: Arc::new(registry), shutdown: Shutdown::never(), session: session.clone() };
        let mut executor = Executor::new(Arc::new(scope), 2);

        assert!(executor.start(delivery()));
        let first = next(&mut executor).await;
        assert!(matches!(first.end, Some(RunEnd::Done)));
        assert!(executor.start(delivery()));
        // Its task is there and waits for its thread, which is this one.
        session.has_run_out.store(true, Ordering::Relaxed);
        let second = next(&mut executor).await;
        assert!(second.end.is_none());
        assert_eq!(runs.load(Ordering::Relaxed), 1);
    }

    async fn next(executor: &mut Executor) -> Ended {
        let mut ended = Vec::new();
        std::future::poll_fn(|task| executor.poll_ended(task, &mut ended)).await;
        ended.remove(0)
    }
}
