//! JSON lines while it runs, a table at the end.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;

use serde::Serialize;

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub backend: &'static str,
    pub workload: String,
    pub what: String,
    pub value: f64,
    pub min: f64,
    pub max: f64,
    pub unit: &'static str,
}

/// All figures of a run.
pub struct Report {
    backend: &'static str,
    rows: Vec<Row>,
    file: Option<File>,
}

impl Report {
    pub fn new(path: Option<PathBuf>) -> io::Result<Self> {
        let file = path.map(|path| File::options().create(true).append(true).open(path)).transpose()?;
        Ok(Self { backend: "engine", rows: Vec::new(), file })
    }

    /// What the following figures are of.
    pub fn of(&mut self, backend: &'static str) {
        self.backend = backend;
    }

    /// Reports the median of several samples of one figure, and returns it.
    pub fn add(&mut self, workload: &str, what: &str, unit: &'static str, mut samples: Vec<f64>) -> f64 {
        samples.sort_by(f64::total_cmp);
        let value = samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN);
        let row = Row {
            backend: self.backend,
            workload: workload.to_owned(),
            what: what.to_owned(),
            value,
            min: samples.first().copied().unwrap_or(f64::NAN),
            max: samples.last().copied().unwrap_or(f64::NAN),
            unit,
        };
        if let Ok(line) = serde_json::to_string(&row) {
            let mut out = io::stdout().lock();
            // A closed pipe ends the reader's interest, not the measurement.
            let _ = writeln!(out, "{line}");
            if let Some(file) = &mut self.file {
                let _ = writeln!(file, "{line}");
            }
        }
        self.rows.push(row);
        value
    }

    pub fn print_table(&self) {
        let mut out = io::stdout().lock();
        let _ = writeln!(
            out,
            "\n{:<10} {:<10} {:<44} {:>12} {:>25}  unit",
            "backend", "workload", "what", "median", "min–max"
        );
        for row in &self.rows {
            let range = format!("{}–{}", number(row.min), number(row.max));
            let _ = writeln!(
                out,
                "{:<10} {:<10} {:<44} {:>12} {range:>25}  {}",
                row.backend,
                row.workload,
                row.what,
                number(row.value),
                row.unit
            );
        }
    }
}

fn number(value: f64) -> String {
    if value >= 1_000.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
