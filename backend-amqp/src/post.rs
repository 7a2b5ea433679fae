//! Letters of this bus: what is published, for whom, under which routing key; and one repair of a missing topology.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use event_bus_core::backend::{Publication, Timestamp};
use event_bus_core::{Error, ErrorKind, Result};
use lapin::BasicProperties;
use tokio::time::Instant;

use crate::catalogue::Administration;
use crate::error::error;
use crate::publisher::{Letter, Publisher, Unsent};
use crate::topology::{Names, Place, route_to, short};
use crate::wire::{self, Death, Parcel};

/// Makes letters.
#[derive(Clone)]
pub(crate) struct Post {
    names: Names,
    entry: Arc<str>,
    default: Arc<str>,
}

impl Post {
    pub(crate) fn new(names: Names) -> Self {
        Self { entry: names.entry().into(), default: "".into(), names }
    }

    /// A delivery of an event, on its way to its line: at once, or through a queue in which it waits.
    pub(crate) fn delivery(&self, parcel: &Parcel, handler: &str) -> Letter {
        let is_free_suspect = parcel.envelope.key.is_none() && parcel.crashes > 0;
        let key = match is_free_suspect {
            true => route_to(handler, Place::Suspect),
            false => self.names.route(handler, parcel.envelope.key.as_deref()),
        };
        self.to(parcel, handler, key)
    }

    fn to(&self, parcel: &Parcel, handler: &str, key: String) -> Letter {
        let id = wire::message_id(parcel.envelope.id, handler);
        let payload = parcel.envelope.payload.clone();
        let wait_ms = wire::millis(parcel.wait);
        match Place::delay_for(wait_ms) {
            None => {
                let properties = wire::properties(parcel, handler, None);
                Letter { exchange: self.entry.clone(), key, id, payload, properties, is_first: false }
            }
            Some(level) => {
                let mut rest = parcel.clone();
                rest.wait = Duration::from_millis(wait_ms - level);
                let properties = wire::properties(&rest, handler, None);
                let exchange = self.names.delay_exchange(level).into();
                Letter { exchange, key, id, payload, properties, is_first: false }
            }
        }
    }

    pub(crate) fn dead(&self, parcel: &Parcel, handler: &str, death: &Death) -> Letter {
        Letter {
            exchange: self.entry.clone(),
            key: Names::route_to_dead(handler),
            id: wire::message_id(parcel.envelope.id, handler),
            payload: parcel.envelope.payload.clone(),
            properties: wire::properties(parcel, handler, Some(death)),
            is_first: false,
        }
    }

    /// The newest journal of a queue.
    pub(crate) fn journal(&self, place: Place, handler: &str, written: Bytes) -> Option<Letter> {
        let queue = self.names.journal(place, handler)?;
        let id = format!("journal/{}", queue);
        let properties = BasicProperties::default().with_message_id(short(&*id)).with_delivery_mode(2);
        let exchange = self.default.clone();
        Some(Letter { exchange, key: queue, id, payload: written, properties, is_first: false })
    }

    /// Something that is of interest only now.
    pub(crate) fn note(&self, exchange: &str, key: &str, id: String, body: Bytes) -> Letter {
        let properties = BasicProperties::default().with_message_id(short(&*id));
        let exchange = exchange.into();
        Letter { exchange, key: key.to_owned(), id, payload: body, properties, is_first: false }
    }
}

/// The letters of a publish call, in its order, and the handlers they are for.
pub(crate) fn letters(post: &Post, publication: &Publication) -> (Vec<Letter>, Vec<Arc<str>>) {
    let mut letters = Vec::with_capacity(publication.deliveries());
    let mut handlers: Vec<Arc<str>> = Vec::new();
    for (position, event) in publication.events.iter().enumerate() {
        let parcel = Parcel {
            envelope: event.envelope.clone(),
            position: u32::try_from(position).unwrap_or(u32::MAX),
            failures: 0,
            crashes: 0,
            errors: Default::default(),
            wait: publication.delay,
            returns: 0,
            is_again: false,
        };
        for handler in event.handlers.iter() {
            if !handlers.contains(handler) {
                handlers.push(handler.clone());
            }
            letters.push(Letter { is_first: true, ..post.delivery(&parcel, handler) });
        }
    }
    (letters, handlers)
}

/// Letters that were not stored, and why.
pub(crate) struct Undelivered {
    /// Positions of those of which it is certain that they are not stored; `None` if nothing is known.
    pub(crate) lost: Option<Vec<usize>>,
    pub(crate) error: Error,
}

/// Sends letters. Those that reach no queue are sent once more after everything has been declared anew: somebody may have
/// deleted a queue or a binding.
pub(crate) async fn deliver(
    publisher: &Publisher,
    administration: &Arc<Administration>,
    operation: &'static str,
    letters: Vec<Letter>,
    handlers: &[Arc<str>],
    deadline: Instant,
) -> Result<(), Undelivered> {
    let letters: Arc<[Letter]> = letters.into();
    let lost = match publisher.send(operation, letters.clone(), deadline).await {
        Ok(()) => return Ok(()),
        Err(Unsent::Failed(error)) => return Err(Undelivered { lost: None, error }),
        Err(Unsent::Unroutable(lost)) => lost,
    };
    tracing::warn!(lost = lost.len(), "a queue or a binding of the bus was missing and is declared anew");
    if let Err(error) = administration.ensure(operation, handlers.to_vec(), true).await {
        let error = in_part(error, lost.len(), letters.len());
        return Err(Undelivered { lost: Some(lost), error });
    }
    let again: Arc<[Letter]> = lost.iter().filter_map(|position| letters.get(*position).cloned()).collect();
    match publisher.send(operation, again, deadline).await {
        Ok(()) => Ok(()),
        Err(Unsent::Failed(error)) => {
            let error = in_part(error, lost.len(), letters.len());
            Err(Undelivered { lost: Some(lost), error })
        }
        Err(Unsent::Unroutable(still)) => {
            let lost: Vec<_> = still.iter().filter_map(|position| lost.get(*position).copied()).collect();
            let example =
                lost.first().and_then(|position| letters.get(*position)).map_or("", |letter| &letter.key);
            let message = format!(
                "{} of {} messages reached no queue (routing key {example:?}), though all queues were declared anew; look \
                 for somebody who deletes queues or bindings",
                lost.len(),
                letters.len()
            );
            let error = error(ErrorKind::Unavailable, operation, message);
            let error = in_part(error, lost.len(), letters.len());
            Err(Undelivered { lost: Some(lost), error })
        }
    }
}

/// `Unavailable` says that nothing was written: it does not when some of the letters are stored.
fn in_part(failure: Error, lost: usize, letters: usize) -> Error {
    if lost == letters || failure.kind() != ErrorKind::Unavailable {
        return failure;
    }
    error(ErrorKind::OutcomeUnknown, failure.operation(), failure.message().to_owned()).with_source(failure)
}

/// Numbers for dead letters: the time of death, then a counter, then chance, so that later ones are greater and no two
/// processes give out the same.
#[derive(Default)]
pub(crate) struct DeadNumbers(std::sync::Mutex<(i64, u32)>);

impl DeadNumbers {
    pub(crate) fn next(&self, now: Timestamp) -> u128 {
        let mut last = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *last =
            if now.as_millis() > last.0 { (now.as_millis(), 0) } else { (last.0, last.1.saturating_add(1)) };
        let millis = u128::from(last.0.unsigned_abs());
        (millis << 64) | (u128::from(last.1) << 32) | u128::from(fastrand::u32(..))
    }
}
