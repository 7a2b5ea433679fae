//! What came of it all.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::process::Command;
use std::time::Duration;

use super::medium::Medium;
use super::options::{Options, Pace};
use super::rows::Row;
use crate::checker::{Kind, Violation};
use crate::history::{Fact, History, RunEnd};

/// What came of one row on one backend.
pub(super) struct Outcome {
    /// Deliveries of calls that returned Ok.
    published: usize,
    runs: usize,
    /// Runs of deliveries that were done before.
    repeats: usize,
    /// The longest time from a kill to the next run of a key that the killed worker had last run.
    take_over: Option<Duration>,
    /// What the store was allowed to lose is in here as well, and no finding.
    loss: usize,
    overlaps: usize,
    order_breaks: usize,
    wrong_dead_letters: usize,
    /// What must not be, in words.
    findings: Vec<String>,
    /// What the row itself has to say.
    remarks: Vec<String>,
}

impl Outcome {
    /// Counts. Violations of the expected kinds are no findings: the row says why.
    pub(super) fn new(
        history: &History,
        violations: &[Violation],
        expected: &[Kind],
        remarks: Vec<String>,
    ) -> Self {
        let violations: Vec<_> = violations.iter().filter(|found| !spans_a_stall(history, found)).collect();
        let count = |kinds: &[Kind]| violations.iter().filter(|found| kinds.contains(&found.kind)).count();
        let findings = violations.iter().filter(|found| !expected.contains(&found.kind));
        let (runs, repeats) = runs(history);
        Self {
            published: published(history),
            runs,
            repeats,
            take_over: take_over(history),
            loss: count(&[Kind::Loss]) + allowed_loss(history),
            overlaps: count(&[Kind::Overlap]),
            order_breaks: count(&[Kind::Order]),
            wrong_dead_letters: count(&[Kind::DeadLetter]),
            findings: findings.map(ToString::to_string).collect(),
            remarks,
        }
    }

    /// It did not come to a verdict.
    pub(super) fn broken(why: String) -> Self {
        Self {
            published: 0,
            runs: 0,
            repeats: 0,
            take_over: None,
            loss: 0,
            overlaps: 0,
            order_breaks: 0,
            wrong_dead_letters: 0,
            findings: vec![why],
            remarks: Vec::new(),
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        !self.findings.is_empty()
    }

    pub(super) fn in_short(&self) -> String {
        match self.findings.first() {
            None => {
                format!("pass  {} published, {} runs, {} repeats", self.published, self.runs, self.repeats)
            }
            Some(first) => format!("FAIL  {} findings; the first: {first}", self.findings.len()),
        }
    }
}

/// Whether a run overlaps another because its process stood meanwhile: a stopped process cannot end its runs, and what it
/// does until its next await when it goes on nobody can prevent. A run that it starts then is another matter.
fn spans_a_stall(history: &History, found: &Violation) -> bool {
    let stalls = history.records.iter().filter_map(|record| match &record.fact {
        Fact::WorkerStall { worker, .. } => Some((*worker, record.at)),
        _ => None,
    });
    let runs: HashMap<_, _> = found
        .evidence
        .iter()
        .filter_map(|record| match &record.fact {
            Fact::RunEnd { run, worker, .. } => Some(((*worker, *run), record.at)),
            _ => None,
        })
        .collect();
    let stalled: Vec<_> = stalls.collect();
    found.kind == Kind::Overlap
        && found.evidence.iter().any(|record| match &record.fact {
            Fact::RunStart { run, worker, .. } => {
                let end = runs.get(&(*worker, *run)).copied().unwrap_or(u64::MAX);
                stalled.iter().any(|(stalled, at)| stalled == worker && (record.at..end).contains(at))
            }
            _ => false,
        })
}

fn published(history: &History) -> usize {
    deliveries_of_calls(history, |fact| match fact {
        Fact::PublishOk { call } => Some(*call),
        _ => None,
    })
}

/// What the store lost within the limits of its durability.
fn allowed_loss(history: &History) -> usize {
    deliveries_of_calls(history, |fact| match fact {
        Fact::StoreLost { call } => Some(*call),
        _ => None,
    })
}

/// How many deliveries the calls have of which facts say so.
fn deliveries_of_calls(history: &History, call_of: impl Fn(&Fact) -> Option<u64>) -> usize {
    let mut sizes = HashMap::new();
    let mut sum = 0;
    for record in &history.records {
        if let Fact::PublishIntent { call, events, .. } = &record.fact {
            sizes.insert(*call, events.iter().map(|event| event.handlers.len()).sum::<usize>());
        }
        sum += call_of(&record.fact).and_then(|call| sizes.get(&call).copied()).unwrap_or(0);
    }
    sum
}

/// How many runs, and how many of them of something that was done.
fn runs(history: &History) -> (usize, usize) {
    let mut open = HashMap::new();
    let mut done = HashSet::new();
    let (mut runs, mut repeats) = (0, 0);
    for record in &history.records {
        match &record.fact {
            Fact::RunStart { run, worker, handler, event, .. } => {
                runs += 1;
                repeats += usize::from(done.contains(&(handler, *event)));
                open.insert((*worker, *run), (handler, *event));
            }
            Fact::RunEnd { run, worker, end: RunEnd::Done } => {
                done.extend(open.remove(&(*worker, *run)));
            }
            _ => {}
        }
    }
    (runs, repeats)
}

fn take_over(history: &History) -> Option<Duration> {
    let mut last_at: HashMap<(&String, &Option<String>), u32> = HashMap::new();
    let mut orphans: HashMap<(&String, &Option<String>), u64> = HashMap::new();
    let mut worst = None;
    for record in &history.records {
        match &record.fact {
            Fact::RunStart { handler, key, worker, .. } if key.is_some() => {
                let lane = (handler, key);
                if let Some(since) = orphans.remove(&lane) {
                    worst = worst.max(Some(record.at - since));
                }
                last_at.insert(lane, *worker);
            }
            Fact::WorkerCrash { worker } => {
                let lanes = last_at.iter().filter(|(_, last)| *last == worker);
                orphans.extend(lanes.map(|(lane, _)| (*lane, record.at)));
            }
            _ => {}
        }
    }
    worst.map(Duration::from_nanos)
}

/// What came of all rows on all backends.
pub(super) struct Report {
    seed: u64,
    pace: Pace,
    /// What they ran on.
    versions: Vec<String>,
    lines: Vec<Line>,
}

struct Line {
    medium: Medium,
    id: &'static str,
    title: &'static str,
    result: Result<(Duration, Outcome), &'static str>,
}

impl Report {
    pub(super) fn new(options: &Options) -> Self {
        Self { seed: options.seed, pace: options.pace, versions: Vec::new(), lines: Vec::new() }
    }

