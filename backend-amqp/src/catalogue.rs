//! What the bus on this broker is: its version, its parameters, and which handlers have queues. One message in a queue of
//! its own; who changes it, or looks at it, holds the lock.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use event_bus_core::{ErrorKind, Result, codec};
use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions, ConfirmSelectOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

use crate::config::AmqpConfig;
use crate::error::{Cause, error, no_answer, not_prepared, translate};
use crate::link::{Link, close_channel, within};
use crate::topology::{self, Names, VERSION, short};

/// How long a catalogue that is there but empty is waited for: whoever read it last is putting it back. After that it never
/// had one: its first writer died between two steps.
const EMPTY_FOR: Duration = Duration::from_secs(1);

/// How long the broker gets to tell the subscribers of a queue that it is gone, before the queue is declared anew. RabbitMQ
/// 3.10.8, told to delete a quorum queue and to declare it again within moments, hands the new queue's messages to the old
/// subscriber's ghost: they stay unacknowledged until its channel is closed, and nobody is told. (Nothing can be asked that
/// would say that it has told them.)
const BEFORE_AGAIN: Duration = Duration::from_millis(500);

/// Between two looks at something that changes soon.
const LOOK: Duration = Duration::from_millis(5);

/// The message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Catalogue {
    version: u32,
    slots: u16,
    partitions: u16,
    routing: String,
    handlers: BTreeSet<String>,
}

impl Catalogue {
    fn new(config: &AmqpConfig) -> Self {
        Self {
            version: VERSION,
            slots: topology::slots(),
            partitions: config.partitions,
            routing: config.routing.as_str().to_owned(),
            handlers: BTreeSet::new(),
        }
    }

    /// Refuses a bus that this process would not understand or would damage.
    fn check(&self, operation: &'static str, config: &AmqpConfig) -> Result<()> {
        let own = Self::new(config);
        let message = if self.version > own.version {
            format!(
                "the bus {:?} has version {}, made by a newer binary; this one knows versions up to {}: use the newer binary",
                &*config.namespace, self.version, own.version
            )
        } else if self.slots != own.slots {
            format!(
                "the bus {:?} was created with {} slots, this binary uses {}; they cannot share it",
                &*config.namespace, self.slots, own.slots
            )
        } else if self.partitions != own.partitions {
            format!(
                "the bus {:?} was created with partitions={}, this process says partitions={}; say what it was created with, or drain the bus and \
                 use another namespace: a key that changed its queue would lose its order",
                &*config.namespace, self.partitions, own.partitions
            )
        } else if self.routing != own.routing {
            format!(
                "the bus {:?} was created with routing={}, this process says {}; all processes must say the same",
                &*config.namespace, self.routing, own.routing
            )
        } else {
            return Ok(());
        };
        Err(error(ErrorKind::InvalidConfiguration, operation, message))
    }
}

/// What is declared when the catalogue has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Declares {
    /// The bus, if there is none, and all handlers.
    Everything,
    /// Handlers that the bus knows and those that it does not: somebody deleted something.
    WhatIsThere,
    /// Handlers that the bus does not know.
    WhatIsNew,
}

/// What is done about the bus as a whole, one process at a time.
pub(crate) struct Administration {
    pub(crate) config: Arc<AmqpConfig>,
    pub(crate) names: Names,
    link: Link,
    /// The lock belongs to a connection: within the process this one decides.
    turn: AsyncMutex<()>,
    /// As it was last read, and how often it had been changed then.
    known: Mutex<Option<(Catalogue, u32)>>,
}

impl Administration {
    pub(crate) fn new(config: Arc<AmqpConfig>, names: Names) -> Arc<Self> {
        let link = Link::new(config.clone(), "administration");
        Arc::new(Self { config, names, link, turn: AsyncMutex::new(()), known: Mutex::new(None) })
    }

    /// A new channel for looking.
    pub(crate) async fn channel(&self, operation: &'static str) -> Result<Channel> {
        self.link.channel(operation).await
    }

