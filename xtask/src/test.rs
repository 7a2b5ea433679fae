//! `cargo xtask test`: everything that proves something, cheap things first.

use crate::servers::Source;
use crate::shell::{Cargo, Failed, has_subcommand};
use crate::tally::Tally;
use crate::{features, orders, servers};

/// Tests whose servers read certificates that they make, or talk to one another: a container sees neither the files nor the
/// ports of this machine.
const OF_THIS_MACHINE: &[&str] = &[
    "who_may_reach_a_broker",
    "certificates_are_checked_against_an_authority_of_ones_own_and_the_name_of_the_server",
    "events_go_by_tls_to_a_server_of_a_private_authority",
    "a_certificate_of_another_authority_or_for_another_host_is_refused",
    "a_failover_by_sentinel_is_followed_by_an_address_that_does",
];

/// How long it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Everything.
    Full,
    /// Without the long simulation.
    Fast,
}

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    depth: Depth,
    only_containers: bool,
}

impl Options {
    pub(crate) fn read(arguments: &[&str]) -> Result<Self, Failed> {
        let mut options = Self { depth: Depth::Full, only_containers: false };
        for argument in arguments {
            match *argument {
                "--fast" => options.depth = Depth::Fast,
                "--containers" => options.only_containers = true,
                unknown => return Err(Failed(format!("unknown option of test: {unknown}"))),
            }
        }
        Ok(options)
    }
}

pub(crate) fn run(options: Options) -> Result<(), Failed> {
    let source = servers::provide(options.only_containers)?;
    let mut tally = Tally::new();
    let result = steps(options.depth, source, &mut tally);
    if let Err(Failed(reason)) = &result {
        println!("\n{reason}");
    }
    println!("\n{tally}");
    result.map_err(|_| Failed("the suite failed; the first reason stands above".to_owned()))
}

fn steps(depth: Depth, source: Source, tally: &mut Tally) -> Result<(), Failed> {
    let features = features::of_workspace(source.needs_containers())?;
    let cargo = |arguments: &str| {
        let cargo = Cargo::new(&format!("{arguments} --features {features}"));
        match source {
            Source::Containers => cargo.env("EVENT_BUS_TEST_SERVERS", "containers"),
            Source::Here | Source::HereAndContainers => cargo,
        }
    };
    let left_out = if source == Source::Containers { OF_THIS_MACHINE } else { &[] };
    if !left_out.is_empty() {
        println!(
            "\nleft out, for their servers need files or servers of this machine: {}",
            left_out.join(", ")
        );
    }
    if has_subcommand("nextest") {
        let filter = left_out.iter().map(|name| format!("& not test({name})"));
        let filter = format!("all() {}", filter.collect::<Vec<_>>().join(" "));
        step(cargo("nextest run --workspace --profile ci").args(&["-E", &filter]), tally)?;
    } else {
        println!(
            "cargo-nextest is not installed; cargo test runs the same tests, one program after the other"
        );
        let mut skip = vec!["--"];
        skip.extend(left_out.iter().flat_map(|name| ["--skip", name]));
        step(cargo("test --workspace --lib --bins --tests --no-fail-fast").args(&skip), tally)?;
    }
    step(cargo("test --workspace --doc"), tally)?;
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
