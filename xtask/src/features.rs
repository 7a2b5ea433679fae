//! Every combination of features that a user is likely to choose must compile without a warning: none, each alone, all.

use std::fs;

use crate::shell::{Cargo, Failed, root};

pub(crate) fn check() -> Result<(), Failed> {
    let manifest = root().join("Cargo.toml");
    let text = fs::read_to_string(&manifest)
        .map_err(|error| Failed(format!("cannot read {}: {error}", manifest.display())))?;
    let features = features_of(&text);
    if features.is_empty() {
        return Err(Failed(format!("{} has no [features]", manifest.display())));
    }
    clippy("--no-default-features")?;
    for feature in features {
        clippy(&format!("--no-default-features --features {feature}"))?;
    }
    clippy("--all-features")
}

fn clippy(selection: &str) -> Result<(), Failed> {
    Cargo::new(&format!("clippy -p event-bus --lib {selection} -- -D warnings")).run()
}

/// The names in the manifest's `[features]`, without `default`.
fn features_of(manifest: &str) -> Vec<&str> {
    let section = manifest.lines().skip_while(|line| line.trim() != "[features]").skip(1);
    section
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.trim_start().starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name.trim())
        .filter(|name| *name != "default")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_features_are_read_from_their_section_alone() {
        let manifest = "[package]\nname = \"x\"\n\n[features]\ndefault = [\"a\"]\n# b = []\na = []\nc-d = [\"a\"]\n\n[dependencies]\ne = \"1\"\n";
        assert_eq!(features_of(manifest), ["a", "c-d"]);
    }
}
