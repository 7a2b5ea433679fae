//! Every combination of features that a user is likely to choose must compile without a warning: none, each alone, all.

use std::fs;
use std::path::Path;

use crate::shell::{Cargo, Failed, root};

pub(crate) fn check() -> Result<(), Failed> {
    let text = manifest(Path::new("."))?;
    let features = features_of(&text);
    if features.is_empty() {
        return Err(Failed("the manifest of the repository has no [features]".to_owned()));
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

/// Every feature of every package of this workspace, as cargo takes them; containers for tests, which take minutes to
/// compile, only if they are wanted.
pub(crate) fn of_workspace(with_containers: bool) -> Result<String, Failed> {
    let mut found = Vec::new();
    let whole = manifest(Path::new("."))?;
    for member in std::iter::once(".").chain(members_of(&whole)) {
        let manifest = manifest(Path::new(member))?;
        let Some(package) = name_of(&manifest) else { continue };
        let wanted =
            features_of(&manifest).into_iter().filter(|name| with_containers || *name != "containers");
        found.extend(wanted.map(|feature| format!("{package}/{feature}")));
    }
    Ok(found.join(","))
}

fn manifest(directory: &Path) -> Result<String, Failed> {
    let manifest = root().join(directory).join("Cargo.toml");
    fs::read_to_string(&manifest)
        .map_err(|error| Failed(format!("cannot read {}: {error}", manifest.display())))
}

/// The name in `[package]`.
fn name_of(manifest: &str) -> Option<&str> {
    let section = manifest.lines().skip_while(|line| line.trim() != "[package]");
    section.filter_map(|line| line.strip_prefix("name = \"")).next()?.split('"').next()
}

/// The directories in `members`, one a line.
fn members_of(manifest: &str) -> impl Iterator<Item = &str> {
    let lines = manifest.lines().skip_while(|line| line.trim() != "members = [").skip(1);
    lines.take_while(|line| line.trim() != "]").filter_map(|line| line.split('"').nth(1))
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
    fn packages_are_found_by_the_members_of_the_workspace() {
        let manifest = "[workspace]\nmembers = [\n    \"a\",\n    \"b/c\",\n]\n[package]\nversion = \"1\"\nname = \"x\"\n";
        assert_eq!(members_of(manifest).collect::<Vec<_>>(), ["a", "b/c"]);
        assert_eq!(name_of(manifest), Some("x"));
    }

    #[test]
    fn containers_are_left_out_unless_they_are_wanted() {
        let has_containers = |all: &str| all.split(',').any(|f| f == "event-bus-conformance/containers");
        let without = of_workspace(false).unwrap();
        assert!(without.split(',').any(|feature| feature == "event-bus/sqlite"), "{without}");
        assert!(!has_containers(&without));
        assert!(has_containers(&of_workspace(true).unwrap()));
    }

    #[test]
    fn the_features_are_read_from_their_section_alone() {
        let manifest = "[package]\nname = \"x\"\n\n[features]\ndefault = [\"a\"]\n# b = []\na = []\nc-d = [\"a\"]\n\n[dependencies]\ne = \"1\"\n";
        assert_eq!(features_of(manifest), ["a", "c-d"]);
    }
}
