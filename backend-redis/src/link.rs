//! One supervised connection: made when it is needed, checked, thrown away when it is no good.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use event_bus_core::ErrorKind;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, ConnectionAddr, RedisError, TlsCertificates, Value};
use rustls::crypto::CryptoProvider;
use tokio::sync::Mutex as AsyncMutex;

use crate::backend::Shared;
use crate::config::RedisConfig;
use crate::error::{Failure, error};
use crate::reply::Reply;
use crate::script::Call;
use crate::server;

/// How often a script is loaded for one call, should somebody flush the scripts at the same time.
const LOADS: usize = 5;

/// A connection to the server.
pub(crate) struct Link {
    shared: Arc<Shared>,
    timeout: Duration,
    /// The run of the server on which all depends; `None`: any will do.
    run: Option<Arc<str>>,
    live: AsyncMutex<Option<Live>>,
}

#[derive(Clone)]
struct Live {
    connection: MultiplexedConnection,
    run: Arc<str>,
    /// Tells connections apart that were made one after the other.
    number: Arc<()>,
}

/// What connections are made with.
pub(crate) fn client(config: &RedisConfig) -> Result<Client, event_bus_core::Error> {
    let invalid = |text: String| error(ErrorKind::InvalidConfiguration, "connect", text);
    let connection = config.connection.clone();
    // The source could show the address with its password.
    let failed = |failure: RedisError| invalid(failure.category().to_owned());
    if !matches!(connection.addr(), ConnectionAddr::TcpTls { .. }) {
        return match &config.ca_file {
            Some(_) => Err(invalid("ca_file is set, and the url does not begin with rediss:".to_owned())),
            None => Client::open(connection).map_err(failed),
        };
    }
    // Whoever has chosen for the whole process keeps that; without a choice rustls would panic as soon as some other crate
    // brings another one along.
    if CryptoProvider::get_default().is_none() {
        // It fails only when somebody chose at this very moment.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    let root_cert =
        match &config.ca_file {
            None => None,
            Some(path) => Some(std::fs::read(path).map_err(|failure| {
                invalid(format!("ca_file {} cannot be read: {failure}", path.display()))
            })?),
        };
    Client::build_with_tls(connection, TlsCertificates { client_tls: None, root_cert }).map_err(failed)
}

impl Link {
    /// A link that waits `timeout` for each answer. Nothing is connected yet.
    pub(crate) fn new(shared: &Arc<Shared>, timeout: Duration, run: Option<&Arc<str>>) -> Self {
        Self { shared: shared.clone(), timeout, run: run.cloned(), live: AsyncMutex::new(None) }
    }

    /// The run of the server at the other end, which is connected if need be.
    pub(crate) async fn run(&self) -> Result<Arc<str>, Failure> {
        self.live().await.map(|live| live.run)
    }

    /// Runs a script, which is loaded if the server does not know it.
    ///
    /// # Cancel safety
    /// A dropped future leaves it run or not.
    pub(crate) async fn eval(&self, call: &Call) -> Result<Reply, Failure> {
        self.eval_value(call).await.and_then(Reply::of)
    }

    pub(crate) async fn eval_value(&self, call: &Call) -> Result<Value, Failure> {
        let mut live = self.live().await?;
        for _ in 0..LOADS {
            match call.command.query_async(&mut live.connection).await {
                Ok(value) => return Ok(value),
                Err(error) if is_unknown_script(&error) => self.load(&mut live, call).await?,
                Err(error) => return Err(self.failed(&live, &error).await),
            }
        }
        Err(Failure::Refused("it forgets scripts as fast as they are loaded".to_owned()))
    }

    async fn load(&self, live: &mut Live, call: &Call) -> Result<(), Failure> {
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(call.script.source);
        match load.query_async::<Value>(&mut live.connection).await {
            Ok(_) => Ok(()),
            Err(error) => match self.failed(live, &error).await {
                // The script itself was not sent.
                Failure::Unknown(text) => Err(Failure::NotSent(text)),
                failure => Err(failure),
            },
        }
    }

    /// Runs a command.
    ///
    /// # Cancel safety
    /// A dropped future leaves it run or not.
    pub(crate) async fn command(&self, command: &Cmd) -> Result<Value, Failure> {
        let mut live = self.live().await?;
        match command.query_async(&mut live.connection).await {
            Ok(value) => Ok(value),
            Err(error) => Err(self.failed(&live, &error).await),
        }
    }

    async fn failed(&self, live: &Live, error: &RedisError) -> Failure {
        if Failure::breaks_connection(error) {
            let mut current = self.live.lock().await;
            if current.as_ref().is_some_and(|current| Arc::ptr_eq(&current.number, &live.number)) {
                *current = None;
            }
        }
        Failure::of(error)
    }

    async fn live(&self) -> Result<Live, Failure> {
        let connecting = async {
            let mut live = self.live.lock().await;
            if let Some(live) = &*live {
                return Ok(live.clone());
            }
            let made = self.connect().await?;
            *live = Some(made.clone());
            Ok(made)
        };
        match tokio::time::timeout(self.timeout, connecting).await {
            Ok(live) => live,
            Err(_) => Err(Failure::NotSent(format!("no connection after {:?}", self.timeout))),
        }
    }

    /// At the beginning a server that is not fit is a mistake, later it is a failover or a repair.
    async fn connect(&self) -> Result<Live, Failure> {
        let was_fit = &self.shared.was_fit;
        match self.connect_to_a_fit_one().await {
            Err(Failure::Unfit(why)) if was_fit.load(Ordering::Acquire) => {
                Err(Failure::NotSent(format!("it {why}")))
            }
            Ok(live) => {
                was_fit.store(true, Ordering::Release);
                Ok(live)
            }
            failed => failed,
        }
    }

    async fn connect_to_a_fit_one(&self) -> Result<Live, Failure> {
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout));
        let connected = self.shared.client.get_multiplexed_async_connection_with_config(&settings).await;
        let mut connection = connected.map_err(|error| match Failure::of(&error) {
            _ if is_untrusted(&error) => Failure::Unfit(format!("is not trusted: {error}")),
            Failure::Unknown(text) | Failure::Refused(text) => Failure::NotSent(text),
            failure => failure,
        })?;
        let run = server::check(&mut connection, &self.shared.config).await?;
        if self.run.as_ref().is_some_and(|wanted| *wanted != run) {
            return Err(Failure::OtherRun);
        }
        Ok(Live { connection, run, number: Arc::new(()) })
    }
}

/// Whether the server's certificate was refused.
fn is_untrusted(error: &RedisError) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref::<Arc<dyn Error + Send + Sync>>());
    let source =
        source.and_then(|source| source.downcast_ref::<std::io::Error>()).and_then(|io| io.get_ref());
    let source = source.and_then(|source| source.downcast_ref::<rustls::Error>());
    matches!(source, Some(rustls::Error::InvalidCertificate(_)))
}

fn is_unknown_script(error: &RedisError) -> bool {
    error.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::NoScript)
}
