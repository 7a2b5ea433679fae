//! A virtual host for each case, on the RabbitMQ server of the test run, behind a proxy that can be stopped up.

use std::path::PathBuf;
use std::sync::Arc;

use event_bus::amqp::Routing;
use event_bus::backend::{Backend, Capabilities};
use event_bus::{AmqpBackend, async_trait};
use event_bus_conformance::proxy::{Flow, Proxy};
use event_bus_conformance::servers::{self, Vhost};
use event_bus_conformance::suite::{Harness, Outage, Sandbox, Tamper};
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicPublishOptions};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use serde::{Deserialize, Serialize};

pub(crate) struct Amqp(pub(crate) Routing);

/// Few queues, so that a case takes no time, and workers that notice one another soon.
const OPTIONS: &str = "partitions=4&presence_ms=200&vacancy_ms=50";

struct Broker {
    vhost: Vhost,
    proxy: Arc<Proxy>,
    routing: &'static str,
}

#[async_trait]
impl Harness for Amqp {
    fn name(&self) -> &'static str {
        match self.0 {
            Routing::Direct => "amqp[direct]",
            Routing::ConsistentHash => "amqp[consistent-hash]",
        }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            durable: true,
            delay: true,
            dead_letters: true,
            parking: true,
            key_order: self.0 == Routing::Direct,
            ..Capabilities::NONE
        }
    }

    async fn sandbox(&self) -> Arc<dyn Sandbox> {
        let vhost = servers::rabbitmq().await.vhost().await;
        let address = vhost.url().split_once("://").unwrap().1.split('/').next().unwrap();
        let target = address.rsplit('@').next().unwrap();
        let proxy = Arc::new(Proxy::start(target).await);
        let routing = match self.0 {
            Routing::Direct => "direct",
            Routing::ConsistentHash => "consistent-hash",
        };
        Arc::new(Broker { vhost, proxy, routing })
    }

    fn has_outages(&self) -> bool {
        true
    }

    fn can_tamper(&self) -> bool {
        true
    }

    fn longest_line(&self) -> Option<usize> {
        // What a queue hands out at once, and room for the others of the same queue.
        Some(700)
    }

    fn node(&self) -> Option<PathBuf> {
        Some(env!("CARGO_BIN_EXE_node").into())
    }
}

#[async_trait]
impl Sandbox for Broker {
    fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(AmqpBackend::from_url(&self.url()).unwrap())
    }

    fn url(&self) -> String {
        format!("{}?{OPTIONS}&routing={}", self.proxy.url(self.vhost.url()), self.routing)
    }

    /// Nothing comes or goes; connections stay.
    async fn outage(&self) -> Box<dyn Outage> {
        self.proxy.set_both(Flow::BlackHole);
        Box::new(StoppedUp(self.proxy.clone()))
    }

    async fn tamper(&self, tamper: Tamper) {
        let connection =
            Connection::connect(self.vhost.url(), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let queue = "event-bus.catalogue";
        let got = channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap().unwrap();
        let mut catalogue: Catalogue = ciborium::from_reader(&*got.delivery.data).unwrap();
        match tamper {
            Tamper::NewerSchema => catalogue.version = 99,
            Tamper::OtherSlots => catalogue.slots = 32,
        }
        let body = event_bus::codec::encode(&catalogue).unwrap();
        let properties = BasicProperties::default().with_delivery_mode(2);
        channel
            .basic_publish("".into(), queue.into(), BasicPublishOptions::default(), &body, properties)
            .await
            .unwrap();
        got.delivery.acker.ack(BasicAckOptions::default()).await.unwrap();
        connection.close(200, "done".into()).await.unwrap();
    }
}

/// As the backend writes it.
#[derive(Serialize, Deserialize)]
struct Catalogue {
    version: u32,
    slots: u16,
    partitions: u16,
    routing: String,
    handlers: Vec<String>,
}

struct StoppedUp(Arc<Proxy>);

#[async_trait]
impl Outage for StoppedUp {
    async fn end(self: Box<Self>) {
        self.0.pass();
    }
}
