//! Those who publish, and write down what they were told.

use std::sync::Arc;
use std::time::Duration;

use event_bus_conformance::history::{Fact, Published, hash};
use event_bus_core::backend::{Addressed, Envelope, Publication};
use event_bus_core::{Error, ErrorKind, EventBus};
use fastrand::Rng;

use crate::events::{Body, Cancelled, Placed, garbage};
use crate::handlers::NAMES;
use crate::plan::millis;
use crate::world::World;

/// How often a call is repeated.
const TRIES: usize = 6;

/// One publisher's life.
pub async fn publish(world: Arc<World>, bus: EventBus, publisher: u32) {
    let mut rng = world.plan.dice(1_000, u64::from(publisher));
    for _ in 0..world.plan.calls {
        let gap = world.plan.gap.mul_f64(rng.f64());
        if !gap.is_zero() {
            tokio::time::sleep(gap).await;
        }
        if rng.f64() < 0.02 {
            publish_garbage(&world, &bus, publisher, &mut rng).await;
        } else {
            publish_batch(&world, &bus, publisher, &mut rng).await;
        }
    }
}

enum Said {
    Ok,
    Err,
    Unknown,
}

async fn publish_batch(world: &World, bus: &EventBus, publisher: u32, rng: &mut Rng) {
    let size = if rng.f64() < 0.3 { rng.usize(2..=5) } else { 1 };
    let bodies: Vec<_> = (0..size).map(|_| body(world, rng)).collect();
    let interested = |body: &&Body| !handlers(world, body.number).is_empty();
    let events: Vec<_> = bodies.iter().filter(interested).map(|body| published(world, body)).collect();
    if events.is_empty() {
        return;
    }
    let call = world.number();
    let delay = if rng.f64() < 0.1 { millis(rng, &[20, 900, 4_000]) } else { Duration::ZERO };
    let key = (rng.f64() < 0.4).then(|| format!("call-{call}"));
    let give_up_after = (rng.f64() < 0.05).then(|| millis(rng, &[1, 300]));
    let is_stubborn = rng.bool();
    // The first half of a batch is of one type, the rest of another.
    let (placed, cancelled) = bodies.split_at(bodies.len().div_ceil(2));
    let placed: Vec<_> = placed.iter().cloned().map(Placed).collect();
    let cancelled: Vec<_> = cancelled.iter().cloned().map(Cancelled).collect();
    world.count("publish calls");
    world.record(Fact::PublishIntent {
        call,
        publisher,
        delay: u64::try_from(delay.as_nanos()).unwrap(),
        events,
    });
    let mut said = Said::Err;
    for _ in 0..TRIES {
        let mut publish = bus.publish_all(&placed).delay(delay);
        for event in &cancelled {
            publish = publish.and(event);
        }
        if let Some(key) = &key {
            publish = publish.idempotency_key(key);
        }
        let publish = publish.into_future();
        let answer = match give_up_after {
            Some(after) => tokio::time::timeout(after, publish).await.unwrap_or_else(|_| Err(gave_up())),
            None => publish.await,
        };
        let is_repeatable = match answer {
            Ok(_) => {
                said = Said::Ok;
                break;
            }
            Err(error) if error.kind() == ErrorKind::Unavailable => is_stubborn,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
                said = Said::Unknown;
                key.is_some()
            }
        };
        if !is_repeatable {
            break;
        }
        tokio::time::sleep(millis(rng, &[10, 500])).await;
    }
    say(world, call, &said);
}

async fn publish_garbage(world: &World, bus: &EventBus, publisher: u32, rng: &mut Rng) {
    let number = world.number();
    let handlers = handlers(world, number);
    if handlers.is_empty() {
        return;
    }
    let call = world.number();
    let payload = garbage(number);
    let key = key(world, rng);
    let event = Published {
        event: number,
        key: key.clone(),
        hash: hash(&payload),
        handlers: handlers.iter().map(|name| (*name).to_owned()).collect(),
        is_garbage: true,
    };
    world.count("undecodable events");
    world.record(Fact::PublishIntent { call, publisher, delay: 0, events: vec![event] });
    let envelope = Envelope {
        id: "018bcfe5-6800-7000-8000-000000000000".parse().unwrap(),
        name: "sim.placed".into(),
        version: 1,
        key: key.as_deref().map(Arc::from),
        payload: payload.into(),
        headers: None,
        published_at: event_bus_core::Timestamp::from_millis(0),
    };
    let addressed = Addressed { envelope, handlers: handlers.iter().map(|name| Arc::from(*name)).collect() };
    let publication = Publication {
        events: vec![addressed],
        delay: Duration::ZERO,
        idempotency_key: None,
        location: std::panic::Location::caller(),
    };
    let said = match bus.backend().publish(publication).await {
        Ok(_) => Said::Ok,
        Err(error) if error.kind() == ErrorKind::Unavailable => Said::Err,
        Err(_) => Said::Unknown,
    };
    say(world, call, &said);
}

fn say(world: &World, call: u64, said: &Said) {
    world.record(match said {
        Said::Ok => Fact::PublishOk { call },
        Said::Err => Fact::PublishErr { call },
        Said::Unknown => Fact::PublishUnknown { call },
    });
}

fn gave_up() -> Error {
    Error::new(ErrorKind::OutcomeUnknown, "publish", "the publisher went away")
}

fn body(world: &World, rng: &mut Rng) -> Body {
    let number = world.number();
    let text = (0..rng.usize(..8)).map(|_| rng.alphanumeric()).collect::<String>();
    Body { number, key: key(world, rng), text: format!("{number} {text}") }
}

fn key(world: &World, rng: &mut Rng) -> Option<String> {
    (rng.f64() < 0.7).then(|| format!("key-{}", rng.usize(..world.plan.keys)))
}

fn handlers(world: &World, number: u64) -> Vec<&'static str> {
    let known = world.plan.handlers.len();
    (0..known).filter(|handler| world.plan.is_interested(*handler, number)).map(|n| NAMES[n]).collect()
}

fn published(world: &World, body: &Body) -> Published {
    Published {
        event: body.number,
        key: body.key.clone(),
        hash: hash(body.text.as_bytes()),
        handlers: handlers(world, body.number).into_iter().map(str::to_owned).collect(),
        is_garbage: false,
    }
}
