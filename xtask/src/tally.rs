//! Adds up what the test runners of all steps report.

use std::fmt;
use std::time::Instant;

/// How many tests there were so far, whoever ran them.
#[derive(Debug)]
pub(crate) struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
    since: Instant,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self { passed: 0, failed: 0, ignored: 0, since: Instant::now() }
    }

    /// Counts a line of output if it is a summary of libtest (`test result: ok. 3 passed; 0 failed; 1 ignored; …`) or of
    /// nextest (`Summary [ 1.2s] 4 tests run: 3 passed (1 slow), 1 failed, 2 skipped`).
    pub(crate) fn read(&mut self, line: &str) {
        // nextest repeats the output of failed tests, libtest's summary of one test included, but indented.
        if !(line.starts_with("test result:") || line.trim_start().starts_with("Summary [")) {
            return;
        }
        let words: Vec<&str> = line.split([' ', ';', ',']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let Ok(number) = pair[0].parse::<u64>() else { continue };
            match pair[1] {
                "passed" => self.passed += number,
                "failed" | "timed" | "exec" => self.failed += number,
                "ignored" | "skipped" => self.ignored += number,
                _ => {}
            }
        }
    }

    /// Counts one check that no test runner knows of.
    pub(crate) fn count(&mut self, name: &str, has_passed: bool) {
        println!("test {name} ... {}", if has_passed { "ok" } else { "FAILED" });
        if has_passed {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "test result: {}. {} passed; {} failed; {} ignored; 0 measured; 0 filtered out; finished in {:.2}s",
            if self.failed == 0 { "ok" } else { "FAILED" },
            self.passed,
            self.failed,
            self.ignored,
            self.since.elapsed().as_secs_f64()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally_of(lines: &[&str]) -> (u64, u64, u64) {
        let mut tally = Tally::new();
        for line in lines {
            tally.read(line);
        }
        (tally.passed, tally.failed, tally.ignored)
    }

    #[test]
    fn summaries_of_both_runners_are_added_up() {
        let lines = [
            "test a_test ... ok",
            "test result: ok. 14 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.11s",
            "     Summary [   3.201s] 120 tests run: 119 passed (2 slow), 1 failed, 3 skipped",
        ];
        assert_eq!(tally_of(&lines), (133, 1, 5));
    }

    #[test]
    fn the_output_of_a_failed_test_is_not_counted_again() {
        let lines = [
            "    test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 1 filtered out; finished in 67.05s",
            "     Summary [ 138.150s] 423 tests run: 421 passed, 2 failed, 145 skipped",
        ];
        assert_eq!(tally_of(&lines), (421, 2, 145));
    }

    #[test]
    fn a_test_that_was_cut_off_counts_as_failed() {
        let lines = ["     Summary [  60.014s] 3/9 tests run: 1 passed, 1 failed, 1 timed out, 0 skipped"];
        assert_eq!(tally_of(&lines), (1, 2, 0));
    }
}
