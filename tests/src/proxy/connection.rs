//! One connection: two pumps, each with a short line of what is on its way.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::Shared;
use super::steering::{Armed, Direction, Flow, Sign, Steering, Then};

/// How much may be on its way in one direction; more stays with the sender.
const LIMIT: usize = 4 << 20;

/// How much is read at once.
const CHUNK: usize = 16 << 10;

pub(super) struct Connection<'s> {
    client: TcpStream,
    server: TcpStream,
    shared: &'s Shared,
    steering: watch::Receiver<Steering>,
}

impl<'s> Connection<'s> {
    pub(super) fn new(
        client: TcpStream,
        server: TcpStream,
        shared: &'s Shared,
        steering: watch::Receiver<Steering>,
    ) -> Self {
        for stream in [&client, &server] {
            // Only slower without.
            let _ = stream.set_nodelay(true);
        }
        Self { client, server, shared, steering }
    }

    /// Until it has ended or was cut. Whichever way it ends but in peace, both ends see a reset.
    pub(super) async fn run(mut self) {
        let is_in_peace = {
            let (client_reads, client_writes) = self.client.split();
            let (server_reads, server_writes) = self.server.split();
            let (there, back) = (watch::Sender::new(false), watch::Sender::new(false));
            let pump = |direction: Direction, reads, writes| {
                Pump::new(
                    direction,
                    reads,
                    writes,
                    self.steering.clone(),
                    &self.shared.passed[direction.index()],
                )
            };
            let to_server = pump(Direction::ToServer, client_reads, server_writes);
            let to_client = pump(Direction::ToClient, server_reads, client_writes);
            let both = async {
                tokio::join!(to_server.run(&there, back.subscribe()), to_client.run(&back, there.subscribe()))
            };
            tokio::select! {
                () = until_cut(self.steering.clone()) => false,
                ends = both => matches!(ends, (Ok(()), Ok(()))),
            }
        };
        if !is_in_peace {
            for stream in [&self.client, &self.server] {
                // It fails for one that is closed already.
                let _ = stream.set_zero_linger();
            }
        }
    }
}

async fn until_cut(mut steering: watch::Receiver<Steering>) {
    let cuts = steering.borrow().cuts;
    // An error: the proxy is gone, and its connections go with it.
    let _ = steering.wait_for(|steering| steering.cuts != cuts).await;
}

async fn is_broken(pump: &mut watch::Receiver<bool>) {
    // An error cannot be: both pumps outlive one another.
    let _ = pump.wait_for(|is_broken| *is_broken).await;
}

/// Bytes on their way.
struct Chunk {
    due: Instant,
    bytes: Vec<u8>,
}

/// One direction.
struct Pump<'c> {
    direction: Direction,
    reads: ReadHalf<'c>,
    writes: WriteHalf<'c>,
    steering: watch::Receiver<Steering>,
    passed: &'c AtomicU64,
    line: VecDeque<Chunk>,
    /// When the last chunk of the line is due.
    last_due: Instant,
    /// Nothing more is read.
    has_ended: bool,
    /// A trap has sprung that keeps what comes, until there are so many releases.
    held_until: Option<u64>,
    /// A trap has sprung that cuts when the line is empty.
    will_cut: bool,
    watched: Vec<Watched>,
}

/// A trap, and what this direction has shown of its sign.
struct Watched {
    armed: Armed,
    count: u64,
    tail: Vec<u8>,
}

/// A pump ends badly.
struct Broken;

impl<'c> Pump<'c> {
    fn new(
        direction: Direction,
        reads: ReadHalf<'c>,
        writes: WriteHalf<'c>,
        steering: watch::Receiver<Steering>,
        passed: &'c AtomicU64,
    ) -> Self {
        Self {
            direction,
            reads,
            writes,
            steering,
            passed,
            line: VecDeque::new(),
            last_due: Instant::now(),
            has_ended: false,
            held_until: None,
            will_cut: false,
            watched: Vec::new(),
        }
    }

    /// Pumps until the end of what there is. Says when it is broken; hears when the other is, and then ends as well,
    /// unless it holds something that must still be delivered.
    async fn run(
        mut self,
        broken: &watch::Sender<bool>,
        mut other: watch::Receiver<bool>,
    ) -> Result<(), Broken> {
        let ended = self.pump(&mut other).await;
        if ended.is_err() {
            broken.send_replace(true);
        }
        ended
    }

