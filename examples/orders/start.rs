//! The beginning of a run, or of its next start after a crash.

use std::path::{Path, PathBuf};

use event_bus::prelude::*;
use event_bus::{Builder, SqliteBackend};

use crate::events::OrderEvent;
use crate::input::Source;
use crate::ledger::{Header, Ledger, Record};
use crate::witness::Witness;
use crate::{Arguments, Stop};

/// A bus to be, over the backend of the user's choice.
pub async fn builder(arguments: &Arguments, file: &Path) -> Result<Builder, Stop> {
    let unusable = |error| Stop::Usage(event_bus::chain(&error));
    let Some(url) = &arguments.backend else {
        return Ok(EventBus::builder().backend(SqliteBackend::open(file).map_err(unusable)?));
    };
    // A bus without handlers, only to ask what the backend offers before a ledger is begun for it.
    let bus = EventBus::builder().connect(url).await.map_err(unusable)?.build()?;
    if arguments.file.is_some() && !bus.backend().capabilities().durable {
        let name = bus.backend().name();
        return Err(Stop::Usage(format!("the {name} backend keeps nothing to go on with: leave --file out")));
    }
    EventBus::builder().connect(url).await.map_err(unusable)
}

/// A run: what it is, its ledger, its events, and what the ledger tells of earlier starts.
type Opened = (Header, Ledger, Vec<OrderEvent>, Vec<Record>);

/// Begins a run, or goes on with the one whose ledger lies beside `file`.
pub fn open(arguments: &Arguments, file: &Path) -> Result<Opened, Stop> {
    let mut path = file.as_os_str().to_owned();
    path.push(".ledger.jsonl");
    let path = PathBuf::from(path);
    let input = match &arguments.input {
        None => None,
        Some(input) => {
            let full =
                input.canonicalize().map_err(|error| Stop::Usage(format!("{}: {error}", input.display())))?;
            Some(full.to_string_lossy().into_owned())
        }
    };
    let has_store = arguments.backend.is_some() || file.exists();
    match Ledger::open(&path).map_err(Stop::Usage)? {
        Some((ledger, header, records)) => {
            if !has_store && !records.is_empty() {
                return Err(Stop::Usage(format!(
                    "{} tells of a run whose database {} is gone: remove it, or choose another --file",
                    path.display(),
                    file.display()
                )));
            }
            let differs = (input.is_some() && input != header.source.file)
                || (arguments.events.is_some() && arguments.events != header.source.events);
            let events = header.source.read().map_err(Stop::Usage)?;
            if differs || events.len() != header.events {
                return Err(Stop::Usage(format!(
                    "{} is in the middle of other events; leave --input and --events out to finish them, or choose another --file",
                    file.display()
                )));
            }
            Ok((header, ledger, events, records))
        }
        None if arguments.backend.is_none() && has_store => Err(Stop::Usage(format!(
            "{} exists, and no ledger of this program beside it: choose another --file",
            file.display()
        ))),
        None => {
            let source = Source { file: input, events: arguments.events };
            let events = source.read().map_err(Stop::Usage)?;
            let run = format!("{:032x}", fastrand::u128(..));
            let header = Header { run, source, events: events.len() };
            let ledger = Ledger::create(&path, &header).map_err(Stop::Usage)?;
            Ok((header, ledger, events, Vec::new()))
        }
    }
}

/// Says what will be done.
pub fn greet(arguments: &Arguments, bus: &EventBus, witness: &Witness) {
    let books = witness.books();
    let place = match (&arguments.backend, &arguments.file) {
        (Some(_), _) => String::new(),
        (None, Some(file)) => format!(" in {}", file.display()),
        (None, None) => " in a temporary file".to_owned(),
    };
    println!(
        "{} events of {} orders, {} deliveries to {} handlers, on {}{place}",
        books.events.len(),
        books.orders(),
        books.wanted(),
        books.handlers.len(),
        bus.backend().name()
    );
    if books.done > 0 {
        println!("resuming: {} of {} deliveries were done", books.done, books.wanted());
    }
}
