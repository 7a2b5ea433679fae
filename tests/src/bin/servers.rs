//! Holds servers for tests. See [`event_bus_conformance::servers::main`].

use std::process::ExitCode;

fn main() -> ExitCode {
    event_bus_conformance::servers::main()
}
