//! Which queues this worker serves: takes those that nobody serves, and gives some back when others have fewer.
//!
//! A queue has one active consumer, but the broker does not share queues out: who registers first gets everything. So a
//! worker subscribes only to queues that it sees vacant, and to no more than its share while there are others. Workers tell
//! one another over a fanout exchange that they are there and what they serve. All of this is about balance alone: that a
//! queue has one active consumer is the broker's promise.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use event_bus_core::backend::Notice;
use event_bus_core::clock::BootTime;
use event_bus_core::{ErrorKind, Result, chain, codec};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use uuid::Uuid;

use crate::core::{Command, Core};
use crate::error::{Cause, translate};
use crate::line;
use crate::link::{close_connection, within};
use crate::session::connection_lost;
use crate::topology::{self, PREFETCH, Place, short};

/// A queue that was vacant in so many looks in a row is taken by anybody, whatever its share.
const PATIENCE: u32 = 3;

/// A worker that was silent for so many beats no longer counts.
const MISSED_BEATS: u32 = 3;

/// How long the first deliveries are waited for.
const ARRIVAL: Duration = Duration::from_millis(200);

/// Between two looks whether they have come.
const LOOK: Duration = Duration::from_millis(2);

/// Between two looks at the clock that goes on through a suspension.
const CLOCK_LOOK: Duration = Duration::from_millis(250);

/// What workers tell one another, and what others ask them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Word {
    /// I am here, and this is what I serve.
    Here { worker: Uuid, serves: Vec<Served> },
    /// Somebody is new and wants to know who is here.
    Hello { worker: Uuid },
    /// Queues were given back.
    Vacated,
    /// I leave.
    Left { worker: Uuid },
    /// How much do you hold?
    Count { question: u64, reply_to: String },
}

/// The part of a handler's queues that a worker serves.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Served {
    pub(crate) handler: String,
    /// Numbers of partition queues, and whether anything has come from each; the queue of suspects comes behind them.
    pub(crate) partitions: Vec<(u16, bool)>,
}

/// The answer to [`Word::Count`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Counted {
    pub(crate) question: u64,
    pub(crate) worker: Uuid,
    /// Changes with everything that comes or goes.
    pub(crate) stamp: u64,
    pub(crate) queues: Vec<CountedQueue>,
}

/// What a worker holds of a queue.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CountedQueue {
    pub(crate) handler: String,
    pub(crate) queue: String,
    pub(crate) ready: u64,
    pub(crate) waiting: u64,
}

struct Member {
    seen: Instant,
    serves: Vec<Served>,
}

/// The task that decides what is served.
pub(crate) struct Steward {
    core: Arc<Core>,
    channel: Channel,
    words: Consumer,
    members: HashMap<Uuid, Member>,
    /// How often in a row a line's queue was seen vacant.
    vacant: HashMap<usize, u32>,
}

impl Steward {
    pub(crate) async fn new(core: Arc<Core>) -> Result<Self> {
        let channel =
            within(core.shared.config.request_timeout, "open", core.connection.create_channel()).await?;
        let words = listen(&core, &channel).await?;
        say(&core, &Word::Hello { worker: core.worker.incarnation });
        Ok(Self { core, channel, words, members: HashMap::new(), vacant: HashMap::new() })
    }

    /// Takes what it finds vacant, and waits until the first deliveries of each of these queues are here: what the engine
    /// claims first shall not be what happened to come first.
    pub(crate) async fn begin(&mut self) {
        self.look().await;
        let core = self.core.clone();
        let lines: Vec<_> = core.with(|buffer| {
            buffer.lines().filter(|(_, line)| line.subscription != 0).map(|(number, _)| number).collect()
        });
        let queues = lines.iter().filter_map(|line| core.place(*line));
        let queues: Vec<_> =
            queues.map(|(handler, place)| core.shared.names.queue(place, &handler)).collect();
        let arrived = async {
            while let Ok(counts) = topology::look_at_all(&self.channel, &queues).await {
                let held = core.with(|buffer| buffer.count(Instant::now()));
                let has_come = lines.iter().zip(counts).all(|(line, (ready, _))| {
                    ready == 0 || held.get(*line).is_some_and(|held| held.ready + held.waiting > 0)
                });
                if has_come {
                    break;
                }
                tokio::time::sleep(LOOK).await;
            }
            join_all(lines.iter().map(|line| line::order(&core, *line, Command::Barrier))).await;
        };
        // A queue that another one is served from keeps nobody waiting.
        let _ = tokio::time::timeout(ARRIVAL, arrived).await;
    }

