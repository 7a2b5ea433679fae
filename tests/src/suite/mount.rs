//! From cases to tests.

use std::sync::Arc;

use libtest_mimic::{Failed, Trial};

use super::harness::Harness;
use super::note::SCRIPTED;

/// The whole suite for one harness: tests called `sqlite::key_order::a_failing_head_holds_its_key`.
pub fn mount(harness: Arc<dyn Harness>) -> Vec<Trial> {
    let cases = super::cases().into_iter().filter(|case| case.applies_to(&*harness));
    cases
        .map(|case| {
            let name = format!("{}::{}::{}", harness.name(), case.guarantee, case.name);
            let why_ignored = case.why_ignored(&*harness);
            let harness = harness.clone();
            let trial = Trial::test(name, move || match why_ignored {
                Some(why) => Err(Failed::from(format!("cannot be run: {why}"))),
                None => {
                    let runtime =
                        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
                    let verdict = runtime.block_on(case.run(harness));
                    // A handler that blocks its thread must not keep the others from being tested.
                    runtime.shutdown_background();
                    verdict.map_err(Failed::from)
                }
            });
            match why_ignored {
                Some(why) => trial.with_kind(why).with_ignored_flag(true),
                None => trial,
            }
        })
        .collect()
}

/// Keeps panics that cases ask for out of the output.
pub fn quiet_scripted_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.payload_as_str().is_some_and(|text| text.contains(SCRIPTED)) {
            report(panic);
        }
    }));
}
