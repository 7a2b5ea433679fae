//! A proxy that spoils connections as a test tells it: between a node and a server, so that real drivers meet real faults.
//!
//! ```no_run
//! # async fn case() {
//! use event_bus_conformance::proxy::{Direction, Flow, Proxy, Sign, Then};
//! use std::time::Duration;
//!
//! let proxy = Proxy::start("127.0.0.1:6379").await;
//! let url = proxy.url("redis://127.0.0.1:6379");
//!
//! proxy.cut();                                                    // every connection is reset
//! proxy.set(Direction::ToServer, Flow::BlackHole);                // requests vanish, connections stay
//! proxy.set_both(Flow::Delay { delay: Duration::from_millis(200), jitter: Duration::from_millis(50) });
//! proxy.pass();                                                   // all is well again
//!
//! // The request reaches the server, its answer never comes back.
//! let trap = proxy.trap(Direction::ToServer, Sign::Contains(b"XADD".to_vec()), Then::Cut);
//! trap.sprung().await;
//! # }
//! ```
//!
//! A steering call takes effect on what has not been read yet; what was read before goes its way.

#![allow(clippy::panic, reason = "a test fails by panicking")]

mod connection;
mod steering;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

pub use steering::{Direction, Flow, Sign, Then};

use crate::servers::free_port;
use connection::Connection;
use steering::{Armed, Steering};

/// A proxy in front of one server. Dropped, it cuts all connections and listens no more.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// What a test sees and steers.
struct Shared {
    target: Mutex<String>,
    steering: watch::Sender<Steering>,
    /// Connections under way.
    open: AtomicUsize,
    /// Bytes that have reached the other side.
    passed: [AtomicU64; 2],
}

/// A trap that was set. See [`Proxy::trap`].
pub struct Trap(oneshot::Receiver<()>);

impl Proxy {
    /// A proxy in front of `target` (`host:port`), which need not be there yet.
    ///
    /// # Panics
    /// If nothing can be listened on.
    ///
    /// # Cancel safety
    /// A dropped future leaves nothing behind.
    pub async fn start(target: &str) -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST, target).await
    }

    /// As [`start`](Self::start), on another address of this machine.
    ///
    /// # Panics
    /// If nothing can be listened on.
    ///
    /// # Cancel safety
    /// A dropped future leaves nothing behind.
    pub async fn start_at(host: Ipv4Addr, target: &str) -> Self {
        let (address, listener) = loop {
            let address = SocketAddr::from((host, free_port()));
            match TcpListener::bind(address).await {
                Ok(listener) => break (address, listener),
                // Somebody was quicker.
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
                Err(error) => panic!("cannot listen on {address}: {error}"),
            }
        };
        let shared = Arc::new(Shared {
            target: Mutex::new(target.to_owned()),
            steering: watch::Sender::new(Steering::default()),
            open: AtomicUsize::new(0),
            passed: Default::default(),
        });
        let task = tokio::spawn(accept(listener, address, shared.clone()));
        Self { address, shared, task }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same URL, by way of this proxy.
    pub fn url(&self, url: &str) -> String {
        let start = url.find("://").map_or(0, |at| at + 3);
        let end = url[start..].find(['/', '?']).map_or(url.len(), |at| start + at);
        let host = url[start..end].rfind('@').map_or(start, |at| start + at + 1);
        format!("{}{}{}", &url[..host], self.address, &url[end..])
    }

    /// New connections lead elsewhere (`host:port`), as a name does after a failover; those under way stay where they are.
    pub fn lead_to(&self, target: &str) {
        target.clone_into(&mut self.shared.target.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// How bytes flow in one direction, in all connections.
    pub fn set(&self, direction: Direction, flow: Flow) {
        self.steer(|steering| steering.flows[direction.index()] = flow);
    }

    /// How bytes flow in both directions.
    pub fn set_both(&self, flow: Flow) {
        self.steer(|steering| steering.flows = [flow; 2]);
    }

    /// Everything flows, new connections are taken, what was held is delivered, traps that have not sprung are gone.
    pub fn pass(&self) {
        self.steer(|steering| {
            steering.flows = [Flow::Pass; 2];
            steering.is_refusing = false;
            steering.releases += 1;
            steering.armed.clear();
        });
    }

    /// Resets every connection, at both ends.
    pub fn cut(&self) {
        self.steer(|steering| steering.cuts += 1);
    }

    /// Ends one direction of every connection, as a peer does that has nothing more to say.
    pub fn half_close(&self, direction: Direction) {
        self.steer(|steering| steering.half_closes[direction.index()] += 1);
    }

    /// Nobody listens: new connections are refused, those under way go on. [`pass`](Self::pass) ends it.
    pub fn refuse(&self) {
        self.steer(|steering| steering.is_refusing = true);
    }

    /// Delivers what traps have held ([`Then::Hold`]), and nothing is held any more.
    pub fn release(&self) {
        self.steer(|steering| steering.releases += 1);
    }

    /// Waits in all connections, those to come included, for a sign in what flows in one direction; the first connection
    /// that shows it is dealt with, once.
    pub fn trap(&self, direction: Direction, sign: Sign, then: Then) -> Trap {
        let (armed, sprung) = Armed::new(direction, sign, then);
        self.steer(|steering| steering.armed.push(armed));
        Trap(sprung)
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.shared.open.load(Ordering::Relaxed)
    }

    /// How many bytes have reached the other side.
    pub fn passed(&self, direction: Direction) -> u64 {
        self.shared.passed[direction.index()].load(Ordering::Relaxed)
    }

    fn steer(&self, how: impl FnOnce(&mut Steering)) {
        self.shared.steering.send_modify(how);
    }
}

impl Trap {
    /// Waits until it has sprung.
    ///
    /// # Panics
    /// If the proxy gave it up: by [`Proxy::pass`], or because it is gone.
    ///
    /// # Cancel safety
    /// A dropped future leaves the trap where it is.
    pub async fn sprung(self) {
        if self.0.await.is_err() {
            panic!("the trap was taken away before it sprang");
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
        self.task.abort();
    }
}

/// Takes connections while none are to be refused.
async fn accept(listener: TcpListener, address: SocketAddr, shared: Arc<Shared>) {
    let mut steering = shared.steering.subscribe();
    let mut listener = Some(listener);
    loop {
        let is_refusing = steering.borrow_and_update().is_refusing;
        match &listener {
            Some(_) if is_refusing => listener = None,
            None if !is_refusing => match TcpListener::bind(address).await {
                Ok(new) => listener = Some(new),
                Err(error) => {
                    eprintln!("the proxy cannot listen on {address} again: {error}");
                    return;
                }
            },
            None => {
                if steering.changed().await.is_err() {
                    return;
                }
            }
            Some(listener) => tokio::select! {
                changed = steering.changed() => if changed.is_err() { return },
                accepted = listener.accept() => {
                    if let Ok((client, _)) = accepted {
                        // Its own task: one that cannot reach the server keeps nobody waiting.
                        tokio::spawn(serve(client, shared.clone()));
                    }
                }
            },
        }
    }
}

async fn serve(client: TcpStream, shared: Arc<Shared>) {
    let steering = shared.steering.subscribe();
    let target = shared.target.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let Ok(server) = TcpStream::connect(target).await else {
        // As near as a proxy comes to a refusal.
        let _ = client.set_zero_linger();
        return;
    };
    shared.open.fetch_add(1, Ordering::Relaxed);
    Connection::new(client, server, &shared, steering).run().await;
    shared.open.fetch_sub(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests;
