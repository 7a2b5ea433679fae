//! Processes: programs called `node` on one store, killed, stopped and continued from here, and the history of them all.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a case fails by panicking")]

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use event_bus::EventBus;
use event_bus::backend::{DeadLetterFilter, EventId};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::checker::{HandlerRules, Rules, Violation, check};
use crate::history::{Dead, Fact, History, Record, hash};
use crate::node::{HANDLERS, Ledger, MAX_ATTEMPTS, note_in, publish_call};
use crate::suite::Note;
use crate::suite::world::{counted, rest};

/// How often a condition on files is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// How many dead letters are asked for at once.
const PAGE: usize = 1_000;

/// The processes of one store.
pub(crate) struct Fleet {
    program: PathBuf,
    url: String,
    directory: TempDir,
    /// What this process itself does.
    pub(crate) ledger: Ledger,
    /// A bus for publishing and looking, which never works.
    pub(crate) bus: EventBus,
    /// What the handlers promise.
    pub(crate) rules: Rules,
    /// Numbers of events whose payload does not tell them.
    pub(crate) garbage: HashMap<EventId, u64>,
    started: u32,
    calls: AtomicU64,
    reading: Mutex<Reading>,
}

/// What was read of the histories so far: they grow while conditions on them are waited for, and are read once.
#[derive(Default)]
struct Reading {
    offsets: HashMap<u32, u64>,
    times: Vec<u64>,
    facts: Vec<Fact>,
}

/// A process.
pub(crate) struct Node {
    pub(crate) number: u32,
    child: Child,
    ledger: Ledger,
}

