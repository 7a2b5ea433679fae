//! Keeps a worker alive, watches the others and moves slots: one task a session.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use event_bus_core::ErrorKind;
use event_bus_core::backend::{DeliveryId, HandlerIndex, Partition};
use event_bus_core::clock::BootTime;

use crate::error::Failure;
use crate::ids;
use crate::leases::{Member, Vacancies, Watch};
use crate::link::Link;
use crate::reply::Reply;
use crate::script;
use crate::worker::{Owned, Worker};

/// How long a worker trusts its last answered beat, in parts of its lease. What is left is for clocks that differ.
pub(crate) const TRUST: f64 = 0.8;

/// How often a worker shows that it lives, in parts of its lease.
const BEAT: f64 = 0.25;

/// The shortest pause between two beats, however many workers come and go.
const MIN_PAUSE: Duration = Duration::from_millis(5);

/// The keeper.
pub(crate) struct Keeper {
    worker: Arc<Worker>,
    link: Link,
    lease: Duration,
    watch: Watch,
    vacancies: Vacancies,
    /// Since when the store has known another run of the server than the present one.
    other_run_since: Option<BootTime>,
    /// The run is to be accepted with the next beat: whoever had rights in the one before has lost them by now.
    accepts_run: bool,
}

/// What a beat brought.
struct View {
    run: String,
    members: Vec<Member>,
    owners: Vec<HashMap<u16, String>>,
}

impl Keeper {
    pub(crate) fn new(worker: Arc<Worker>, link: Link) -> Self {
        let lease = worker.shared.config.lease;
        Self {
            worker,
            link,
            lease,
            watch: Watch::default(),
            vacancies: Vacancies::default(),
            other_run_since: None,
            accepts_run: false,
        }
    }

