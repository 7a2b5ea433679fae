//! *durable-before-ok*: what was published is done or dead at the end, and nothing is left over.

use super::index::{Index, NEVER};
use super::{Found, Kind};
use crate::history::RunEnd;

pub(super) fn check(index: &Index<'_>, found: &mut Found<'_>) {
    for delivery in &index.deliveries {
        let name = index.name(delivery);
        let runs = || delivery.runs.iter().map(|run| &index.runs[*run]);
        let positions = || {
            let ends = runs().flat_map(|run| [run.start, run.end]);
            [delivery.call.intent].into_iter().chain(delivery.call.ok).chain(ends).filter(|at| *at != NEVER)
        };
        if let Some((at, pending)) = delivery.pending {
            let text = format!("{name} is still pending: {}", pending.state);
            found.add(Kind::Loss, text, positions().chain([at]));
            continue;
        }
        let is_done = runs().any(|run| run.how == Some(RunEnd::Done));
        let is_settled = is_done || !delivery.dead.is_empty() || delivery.purged.is_some();
        if delivery.call.ok.is_some() && !is_settled {
            found.add(
                Kind::Loss,
                format!("{name} was published, but no run of it succeeded and it is no dead letter"),
                positions(),
            );
        }
    }
}
