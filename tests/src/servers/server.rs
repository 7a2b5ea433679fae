//! A server, wherever it comes from.

use std::fs::File;
use std::path::PathBuf;

use super::engine::{Address, Engine};
use super::local::{self, Owner};
use super::own::Own;

/// A server. Dropped, it is gone with all it kept, unless it is shared or somebody else's.
pub struct Server<E: Engine> {
    pub(super) address: Address,
    origin: Origin<E>,
}

/// Where a server comes from.
enum Origin<E: Engine> {
    Foreign,
    Shared {
        log: PathBuf,
        _hold: File,
        /// What this process started, if it did. Never dropped: the keeper ends it.
        _started: Option<Own<E>>,
    },
    Own(Own<E>),
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
        match Own::start(settings, Owner::Us).await {
            Ok(own) => Self { address: own.address().clone(), origin: Origin::Own(own) },
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
    pub(super) fn shared(address: Address, log: PathBuf, hold: File, started: Option<Own<E>>) -> Self {
        Self { address, origin: Origin::Shared { log, _hold: hold, _started: started } }
    }

    /// Whether the server stays when the tests are gone.
    pub(super) fn is_foreign(&self) -> bool {
        matches!(self.origin, Origin::Foreign)
    }

    /// Whether others use it as well, or will.
    pub(super) fn has_others(&self) -> bool {
        !matches!(self.origin, Origin::Own(_))
    }

    /// How clients reach it.
    pub fn url(&self) -> &str {
        &self.address.url
    }

    /// Where clients reach it: `host:port`.
    pub fn host(&self) -> &str {
        let after_scheme = self.url().split_once("://").map_or("", |(_, rest)| rest);
        let authority = after_scheme.split(['/', '?']).next().unwrap_or_default();
        authority.rsplit('@').next().unwrap_or_default()
    }

    /// How it is administered, if by another way: RabbitMQ's management API.
    pub fn admin_url(&self) -> Option<&str> {
        self.address.admin.as_deref()
    }

    /// All that it has said so far. Of a shared server in a container, and of somebody else's, nothing is known.
    ///
    /// # Cancel safety
    /// A dropped future leaves nothing behind.
    pub async fn logs(&self) -> String {
        match &self.origin {
            Origin::Foreign => String::new(),
            Origin::Shared { log, .. } => local::read(log),
            Origin::Own(own) => own.logs().await,
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
        done(self.own("kill").kill().await);
    }

    /// Ends it in peace, as an operator would.
    ///
    /// # Panics
    /// If it is shared or somebody else's, or does not end.
    ///
    /// # Cancel safety
    /// A dropped future leaves a server that ends.
    pub async fn stop(&self) {
        done(self.own("stop").stop().await);
    }

    /// Starts it again, with all it kept, at the same address; ends it in peace before, if it is running.
    ///
    /// # Panics
    /// If it is shared or somebody else's, or does not end or start.
    ///
    /// # Cancel safety
    /// A dropped future leaves a server that starts.
    pub async fn restart(&self) {
        let own = self.own("restart");
        if own.is_running().await {
            done(own.stop().await);
        }
        done(own.launch().await);
    }

    /// Stops all of its processes as `kill -STOP` does: connections stay, nothing answers.
    ///
    /// # Panics
    /// If it is shared or somebody else's.
    ///
    /// # Cancel safety
    /// A dropped future leaves some of its processes running.
    pub async fn pause(&self) {
        done(self.own("pause").pause().await);
    }

    /// Lets it go on after [`pause`](Self::pause).
    ///
    /// # Panics
    /// If it is shared or somebody else's.
    ///
    /// # Cancel safety
    /// A dropped future leaves a server that may still stand.
    pub async fn resume(&self) {
        done(self.own("resume").resume().await);
    }

    pub(super) fn own(&self, what: &str) -> &Own<E> {
        match &self.origin {
            Origin::Own(own) => own,
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

fn done(result: Result<(), String>) {
    if let Err(why) = result {
        panic!("{why}");
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
