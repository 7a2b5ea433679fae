//! Sends messages and learns what became of each.
//!
//! One task owns each publishing channel: two tasks on one channel could swap their confirmations. It keeps up to a window
//! of messages under way, and answers a call when all of its messages are confirmed.
//!
//! Confirmed is not stored: an unroutable message is returned first, and confirmed then. The driver hangs what was returned
//! on whichever confirmation completes next, its own or not, so messages are told apart by their ids alone, and in this
//! order: all confirmations that have come are taken in before any is believed; and once one of them carries a returned
//! message, nothing is sent or believed until everything under way has its confirmation. (A confirmation that carries nothing
//! came when nothing returned was left to hang on, so what was returned before it hangs on an earlier one.)

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use event_bus_core::{Error, ErrorKind, Result};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::error::{Cause, error, translate};
use crate::link::Link;
use crate::topology::short;
use crate::wire;

/// The most messages that are under way on one channel. 5,000 are no faster than 1,000.
const WINDOW: usize = 1_000;

/// The most calls that wait for one channel. Beyond it callers wait themselves.
const WAITING_CALLS: usize = 1_024;

/// Between two attempts to reach the broker.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// A message to be.
#[derive(Clone, Debug)]
pub(crate) struct Letter {
    pub(crate) exchange: Arc<str>,
    pub(crate) key: String,
    /// Its `message_id`; no two of one call may have the same.
    pub(crate) id: String,
    pub(crate) payload: Bytes,
    pub(crate) properties: BasicProperties,
    /// It publishes an event for the first time: a copy of it, sent because the confirmation was lost, is superfluous wherever
    /// the event has been seen. (What is replayed, or comes back for another attempt, has been seen by then.)
    pub(crate) is_first: bool,
}

/// Why a call was not stored whole.
#[derive(Debug)]
pub(crate) enum Unsent {
    /// These letters (positions in the call) reached no queue, as far as is known; all others are stored.
    Unroutable(Vec<usize>),
    /// Nothing is known of some letters, or nothing was sent.
    Failed(Error),
}

struct Call {
    letters: Arc<[Letter]>,
    operation: &'static str,
    deadline: Instant,
    /// Whether the first letter was sent: from then on the outcome is unknown until it is confirmed.
    is_sent: Arc<AtomicBool>,
    reply: oneshot::Sender<Result<(), Unsent>>,
}

/// Publishing channels on one connection.
pub(crate) struct Publisher {
    link: Arc<Link>,
    channels: Vec<Mutex<Option<mpsc::Sender<Call>>>>,
    next: AtomicUsize,
}

impl Publisher {
    /// With this many channels. What happens one after the other for its caller is in order whatever channels it takes: a
    /// call is answered before the next one is made.
    pub(crate) fn new(link: Arc<Link>, channels: usize) -> Self {
        Self {
            link,
            channels: (0..channels.max(1)).map(|_| Mutex::default()).collect(),
            next: AtomicUsize::new(0),
        }
    }

    /// Sends letters and waits until the broker has all of them, at most until `deadline`.
    ///
    /// # Cancel safety
    /// A dropped future leaves them sent or not: each is stored whole.
    pub(crate) async fn send(
        &self,
        operation: &'static str,
        letters: Arc<[Letter]>,
        deadline: Instant,
    ) -> Result<(), Unsent> {
        if letters.is_empty() {
            return Ok(());
        }
        let (reply, answer) = oneshot::channel();
        let is_sent = Arc::new(AtomicBool::new(false));
        let call = Call { letters, operation, deadline, is_sent: is_sent.clone(), reply };
        let channel = self.channel();
        let exchange = async {
            // It fails only if its task died with the runtime; then the answer fails as well.
            let _ = channel.send(call).await;
            answer.await
        };
        match tokio::time::timeout_at(deadline, exchange).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Unsent::Failed(out_of_time(operation, &is_sent, "the publishing task ended"))),
            Err(_) => {
                let message = match is_sent.load(Ordering::Relaxed) {
                    true => "the broker did not confirm in time; look for a memory or disk alarm",
                    false => {
                        "the broker could not be reached in time, or is blocked by a memory or disk alarm"
                    }
                };
                Err(Unsent::Failed(out_of_time(operation, &is_sent, message)))
            }
        }
    }

    fn channel(&self) -> mpsc::Sender<Call> {
        let number = self.next.fetch_add(1, Ordering::Relaxed) % self.channels.len();
        let mut slot = self.channels[number].lock().unwrap_or_else(PoisonError::into_inner);
        match &*slot {
            Some(sender) if !sender.is_closed() => sender.clone(),
            _ => {
                let (sender, calls) = mpsc::channel(WAITING_CALLS);
                tokio::spawn(dispatch(self.link.clone(), calls));
                slot.insert(sender).clone()
            }
        }
    }
}

