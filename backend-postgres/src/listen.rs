//! Listening for what other processes publish. A hint: a worker that hears nothing looks at intervals.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions};

use crate::connection::{Shared, listen_options};
use crate::session::State;

/// What NOTIFY says when leases were given back or a worker came.
pub(crate) const LEASES: &str = "leases";

const PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Listens until it is aborted or the session is over. Any error makes a new connection, and a look: something may have
/// been said meanwhile.
pub(crate) async fn listen(shared: Arc<Shared>, state: Arc<State>) {
    let mut pause = PAUSE;
    while !state.is_over() {
        match listen_once(&shared, &state, &mut pause).await {
            Ok(()) => return,
            Err(failure) => {
                tracing::debug!(error = %failure, ?pause, "listening was interrupted, will listen again");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
        state.bell.notify_one();
    }
}

async fn listen_once(shared: &Shared, state: &State, pause: &mut Duration) -> sqlx::Result<()> {
    // The listener wants a pool; it keeps the one connection.
    let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(listen_options(&shared.config));
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.eager_reconnect(false);
    listener.listen(&shared.channel).await?;
    state.bell.notify_one();
    state.look.notify_one();
    while !state.is_over() {
        let Some(heard) = listener.try_recv().await? else {
            return Err(sqlx::Error::PoolClosed);
        };
        *pause = PAUSE;
        if heard.payload() == LEASES {
            state.look.notify_one();
        } else {
            state.bell.notify_one();
        }
    }
    Ok(())
}
