//! What the servers differ in.

use std::path::PathBuf;
use std::process::Child;

use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use super::server::Server;

/// A kind of server.
pub trait Engine: Send + Sync + Sized + 'static {
    /// Its name: `postgres`.
    const NAME: &'static str;
    /// The variable that names a server of somebody else.
    const VARIABLE: &'static str;
    /// Its image, if it has one. Without one its programs are needed, whatever else comes in containers.
    const IMAGE: Option<Image>;
    /// The Debian package with its programs.
    const PACKAGE: &'static str;
    /// Settings of the server that a test run shares.
    const SHARED_SETTINGS: &'static [(&'static str, &'static str)];

    /// Where the server of this process's test run is kept.
    fn shared() -> &'static OnceCell<Server<Self>>;

    /// Whether this machine has its programs.
    ///
    /// # Errors
    /// What is missing.
    fn look() -> Result<(), String>;

    /// How it is reached.
    fn address(host: &str, ports: Ports) -> Address;

    /// How it runs in a container, where there is an image of it.
    fn recipe(_: &Place) -> Recipe {
        Recipe::default()
    }

    /// Fills an empty directory.
    ///
    /// # Errors
    /// What its programs say.
    fn install(place: &Place) -> Result<(), String>;

    /// Starts its processes, the server itself last. All of them have their working directory in the place.
    ///
    /// # Errors
    /// What the operating system says.
    fn spawn(place: &Place) -> Result<Vec<Child>, String>;

    /// The signal that makes the server end in peace.
    fn farewell() -> rustix::process::Signal;

    /// Whether it answers.
    fn answers(address: &Address) -> impl Future<Output = bool> + Send;
}

/// An image with a server.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// The official one.
    pub name: &'static str,
    /// The variable that names another.
    pub variable: &'static str,
}

/// Ports for one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// For clients.
    pub main: u16,
    /// For whoever administers it.
    pub admin: u16,
    /// Between its parts.
    pub inner: [u16; 2],
}

/// How a server is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// By clients.
    pub url: String,
    /// By whoever administers it, if by another way.
    pub admin: Option<String>,
}

/// A setting that says in which directory a server of this machine shall live, instead of that of all tests.
pub(super) const PLACE: &str = "place";

/// Settings that begin so are variables of the environment of its processes.
const ENVIRONMENT: &str = "env.";

/// Where a server lives.
#[derive(Clone, Debug)]
pub struct Place {
    /// All that it writes.
    pub directory: PathBuf,
    /// The last part of the directory; nothing else on this machine is called so.
    pub name: String,
    /// Its ports.
    pub ports: Ports,
    /// Settings in its own language, beside or over the usual ones.
    pub settings: Vec<(String, String)>,
}

/// How a server runs in a container of its official image.
#[derive(Clone, Debug, Default)]
pub struct Recipe {
    /// Ports of this machine, and those they lead to in the container.
    pub ports: Vec<(u16, u16)>,
    /// Variables of the environment.
    pub environment: Vec<(&'static str, &'static str)>,
    /// Files, by path.
    pub files: Vec<(&'static str, String)>,
    /// The arguments.
    pub arguments: Vec<String>,
}

impl Place {
    /// Where its processes write what they have to say.
    pub fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// One of the settings.
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.settings().find(|(own, _)| *own == name).map(|(_, value)| value)
    }

    /// The settings, by name, without those that are not the server's own.
    pub fn settings(&self) -> impl Iterator<Item = (&str, &str)> {
        let is_own = |name: &str| name != PLACE && !name.starts_with(ENVIRONMENT);
        self.settings.iter().map(|(name, value)| (&**name, &**value)).filter(move |(name, _)| is_own(name))
    }

    /// Variables of the environment of its processes, beside those that it needs.
    pub(super) fn environment(&self) -> impl Iterator<Item = (&str, &str)> {
        self.settings.iter().filter_map(|(name, value)| Some((name.strip_prefix(ENVIRONMENT)?, &**value)))
    }
}