fn out_of_time(operation: &'static str, is_sent: &AtomicBool, message: &str) -> Error {
    let is_sent = is_sent.load(Ordering::Relaxed);
    let kind = if is_sent { ErrorKind::OutcomeUnknown } else { ErrorKind::Unavailable };
    error(kind, operation, message)
}

/// The broker refuses a message: the only reason it has is the size.
fn too_large(failure: &lapin::Error) -> Error {
    let text = "the broker refuses the message: raise its `max_message_size` above the `max_event_bytes` of the bus, or lower that";
    error(ErrorKind::InvalidEvent, "publish", text).with_source(failure.to_string())
}

/// The task of one channel.
async fn dispatch(link: Arc<Link>, mut calls: mpsc::Receiver<Call>) {
    let mut channel = PublishingChannel::new(link);
    let mut is_open = true;
    while is_open || !channel.is_idle() {
        while channel.has_room()
            && let Ok(call) = calls.try_recv()
        {
            channel.accept(call);
        }
        channel.send().await;
        tokio::select! {
            biased;
            confirmed = channel.under_way.next(), if !channel.under_way.is_empty() => {
                if let Some(confirmed) = confirmed {
                    channel.confirmed(confirmed);
                }
                // All that have come, before any is believed.
                while let Some(Some(confirmed)) = channel.under_way.next().now_or_never() {
                    channel.confirmed(confirmed);
                }
                channel.conclude().await;
            }
            // The broker could not be reached: once more, after the pause that has been made.
            () = std::future::ready(()), if channel.under_way.is_empty() && !channel.waiting.is_empty() => {}
            call = calls.recv(), if is_open && channel.has_room() => match call {
                Some(call) => channel.accept(call),
                None => is_open = false,
            },
        }
    }
}

/// A letter on its way: of which call, which one, and when it was first sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Slip {
    number: u64,
    call: u64,
    letter: usize,
}

type Confirmed = (Slip, lapin::Result<Confirmation>);

/// A call that is not answered.
struct Open {
    call: Call,
    /// Letters that are neither stored nor given up.
    left: usize,
    unroutable: Vec<usize>,
    failure: Option<Error>,
}

struct PublishingChannel {
    link: Arc<Link>,
    channel: Option<Channel>,
    open: HashMap<u64, Open>,
    next: u64,
    /// All slips below this number were sent before, whatever became of it.
    sent_below: u64,
    /// To be sent, in this order.
    waiting: VecDeque<Slip>,
    under_way: FuturesUnordered<BoxFuture<'static, Confirmed>>,
    /// Confirmed, and not yet believed.
    confirmed: Vec<Slip>,
    /// Under way when the channel was lost: perhaps stored. Sent again in order: their queues see a rewind, no inversion.
    again: Vec<Slip>,
    /// What came back, while there is something under way on whose confirmation more may hang.
    returned: HashSet<lapin::types::ShortString>,
    failure: Option<Error>,
    /// The broker closed the channel because of a letter of which it does not say which one.
    is_refused: bool,
    /// So many of those that wait are sent one at a time: one of them is what the broker refuses.
    suspected: usize,
    pause: Duration,
}

impl PublishingChannel {
    fn new(link: Arc<Link>) -> Self {
        Self {
            link,
            channel: None,
            open: HashMap::new(),
            next: 0,
            sent_below: 0,
            waiting: VecDeque::new(),
            under_way: FuturesUnordered::new(),
            confirmed: Vec::new(),
            again: Vec::new(),
            returned: HashSet::new(),
            failure: None,
            is_refused: false,
            suspected: 0,
            pause: FIRST_PAUSE,
        }
    }

    fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    fn has_room(&self) -> bool {
        self.waiting.len() + self.under_way.len() < WINDOW
    }

    fn accept(&mut self, call: Call) {
        let number = self.next;
        let letters = call.letters.len();
        for letter in 0..letters {
            self.waiting.push_back(Slip { number: self.next, call: number, letter });
            self.next += 1;
        }
        self.open.insert(number, Open { call, left: letters, unroutable: Vec::new(), failure: None });
    }

