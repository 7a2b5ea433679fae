//! RabbitMQ.

use std::fs;
use std::net::TcpStream as BlockingStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

use super::RabbitMq;
use super::engine::{Address, Engine, Image, Place, Ports, Recipe};
use super::local::{blocking, command, find, spawn};
use super::own::Own;

/// The engine of [`RabbitMq`]: as it comes, with the consistent-hash exchange and the management API. A node of its own:
/// name, ports (to other nodes and to the port mapper as well), database, cookie.
pub struct RabbitMqEngine;

static SHARED: OnceCell<RabbitMq> = OnceCell::const_new();

/// The plugins, in the language of the file that lists them.
const PLUGINS: &str = "[rabbitmq_consistent_hash_exchange,rabbitmq_management].\n";

/// Settings that are none of `rabbitmq.conf`: the secret of a cluster, and the port of the mapper by which its nodes find one
/// another.
const COOKIE: &str = "erlang.cookie";
const MAPPER: &str = "erlang.mapper";

/// Where Debian keeps the scripts that do not ask who calls.
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";

impl Engine for RabbitMqEngine {
    const NAME: &'static str = "rabbitmq";
    const VARIABLE: &'static str = "EVENT_BUS_TEST_AMQP_URL";
    const IMAGE: Option<Image> =
        Some(Image { name: "rabbitmq:3.13", variable: "EVENT_BUS_TEST_RABBITMQ_IMAGE" });
    const PACKAGE: &'static str = "rabbitmq-server";
    const SHARED_SETTINGS: &'static [(&'static str, &'static str)] = &[];