    async fn pump(&mut self, other: &mut watch::Receiver<bool>) -> Result<(), Broken> {
        let half_closes = self.steering.borrow().half_closes[self.direction.index()];
        let mut buffer = vec![0; CHUNK];
        loop {
            let flow = self.look(half_closes);
            let is_held = self.held_until.is_some();
            if self.line.is_empty() && self.will_cut {
                return Err(Broken);
            }
            if self.line.is_empty() && self.has_ended {
                return self.writes.shutdown().await.map_err(|_| Broken);
            }
            let queued: usize = self.line.iter().map(|chunk| chunk.bytes.len()).sum();
            let may_read = !self.has_ended && flow != Flow::BlackHole && queued < LIMIT;
            let due =
                self.line.front().filter(|_| !is_held && flow != Flow::BlackHole).map(|chunk| chunk.due);
            tokio::select! {
                changed = self.steering.changed() => if changed.is_err() { return Err(Broken) },
                () = is_broken(other), if !is_held => return Err(Broken),
                read = self.reads.read(&mut buffer), if may_read => self.take(read, &buffer, flow)?,
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.deliver().await?,
            }
        }
    }

    /// What has been told.
    fn look(&mut self, half_closes: u64) -> Flow {
        let steering = self.steering.borrow_and_update();
        if steering.half_closes[self.direction.index()] != half_closes {
            self.has_ended = true;
        }
        if self.held_until.is_some_and(|releases| steering.releases >= releases) {
            self.held_until = None;
        }
        self.watched.retain(|watched| steering.armed.iter().any(|armed| armed.is_same(&watched.armed)));
        for armed in steering.armed.iter().filter(|armed| armed.direction == self.direction) {
            if !self.watched.iter().any(|watched| watched.armed.is_same(armed)) {
                self.watched.push(Watched { armed: armed.clone(), count: 0, tail: Vec::new() });
            }
        }
        steering.flows[self.direction.index()]
    }

    /// Puts what was read into the line.
    fn take(&mut self, read: io::Result<usize>, buffer: &[u8], flow: Flow) -> Result<(), Broken> {
        let count = match read {
            Ok(count) => count,
            // What is held is delivered although its sender has gone.
            Err(_) if self.held_until.is_some() => 0,
            Err(_) => return Err(Broken),
        };
        if count == 0 {
            self.has_ended = true;
            return Ok(());
        }
        let mut bytes = buffer[..count].to_vec();
        for watched in &mut self.watched {
            let Some(end) = watched.sees(&bytes) else { continue };
            if !watched.armed.spring() {
                continue;
            }
            match watched.armed.then {
                Then::Swallow => return Err(Broken),
                Then::Hold => self.held_until = Some(self.steering.borrow().releases + 1),
                Then::Cut => {
                    bytes.truncate(end);
                    self.will_cut = true;
                    self.has_ended = true;
                }
            }
            break;
        }
        let due = match flow {
            Flow::Pass | Flow::BlackHole => Instant::now(),
            Flow::Delay { delay, jitter } => Instant::now() + delay + jitter.mul_f64(fastrand::f64()),
            Flow::Throttle { bytes_per_second } => {
                let time = bytes.len() as f64 / bytes_per_second.max(1) as f64;
                self.last_due.max(Instant::now()) + Duration::from_secs_f64(time)
            }
        };
        self.last_due = due.max(self.last_due);
        self.line.push_back(Chunk { due: self.last_due, bytes });
        Ok(())
    }

    async fn deliver(&mut self) -> Result<(), Broken> {
        let Some(chunk) = self.line.pop_front() else { return Ok(()) };
        self.writes.write_all(&chunk.bytes).await.map_err(|_| Broken)?;
        self.passed.fetch_add(chunk.bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

impl Watched {
    /// Whether these bytes complete the sign, and how many of them may pass at most.
    fn sees(&mut self, bytes: &[u8]) -> Option<usize> {
        match &self.armed.sign {
            Sign::Bytes(wanted) => {
                let before = self.count;
                self.count += bytes.len() as u64;
                (self.count >= *wanted)
                    .then(|| usize::try_from(wanted.saturating_sub(before)).unwrap_or(bytes.len()))
            }
            Sign::Contains(wanted) => {
                // A sign may lie across two reads.
                self.tail.extend_from_slice(bytes);
                let is_there = self.tail.windows(wanted.len().max(1)).any(|window| window == wanted);
                let keep = wanted.len().saturating_sub(1).min(self.tail.len());
                self.tail.drain(..self.tail.len() - keep);
                is_there.then_some(bytes.len())
            }
        }
    }
}