    /// Beats until the session is over.
    pub(crate) async fn keep(mut self) {
        let interval = self.lease.mul_f64(BEAT);
        while !self.worker.is_over() {
            let pause = match self.beat().await {
                Ok(true) => MIN_PAUSE,
                // Those who live have moved by then, and this is not reached for them.
                Ok(false) => {
                    let verdict = self.watch.next_verdict().map(|verdict| verdict.since(BootTime::now()));
                    verdict.map_or(interval, |verdict| verdict.clamp(MIN_PAUSE, interval))
                }
                Err(failure) => {
                    if failure.is_passing() {
                        tracing::warn!(%failure, "the server did not hear that this worker lives, trying again");
                    } else {
                        self.worker.failed("beat", failure);
                    }
                    interval / 4
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // Several who come and go at once shall cost one look.
                () = self.worker.moves.notified() => tokio::time::sleep(MIN_PAUSE).await,
            }
        }
    }

    /// One beat and what follows from it. True: there is more to be done at once.
    pub(crate) async fn beat(&mut self) -> Result<bool, Failure> {
        let sent = BootTime::now();
        let Some(view) = self.look().await? else { return Ok(false) };
        let answered = BootTime::now();
        self.worker.trust_until(sent.plus(self.lease.mul_f64(TRUST)));

        let others: Vec<_> = view
            .members
            .iter()
            .filter(|member| member.incarnation != self.worker.incarnation)
            .cloned()
            .collect();
        let mut has_changed = false;
        for (dead, beat) in self.watch.look(&others, sent, answered) {
            has_changed |= self.bury(&dead, &beat).await?;
        }
        if !self.may_take(&view, sent, answered) {
            return Ok(false);
        }
        if has_changed {
            return Ok(true);
        }
        self.move_slots(&view, answered).await?;
        Ok(false)
    }

    /// After the server was started again, or another took its place, what the store says of rights may be old. Nobody
    /// takes any until the trust of everybody who had some has run out.
    fn may_take(&mut self, view: &View, sent: BootTime, answered: BootTime) -> bool {
        if view.run == *self.worker.run {
            self.other_run_since = None;
            self.accepts_run = false;
            return true;
        }
        let since = *self.other_run_since.get_or_insert(answered);
        let longest =
            view.members.iter().map(|member| member.lease).max().unwrap_or_default().max(self.lease);
        if sent.since(since) >= longest {
            self.accepts_run = true;
            self.worker.moves.notify_one();
        }
        false
    }

    async fn look(&self) -> Result<Option<View>, Failure> {
        let worker = &self.worker;
        let mut call = script::BEAT.call(&worker.shared.base);
        call.arg(&worker.incarnation).arg(if self.accepts_run { &*worker.run } else { "" });
        for handler in worker.handlers.iter() {
            call.arg(&*handler.name);
        }
        let mut reply = self.link.eval(&call).await?;
        if reply.text()? != "OK" {
            worker.fenced("beat");
            return Ok(None);
        }
        let run = reply.text()?;
        let beats = pairs(reply.array()?)?;
        let registrations: HashMap<_, _> = pairs(reply.array()?)?.into_iter().collect();
        let members = beats
            .into_iter()
            .map(|(incarnation, beat)| {
                let registration = registrations.get(&incarnation).map_or("", String::as_str);
                Member::read(incarnation, beat, registration, self.lease)
            })
            .collect();
        let mut owners = Vec::with_capacity(worker.handlers.len());
        for _ in worker.handlers.iter() {
            let fields = pairs(reply.array()?)?.into_iter();
            let owner =
                |(field, owner): (String, String)| Some((field.strip_prefix('o')?.parse().ok()?, owner));
            owners.push(fields.filter_map(owner).collect());
        }
        Ok(Some(View { run, members, owners }))
    }

    /// Declares another worker dead. False: it lives, or somebody else was faster.
    async fn bury(&self, dead: &str, beat: &str) -> Result<bool, Failure> {
        let worker = &self.worker;
        let mut call = script::LEAVE.call(&worker.shared.base);
        call.arg(&worker.incarnation).arg(dead).arg("lost").arg(beat);
        let word = self.link.eval(&call).await?.text()?;
        match &*word {
            "OK" => {
                tracing::warn!(worker = dead, "a worker has vanished; others take over what it had");
                worker.work.notify_one();
                Ok(true)
            }
            "FENCED" => {
                worker.fenced("beat");
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    async fn move_slots(&mut self, view: &View, now: BootTime) -> Result<(), Failure> {
        let worker = self.worker.clone();
        let mut has_acquired = false;
        for ((index, handler), owners) in worker.indices().zip(&view.owners) {
            let moves = {
                let slots = worker.slots();
                self.vacancies.decide(
                    &worker.incarnation,
                    &view.members,
                    (index.get(), &handler.name),
                    owners,
                    |slot| slots.contains_key(&(index, slot)),
                    self.lease * 2,
                    now,
                )
            };
            for slot in moves.revoke {
                let is_new = worker.slots().get_mut(&(index, slot)).is_some_and(|owned| {
                    let was_revoked = std::mem::replace(&mut owned.is_revoked, true);
                    !was_revoked
                });
                if is_new {
                    worker.revoke((index, slot));
                }
            }
            if !moves.acquire.is_empty() {
                has_acquired |= self.acquire(index, &handler.name, &moves.acquire).await?;
            }
        }
        if has_acquired {
            worker.work.notify_one();
        }
        Ok(())
    }

    async fn acquire(&self, handler: HandlerIndex, name: &str, slots: &[u16]) -> Result<bool, Failure> {
        let worker = &self.worker;
        let mut call = script::ACQUIRE.call(&worker.shared.base);
        call.arg(&worker.incarnation).arg(&*worker.run).arg(name);
        for slot in slots {
            call.arg(*slot);
        }
        let mut reply = self.link.eval(&call).await?;
        if reply.text()? != "OK" {
            worker.fenced("beat");
            return Ok(false);
        }
        let has_acquired = !reply.is_empty();
        while !reply.is_empty() {
            let number = u16::try_from(reply.number()?)
                .map_err(|_| Failure::Garbled("a slot is out of range".to_owned()))?;
            let epoch = reply.count()?;
            let mut unreported = Vec::new();
            for _ in 0..reply.count()? {
                let key: std::sync::Arc<str> = reply.text()?.into();
                unreported.extend(ids::parse(&reply.bytes()?).map(|first| (key, first)));
            }
            let partition = Partition { handler, number };
            {
                let mut held = worker.held();
                for (key, _) in &unreported {
                    held.parked(partition, key.clone(), DeliveryId(0));
                }
            }
            let owned = Owned {
                epoch,
                cursor: DeliveryId(0),
                unreported,
                returned: std::collections::BTreeMap::new(),
                is_revoked: false,
                has_news: true,
            };
            worker.slots().insert((handler, number), owned);
        }
        Ok(has_acquired)
    }
}

/// Ends the session when its right can no longer be proved. Apart from the keeper, which may wait for an answer.
pub(crate) async fn guard(worker: Arc<Worker>) {
    // A clock that ran on while the machine slept is looked at this often, whatever timers do.
    let longest = worker.shared.config.lease / 20;
    while !worker.is_over() {
        let left = worker.trusted_until().since(BootTime::now());
        if left.is_zero() {
            worker.end(
                ErrorKind::LeaseLost,
                format!("the server {} did not confirm this worker in time", worker.shared.server),
            );
            return;
        }
        tokio::time::sleep(left.min(longest)).await;
    }
}

fn pairs(mut reply: Reply) -> Result<Vec<(String, String)>, Failure> {
    let mut pairs = Vec::new();
    while !reply.is_empty() {
        pairs.push((reply.text()?, reply.text()?));
    }
    Ok(pairs)
}