    /// Does `work` while nobody else does such. It runs to its end in a task of its own, however its caller ends: a lock
    /// that was taken is given back.
    pub(crate) async fn alone<T, W, F>(self: &Arc<Self>, operation: &'static str, work: W) -> Result<T>
    where
        T: Send + 'static,
        W: FnOnce(Arc<Self>, Arc<Connection>) -> F + Send + 'static,
        F: Future<Output = Result<T>> + Send,
    {
        let this = self.clone();
        let task = tokio::spawn(async move {
            let _turn = this.turn.lock().await;
            let connection = this.link.connection(operation).await?;
            let channel = this.lock(operation, &connection).await?;
            let result = work(this.clone(), connection).await;
            let unlock = channel.queue_delete(short(this.names.lock()), QueueDeleteOptions::default());
            // A lock that cannot be given back goes with its connection.
            if within(this.config.request_timeout, operation, unlock).await.is_ok() {
                close_channel(&channel, this.config.request_timeout).await;
            }
            result
        });
        task.await.map_err(|failure| {
            error(ErrorKind::Closed, operation, "the runtime ended").with_source(failure)
        })?
    }

    async fn lock(&self, operation: &'static str, connection: &Connection) -> Result<Channel> {
        let deadline = Instant::now() + self.config.request_timeout;
        loop {
            let limit = self.config.request_timeout;
            let channel = within(limit, operation, connection.create_channel()).await?;
            let options =
                QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
            let declare = channel.queue_declare(short(self.names.lock()), options, FieldTable::default());
            let failure = match tokio::time::timeout(limit, declare).await {
                Ok(Ok(_)) => return Ok(channel),
                Ok(Err(failure)) => failure,
                Err(_) => return Err(no_answer(operation)),
            };
            if Cause::of(&failure) != Cause::Locked || Instant::now() >= deadline {
                return Err(translate(operation, &failure));
            }
            tokio::time::sleep(LOOK.mul_f64(0.5 + fastrand::f64())).await;
        }
    }

    /// Creates the bus, and the queues of `handlers`.
    pub(crate) async fn prepare(
        self: &Arc<Self>,
        operation: &'static str,
        handlers: Vec<Arc<str>>,
    ) -> Result<()> {
        self.alone(operation, move |this, connection| async move {
            this.change(operation, &connection, handlers, Declares::Everything).await
        })
        .await
    }

    /// Makes sure that the bus is there and that `handlers` have queues; declares them anew if `again`, after
    /// [`BEFORE_AGAIN`].
    pub(crate) async fn ensure(
        self: &Arc<Self>,
        operation: &'static str,
        handlers: Vec<Arc<str>>,
        again: bool,
    ) -> Result<()> {
        if !again && self.knows(&handlers) {
            return Ok(());
        }
        if again {
            tokio::time::sleep(BEFORE_AGAIN).await;
        }
        self.alone(operation, move |this, connection| async move {
            if again || !this.knows(&handlers) {
                let declares = if again { Declares::WhatIsThere } else { Declares::WhatIsNew };
                this.change(operation, &connection, handlers, declares).await?;
            }
            Ok(())
        })
        .await
    }

    fn knows(&self, handlers: &[Arc<str>]) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref().is_some_and(|(known, _)| handlers.iter().all(|name| known.handlers.contains(&**name)))
    }

