//! Who should own which slot, and who is dead: pure, with time as an argument.
//!
//! A worker raises a counter; another may declare it dead only after it has watched that counter stand still for the whole
//! lease of the watched one, by its own clock. The worker's own trust ends earlier: 0.8 leases after it *sent* its last
//! answered beat. So whatever the network did, and whatever anybody's wall clock says, the owner has stopped before
//! somebody follows it, as long as two clocks' rates differ by less than a tenth.

use std::collections::HashMap;
use std::time::Duration;

use event_bus_core::SLOTS;
use event_bus_core::clock::BootTime;
use xxhash_rust::xxh3::xxh3_64;

/// What a worker said about itself when it came.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Member {
    pub(crate) incarnation: String,
    pub(crate) beat: String,
    pub(crate) lease: Duration,
    pub(crate) handlers: Vec<String>,
}

impl Member {
    /// Reads `lease_ms handler handler …`, as [`registration`] writes it.
    pub(crate) fn read(
        incarnation: String,
        beat: String,
        registration: &str,
        default_lease: Duration,
    ) -> Self {
        let mut words = registration.split(' ');
        let lease =
            words.next().and_then(|word| word.parse().ok()).map_or(default_lease, Duration::from_millis);
        Self { incarnation, beat, lease, handlers: words.map(str::to_owned).collect() }
    }
}

/// How a worker registers.
pub(crate) fn registration<'a>(lease: Duration, handlers: impl Iterator<Item = &'a str>) -> String {
    let lease = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX).to_string();
    handlers.fold(lease, |text, handler| text + " " + handler)
}

/// Watches the counters of the others.
#[derive(Default)]
pub(crate) struct Watch(HashMap<String, Watched>);

struct Watched {
    beat: String,
    since: BootTime,
    lease: Duration,
}

impl Watch {
    /// Takes in what one look brought, which was sent and answered at these times. Returns those that are dead, with the
    /// counter at which they stood still.
    pub(crate) fn look(
        &mut self,
        members: &[Member],
        sent: BootTime,
        answered: BootTime,
    ) -> Vec<(String, String)> {
        self.0.retain(|known, _| members.iter().any(|member| member.incarnation == *known));
        let mut dead = Vec::new();
        for member in members {
            match self.0.get(&member.incarnation) {
                Some(watched) if watched.beat == member.beat => {
                    if sent.since(watched.since) >= member.lease {
                        dead.push((member.incarnation.clone(), member.beat.clone()));
                    }
                }
                _ => {
                    let watched = Watched { beat: member.beat.clone(), since: answered, lease: member.lease };
                    self.0.insert(member.incarnation.clone(), watched);
                }
            }
        }
        dead
    }

    /// When somebody can be declared dead at the earliest, if nobody moves.
    pub(crate) fn next_verdict(&self) -> Option<BootTime> {
        self.0.values().map(|watched| watched.since.plus(watched.lease)).min()
    }
}

/// Who should own a slot: the same answer in every worker (rendezvous hashing), and when somebody comes or goes only that
/// one's share moves.
pub(crate) fn preferred<'m>(members: &'m [Member], handler: &str, slot: u16) -> Option<&'m str> {
    let candidates = members.iter().filter(|member| member.handlers.iter().any(|name| name == handler));
    let weight = |member: &Member| xxh3_64(format!("{} {handler} {slot}", member.incarnation).as_bytes());
    candidates
        .max_by_key(|member| (weight(member), member.incarnation.clone()))
        .map(|member| member.incarnation.as_str())
}

/// What is to be done about the slots of one handler.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Moves {
    pub(crate) acquire: Vec<u16>,
    pub(crate) revoke: Vec<u16>,
}

/// Slots that nobody owns, and since when.
#[derive(Default)]
pub(crate) struct Vacancies(HashMap<(usize, u16), BootTime>);

