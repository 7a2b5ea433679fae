//! The caller's own transactions.
