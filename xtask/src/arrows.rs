//! Who may depend on whom: `examples, benchmarks, tests → facade → backend-* → core`.
//!
//! Backends never depend on one another. Core knows no driver, no SQL and no socket, and no runtime but tokio.

use std::collections::BTreeSet;
use std::fs;

use crate::shell::{Cargo, Failed, root};

/// Drivers, runtimes and what opens sockets.
const NOT_IN_CORE: &[&str] = &[
    "async-io",
    "async-std",
    "deadpool",
    "fred",
    "lapin",
    "libsqlite3-sys",
    "mio",
    "redis",
    "rusqlite",
    "smol",
    "socket2",
    "sqlx",
    "sqlx-core",
    "tokio-postgres",
];

pub(crate) fn check() -> Result<(), Failed> {
    let backends = backends()?;
    let mut wrong = forbidden_in("event-bus-core", |name| is_ours(name) || NOT_IN_CORE.contains(&name))?;
    wrong.extend(forbidden_in("event-bus-macros", is_ours)?);
    for backend in &backends {
        wrong.extend(forbidden_in(backend, |name| is_ours(name) && name != "event-bus-core")?);
    }
    wrong.extend(forbidden_in("event-bus", |name| {
        ["event-bus-conformance", "event-bus-benchmarks", "xtask"].contains(&name)
    })?);
    if wrong.is_empty() {
        println!("\nthe arrows point the right way: core, macros, {}", backends.join(", "));
        return Ok(());
    }
    Err(Failed(format!("dependencies that must not be:\n  {}", wrong.join("\n  "))))
}

fn is_ours(name: &str) -> bool {
    name == "event-bus" || name.starts_with("event-bus-")
}

/// The packages in the directories `backend-*`.
fn backends() -> Result<Vec<String>, Failed> {
    let failed = |error| Failed(format!("cannot list {}: {error}", root().display()));
    let mut backends = Vec::new();
    for entry in fs::read_dir(root()).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        if let Some(medium) = name.strip_prefix("backend-") {
            backends.push(format!("event-bus-{medium}"));
        }
    }
    backends.sort();
    Ok(backends)
}

/// `package → dependency` for each direct or indirect dependency that is forbidden.
fn forbidden_in(package: &str, is_forbidden: impl Fn(&str) -> bool) -> Result<Vec<String>, Failed> {
    let tree = Cargo::new("tree --edges normal,build --all-features --prefix none --format {p} --package");
    let tree = tree.args(&[package]).read()?;
    let names: BTreeSet<&str> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let forbidden = names.into_iter().filter(|name| *name != package && is_forbidden(name));
    Ok(forbidden.map(|name| format!("{package} → {name}")).collect())
}
