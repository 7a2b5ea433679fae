//! The fault matrix: what can go wrong in production, one row a fault, on every backend.
//!
//! ```text
//! faults [backend…] [row…] [--seed N] [--minutes M]
//! ```
//!
//! Each row starts a server of its own, worker and publisher processes on it ([`node`](crate::node)) and, where
//! connections are to be spoiled, a [proxy](crate::proxy) between them. At the end everything is healed, the backlog must
//! drain, and the [checker](crate::checker) holds what all processes wrote down against the promises. A table says what
//! came of it; a row that cannot be run says why.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a row fails by panicking")]
#![allow(clippy::print_stdout, reason = "a program talks to the terminal")]

mod medium;
mod options;
mod report;
mod rows;
mod scene;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use medium::Medium;
use options::Options;
use report::{Outcome, Report};
use rows::Row;
use scene::Scene;

/// How long a row may take, beside the time it was asked to take.
const PATIENCE: Duration = Duration::from_secs(240);

/// The program.
pub fn main() -> ExitCode {
    crate::suite::quiet_scripted_panics();
    let options = match Options::read(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(why) => {
            eprintln!("faults: {why}");
            return ExitCode::FAILURE;
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let report = runtime.expect("a runtime").block_on(run(&options));
    println!("\n{report}");
    match report.has_failed() {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

async fn run(options: &Options) -> Report {
    let mut report = Report::new(options.seed);
    for medium in &options.media {
        for row in rows::all().into_iter().filter(|row| options.wants(row)) {
            if let Some(why) = (row.why_not)(*medium) {
                report.skip(*medium, &row, why);
                continue;
            }
            let since = Instant::now();
            let outcome = run_one(*medium, row, options).await;
            let time = since.elapsed();
            println!("{} {:<4} {:>6.1} s  {}", medium.name(), row.id, time.as_secs_f32(), outcome.in_short());
            report.add(*medium, &row, time, outcome);
        }
    }
    report
}

/// In a task of its own, so that a panic is an outcome.
async fn run_one(medium: Medium, row: Row, options: &Options) -> Outcome {
    let (seed, lasts) = (options.seed, options.lasts);
    let task = tokio::spawn(async move {
        let mut scene = Scene::new(medium, seed, lasts).await;
        let Ok(workers) = tokio::time::timeout(PATIENCE + lasts, (row.run)(&mut scene)).await else {
            return scene.stuck(PATIENCE).await;
        };
        scene.finish(workers, &row).await
    });
    task.await.unwrap_or_else(|error| {
        Outcome::broken(match error.try_into_panic() {
            Ok(panic) => crate::suite::text_of(&*panic),
            Err(error) => error.to_string(),
        })
    })
}
