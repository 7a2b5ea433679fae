//! Runs the fault matrix. See [`event_bus_conformance::faults`].

use std::process::ExitCode;

fn main() -> ExitCode {
    event_bus_conformance::faults::main()
}
