//! One published event as a test remembers it.

use std::fmt;
use std::panic::Location;

use event_bus_core::backend::{Envelope, Watched};
use event_bus_core::codec;

use crate::Mode;

/// Whether somebody has said something about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Not yet.
    Open,
    /// An assertion took it.
    Taken,
    /// A failed check listed it.
    Reported,
}

#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) envelope: Envelope,
    pub(crate) mode: Mode,
    pub(crate) standing: Standing,
    debug: Option<String>,
    location: &'static Location<'static>,
}

impl Record {
    /// The events of one call, in its order.
    pub(crate) fn of_call(call: &Watched, mode: Mode) -> impl Iterator<Item = Self> {
        let events = call.publication.events.iter().zip(&call.debug);
        events.map(move |(event, debug)| Self {
            envelope: event.envelope.clone(),
            mode,
            standing: Standing::Open,
            debug: debug.clone(),
            location: call.publication.location,
        })
    }

    /// Published in strict mode, and not asserted.
    pub(crate) fn is_open(&self) -> bool {
        self.mode == Mode::Strict && self.standing == Standing::Open
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.debug {
            Some(debug) => f.write_str(debug)?,
            None => write!(f, "{} {}", self.envelope.name, codec::readable(&self.envelope.payload))?,
        }
        write!(f, " at {}:{}", self.location.file(), self.location.line())
    }
}

/// `heading`, and below it a line for each record; nothing if there is none.
pub(crate) fn list<'a>(text: &mut String, heading: &str, records: impl Iterator<Item = &'a Record>) {
    let mut number = 0;
    for record in records {
        number += 1;
        if number == 1 {
            text.push_str("\n\n");
            text.push_str(heading);
            text.push(':');
        }
        text.push_str(&format!("\n  {number}. {record}"));
    }
}
