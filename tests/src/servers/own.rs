//! A server that this process started, from programs or in a container.

#[cfg(feature = "containers")]
use super::container::Container;
use super::engine::{Address, Engine, Place};
use super::local::{Local, Owner};

/// The variable that chooses among the ways to get a server.
const WAY: &str = "EVENT_BUS_TEST_SERVERS";

/// A server of our own.
pub(super) enum Own<E: Engine> {
    Local(Local<E>),
    #[cfg(feature = "containers")]
    Container(Box<Container<E>>),
}

/// Does the same to either.
macro_rules! either {
    ($own:expr, $server:ident => $act:expr) => {
        match $own {
            Own::Local($server) => $act,
            #[cfg(feature = "containers")]
            Own::Container($server) => $act,
        }
    };
}

impl<E: Engine> Own<E> {
    /// Starts one, in the first way that this machine has.
    pub(super) async fn start(settings: &[(&str, &str)], owner: Owner) -> Result<Self, String> {
        let programs = match std::env::var(WAY).as_deref() {
            Ok("containers") if E::IMAGE.is_some() => Err(format!("{WAY} asks for containers")),
            Ok("containers" | "programs" | "") | Err(_) => E::look(),
            Ok(other) => return Err(format!("{WAY} is {other:?}; known are programs and containers")),
        };
        match programs {
            Ok(()) => Local::start(settings, owner).await.map(Self::Local),
            Err(missing) => Self::contained(settings, owner, &missing).await,
        }
    }

    #[cfg(feature = "containers")]
    async fn contained(settings: &[(&str, &str)], owner: Owner, missing: &str) -> Result<Self, String> {
        let container = Container::start(settings, owner).await;
        container.map(|new| Self::Container(Box::new(new))).map_err(|why| format!("{missing}; {why}"))
    }

    #[cfg(not(feature = "containers"))]
    async fn contained(_: &[(&str, &str)], _: Owner, missing: &str) -> Result<Self, String> {
        Err(format!("{missing}, and the feature \"containers\" is off"))
    }

    pub(super) fn address(&self) -> &Address {
        either!(self, server => &server.address)
    }

    pub(super) fn place(&self) -> &Place {
        either!(self, server => &server.place)
    }

    pub(super) async fn is_running(&self) -> bool {
        either!(self, server => server.is_running().await)
    }

    pub(super) async fn launch(&self) -> Result<(), String> {
        either!(self, server => server.launch().await)
    }

    pub(super) async fn kill(&self) -> Result<(), String> {
        either!(self, server => server.kill().await)
    }

    pub(super) async fn stop(&self) -> Result<(), String> {
        either!(self, server => server.stop().await)
    }

    pub(super) async fn pause(&self) -> Result<(), String> {
        either!(self, server => server.pause().await)
    }

    pub(super) async fn resume(&self) -> Result<(), String> {
        either!(self, server => server.resume().await)
    }

    pub(super) async fn logs(&self) -> String {
        either!(self, server => server.logs().await)
    }
}