    /// Sends what waits, as far as the window allows.
    async fn send(&mut self) {
        // Until all that came back is known, and everything of a lost channel, nothing more is sent.
        if self.waiting.is_empty() || !self.returned.is_empty() || !self.again.is_empty() {
            return;
        }
        self.give_up_the_late();
        let Some(first) = self.waiting.front() else { return };
        let operation = self.open.get(&first.call).map_or("publish", |open| open.call.operation);
        let channel = match self.ready(operation).await {
            Ok(channel) => channel,
            Err(failure) if failure.is_transient() => {
                self.failure = Some(failure);
                self.rest().await;
                return;
            }
            Err(failure) => {
                let hopeless = std::mem::take(&mut self.waiting);
                hopeless.into_iter().for_each(|slip| self.fail(slip, &failure));
                return;
            }
        };
        let window = if self.suspected > 0 { 1 } else { WINDOW };
        while self.under_way.len() < window
            && let Some(slip) = self.waiting.pop_front()
        {
            let Some(open) = self.open.get_mut(&slip.call) else { continue };
            if !open.unroutable.is_empty() {
                // Whoever declares what is missing could let this one overtake those that came back.
                open.unroutable.push(slip.letter);
                self.suspected = self.suspected.saturating_sub(1);
                self.end(slip);
                continue;
            }
            open.call.is_sent.store(true, Ordering::Relaxed);
            let (channel, letters) = (channel.clone(), open.call.letters.clone());
            let is_copy = slip.number < self.sent_below;
            self.sent_below = self.sent_below.max(slip.number + 1);
            let mut sending = async move {
                let letter = &letters[slip.letter];
                let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
                let properties = match is_copy && letter.is_first {
                    true => wire::sent_again(&letter.properties),
                    false => letter.properties.clone(),
                };
                let publish = channel.basic_publish(
                    short(&*letter.exchange),
                    short(&*letter.key),
                    options,
                    &letter.payload,
                    properties,
                );
                let confirmation = match publish.await {
                    Ok(confirm) => confirm.await,
                    Err(failure) => Err(failure),
                };
                (slip, confirmation)
            }
            .boxed();
            // The first poll puts the frames into the driver's queue: in this order, which is the order in the broker.
            match (&mut sending).now_or_never() {
                Some(confirmed) => self.confirmed(confirmed),
                None => self.under_way.push(sending),
            }
        }
        if self.under_way.is_empty() {
            self.conclude().await;
        }
    }

    /// Those whose callers wait no more.
    fn give_up_the_late(&mut self) {
        let now = Instant::now();
        let is_late = |open: &Open| open.call.deadline <= now || open.call.reply.is_closed();
        let late: HashSet<_> =
            self.open.iter().filter(|(_, open)| is_late(open)).map(|(call, _)| *call).collect();
        if late.is_empty() {
            return;
        }
        let why = self.failure.as_ref().map_or("the broker did not confirm in time", Error::message);
        let failure = error(ErrorKind::Unavailable, "publish", why);
        let (given_up, kept) =
            self.waiting.drain(..).partition::<VecDeque<_>, _>(|slip| late.contains(&slip.call));
        self.waiting = kept;
        given_up.into_iter().for_each(|slip| self.fail(slip, &failure));
    }

    async fn ready(&mut self, operation: &'static str) -> Result<Channel> {
        if let Some(living) = self.channel.as_ref().filter(|channel| channel.status().connected()) {
            return Ok(living.clone());
        }
        let opened = self.link.channel(operation).await?;
        let select = opened.confirm_select(ConfirmSelectOptions::default()).await;
        select.map_err(|failure| translate(operation, &failure))?;
        self.channel = Some(opened.clone());
        Ok(opened)
    }

    async fn rest(&mut self) {
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(MAX_PAUSE);
    }

    fn confirmed(&mut self, (slip, confirmation): Confirmed) {
        let is_alone = self.suspected > 0;
        self.suspected = self.suspected.saturating_sub(1);
        let message = match confirmation {
            Ok(Confirmation::Ack(message)) => {
                self.confirmed.push(slip);
                message
            }
            Ok(Confirmation::Nack(message)) => {
                let text = "the broker refused a part of the call (a negative confirmation); a queue may be full by a policy";
                self.fail(slip, &error(ErrorKind::OutcomeUnknown, "publish", text));
                message
            }
            Ok(Confirmation::NotRequested) => {
                self.again.push(slip);
                None
            }
            Err(failure) => {
                match Cause::of(&failure) {
                    // Its exchange is missing. What was sent before it may be stored: told to be lost, it is repeated.
                    Cause::NotFound => {
                        if let Some(open) = self.open.get_mut(&slip.call) {
                            open.unroutable.push(slip.letter);
                        }
                        self.channel = None;
                        self.end(slip);
                        return;
                    }
                    Cause::Different if is_alone => {
                        self.fail(slip, &too_large(&failure));
                        return;
                    }
                    Cause::Refused if is_alone => {
                        self.fail(slip, &translate("publish", &failure));
                        return;
                    }
                    Cause::Different | Cause::Refused => self.is_refused = true,
                    _ => {}
                }
                self.failure = Some(translate("publish", &failure));
                self.again.push(slip);
                None
            }
        };
        if let Some(id) = message.and_then(|message| message.delivery.properties.message_id().clone()) {
            self.returned.insert(id);
        }
    }

