//! The fault matrix: what can go wrong in production, one row a fault, on every backend.
//!
//! ```text
//! faults [backend…] [row…] [--fast] [--seed N] [--minutes M] [--report FILE]
//! ```
//!
//! Each row has a server of its own (in the fast subset, a place of its own on one server), worker and publisher processes on it ([`node`](crate::node)) and, where
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
mod surroundings;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use medium::{Medium, Store};
use options::Options;
use report::{Outcome, Report};
use rows::Row;
use scene::Scene;
use surroundings::Surroundings;

/// How long a row may take, beside the time it was asked to take: long enough on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(600);

/// The same in the fast subset.
const PATIENCE_FAST: Duration = Duration::from_secs(120);

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
    if let Some(file) = &options.report
        && let Err(error) = std::fs::write(file, report.page())
    {
        eprintln!("faults: {}: {error}", file.display());
        return ExitCode::FAILURE;
    }
    match report.has_failed() {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

async fn run(options: &Options) -> Report {
    let mut report = Report::new(options);
    for medium in &options.media {
        let mut has_said = false;
        let mut shared = None;
        for row in rows::all().into_iter().filter(|row| options.wants(row, *medium)) {
            if let Some(why) = (row.why_not)(*medium) {
                report.skip(*medium, &row, why);
                continue;
            }
            let since = Instant::now();
            // Held until the server is gone, which may lie in them.
            let surroundings = Arc::new(Surroundings::new(row.needs, *medium));
            let is_shared = options.pace.is_fast && row.needs.is_empty();
            let server = match shared.take().filter(|_| is_shared) {
                Some(server) => Some(server),
                None => medium.server(&surroundings).await,
            };
            let store = medium.store(server.clone(), is_shared, &surroundings).await;
            if !std::mem::replace(&mut has_said, true) {
                report.ran_on(medium.version(&store).await);
            }
            let outcome = run_one(*medium, store, surroundings.clone(), row, options).await;
            // A row that went wrong may have left it in any state.
            shared = server.filter(|_| is_shared && !outcome.has_failed());
            let time = since.elapsed();
            println!("{} {:<4} {:>6.1} s  {}", medium.name(), row.id, time.as_secs_f32(), outcome.in_short());
            report.add(*medium, &row, time, outcome);
        }
    }
    report
}

/// In a task of its own, so that a panic is an outcome.
async fn run_one(
    medium: Medium,
    store: Store,
    surroundings: Arc<Surroundings>,
    row: Row,
    options: &Options,
) -> Outcome {
    let (seed, pace) = (options.seed, options.pace);
    let patience = pace.lasts + if pace.is_fast { PATIENCE_FAST } else { PATIENCE };
    let task = tokio::spawn(async move {
        let mut scene = Scene::new(medium, store, surroundings, seed, pace).await;
        let Ok(workers) = tokio::time::timeout(patience, (row.run)(&mut scene)).await else {
            return scene.stuck(patience).await;
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
