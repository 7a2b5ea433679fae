//! What the compiler says to code that is wrong: each case of `ui` beside the text it must give.
//!
//! After a change of wording, write the texts anew with `TRYBUILD=overwrite` and read the difference. The cases in
//! `ui/compiler` are worded by the compiler itself, as of the workspace's `rust-version`.

#[test]
fn every_mistake_is_told_with_its_remedy() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/ui/*.rs");
    cases.compile_fail("tests/ui/compiler/*.rs");
}