    fn shared() -> &'static OnceCell<RabbitMq> {
        &SHARED
    }

    fn look() -> Result<(), String> {
        program("rabbitmq-server")?;
        program("epmd").map(drop)
    }

    fn address(host: &str, ports: Ports) -> Address {
        let url = format!("amqp://guest:guest@{host}:{}/%2f", ports.main);
        Address { url, admin: Some(format!("http://guest:guest@{host}:{}", ports.admin)) }
    }

    fn recipe(place: &Place) -> Recipe {
        // Whoever calls comes from outside the container.
        let conf = format!("loopback_users.guest = false\nlog.console = true\n{}", lines(place));
        Recipe {
            ports: vec![(place.ports.main, 5672), (place.ports.admin, 15672)],
            files: vec![
                ("/etc/rabbitmq/conf.d/90-event-bus.conf", conf),
                ("/etc/rabbitmq/enabled_plugins", PLUGINS.to_owned()),
            ],
            arguments: vec!["rabbitmq-server".to_owned()],
            ..Recipe::default()
        }
    }

    fn install(place: &Place) -> Result<(), String> {
        if let Some(cookie) = place.setting(COOKIE) {
            let file = place.directory.join(".erlang.cookie");
            let in_words = |error| format!("{}: {error}", file.display());
            fs::write(&file, cookie).map_err(in_words)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o400)).map_err(in_words)?;
        }
        let conf = format!(
            "listeners.tcp.1 = 127.0.0.1:{}\nmanagement.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {}\n\
             log.file = false\nlog.console = true\n{}",
            place.ports.main,
            place.ports.admin,
            lines(place)
        );
        for (file, text) in [("rabbitmq.conf", &*conf), ("enabled_plugins", PLUGINS), ("environment", "")] {
            let file = place.directory.join(file);
            fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))?;
        }
        Ok(())
    }

    fn spawn(place: &Place) -> Result<Vec<Child>, String> {
        let mut server = node(command(&program("rabbitmq-server")?, place)?, place);
        // Without a shell in between: signals reach the server itself.
        server.env("RUNNING_UNDER_SYSTEMD", "true");
        if place.setting(MAPPER).is_some() {
            return Ok(vec![spawn(server)?]);
        }
        // Erlang starts a port mapper by itself where none answers, but for ever and not in our place.
        let port = place.ports.inner[0];
        let mut mapper = command(&program("epmd")?, place)?;
        mapper.args(["-port", &port.to_string(), "-address", "127.0.0.1"]);
        let mut mapper = spawn(mapper)?;
        let since = Instant::now();
        while BlockingStream::connect(("127.0.0.1", port)).is_err() {
            let has_ended = !matches!(mapper.try_wait(), Ok(None));
            if has_ended || since.elapsed() > Duration::from_secs(20) {
                return Err(format!("epmd does not listen on port {port}: is it already in use?"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(vec![mapper, spawn(server)?])
    }

    fn farewell() -> Signal {
        Signal::TERM
    }

    /// It greets a client, and administers itself.
    async fn answers(address: &Address) -> bool {
        let Some(host) = host(&address.url) else { return false };
        let ask = async {
            let mut stream = TcpStream::connect(host).await?;
            stream.write_all(b"AMQP\0\0\x09\x01").await?;
            // A method frame on channel 0: it starts a connection.
            let mut answer = [0; 3];
            stream.read_exact(&mut answer).await?;
            Ok::<_, std::io::Error>(answer == [1, 0, 0])
        };
        let greets = matches!(tokio::time::timeout(Duration::from_secs(2), ask).await, Ok(Ok(true)));
        greets && (address.admin.is_none() || manage(address, "GET", "/api/vhosts", "").await.is_ok())
    }
}

/// The settings as lines of `rabbitmq.conf`.
fn lines(place: &Place) -> String {
    let settings = place.settings().filter(|(name, _)| ![COOKIE, MAPPER].contains(name));
    settings.map(|(name, value)| format!("{name} = {value}\n")).collect()
}

/// A program of RabbitMQ or of Erlang.
fn program(name: &str) -> Result<PathBuf, String> {
    find(name, &[PathBuf::from(SCRIPTS)])
        .ok_or_else(|| format!("{name} is neither in the path nor in {SCRIPTS}"))
}

/// The environment of all programs of a node.
fn node(mut command: Command, place: &Place) -> Command {
    let directory = &place.directory;
    let [own_mapper, nodes] = place.ports.inner;
    let mapper = place.setting(MAPPER).map_or_else(|| own_mapper.to_string(), str::to_owned);
    command
        .env("HOME", directory)
        .env("ERL_EPMD_PORT", mapper)
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        .env("RABBITMQ_CONF_ENV_FILE", directory.join("environment"))
        .env("RABBITMQ_NODENAME", node_name(place))
        .env("RABBITMQ_DIST_PORT", nodes.to_string())
        .env("RABBITMQ_CONFIG_FILE", directory.join("rabbitmq.conf"))
        .env("RABBITMQ_ADVANCED_CONFIG_FILE", directory.join("advanced.config"))
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", directory.join("enabled_plugins"))
        .env("RABBITMQ_MNESIA_BASE", directory.join("data"))
        .env("RABBITMQ_LOG_BASE", directory)
        .env("RABBITMQ_PID_FILE", directory.join("pid"))
        .env("RABBITMQ_GENERATED_CONFIG_DIR", directory.join("generated"));
    command
}

fn node_name(place: &Place) -> String {
    format!("{}@localhost", place.name)
}

/// A virtual host of one case.
pub struct Vhost {
    name: String,
    url: String,
    /// Through which it is removed, if the server stays.
    server: Option<Address>,
}

impl RabbitMq {
    /// A new, empty virtual host.
    ///
    /// # Panics
    /// If the management API cannot be reached. Of a server that `EVENT_BUS_TEST_AMQP_URL` names it is looked for at
    /// `EVENT_BUS_TEST_AMQP_URL_ADMIN`, such as `http://guest:guest@localhost:15672`.
    ///
    /// # Cancel safety
    /// A dropped future may leave an empty virtual host.
    pub async fn vhost(&self) -> Vhost {
        let name = super::unique_name();
        if let Err(why) = self.manage("PUT", &format!("/api/vhosts/{name}"), "").await {
            panic!("cannot create a virtual host: {why}");
        }
        let server = self.has_others().then(|| self.address.clone());
        Vhost { url: at_vhost(self.url(), &name), name, server }
    }

    /// Calls the management API, and answers with the body of what it says.
    ///
    /// # Errors
    /// That it cannot be reached, or what it refuses.
    ///
    /// # Cancel safety
    /// A dropped future leaves a call that may still be made.
    pub async fn manage(&self, method: &str, path: &str, body: &str) -> Result<String, String> {
        manage(&self.address, method, path, body).await
    }

    /// Starts another node and lets it join this one's cluster. Queues that are there already do not spread to it by
    /// themselves.
    ///
    /// # Panics
    /// If this server is shared, somebody else's or in a container, or the new one does not start and join.
    ///
    /// # Cancel safety
    /// A dropped future leaves a node that its keeper stops.
    pub async fn start_beside(&self) -> Self {
        let place = self.own("cluster").place();
        let cookie = fs::read_to_string(place.directory.join(".erlang.cookie"))
            .unwrap_or_else(|error| panic!("the cookie of {}: {error}", place.name));
        let mapper = place.ports.inner[0].to_string();
        let new = Self::start(&[(COOKIE, &*cookie), (MAPPER, &*mapper)]).await;
        let peer = self.node_name();
        for command in [["stop_app"].as_slice(), &["reset"], &["join_cluster", &peer], &["start_app"]] {
            new.control(command).await;
        }
        new
    }

    /// What the node is called in a cluster.
    ///
    /// # Panics
    /// If the server is shared or somebody else's.
    pub fn node_name(&self) -> String {
        node_name(self.own("name").place())
    }

    /// Runs `rabbitmqctl` on this node, which takes a second or two, and answers with what it writes.
    ///
    /// # Panics
    /// If the server is shared or somebody else's, or the command fails.
    ///
    /// # Cancel safety
    /// A dropped future leaves a command that is still run.
    pub async fn control(&self, arguments: &[&str]) -> String {
        let answer = match self.own("control") {
            Own::Local(local) => {
                let place = local.place.clone();
                let arguments: Vec<_> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
                blocking(move || control(&place, &arguments)).await
            }
            #[cfg(feature = "containers")]
            Own::Container(container) => container.run(&[&["rabbitmqctl"], arguments].concat()).await,
        };
        answer.unwrap_or_else(|why| panic!("{why}"))
    }
}

fn control(place: &Place, arguments: &[String]) -> Result<String, String> {
    let mut control = node(Command::new(program("rabbitmqctl")?), place);
    let output = control.current_dir("/").args(arguments).output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    Err(format!("rabbitmqctl {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr)))
}

impl Vhost {
    /// Its address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Vhost {
    /// A server of one case goes as a whole. From another what was made is removed: each quorum queue is a group of
    /// processes with a log, and a node with some thousands of them stands still for ten seconds now and then.
    fn drop(&mut self) {
        let Some(address) = self.server.take() else { return };
        let path = format!("/api/vhosts/{}", self.name);
        // Not on the runtime of the case, which may be ending.
        let removing = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            if let Ok(runtime) = runtime
                && let Err(error) = runtime.block_on(manage(&address, "DELETE", &path, ""))
            {
                eprintln!("a virtual host of a test is left: {error}");
            }
        });
        let _ = removing.join();
    }
}

/// The part of a URL that says where.
fn host(url: &str) -> Option<&str> {
    let after_scheme = url.split_once("://")?.1;
    let authority = after_scheme.split(['/', '?']).next()?;
    authority.rsplit('@').next()
}

/// The same server, another virtual host.
fn at_vhost(url: &str, name: &str) -> String {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?']).map_or(url.len(), |at| start + at);
    let parameters = url.find('?').map_or("", |at| &url[at..]);
    format!("{}/{name}{parameters}", &url[..end])
}

/// One call over one connection: more is not needed of HTTP here.
async fn manage(address: &Address, method: &str, path: &str, body: &str) -> Result<String, String> {
    let missing = "there is no management API (EVENT_BUS_TEST_AMQP_URL_ADMIN names it)";
    let url = address.admin.as_deref().ok_or(missing)?;
    let host = host(url).ok_or(missing)?;
    let user = url.split_once("://").and_then(|(_, rest)| rest.rsplit_once('@')).map_or("", |(user, _)| user);
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Basic {}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        base64(user.as_bytes()),
        body.len()
    );
    let call = async {
        let mut stream = TcpStream::connect(host).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(20), call).await;
    let answer = answer.map_err(|_| format!("{host} does not answer"))?;
    let answer = answer.map_err(|error| format!("{host}: {error}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().unwrap_or_default();
    match status.split(' ').nth(1).is_some_and(|code| code.starts_with('2')) {
        true => Ok(body.to_owned()),
        false => Err(format!("{method} {path}: {status} {body}")),
    }
}

/// For a name and a password.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |bits: u32| char::from(DIGITS[(bits & 63) as usize]);
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, at| bits << 8 | u32::from(group.get(at).copied().unwrap_or(0)));
        for at in 0..4 {
            text.push(if at <= group.len() { digit(bits >> (18 - 6 * at)) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_everybody_else() {
        let known =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("guest:guest", "Z3Vlc3Q6Z3Vlc3Q=")];
        for (plain, encoded) in known {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }

    #[test]
    fn a_virtual_host_takes_the_place_of_another_in_the_url() {
        assert_eq!(at_vhost("amqp://a:b@c:1/%2f?heartbeat=5", "e"), "amqp://a:b@c:1/e?heartbeat=5");
        assert_eq!(at_vhost("amqp://c", "e"), "amqp://c/e");
        assert_eq!(host("amqp://a:b@c:1/%2f?heartbeat=5"), Some("c:1"));
    }
}
