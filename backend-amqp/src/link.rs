//! Connections: opened with a time limit, closed in peace.

use std::sync::Arc;
use std::time::Duration;

use event_bus_core::{ErrorKind, Result};
use lapin::tcp::OwnedTLSConfig;
use lapin::uri::AMQPScheme;
use lapin::{Channel, Connection, ConnectionProperties};
use rustls::crypto::CryptoProvider;
use tokio::sync::Mutex;

use crate::config::AmqpConfig;
use crate::error::{error, no_answer, translate};
use crate::topology::short;

/// Opens a connection. It is never recovered by the driver: what a lost one held is lost, and whoever used it opens another.
pub(crate) async fn connect(config: &AmqpConfig, operation: &'static str, role: &str) -> Result<Connection> {
    let mut uri = config.uri.clone();
    uri.query.heartbeat = u16::try_from(config.heartbeat.as_secs()).ok();
    uri.query.connection_timeout = u64::try_from(config.request_timeout.as_millis()).ok();
    let name = format!("event-bus {} ({role})", config.namespace);
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let tls = OwnedTLSConfig {
        cert_chain: config.authorities.as_deref().map(str::to_owned),
        ..OwnedTLSConfig::default()
    };
    if uri.scheme == AMQPScheme::AMQPS && CryptoProvider::get_default().is_none() {
        // Whoever has chosen for the whole process keeps that; without a choice rustls would panic as soon as some other
        // crate brings another one along. It fails only when somebody chose at this very moment.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    let runtime = lapin::runtime::default_runtime().map_err(|failure| translate(operation, &failure))?;
    let connecting = Connection::connect_uri_with_config(uri, properties, tls, runtime);
    match tokio::time::timeout(config.request_timeout, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(failure)) => Err(translate(operation, &failure)),
        Err(_) => Err(error(ErrorKind::Unavailable, operation, "the broker cannot be reached in time")),
    }
}

/// The answer to a question, within the time for it.
pub(crate) async fn within<T>(
    limit: Duration,
    operation: &'static str,
    question: impl Future<Output = lapin::Result<T>>,
) -> Result<T> {
    match tokio::time::timeout(limit, question).await {
        Ok(answer) => answer.map_err(|failure| translate(operation, &failure)),
        Err(_) => Err(no_answer(operation)),
    }
}

/// A connection that is opened when it is first needed, and again when it is lost.
pub(crate) struct Link {
    config: Arc<AmqpConfig>,
    role: &'static str,
    connection: Mutex<Option<Arc<Connection>>>,
}

impl Link {
    pub(crate) fn new(config: Arc<AmqpConfig>, role: &'static str) -> Self {
        Self { config, role, connection: Mutex::new(None) }
    }

    /// The living connection.
    pub(crate) async fn connection(&self, operation: &'static str) -> Result<Arc<Connection>> {
        let mut connection = self.connection.lock().await;
        if let Some(living) = connection.as_ref().filter(|connection| connection.status().connected()) {
            return Ok(living.clone());
        }
        let opened = Arc::new(connect(&self.config, operation, self.role).await?);
        *connection = Some(opened.clone());
        Ok(opened)
    }

    /// A new channel on it.
    pub(crate) async fn channel(&self, operation: &'static str) -> Result<Channel> {
        let connection = self.connection(operation).await?;
        within(self.config.request_timeout, operation, connection.create_channel()).await
    }
}

/// Closes a channel in peace. What it was handed and did not acknowledge goes back to the front of its queue, in order.
pub(crate) async fn close_channel(channel: &Channel, limit: Duration) {
    if channel.status().connected() {
        // A channel that cannot be closed ends with its connection, with the same effect.
        let _ = tokio::time::timeout(limit, channel.close(200, short("done"))).await;
    }
}

/// Closes a connection in peace.
pub(crate) async fn close_connection(connection: &Connection, limit: Duration) {
    if connection.status().connected() {
        // A broker that does not answer finds out by itself.
        let _ = tokio::time::timeout(limit, connection.close(200, short("done"))).await;
    }
}
