//! What a developer or a CI server does with this repository, in one word each.

#![allow(clippy::print_stdout, reason = "a command line tool talks to the terminal")]

mod arrows;
mod check;
mod features;
mod orders;
mod servers;
mod shell;
mod tally;
mod test;

use std::process::ExitCode;

use shell::{Cargo, Failed};

const HELP: &str = "\
cargo xtask <command>

  check           format, lints, documentation, every combination of features, and who may depend on whom
  test [--fast] [--containers]
                  the whole suite: tests, doc tests, the example with a crash in the middle, 10,000 simulated histories;
                  --fast leaves out the 10,000 histories (some hundreds run in the suite in any case);
                  --containers takes every server from Docker
  servers         starts Postgres, Redis and RabbitMQ for tests and prints their URLs, until Ctrl-C
  faults [backend..] [row..] [--fast] [--seed N] [--minutes M] [--report FILE]
                  the fault matrix: real processes are killed and stopped, connections cut, servers taken away; prints a
                  table of what came of it, and writes it to FILE; --fast runs what takes some seconds
  bench [ARGS..]  the benchmarks, in release mode; `cargo xtask bench --help` lists the scenarios

Nothing has to be installed but Rust. Servers that tests need are found by EVENT_BUS_TEST_{POSTGRES,REDIS,AMQP}_URL, among
the programs of this machine (as root on Debian, what is missing is installed), or in Docker. cargo-nextest and cargo-deny are used where they are found.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["check"] => check::run(),
        ["test", options @ ..] => test::Options::read(options).and_then(test::run),
        ["servers"] => servers::hold(),
        ["faults", rest @ ..] => servers::faults(rest),
        ["bench", rest @ ..] => bench(rest),
        [] | ["help" | "--help" | "-h"] => {
            println!("{HELP}");
            Ok(())
        }
        unknown => Err(Failed(format!("unknown command: {}\n\n{HELP}", unknown.join(" ")))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed(reason)) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}

fn bench(arguments: &[&str]) -> Result<(), Failed> {
    Cargo::new("run --release --quiet -p event-bus-benchmarks --").args(arguments).run()
}
