//! `cargo xtask test`: everything that proves something, cheap things first.

use crate::orders;
use crate::shell::{Cargo, Failed, has_subcommand};
use crate::tally::Tally;

/// How long it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Everything.
    Full,
    /// Without the long simulation.
    Fast,
}

pub(crate) fn run(depth: Depth) -> Result<(), Failed> {
    // Servers would be started here. SQLite is compiled in, so there is nothing to install.
    let mut tally = Tally::new();
    let result = steps(depth, &mut tally);
    if let Err(Failed(reason)) = &result {
        println!("\n{reason}");
    }
    println!("\n{tally}");
    result.map_err(|_| Failed("the suite failed; the first reason stands above".to_owned()))
}

fn steps(depth: Depth, tally: &mut Tally) -> Result<(), Failed> {
    if has_subcommand("nextest") {
        step(Cargo::new("nextest run --workspace --all-features --profile ci"), tally)?;
    } else {
        println!(
            "cargo-nextest is not installed; cargo test runs the same tests, one program after the other"
        );
        step(Cargo::new("test --workspace --all-features --lib --bins --tests --no-fail-fast"), tally)?;
    }
    step(Cargo::new("test --workspace --all-features --doc"), tally)?;
    orders::run(tally)?;
    if depth == Depth::Full {
        let simulation = Cargo::new("test --release -p event-bus-conformance --test simulation");
        step(simulation.env("EVENT_BUS_SIM_SEEDS", "10000"), tally)?;
    }
    Ok(())
}

fn step(cargo: Cargo, tally: &mut Tally) -> Result<(), Failed> {
    let status = cargo.watch(|line| tally.read(line))?;
    if status.success() { Ok(()) } else { Err(Failed(format!("a step failed ({status})"))) }
}
