//! A server from programs of this machine.

use std::fs::{self, File, Permissions};
use std::marker::PhantomData;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::engine::{Address, Engine, PLACE, Place};
use super::keeper::{Kept, hold, keep};
use super::{ports, processes};

/// How long a server may take to start: RabbitMQ on a machine under load.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// How long a server may take to end in peace.
pub(super) const FAREWELL: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
pub(super) const LOOK: Duration = Duration::from_millis(20);

/// How often a server is started on other ports if the first are taken.
const TRIES: u32 = 3;

/// A server of this machine.
pub(super) struct Local<E> {
    pub(super) place: Place,
    pub(super) address: Address,
    children: Mutex<Vec<Child>>,
    /// Tells the keeper that the server is needed.
    hold: Option<File>,
    engine: PhantomData<fn() -> E>,
}

/// Whose a server is.
#[derive(Clone)]
pub(super) enum Owner {
    /// One process.
    Us,
    /// All that hold this lock and read this file.
    Everybody { lock: PathBuf, state: PathBuf, grace: Duration },
}

/// The directory of all servers of this user and this checkout.
pub(super) fn base() -> Result<PathBuf, String> {
    let user = rustix::process::getuid().as_raw();
    let checkout = xxhash_rust::xxh3::xxh3_64(env!("CARGO_MANIFEST_DIR").as_bytes());
    let of_user = std::env::temp_dir().join(format!("event-bus-servers-{user}"));
    let base = of_user.join(format!("{checkout:016x}"));
    let in_words = |error| format!("{}: {error}", base.display());
    fs::create_dir_all(&base).map_err(in_words)?;
    for directory in [&of_user, &base] {
        if fs::metadata(directory).map_err(in_words)?.uid() != user {
            return Err(format!("{} belongs to somebody else", directory.display()));
        }
        // A server under another user passes through; it cannot look around.
        fs::set_permissions(directory, Permissions::from_mode(0o711)).map_err(in_words)?;
    }
    Ok(base)
}

/// A directory, a keeper and ports for a server. With the lock that its only user holds.
pub(super) fn place<E: Engine>(
    settings: &[(String, String)],
    owner: &Owner,
    is_container: bool,
) -> Result<(Place, Option<File>), String> {
    find("flock", &[]).ok_or("the program flock (util-linux) is missing")?;
    let name = format!("{}-{}", E::NAME, super::unique_name());
    let wanted = settings.iter().find(|(name, _)| name == PLACE);
    let base = wanted.map_or_else(base, |(_, directory)| Ok(PathBuf::from(directory)))?;
    let directory = base.join(&name);
    let in_words = |error| format!("{}: {error}", directory.display());
    fs::create_dir(&directory).map_err(in_words)?;
    fs::set_permissions(&directory, Permissions::from_mode(0o711)).map_err(in_words)?;
    let own_lock = directory.join("lock");
    let (hold, lock, grace, state) = match owner {
        Owner::Us => (Some(hold(&own_lock)?), &own_lock, Duration::ZERO, None),
        Owner::Everybody { lock, state, grace } => (None, lock, *grace, Some(&**state)),
    };
    let container = is_container.then_some(&*name);
    keep(&Kept { lock, grace, directory: &directory, state, container })?;
    let ports = ports::free()?;
    Ok((Place { directory, name, ports, settings: settings.to_vec() }, hold))
}

