//! Postgres.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use rustix::process::{Signal, getuid};
use sqlx::{ConnectOptions as _, Connection as _, PgConnection};
use tokio::sync::OnceCell;

use super::Postgres;
use super::engine::{Address, Engine, Image, Place, Ports, Recipe};
use super::local::{command, find, run, spawn};

/// The engine of [`Postgres`]: every commit is synchronised.
pub struct PostgresEngine;

static SHARED: OnceCell<Postgres> = OnceCell::const_new();

/// Who owns everything in a server of tests.
const SUPERUSER: &str = "postgres";

/// Not a setting of the server: the URL of another one, of which it is a standby.
const STANDBY_OF: &str = "standby_of";

impl Engine for PostgresEngine {
    const NAME: &'static str = "postgres";
    const VARIABLE: &'static str = "EVENT_BUS_TEST_POSTGRES_URL";
    const IMAGE: Option<Image> =
        Some(Image { name: "postgres:16", variable: "EVENT_BUS_TEST_POSTGRES_IMAGE" });
    const PACKAGE: &'static str = "postgresql";
    const SHARED_SETTINGS: &'static [(&'static str, &'static str)] = &[("max_connections", "500")];

    fn shared() -> &'static OnceCell<Postgres> {
        &SHARED
    }

    fn look() -> Result<(), String> {
        program("initdb")?;
        program("postgres")?;
        other_user().map(drop)
    }

    fn address(host: &str, ports: Ports) -> Address {
        Address { url: format!("postgres://{SUPERUSER}@{host}:{}/postgres", ports.main), admin: None }
    }

    fn recipe(place: &Place) -> Recipe {
        let settings =
            place.settings().flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]);
        Recipe {
            ports: vec![(place.ports.main, 5432)],
            environment: vec![("POSTGRES_HOST_AUTH_METHOD", "trust")],
            arguments: std::iter::once("postgres".to_owned()).chain(settings).collect(),
            ..Recipe::default()
        }
    }

    fn install(place: &Place) -> Result<(), String> {
        let data = place.directory.join("data");
        let in_words = |error| format!("{}: {error}", data.display());
        std::fs::create_dir(&data).map_err(in_words)?;
        // Otherwise the server refuses it, and only initdb would see to that.
        std::fs::set_permissions(&data, Permissions::from_mode(0o700)).map_err(in_words)?;
        if let Some((user, group)) = other_user()? {
            std::os::unix::fs::chown(&data, Some(user), Some(group)).map_err(|error| error.to_string())?;
        }
        if let Some((_, primary)) = place.settings().find(|(name, _)| *name == STANDBY_OF) {
            let mut backup = as_server(command(&program("pg_basebackup")?, place)?)?;
            backup.args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--dbname", primary]);
            backup.arg("--pgdata").arg(&data);
            return run(backup, place);
        }
        let mut initdb = as_server(command(&program("initdb")?, place)?)?;
        // The server synchronises; what comes before its first commit need not.
        initdb.args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C", "--username", SUPERUSER]);
        initdb.arg("--pgdata").arg(&data);
        run(initdb, place)
    }

    fn spawn(place: &Place) -> Result<Vec<Child>, String> {
        let mut server = as_server(command(&program("postgres")?, place)?)?;
        server.arg("-D").arg(place.directory.join("data"));
        let port = place.ports.main.to_string();
        let fixed = [("port", &*port), ("listen_addresses", "127.0.0.1"), ("unix_socket_directories", "")];
        let settings = place.settings().filter(|(name, _)| *name != STANDBY_OF);
        for (name, value) in fixed.into_iter().chain(settings) {
            server.arg("-c").arg(format!("{name}={value}"));
        }
        Ok(vec![spawn(server)?])
    }

    /// Rolls back and closes all connections.
    fn farewell() -> Signal {
        Signal::INT
    }

    async fn answers(address: &Address) -> bool {
        let ask = async {
            let mut connection = connect(&address.url).await?;
            sqlx::query("select 1").execute(&mut connection).await?;
            connection.close().await
        };
        matches!(tokio::time::timeout(Duration::from_secs(1), ask).await, Ok(Ok(())))
    }
}

