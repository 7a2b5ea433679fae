//! Sends messages and learns what became of each.
//!
//! One task owns each publishing channel. It takes what waits, up to a window, sends it, and answers only when *every*
//! confirmation of the window is in: the driver hangs a returned (unroutable) message on whichever confirmation completes
//! next, so only the whole window tells by their ids which ones came back. Confirmed and not returned is stored.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use event_bus_core::{Error, ErrorKind, Result};
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, PublisherConfirm};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::error::{error, translate};
use crate::link::Link;
use crate::topology::short;

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
}

/// Why a call was not stored whole.
#[derive(Debug)]
pub(crate) enum Unsent {
    /// These letters (positions in the call) reached no queue; all others are stored.
    Unroutable(Vec<usize>),
    /// Nothing is known of some letters, or nothing was sent.
    Failed(Error),
}

struct Call {
    letters: Vec<Letter>,
    operation: &'static str,
    deadline: Instant,
    /// Told when the first letter was sent: from then on the outcome is unknown until it is confirmed.
    sent: Arc<Mutex<bool>>,
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
        letters: Vec<Letter>,
        deadline: Instant,
    ) -> Result<(), Unsent> {
        if letters.is_empty() {
            return Ok(());
        }
        let (reply, answer) = oneshot::channel();
        let sent = Arc::new(Mutex::new(false));
        let call = Call { letters, operation, deadline, sent: sent.clone(), reply };
        let channel = self.channel();
        let exchange = async {
            // It fails only if its task died with the runtime; then the answer fails as well.
            let _ = channel.send(call).await;
            answer.await
        };
        match tokio::time::timeout_at(deadline, exchange).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Unsent::Failed(out_of_time(operation, &sent, "the publishing task ended"))),
            Err(_) => {
                let message = "the broker did not confirm in time; look for a memory or disk alarm";
                Err(Unsent::Failed(out_of_time(operation, &sent, message)))
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

fn out_of_time(operation: &'static str, sent: &Mutex<bool>, message: &str) -> Error {
    let was_sent = *sent.lock().unwrap_or_else(PoisonError::into_inner);
    let kind = if was_sent { ErrorKind::OutcomeUnknown } else { ErrorKind::Unavailable };
    error(kind, operation, message)
}

/// What became of a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Open,
    Stored,
    Unroutable,
    Refused,
}

/// A letter of a window: whose it is.
struct Slot {
    call: usize,
    letter: usize,
    fate: Fate,
}

/// The task of one channel.
async fn dispatch(link: Arc<Link>, mut calls: mpsc::Receiver<Call>) {
    let mut channel: Option<Channel> = None;
    while let Some(first) = calls.recv().await {
        let mut count = first.letters.len();
        let mut window = vec![first];
        while count < WINDOW
            && let Ok(call) = calls.try_recv()
        {
            count += call.letters.len();
            window.push(call);
        }
        serve(&link, &mut channel, window).await;
    }
}

