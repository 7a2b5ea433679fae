//! What a row puts around processes and servers: wrong clocks, a small disk, a network of their own.

use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use tempfile::TempDir;

use super::medium::Medium;

/// What a row needs before there is a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// The server's clock can be put wrong.
    ServerClock,
    /// The store lies on a disk that can be full.
    SmallDisk,
}

/// What was put up.
#[derive(Default)]
pub(super) struct Surroundings {
    pub(super) clock: Option<Clock>,
    pub(super) disk: Option<SmallDisk>,
}

impl Surroundings {
    pub(super) fn new(needs: &[Need], medium: Medium) -> Self {
        let disk = needs.contains(&Need::SmallDisk).then(|| SmallDisk::new(medium));
        Self { clock: needs.contains(&Need::ServerClock).then(Clock::new), disk: disk.flatten() }
    }

    /// Settings for a server in these surroundings.
    pub(super) fn settings(&self) -> Vec<(String, String)> {
        let clock = self.clock.iter().flat_map(Clock::environment);
        let clock = clock.map(|(name, value)| (format!("env.{name}"), value));
        let disk = self.disk.iter().map(|disk| ("place".to_owned(), disk.path().display().to_string()));
        clock.chain(disk).collect()
    }
}

/// Runs a command to its end, in silence; what it has to say if it fails.
fn run(command: &str) -> Result<(), String> {
    let mut words = command.split_whitespace();
    let program = words.next().unwrap_or_default();
    let output = Command::new(program).args(words).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{command}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// The clocks of processes that are started with it.
pub(super) struct Clock {
    directory: TempDir,
    file: File,
}

/// Loaded into a process before everything else.
const SOURCE: &str = include_str!("clock.c");

impl Clock {
    /// Why there is none, if there is none.
    pub(super) fn why_not() -> Option<&'static str> {
        static HAS_COMPILER: OnceLock<bool> = OnceLock::new();
        let has_compiler = *HAS_COMPILER.get_or_init(|| run("cc --version").is_ok());
        (!cfg!(target_os = "linux") || !has_compiler)
            .then_some("it takes Linux and a C compiler (cc) to put the clocks of a process wrong")
    }

    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        // A server may run as another user.
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        let source = directory.path().join("clock.c");
        fs::write(&source, SOURCE).unwrap();
        let (source, library) = (source.display(), directory.path().join("clock.so"));
        run(&format!("cc -O1 -shared -fPIC -o {} {source}", library.display())).unwrap();
        let path = directory.path().join("clock");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(24).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        Self { directory, file }
    }

    fn environment(&self) -> Vec<(String, String)> {
        let file = |name: &str| self.directory.path().join(name).display().to_string();
        vec![("LD_PRELOAD".to_owned(), file("clock.so")), ("EVENT_BUS_CLOCK".to_owned(), file("clock"))]
    }

    /// The command by which processes are started that have it.
    pub(super) fn through(&self) -> Vec<String> {
        let variables = self.environment().into_iter().map(|(name, value)| format!("{name}={value}"));
        std::iter::once("env".to_owned()).chain(variables).collect()
    }

    fn set(&self, position: u64, value: i64) {
        self.file.write_all_at(&value.to_ne_bytes(), position * 8).unwrap();
    }

    /// The wall clock is so many seconds wrong.
    pub(super) fn set_wall(&self, seconds: i64) {
        self.set(0, seconds * 1_000_000_000);
    }

    /// The machine has slept for so long, as far as the process can tell.
    pub(super) fn set_slept(&self, time: Duration) {
        self.set(1, i64::try_from(time.as_nanos()).unwrap());
    }

    /// All clocks of the process run too fast by so many millionths, or too slow.
    pub(super) fn set_rate(&self, millionths: i64) {
        self.set(2, millionths);
    }
}

/// A file system of its own that has little room.
pub(super) struct SmallDisk {
    directory: TempDir,
    ballast: PathBuf,
}

