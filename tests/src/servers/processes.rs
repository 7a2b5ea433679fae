//! A server's processes: those whose working directory is in its own. No list has to be kept, no number can be stale, and
//! what a server starts by itself (Postgres: a process for each connection) belongs to it.

use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// All of them. What has ended and was not waited for has no working directory.
pub(super) fn within(directory: &Path) -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| {
            let directory_of = std::fs::read_link(entry.path().join("cwd"));
            directory_of.is_ok_and(|found| found.starts_with(directory))
        })
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw))
        .collect()
}

/// Sends a signal to all of them. One that ends meanwhile needs none.
pub(super) fn signal(directory: &Path, signal: Signal) {
    for pid in within(directory) {
        let _ = kill_process(pid, signal);
    }
}

/// Whether a process stands still.
fn is_stopped(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    // No file: it has ended, and does nothing more.
    stat.map_or(true, |text| text.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['T', 't', 'Z'])))
}

/// Stops all of them, those started meanwhile included, and waits until they stand.
pub(super) async fn stop(directory: &Path) {
    while !within(directory).into_iter().all(is_stopped) {
        signal(directory, Signal::STOP);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Kills all of them, those started meanwhile included, and waits until they are gone.
pub(super) async fn kill(directory: &Path) {
    while !within(directory).is_empty() {
        signal(directory, Signal::KILL);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
