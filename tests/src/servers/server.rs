//! A server, wherever it comes from.

use std::fs::File;
use std::path::PathBuf;

use super::engine::{Address, Engine};
use super::local::{self, Local, Owner};

/// A server. Dropped, it is gone with all it kept, unless it is shared or somebody else's.
pub struct Server<E: Engine> {
    pub(super) address: Address,
    origin: Origin<E>,
}

/// Where a server comes from.
enum Origin<E> {
    Foreign,
    Shared { log: PathBuf, _hold: File },
    Own(Local<E>),
}

impl<E: Engine> Server<E> {
    /// Starts a server for one case, with settings in its own language: `[("max_connections", "20")]` for Postgres and
    /// Redis, a line of `rabbitmq.conf` for RabbitMQ.
    ///
    /// # Panics
    /// If it cannot be started; the text says why, and the other ways to get one. Also where a URL was given, for nobody
    /// may start a server then; [`why_fixed`](Self::why_fixed) asks beforehand.
    ///
    /// # Cancel safety
    /// A dropped future leaves a server that its keeper stops.
    pub async fn start(settings: &[(&str, &str)]) -> Self {
        if let Some(why) = Self::why_fixed() {
            panic!("no {} server can be started: {why}", E::NAME);
        }
        match Local::<E>::start(settings, Owner::Us).await {
            Ok(local) => Self { address: local.address.clone(), origin: Origin::Own(local) },
            Err(why) => panic!("{}", none_found::<E>(&why)),
        }
    }

    /// Why no server can be started, killed, stopped or paused here. `None`: one can.
    pub fn why_fixed() -> Option<String> {
        foreign_url::<E>().map(|_| format!("{} names a server of somebody else", E::VARIABLE))
    }

    /// Somebody else's server.
    pub(super) fn foreign(address: Address) -> Self {
        Self { address, origin: Origin::Foreign }
    }

    /// A server that others use as well.
    pub(super) fn shared(address: Address, log: PathBuf, hold: File) -> Self {
        Self { address, origin: Origin::Shared { log, _hold: hold } }
    }

    /// Whether the server stays when the tests are gone.
    pub(super) fn is_foreign(&self) -> bool {
        matches!(self.origin, Origin::Foreign)
    }

    /// How clients reach it.
    pub fn url(&self) -> &str {
        &self.address.url
    }

    /// How it is administered, if by another way: RabbitMQ's management API.
    pub fn admin_url(&self) -> Option<&str> {
        self.address.admin.as_deref()
    }

    /// All that it has said so far.
    pub fn logs(&self) -> String {
        match &self.origin {
            Origin::Foreign => String::new(),
            Origin::Shared { log, .. } => local::read(log),
            Origin::Own(local) => local.logs(),
        }
    }

    /// Kills it with all of its processes, as `kill -9` does.
    ///
    /// # Panics
    /// If it is shared or somebody else's.
    ///
    /// # Cancel safety
    /// A dropped future leaves some of its processes.
    pub async fn kill(&self) {
        self.own("kill").kill().await;
    }

    /// Ends it in peace, as an operator would.
    ///
    /// # Panics
    /// If it is shared or somebody else's, or does not end.
    ///
    /// # Cancel safety
    /// A dropped future leaves a server that ends.
    pub async fn stop(&self) {
        if let Err(why) = self.own("stop").stop().await {
            panic!("{why}");
        }
    }

    /// Starts it again, with all it kept, at the same address; ends it in peace before, if it is running.
    ///
    /// # Panics
    /// If it is shared or somebody else's, or does not end or start.
    ///
    /// # Cancel safety
    /// A dropped future leaves a server that starts.
    pub async fn restart(&self) {
        let local = self.own("restart");
        if local.is_running()
            && let Err(why) = local.stop().await
        {
            panic!("{why}");
        }
        if let Err(why) = local.launch().await {
            panic!("{why}");
        }
    }

    /// Stops all of its processes as `kill -STOP` does: connections stay, nothing answers.
    ///
    /// # Panics
    /// If it is shared or somebody else's.
    ///
    /// # Cancel safety
    /// A dropped future leaves some of its processes running.
    pub async fn pause(&self) {
        self.own("pause").pause().await;
    }

    /// Lets it go on after [`pause`](Self::pause).
    ///
    /// # Panics
    /// If it is shared or somebody else's.
    ///
    /// # Cancel safety
    /// It does not wait.
    pub async fn resume(&self) {
        self.own("resume").resume();
    }

    pub(super) fn own(&self, what: &str) -> &Local<E> {
        match &self.origin {
            Origin::Own(local) => local,
            Origin::Foreign => panic!("cannot {what} this {} server: {} names it", E::NAME, E::VARIABLE),
            Origin::Shared { .. } => {
                panic!(
                    "cannot {what} the shared {} server: others use it; start one with Server::start",
                    E::NAME
                )
            }
        }
    }
}

/// The URL of somebody else's server.
pub(super) fn foreign_url<E: Engine>() -> Option<String> {
    std::env::var(E::VARIABLE).ok().filter(|url| !url.is_empty())
}

/// That there is no server, and how to get one.
pub(super) fn none_found<E: Engine>(why: &str) -> String {
    let (name, variable, package) = (E::NAME, E::VARIABLE, E::PACKAGE);
    format!(
        "no {name} server for tests: {why}\nThere are three ways to have one:\n  \
         1. set {variable} to the URL of a server that tests may fill;\n  \
         2. install the programs (Debian: apt-get install {package}, or cargo xtask test as root);\n  \
         3. run Docker, and build event-bus-conformance with its feature \"containers\" (cargo xtask test --containers)."
    )
}
