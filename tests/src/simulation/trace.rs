//! Claims and batches in a few words, for the log of a replay.

use std::fmt;

use event_bus_core::backend::{ClaimRequest, Claimed, Delivery, SettleBatch};

struct Brief<'a>(&'a Delivery);

impl fmt::Display for Brief<'_> {
    /// `0.1#17(key-0)`: handler 0, partition 1, number 17.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let delivery = self.0;
        write!(f, "{}.{}#{}", delivery.partition.handler.0, delivery.partition.number, delivery.id)?;
        match &delivery.envelope.key {
            Some(key) => write!(f, "({key})")?,
            None => write!(f, "()")?,
        }
        write!(f, "f{}c{}", delivery.failures, delivery.crashes)?;
        match delivery.due_in {
            Some(due_in) => write!(f, " due in {due_in:?}"),
            None => Ok(()),
        }?;
        if delivery.is_held { f.write_str(" held") } else { Ok(()) }
    }
}

pub(super) fn claim(request: &ClaimRequest, claimed: &Claimed) -> String {
    let mut text = String::from("asked");
    for demand in &request.demands {
        text += &format!(" {}:{}", demand.handler.0, demand.limit);
    }
    for lane in &request.lanes {
        let partition = lane.partition;
        text += &format!(" lane {}.{}({}):{}", partition.handler.0, partition.number, lane.key, lane.limit);
    }
    text += ", got";
    for delivery in &claimed.deliveries {
        text += &format!(" [{}]", Brief(delivery));
    }
    for (word, lanes) in [("still parked", &claimed.still_parked), ("parked", &claimed.parked)] {
        for lane in lanes {
            let partition = lane.partition;
            text += &format!(
                ", {word} {}.{}({}) from {}",
                partition.handler.0, partition.number, lane.key, lane.first
            );
        }
    }
    text
}

pub(super) fn settle(batch: &SettleBatch) -> String {
    let mut text = String::new();
    for settlement in &batch.settlements {
        text += &format!("[{} {:?}] ", Brief(&settlement.delivery), settlement.outcome);
    }
    for park in &batch.parks {
        let (partition, claimed) = (park.partition, park.claimed.len());
        text += &format!(
            "[park {}.{}({}) from {}, {claimed} claimed] ",
            partition.handler.0, partition.number, park.key, park.from
        );
    }
    text
}
