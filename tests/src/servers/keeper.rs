//! Who stops a server when its users are gone, in whatever way they went.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const SCRIPT: &str = include_str!("keeper.sh");

/// What a keeper looks after.
pub(super) struct Kept<'p> {
    /// The lock that users hold.
    pub(super) lock: &'p Path,
    /// How long the server outlives its last user.
    pub(super) grace: Duration,
    pub(super) directory: &'p Path,
    /// The file by which users find the server.
    pub(super) state: Option<&'p Path>,
    /// The server's container.
    pub(super) container: Option<&'p str>,
}

/// Starts a keeper. Whoever calls holds the lock already.
pub(super) fn keep(kept: &Kept<'_>) -> Result<(), String> {
    let empty = Path::new("");
    let keeper = Command::new("sh")
        .args(["-c", SCRIPT, "event-bus-keeper"])
        .arg(kept.lock)
        .arg(kept.grace.as_secs_f32().to_string())
        .arg(kept.directory)
        .arg(kept.state.unwrap_or(empty))
        .arg(kept.container.unwrap_or(""))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // An interrupt at the terminal is for the tests; the keeper follows them.
        .process_group(0)
        .spawn();
    let mut keeper = keeper.map_err(|error| format!("sh: {error}"))?;
    // It is nobody's child by the time it ends, as a rule; a long-lived process must not collect its remains.
    std::thread::spawn(move || keeper.wait());
    Ok(())
}

/// Opens a lock that a keeper watches, and holds it until the answer is dropped or the process is gone.
pub(super) fn hold(lock: &Path) -> Result<File, String> {
    let in_words = |error: std::io::Error| format!("{}: {error}", lock.display());
    let file = File::options().create(true).append(true).open(lock).map_err(in_words)?;
    file.lock_shared().map_err(in_words)?;
    Ok(file)
}
