//! `#[derive(Event)]`.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Field, Fields, Member, Result};

use crate::attributes::EventAttributes;
use crate::problems::{Problems, place_of};

/// The impls of `Event` and, unless it is written by hand, of `Partitioned`.
pub(crate) fn derive(input: &DeriveInput) -> Result<TokenStream> {
    let mut problems = Problems::default();
    check_shape(input, &mut problems);
    let attributes = EventAttributes::read(input, &mut problems);
    check_names(&attributes, &mut problems);
    check_version(&attributes, &mut problems);
    let key = check_key(input, &attributes, &mut problems);
    problems.finish()?;

    let event = implement_event(input, &attributes);
    let partitioned =
        attributes.partitioned.is_none().then(|| implement_partitioned(input, &attributes.facade(), key));
    Ok(quote!(#event #partitioned))
}

fn check_shape(input: &DeriveInput, problems: &mut Problems) {
    let ident = &input.ident;
    if let Data::Union(data) = &input.data {
        let text = "a union cannot be an event, it cannot be serialized: make it a struct or an enum";
        problems.at(data.union_token, text);
    }
    let generics = &input.generics;
    if !generics.params.is_empty() {
        problems.at(
            &generics.params,
            format!(
                "an event cannot be generic: its name is one identity, the same for whatever is put in for the \
                 parameters. Remove them, or derive `Event` on a newtype of one concrete `{ident}<...>`"
            ),
        );
    } else if let Some(clause) = &generics.where_clause {
        problems.at(clause, "an event takes no where clause: remove it");
    }
}

/// The name and the aliases are different from one another.
fn check_names(attributes: &EventAttributes, problems: &mut Problems) {
    let mut seen: Vec<String> = attributes.name.iter().map(syn::LitStr::value).collect();
    for alias in &attributes.aliases {
        let text = alias.value();
        if seen.contains(&text) {
            problems.at(alias, format!("{text:?} is already a name of this event: remove this alias"));
        }
        seen.push(text);
    }
}

fn check_version(attributes: &EventAttributes, problems: &mut Problems) {
    match (&attributes.version, &attributes.upcast) {
        (Some((literal, version @ 2..)), None) if !attributes.has("upcast") => problems.at(
            literal,
            format!(
                "version {version} needs a function that lifts older payloads to it: add `upcast = lift`, with \
                 `fn lift(from: u32, payload: Value) -> Result<Value, String>`"
            ),
        ),
        (Some((_, ..2)), Some(path)) => {
            problems.at(path, "no payload is older than version 1: raise `version` to 2, or remove `upcast`");
        }
        (None, Some(path)) if !attributes.has("version") => {
            problems.at(path, "no payload is older than version 1: add `version = 2`, or remove `upcast`");
        }
        _ => {}
    }
}

/// The field that holds the partition key, if there is one.
fn check_key<'a>(
    input: &'a DeriveInput,
    attributes: &EventAttributes,
    problems: &mut Problems,
) -> Option<(Member, &'a Field)> {
    let member = attributes.partition_key.as_ref()?;
    if let Some(flag) = &attributes.partitioned {
        let text = "`partitioned` leaves the key to an `impl Partitioned` written by hand, `partition_key` writes it: \
                    keep one";
        problems.at(flag, text);
    }
    let fields = match &input.data {
        Data::Struct(data) => &data.fields,
        Data::Enum(_) => {
            let text = "an enum has no field that is there in every variant: say `partitioned` instead and write \
                        `impl Partitioned`";
            problems.at(member, text);
            return None;
        }
        Data::Union(_) => return None,
    };
    let found = fields.members().zip(fields).find(|(candidate, _)| candidate == member);
    if found.is_none() {
        problems.at(member, no_such_field(input, fields, member));
    }
    found
}

fn no_such_field(input: &DeriveInput, fields: &Fields, member: &Member) -> String {
    let show = |member: &Member| match member {
        Member::Named(name) => format!("`{name}`"),
        Member::Unnamed(index) => format!("`{}`", index.index),
    };
    let known: Vec<_> = fields.members().map(|member| show(&member)).collect();
    let known = match known.as_slice() {
        [] => "it has none at all".to_owned(),
        known => format!("choose from {}", known.join(", ")),
    };
    format!("`{}` has no field {}; {known}", input.ident, show(member))
}

fn implement_event(input: &DeriveInput, attributes: &EventAttributes) -> TokenStream {
    let ident = &input.ident;
    let krate = attributes.facade();
    let EventAttributes { name, aliases, .. } = attributes;
    let version = attributes.version.as_ref().map_or(1, |(_, version)| *version);
    let upcast = attributes.upcast.as_ref().map(|path| {
        // `upcast = Self::upcast` calls itself if there is no inherent function of that name. The lint that says so is
        // silent on code that counts as generated.
        quote_spanned! {path.span()=>
            #[deny(unconditional_recursion)]
            fn upcast(
                from: u32,
                payload: #krate::Value,
            ) -> ::core::result::Result<#krate::Value, ::std::string::String> {
                #path(from, payload)
            }
        }
    });
    quote! {
        #[automatically_derived]
        #[allow(deprecated)]
        impl #krate::Event for #ident {
            const NAME: &'static str = #name;
            const ALIASES: &'static [&'static str] = &[#(#aliases),*];
            const VERSION: u32 = #version;
            #upcast

            // For failure texts of tests: what the type's own `Debug` prints, if it has one.
            #[allow(clippy::needless_borrow)]
            fn debug(event: &Self) -> ::core::option::Option<::std::string::String> {
                #[allow(unused_imports)]
                use #krate::debug::{ByDebug as _, ByNothing as _};
                (&#krate::debug::Show(event)).text()
            }
        }
    }
}

fn implement_partitioned(
    input: &DeriveInput,
    krate: &TokenStream,
    key: Option<(Member, &Field)>,
) -> TokenStream {
    let ident = &input.ident;
    let method = key.map(|(member, field)| {
        let ty = &field.ty;
        // The types that are text already are borrowed. They are told by what they are, not by how they are spelled:
        // an alias of `String` is borrowed too, and another type that is called `String` is formatted.
        let texts = [
            quote!(::std::string::String),
            quote!(&'static str),
            quote!(::std::borrow::Cow<'static, str>),
            quote!(::std::boxed::Box<str>),
            quote!(::std::sync::Arc<str>),
        ];
        let format =
            quote_spanned!(place_of(ty)=> <#ty as ::std::string::ToString>::to_string(&self.#member));
        quote! {
            fn partition_key(&self) -> ::core::option::Option<::std::borrow::Cow<'_, str>> {
                let field: &dyn ::core::any::Any = &self.#member;
                #(
                    if let ::core::option::Option::Some(text) = field.downcast_ref::<#texts>() {
                        return ::core::option::Option::Some(::std::borrow::Cow::Borrowed(text));
                    }
                )*
                ::core::option::Option::Some(::std::borrow::Cow::Owned(#format))
            }
        }
    });
    quote! {
        #[automatically_derived]
        #[allow(deprecated)]
        impl #krate::Partitioned for #ident {
            #method
        }
    }
}