impl SmallDisk {
    /// Why there is none, if there is none.
    pub(super) fn why_not() -> Option<&'static str> {
        static CAN_MOUNT: OnceLock<bool> = OnceLock::new();
        let can_mount = *CAN_MOUNT.get_or_init(|| SmallDisk::mounted("1m").is_ok());
        (!can_mount).then_some("it takes root to mount a small file system")
    }

    /// Large enough for an empty store. RabbitMQ stops long before a disk is full, so there is none for it.
    fn new(medium: Medium) -> Option<Self> {
        let size = match medium {
            Medium::Sqlite => "16m",
            Medium::Postgres => "128m",
            Medium::Redis => "32m",
            Medium::RabbitMq => return None,
        };
        Some(Self::mounted(size).unwrap())
    }

    fn mounted(size: &str) -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let path = directory.path().display();
        run(&format!("mount -t tmpfs -o size={size},mode=755 tmpfs {path}"))?;
        let ballast = directory.path().join("ballast");
        Ok(Self { directory, ballast })
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Leaves no room.
    pub(super) fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(&self.ballast).unwrap();
        for size in [1 << 20, 1 << 12, 1] {
            let zeros = vec![0; size];
            while file.write_all(&zeros).is_ok() {}
        }
    }

    /// There is room again.
    pub(super) fn free(&self) {
        fs::remove_file(&self.ballast).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Whoever still has files in it keeps them until it ends.
        if let Err(why) = run(&format!("umount --lazy {}", self.path().display())) {
            eprintln!("a small file system is left: {why}");
        }
    }
}

/// A network namespace: processes in it reach this machine by a cable that can be spoiled.
pub(super) struct Namespace {
    name: String,
    address: std::net::Ipv4Addr,
}

impl Namespace {
    /// Why there is none, if there is none.
    pub(super) fn why_not() -> Option<&'static str> {
        static CAN: OnceLock<bool> = OnceLock::new();
        let can = *CAN.get_or_init(|| Self::try_new().is_ok_and(|namespace| namespace.lose("0.5").is_ok()));
        (!can).then_some("it takes root, ip and iptables to spoil a network of one's own")
    }

    pub(super) fn new() -> Self {
        Self::try_new().unwrap()
    }

    fn try_new() -> Result<Self, String> {
        let number = fastrand::u16(..) & 0x3fff;
        let name = format!("eb{number}");
        // Four addresses each, of a network that is nobody's.
        let [high, low] = (number << 2).to_be_bytes();
        let (near, far) = (format!("10.203.{high}.{}", low + 1), format!("10.203.{high}.{}", low + 2));
        run(&format!("ip netns add {name}"))?;
        // From now on it is removed again; its cable goes with it.
        let namespace = Self { name, address: near.parse().map_err(|_| near.clone())? };
        let name = &namespace.name;
        run(&format!("ip link add {name}a type veth peer name {name}b"))?;
        run(&format!("ip link set {name}b netns {name}"))?;
        run(&format!("ip addr add {near}/30 dev {name}a"))?;
        run(&format!("ip link set {name}a up"))?;
        run(&format!("ip netns exec {name} ip addr add {far}/30 dev {name}b"))?;
        run(&format!("ip netns exec {name} ip link set {name}b up"))?;
        Ok(namespace)
    }

    /// This machine's end of the cable.
    pub(super) fn address(&self) -> std::net::Ipv4Addr {
        self.address
    }

    /// The command by which processes are started in it.
    pub(super) fn through(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.name]
    }

    /// From now on this part of all packets is lost, in both directions.
    pub(super) fn lose(&self, part: &str) -> Result<(), String> {
        self.heal()?;
        for chain in ["INPUT", "OUTPUT"] {
            run(&format!(
                "ip netns exec {} iptables -A {chain} -m statistic --mode random --probability {part} -j DROP",
                self.name
            ))?;
        }
        Ok(())
    }

    /// Everything arrives.
    pub(super) fn heal(&self) -> Result<(), String> {
        run(&format!("ip netns exec {} iptables -F", self.name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(why) = run(&format!("ip netns del {}", self.name)) {
            eprintln!("a network namespace is left: {why}");
        }
    }
}
