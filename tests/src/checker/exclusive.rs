//! *one-at-a-time*: runs of one key, and runs of one delivery, never overlap; fences never go back.

use std::collections::HashMap;

use super::index::{Index, NEVER, Run};
use super::{Found, Kind};

/// What runs one at a time: a lane, or a free delivery.
#[derive(PartialEq, Eq, Hash)]
enum Line<'h> {
    Lane(u32, &'h str),
    Free(u32, u64),
}

pub(super) fn check(index: &Index<'_>, found: &mut Found<'_>) {
    let mut lines: HashMap<Line<'_>, (&Run<'_>, u64)> = HashMap::new();
    for run in &index.runs {
        let line = match run.key {
            Some(key) => Line::Lane(run.handler, key),
            None => Line::Free(run.handler, run.event),
        };
        let Some((latest, fence)) = lines.get_mut(&line) else {
            lines.insert(line, (run, run.fence));
            continue;
        };
        let handler = index.handlers[run.handler as usize].name;
        if latest.end > run.start {
            let text = match run.key {
                Some(key) => format!("two runs of key {key:?} of {handler} at once"),
                None => format!("two runs of event {} of {handler} at once", run.event),
            };
            let evidence = [latest.start, latest.end, run.start, run.end];
            found.add(Kind::Overlap, text, evidence.into_iter().filter(|at| *at != NEVER));
        }
        if run.fence != 0 && run.fence < *fence {
            let text = format!("the fence of a line of {handler} fell from {fence} to {}", run.fence);
            found.add(Kind::Fence, text, [latest.start, run.start]);
        }
        *fence = (*fence).max(run.fence);
        if run.end > latest.end {
            *latest = run;
        }
    }
}