    pub(super) fn ran_on(&mut self, version: String) {
        self.versions.push(version);
    }

    pub(super) fn add(&mut self, medium: Medium, row: &Row, time: Duration, outcome: Outcome) {
        self.lines.push(Line { medium, id: row.id, title: row.title, result: Ok((time, outcome)) });
    }

    pub(super) fn skip(&mut self, medium: Medium, row: &Row, why: &'static str) {
        self.lines.push(Line { medium, id: row.id, title: row.title, result: Err(why) });
    }

    pub(super) fn has_failed(&self) -> bool {
        self.lines.iter().any(|line| matches!(&line.result, Ok((_, outcome)) if outcome.has_failed()))
    }

    /// How many rows kept all promises, how many did not, how many could not be run.
    fn tally(&self) -> (usize, usize, usize) {
        self.lines.iter().fold((0, 0, 0), |(passed, failed, skipped), line| match &line.result {
            Ok((_, outcome)) if outcome.has_failed() => (passed, failed + 1, skipped),
            Ok(_) => (passed + 1, failed, skipped),
            Err(_) => (passed, failed, skipped + 1),
        })
    }

    /// As a page of its own.
    pub(super) fn page(&self) -> String {
        format!(
            "# What the fault matrix found\n\nWritten by `cargo xtask faults --report FILE`; what each row does is in \
             `tests/src/faults/rows`.\n\nCommit {}. {} on {} cores.\n\n{self}",
            commit(),
            self.versions.join(", "),
            std::thread::available_parallelism().map_or(1, usize::from),
        )
    }
}

/// What is being tested, as far as git knows.
fn commit() -> String {
    let say = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output();
        output
            .ok()
            .filter(|output| output.status.success())
            .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = say(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    let is_changed =
        say(&["status", "--porcelain", "--untracked-files=no"]).is_none_or(|changes| !changes.is_empty());
    if is_changed { format!("{commit} with changes") } else { commit }
}

impl fmt::Display for Report {
    /// A table in Markdown, and below it what was found.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pace.is_fast {
            writeln!(
                f,
                "The fast subset: rows of some seconds, scaled down; `cargo xtask faults` runs all of them.\n"
            )?;
        }
        let (passed, failed, skipped) = self.tally();
        writeln!(
            f,
            "Seed {}. {passed} rows passed, {failed} failed, {skipped} cannot be run and say why. Deliveries are counted; times \
             are in seconds.\n",
            self.seed
        )?;
        writeln!(
            f,
            "| row | fault | backend | result | published | runs | repeats | worst take-over | loss | overlaps | order breaks | wrong dead letters | time |"
        )?;
        writeln!(f, "|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")?;
        for line in &self.lines {
            write!(f, "| {} | {} | {} | ", line.id, line.title, line.medium.name())?;
            match &line.result {
                Err(why) => writeln!(f, "not run: {why} | | | | | | | | | |")?,
                Ok((time, it)) => {
                    let result = if it.findings.is_empty() { "pass" } else { "**fail**" };
                    let take_over =
                        it.take_over.map_or_else(String::new, |time| format!("{:.2}", time.as_secs_f32()));
                    writeln!(
                        f,
                        "{result} | {} | {} | {} | {take_over} | {} | {} | {} | {} | {:.1} |",
                        it.published,
                        it.runs,
                        it.repeats,
                        it.loss,
                        it.overlaps,
                        it.order_breaks,
                        it.wrong_dead_letters,
                        time.as_secs_f32()
                    )?;
                }
            }
        }
        for line in &self.lines {
            let Ok((_, outcome)) = &line.result else { continue };
            for remark in &outcome.remarks {
                writeln!(f, "\n{} on {}: {remark}.", line.id, line.medium.name())?;
            }
            for finding in outcome.findings.iter().take(3) {
                writeln!(f, "\n{} on {}: {finding}", line.id, line.medium.name())?;
            }
        }
        Ok(())
    }
}
