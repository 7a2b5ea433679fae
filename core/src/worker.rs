//! The worker: claim, run, settle; written once for every backend.

mod call;
mod claims;
mod engine;
mod executor;
mod lanes;
mod settle;
mod stats;
mod supervisor;
mod suspects;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::bus::Inner;
use crate::error::{Error, ErrorKind, Result};

pub(crate) use executor::RunScope;
pub use stats::WorkerStats;

/// How long [`EventBus::start`](crate::EventBus::start) waits for the first session before it answers that the worker
/// stands by.
const FIRST_SESSION: Duration = Duration::from_millis(250);

/// A running worker. It goes on until [`shutdown`](Worker::shutdown); dropping it stops it without grace: running
/// handlers are cancelled at their next await point, their deliveries given back.
#[must_use = "a dropped worker stops"]
pub struct Worker {
    stop: Option<oneshot::Sender<Stop>>,
    task: JoinHandle<Result<Drained>>,
    stats: Arc<stats::Counters>,
}

/// What a clean shutdown did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drained {
    /// Runs that ended by themselves after the shutdown began.
    pub finished: usize,
    /// Runs that were cancelled when the grace time was over. Their deliveries were given back; no attempt is counted.
    pub cancelled: usize,
}

/// How a bus works when it works.
#[derive(Clone, Debug)]
pub(crate) struct WorkerSettings {
    pub(crate) concurrency: usize,
    pub(crate) window: usize,
    pub(crate) poll_interval: Duration,
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self { concurrency: 64, window: 1_024, poll_interval: Duration::from_secs(1) }
    }
}

impl WorkerSettings {
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.concurrency == 0 || self.concurrency > 100_000 {
            problems.push(format!("concurrency {} is outside 1..=100000", self.concurrency));
        }
        if self.window == 0 || self.window > 1_000_000 {
            problems.push(format!("window {} is outside 1..=1000000", self.window));
        }
        if self.poll_interval.is_zero() {
            problems.push("poll_interval is 0, which would ask the store without pause".to_owned());
        }
        problems
    }
}

/// A request to stop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stop {
    grace: Duration,
}

/// Resolves once, when the worker shall stop.
pub(crate) struct StopSignal {
    receiver: oneshot::Receiver<Stop>,
    stop: Option<Stop>,
}

impl StopSignal {
    /// Ready from the moment the worker shall stop, each time it is asked. A dropped handle means: without grace.
    fn poll(&mut self, task: &mut Context<'_>) -> Poll<Stop> {
        if let Some(stop) = self.stop {
            return Poll::Ready(stop);
        }
        match Pin::new(&mut self.receiver).poll(task) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(result) => {
                let stop = result.unwrap_or(Stop { grace: Duration::ZERO });
                self.stop = Some(stop);
                Poll::Ready(stop)
            }
        }
    }

    async fn wait(&mut self) -> Stop {
        std::future::poll_fn(|task| self.poll(task)).await
    }
}

impl Worker {
    /// Starts a worker and waits shortly for its first session, so that a store that cannot serve is reported here.
    pub(crate) async fn start(bus: Arc<Inner>) -> Result<Self> {
        let (stop, receiver) = oneshot::channel();
        let (first, opened) = oneshot::channel();
        let stats = Arc::new(stats::Counters::default());
        let stop_signal = StopSignal { receiver, stop: None };
        let task = tokio::spawn(supervisor::supervise(bus, stop_signal, stats.clone(), first));
        let mut worker = Self { stop: Some(stop), task, stats };
        match tokio::time::timeout(FIRST_SESSION, opened).await {
            // Standing by for another worker, or a store that is out of reach: both may change.
            Err(_) | Ok(Ok(())) => Ok(worker),
            // It ended before it had a session: the reason is its result.
            Ok(Err(_)) => worker.ended().await.map(|()| worker),
        }
    }

    /// Takes no more, lets what runs end within `grace`, stores the outcomes, gives everything else back at once.
    ///
    /// Runs that are still going after `grace` are cancelled at their next await point and given back; no attempt is
    /// counted for them. Nothing that ended is repeated.
    ///
    /// # Errors
    /// `Unavailable` if outcomes could not be stored within five seconds after `grace`, or if handlers ignored their
    /// cancellation: those deliveries will run again.
    ///
    /// # Cancel safety
    /// A dropped future leaves the worker shutting down in the background.
    pub async fn shutdown(mut self, grace: Duration) -> Result<Drained> {
        if let Some(stop) = self.stop.take() {
            // It fails only if the worker has ended by itself; its result says why.
            let _ = stop.send(Stop { grace });
        }
        result_of((&mut self.task).await)
    }

    /// Waits until the worker ends by itself, which it does only with an error that no repetition can cure.
    ///
    /// # Errors
    /// That error.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing; the worker goes on. Do not call it again after it returned.
    pub async fn ended(&mut self) -> Result<()> {
        result_of((&mut self.task).await).map(drop)
    }

    /// What it has done so far.
    pub fn stats(&self) -> WorkerStats {
        self.stats.snapshot()
    }
}

fn result_of(joined: Result<Result<Drained>, tokio::task::JoinError>) -> Result<Drained> {
    joined.unwrap_or_else(|error| {
        Err(Error::new(ErrorKind::Closed, "worker", "the worker's task was stopped from outside")
            .with_source(error))
    })
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
