//! A server's processes: those whose working directory is in its own, and their children. No list has to be kept, no number
//! can be stale, and what a server starts by itself (Postgres: a process for each connection) belongs to it.
//!
//! Root in a container may not see the working directory of another user's process; of such a one the command line tells.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// All of them. What has ended and was not waited for has no working directory.
pub(super) fn within(directory: &Path) -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids: Vec<i32> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    let mut found: HashSet<i32> = pids.iter().copied().filter(|pid| lives_in(*pid, directory)).collect();
    let parents: Vec<_> = pids.iter().filter_map(|pid| Some((*pid, parent_of(*pid)?))).collect();
    loop {
        let known = found.len();
        let children = parents.iter().filter(|(_, parent)| found.contains(parent)).map(|(pid, _)| *pid);
        found.extend(children.collect::<Vec<_>>());
        if found.len() == known {
            return found.into_iter().filter_map(Pid::from_raw).collect();
        }
    }
}

fn lives_in(pid: i32, directory: &Path) -> bool {
    match std::fs::read_link(format!("/proc/{pid}/cwd")) {
        Ok(found) => found.starts_with(directory),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&command).contains(&*directory.to_string_lossy())
        }
        Err(_) => false,
    }
}

/// The parent of a process that has not ended.
fn parent_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit(") ").next()?.split(' ');
    let state = fields.next()?;
    fields.next()?.parse().ok().filter(|_| state != "Z")
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