    /// Believes what can be believed.
    async fn conclude(&mut self) {
        if !self.under_way.is_empty() && (!self.returned.is_empty() || !self.again.is_empty()) {
            return;
        }
        let returned = std::mem::take(&mut self.returned);
        for slip in std::mem::take(&mut self.confirmed) {
            let Some(open) = self.open.get_mut(&slip.call) else { continue };
            let is_returned = !returned.is_empty()
                && open.call.letters.get(slip.letter).is_some_and(|letter| returned.contains(&*letter.id));
            if is_returned {
                open.unroutable.push(slip.letter);
            }
            self.end(slip);
            self.pause = FIRST_PAUSE;
        }
        if self.again.is_empty() {
            return;
        }
        tracing::debug!(
            letters = self.again.len(),
            "the publishing channel was lost, what is not confirmed is sent again"
        );
        self.channel = None;
        let is_refused = std::mem::take(&mut self.is_refused);
        if is_refused || self.suspected > 0 {
            self.suspected += self.again.len();
        }
        self.again.sort_unstable();
        for slip in std::mem::take(&mut self.again).into_iter().rev() {
            self.waiting.push_front(slip);
        }
        if !is_refused {
            self.rest().await;
        }
    }

    fn fail(&mut self, slip: Slip, failure: &Error) {
        if let Some(open) = self.open.get_mut(&slip.call) {
            // What was sent and not confirmed may be stored.
            let is_unknown =
                open.call.is_sent.load(Ordering::Relaxed) && failure.kind() == ErrorKind::Unavailable;
            let kind = if is_unknown { ErrorKind::OutcomeUnknown } else { failure.kind() };
            open.failure = Some(error(kind, open.call.operation, failure.message()));
        }
        self.end(slip);
    }

    /// Nothing more will become of a letter. The last one of a call answers it.
    fn end(&mut self, slip: Slip) {
        let Some(open) = self.open.get_mut(&slip.call) else { return };
        open.left -= 1;
        if open.left > 0 {
            return;
        }
        let Some(Open { call, mut unroutable, failure, .. }) = self.open.remove(&slip.call) else { return };
        unroutable.sort_unstable();
        let result = match failure {
            Some(failure) => Err(Unsent::Failed(failure)),
            None if unroutable.is_empty() => Ok(()),
            None => Err(Unsent::Unroutable(unroutable)),
        };
        // Its caller may have given it up.
        let _ = call.reply.send(result);
    }
}

#[cfg(test)]
mod tests {
    use event_bus_conformance::servers;
    use lapin::options::QueueDeclareOptions;
    use lapin::types::FieldTable;

    use super::*;
    use crate::config::AmqpConfig;
    use crate::topology::look;

    fn letter(number: usize, task: usize) -> Letter {
        // Two of three have nowhere to go, in no pattern that lines up with anything.
        let key = if (number * 7 + task).is_multiple_of(3) { "somewhere" } else { "nowhere" };
        let id = format!("{task}/{number}");
        let properties = BasicProperties::default().with_message_id(short(&*id));
        let payload = Bytes::from_static(b"x");
        Letter { exchange: "".into(), key: key.to_owned(), id, payload, properties, is_first: true }
    }

    /// The driver hangs what comes back on other messages' confirmations; nobody is told a wrong outcome for that.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_comes_back_is_told_apart_however_many_are_under_way() {
        let vhost = servers::rabbitmq().await.vhost().await;
        let link = Arc::new(Link::new(Arc::new(AmqpConfig::from_url(vhost.url()).unwrap()), "test"));
        let channel = link.channel("test").await.unwrap();
        let options = QueueDeclareOptions::default();
        channel.queue_declare(short("somewhere"), options, FieldTable::default()).await.unwrap();
        let publisher = Arc::new(Publisher::new(link, 2));
        let mut tasks = Vec::new();
        for task in 0..12 {
            let publisher = publisher.clone();
            tasks.push(tokio::spawn(async move {
                let mut stored = 0;
                let mut number = 0;
                while number < 600 {
                    let size = 1 + (number + task) % 5;
                    let letters: Vec<_> =
                        (number..number + size).map(|number| letter(number, task)).collect();
                    number += size;
                    let lost: Vec<_> = (0..size).filter(|at| letters[*at].key == "nowhere").collect();
                    stored += size - lost.len();
                    let deadline = Instant::now() + Duration::from_secs(60);
                    match publisher.send("test", letters.into(), deadline).await {
                        Ok(()) => assert!(lost.is_empty(), "{lost:?} came back and were called stored"),
                        Err(Unsent::Unroutable(told)) => assert_eq!(told, lost),
                        Err(Unsent::Failed(failure)) => panic!("{failure}"),
                    }
                }
                stored
            }));
        }
        let mut stored = 0;
        for task in tasks {
            stored += task.await.unwrap();
        }
        let (messages, _) = look(&channel, "somewhere").await.unwrap();
        assert_eq!(messages as usize, stored);
    }
}
