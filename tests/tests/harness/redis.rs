//! A server of its own for each case; on somebody else's server a bus of its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use event_bus::backend::{Backend, Capabilities};
use event_bus::{RedisBackend, async_trait};
use event_bus_conformance::servers::{self, Redis as Server};
use event_bus_conformance::suite::{Harness, Outage, Sandbox, Tamper};
use tokio::task::JoinSet;

/// A mode: when the server writes its append-only file to the disk, and what befalls it meanwhile.
#[derive(Clone, Copy)]
pub(crate) enum Redis {
    Everysec,
    Fsync,
    /// Its scripts are flushed and its listeners killed, all the time.
    Disturbed,
}

/// How often that is done: many times in every case, and scripts are not forgotten as fast as they are loaded.
const DISTURBANCE: Duration = Duration::from_millis(25);

/// Processes are killed in rows, and others follow when the lease has ended: short, for cases are quick; but a busy machine
/// must not take a worker for a dead one.
const LEASE_MS: u32 = 2_000;

struct Bus {
    /// `None`: somebody else's.
    server: Option<Arc<Server>>,
    address: String,
    name: String,
    durability: &'static str,
    /// Ends with the case.
    _disturbance: JoinSet<()>,
}

#[async_trait]
impl Harness for Redis {
    fn name(&self) -> &'static str {
        match self {
            Self::Everysec => "redis[everysec]",
            Self::Fsync => "redis[fsync]",
            Self::Disturbed => "redis[disturbed]",
        }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { transactional_publish: false, transactional_complete: false, ..Capabilities::ALL }
    }

    async fn sandbox(&self) -> Arc<dyn Sandbox> {
        let (durability, appendfsync) = match self {
            Self::Everysec | Self::Disturbed => ("everysec", "everysec"),
            Self::Fsync => ("fsync", "always"),
        };
        let name = servers::unique_name();
        if Server::why_fixed().is_some() {
            let address = servers::redis().await.url().to_owned();
            return Arc::new(Bus { server: None, address, name, durability, _disturbance: JoinSet::new() });
        }
        let server = Server::start(&[("appendfsync", appendfsync)]).await;
        let address = server.url().to_owned();
        let mut disturbance = JoinSet::new();
        if matches!(self, Self::Disturbed) {
            disturbance.spawn(disturb(address.clone()));
        }
        Arc::new(Bus { server: Some(Arc::new(server)), address, name, durability, _disturbance: disturbance })
    }

    fn has_outages(&self) -> bool {
        Server::why_fixed().is_none()
    }

    fn can_tamper(&self) -> bool {
        true
    }

    fn takeover(&self) -> Duration {
        Duration::from_millis(u64::from(LEASE_MS))
    }

    fn node(&self) -> Option<PathBuf> {
        Some(env!("CARGO_BIN_EXE_node").into())
    }
}

impl Bus {
    fn url(&self, lease_ms: u32) -> String {
        let Self { address, name, durability, .. } = self;
        format!("{address}?bus={name}&durability={durability}&lease_ms={lease_ms}&command_timeout_ms=2000")
    }
}

#[async_trait]
impl Sandbox for Bus {
    fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(RedisBackend::from_url(&self.url(5_000)).unwrap())
    }

    fn url(&self) -> String {
        self.url(LEASE_MS)
    }

    /// The server stands still.
    async fn outage(&self) -> Box<dyn Outage> {
        let server = self.server.clone().unwrap();
        server.pause().await;
        Box::new(Paused(server))
    }

    async fn tamper(&self, tamper: Tamper) {
        let (field, value) = match tamper {
            Tamper::NewerSchema => ("schema", "99"),
            Tamper::OtherSlots => ("slots", "32"),
        };
        let client = redis::Client::open(&*self.address).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut command = redis::cmd("HSET");
        command.arg(format!("{{{}}}:meta", self.name)).arg(field).arg(value);
        command.query_async::<()>(&mut connection).await.unwrap();
    }
}

async fn disturb(address: String) {
    let client = redis::Client::open(address).unwrap();
    loop {
        // A server that stands still answers later.
        if let Ok(mut connection) = client.get_multiplexed_async_connection().await {
            let mut both = redis::pipe();
            both.cmd("SCRIPT").arg("FLUSH").cmd("CLIENT").arg("KILL").arg("TYPE").arg("pubsub");
            let _ = both.query_async::<()>(&mut connection).await;
        }
        tokio::time::sleep(DISTURBANCE).await;
    }
}

struct Paused(Arc<Server>);

#[async_trait]
impl Outage for Paused {
    async fn end(self: Box<Self>) {
        self.0.resume().await;
    }
}