    /// Until the session ends.
    pub(crate) async fn run(mut self) {
        let core = self.core.clone();
        let config = &core.shared.config;
        let mut stop = core.stop.subscribe();
        let mut looks = interval(config.vacancy_interval);
        let mut beats = interval(config.presence_interval);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stopped(&mut stop) => break,
                word = self.words.next() => {
                    let Some(Ok(message)) = word else {
                        if !self.reopen().await {
                            break;
                        }
                        continue;
                    };
                    // The queue of words goes with its connection: what is lost of it is said again.
                    let _ = message.acker.ack(BasicAckOptions::default()).await;
                    if let Ok(word) = ciborium::from_reader::<Word, _>(&*message.data) {
                        self.hear(word).await;
                    }
                }
                _ = looks.tick() => self.look().await,
                () = core.look_now.notified() => self.look().await,
                _ = beats.tick() => self.beat(),
            }
        }

        if core.has_ended() {
            close_connection(&core.connection, config.request_timeout).await;
        }
    }

    /// Another channel after the last one was closed. False if the connection is gone.
    async fn reopen(&mut self) -> bool {
        let limit = self.core.shared.config.request_timeout;
        let opened = async {
            let channel = within(limit, "open", self.core.connection.create_channel()).await?;
            let words = listen(&self.core, &channel).await?;
            Ok::<_, event_bus_core::Error>((channel, words))
        };
        match opened.await {
            Ok((channel, words)) => {
                self.channel = channel;
                self.words = words;
                true
            }
            Err(failure) => {
                let lost = connection_lost();
                self.core.end(ErrorKind::LeaseLost, format!("{}: {}", lost.message(), chain(&failure)));
                false
            }
        }
    }

    async fn hear(&mut self, word: Word) {
        let own = self.core.worker.incarnation;
        match word {
            Word::Hello { worker } if worker != own => self.beat(),
            Word::Hello { .. } => {}
            Word::Here { worker, serves } if worker != own => {
                self.give_way(worker, &serves).await;
                self.members.insert(worker, Member { seen: Instant::now(), serves });
            }
            Word::Here { .. } => {}
            Word::Vacated => self.core.look_now.notify_one(),
            Word::Left { worker } => {
                self.members.remove(&worker);
                if worker != own {
                    self.core.look_now.notify_one();
                }
            }
            Word::Count { question, reply_to } => {
                tokio::spawn(count(self.core.clone(), question, reply_to));
            }
        }
    }

    fn beat(&mut self) {
        let limit = self.core.shared.config.presence_interval * MISSED_BEATS;
        self.members.retain(|_, member| member.seen.elapsed() < limit);
        let serves = self.serves();
        say(&self.core, &Word::Here { worker: self.core.worker.incarnation, serves });
    }

    fn serves(&self) -> Vec<Served> {
        let handlers = &self.core.worker.handlers;
        let mut serves: Vec<_> = handlers
            .iter()
            .map(|handler| Served { handler: handler.name.to_string(), partitions: Vec::new() })
            .collect();
        let suspects = self.core.shared.config.partitions;
        self.core.with(|buffer| {
            for (_, line) in buffer.lines().filter(|(_, line)| line.subscription != 0 && !line.is_leaving) {
                let number = match line.place {
                    Place::Partition(number) => number,
                    Place::Suspect => suspects,
                    Place::Free => continue,
                };
                if let Some(served) = serves.get_mut(line.partition.handler.get()) {
                    served.partitions.push((number, line.is_active));
                }
            }
        });
        serves
    }

    /// Two saw the same queue vacant and subscribed to it: one of them waits without being served, and goes.
    async fn give_way(&mut self, other: Uuid, serves: &[Served]) {
        let suspects = self.core.shared.config.partitions;
        let is_before = other < self.core.worker.incarnation;
        let handlers = &self.core.worker.handlers;
        let given: Vec<_> = self.core.with(|buffer| {
            let idle = buffer.lines().filter(|(_, line)| {
                let number = match line.place {
                    Place::Partition(number) => number,
                    Place::Suspect => suspects,
                    Place::Free => return false,
                };
                let name = handlers.get(line.partition.handler.get()).map(|handler| &*handler.name);
                let theirs = serves.iter().find(|served| Some(&*served.handler) == name);
                let theirs = theirs.and_then(|served| served.partitions.iter().find(|(of, _)| *of == number));
                line.subscription != 0
                    && !line.is_active
                    && theirs.is_some_and(|(_, is_active)| *is_active || is_before)
            });
            idle.map(|(line, _)| line).collect()
        });
        join_all(given.into_iter().map(|line| line::order(&self.core, line, Command::CloseIfIdle))).await;
    }

    /// Looks at the queues that this worker does not serve, takes what it should have and gives back what it should not.
    async fn look(&mut self) {
        let missing: Vec<(usize, Place)> = self.core.with(|buffer| {
            let missing = buffer.lines().filter(|(_, line)| line.subscription == 0);
            missing.map(|(number, line)| (number, line.place)).collect()
        });
        let free: Vec<_> =
            missing.iter().filter(|(_, place)| *place == Place::Free).map(|(line, _)| *line).collect();
        self.subscribe(free).await;
        let owned: Vec<_> =
            missing.iter().filter(|(_, place)| *place != Place::Free).map(|(line, _)| *line).collect();
        if !owned.is_empty() {
            match self.vacant_among(&owned).await {
                Ok(vacant) => self.take(vacant).await,
                Err(failure) => tracing::debug!(error = chain(&failure), "queues could not be looked at"),
            }
        }
        self.share_out().await;
        self.recycle();
    }

    async fn vacant_among(&mut self, lines: &[usize]) -> Result<Vec<usize>> {
        let names: Vec<_> = lines
            .iter()
            .filter_map(|line| self.core.place(*line))
            .map(|(handler, place)| self.core.shared.names.queue(place, &handler))
            .collect();
        let limit = self.core.shared.config.request_timeout;
        let looked = tokio::time::timeout(limit, topology::look_at_all(&self.channel, &names)).await;
        let counts = match looked {
            Ok(Ok(counts)) => counts,
            Ok(Err(failure)) => {
                // The channel is closed by it, which is noticed where its words are awaited.
                if Cause::of(&failure) == Cause::NotFound {
                    let handlers =
                        self.core.worker.handlers.iter().map(|handler| handler.name.clone()).collect();
                    self.core.shared.administration.ensure("claim", handlers, true).await?;
                }
                return Err(translate("claim", &failure));
            }
            Err(_) => return Err(crate::error::no_answer("claim")),
        };
        let mut vacant = Vec::new();
        for (line, (_, consumers)) in lines.iter().zip(counts) {
            if consumers == 0 {
                *self.vacant.entry(*line).or_insert(0) += 1;
                vacant.push(*line);
            } else {
                self.vacant.remove(line);
            }
        }
        Ok(vacant)
    }

    /// How many queues of a handler this worker serves, and how many are its share.
    fn share(&self, handler: usize) -> (usize, usize, usize) {
        let name = self.core.worker.handlers.get(handler).map(|handler| handler.name.to_string());
        let served = self.serves().get(handler).map_or(0, |served| served.partitions.len());
        let limit = self.core.shared.config.presence_interval * MISSED_BEATS;
        let others = self.members.values().filter(|member| {
            member.seen.elapsed() < limit
                && member.serves.iter().any(|served| Some(&served.handler) == name.as_ref())
        });
        let workers = others.count() + 1;
        let queues = usize::from(self.core.shared.config.partitions) + 1;
        (served, queues.div_ceil(workers), queues / workers)
    }

    async fn take(&mut self, mut vacant: Vec<usize>) {
        // Each worker begins at another queue, so that two that start together do not race for the same.
        let own = self.core.worker.incarnation.as_u128();
        vacant.sort_by_key(|line| {
            let text = format!("{own}/{line}");
            xxhash_rust::xxh3::xxh3_64(text.as_bytes())
        });
        let mut taken: HashMap<usize, usize> = HashMap::new();
        let mut wanted = Vec::new();
        for line in vacant {
            let Some(handler) =
                self.core.with(|buffer| buffer.line(line).map(|line| line.partition.handler.get()))
            else {
                continue;
            };
            let (served, share, _) = self.share(handler);
            let more = taken.entry(handler).or_insert(0);
            let is_due = self.vacant.get(&line).is_some_and(|looks| *looks >= PATIENCE);
            if served + *more < share || is_due {
                *more += 1;
                wanted.push(line);
            }
        }
        for line in &wanted {
            self.vacant.remove(line);
        }
        self.subscribe(wanted).await;
    }

    async fn subscribe(&self, lines: Vec<usize>) {
        let subscribing = lines.into_iter().map(|line| async move {
            if let Err(failure) = line::subscribe(&self.core, line).await {
                tracing::warn!(error = chain(&failure), "a queue cannot be served yet, will try again");
            }
        });
        join_all(subscribing).await;
    }

    /// Gives back what is above this worker's share, if another one has less than its own.
    async fn share_out(&mut self) {
        for handler in 0..self.core.worker.handlers.len() {
            let (served, share, least) = self.share(handler);
            let Some(name) = self.core.worker.handlers.get(handler).map(|handler| handler.name.to_string())
            else {
                continue;
            };
            let somebody_has_less = self.members.values().any(|member| {
                let theirs = member.serves.iter().find(|served| served.handler == name);
                theirs.is_some_and(|theirs| theirs.partitions.len() < least)
            });
            if served <= share || !somebody_has_less {
                continue;
            }
            let surplus: Vec<_> = self.core.with(|buffer| {
                let own = buffer.lines().filter(|(_, line)| {
                    line.partition.handler.get() == handler
                        && line.place != Place::Free
                        && line.subscription != 0
                        && !line.is_leaving
                });
                own.map(|(number, line)| (number, line.is_active)).collect()
            });
            // Those from which nothing has come first: they cost nothing.
            let (idle, active): (Vec<_>, Vec<_>) = surplus.into_iter().partition(|(_, is_active)| !is_active);
            let given: Vec<_> = idle.into_iter().chain(active).take(served - share).collect();
            for (line, is_active) in given {
                self.give_up(line, is_active).await;
            }
        }
    }

    async fn give_up(&self, line: usize, is_active: bool) {
        if is_active {
            self.revoke(line);
        } else {
            line::order(&self.core, line, Command::CloseIfIdle).await;
            say_vacated(&self.core);
        }
    }

    fn revoke(&self, line: usize) {
        let partition = self.core.with(|buffer| {
            let line = buffer.line_mut(line)?;
            line.is_leaving = true;
            Some(line.partition)
        });
        if let Some(partition) = partition {
            self.core.notify(Notice::Revoke(partition));
        }
    }

    /// Queues whose oldest delivery has been held for long are given back and taken again, before the broker's own limit
    /// (`consumer_timeout`) closes their channels: some versions never serve a queue again after that.
    fn recycle(&self) {
        let limit = self.core.shared.config.recycle_after;
        let old: Vec<_> = self.core.with(|buffer| {
            let oldest = buffer.oldest().into_iter().filter(|(_, since)| since.elapsed() >= limit);
            let is_staying = |line: &usize| buffer.line(*line).is_some_and(|line| !line.is_leaving);
            oldest.map(|(line, _)| line).filter(is_staying).collect()
        });
        old.into_iter().for_each(|line| self.revoke(line));
    }
}

