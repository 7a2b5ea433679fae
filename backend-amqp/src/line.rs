//! One subscription to one queue: takes in what the broker hands out, for as long as the channel lives.

use std::sync::Arc;
use std::time::Duration;

use event_bus_core::{ErrorKind, Result, chain};
use futures_util::{FutureExt as _, StreamExt as _};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::buffer::Ack;
use crate::core::{Command, Core, Subscription};
use crate::error::{error, no_answer, translate};
use crate::journal::Journal;
use crate::link::{close_channel, within};
use crate::topology::{PREFETCH, Place, short};
use crate::wire::{Parcel, Reader};

/// How many messages are taken in at once.
const BATCH: usize = 256;

/// Between two attempts to become active, when the journal cannot be read or written.
const PAUSE: Duration = Duration::from_millis(250);

/// Subscribes to the queue of a line. The broker serves one subscriber of a partition queue; another waits without
/// knowing it.
pub(crate) async fn subscribe(core: &Arc<Core>, line: usize) -> Result<()> {
    let operation = "subscribe";
    let Some((handler, place)) = core.place(line) else { return Ok(()) };
    let limit = core.shared.config.request_timeout;
    let channel = within(limit, operation, core.connection.create_channel()).await?;
    let prefetch = prefetch(core, line, place);
    within(limit, operation, channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
    let (commands, orders) = mpsc::channel(4);
    let subscription = Subscription { channel: channel.clone(), commands };
    let number = core.subscribed(line, subscription);
    let queue = short(core.shared.names.queue(place, &handler));
    let consume =
        channel.basic_consume(queue, short(""), BasicConsumeOptions::default(), FieldTable::default());
    match within(limit, operation, consume).await {
        Ok(consumer) => {
            let task = Task {
                core: core.clone(),
                line,
                place,
                handler,
                subscription: number,
                prefetch,
                channel,
                reader: Reader::default(),
            };
            tokio::spawn(task.run(consumer, orders));
            Ok(())
        }
        Err(failure) => {
            close_channel(&channel, limit).await;
            core.unsubscribed(line, number, false);
            Err(failure)
        }
    }
}

fn prefetch(core: &Core, line: usize, place: Place) -> u16 {
    match place {
        // Equal for all, or what one leaves behind comes back out of order to the next.
        Place::Partition(_) | Place::Suspect => PREFETCH,
        // No order to keep: as many as the worker has room for, so that others get theirs.
        Place::Free => {
            let window = core.handler(line).map_or(1, |handler| handler.window);
            u16::try_from(window).unwrap_or(PREFETCH).clamp(1, PREFETCH)
        }
    }
}

/// Messages that were read, with their tags.
type Parcels = Vec<(u64, Parcel)>;

struct Task {
    core: Arc<Core>,
    line: usize,
    place: Place,
    handler: Arc<str>,
    subscription: u64,
    prefetch: u16,
    channel: Channel,
    reader: Reader,
}

impl Task {
    async fn run(mut self, mut consumer: Consumer, mut orders: mpsc::Receiver<Command>) {
        let is_lost = loop {
            tokio::select! {
                biased;
                order = orders.recv() => match order {
                    Some(Command::Barrier(reply)) => {
                        let is_there = self.barrier(&mut consumer).await;
                        // Whoever asked may have gone.
                        let _ = reply.send(());
                        if !is_there {
                            break true;
                        }
                    }
                    Some(Command::CloseIfIdle(reply)) if self.is_active() => {
                        let _ = reply.send(());
                    }
                    Some(Command::Close(reply) | Command::CloseIfIdle(reply)) => {
                        self.leave(&mut consumer).await;
                        self.core.unsubscribed(self.line, self.subscription, false);
                        let _ = reply.send(());
                        break false;
                    }
                    None => break true,
                },
                delivery = consumer.next() => {
                    let Some(Ok(first)) = delivery else { break true };
                    if !self.take_in(first, &mut consumer).await {
                        break true;
                    }
                }
            }
        };
        if is_lost {
            tracing::debug!(handler = &*self.handler, place = ?self.place, "a channel was lost");
            self.core.unsubscribed(self.line, self.subscription, true);
        }
        // Only now: a consumer that is dropped on a living channel is cancelled, and then the queue goes on with the next
        // subscriber while what this one was handed is still in its hands.
        drop(consumer);
    }

    fn is_active(&self) -> bool {
        self.core.with(|buffer| buffer.line(self.line).is_some_and(|line| line.is_active))
    }

    /// A question and its answer: the broker has handed out everything it was going to before it, and has seen all
    /// acknowledgements.
    async fn ask(&self) -> Result<()> {
        let question = self.channel.basic_qos(self.prefetch, BasicQosOptions::default());
        within(self.core.shared.config.request_timeout, "subscribe", question).await
    }

    async fn barrier(&mut self, consumer: &mut Consumer) -> bool {
        if self.ask().await.is_err() {
            return self.channel.status().connected();
        }
        while let Some(next) = consumer.next().now_or_never() {
            let Some(Ok(first)) = next else { return false };
            if !self.take_in(first, consumer).await {
                return false;
            }
        }
        true
    }

    /// Gives the queue back. A channel that is busy keeps acknowledgements back until its queue has taken the earlier ones,
    /// and forgets them when it is closed: then they would be repeated. So something is done first that goes the queue's
    /// whole way (its log), and then a question is asked here: the channel has heard by then that there is room, and let go
    /// of what it kept.
    async fn leave(&mut self, consumer: &mut Consumer) {
        let queue = self.core.shared.names.queue(self.place, &self.handler);
        let gone = match self.place {
            Place::Free => self.hand_back(consumer).await,
            // Another subscriber, who waits and goes: the queue does not change hands for that.
            Place::Partition(_) | Place::Suspect => self.knock(&queue).await,
        };
        if let Err(failure) = gone {
            tracing::debug!(error = chain(&failure), queue, "a queue was not given back in full peace");
        }
        // Without an answer some deliveries are repeated.
        let _ = self.ask().await;
        close_channel(&self.channel, self.core.shared.config.request_timeout).await;
    }

    async fn knock(&self, queue: &str) -> Result<()> {
        let limit = self.core.shared.config.request_timeout;
        let channel = within(limit, "release", self.core.connection.create_channel()).await?;
        let options = BasicConsumeOptions::default();
        let consume = channel.basic_consume(short(queue), short(""), options, FieldTable::default());
        let waiting = within(limit, "release", consume).await?;
        close_channel(&channel, limit).await;
        drop(waiting);
        Ok(())
    }

    /// Free deliveries that were not run are published anew: what the broker takes back from somebody counts as what that
    /// one may have died of. They have no order, so their consumer can be cancelled first.
    async fn hand_back(&mut self, consumer: &mut Consumer) -> Result<()> {
        let limit = self.core.shared.config.request_timeout;
        let cancel = self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        within(limit, "release", cancel).await?;
        self.barrier(consumer).await;
        let leftovers = self.core.with(|buffer| buffer.leftovers(self.line, Instant::now()));
        if leftovers.is_empty() {
            return Ok(());
        }
        let letters = leftovers
            .iter()
            .map(|(_, parcel)| self.core.shared.post.delivery(parcel, &self.handler))
            .collect();
        match tokio::time::timeout(limit, self.core.deliver("release", letters)).await {
            Ok(Ok(())) => {
                let acks = leftovers.iter().map(|(tag, _)| Ack {
                    line: self.line,
                    subscription: self.subscription,
                    tag: *tag,
                });
                self.core.acknowledge(&acks.collect::<Vec<_>>());
                Ok(())
            }
            Ok(Err(undelivered)) => Err(undelivered.error),
            Err(_) => Err(no_answer("release")),
        }
    }

    /// Takes in a message and those that have come behind it. False if the channel is gone.
    async fn take_in(&mut self, first: Delivery, consumer: &mut Consumer) -> bool {
        let mut messages = vec![first];
        let mut is_there = true;
        while messages.len() < BATCH
            && let Some(next) = consumer.next().now_or_never()
        {
            match next {
                Some(Ok(message)) => messages.push(message),
                _ => {
                    is_there = false;
                    break;
                }
            }
        }
        if !self.is_active() && !self.become_active().await {
            return false;
        }
        let (parcels, moves) = self.sort(messages);
        if !moves.is_empty() && !self.move_on(moves).await {
            return false;
        }
        let (now, wall) = (Instant::now(), self.core.shared.config.clock.now());
        let superfluous =
            self.core.with(|buffer| buffer.push(self.line, self.subscription, parcels, now, wall));
        self.core.acknowledge(&superfluous);
        self.core.has_work();
        is_there
    }

    /// Reads messages: those that enter their lines here, and those that must go to another queue.
    fn sort(&mut self, messages: Vec<Delivery>) -> (Parcels, Parcels) {
        let mut parcels = Vec::with_capacity(messages.len());
        let mut moves = Vec::new();
        for message in messages {
            let tag = message.delivery_tag;
            match self.reader.read(&message.properties, message.data) {
                Ok(parcel) => {
                    let waits = Place::delay_for(crate::wire::millis(parcel.wait)).is_some();
                    let is_suspect = self.place == Place::Free && parcel.returns > 0;
                    if waits || is_suspect {
                        moves.push((tag, parcel));
                    } else {
                        parcels.push((tag, parcel));
                    }
                }
                // It stays in the queue, and takes one place of the prefetch, until somebody looks.
                Err(why) => tracing::error!(
                    handler = &*self.handler,
                    place = ?self.place,
                    why,
                    "a message in a queue of the bus is no delivery and is left alone; remove it by hand"
                ),
            }
        }
        (parcels, moves)
    }

    /// Sends messages on to other queues: free ones whose worker vanished to the queue of the suspects, waiting ones into
    /// their next wait. Then they leave this queue. False if the channel is gone.
    async fn move_on(&self, moves: Parcels) -> bool {
        self.core.with(|buffer| buffer.set_moving(self.line, self.subscription, moves.len()));
        let mut letters = Vec::with_capacity(moves.len());
        let mut acks = Vec::with_capacity(moves.len());
        for (tag, mut parcel) in moves {
            if self.place == Place::Free {
                parcel.crashes += u32::from(parcel.returns > 0);
            }
            letters.push(self.core.shared.post.delivery(&parcel, &self.handler));
            acks.push(Ack { line: self.line, subscription: self.subscription, tag });
        }
        loop {
            match self.core.deliver("claim", letters.clone()).await {
                Ok(()) => break,
                Err(undelivered) => {
                    tracing::warn!(
                        error = chain(&undelivered.error),
                        "messages could not be moved, will try again"
                    );
                    tokio::time::sleep(PAUSE).await;
                }
            }
            if !self.channel.status().connected() {
                return false;
            }
        }
        self.core.acknowledge(&acks);
        self.core.with(|buffer| buffer.set_moving(self.line, self.subscription, 0));
        true
    }

    /// The broker serves this session: reads what the owner before it remembered, and says that there is a new owner, before
    /// anything is handed out.
    async fn become_active(&self) -> bool {
        loop {
            match self.read_journal().await {
                Ok(journal) => {
                    self.core.with(|buffer| {
                        if buffer.is_current(self.line, self.subscription)
                            && let Some(line) = buffer.line_mut(self.line)
                        {
                            line.journal = journal;
                            line.is_active = true;
                        }
                    });
                    return true;
                }
                Err(failure) => {
                    if !self.channel.status().connected() || *self.core.stop.borrow() {
                        return false;
                    }
                    tracing::warn!(
                        error = chain(&failure),
                        "a queue cannot be taken over yet, will try again"
                    );
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn read_journal(&self) -> Result<Journal> {
        let Some(queue) = self.core.shared.names.journal(self.place, &self.handler) else {
            return Ok(Journal::default());
        };
        let limit = self.core.shared.config.request_timeout;
        let get = self.channel.basic_get(short(queue), BasicGetOptions::default());
        let old = within(limit, "claim", get).await?;
        let journal = Journal::following(old.as_ref().map(|old| &*old.delivery.data))?;
        let written = journal.written(false)?;
        let letter = self.core.shared.post.journal(self.place, &self.handler, written);
        let stored = self.core.deliver("claim", letter.into_iter().collect()).await;
        stored.map_err(|undelivered| undelivered.error)?;
        if let Some(old) = old {
            let tag = old.delivery.delivery_tag;
            let ack = self.channel.basic_ack(tag, BasicAckOptions::default());
            ack.await.map_err(|failure| translate("claim", &failure))?;
            self.core.with(|buffer| {
                if buffer.is_current(self.line, self.subscription)
                    && let Some(line) = buffer.line_mut(self.line)
                {
                    line.tags.skip(tag);
                }
            });
        }
        if !self.channel.status().connected() {
            return Err(error(ErrorKind::LeaseLost, "claim", "the channel was lost"));
        }
        Ok(journal)
    }
}

/// Asks a line's task for something and waits until it is done; at once if there is none.
pub(crate) async fn order(
    core: &Core,
    line: usize,
    command: impl FnOnce(tokio::sync::oneshot::Sender<()>) -> Command,
) {
    let Some(subscription) = core.subscription(line) else { return };
    let (reply, done) = tokio::sync::oneshot::channel();
    if subscription.commands.send(command(reply)).await.is_ok() {
        // It fails if the channel was lost meanwhile: then there is nothing left to be done.
        let _ = done.await;
    }
}
