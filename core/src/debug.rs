//! For `#[derive(Event)]` alone: `Debug` of a type that may have none, chosen where the type is known.
//!
//! Method lookup tries `Show<'_, T>` before `&Show<'_, T>`, so `(&Show(event)).text()` takes the first of the two traits
//! if `T` has `Debug`, and the second if it has not.

use std::fmt;

/// A value to show.
pub struct Show<'a, T>(pub &'a T);

impl<T> fmt::Debug for Show<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Show")
    }
}

/// For types with `Debug`.
pub trait ByDebug {
    /// What `{:?}` prints.
    fn text(&self) -> Option<String>;
}

impl<T: fmt::Debug> ByDebug for Show<'_, T> {
    fn text(&self) -> Option<String> {
        Some(format!("{:?}", self.0))
    }
}

/// For types without.
pub trait ByNothing {
    /// Nothing.
    fn text(&self) -> Option<String>;
}

impl<T> ByNothing for &Show<'_, T> {
    fn text(&self) -> Option<String> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Loud;

    struct Quiet;

    #[test]
    #[allow(clippy::needless_borrow, reason = "the reference is what chooses between the two traits")]
    fn a_type_is_shown_if_it_can_be() {
        assert_eq!((&Show(&Loud)).text().as_deref(), Some("Loud"));
        assert_eq!((&Show(&Quiet)).text(), None);
    }
}
