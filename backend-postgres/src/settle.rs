//! Storing outcomes.

use event_bus_core::Result;
use event_bus_core::backend::{ErrorLog, Outcome, SettleBatch};
use event_bus_core::clock::BootTime;
use sqlx::postgres::PgConnection;

use crate::connection::At;
use crate::keeper::Keeper;
use crate::publish::delay_ms;
use crate::row;
use crate::store::{self, Places, Verdicts, Waits};

/// A batch, sorted by what the store has to do.
#[derive(Default)]
struct Sorted {
    complete: Places,
    start: Places,
    attempts: Vec<i32>,
    in_place: Waits,
    apart: Waits,
    dead: Verdicts,
    release: Places,
    park: Places,
    /// What leaves this session's hands with it.
    leaving: Vec<i64>,
    /// What leaves them when core knows it.
    returning: Vec<i64>,
}

fn small(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn bytes(errors: &ErrorLog) -> Option<Vec<u8>> {
    (!errors.is_empty()).then(|| errors.as_bytes().to_vec())
}

impl Waits {
    fn push(&mut self, place: row::Place, delay: i64, failed: Option<(u32, &ErrorLog)>) {
        self.places.push(place);
        self.delays.push(delay);
        self.failures.push(failed.map(|(failures, _)| small(failures)));
        self.errors.push(failed.and_then(|(_, errors)| bytes(errors)));
    }
}

impl Sorted {
    /// How many statements it takes.
    fn statements(&self) -> usize {
        let lists = [
            &self.complete,
            &self.start,
            &self.in_place.places,
            &self.apart.places,
            &self.dead.places,
            &self.release,
            &self.park,
        ];
        lists.iter().filter(|list| !list.is_empty()).count()
    }

    async fn store(&self, at: At<'_>, connection: &mut PgConnection) -> sqlx::Result<()> {
        match self.statements() {
            0 => Ok(()),
            1 => self.steps(at, connection).await,
            _ => {
                // Nobody cancels the task that owns this connection, so the transaction cannot be left open.
                store::run_script(connection, "begin".to_owned()).await?;
                match self.steps(at, connection).await {
                    Ok(()) => store::run_script(connection, "commit".to_owned()).await,
                    Err(failure) => {
                        store::run_script(connection, "rollback".to_owned()).await?;
                        Err(failure)
                    }
                }
            }
        }
    }

    async fn steps(&self, at: At<'_>, connection: &mut PgConnection) -> sqlx::Result<()> {
        if !self.complete.is_empty() {
            store::complete(at, connection, &self.complete).await?;
        }
        if !self.start.is_empty() {
            store::start(at, connection, &self.start, &self.attempts).await?;
        }
        if !self.in_place.places.is_empty() {
            store::wait_in_place(at, connection, &self.in_place).await?;
        }
        if !self.apart.places.is_empty() {
            store::wait_apart(at, connection, &self.apart).await?;
        }
        if !self.dead.places.is_empty() {
            store::bury(at, connection, &self.dead).await?;
        }
        if !self.release.is_empty() {
            store::let_go(at, connection, &self.release).await?;
        }
        if !self.park.is_empty() {
            store::park(at, connection, &self.park).await?;
        }
        Ok(())
    }
}

impl Keeper {
    /// Stores outcomes. What this session does not hold is ignored.
    pub(crate) async fn settle(&mut self, batch: &SettleBatch) -> Result<()> {
        let sorted = self.sort(batch);
        let sent_at = BootTime::now();
        let stored = sorted.store(self.shared.at(), &mut self.connection).await;
        self.heard("settle", sent_at, stored)?;
        for id in &sorted.leaving {
            self.held.remove(id);
        }
        self.given_back.extend(sorted.returning);
        for park in &batch.parks {
            let leases = self.leases.get_mut(park.partition.handler.get());
            if let Some(lease) = leases.and_then(|leases| leases.get_mut(&row::slot(park.partition))) {
                lease.is_clogged = true;
            }
        }
        Ok(())
    }

    fn sort(&self, batch: &SettleBatch) -> Sorted {
        let mut sorted = Sorted::default();
        for settlement in &batch.settlements {
            let delivery = &settlement.delivery;
            let Some(id) = row::private_id(delivery.id).filter(|id| self.held.contains_key(id)) else {
                continue;
            };
            let Some(place) = self.place_of(delivery.partition, id) else { continue };
            match &settlement.outcome {
                Outcome::Complete => {
                    sorted.complete.push(place);
                    sorted.leaving.push(id);
                }
                Outcome::Start { attempt } => {
                    sorted.start.push(place);
                    sorted.attempts.push(small(*attempt));
                }
                Outcome::Retry { failures, delay, errors, keeps_place } => {
                    let failed = Some((*failures, errors));
                    if *keeps_place {
                        sorted.in_place.push(place, delay_ms(*delay), failed);
                    } else {
                        sorted.apart.push(place, delay_ms(*delay), failed);
                        sorted.leaving.push(id);
                    }
                }
                Outcome::Snooze { delay, keeps_place } => {
                    if *keeps_place {
                        sorted.in_place.push(place, delay_ms(*delay), None);
                    } else {
                        sorted.apart.push(place, delay_ms(*delay), None);
                        sorted.leaving.push(id);
                    }
                }
                Outcome::Dead { reason, failures, errors, holds_key } => {
                    sorted.dead.places.push(place);
                    sorted.dead.reasons.push(reason.as_str());
                    sorted.dead.failures.push(small(*failures));
                    sorted.dead.errors.push(bytes(errors));
                    sorted.dead.holds_key.push(*holds_key);
                    sorted.leaving.push(id);
                }
                Outcome::Release => {
                    sorted.release.push(place);
                    sorted.returning.push(id);
                }
            }
        }
        for park in &batch.parks {
            let leases = self.leases.get(park.partition.handler.get());
            if !leases.is_some_and(|leases| leases.contains_key(&row::slot(park.partition))) {
                continue;
            }
            // The first one may be the marker of a held key, which this session does not hold as a delivery any more.
            let mut ids: Vec<_> =
                [&park.from].into_iter().chain(&park.claimed).filter_map(|id| row::private_id(*id)).collect();
            ids.sort_unstable();
            ids.dedup();
            for id in ids {
                if let Some(place) = self.place_of(park.partition, id) {
                    sorted.park.push(place);
                    sorted.leaving.push(id);
                }
            }
        }
        sorted
    }
}
