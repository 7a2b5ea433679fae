//! Listens to what publishers and other workers say. Hints only: polling and beats are the truth.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;

use crate::worker::Worker;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Listens until the task is stopped; connects again whenever the connection is lost.
pub(crate) async fn listen(worker: Arc<Worker>) {
    let mut pause = FIRST_PAUSE;
    loop {
        match listen_once(&worker).await {
            Ok(()) => pause = FIRST_PAUSE,
            Err(error) => tracing::debug!(%error, ?pause, "no wake-ups for now, polling goes on"),
        }
        tokio::time::sleep(pause.mul_f64(1.0 - 0.3 * fastrand::f64())).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

/// Ends when the connection does.
async fn listen_once(worker: &Worker) -> redis::RedisResult<()> {
    let shared = &worker.shared;
    let timed_out = || redis::RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
    let connecting = async {
        let mut listener = shared.client.get_async_pubsub().await?;
        listener.subscribe(format!("{}:wake", shared.base)).await?;
        redis::RedisResult::Ok(listener)
    };
    let connected = tokio::time::timeout(shared.config.command_timeout, connecting).await;
    let mut listener = connected.map_err(|_| timed_out())??;
    // Something may have been said while nobody listened.
    worker.hear_everything();
    worker.moves.notify_one();
    let mut messages = listener.on_message();
    while let Some(message) = messages.next().await {
        match std::str::from_utf8(message.get_payload_bytes()) {
            Ok("L") => worker.moves.notify_one(),
            Ok(text) => worker.hear(text.strip_prefix('W').unwrap_or_default()),
            Err(_) => worker.hear_everything(),
        }
    }
    Ok(())
}
