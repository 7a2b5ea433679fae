//! The library in a process of its own, so that it can be killed. See [`event_bus_conformance::node`].

use std::process::ExitCode;

fn main() -> ExitCode {
    event_bus_conformance::node::main()
}