async fn connect(url: &str) -> sqlx::Result<PgConnection> {
    let options: sqlx::postgres::PgConnectOptions = url.parse()?;
    options.disable_statement_logging().connect().await
}

/// A program of the newest Postgres. Debian keeps them out of the path.
fn program(name: &str) -> Result<PathBuf, String> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<_> = versions
        .filter_map(|entry| {
            Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin")))
        })
        .collect();
    versions.sort_unstable_by(|one, other| other.cmp(one));
    let directories: Vec<_> = versions.into_iter().map(|(_, directory)| directory).collect();
    let missing = || format!("{name} is neither in the path nor in /usr/lib/postgresql/*/bin");
    find(name, &directories).ok_or_else(missing)
}

/// Whom the server runs as, if not as us: it refuses to be root.
fn other_user() -> Result<Option<(u32, u32)>, String> {
    if !getuid().is_root() {
        return Ok(None);
    }
    let number = |option: &str| {
        let output = Command::new("id").args([option, SUPERUSER]).output().ok()?;
        String::from_utf8_lossy(&output.stdout).trim().parse().ok()
    };
    let user = number("-u").zip(number("-g"));
    user.map(Some).ok_or_else(|| format!("there is no user {SUPERUSER}, and initdb does not run as root"))
}

pub(super) fn as_server(mut command: Command) -> Result<Command, String> {
    if let Some((user, group)) = other_user()? {
        use std::os::unix::process::CommandExt as _;
        command.uid(user).gid(group);
    }
    Ok(command)
}

/// A database of one case.
pub struct Database {
    name: String,
    url: String,
    /// Through which it is dropped, if the server stays.
    server: Option<String>,
}

impl Postgres {
    /// Starts a copy of the server at `primary` that follows it, until `pg_promote()` makes it a primary of its own.
    ///
    /// # Panics
    /// If it cannot be started; the text says why.
    ///
    /// # Cancel safety
    /// A dropped future leaves a server that its keeper stops.
    pub async fn standby_of(primary: &str, settings: &[(&str, &str)]) -> Self {
        Self::start(&[settings, &[(STANDBY_OF, primary)]].concat()).await
    }

    /// A new, empty database. Advisory locks and notifications of databases do not meet.
    ///
    /// # Panics
    /// If the server refuses.
    ///
    /// # Cancel safety
    /// A dropped future may leave an empty database.
    pub async fn database(&self) -> Database {
        let name = super::unique_name();
        let create = format!("create database {name} template template0");
        if let Err(error) = execute(self.url(), create).await {
            panic!("cannot create a database: {error}");
        }
        let server = self.is_foreign().then(|| self.url().to_owned());
        Database { url: at_database(self.url(), &name), name, server }
    }
}

impl Database {
    /// Its address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Database {
    /// A server of ours goes as a whole; from another's what was made is removed.
    fn drop(&mut self) {
        let Some(server) = self.server.take() else { return };
        let drop = format!("drop database if exists {} with (force)", self.name);
        // Not on the runtime of the case, which may be ending.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            if let Ok(runtime) = runtime
                && let Err(error) = runtime.block_on(execute(&server, drop))
            {
                eprintln!("a database of a test is left: {error}");
            }
        });
        let _ = dropping.join();
    }
}

async fn execute(server: &str, sql: String) -> sqlx::Result<()> {
    let mut connection = connect(server).await?;
    sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await?;
    connection.close().await
}

/// The same server, another database.
fn at_database(url: &str, name: &str) -> String {
    let (address, parameters) = url.split_once('?').map_or((url, None), |(a, p)| (a, Some(p)));
    let start = address.find("://").map_or(0, |at| at + 3);
    let end = address[start..].find('/').map_or(address.len(), |at| start + at);
    let parameters = parameters.map(|parameters| format!("?{parameters}")).unwrap_or_default();
    format!("{}/{name}{parameters}", &address[..end])
}

#[cfg(test)]
mod tests {
    use super::at_database;

    #[test]
    fn a_database_takes_the_place_of_another_in_the_url() {
        assert_eq!(
            at_database("postgres://a:b@c:1/d?sslmode=disable", "e"),
            "postgres://a:b@c:1/e?sslmode=disable"
        );
        assert_eq!(at_database("postgres://c", "e"), "postgres://c/e");
    }
}
