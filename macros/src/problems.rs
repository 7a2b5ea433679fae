//! All that is wrong with one input, told at once.

use std::fmt::Display;

use proc_macro2::Span;
use quote::ToTokens;
use syn::spanned::Spanned;
use syn::{Error, Result};

/// Collects errors, so that a user mends them in one go instead of one a compilation.
#[derive(Default)]
pub(crate) struct Problems(Option<Error>);

impl Problems {
    /// Adds an error that points at `place`.
    pub(crate) fn at(&mut self, place: impl ToTokens, text: impl Display) {
        self.add(Error::new_spanned(place, text));
    }

    /// Adds an error.
    pub(crate) fn add(&mut self, error: Error) {
        match &mut self.0 {
            Some(errors) => errors.combine(error),
            None => self.0 = Some(error),
        }
    }

    /// Splits a result: the value goes on, the error stays here.
    pub(crate) fn keep<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.add(error)).ok()
    }

    /// The end of checking: an error if there was any.
    pub(crate) fn finish(self) -> Result<()> {
        self.0.map_or(Ok(()), Err)
    }
}

/// For generated code of which the compiler may complain: the complaint points at `tokens` of the user's, but the code
/// still counts as generated, so that lints leave it alone.
pub(crate) fn place_of(tokens: &impl Spanned) -> Span {
    Span::call_site().located_at(tokens.span())
}
