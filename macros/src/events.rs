//! `#[derive(Events)]`.

use proc_macro2::TokenStream;
use quote::{ToTokens, quote, quote_spanned};
use syn::{Data, DeriveInput, Fields, Ident, Result, Type, Variant};

use crate::attributes::read_set;
use crate::problems::{Problems, place_of};

/// The impls of `Events` and, for every variant, of `From`.
pub(crate) fn derive(input: &DeriveInput) -> Result<TokenStream> {
    let mut problems = Problems::default();
    let members = check_shape(input, &mut problems);
    check_types(&members, &mut problems);
    let krate = read_set(input, &mut problems);
    problems.finish()?;

    let events = implement_events(&input.ident, &krate, &members);
    let from = implement_from(&input.ident, &members);
    let distinct = assert_distinct_names(&krate, &members);
    Ok(quote!(#events #from #distinct))
}

/// A variant and the one type it holds.
struct MemberOfSet<'a> {
    variant: &'a Ident,
    ty: &'a Type,
}

fn check_shape<'a>(input: &'a DeriveInput, problems: &mut Problems) -> Vec<MemberOfSet<'a>> {
    let ident = &input.ident;
    let generics = &input.generics;
    if !generics.params.is_empty() {
        let text = "a set of events cannot be generic: it names the events it holds. Remove the parameters and name \
                    concrete types";
        problems.at(&generics.params, text);
    } else if let Some(clause) = &generics.where_clause {
        problems.at(clause, "a set of events takes no where clause: remove it");
    }
    let fix = format!(
        "make it an enum with one variant an event, `enum {ident} {{ Placed(OrderPlaced), Shipped(OrderShipped) }}` \
         (for a single event derive `Event`)"
    );
    match &input.data {
        Data::Struct(data) => problems.at(data.struct_token, format!("a struct is no set of events: {fix}")),
        Data::Union(data) => problems.at(data.union_token, format!("a union is no set of events: {fix}")),
        Data::Enum(data) if data.variants.is_empty() => {
            problems
                .at(ident, format!("`{ident}` holds no event, so no handler of it would ever run: {fix}"));
        }
        Data::Enum(data) => {
            return data.variants.iter().filter_map(|variant| check_variant(variant, problems)).collect();
        }
    }
    Vec::new()
}

fn check_variant<'a>(variant: &'a Variant, problems: &mut Problems) -> Option<MemberOfSet<'a>> {
    let ident = &variant.ident;
    let fix = format!("write `{ident}(TheEvent)`, with one unnamed field whose type is an event");
    let found = match &variant.fields {
        Fields::Unnamed(fields) => match fields.unnamed.iter().collect::<Vec<_>>().as_slice() {
            [field] => return Some(MemberOfSet { variant: ident, ty: &field.ty }),
            [] => "holds nothing".to_owned(),
            fields => format!("holds {} fields", fields.len()),
        },
        Fields::Named(_) => "has named fields".to_owned(),
        Fields::Unit => "holds nothing".to_owned(),
    };
    problems.at(variant, format!("the variant `{ident}` {found}: {fix}"));
    None
}

/// No two variants of one type: the second would never be made, and `From` could not choose.
fn check_types(members: &[MemberOfSet<'_>], problems: &mut Problems) {
    let spelled: Vec<_> = members.iter().map(|member| member.ty.to_token_stream().to_string()).collect();
    for (position, member) in members.iter().enumerate() {
        let first = spelled.iter().position(|ty| *ty == spelled[position]).unwrap_or(position);
        if first < position {
            let (this, other) = (member.variant, members[first].variant);
            problems.at(
                member.ty,
                format!("`{this}` holds the same event as `{other}`, so it would never be made: remove one of them"),
            );
        }
    }
}

fn implement_events(ident: &Ident, krate: &TokenStream, members: &[MemberOfSet<'_>]) -> TokenStream {
    let variants: Vec<_> = members.iter().map(|member| member.variant).collect();
    // Each type as a set, spelled so that the compiler's complaint about a type that is none points at the type.
    let sets: Vec<_> = members
        .iter()
        .map(|MemberOfSet { ty, .. }| quote_spanned!(place_of(ty)=> <#ty as #krate::Events>))
        .collect();
    // `inspect` shows an event by reference, a variant holds it by value. Events are `Clone`; a nested set must be.
    let clones = members
        .iter()
        .map(|MemberOfSet { ty, .. }| quote_spanned!(place_of(ty)=> <#ty as ::core::clone::Clone>));
    quote! {
        #[automatically_derived]
        #[allow(deprecated)]
        impl #krate::Events for #ident {
            fn names() -> ::std::vec::Vec<&'static str> {
                [#(#sets::names()),*].concat()
            }

            fn accepts(name: &str) -> bool {
                #(#sets::accepts(name))||*
            }

            fn decode(
                name: &str,
                version: u32,
                payload: &[u8],
            ) -> ::core::result::Result<Self, #krate::codec::DecodeError> {
                #(
                    if #sets::accepts(name) {
                        return #sets::decode(name, version, payload).map(Self::#variants);
                    }
                )*
                ::core::result::Result::Err(#krate::codec::DecodeError::UnknownName {
                    name: ::std::borrow::ToOwned::to_owned(name),
                })
            }

            fn inspect<__R>(
                event: &dyn ::core::any::Any,
                look: impl ::core::ops::FnOnce(&Self) -> __R,
            ) -> ::core::option::Option<__R> {
                #(
                    let found = #sets::inspect(event, |event| Self::#variants(#clones::clone(event)));
                    if let ::core::option::Option::Some(found) = found {
                        return ::core::option::Option::Some(look(&found));
                    }
                )*
                ::core::option::Option::None
            }
        }
    }
}

