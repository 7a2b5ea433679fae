//! Opens sessions, one after the other, until the worker is told to stop.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use uuid::Builder;

use crate::backend::{HandlerSpec, Session, WorkerSpec};
use crate::bus::Inner;
use crate::context::Shutdown;
use crate::error::{Error, Result, chain};

use super::engine::{Engine, EngineEnd, Parts};
use super::executor::RunScope;
use super::stats::Counters;
use super::{Drained, StopSignal};

/// The pause after a failed `open`, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// A session that lasted this long was a good one: the next pause starts small again.
const GOOD_SESSION: Duration = Duration::from_secs(10);

/// Works until it is told to stop. Errors only with what no repetition can cure.
pub(super) async fn supervise(
    bus: Arc<Inner>,
    mut stop: StopSignal,
    stats: Arc<Counters>,
    first: oneshot::Sender<()>,
) -> Result<Drained> {
    let mut first = Some(first);
    let mut report_first = || first.take().map(|first| first.send(()));
    if !bus.backend.capabilities().durable {
        report_first();
        stop.wait().await;
        return Ok(Drained::default());
    }
    let (shutdown, shutdown_token) = watch::channel(false);
    let handlers = handler_specs(&bus);
    let mut pause = FIRST_PAUSE;
    loop {
        let incarnation =
            Builder::from_random_bytes(bus.environment.randomness.bits().to_be_bytes()).into_uuid();
        let worker = WorkerSpec { incarnation, handlers: handlers.clone() };
        let opened = tokio::select! {
            biased;
            _ = stop.wait() => return Ok(Drained::default()),
            opened = bus.backend.open(&worker) => opened,
        };
        match opened {
            Ok(session) => {
                stats.sessions_total.increment();
                report_first();
                let opened_at = Instant::now();
                let engine = Engine::new(parts(&bus, session, &handlers, &shutdown_token, &stats));
                match engine.run(&mut stop, &shutdown).await {
                    EngineEnd::Stopped(result) => return result,
                    EngineEnd::SessionOver(error) => {
                        if opened_at.elapsed() >= GOOD_SESSION {
                            pause = FIRST_PAUSE;
                        }
                        tracing::warn!(
                            error = chain(&error),
                            "the worker's session is over, opening another"
                        );
                    }
                }
            }
            Err(error) if is_final(&error) => {
                tracing::error!(error = chain(&error), "the worker cannot work with this store and ends");
                return Err(error);
            }
            Err(error) => {
                report_first();
                tracing::warn!(
                    error = chain(&error),
                    ?pause,
                    "the worker could not open a session, will try again"
                );
            }
        }
        let jitter = 1.0 + 0.25 * bus.environment.randomness.fraction();
        tokio::select! {
            biased;
            _ = stop.wait() => return Ok(Drained::default()),
            () = tokio::time::sleep(pause.mul_f64(jitter)) => pause = (pause * 2).min(MAX_PAUSE),
        }
    }
}

fn is_final(error: &Error) -> bool {
    use crate::ErrorKind::{Corrupt, InvalidConfiguration, Unsupported};
    matches!(error.kind(), InvalidConfiguration | Unsupported | Corrupt)
}

fn handler_specs(bus: &Inner) -> Arc<[HandlerSpec]> {
    let handlers = bus.registry.handlers().iter();
    handlers
        .map(|handler| HandlerSpec {
            name: handler.name().clone(),
            priority: handler.options().priority,
            order: handler.options().on_failure,
            window: bus.worker.window,
        })
        .collect()
}

fn parts(
    bus: &Inner,
    session: Arc<dyn Session>,
    handlers: &Arc<[HandlerSpec]>,
    shutdown: &watch::Receiver<bool>,
    stats: &Arc<Counters>,
) -> Parts {
    let scope =
        RunScope { registry: bus.registry.clone(), shutdown: Shutdown::new(shutdown.clone()), session };
    Parts {
        scope: Arc::new(scope),
        environment: bus.environment.clone(),
        handlers: handlers.clone(),
        capabilities: bus.backend.capabilities(),
        concurrency: bus.worker.concurrency,
        poll_interval: bus.worker.poll_interval,
        stats: stats.clone(),
    }
}