impl Fleet {
    /// Processes of `program` on the store at `url`, which `bus` reaches as well.
    pub(crate) fn new(program: PathBuf, url: String, bus: EventBus) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&directory.path().join("0.jsonl")).unwrap();
        let rules = HandlerRules { max_attempts: MAX_ATTEMPTS, is_ordered: true, holds_key: false };
        let handlers = HANDLERS.map(|handler| (handler.to_owned(), rules));
        Self {
            program,
            url,
            directory,
            ledger,
            bus,
            rules: Rules { handlers: handlers.into(), stores_twice: false },
            garbage: HashMap::new(),
            started: 0,
            calls: AtomicU64::new(1),
            reading: Mutex::default(),
        }
    }

    /// Starts a process that reaches the store by `url`.
    pub(crate) fn start_at(&mut self, url: &str, arguments: &[&str]) -> Node {
        self.start_through(&[], url, arguments)
    }

    /// As [`start_at`](Self::start_at), started by a command that becomes the process: `env`, `ip netns exec`.
    pub(crate) fn start_through(&mut self, through: &[&str], url: &str, arguments: &[&str]) -> Node {
        self.started += 1;
        let number = self.started;
        let mut command = match through.split_first() {
            Some((program, rest)) => {
                let mut command = Command::new(program);
                command.args(rest).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        let child = command
            .args(["--url", url, "--number", &number.to_string(), "--history"])
            .arg(self.history_file(number))
            .args(arguments)
            .stdin(Stdio::piped())
            .spawn()
            .expect("the program called node");
        Node { number, child, ledger: self.ledger.clone() }
    }

    fn start(&mut self, arguments: &[&str]) -> Node {
        self.start_at(&self.url.clone(), arguments)
    }

    fn history_file(&self, number: u32) -> PathBuf {
        self.directory.path().join(format!("{number}.jsonl"))
    }

    /// A worker; it may be a standby.
    pub(crate) async fn worker(&mut self) -> Node {
        self.worker_at(&self.url.clone(), &[]).await
    }

    /// A worker that reaches the store by `url`, with these options.
    pub(crate) async fn worker_at(&mut self, url: &str, options: &[&str]) -> Node {
        self.worker_through(&[], url, options).await
    }

    /// As [`worker_at`](Self::worker_at), started by a command that becomes the process.
    pub(crate) async fn worker_through(&mut self, through: &[&str], url: &str, options: &[&str]) -> Node {
        let node = self.start_through(through, url, &[&["--work"], options].concat());
        self.until(|history| history.contains(&Fact::WorkerStart { worker: node.number })).await;
        node
    }

    /// A publisher of `events` in calls of `batch` over `keys`.
    pub(crate) fn publisher(&mut self, events: u64, keys: u64, batch: u64) -> Node {
        let [events, keys, batch] = [events, keys, batch].map(|number| number.to_string());
        self.start(&["--publish", &events, "--keys", &keys, "--batch", &batch])
    }

    /// Publishes from here.
    pub(crate) async fn publish(&self, notes: &[Note]) {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        publish_call(&self.bus, &self.ledger, call, 0, notes).await;
    }

    /// Reads what was written down since the last time.
    fn read_on(&self) -> MutexGuard<'_, Reading> {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        for number in 0..=self.started {
            let Ok(mut file) = File::open(self.history_file(number)) else { continue };
            let offset = reading.offsets.entry(number).or_default();
            let mut bytes = Vec::new();
            file.seek(SeekFrom::Start(*offset)).unwrap();
            file.read_to_end(&mut bytes).unwrap();
            // A last line without its end may still be written.
            let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            *offset += end as u64;
            let text = std::str::from_utf8(&bytes[..end]).expect("text");
            for record in History::from_lines(text).expect("records").records {
                reading.times.push(record.at);
                reading.facts.push(record.fact);
            }
        }
        reading
    }

    /// All that was written down so far, in the order of time.
    pub(crate) fn history(&self) -> History {
        let reading = self.read_on();
        let records = reading.times.iter().zip(&reading.facts);
        let records = records.map(|(at, fact)| Record { at: *at, fact: fact.clone() }).collect();
        History::merge([History { records }])
    }

    /// How many such facts were written down so far.
    pub(crate) fn count(&self, is_wanted: impl Fn(&Fact) -> bool) -> usize {
        self.read_on().facts.iter().filter(|fact| is_wanted(fact)).count()
    }

    /// Waits until what was written down is so; about in the order of time.
    pub(crate) async fn until(&self, is_so: impl Fn(&[Fact]) -> bool) {
        let mut known = None;
        loop {
            {
                let reading = self.read_on();
                if known.replace(reading.facts.len()) != Some(reading.facts.len()) && is_so(&reading.facts) {
                    return;
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until that many runs have begun in a process.
    pub(crate) async fn until_begun(&self, node: &Node, count: usize) {
        let is_wanted =
            |fact: &&Fact| matches!(fact, Fact::RunStart { worker, .. } if *worker == node.number);
        self.until(|facts| facts.iter().filter(is_wanted).count() >= count).await;
    }

    /// Whether the store holds nothing but dead letters; answers after a moment if it does not.
    pub(crate) async fn is_at_rest(&self) -> bool {
        let (ready, waiting, _) = counted(&self.bus).await;
        let is_at_rest = ready + waiting == 0;
        if !is_at_rest {
            tokio::time::sleep(LOOK).await;
        }
        is_at_rest
    }

    /// Lets everything come to rest, ends the workers and holds the history against the promises.
    pub(crate) async fn finish(self, workers: impl IntoIterator<Item = Node>) -> Vec<Record> {
        rest(&self.bus).await;
        for worker in workers {
            worker.stop().await;
        }
        self.verdict().await
    }

    /// Holds the history against the promises; nobody works any more.
    pub(crate) async fn verdict(self) -> Vec<Record> {
        let (history, violations) = self.judge().await;
        let shown: Vec<_> = violations.iter().take(5).map(ToString::to_string).collect();
        assert!(violations.is_empty(), "{} violations:\n{}", violations.len(), shown.join("\n"));
        history.records
    }

    /// The whole history, and what in it breaks the promises; nobody works any more.
    pub(crate) async fn judge(self) -> (History, Vec<Violation>) {
        // The first question after an outage may find a connection that is gone.
        let _ = self.bus.counts().await;
        let dead_letters = self.dead_letters().await;
        self.ledger.write(Fact::Rest { pending: Vec::new(), dead_letters });
        let history = self.history();
        let violations = check(&history, &self.rules);
        (history, violations)
    }

    /// All dead letters, as a history knows them.
    pub(crate) async fn dead_letters(&self) -> Vec<Dead> {
        let (mut letters, mut after) = (Vec::new(), None);
        loop {
            let filter = DeadLetterFilter::default();
            let page = self.bus.dead_letters(&filter, after, PAGE).await.expect("dead letters");
            let Some(last) = page.last() else { return letters };
            after = Some(last.id);
            letters.extend(page.into_iter().map(|dead| Dead {
                handler: dead.handler.to_string(),
                event: match self.garbage.get(&dead.envelope.id) {
                    Some(number) => *number,
                    None => note_in(&dead.envelope).expect("a note").number,
                },
                key: dead.envelope.key.as_deref().map(str::to_owned),
                hash: hash(&dead.envelope.payload),
                reason: dead.reason.to_string(),
                failures: dead.failures,
                errors: dead.errors.entries().iter().map(|error| error.attempt).collect(),
                holds_key: dead.holds_key,
            }));
        }
    }
}

impl Node {
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).expect("a living process");
    }

    /// Stops it as `kill -STOP` does, and waits until it stands.
    async fn freeze(&self) {
        self.signal(Signal::STOP);
        let stat = format!("/proc/{}/stat", self.child.id());
        let is_frozen = || {
            let text = std::fs::read_to_string(&stat).expect("a living process");
            text.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
        };
        while !is_frozen() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Kills it as `kill -9` does. It is frozen first, so that the history says exactly when it ended: before anybody
    /// else could know.
    pub(crate) async fn kill(mut self) {
        self.freeze().await;
        self.ledger.write(Fact::WorkerCrash { worker: self.number });
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The most memory it has ever had, in bytes, as the operating system counts it.
    pub(crate) fn most_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kilobytes.unwrap_or(0) * 1024
    }

    /// Kills a publisher.
    pub(crate) fn kill_publisher(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// It hears and says nothing, from now until [`thaw`](Self::thaw), about `lasts` later.
    pub(crate) async fn stall(&self, lasts: Duration) {
        self.freeze().await;
        let lasts = u64::try_from(lasts.as_nanos()).unwrap();
        self.ledger.write(Fact::WorkerStall { worker: self.number, lasts });
    }

    /// It goes on.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until it has ended by itself, and says whether it failed.
    pub(crate) async fn fails(mut self) -> bool {
        while !self.has_ended() {
            tokio::time::sleep(LOOK).await;
        }
        !self.child.wait().unwrap().success()
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn ended(mut self) {
        while !self.has_ended() {
            tokio::time::sleep(LOOK).await;
        }
        assert!(self.child.wait().unwrap().success(), "process {} failed", self.number);
    }

    /// Asks it to drain and to end.
    pub(crate) async fn stop(mut self) {
        writeln!(self.child.stdin.take().unwrap(), "stop").unwrap();
        self.ended().await;
    }
}

impl Drop for Node {
    /// A case that fails leaves nobody behind.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
