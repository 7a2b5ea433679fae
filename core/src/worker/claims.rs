//! When to ask the store for more, and how much.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::{ClaimRequest, Claimed, HandlerSpec, Notice, Session};
use crate::clock::Randomness;
use crate::delivery::{HandlerIndex, Partition};
use crate::error::{Error, Result};

use super::call::{Call, Pause};
use super::lanes::Lanes;
use super::settle::is_fatal;

/// The payloads a worker holds in memory, at most (the one that crosses the limit included).
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// The first pause between two looks into an empty store; it doubles up to the configured poll interval.
const FIRST_IDLE: Duration = Duration::from_millis(50);

/// What a claim asked for and what it brought.
pub(super) type Answer = (Arc<ClaimRequest>, Claimed);

/// Claims one at a time: when a notice, the last answer or the poll timer says that there may be something, and a quarter
/// of a handler's window is free.
pub(super) struct Claims {
    session: Arc<dyn Session>,
    by_priority: Vec<HandlerIndex>,
    may_have: Vec<bool>,
    call: Call<Result<Claimed>>,
    asked: Option<Arc<ClaimRequest>>,
    pause: Pause,
    notice: Pin<Box<dyn Future<Output = Notice> + Send>>,
    idle: Duration,
    poll_interval: Duration,
    next_look: Instant,
    /// Partitions that were lost while a claim was under way.
    lost_meanwhile: Vec<Partition>,
    /// An answer has been received and not been taken in.
    has_answer: bool,
}

impl Claims {
    pub(super) fn new(session: Arc<dyn Session>, handlers: &[HandlerSpec], poll_interval: Duration) -> Self {
        let mut by_priority: Vec<_> = (0..handlers.len()).collect();
        by_priority.sort_by_key(|position| handlers[*position].priority);
        Self {
            notice: next_notice(session.clone()),
            session,
            by_priority: by_priority
                .into_iter()
                .filter_map(|p| u32::try_from(p).ok().map(HandlerIndex))
                .collect(),
            may_have: vec![true; handlers.len()],
            call: Call::none(),
            asked: None,
            pause: Pause::new(Duration::from_millis(50), Duration::from_secs(5)),
            idle: FIRST_IDLE.min(poll_interval),
            poll_interval,
            next_look: Instant::now() + poll_interval,
            lost_meanwhile: Vec::new(),
            has_answer: false,
        }
    }

    /// Whether the store may have something for this handler.
    pub(super) fn may_have(&self, handler: HandlerIndex) -> bool {
        self.may_have.get(handler.get()).copied().unwrap_or(false)
    }

    /// There may be something to claim.
    pub(super) fn look(&mut self) {
        self.may_have.fill(true);
        self.idle = FIRST_IDLE.min(self.poll_interval);
    }

    /// Something becomes due in this long.
    pub(super) fn look_in(&mut self, delay: Duration, now: Instant) {
        self.next_look = self.next_look.min(now + delay);
    }

    /// When to look without being told to.
    pub(super) fn next_look(&self) -> Instant {
        self.next_look
    }

    /// Looks if it is time to.
    pub(super) fn look_if_due(&mut self, now: Instant) {
        if now >= self.next_look {
            self.may_have.fill(true);
            self.next_look = now + self.idle;
        }
    }

    /// Asks for what there is room for.
    pub(super) fn send(&mut self, lanes: &mut Lanes) {
        if self.call.is_under_way() || self.pause.is_waiting() || lanes.bytes() >= MAX_BYTES {
            return;
        }
        let wanted = self.by_priority.iter().filter(|handler| self.may_have(**handler));
        let mut demands: Vec<_> = wanted.filter_map(|handler| lanes.demand(*handler)).collect();
        let lane_demands = if lanes.wants_lanes() { lanes.lane_demands(&mut demands) } else { Vec::new() };
        if demands.is_empty() && lane_demands.is_empty() {
            return;
        }
        for demand in &demands {
            self.may_have[demand.handler.get()] = false;
        }
        let request =
            Arc::new(ClaimRequest { demands, lanes: lane_demands, max_bytes: MAX_BYTES - lanes.bytes() });
        self.asked = Some(request.clone());
        let session = self.session.clone();
        self.call.start(async move { session.claim(&request).await });
    }

    /// Whether a claim has been sent whose answer has not been taken in.
    pub(super) fn is_under_way(&self) -> bool {
        self.call.is_under_way() || self.has_answer
    }

    /// The right to a partition is gone: what a claim that is under way brings of it must not run.
    pub(super) fn lost(&mut self, partition: Partition) {
        if self.is_under_way() {
            self.lost_meanwhile.push(partition);
        }
    }

    /// A claim's answer with its request, or the error that ends the session. After a transient error there is a pause;
    /// `None` says that it is over. (The next turn asks again, when everything that happened meanwhile is taken in.)
    pub(super) fn poll_claimed(
        &mut self,
        task: &mut TaskContext<'_>,
        lanes: &mut Lanes,
        randomness: &Randomness,
    ) -> Poll<Result<Option<Answer>, Error>> {
        loop {
            if self.pause.poll(task).is_ready() {
                return Poll::Ready(Ok(None));
            }
            let answer = match self.call.poll(task) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(answer) => answer,
            };
            let Some(asked) = self.asked.take() else { continue };
            match answer {
                Ok(claimed) => {
                    self.pause.reset();
                    self.plan_next_look(&claimed, randomness.fraction());
                    self.has_answer = true;
                    for handler in &claimed.more {
                        if let Some(may_have) = self.may_have.get_mut(handler.get()) {
                            *may_have = true;
                        }
                    }
                    return Poll::Ready(Ok(Some((asked, claimed))));
                }
                Err(error) if is_fatal(&error) => return Poll::Ready(Err(error)),
                Err(error) => {
                    self.lost_meanwhile.clear();
                    self.may_have.fill(true);
                    lanes.ask_again(&asked.lanes);
                    let pause = self.pause.start(randomness.fraction());
                    tracing::warn!(
                        error = crate::error::chain(&error),
                        ?pause,
                        "claim failed, will be repeated"
                    );
                }
            }
        }
    }

    /// Drops from an answer what belongs to partitions that were lost meanwhile.
    pub(super) fn drop_lost(&mut self, claimed: &mut Claimed) {
        self.has_answer = false;
        let lost = std::mem::take(&mut self.lost_meanwhile);
        if !lost.is_empty() {
            claimed.deliveries.retain(|delivery| !lost.contains(&delivery.partition));
            claimed.parked.retain(|lane| !lost.contains(&lane.partition));
            claimed.still_parked.retain(|lane| !lost.contains(&lane.partition));
        }
    }

    /// What the session reports by itself.
    pub(super) fn poll_notice(&mut self, task: &mut TaskContext<'_>) -> Poll<Notice> {
        match self.notice.as_mut().poll(task) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(notice) => {
                self.notice = next_notice(self.session.clone());
                Poll::Ready(notice)
            }
        }
    }

    fn plan_next_look(&mut self, claimed: &Claimed, fraction: f64) {
        if claimed.deliveries.is_empty() {
            self.idle = (self.idle * 2).min(self.poll_interval);
        } else {
            self.idle = FIRST_IDLE.min(self.poll_interval);
        }
        let pause = self.idle.mul_f64(1.0 - 0.2 * fraction);
        let pause = claimed.next_due_in.map_or(pause, |due_in| pause.min(due_in));
        self.next_look = Instant::now() + pause;
    }
}

fn next_notice(session: Arc<dyn Session>) -> Pin<Box<dyn Future<Output = Notice> + Send>> {
    Box::pin(async move { session.wait().await })
}
