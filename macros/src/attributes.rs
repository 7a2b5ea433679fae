//! Reads `#[event(...)]`: what may stand in it, and what each value must look like.

use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::{
    Attribute, Data, DeriveInput, Error, Expr, ExprLit, ExprPath, Ident, Index, Lit, LitInt, LitStr, Member,
    Result, Token, token,
};

use crate::problems::Problems;

/// The same as core's `MAX_NAME_BYTES`; a test compares them.
const MAX_NAME_BYTES: usize = 128;

/// What `#[event(...)]` knows on an event, for errors.
const EVENT_KEYS: &str = "`name`, `alias`, `version`, `upcast`, `partition_key`, `partitioned` and `crate`";

/// What it knows on a set of events, for errors.
const SET_KEYS: &str = "`crate`";

const FACADE_VALUE: &str = "the path of a crate: `crate = ::event_bus`";

/// What `#[event(...)]` says about one event. The values are well-formed by themselves; whether they fit together and
/// fit the type is for the derive to say.
#[derive(Default)]
pub(crate) struct EventAttributes {
    /// Every key that was given, with a well-formed value or not.
    keys: Vec<String>,
    krate: Option<ExprPath>,
    /// Present unless a problem was reported.
    pub(crate) name: Option<LitStr>,
    pub(crate) aliases: Vec<LitStr>,
    /// As written, and its value.
    pub(crate) version: Option<(LitInt, u32)>,
    pub(crate) upcast: Option<ExprPath>,
    pub(crate) partition_key: Option<Member>,
    /// The flag itself, for errors to point at.
    pub(crate) partitioned: Option<Ident>,
}

impl EventAttributes {
    /// Reads the attributes of an event.
    pub(crate) fn read(input: &DeriveInput, problems: &mut Problems) -> Self {
        let mut found = Self::default();
        let entries = entries(&input.attrs, EVENT_KEYS, problems);
        let is_readable = entries.is_some();
        for Entry { key, value } in entries.unwrap_or_default() {
            let spelled = key.to_string();
            if spelled != "alias" && found.has(&spelled) {
                problems.at(&key, format!("`{key}` is given twice: keep one"));
                continue;
            }
            match spelled.as_str() {
                "name" => found.name = problems.keep(value.name(&key)),
                "alias" => found.aliases.extend(problems.keep(value.name(&key))),
                "version" => found.version = problems.keep(value.version(&key)),
                "upcast" => {
                    found.upcast = problems.keep(value.path(&key, "the path of a function: `upcast = lift`"))
                }
                "partition_key" => found.partition_key = problems.keep(value.member(&key)),
                "partitioned" => found.partitioned = problems.keep(value.flag(&key)),
                "crate" => found.krate = problems.keep(value.path(&key, FACADE_VALUE)),
                _ => problems.at(&key, format!("unknown key `{key}`; known: {EVENT_KEYS}")),
            }
            found.keys.push(spelled);
        }
        if is_readable && !found.has("name") {
            let text = "an event needs a name, its identity wherever it is stored: add \
                        `#[event(name = \"orders.order_placed\")]`";
            problems.at(&input.ident, text);
        }
        refuse_inner_attributes(input, EVENT_KEYS, problems);
        found
    }

    /// Whether `key` was given, if only with a value that was refused.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.keys.iter().any(|known| known == key)
    }

    /// The path of the facade crate.
    pub(crate) fn facade(&self) -> TokenStream {
        facade(self.krate.as_ref())
    }
}

/// Reads the attributes of a set of events; answers with the path of the facade crate.
pub(crate) fn read_set(input: &DeriveInput, problems: &mut Problems) -> TokenStream {
    let mut krate = None;
    for Entry { key, value } in entries(&input.attrs, SET_KEYS, problems).unwrap_or_default() {
        match key.to_string().as_str() {
            "crate" => krate = problems.keep(value.path(&key, FACADE_VALUE)),
            "name" | "alias" | "version" | "upcast" | "partition_key" | "partitioned" => problems.at(
                &key,
                format!(
                    "a set of events has no `{key}`, each event in it brings its own: remove it, or derive `Event` \
                     instead of `Events` (a type is one event or a set of them, never both)"
                ),
            ),
            _ => problems.at(&key, format!("unknown key `{key}`; known: {SET_KEYS}")),
        }
    }
    refuse_inner_attributes(input, SET_KEYS, problems);
    facade(krate.as_ref())
}

fn facade(krate: Option<&ExprPath>) -> TokenStream {
    krate.map_or_else(|| quote!(::event_bus), ToTokens::to_token_stream)
}

/// Says why `name` cannot be the name of an event: the rules and words of core's `check_name`, at compile time.
fn check_name(name: &str) -> std::result::Result<(), String> {
    if name.is_empty() {
        return Err("a name must not be empty".into());
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(format!("a name has at most {MAX_NAME_BYTES} bytes, this one has {}", name.len()));
    }
    match name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ':'))) {
        Some(c) => Err(format!("the name {name:?} contains {c:?}; allowed are a-z A-Z 0-9 . _ - :")),
        None => Ok(()),
    }
}

/// One `key`, `key = value` or `key(...)`.
struct Entry {
    key: Ident,
    value: Value,
}