pub(super) fn owned(settings: &[(&str, &str)]) -> Vec<(String, String)> {
    settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

impl<E: Engine> Local<E> {
    /// Starts a server in a directory of its own.
    pub(super) async fn start(settings: &[(&str, &str)], owner: Owner) -> Result<Self, String> {
        let settings = owned(settings);
        let mut tries = 0;
        loop {
            tries += 1;
            let (settings, owner) = (settings.clone(), owner.clone());
            let local = blocking(move || Self::prepare(&settings, &owner)).await?;
            match local.launch().await {
                Ok(()) => return Ok(local),
                Err(error) if tries < TRIES && is_port_taken(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// A directory with a keeper, without a server yet.
    fn prepare(settings: &[(String, String)], owner: &Owner) -> Result<Self, String> {
        let (place, hold) = place::<E>(settings, owner, false)?;
        let address = E::address("127.0.0.1", place.ports);
        E::install(&place)?;
        Ok(Self { place, address, children: Mutex::new(Vec::new()), hold, engine: PhantomData })
    }

    /// Starts the processes and waits until they answer.
    pub(super) async fn launch(&self) -> Result<(), String> {
        let place = self.place.clone();
        let mut children = blocking(move || E::spawn(&place)).await?;
        let since = Instant::now();
        let verdict = loop {
            if E::answers(&self.address).await {
                break Ok(());
            }
            let has_ended = children.iter_mut().any(|child| !matches!(child.try_wait(), Ok(None)));
            if has_ended {
                break Err("ended at once");
            }
            if since.elapsed() > PATIENCE {
                break Err("does not answer");
            }
            tokio::time::sleep(LOOK).await;
        };
        self.children().append(&mut children);
        if let Err(why) = verdict {
            let log = tail(&self.logs().await);
            self.kill().await?;
            return Err(format!("{} {why}; its last words:\n{log}", E::NAME));
        }
        Ok(())
    }

    fn children(&self) -> std::sync::MutexGuard<'_, Vec<Child>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn is_running(&self) -> bool {
        !processes::within(&self.place.directory).is_empty()
    }

    pub(super) async fn kill(&self) -> Result<(), String> {
        processes::kill(&self.place.directory).await;
        self.collect();
        Ok(())
    }

    /// Waits for children that have ended.
    fn collect(&self) {
        for mut child in self.children().drain(..) {
            let _ = child.wait();
        }
    }

    pub(super) async fn stop(&self) -> Result<(), String> {
        let since = Instant::now();
        if let Some(server) = self.children().last() {
            let pid = rustix::process::Pid::from_child(server);
            rustix::process::kill_process(pid, E::farewell()).map_err(|error| error.to_string())?;
        }
        let has_ended =
            || self.children().last_mut().is_none_or(|server| !matches!(server.try_wait(), Ok(None)));
        while !has_ended() {
            if since.elapsed() > FAREWELL {
                let log = tail(&self.logs().await);
                return Err(format!("{} does not end; its last words:\n{log}", E::NAME));
            }
            tokio::time::sleep(LOOK).await;
        }
        // What serves the server has no farewell.
        self.kill().await
    }

    pub(super) async fn pause(&self) -> Result<(), String> {
        processes::stop(&self.place.directory).await;
        Ok(())
    }

    pub(super) async fn resume(&self) -> Result<(), String> {
        processes::signal(&self.place.directory, rustix::process::Signal::CONT);
        Ok(())
    }

    pub(super) async fn logs(&self) -> String {
        read(&self.place.log())
    }
}

impl<E> Drop for Local<E> {
    /// The keeper does the same, a moment later.
    fn drop(&mut self) {
        if self.hold.is_none() {
            return;
        }
        while !processes::within(&self.place.directory).is_empty() {
            processes::signal(&self.place.directory, rustix::process::Signal::KILL);
            std::thread::sleep(Duration::from_millis(1));
        }
        for mut child in self.children.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.place.directory);
    }
}

/// What a log says. Servers do not always write UTF-8.
pub(super) fn read(log: &Path) -> String {
    fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

pub(super) fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

fn is_port_taken(error: &str) -> bool {
    ["already in use", "eaddrinuse", "Failed listening on port", "could not bind"]
        .iter()
        .any(|sign| error.contains(sign))
}

/// Does what blocks its thread.
pub(super) async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(act).await.map_err(|error| error.to_string())?
}

/// A program in the path, or in one of these directories.
pub(super) fn find(program: &str, directories: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path: Vec<_> = std::env::split_paths(&path).collect();
    directories.iter().chain(&in_path).map(|directory| directory.join(program)).find(|file| file.is_file())
}

/// A program of a server: in its place, deaf to the terminal, its words in the log.
pub(super) fn command(program: &Path, place: &Place) -> Result<Command, String> {
    let log = place.log();
    let in_words = |error| format!("{}: {error}", log.display());
    let log = File::options().create(true).append(true).open(&log).map_err(in_words)?;
    let errors = log.try_clone().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.envs(place.environment());
    command.current_dir(&place.directory).stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0);
    Ok(command)
}

/// Runs a program of a server to its end.
pub(super) fn run(mut command: Command, place: &Place) -> Result<(), String> {
    let status = command.status().map_err(|error| format!("{:?}: {error}", command.get_program()))?;
    if status.success() {
        return Ok(());
    }
    let log = tail(&read(&place.log()));
    Err(format!("{:?} failed ({status}); its last words:\n{log}", command.get_program()))
}

/// Starts a program of a server.
pub(super) fn spawn(mut command: Command) -> Result<Child, String> {
    command.spawn().map_err(|error| format!("{:?}: {error}", command.get_program()))
}
