//! The macros. Each takes a session (or a handle) first.

/// Takes the first event published in strict mode that was not taken before and matches, and gives it back.
///
/// `assert_event_published!(test, Pattern if guard => value)`: the guard may be left out; with `=> value` the macro gives
/// that value in place of the event. Pattern, guard and value see the event by reference. Two equal events need two
/// assertions. Events of the other modes never match.
///
/// # Panics
/// At the caller's line if none matches, with a list of what was published.
///
/// ```
/// # use event_bus_testing::*;
/// # use event_bus_core::*;
/// # #[derive(Clone, serde::Serialize, serde::Deserialize)]
/// # struct Billed { call: u32, minutes: u32 }
/// # impl Partitioned for Billed {}
/// # impl Event for Billed { const NAME: &'static str = "calls.billed"; }
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<()> {
/// # let testing = TestingBackend::new();
/// # let bus = EventBus::builder().backend(testing.clone()).build()?;
/// let mut test = testing.session();
/// test.set_mode(Mode::Strict);
/// bus.publish_all(&[Billed { call: 1, minutes: 5 }, Billed { call: 2, minutes: 7 }]).await?;
///
/// let minutes = assert_event_published!(test, Billed { minutes, call } if *call == 2 => *minutes);
/// assert_eq!(minutes, 7);
/// let event = assert_event_published!(test, Billed { .. });
/// assert_eq!(event.call, 1);
/// # Ok(()) }
/// ```
#[macro_export]
macro_rules! assert_event_published {
    ($test:expr, $pattern:pat $(if $guard:expr)? $(,)?) => {
        $test
            .__take(
                ::core::concat!(::core::stringify!($pattern) $(, " if ", ::core::stringify!($guard))?),
                |event| match event {
                    $pattern $(if $guard)? => ::core::option::Option::Some(()),
                    #[allow(unreachable_patterns)]
                    _ => ::core::option::Option::None,
                },
            )
            .0
    };
    ($test:expr, $pattern:pat $(if $guard:expr)? => $value:expr $(,)?) => {
        $test
            .__take(
                ::core::concat!(::core::stringify!($pattern) $(, " if ", ::core::stringify!($guard))?),
                |event| match event {
                    $pattern $(if $guard)? => ::core::option::Option::Some($value),
                    #[allow(unreachable_patterns)]
                    _ => ::core::option::Option::None,
                },
            )
            .1
    };
}

/// No event published in strict mode, and not taken by an assertion before, matches: `Pattern if guard`.
///
/// # Panics
/// At the caller's line if one does, with the event and the line that published it.
#[macro_export]
macro_rules! refute_event_published {
    ($test:expr, $pattern:pat $(if $guard:expr)? $(,)?) => {
        $test.__refute(
            ::core::concat!(::core::stringify!($pattern) $(, " if ", ::core::stringify!($guard))?),
            |event| match event {
                $pattern $(if $guard)? => true,
                #[allow(unreachable_patterns)]
                _ => false,
            },
        )
    };
}

/// No event was published in strict mode that no assertion has taken.
///
/// # Panics
/// At the caller's line if there is one, with a list.
#[macro_export]
macro_rules! assert_no_events {
    ($test:expr $(,)?) => {
        $test.__refute_all()
    };
}

/// As [`run_event`](crate::run_event()), awaited: gives what the run came to.
///
/// # Panics
/// At the caller's line if the handler fails.
#[macro_export]
macro_rules! run_event {
    ($event:expr, $handler:expr $(,)?) => {
        $crate::__expect_ran($crate::run_event($event, $handler).await)
    };
}
