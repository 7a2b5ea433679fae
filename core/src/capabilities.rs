//! What a backend offers beyond the contract that all of them keep.

/// One documented field per optional promise. Asking for one that a backend lacks is a clear
/// [`Unsupported`](crate::ErrorKind::Unsupported) error, never a silent no-op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Deliveries outlive the process: `publish` stores them and a worker runs them. Without it handlers run inside
    /// `publish`, and `start` gives a worker with nothing to do.
    pub durable: bool,
    /// `publish(..).within(&mut tx)`.
    pub transactional_publish: bool,
    /// `cx.complete_in(&mut tx)`.
    pub transactional_complete: bool,
    /// `publish(..).delay(..)`.
    pub delay: bool,
    /// `publish(..).idempotency_key(..)`.
    pub idempotency_key: bool,
    /// One publish call is stored as a whole or not at all. Without it an error can leave a part stored; a repeat with
    /// the same ids is safe.
    pub atomic_publish: bool,
    /// Dead letters can be listed, replayed and purged.
    pub dead_letters: bool,
    /// [`Exhausted::HoldKey`](crate::Exhausted::HoldKey).
    pub hold_key: bool,
    /// Lines behind a stuck key can be given back to the store ([`Park`](crate::backend::Park)), so that they take no
    /// memory.
    pub parking: bool,
    /// The order of a key survives everything that design promises, a restart of the store included.
    pub key_order: bool,
}

impl Capabilities {
    /// Nothing beyond the contract.
    pub const NONE: Self = Self {
        durable: false,
        transactional_publish: false,
        transactional_complete: false,
        delay: false,
        idempotency_key: false,
        atomic_publish: false,
        dead_letters: false,
        hold_key: false,
        parking: false,
        key_order: false,
    };

    /// Everything.
    pub const ALL: Self = Self {
        durable: true,
        transactional_publish: true,
        transactional_complete: true,
        delay: true,
        idempotency_key: true,
        atomic_publish: true,
        dead_letters: true,
        hold_key: true,
        parking: true,
        key_order: true,
    };
}
