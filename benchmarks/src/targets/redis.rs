//! Redis: a server of its own, append-only file each second, and redis-rs with the best commands known: a stream and a
//! consumer group.

use std::time::{Duration, Instant};

use event_bus::async_trait;
use event_bus_conformance::servers::Redis as Server;
use hdrhistogram::Histogram;
use redis::aio::MultiplexedConnection;
use redis::streams::StreamReadReply;
use redis::{AsyncConnectionConfig, Client};

use crate::AnyError;
use crate::event::{nanos, rate};
use crate::target::{Figure, Measured, Raw, Store, Target};

const STREAM: &str = "raw";

/// How many entries are read and acknowledged at once; more gave nothing.
const PART: usize = 500;

/// Nothing is saved or rewritten in the background in the middle of a measurement: it would befall one of the two at random.
const SETTINGS: &[(&str, &str)] = &[("save", "\"\""), ("auto-aof-rewrite-percentage", "0")];

pub struct Redis;

#[async_trait]
impl Target for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    async fn fresh(&self) -> Result<Box<dyn Store>, AnyError> {
        Ok(Box::new(Fresh(Server::start(SETTINGS).await)))
    }
}

struct Fresh(Server);

#[async_trait]
impl Store for Fresh {
    fn url(&self) -> String {
        format!("{}?bus=bench", self.0.url())
    }

    async fn raw(&self, question: Raw, count: usize, payload: &[u8]) -> Result<Option<Measured>, AnyError> {
        let connect = || connect(self.0.url());
        let mut connection = connect().await?;
        redis::cmd("DEL").arg(STREAM).query_async::<()>(&mut connection).await?;
        let mut group = redis::cmd("XGROUP");
        group.arg("CREATE").arg(STREAM).arg("group").arg("0").arg("MKSTREAM");
        group.query_async::<()>(&mut connection).await?;
        let (how, rate) = match question {
            Raw::Singles => {
                let start = Instant::now();
                add_singles(&connection, payload, count).await?;
                ("raw redis-rs, XADD from 16 tasks", rate(count, start))
            }
            Raw::Batches => {
                let start = Instant::now();
                add_batches(&mut connection, payload, count).await?;
                ("raw redis-rs, pipelines of 1,000 XADD", rate(count, start))
            }
            Raw::Drain => {
                add_batches(&mut connection, payload, count).await?;
                let start = Instant::now();
                drain(&mut connection, count).await?;
                ("raw redis-rs, XREADGROUP + XACK + XDEL of 500", rate(count, start))
            }
            Raw::Latency => {
                let figure = latency(connection, connect().await?, payload, count).await?;
                return Ok(Some(Measured { how: "raw redis-rs, XADD to XREADGROUP BLOCK", figure }));
            }
            Raw::PublishAndProcess => {
                let start = Instant::now();
                let mut reader = connect().await?;
                tokio::try_join!(add_singles(&connection, payload, count), drain(&mut reader, count))?;
                ("raw redis-rs, XADD from 16 tasks, read and acknowledged", rate(count, start))
            }
        };
        Ok(Some(Measured { how, figure: Figure::PerSecond(rate) }))
    }
}

async fn connect(url: &str) -> Result<MultiplexedConnection, AnyError> {
    let settings = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(60)));
    Ok(Client::open(url)?.get_multiplexed_async_connection_with_config(&settings).await?)
}

/// 16 tasks on one connection, which merges what they say.
async fn add_singles(
    connection: &MultiplexedConnection,
    payload: &[u8],
    count: usize,
) -> Result<(), AnyError> {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (mut connection, payload) = (connection.clone(), payload.to_vec());
        tasks.spawn(async move {
            for _ in 0..count / 16 {
                let mut add = redis::cmd("XADD");
                add.arg(STREAM).arg("*").arg("e").arg(&payload);
                add.query_async::<()>(&mut connection).await?;
            }
            Ok::<(), redis::RedisError>(())
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    Ok(())
}

async fn add_batches(
    connection: &mut MultiplexedConnection,
    payload: &[u8],
    count: usize,
) -> Result<(), AnyError> {
    let mut pipeline = redis::pipe();
    for _ in 0..1_000 {
        pipeline.cmd("XADD").arg(STREAM).arg("*").arg("e").arg(payload).ignore();
    }
    for _ in 0..count / 1_000 {
        pipeline.query_async::<()>(connection).await?;
    }
    Ok(())
}

/// Acknowledges and deletes what was read before, and reads on, in one pipeline.
async fn drain(connection: &mut MultiplexedConnection, count: usize) -> Result<(), AnyError> {
    let mut ids: Vec<String> = Vec::new();
    let mut drained = 0;
    while drained < count {
        let mut pipeline = redis::pipe();
        if !ids.is_empty() {
            pipeline.cmd("XACK").arg(STREAM).arg("group").arg(&ids).ignore();
            pipeline.cmd("XDEL").arg(STREAM).arg(&ids).ignore();
        }
        pipeline.cmd("XREADGROUP").arg("GROUP").arg("group").arg("reader").arg("COUNT").arg(PART);
        pipeline.arg("STREAMS").arg(STREAM).arg(">");
        drained += ids.len();
        let (reply,): (Option<StreamReadReply>,) = pipeline.query_async(connection).await?;
        ids = entries(reply).map(|(id, _)| id).collect();
    }
    Ok(())
}

/// 200 times a second; the reader waits on a connection of its own.
async fn latency(
    mut writer: MultiplexedConnection,
    mut reader: MultiplexedConnection,
    payload: &[u8],
    count: usize,
) -> Result<Figure, AnyError> {
    let reading = tokio::spawn(async move {
        let mut histogram = Histogram::<u64>::new(3)?;
        while histogram.len() < count as u64 {
            let mut read = redis::cmd("XREADGROUP");
            read.arg("GROUP").arg("group").arg("reader").arg("COUNT").arg(PART).arg("BLOCK").arg(1_000);
            read.arg("STREAMS").arg(STREAM).arg(">");
            let reply: Option<StreamReadReply> = read.query_async(&mut reader).await?;
            for (id, sent_at) in entries(reply) {
                histogram.record(nanos().saturating_sub(sent_at))?;
                redis::pipe()
                    .cmd("XACK")
                    .arg(STREAM)
                    .arg("group")
                    .arg(&id)
                    .ignore()
                    .cmd("XDEL")
                    .arg(STREAM)
                    .arg(&id)
                    .ignore()
                    .query_async::<()>(&mut reader)
                    .await?;
            }
        }
        Ok::<_, AnyError>(histogram)
    });
    let mut every = tokio::time::interval(Duration::from_millis(5));
    for _ in 0..count {
        every.tick().await;
        let mut add = redis::cmd("XADD");
        add.arg(STREAM).arg("*").arg("e").arg(payload).arg("at").arg(nanos());
        add.query_async::<()>(&mut writer).await?;
    }
    Ok(Figure::latency(&reading.await??))
}

/// Ids, and when they were sent where that was said.
fn entries(reply: Option<StreamReadReply>) -> impl Iterator<Item = (String, u64)> {
    let entries = reply.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids);
    entries.map(|entry| {
        let sent_at = entry.get("at").unwrap_or(0);
        (entry.id, sent_at)
    })
}
