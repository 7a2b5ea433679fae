//! What is asked for.

use std::time::Duration;

use super::medium::Medium;
use super::rows::{self, Row};

/// How long the rows last that last as long as they are told.
const LASTS: Duration = Duration::from_secs(10);

/// The arguments.
pub(super) struct Options {
    pub(super) media: Vec<Medium>,
    /// None: all.
    rows: Vec<String>,
    pub(super) seed: u64,
    pub(super) lasts: Duration,
}

impl Options {
    pub(super) fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self { media: Vec::new(), rows: Vec::new(), seed: 1, lasts: LASTS };
        while let Some(argument) = arguments.next() {
            let mut number = || {
                let value = arguments.next().ok_or_else(|| format!("{argument} needs a number"))?;
                value.parse::<u64>().map_err(|error| format!("{argument} {value}: {error}"))
            };
            match &*argument {
                "--seed" => options.seed = number()?,
                "--minutes" => options.lasts = Duration::from_secs(60 * number()?),
                name => match Medium::ALL.iter().find(|medium| medium.name() == name) {
                    Some(medium) => options.media.push(*medium),
                    None if rows::all().iter().any(|row| row.id.eq_ignore_ascii_case(name)) => {
                        options.rows.push(name.to_owned());
                    }
                    None => {
                        return Err(format!(
                            "{name} is neither a backend ({}) nor a row ({})",
                            media(),
                            ids()
                        ));
                    }
                },
            }
        }
        if options.media.is_empty() {
            options.media = Medium::ALL.to_vec();
        }
        Ok(options)
    }

    pub(super) fn wants(&self, row: &Row) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|id| row.id.eq_ignore_ascii_case(id))
    }
}

fn media() -> String {
    Medium::ALL.map(Medium::name).join(", ")
}

fn ids() -> String {
    rows::all().iter().map(|row| row.id).collect::<Vec<_>>().join(", ")
}