impl Vacancies {
    /// Decides for one handler. `owners`: as the store has it. `mine`: what this worker knows that it owns.
    #[allow(clippy::too_many_arguments, reason = "all of what a decision rests on")]
    pub(crate) fn decide(
        &mut self,
        me: &str,
        members: &[Member],
        handler: (usize, &str),
        owners: &HashMap<u16, String>,
        is_mine: impl Fn(u16) -> bool,
        patience: Duration,
        now: BootTime,
    ) -> Moves {
        let (position, name) = handler;
        let mut moves = Moves::default();
        for slot in 0..SLOTS {
            let is_preferred = preferred(members, name, slot) == Some(me);
            match owners.get(&slot) {
                // It is being given back.
                None if is_mine(slot) => {}
                None => {
                    let since = *self.0.entry((position, slot)).or_insert(now);
                    // Whoever should have it does not take it: better another one than nobody.
                    if is_preferred || now.since(since) >= patience {
                        moves.acquire.push(slot);
                    }
                }
                Some(owner) => {
                    self.0.remove(&(position, slot));
                    if owner != me {
                        continue;
                    }
                    // The answer to an acquisition was lost: it is asked for again.
                    if !is_mine(slot) {
                        moves.acquire.push(slot);
                    } else if !is_preferred {
                        moves.revoke.push(slot);
                    }
                }
            }
        }
        moves
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, beat: u64) -> Member {
        Member::read(name.into(), beat.to_string(), "1000 a b", Duration::from_secs(10))
    }

    fn at(millis: u64) -> BootTime {
        BootTime::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn a_registration_is_read_as_it_was_written() {
        let text = registration(Duration::from_millis(1_500), ["a.b", "c"].into_iter());
        let member = Member::read("x".into(), "1".into(), &text, Duration::ZERO);
        assert_eq!(
            (member.lease, &member.handlers[..]),
            (Duration::from_millis(1_500), &["a.b".into(), "c".into()][..])
        );
    }

    #[test]
    fn only_who_stood_still_for_its_whole_lease_is_dead() {
        let mut watch = Watch::default();
        assert!(watch.look(&[member("x", 1), member("y", 7)], at(0), at(100)).is_empty());
        // From the answer of the first look to the sending of the second.
        assert!(watch.look(&[member("x", 1), member("y", 8)], at(1_099), at(5_000)).is_empty());
        assert_eq!(watch.next_verdict(), Some(at(1_100)));
        let dead = watch.look(&[member("x", 1), member("y", 9)], at(1_100), at(5_000));
        assert_eq!(dead, [("x".to_owned(), "1".to_owned())]);
    }

    #[test]
    fn a_watcher_that_was_away_starts_anew_with_a_counter_that_moved() {
        let mut watch = Watch::default();
        watch.look(&[member("x", 1)], at(0), at(0));
        assert!(watch.look(&[member("x", 2)], at(100_000), at(100_001)).is_empty());
        assert!(watch.look(&[member("x", 2)], at(100_500), at(100_500)).is_empty());
    }

    #[test]
    fn every_worker_gets_about_its_share_and_a_newcomer_takes_its_own_alone() {
        let two = [member("x", 1), member("y", 1)];
        let three = [member("x", 1), member("y", 1), member("z", 1)];
        let owner = |members: &[Member], slot| preferred(members, "a", slot).unwrap().to_owned();
        let share = (0..SLOTS).filter(|slot| owner(&two, *slot) == "x").count();
        assert!((16..=48).contains(&share), "{share}");
        for slot in 0..SLOTS {
            let (before, after) = (owner(&two, slot), owner(&three, slot));
            assert!(after == before || after == "z");
        }
        assert_eq!(preferred(&three, "unknown", 1), None);
    }

    #[test]
    fn slots_go_to_whom_they_prefer_and_after_some_patience_to_anyone() {
        let members = [member("x", 1), member("y", 1)];
        let mut vacancies = Vacancies::default();
        let patience = Duration::from_secs(2);
        let mut decide = |owners: &HashMap<u16, String>, mine: &[u16], now| {
            vacancies.decide("x", &members, (0, "a"), owners, |slot| mine.contains(&slot), patience, at(now))
        };
        let first = decide(&HashMap::new(), &[], 0);
        assert!(first.acquire.len() < usize::from(SLOTS));
        assert!(first.acquire.iter().all(|slot| preferred(&members, "a", *slot) == Some("x")));
        assert_eq!(decide(&HashMap::new(), &[], 2_000).acquire.len(), usize::from(SLOTS));
        // All of them are x's by now: those that prefer y go back, those that x does not know of are asked for again.
        let owners: HashMap<_, _> = (0..SLOTS).map(|slot| (slot, "x".to_owned())).collect();
        let mine: Vec<_> = (0..SLOTS).filter(|slot| *slot != first.acquire[0]).collect();
        let moves = decide(&owners, &mine, 3_000);
        assert_eq!(moves.acquire, [first.acquire[0]]);
        assert_eq!(moves.revoke.len() + first.acquire.len(), usize::from(SLOTS));
    }
}
