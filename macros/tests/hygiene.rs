//! The generated code means what it says whatever names are in the user's scope.
#![deny(warnings)]

/// Everything the generated code could name by a short name means something else here.
#[allow(dead_code, non_camel_case_types)]
mod shadowed {
    pub(crate) struct Option;
    pub(crate) struct Result;
    pub(crate) struct String;
    pub(crate) struct Vec;
    pub(crate) struct Box;
    pub(crate) struct Cow;
    pub(crate) struct Value;
    pub(crate) struct DecodeError;
    pub(crate) struct Some;
    pub(crate) struct None;
    pub(crate) struct Ok;
    pub(crate) struct Err;
    pub(crate) trait Event {}
    pub(crate) trait Partitioned {}
    pub(crate) trait Clone {}
    pub(crate) trait From {}
    pub(crate) trait ToString {
        fn to_string(&self) {}
    }
    impl<T> ToString for T {}
    pub(crate) mod std {}
    pub(crate) mod core {}
    pub(crate) mod codec {}
    pub(crate) mod event_bus_core {}
}

mod user {
    #![no_implicit_prelude]

    // What serde's own derives take for granted.
    #[allow(unused_imports)]
    use super::shadowed::*;

    #[derive(::std::clone::Clone, ::serde::Serialize, ::serde::Deserialize, ::event_bus_macros::Event)]
    #[event(crate = ::event_bus_core, name = "r", version = 2, upcast = lift, partition_key = key)]
    pub(crate) struct R {
        pub(crate) key: ::std::string::String,
    }

    fn lift(
        _: u32,
        payload: ::event_bus_core::Value,
    ) -> ::std::result::Result<::event_bus_core::Value, ::std::string::String> {
        ::std::result::Result::Ok(payload)
    }

    #[derive(::std::clone::Clone, ::serde::Serialize, ::serde::Deserialize, ::event_bus_macros::Event)]
    #[event(crate = ::event_bus_core, name = "t", partition_key = 0)]
    pub(crate) struct T(pub(crate) i32);

    /// Its variants and types are called as the generated code's own names might be.
    #[derive(::event_bus_macros::Events)]
    #[event(crate = ::event_bus_core)]
    pub(crate) enum Set {
        Some(R),
        Err(T),
    }
}

/// A type of the user's own that is called `String` is not taken for text.
mod other_string {
    use event_bus_macros::Event;
    use serde::{Deserialize, Serialize};

    #[derive(Clone, Serialize, Deserialize)]
    pub(crate) struct String(pub(crate) u8);

    impl std::fmt::Display for String {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "<{}>", self.0)
        }
    }

    #[derive(Clone, Serialize, Deserialize, Event)]
    #[event(crate = event_bus_core, name = "other", partition_key = key)]
    pub(crate) struct Other {
        pub(crate) key: String,
    }
}

/// Types that are deprecated or not public warn where they are used, not where they are derived.
mod lints {
    #![deny(deprecated, missing_docs, unreachable_pub, unused_qualifications)]

    use event_bus_macros::{Event, Events};
    use serde::{Deserialize, Serialize};

    #[derive(Clone, Serialize, Deserialize, Event)]
    #[event(crate = event_bus_core, name = "private")]
    struct Private(());

    #[deprecated]
    #[derive(Clone, Serialize, Deserialize, Event)]
    #[event(crate = event_bus_core, name = "deprecated", version = 2, upcast = super::lift, partition_key = key)]
    pub(crate) struct Deprecated {
        key: u8,
    }

    #[derive(Events)]
    #[event(crate = event_bus_core)]
    #[expect(dead_code, deprecated)]
    enum Set {
        Private(Private),
        Deprecated(Deprecated),
    }
}

fn lift(_: u32, payload: event_bus_core::Value) -> Result<event_bus_core::Value, String> {
    Ok(payload)
}

use event_bus_core::{Events, Partitioned};

#[test]
fn generated_code_does_not_depend_on_the_names_in_scope() {
    let event = user::R { key: "k".into() };
    assert_eq!(event.partition_key().as_deref(), Some("k"));
    assert_eq!(user::T(-1).partition_key().as_deref(), Some("-1"));
    assert_eq!(user::Set::names(), ["r", "t"]);
    let seen = user::Set::inspect(&event, |set| matches!(set, user::Set::Some(event) if event.key == "k"));
    assert_eq!(seen, Some(true));
    let seen = user::Set::inspect(&user::T(-1), |set| matches!(set, user::Set::Err(event) if event.0 == -1));
    assert_eq!(seen, Some(true));
}

#[test]
fn a_type_that_is_only_called_string_is_formatted() {
    let event = other_string::Other { key: other_string::String(7) };
    assert_eq!(event.partition_key().as_deref(), Some("<7>"));
}
