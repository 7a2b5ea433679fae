//! How strictly a test looks.

/// What happens to the events that a test publishes from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// They are recorded and not checked, and assertions do not see them: for seeds and other noise.
    #[default]
    Default,
    /// They are recorded, and each must be asserted before the mode is left or the test ends.
    Strict,
    /// Their handlers run inside `publish`, in the order of registration; a failed one fails the call, after all have
    /// run. Delays are not waited for.
    Inline,
}