enum Value {
    /// Just the key.
    Absent,
    /// `= value`. An expression covers every value there is, so that a wrong one is refused in our words and the
    /// entries after it are still read.
    Given(Expr),
    /// `(...)`, which no key takes.
    List,
}

impl Parse for Entry {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let key = input.call(Ident::parse_any)?;
        let value = if input.peek(Token![=]) {
            input.parse::<Token![=]>()?;
            Value::Given(input.parse()?)
        } else if input.peek(token::Paren) {
            let list;
            syn::parenthesized!(list in input);
            list.parse::<TokenStream>()?;
            Value::List
        } else {
            Value::Absent
        };
        Ok(Self { key, value })
    }
}

impl Value {
    fn name(self, key: &Ident) -> Result<LitStr> {
        match self {
            Self::Given(Expr::Lit(ExprLit { lit: Lit::Str(name), .. })) => {
                check_name(&name.value()).map_err(|text| Error::new_spanned(&name, text))?;
                Ok(name)
            }
            other => Err(other.wrong(key, "a string literal: `name = \"orders.order_placed\"`")),
        }
    }

    fn version(self, key: &Ident) -> Result<(LitInt, u32)> {
        let expected = "a whole number from 1: `version = 2`";
        match self {
            Self::Given(Expr::Lit(ExprLit { lit: Lit::Int(literal), .. })) => {
                match literal.base10_parse::<u32>() {
                    Ok(version) if version >= 1 => Ok((literal, version)),
                    _ => Err(Error::new_spanned(literal, format!("`{key}` takes {expected}"))),
                }
            }
            other => Err(other.wrong(key, expected)),
        }
    }

    fn path(self, key: &Ident, expected: &str) -> Result<ExprPath> {
        match self {
            Self::Given(Expr::Path(path)) => Ok(path),
            other => Err(other.wrong(key, expected)),
        }
    }

    fn member(self, key: &Ident) -> Result<Member> {
        let expected = "a field of this struct, by its bare name or index: `partition_key = order_id` (for any other \
                        key say `partitioned` and write `impl Partitioned`)";
        match self {
            Self::Given(Expr::Path(path)) if path.qself.is_none() => match path.path.get_ident() {
                Some(name) => Ok(Member::Named(name.clone())),
                None => Err(Self::Given(Expr::Path(path)).wrong(key, expected)),
            },
            Self::Given(Expr::Lit(ExprLit { lit: Lit::Int(literal), .. })) => {
                let index = literal.base10_parse()?;
                Ok(Member::Unnamed(Index { index, span: literal.span() }))
            }
            other => Err(other.wrong(key, expected)),
        }
    }

    fn flag(self, key: &Ident) -> Result<Ident> {
        match self {
            Self::Absent => Ok(key.clone()),
            other => Err(other.wrong(key, "no value: let it stand alone")),
        }
    }

    /// The error for a value of the wrong kind.
    fn wrong(self, key: &Ident, expected: &str) -> Error {
        let text = format!("`{key}` takes {expected}");
        match self {
            Self::Given(value) => Error::new_spanned(value, text),
            Self::Absent | Self::List => Error::new_spanned(key, text),
        }
    }
}

/// The entries of all `#[event(...)]` among `attributes`; `None` if one of them cannot be read.
fn entries(attributes: &[Attribute], known: &str, problems: &mut Problems) -> Option<Vec<Entry>> {
    let lists = attributes.iter().filter(|attribute| attribute.path().is_ident("event"));
    let parse = |input: ParseStream<'_>| {
        if !input.is_empty() && !input.peek(Ident::peek_any) {
            return Err(input.error(format!("expected a key; known: {known}")));
        }
        Punctuated::<Entry, Token![,]>::parse_terminated(input)
    };
    let read: Vec<_> = lists.map(|list| problems.keep(list.parse_args_with(parse))).collect();
    let lists = read.into_iter().collect::<Option<Vec<_>>>()?;
    Some(lists.into_iter().flatten().collect())
}

/// Reports `#[event(...)]` on variants and fields, which take none.
fn refuse_inner_attributes(input: &DeriveInput, known: &str, problems: &mut Problems) {
    let mut refuse = |attributes: &[Attribute], place: &str| {
        for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("event")) {
            let text = format!(
                "a {place} takes no `#[event(...)]`: put it on the type itself; known there: {known}"
            );
            problems.at(attribute, text);
        }
    };
    match &input.data {
        Data::Struct(data) => data.fields.iter().for_each(|field| refuse(&field.attrs, "field")),
        Data::Enum(data) => {
            for variant in &data.variants {
                refuse(&variant.attrs, "variant");
                variant.fields.iter().for_each(|field| refuse(&field.attrs, "field"));
            }
        }
        // Refused as a whole.
        Data::Union(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules_of_core() {
        assert_eq!(MAX_NAME_BYTES, event_bus_core::MAX_NAME_BYTES);
        let longest = "n".repeat(MAX_NAME_BYTES);
        let too_long = "ä".repeat(MAX_NAME_BYTES);
        let names =
            ["", "orders.order_placed", "A-Z_0:9", "a b", "a/b", "größe", "a\0", "a\n", &longest, &too_long];
        for name in names {
            assert_eq!(check_name(name), event_bus_core::check_name(name), "{name:?}");
        }
    }
}