    /// All handlers of the bus, those of other processes included, in the order of their names.
    pub(crate) async fn handlers(self: &Arc<Self>, operation: &'static str) -> Result<Vec<Arc<str>>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let fresh = match known {
            Some((known, changes)) if self.changes(operation).await? == Some(changes) => Some(known),
            _ => None,
        };
        let catalogue = match fresh {
            Some(fresh) => fresh,
            None => {
                self.alone(operation, move |this, connection| async move {
                    this.change(operation, &connection, Vec::new(), Declares::WhatIsNew).await?;
                    let known = this.known.lock().unwrap_or_else(PoisonError::into_inner);
                    known.as_ref().map(|(known, _)| known.clone()).ok_or_else(|| no_answer(operation))
                })
                .await?
            }
        };
        Ok(catalogue.handlers.iter().map(|name| name.as_str().into()).collect())
    }

    /// How often the catalogue was changed; `None` if there is none.
    async fn changes(&self, operation: &'static str) -> Result<Option<u32>> {
        let limit = self.config.request_timeout;
        let channel = self.channel(operation).await?;
        match tokio::time::timeout(limit, topology::look(&channel, &self.names.changes())).await {
            Ok(Ok((changes, _))) => {
                close_channel(&channel, limit).await;
                Ok(Some(changes))
            }
            Ok(Err(failure)) if Cause::of(&failure) == Cause::NotFound => Ok(None),
            Ok(Err(failure)) => Err(translate(operation, &failure)),
            Err(_) => Err(no_answer(operation)),
        }
    }

    /// Reads the catalogue, declares what is missing for `handlers` and writes the catalogue if that changed it.
    async fn change(
        &self,
        operation: &'static str,
        connection: &Connection,
        handlers: Vec<Arc<str>>,
        declares: Declares,
    ) -> Result<()> {
        let limit = self.config.request_timeout;
        let channel = within(limit, operation, connection.create_channel()).await?;
        let queue = self.names.catalogue();
        let may_create = declares == Declares::Everything;
        if may_create {
            within(limit, operation, topology::declare_catalogue(&channel, &self.names)).await?;
        } else if let Err(failure) = topology::look(&channel, &queue).await {
            return Err(match Cause::of(&failure) {
                Cause::NotFound => not_prepared(operation, self.names.namespace()),
                _ => translate(operation, &failure),
            });
        }
        let found = self.read(operation, &channel, may_create).await?;
        let (known, tags) = match found {
            Some((known, tags)) => (known, tags),
            None if may_create => (Catalogue::new(&self.config), Vec::new()),
            None => return Err(not_prepared(operation, self.names.namespace())),
        };
        let result = self.declare(operation, connection, &channel, &known, &handlers, declares).await;
        let mut new = known.clone();
        if result.is_ok() {
            new.handlers.extend(handlers.iter().map(|name| name.to_string()));
        }
        if result.is_ok() && (new != known || tags.len() != 1) {
            let body = codec::encode(&new).map_err(|text| error(ErrorKind::Corrupt, operation, text))?;
            within(limit, operation, channel.confirm_select(ConfirmSelectOptions::default())).await?;
            // First, so that nobody takes the old one for the newest.
            self.write(operation, &channel, self.names.changes(), b"").await?;
            self.write(operation, &channel, queue, &body).await?;
            for tag in &tags {
                within(limit, operation, channel.basic_ack(*tag, BasicAckOptions::default())).await?;
            }
        } else {
            self.put_back(operation, &channel, &tags).await?;
        }
        result?;
        let looked = within(limit, operation, topology::look(&channel, &self.names.changes())).await;
        close_channel(&channel, limit).await;
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some((new, looked?.0));
        Ok(())
    }

    async fn declare(
        &self,
        operation: &'static str,
        connection: &Connection,
        channel: &Channel,
        known: &Catalogue,
        handlers: &[Arc<str>],
        declares: Declares,
    ) -> Result<()> {
        known.check(operation, &self.config)?;
        let is_known = handlers.iter().all(|name| known.handlers.contains(&**name));
        if declares == Declares::WhatIsNew && is_known {
            // A user who may only publish can do all that was done up to here.
            return Ok(());
        }
        topology::declare_shared(channel, &self.names).await?;
        let declared = topology::declare_handlers(connection, &self.names, handlers).await;
        declared.map_err(|failure| translate(operation, &failure))
    }

    /// The catalogue, taken out of its queue, and the tags by which it is held.
    async fn read(
        &self,
        operation: &'static str,
        channel: &Channel,
        is_new: bool,
    ) -> Result<Option<(Catalogue, Vec<u64>)>> {
        let limit = self.config.request_timeout;
        let queue = self.names.catalogue();
        let give_up = Instant::now() + if is_new { EMPTY_FOR / 4 } else { EMPTY_FOR };
        let mut found: Option<(Catalogue, Vec<u64>)> = None;
        loop {
            let get = channel.basic_get(short(&*queue), BasicGetOptions::default());
            match within(limit, operation, get).await? {
                Some(message) => {
                    let read: Catalogue =
                        ciborium::from_reader(&*message.delivery.data).map_err(|failure| {
                            let text = format!("the catalogue in the queue {queue} cannot be read");
                            error(ErrorKind::Corrupt, operation, text).with_source(failure.to_string())
                        })?;
                    match &mut found {
                        // Its last writer died between writing the new one and taking the old one away.
                        Some((known, tags)) => {
                            known.handlers.extend(read.handlers);
                            tags.push(message.delivery.delivery_tag);
                        }
                        None => found = Some((read, vec![message.delivery.delivery_tag])),
                    }
                }
                None if found.is_some() || Instant::now() >= give_up => return Ok(found),
                None => tokio::time::sleep(LOOK).await,
            }
        }
    }

    async fn write(
        &self,
        operation: &'static str,
        channel: &Channel,
        queue: String,
        body: &[u8],
    ) -> Result<()> {
        let publish = async {
            let properties = BasicProperties::default().with_delivery_mode(2);
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            channel.basic_publish(short(""), short(queue), options, body, properties).await?.await
        };
        let confirmed = within(self.config.request_timeout, operation, publish).await?;
        if !confirmed.is_ack() || confirmed.take_message().is_some() {
            return Err(error(ErrorKind::Unavailable, operation, "the broker did not take the catalogue"));
        }
        Ok(())
    }

    /// Puts the catalogue back as it was, and waits until the next one will find it.
    async fn put_back(&self, operation: &'static str, channel: &Channel, tags: &[u64]) -> Result<()> {
        let limit = self.config.request_timeout;
        for tag in tags {
            let options = BasicNackOptions { requeue: true, multiple: false };
            within(limit, operation, channel.basic_nack(*tag, options)).await?;
        }
        let is_back = async {
            while topology::look(channel, &self.names.catalogue()).await?.0 == 0 {
                tokio::time::sleep(LOOK).await;
            }
            Ok(())
        };
        if tags.is_empty() { Ok(()) } else { within(limit, operation, is_back).await }
    }
}
