//! Statements over many rows: the repeated part of a `.sql` file, once a row.
//!
//! One statement over many rows is the difference between 20 thousand and 765 thousand rows a second, and SQLite has no
//! arrays to bind. Only a few sizes are prepared, so that they stay in the connection's statement cache.

use std::sync::{Arc, OnceLock};

/// The sizes beyond 16. The largest times 9 values stays below SQLite's 32,766 parameters.
const LARGE: [usize; 5] = [32, 64, 128, 256, 512];
const SMALL: usize = 16;
/// How many sizes a template can have: a statement cache must be larger than this times the templates in use.
pub(crate) const SIZES: usize = SMALL + LARGE.len();

/// A statement with a part that is repeated.
pub(crate) struct Template {
    source: &'static str,
    kind: Kind,
    texts: [OnceLock<Arc<str>>; SIZES],
}

#[derive(Clone, Copy)]
enum Kind {
    /// The only line that begins with `(?` is repeated, with commas.
    Values,
    /// All of it is repeated, with `union all`.
    Union,
}

impl Template {
    pub(crate) const fn values(source: &'static str) -> Self {
        Self { source, kind: Kind::Values, texts: [const { OnceLock::new() }; SIZES] }
    }

    pub(crate) const fn union(source: &'static str) -> Self {
        Self { source, kind: Kind::Union, texts: [const { OnceLock::new() }; SIZES] }
    }

    /// The statement for the first of `rows` rows, and for how many of them it is.
    pub(crate) fn largest(&self, rows: usize) -> (usize, Arc<str>) {
        let (size, position) = if rows <= SMALL {
            let size = rows.max(1);
            (size, size - 1)
        } else {
            let large = LARGE.iter().rposition(|size| *size <= rows);
            large.map_or((SMALL, SMALL - 1), |large| (LARGE[large], SMALL + large))
        };
        (size, self.texts[position].get_or_init(|| self.text(size)).clone())
    }

    fn text(&self, size: usize) -> Arc<str> {
        let lines = self.source.lines().filter(|line| !line.starts_with("--"));
        let text = match self.kind {
            Kind::Union => vec![lines.collect::<Vec<_>>().join("\n"); size].join("\nunion all\n"),
            Kind::Values => lines
                .map(
                    |line| {
                        if line.starts_with("(?") { vec![line; size].join(",\n") } else { line.to_owned() }
                    },
                )
                .collect::<Vec<_>>()
                .join("\n"),
        };
        text.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_rows_is_made_of_prepared_sizes() {
        static VALUES: Template =
            Template::values("-- why\ninsert into t values\n(?, ?)\non conflict do nothing");
        for rows in 1..2_000 {
            let mut left = rows;
            while left > 0 {
                let (size, text) = VALUES.largest(left);
                assert!(size <= left);
                assert_eq!(text.matches("(?, ?)").count(), size);
                left -= size;
            }
        }
        assert_eq!(&*VALUES.largest(2).1, "insert into t values\n(?, ?),\n(?, ?)\non conflict do nothing");
    }

    #[test]
    fn a_whole_statement_can_be_repeated() {
        static UNION: Template = Template::union("-- why\nselect ?");
        assert_eq!(&*UNION.largest(2).1, "select ?\nunion all\nselect ?");
    }
}
