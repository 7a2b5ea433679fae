//! Redis.

use std::process::Child;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

use super::Redis;
use super::engine::{Address, Engine, Image, Place, Ports, Recipe};
use super::local::{command, find, spawn};

/// The engine of [`Redis`]: every write in the append-only file, synchronised each second; nothing is evicted.
pub struct RedisEngine;

static SHARED: OnceCell<Redis> = OnceCell::const_new();

impl Engine for RedisEngine {
    const NAME: &'static str = "redis";
    const VARIABLE: &'static str = "EVENT_BUS_TEST_REDIS_URL";
    const IMAGE: Option<Image> = Some(Image { name: "redis:7", variable: "EVENT_BUS_TEST_REDIS_IMAGE" });
    const PACKAGE: &'static str = "redis-server";
    const SHARED_SETTINGS: &'static [(&'static str, &'static str)] = &[];

    fn shared() -> &'static OnceCell<Redis> {
        &SHARED
    }

    fn look() -> Result<(), String> {
        find("redis-server", &[]).map(drop).ok_or_else(|| "redis-server is not in the path".to_owned())
    }

    fn address(host: &str, ports: Ports) -> Address {
        Address { url: format!("redis://{host}:{}", ports.main), admin: None }
    }

    fn recipe(place: &Place) -> Recipe {
        let arguments = std::iter::once("redis-server".to_owned()).chain(arguments(place)).collect();
        Recipe { ports: vec![(place.ports.main, 6379)], arguments, ..Recipe::default() }
    }

    fn install(_: &Place) -> Result<(), String> {
        Ok(())
    }

    fn spawn(place: &Place) -> Result<Vec<Child>, String> {
        let program = find("redis-server", &[]).ok_or("redis-server is not in the path")?;
        let mut server = command(&program, place)?;
        server
            .args(["--port", &place.ports.main.to_string(), "--bind", "127.0.0.1", "--dir"])
            .arg(&place.directory);
        server.args(arguments(place));
        Ok(vec![spawn(server)?])
    }

    fn farewell() -> Signal {
        Signal::TERM
    }

    async fn answers(address: &Address) -> bool {
        let Some(host) = address.url.strip_prefix("redis://") else { return false };
        let ask = async {
            let mut stream = TcpStream::connect(host).await?;
            stream.write_all(b"PING\r\n").await?;
            let mut answer = [0; 7];
            stream.read_exact(&mut answer).await?;
            Ok::<_, std::io::Error>(answer == *b"+PONG\r\n")
        };
        matches!(tokio::time::timeout(Duration::from_secs(1), ask).await, Ok(Ok(true)))
    }
}

/// The settings as arguments.
fn arguments(place: &Place) -> impl Iterator<Item = String> {
    let settings = DURABLE.iter().copied().chain(place.settings());
    settings.flat_map(|(name, value)| {
        let values = value.split_whitespace().map(str::to_owned);
        std::iter::once(format!("--{name}")).chain(values).collect::<Vec<_>>()
    })
}

/// As in production.
const DURABLE: [(&str, &str); 3] =
    [("appendonly", "yes"), ("appendfsync", "everysec"), ("maxmemory-policy", "noeviction")];
