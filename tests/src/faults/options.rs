//! What is asked for.

use std::path::PathBuf;
use std::time::Duration;

use super::medium::Medium;
use super::rows::{self, Row};

/// How long the rows last that last as long as they are told.
const LASTS: Duration = Duration::from_secs(10);

/// The same in the fast subset.
const LASTS_FAST: Duration = Duration::from_secs(2);

/// The arguments.
pub(super) struct Options {
    pub(super) media: Vec<Medium>,
    /// None: all.
    rows: Vec<String>,
    pub(super) seed: u64,
    pub(super) pace: Pace,
    /// Where the table is written as well.
    pub(super) report: Option<PathBuf>,
}

/// How much time there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    /// A row has some seconds, and only those are run that can do with that.
    pub(super) is_fast: bool,
    /// How long a row lasts that lasts as long as it is told.
    pub(super) lasts: Duration,
}

impl Pace {
    /// How many of something: in the fast subset, usually, and where there are minutes.
    pub(super) fn size(self, fast: u64, usual: u64, full: u64) -> u64 {
        match self.is_fast {
            true => fast,
            false if self.lasts > LASTS => full,
            false => usual,
        }
    }
}

impl Options {
    pub(super) fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let pace = Pace { is_fast: false, lasts: LASTS };
        let mut options = Self { media: Vec::new(), rows: Vec::new(), seed: 1, pace, report: None };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
            let number =
                |value: String| value.parse::<u64>().map_err(|error| format!("{argument} {value}: {error}"));
            match &*argument {
                "--fast" => options.pace = Pace { is_fast: true, lasts: LASTS_FAST },
                "--seed" => options.seed = number(value()?)?,
                "--minutes" => options.pace.lasts = Duration::from_secs(60 * number(value()?)?),
                "--report" => options.report = Some(value()?.into()),
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

    pub(super) fn wants(&self, row: &Row, medium: Medium) -> bool {
        let is_named = self.rows.is_empty() || self.rows.iter().any(|id| row.id.eq_ignore_ascii_case(id));
        is_named && (!self.pace.is_fast || row.fast.contains(&medium))
    }
}

fn media() -> String {
    Medium::ALL.map(Medium::name).join(", ")
}

fn ids() -> String {
    rows::all().iter().map(|row| row.id).collect::<Vec<_>>().join(", ")
}