fn implement_from(ident: &Ident, members: &[MemberOfSet<'_>]) -> TokenStream {
    members
        .iter()
        .map(|MemberOfSet { variant, ty }| {
            // Two types that are one, spelled differently, collide here.
            quote_spanned! {place_of(ty)=>
                #[automatically_derived]
                #[allow(deprecated)]
                impl ::core::convert::From<#ty> for #ident {
                    fn from(event: #ty) -> Self {
                        Self::#variant(event)
                    }
                }
            }
        })
        .collect()
}

/// Compares the names of the events, which only the compiler knows, when it compiles the set: of two events that share
/// a name the second would never be decoded. The names of a nested set are not constants and are left out.
fn assert_distinct_names(krate: &TokenStream, members: &[MemberOfSet<'_>]) -> TokenStream {
    let types = members.iter().map(|member| member.ty);
    let asserts = members.iter().enumerate().skip(1).map(|(position, MemberOfSet { variant, ty })| {
        let text = format!(
            "the event of the variant `{variant}` shares a name or an alias with one before it in this set, so it \
             would never be decoded: rename one or remove the alias"
        );
        quote_spanned!(place_of(ty)=> const _: () = ::core::assert!(__is_new(__NAMES, #position), #text);)
    });
    quote! {
        #[allow(dead_code, deprecated)]
        const _: () = {
            type __Names = [&'static [&'static str]; 2];

            // `__Of::<T>::NAMES` is the constant of the impl for events if `T` is one, else the trait's.
            struct __Of<T>(::core::marker::PhantomData<T>);
            trait __Otherwise {
                const NAMES: __Names = [&[], &[]];
            }
            impl<T> __Otherwise for __Of<T> {}
            impl<T: #krate::Event> __Of<T> {
                const NAMES: __Names = [&[T::NAME], T::ALIASES];
            }

            const fn __is_same(mut a: &[u8], mut b: &[u8]) -> bool {
                while let ([x, xs @ ..], [y, ys @ ..]) = (a, b) {
                    if *x != *y {
                        return false;
                    }
                    (a, b) = (xs, ys);
                }
                a.is_empty() && b.is_empty()
            }

            const fn __has(mut names: &[&str], name: &str) -> bool {
                while let [first, rest @ ..] = names {
                    if __is_same(first.as_bytes(), name.as_bytes()) {
                        return true;
                    }
                    names = rest;
                }
                false
            }

            const fn __meet(mut some: &[&str], [name, aliases]: __Names) -> bool {
                while let [first, rest @ ..] = some {
                    if __has(name, first) || __has(aliases, first) {
                        return true;
                    }
                    some = rest;
                }
                false
            }

            const fn __is_new(all: &[__Names], position: usize) -> bool {
                let [name, aliases] = all[position];
                let mut earlier = 0;
                while earlier < position {
                    if __meet(name, all[earlier]) || __meet(aliases, all[earlier]) {
                        return false;
                    }
                    earlier += 1;
                }
                true
            }

            const __NAMES: &[__Names] = &[#(__Of::<#types>::NAMES),*];
            #(#asserts)*
        };
    }
}
