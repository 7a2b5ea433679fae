//! The example `orders` from end to end: a plain run, a run that crashes half-way and the start after it, broken input.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::shell::{Cargo, Failed};
use crate::tally::Tally;

/// Ends of the program itself, as its documentation lists them; an abort is none of them.
const OWN_EXIT_CODES: [i32; 3] = [0, 1, 2];

pub(crate) fn run(tally: &mut Tally) -> Result<(), Failed> {
    // The documented command, on a machine with nothing but Rust.
    let plain = orders(&[])? == Some(0);
    expect(tally, "orders::a_plain_run_ends_well", plain)?;

    let scratch = Scratch::new()?;
    let file = scratch.file("orders.db");
    let killed = orders(&["--file", &file, "--kill-after", "3000"])?;
    let is_crash = killed.is_none_or(|code| !OWN_EXIT_CODES.contains(&code));
    expect(tally, "orders::kill_after_crashes_the_process", is_crash)?;
    let resumed = orders(&["--file", &file])? == Some(0);
    expect(tally, "orders::the_next_start_finishes_the_rest", resumed)?;

    let input = scratch.file("broken.jsonl");
    fs::write(&input, "{\"event\":\"order_placed\"\n").map_err(|error| no_scratch(&scratch.0, &error))?;
    let refused = orders(&["--input", &input])? == Some(2);
    expect(tally, "orders::broken_input_is_refused", refused)
}

/// Runs the example and answers with its exit code, `None` for a signal.
fn orders(arguments: &[&str]) -> Result<Option<i32>, Failed> {
    Ok(Cargo::new("run --example orders --").args(arguments).watch(|_| {})?.code())
}

fn expect(tally: &mut Tally, name: &str, has_passed: bool) -> Result<(), Failed> {
    tally.count(name, has_passed);
    if has_passed { Ok(()) } else { Err(Failed(format!("failed: {name}"))) }
}

/// A directory that is gone afterwards.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, Failed> {
        let path = std::env::temp_dir().join(format!("event-bus-xtask-{}", std::process::id()));
        fs::create_dir_all(&path).map_err(|error| no_scratch(&path, &error))?;
        Ok(Self(path))
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed lies in the system's temporary directory, which is cleaned by others.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn no_scratch(path: &Path, error: &io::Error) -> Failed {
    Failed(format!("cannot write to {}: {error}", path.display()))
}
