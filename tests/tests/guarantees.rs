//! The documents name cases that exist, and every promise.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use event_bus_conformance::suite::cases;

const GUARANTEES: &str = include_str!("../../docs/guarantees.md");

#[test]
fn every_case_that_the_guarantees_name_exists() {
    let known: BTreeSet<_> =
        cases().iter().map(|case| format!("{}::{}", case.guarantee, case.name)).collect();
    let mut named = 0;
    for word in
        GUARANTEES.split('`').filter(|word| word.contains("::") && word.starts_with(char::is_lowercase))
    {
        named += 1;
        assert!(known.contains(word), "{word} is named in docs/guarantees.md and is no case of the suite");
    }
    assert!(named > 40, "only {named} cases found in docs/guarantees.md");
}

#[test]
fn every_group_of_cases_is_named() {
    for guarantee in cases().iter().map(|case| case.guarantee).collect::<BTreeSet<_>>() {
        assert!(
            GUARANTEES.contains(&format!("`{guarantee}::")),
            "docs/guarantees.md names no case of {guarantee}"
        );
    }
}
