//! Every run is of something that was published, as it was published.

use super::index::Index;
use super::{Found, Kind};

pub(super) fn check(index: &Index<'_>, found: &mut Found<'_>) {
    for delivery in &index.deliveries {
        if let (Some(err), Some((dead, _))) = (delivery.call.err, delivery.dead.first()) {
            let text =
                format!("{} is a dead letter, but its publish call had stored nothing", index.name(delivery));
            found.add(Kind::Phantom, text, [delivery.call.intent, err, *dead]);
        }
    }
    for run in &index.runs {
        let Some(delivery) = run.delivery.map(|delivery| &index.deliveries[delivery]) else {
            let handler = index.handlers[run.handler as usize].name;
            let text = format!("event {} ran at {handler}, for which nobody had published it", run.event);
            found.add(Kind::Phantom, text, [run.start]);
            continue;
        };
        let name = index.name(delivery);
        let evidence = [delivery.call.intent, run.start];
        if let Some(err) = delivery.call.err {
            let text = format!("{name} ran, but its publish call had stored nothing");
            found.add(Kind::Phantom, text, evidence.into_iter().chain([err]));
        } else if delivery.event.is_garbage {
            found.add(Kind::Phantom, format!("{name} ran, but cannot be decoded"), evidence);
        } else if delivery.event.hash != run.hash {
            found.add(Kind::Phantom, format!("{name} ran with another payload"), evidence);
        } else if delivery.event.key.as_deref() != run.key {
            found.add(Kind::Phantom, format!("{name} ran with another key"), evidence);
        }
    }
}
