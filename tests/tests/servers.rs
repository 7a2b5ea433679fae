//! The servers of tests are tested: they are shared, they are gone when their users are, and faults are real.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use event_bus_conformance::servers::{self, Engine, Postgres, RabbitMq, Redis, Server};
use sqlx::{Connection as _, PgConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const DEADLINE: Duration = Duration::from_secs(90);

/// Waits for a condition that a server or its keeper will bring about.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let since = Instant::now();
    while !is_so().await {
        assert!(since.elapsed() < DEADLINE, "still waiting after {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The part of a URL that can be connected to.
fn host(url: &str) -> &str {
    let authority = url.split_once("://").unwrap().1.split('/').next().unwrap();
    authority.rsplit('@').next().unwrap()
}

fn is_listening(url: &str) -> bool {
    TcpStream::connect(host(url)).is_ok()
}

/// Whether nobody can be killed here: the tests that kill have nothing to say then.
fn is_fixed<E: Engine>() -> bool {
    let why = Server::<E>::why_fixed();
    if let Some(why) = &why {
        eprintln!("not run: {why}");
    }
    why.is_some()
}

/// A program that holds servers, and what it says about them.
struct Holder {
    program: Child,
    urls: Vec<String>,
}

impl Holder {
    fn new(arguments: &[&str]) -> Self {
        let mut program = Command::new(env!("CARGO_BIN_EXE_servers"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let count = arguments.iter().filter(|argument| !argument.starts_with('-')).count();
        let lines = BufReader::new(program.stdout.take().unwrap()).lines();
        let urls =
            lines.take(count).map(|line| line.unwrap().split_once('=').unwrap().1.to_owned()).collect();
        Self { program, urls }
    }

    fn kill(mut self) {
        self.program.kill().unwrap();
        self.program.wait().unwrap();
    }
}

async fn answer(connection: &mut PgConnection, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
}

/// What Redis answers to one command.
async fn say(url: &str, command: &str) -> std::io::Result<String> {
    let mut stream = tokio::net::TcpStream::connect(host(url)).await?;
    stream.write_all(format!("{command}\r\nQUIT\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer.trim_end_matches("+OK\r\n").trim_end().to_owned())
}

#[tokio::test]
async fn processes_of_a_run_share_a_server() {
    let mine = servers::redis().await;
    let theirs = Holder::new(&["redis"]);
    assert_eq!(theirs.urls, [mine.url()]);
    theirs.kill();
    assert!(is_listening(mine.url()), "one user less is no reason to end");
}

#[tokio::test]
async fn a_server_is_gone_after_its_user_was_killed() {
    if is_fixed::<servers::RedisEngine>() || is_fixed::<servers::PostgresEngine>() {
        return;
    }
    let holder = Holder::new(&["--own", "redis", "postgres"]);
    let urls = holder.urls.clone();
    assert!(urls.iter().all(|url| is_listening(url)));
    holder.kill();
    until("the keepers end the servers", async || !urls.iter().any(|url| is_listening(url))).await;
}

#[tokio::test]
async fn a_dropped_server_leaves_nothing() {
    if is_fixed::<servers::RedisEngine>() {
        return;
    }
    let redis = Redis::start(&[]).await;
    let url = redis.url().to_owned();
    drop(redis);
    assert!(!is_listening(&url));
}

#[tokio::test]
async fn databases_do_not_meet() {
    let server = servers::postgres().await;
    let (one, two) = tokio::join!(server.database(), server.database());
    let mut one = PgConnection::connect(one.url()).await.unwrap();
    let mut two = PgConnection::connect(two.url()).await.unwrap();
    sqlx::query("create table t (n bigint)").execute(&mut one).await.unwrap();
    assert_eq!(answer(&mut two, "select count(*) from pg_tables where tablename = 't'").await, 0);
    assert_eq!(answer(&mut one, "select pg_try_advisory_lock(1)::int::int8").await, 1);
    assert_eq!(answer(&mut two, "select pg_try_advisory_lock(1)::int::int8").await, 1);
}

#[tokio::test]
async fn postgres_keeps_what_it_committed_through_a_kill() {
    if is_fixed::<servers::PostgresEngine>() {
        return;
    }
    let server = Postgres::start(&[("max_connections", "20")]).await;
    let mut connection = PgConnection::connect(server.url()).await.unwrap();
    assert_eq!(answer(&mut connection, "select current_setting('max_connections')::int8").await, 20);
    let durable =
        "select count(*) from pg_settings where name in ('fsync', 'synchronous_commit') and setting = 'on'";
    assert_eq!(answer(&mut connection, durable).await, 2);
    sqlx::query("create table t (n bigint)").execute(&mut connection).await.unwrap();
    sqlx::query("insert into t values (7)").execute(&mut connection).await.unwrap();
    server.kill().await;
    assert!(sqlx::query("select 1").execute(&mut connection).await.is_err(), "every process is dead");
    server.restart().await;
    let mut connection = PgConnection::connect(server.url()).await.unwrap();
    assert_eq!(answer(&mut connection, "select sum(n)::int8 from t").await, 7);
    server.stop().await;
    assert!(server.logs().await.contains("database system is shut down"));
}

#[tokio::test]
async fn a_paused_postgres_says_nothing_and_goes_on_afterwards() {
    if is_fixed::<servers::PostgresEngine>() {
        return;
    }
    let server = Postgres::start(&[]).await;
    let mut connection = PgConnection::connect(server.url()).await.unwrap();
    server.pause().await;
    let question = tokio::spawn(async move { answer(&mut connection, "select 1::int8").await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!question.is_finished(), "its processes for connections stand as well");
    server.resume().await;
    assert_eq!(question.await.unwrap(), 1);
}

#[tokio::test]
async fn redis_is_durable_and_takes_settings() {
    if is_fixed::<servers::RedisEngine>() {
        return;
    }
    let redis = Redis::start(&[("appendfsync", "always")]).await;
    for (name, value) in
        [("appendonly", "yes"), ("appendfsync", "always"), ("maxmemory-policy", "noeviction")]
    {
        let told = say(redis.url(), &format!("CONFIG GET {name}")).await.unwrap();
        assert!(told.ends_with(value), "{told}");
    }
    say(redis.url(), "SET k v").await.unwrap();
    redis.kill().await;
    assert!(say(redis.url(), "PING").await.is_err());
    redis.restart().await;
    assert!(say(redis.url(), "GET k").await.unwrap().ends_with('v'));
}

#[tokio::test]
async fn rabbitmq_has_virtual_hosts_and_the_consistent_hash_exchange() {
    let server = servers::rabbitmq().await;
    let (one, two) = tokio::join!(server.vhost(), server.vhost());
    assert_ne!(one.name(), two.name());
    let exchange = format!("/api/exchanges/{}/hash", one.name());
    server.manage("PUT", &exchange, r#"{"type":"x-consistent-hash"}"#).await.unwrap();
    let elsewhere = format!("/api/exchanges/{}/hash", two.name());
    assert!(server.manage("GET", &elsewhere, "").await.unwrap_err().contains("404"));
}

#[tokio::test]
async fn rabbitmq_keeps_its_queues_through_a_kill() {
    if is_fixed::<servers::RabbitMqEngine>() {
        return;
    }
    let server = RabbitMq::start(&[("heartbeat", "7")]).await;
    let queue = r#"{"durable":true,"arguments":{"x-queue-type":"quorum"}}"#;
    server.manage("PUT", "/api/queues/%2f/q", queue).await.unwrap();
    assert!(server.control(&["environment"]).await.contains("{heartbeat,7}"));
    server.kill().await;
    assert!(!is_listening(server.url()));
    server.restart().await;
    server.manage("GET", "/api/queues/%2f/q", "").await.unwrap();
}

#[tokio::test]
async fn a_shared_server_cannot_be_killed() {
    let shared = servers::redis().await;
    let attempt = tokio::spawn(async move { shared.kill().await });
    let panic = attempt.await.unwrap_err().into_panic();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.starts_with("cannot kill the shared redis server") || text.contains("names it"), "{text}");
}

#[test]
fn a_missing_server_names_the_three_ways() {
    let output = Command::new(env!("CARGO_BIN_EXE_servers"))
        .arg("redis")
        .env("PATH", "/nowhere")
        .env_remove("EVENT_BUS_TEST_REDIS_URL")
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    for way in ["EVENT_BUS_TEST_REDIS_URL", "apt-get install redis-server", "Docker"] {
        assert!(text.contains(way), "{text}");
    }
}

#[test]
fn a_url_in_the_environment_is_a_server_that_nobody_starts() {
    let mut holder = Command::new(env!("CARGO_BIN_EXE_servers"))
        .arg("redis")
        .env("EVENT_BUS_TEST_REDIS_URL", "redis://somewhere:1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "EVENT_BUS_TEST_REDIS_URL=redis://somewhere:1\n");
    holder.kill().unwrap();
    holder.wait().unwrap();
    let own = Command::new(env!("CARGO_BIN_EXE_servers"))
        .args(["--own", "redis"])
        .env("EVENT_BUS_TEST_REDIS_URL", "redis://somewhere:1")
        .output()
        .unwrap();
    let text = String::from_utf8(own.stderr).unwrap();
    assert!(text.contains("EVENT_BUS_TEST_REDIS_URL names a server of somebody else"), "{text}");
}