/// Resolves when the session's tasks shall end.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // It fails only when the session is gone as well.
    let _ = stop.wait_for(|stops| *stops).await;
}

/// A queue of one's own, for what workers tell one another.
async fn listen(core: &Core, channel: &Channel) -> Result<Consumer> {
    let limit = core.shared.config.request_timeout;
    within(limit, "open", channel.basic_qos(PREFETCH, BasicQosOptions::default())).await?;
    let options =
        QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let queue =
        within(limit, "open", channel.queue_declare(short(""), options, FieldTable::default())).await?;
    let exchange = short(core.shared.names.presence());
    let bind = channel.queue_bind(
        queue.name().clone(),
        exchange,
        short(""),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    within(limit, "open", bind).await?;
    let consume = channel.basic_consume(
        queue.name().clone(),
        short(""),
        BasicConsumeOptions::default(),
        FieldTable::default(),
    );
    within(limit, "open", consume).await
}

/// Says something to all workers. What does not arrive is said again, or missed by nobody for long.
fn say(core: &Arc<Core>, word: &Word) {
    let core = core.clone();
    let word = word.clone();
    tokio::spawn(async move { said(&core, &word).await });
}

async fn said(core: &Core, word: &Word) {
    let Ok(body) = codec::encode(word) else { return };
    let shared = &core.shared;
    let id = format!("word/{}", Uuid::from_u128(u128::from(fastrand::u64(..))));
    let letter = shared.post.note(&shared.names.presence(), "", id, body);
    let deadline = Instant::now() + shared.config.request_timeout;
    if let Err(unsent) = shared.notes.send("wait", [letter].into(), deadline).await {
        tracing::debug!(?unsent, "a word to the other workers was not sent");
    }
}

/// Tells the others that there is something to take.
pub(crate) fn say_vacated(core: &Arc<Core>) {
    say(core, &Word::Vacated);
}

/// Tells the others that this worker is gone.
pub(crate) async fn say_left(core: &Core) {
    said(core, &Word::Left { worker: core.worker.incarnation }).await;
}

/// Answers how much this session holds, with all that the broker has handed out so far.
async fn count(core: Arc<Core>, question: u64, reply_to: String) {
    let lines: Vec<_> = core.with(|buffer| {
        buffer.lines().filter(|(_, line)| line.subscription != 0).map(|(number, _)| number).collect()
    });
    join_all(lines.iter().map(|line| line::order(&core, *line, Command::Barrier))).await;
    let (stamp, counts) = core.with(|buffer| (buffer.stamp, buffer.count(Instant::now())));
    let queues = lines.into_iter().filter_map(|line| {
        let (handler, place) = core.place(line)?;
        let count = counts.get(line)?;
        Some(CountedQueue {
            queue: core.shared.names.queue(place, &handler),
            handler: handler.to_string(),
            ready: count.ready,
            waiting: count.waiting,
        })
    });
    let answer = Counted { question, worker: core.worker.incarnation, stamp, queues: queues.collect() };
    let Ok(body) = codec::encode(&answer) else { return };
    let id = format!("count/{question}/{}", core.worker.incarnation);
    let letter = core.shared.post.note("", &reply_to, id, body);
    let deadline = Instant::now() + core.shared.config.request_timeout;
    if let Err(unsent) = core.shared.notes.send("wait", [letter].into(), deadline).await {
        tracing::debug!(?unsent, "who asked for a count has gone");
    }
}

/// Asks the broker something at short intervals. While it answers, it has not given this session up: it does so only after
/// more than two heartbeats of silence. One heartbeat after the question that was answered last, the session stops by itself.
pub(crate) async fn keep_trust(core: Arc<Core>) {
    let heartbeat = core.shared.config.heartbeat;
    let mut stop = core.stop.subscribe();
    let mut channel: Option<Channel> = None;
    loop {
        let sent = BootTime::now();
        let question = async {
            let asked = match channel.take().filter(|channel| channel.status().connected()) {
                Some(channel) => channel,
                None => core.connection.create_channel().await?,
            };
            asked.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
            Ok::<_, lapin::Error>(asked)
        };
        tokio::select! {
            biased;
            () = stopped(&mut stop) => return,
            answer = tokio::time::timeout(core.trusted_for(), question) => match answer {
                Ok(Ok(asked)) => {
                    channel = Some(asked);
                    core.trust(sent);
                }
                Ok(Err(failure)) => {
                    let lost = connection_lost();
                    core.end(ErrorKind::LeaseLost, format!("{}: {failure}", lost.message()));
                    return;
                }
                Err(_) => {
                    core.end(ErrorKind::LeaseLost, "the broker has not answered for a heartbeat");
                    return;
                }
            }
        }
        // Timers stand still while the machine is suspended: the clock that does not is looked at often.
        let next = sent.plus(heartbeat / 3);
        while !next.since(BootTime::now()).is_zero() {
            let pause = next.since(BootTime::now()).min(CLOCK_LOOK);
            tokio::select! {
                biased;
                () = stopped(&mut stop) => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}
