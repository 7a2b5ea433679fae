//! PgBouncer, in front of a Postgres.

use std::process::Child;
use std::time::Duration;

use rustix::process::Signal;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

use super::engine::{Address, Engine, Image, Place, Ports};
use super::local::{command, find, spawn};
use super::postgres::as_server;
use super::{PgBouncer, Postgres};

/// The engine of [`PgBouncer`]: pools in transaction mode, with fewer servers than clients, so that two transactions of a
/// client seldom meet the same server.
pub struct PgBouncerEngine;

static SHARED: OnceCell<PgBouncer> = OnceCell::const_new();

impl Engine for PgBouncerEngine {
    const NAME: &'static str = "pgbouncer";
    const VARIABLE: &'static str = "EVENT_BUS_TEST_PGBOUNCER_URL";
    const IMAGE: Option<Image> = None;
    const PACKAGE: &'static str = "pgbouncer";
    const SHARED_SETTINGS: &'static [(&'static str, &'static str)] = &[];

    fn shared() -> &'static OnceCell<PgBouncer> {
        &SHARED
    }

    fn look() -> Result<(), String> {
        program().map(drop)
    }

    fn address(host: &str, ports: Ports) -> Address {
        Address { url: format!("postgres://{host}:{}", ports.main), admin: None }
    }

    fn install(place: &Place) -> Result<(), String> {
        let target =
            place.settings().find(|(name, _)| *name == "target").ok_or("pgbouncer needs a target")?.1;
        let port = place.ports.main;
        let text = format!(
            "[databases]\n* = {target}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = any\npool_mode = transaction\ndefault_pool_size = 3\nmax_client_conn = 1000\n\
             server_round_robin = 1\nserver_reset_query_always = 1\nserver_reset_query = discard all\n"
        );
        let file = place.directory.join("pgbouncer.ini");
        std::fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))
    }

    fn spawn(place: &Place) -> Result<Vec<Child>, String> {
        let mut server = as_server(command(&program()?, place)?)?;
        server.arg(place.directory.join("pgbouncer.ini"));
        Ok(vec![spawn(server)?])
    }

    fn farewell() -> Signal {
        Signal::TERM
    }

    async fn answers(address: &Address) -> bool {
        let Some(host) = address.url.strip_prefix("postgres://") else { return false };
        matches!(tokio::time::timeout(Duration::from_secs(1), TcpStream::connect(host)).await, Ok(Ok(_)))
    }
}

fn program() -> Result<std::path::PathBuf, String> {
    find("pgbouncer", &["/usr/sbin".into()]).ok_or_else(|| "pgbouncer is not in the path".to_owned())
}

impl PgBouncer {
    /// Starts one in front of this server. Users and databases are those of the server.
    ///
    /// # Panics
    /// If it cannot be started; the text says why.
    ///
    /// # Cancel safety
    /// A dropped future leaves a server that its keeper stops.
    pub async fn before(server: &Postgres) -> Self {
        let (user, address) = address(server.url());
        let (host, port) = address.split_once(':').unwrap_or((address, "5432"));
        Self::start(&[("target", &format!("host={host} port={port} user={user}"))]).await
    }

    /// The same database through it.
    pub fn url_of(&self, database: &str) -> String {
        let (user, address) = address(database);
        let own = self.url().strip_prefix("postgres://").unwrap_or_default();
        database.replacen(&format!("{user}@{address}"), &format!("{user}@{own}"), 1)
    }
}

/// User, and host with port, of a URL without a password.
fn address(url: &str) -> (&str, &str) {
    let rest = url.strip_prefix("postgres://").unwrap_or(url);
    let authority = rest.split_once('/').map_or(rest, |(authority, _)| authority);
    authority.rsplit_once('@').unwrap_or(("postgres", authority))
}
