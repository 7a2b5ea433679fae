//! `cargo xtask check`: what can be said without running anything.

use crate::shell::{Cargo, Failed, has_subcommand};
use crate::{arrows, features};

pub(crate) fn run() -> Result<(), Failed> {
    Cargo::new("fmt --all --check").run()?;
    arrows::check()?;
    Cargo::new("clippy --workspace --all-targets --all-features -- -D warnings").run()?;
    features::check()?;
    Cargo::new("doc --workspace --all-features --no-deps").env("RUSTDOCFLAGS", "-D warnings").run()?;
    if has_subcommand("deny") {
        Cargo::new("deny check bans licenses sources").run()
    } else {
        println!(
            "\ncargo-deny is not installed: licences and sources of dependencies were not checked (deny.toml)"
        );
        Ok(())
    }
}
