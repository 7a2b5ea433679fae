//! A server of its own for each case.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_bus::backend::{Backend, Capabilities};
use event_bus::{RedisBackend, async_trait};
use event_bus_conformance::suite::{Harness, Outage, Sandbox, Tamper};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A mode: how the server writes its append-only file.
#[derive(Clone, Copy)]
pub(crate) enum Redis {
    Everysec,
    Fsync,
}

struct Server {
    mode: Redis,
    directory: TempDir,
    port: u16,
    process: Child,
}

#[async_trait]
impl Harness for Redis {
    fn name(&self) -> &'static str {
        match self {
            Self::Everysec => "redis[everysec]",
            Self::Fsync => "redis[fsync]",
        }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { transactional_publish: false, transactional_complete: false, ..Capabilities::ALL }
    }

    async fn sandbox(&self) -> Arc<dyn Sandbox> {
        let mode = *self;
        Arc::new(tokio::task::spawn_blocking(move || Server::start(mode)).await.unwrap())
    }

    fn has_outages(&self) -> bool {
        true
    }

    fn can_tamper(&self) -> bool {
        true
    }

    fn node(&self) -> Option<PathBuf> {
        Some(env!("CARGO_BIN_EXE_node").into())
    }
}

impl Server {
    fn start(mode: Redis) -> Self {
        let directory = tempfile::tempdir().unwrap();
        loop {
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
            let appendfsync = match mode {
                Redis::Everysec => "everysec",
                Redis::Fsync => "always",
            };
            let mut process = Command::new("redis-server")
                .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
                .args(["--appendonly", "yes", "--appendfsync", appendfsync])
                .args(["--maxmemory-policy", "noeviction", "--daemonize", "no"])
                .arg("--dir")
                .arg(directory.path())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("redis-server, which apt install redis-server brings");
            let deadline = Instant::now() + Duration::from_secs(10);
            // It ends at once if somebody else took the port meanwhile.
            while process.try_wait().unwrap().is_none() {
                if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                    return Self { mode, directory, port, process };
                }
                assert!(Instant::now() < deadline, "redis-server does not listen");
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.process.id()).unwrap()).unwrap();
        kill_process(pid, signal).expect("a living server");
    }

    fn url(&self, lease_ms: u32) -> String {
        let durability = match self.mode {
            Redis::Everysec => "everysec",
            Redis::Fsync => "fsync",
        };
        format!(
            "redis://127.0.0.1:{}?bus=suite&durability={durability}&lease_ms={lease_ms}&command_timeout_ms=2000",
            self.port
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = &self.directory;
    }
}

#[async_trait]
impl Sandbox for Server {
    fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(RedisBackend::from_url(&self.url(3_000)).unwrap())
    }

    /// Processes are killed in rows, and others follow when the lease has ended: a short one, for cases are quick.
    fn url(&self) -> String {
        self.url(800)
    }

    /// The server stands still.
    async fn outage(&self) -> Box<dyn Outage> {
        self.signal(Signal::STOP);
        let pid = Pid::from_raw(i32::try_from(self.process.id()).unwrap()).unwrap();
        Box::new(Stopped(pid))
    }

    async fn tamper(&self, tamper: Tamper) {
        let (field, value) = match tamper {
            Tamper::NewerSchema => ("schema", "99"),
            Tamper::OtherSlots => ("slots", "32"),
        };
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut command = redis::cmd("HSET");
        command.arg("{suite}:meta").arg(field).arg(value);
        command.query_async::<()>(&mut connection).await.unwrap();
    }
}

struct Stopped(Pid);

#[async_trait]
impl Outage for Stopped {
    async fn end(self: Box<Self>) {
        kill_process(self.0, Signal::CONT).expect("a living server");
    }
}