/// Sends the calls of a window until each is answered or given up by its caller.
async fn serve(link: &Link, channel: &mut Option<Channel>, window: Vec<Call>) {
    let mut slots: Vec<Slot> = Vec::new();
    for (number, call) in window.iter().enumerate() {
        slots.extend((0..call.letters.len()).map(|letter| Slot { call: number, letter, fate: Fate::Open }));
    }
    let mut pause = FIRST_PAUSE;
    let mut last_failure = None;
    loop {
        let is_given_up = |call: &Call| call.reply.is_closed() || Instant::now() >= call.deadline;
        let given_up: Vec<_> = window.iter().map(is_given_up).collect();
        let open: Vec<_> = (0..slots.len())
            .filter(|slot| slots[*slot].fate == Fate::Open && !given_up[slots[*slot].call])
            .collect();
        if open.is_empty() {
            break;
        }
        match ready_channel(link, channel, window[slots[open[0]].call].operation).await {
            Ok(ready) => {
                let mut failure = None;
                for part in open.chunks(WINDOW) {
                    if let Err(problem) = send_part(&ready, &window, &mut slots, part).await {
                        failure = Some(problem);
                        break;
                    }
                }
                let Some(problem) = failure else { break };
                tracing::debug!(error = %problem, "the publishing channel was lost, what is not confirmed is sent again");
                last_failure = Some(translate("publish", &problem));
                *channel = None;
            }
            Err(problem) => {
                let is_final = !problem.is_transient();
                last_failure = Some(problem);
                *channel = None;
                if is_final {
                    break;
                }
            }
        }
        let latest = window.iter().filter(|call| !call.reply.is_closed()).map(|call| call.deadline).max();
        let Some(latest) = latest else { break };
        tokio::time::sleep_until(latest.min(Instant::now() + pause)).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
    answer(window, &slots, last_failure);
}

fn answer(window: Vec<Call>, slots: &[Slot], failure: Option<Error>) {
    let failure = failure.map(|failure| (failure.kind(), failure.message().to_owned()));
    for (number, call) in window.into_iter().enumerate() {
        let mine = || slots.iter().filter(|slot| slot.call == number);
        let result = if mine().any(|slot| slot.fate == Fate::Refused) {
            let message = "the broker refused a part of the call (a negative confirmation); a queue may be full by a policy";
            Err(Unsent::Failed(error(ErrorKind::OutcomeUnknown, call.operation, message)))
        } else if mine().any(|slot| slot.fate == Fate::Open) {
            let was_sent = *call.sent.lock().unwrap_or_else(PoisonError::into_inner);
            let (kind, message) = failure
                .clone()
                .unwrap_or((ErrorKind::Unavailable, "the broker did not confirm in time".into()));
            let kind =
                if was_sent && kind == ErrorKind::Unavailable { ErrorKind::OutcomeUnknown } else { kind };
            Err(Unsent::Failed(error(kind, call.operation, message)))
        } else {
            let lost: Vec<_> =
                mine().filter(|slot| slot.fate == Fate::Unroutable).map(|slot| slot.letter).collect();
            if lost.is_empty() { Ok(()) } else { Err(Unsent::Unroutable(lost)) }
        };
        // Nobody waits any more for a call that was given up.
        let _ = call.reply.send(result);
    }
}

async fn ready_channel(
    link: &Link,
    channel: &mut Option<Channel>,
    operation: &'static str,
) -> Result<Channel> {
    if let Some(living) = channel.as_ref().filter(|channel| channel.status().connected()) {
        return Ok(living.clone());
    }
    let opened = link.channel(operation).await?;
    opened
        .confirm_select(ConfirmSelectOptions::default())
        .await
        .map_err(|failure| translate(operation, &failure))?;
    *channel = Some(opened.clone());
    Ok(opened)
}

/// A publish under way: first its frames go out, then its confirmation comes.
enum Sending<'a> {
    Frames(BoxFuture<'a, lapin::Result<PublisherConfirm>>),
    Confirmed(PublisherConfirm),
    Failed(lapin::Error),
}

/// Sends a part of the window and waits for all of its confirmations. An error says that the channel is lost; what is still
/// open then was perhaps stored, and is sent again in order: its queue sees a rewind, never an inversion.
async fn send_part(
    channel: &Channel,
    window: &[Call],
    slots: &mut [Slot],
    part: &[usize],
) -> Result<(), lapin::Error> {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let mut sending = Vec::with_capacity(part.len());
    for slot in part {
        let call = &window[slots[*slot].call];
        let letter = &call.letters[slots[*slot].letter];
        *call.sent.lock().unwrap_or_else(PoisonError::into_inner) = true;
        let publish = channel.basic_publish(
            short(&*letter.exchange),
            short(&*letter.key),
            options,
            &letter.payload,
            letter.properties.clone(),
        );
        // The first poll puts the frames into the driver's queue: in this order, which is the order in the broker.
        let mut publish = publish.boxed();
        sending.push(match (&mut publish).now_or_never() {
            None => Sending::Frames(publish),
            Some(Ok(confirm)) => Sending::Confirmed(confirm),
            Some(Err(failure)) => Sending::Failed(failure),
        });
    }
    let confirmations = join_all(sending.into_iter().map(|sending| async {
        match sending {
            Sending::Frames(publish) => publish.await?.await,
            Sending::Confirmed(confirm) => confirm.await,
            Sending::Failed(failure) => Err(failure),
        }
    }))
    .await;
    let mut failure = None;
    let mut returned = HashSet::new();
    for (slot, confirmation) in part.iter().zip(confirmations) {
        let (fate, message) = match confirmation {
            Ok(Confirmation::Ack(message)) => (Fate::Stored, message),
            Ok(Confirmation::Nack(message)) => (Fate::Refused, message),
            Ok(Confirmation::NotRequested) => (Fate::Open, None),
            Err(problem) => {
                failure = Some(problem);
                (Fate::Open, None)
            }
        };
        slots[*slot].fate = fate;
        if let Some(id) = message.and_then(|message| message.delivery.properties.message_id().clone()) {
            returned.insert(id);
        }
    }
    if !returned.is_empty() {
        for slot in part {
            let slot = &mut slots[*slot];
            if returned.contains(&*window[slot.call].letters[slot.letter].id) && slot.fate == Fate::Stored {
                slot.fate = Fate::Unroutable;
            }
        }
    }
    match failure {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}
