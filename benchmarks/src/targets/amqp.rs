//! RabbitMQ: a virtual host on the server of the test run, and lapin with the best use known of one quorum queue.

use std::time::{Duration, Instant};

use event_bus::async_trait;
use event_bus_conformance::servers::{self, Vhost};
use futures_util::future::join_all;
use futures_util::{FutureExt as _, StreamExt as _};
use hdrhistogram::Histogram;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};

use crate::AnyError;
use crate::event::{nanos, rate};
use crate::target::{Figure, Measured, Raw, Store, Target};

/// Publishers that share a channel, as the bus's callers do.
const TASKS: usize = 16;

/// Confirmations awaited together, and deliveries handed out at once. More of either gains nothing.
const WINDOW: usize = 1_000;

/// The server of the test run.
pub struct Amqp;

#[async_trait]
impl Target for Amqp {
    fn name(&self) -> &'static str {
        "amqp"
    }

    async fn fresh(&self) -> Result<Box<dyn Store>, AnyError> {
        Ok(Box::new(Broker(servers::rabbitmq().await.vhost().await)))
    }
}

struct Broker(Vhost);

#[async_trait]
impl Store for Broker {
    fn url(&self) -> String {
        self.0.url().to_owned()
    }

    /// What a queue hands out, and room for the other keys of the same queue.
    fn longest_line(&self) -> Option<usize> {
        Some(700)
    }

    async fn raw(&self, question: Raw, count: usize, payload: &[u8]) -> Result<Option<Measured>, AnyError> {
        let queue = Queue::open(self.0.url()).await?;
        let (how, rate) = match question {
            Raw::Singles => {
                ("raw lapin, 16 tasks on one channel", queue.publish_from(TASKS, payload, count).await?)
            }
            Raw::Batches => {
                ("raw lapin, windows of 1,000 confirmations", queue.publish(payload, count).await?)
            }
            Raw::Drain => {
                queue.publish(payload, count).await?;
                ("raw lapin, prefetch 1,000, no ack awaited", queue.drain(count).await?)
            }
            Raw::Latency => {
                let figure = queue.latency(payload, count).await?;
                return Ok(Some(Measured { how: "raw lapin, publish and consume", figure }));
            }
            Raw::PublishAndProcess => {
                let start = Instant::now();
                tokio::try_join!(queue.publish_from(TASKS, payload, count), queue.drain(count))?;
                ("raw lapin, 16 tasks, and consume", rate(count, start))
            }
        };
        Ok(Some(Measured { how, figure: Figure::PerSecond(rate) }))
    }
}

/// A quorum queue, and a connection for each side of it.
struct Queue {
    publishing: Connection,
    consuming: Connection,
    publisher: Channel,
    name: String,
}

impl Queue {
    async fn open(url: &str) -> Result<Self, AnyError> {
        let publishing = Connection::connect(url, ConnectionProperties::default()).await?;
        let consuming = Connection::connect(url, ConnectionProperties::default()).await?;
        let publisher = publishing.create_channel().await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let name = format!("raw-{}", nanos());
        publisher.queue_declare(name.as_str().into(), options, arguments).await?;
        publisher.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { publishing, consuming, publisher, name })
    }

    async fn one(&self, payload: &[u8]) -> Result<(), AnyError> {
        let properties = BasicProperties::default().with_delivery_mode(2);
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let confirm =
            self.publisher.basic_publish("".into(), self.name.as_str().into(), options, payload, properties);
        confirm.await?.await?;
        Ok(())
    }

    /// Each task awaits its own confirmation before it publishes again.
    async fn publish_from(&self, tasks: usize, payload: &[u8], count: usize) -> Result<f64, AnyError> {
        let start = Instant::now();
        let publishing = (0..tasks).map(|_| async {
            for _ in 0..count / tasks {
                self.one(payload).await?;
            }
            Ok::<(), AnyError>(())
        });
        for done in join_all(publishing).await {
            done?;
        }
        Ok(rate(count, start))
    }

    async fn publish(&self, payload: &[u8], count: usize) -> Result<f64, AnyError> {
        let start = Instant::now();
        for _ in 0..count / WINDOW {
            for done in join_all((0..WINDOW).map(|_| self.one(payload))).await {
                done?;
            }
        }
        Ok(rate(count, start))
    }

    async fn consume(&self) -> Result<(Channel, lapin::Consumer), AnyError> {
        let channel = self.consuming.create_channel().await?;
        channel.basic_qos(WINDOW as u16, BasicQosOptions::default()).await?;
        let consumer = channel
            .basic_consume(
                self.name.as_str().into(),
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await?;
        Ok((channel, consumer))
    }

    async fn drain(&self, count: usize) -> Result<f64, AnyError> {
        let start = Instant::now();
        let (channel, mut consumer) = self.consume().await?;
        for _ in 0..count {
            let delivery = consumer.next().await.ok_or("the consumer is gone")??;
            // The first poll sends it.
            let _ = channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).now_or_never();
        }
        // Its answer comes when all acknowledgements have been seen.
        channel.basic_qos(WINDOW as u16, BasicQosOptions::default()).await?;
        let rate = rate(count, start);
        channel.close(200, "done".into()).await?;
        Ok(rate)
    }

    async fn latency(&self, payload: &[u8], count: usize) -> Result<Figure, AnyError> {
        let (channel, mut consumer) = self.consume().await?;
        let mut histogram = Histogram::<u64>::new(3)?;
        let mut every = tokio::time::interval(Duration::from_millis(5));
        let publishing = async {
            for _ in 0..count {
                every.tick().await;
                let sent_at = nanos().to_le_bytes();
                let mut body = payload.to_vec();
                body[..sent_at.len()].copy_from_slice(&sent_at);
                self.one(&body).await?;
            }
            Ok::<(), AnyError>(())
        };
        let consuming = async {
            for _ in 0..count {
                let delivery = consumer.next().await.ok_or("the consumer is gone")??;
                let mut sent_at = [0; 8];
                sent_at.copy_from_slice(&delivery.data[..8]);
                histogram.record(nanos().saturating_sub(u64::from_le_bytes(sent_at)))?;
                let _ = channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).now_or_never();
            }
            Ok::<(), AnyError>(())
        };
        tokio::try_join!(publishing, consuming)?;
        self.publishing.close(200, "done".into()).await?;
        self.consuming.close(200, "done".into()).await?;
        Ok(Figure::latency(&histogram))
    }
}
