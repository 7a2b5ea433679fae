//! Where the events come from: the shipped file, a file of the user's, a generator that makes as many as wanted.

use std::collections::HashMap;
use std::path::Path;

use event_bus::prelude::*;

use crate::events::{
    Customer, Item, OfOrder as _, OrderCancelled, OrderEvent, OrderPaid, OrderPlaced, OrderShipped,
};

/// Two weeks of a small shop for tea and coffee: 880 orders.
const SHIPPED: &str = include_str!("../data/orders.jsonl");

/// The source of a run, as its ledger remembers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// A file with one event a line; the shipped one if there is none.
    pub file: Option<String>,
    /// How many events; as many as the file has if nothing is said.
    pub events: Option<usize>,
}

impl Source {
    /// The events in the order in which they shall be published.
    ///
    /// # Errors
    /// A text for the user that names the file and the line.
    pub fn read(&self) -> Result<Vec<OrderEvent>, String> {
        let mut events = match &self.file {
            None => parse("examples/data/orders.jsonl", SHIPPED)?,
            Some(file) => {
                let bytes = std::fs::read(Path::new(file)).map_err(|error| format!("{file}: {error}"))?;
                let text = String::from_utf8(bytes).map_err(|error| {
                    let line = 1 + error.as_bytes()[..error.utf8_error().valid_up_to()]
                        .iter()
                        .filter(|byte| **byte == b'\n')
                        .count();
                    format!("{file}:{line}: this line is not UTF-8")
                })?;
                parse(file, &text)?
            }
        };
        if let Some(wanted) = self.events {
            generate(&mut events, wanted);
            events.truncate(wanted);
        }
        Ok(events)
    }
}

/// Reads one event a line and checks that each order's revisions count up from 1.
fn parse(file: &str, text: &str) -> Result<Vec<OrderEvent>, String> {
    let mut events = Vec::new();
    let mut revisions: HashMap<String, u32> = HashMap::new();
    for (line, number) in text.lines().zip(1..) {
        if line.trim().is_empty() {
            continue;
        }
        let event: OrderEvent = serde_json::from_str(line).map_err(|error| {
            // The parser sees one line, so its own line number would mislead.
            let text = error.to_string();
            let reason = text.split(" at line 1 column").next().unwrap_or_default();
            format!("{file}:{number}:{}: not an order event: {reason}", error.column())
        })?;
        let id = event.order_id();
        if id.is_empty() || id.len() > event_bus::MAX_KEY_BYTES || id.contains('\0') {
            let limit = event_bus::MAX_KEY_BYTES;
            return Err(format!(
                "{file}:{number}: an order_id has 1 to {limit} bytes and no NUL, for it is the partition key"
            ));
        }
        let revision = revisions.entry(event.order_id().to_owned()).or_default();
        *revision += 1;
        if event.revision() != *revision {
            return Err(format!(
                "{file}:{number}: order {:?} goes on with revision {}, expected was {revision}",
                event.order_id(),
                event.revision()
            ));
        }
        events.push(event);
    }
    if events.is_empty() {
        return Err(format!("{file}: there is no event in it"));
    }
    Ok(events)
}

const CITIES: [(&str, &str); 10] = [
    ("Berlin", "DE"),
    ("Wien", "AT"),
    ("Zürich", "CH"),
    ("Lyon", "FR"),
    ("Utrecht", "NL"),
    ("København", "DK"),
    ("Kraków", "PL"),
    ("Torino", "IT"),
    ("Valencia", "ES"),
    ("São Paulo", "BR"),
];
const SKUS: [(&str, u64); 6] = [
    ("TEA-EARL-500", 1_490),
    ("COF-ETHIO-250", 1_190),
    ("MUG-STONE-BLU", 1_890),
    ("POT-IRON-08", 7_490),
    ("FIL-PAPER-100", 590),
    ("GRI-ELEC-PRO", 27_900),
];
const CARRIERS: [&str; 3] = ["DHL", "DPD", "PostNord"];

/// Appends orders until there are `wanted` events or a few more, some dozens of orders interleaved. Always the same ones.
fn generate(events: &mut Vec<OrderEvent>, wanted: usize) {
    let mut random = fastrand::Rng::with_seed(20_260_316);
    let mut open: Vec<std::vec::IntoIter<OrderEvent>> = Vec::new();
    let mut number = 0;
    while events.len() < wanted {
        if open.len() < 40 {
            number += 1;
            open.push(life(number, &mut random).into_iter());
        }
        let chosen = random.usize(..open.len());
        match open[chosen].next() {
            Some(event) => events.push(event),
            None => drop(open.swap_remove(chosen)),
        }
    }
}

/// One order from its beginning to its end.
fn life(number: u32, random: &mut fastrand::Rng) -> Vec<OrderEvent> {
    let order_id = format!("G-{number:06}");
    let mut minute = u64::from(number) * 3;
    let mut revision = 0;
    let mut next = |random: &mut fastrand::Rng| {
        revision += 1;
        minute += random.u64(5..600);
        (order_id.clone(), revision, date(minute))
    };
    let items: Vec<Item> = (0..random.usize(1..4))
        .map(|_| {
            let (sku, unit_cents) = SKUS[random.usize(..SKUS.len())];
            Item { sku: sku.to_owned(), quantity: random.u32(1..4), unit_cents }
        })
        .collect();
    let total_cents = items.iter().map(|item| u64::from(item.quantity) * item.unit_cents).sum();
    // One in fifty comes from overseas.
    let city = if random.u32(..50) == 0 { CITIES.len() - 1 } else { random.usize(..CITIES.len() - 1) };
    let id = random.u32(2_000..4_000);
    let customer = Customer {
        id: format!("C-{id}"),
        name: format!("Customer {id}"),
        email: format!("c{id}@example.org"),
        city: CITIES[city].0.to_owned(),
        country: CITIES[city].1.to_owned(),
    };
    let (order, first, at) = next(random);
    let mut events = vec![OrderEvent::Placed(OrderPlaced {
        order_id: order,
        revision: first,
        at,
        customer,
        items,
        total_cents,
    })];
    if random.u32(..10) == 0 {
        let (order_id, revision, at) = next(random);
        let reason = "the customer changed their mind".to_owned();
        events.push(OrderEvent::Cancelled(OrderCancelled { order_id, revision, at, reason }));
        return events;
    }
    let (order, second, at) = next(random);
    let method = "card".to_owned();
    events.push(OrderEvent::Paid(OrderPaid {
        order_id: order,
        revision: second,
        at,
        method,
        amount_cents: total_cents,
    }));
    let parcels = random.u32(1..4);
    for parcel in 1..=parcels {
        let (order_id, revision, at) = next(random);
        let carrier = CARRIERS[random.usize(..CARRIERS.len())].to_owned();
        let tracking = format!("{:012}", random.u64(..1_000_000_000_000));
        events.push(OrderEvent::Shipped(OrderShipped {
            order_id,
            revision,
            at,
            carrier,
            tracking,
            parcel,
            parcels,
        }));
    }
    events
}

/// A minute after the shipped file's weeks, as an ISO 8601 date; months have 28 days here.
fn date(minute: u64) -> String {
    let (day, minute) = (minute / 1_440, minute % 1_440);
    let months = 3 + day / 28;
    let (year, month, day) = (2_026 + months / 12, 1 + months % 12, 1 + day % 28);
    format!("{year}-{month:02}-{day:02}T{:02}:{:02}:00Z", minute / 60, minute % 60)
}
