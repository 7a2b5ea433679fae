//! Partition keys, and the frozen hash that turns a key into a slot.

use std::borrow::Cow;

/// How many slots the keys of one handler are spread over. Part of every store's format: a store created with
/// another number is refused.
pub const SLOTS: u16 = 64;

/// The longest partition key, in bytes of UTF-8.
pub const MAX_KEY_BYTES: usize = 512;

/// Names the line an event stands in.
///
/// Events with the same key reach a handler one at a time and in the order in which they were published.
/// Events without a key are independent of one another.
pub trait Partitioned {
    /// The partition key; `None` (the default) for events that need no order.
    ///
    /// Keys are 1 to [`MAX_KEY_BYTES`] bytes and contain no NUL; other keys are refused by `publish`.
    fn partition_key(&self) -> Option<Cow<'_, str>> {
        None
    }
}

/// The slot of a key: XXH3-64 (seed 0) of its UTF-8 bytes, modulo [`SLOTS`].
///
/// Frozen: publishers and workers of every version must agree on it. Specification of the hash:
/// <https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md>.
pub fn slot(key: &str) -> u16 {
    // The remainder is below SLOTS, so the conversion never falls back.
    u16::try_from(xxhash_rust::xxh3::xxh3_64(key.as_bytes()) % u64::from(SLOTS)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_frozen() {
        // XXH3-64 of the empty input with seed 0 is published with the reference implementation.
        assert_eq!(xxhash_rust::xxh3::xxh3_64(b""), 0x2d06_8005_38d3_94c2);
        // Computed with another implementation (the C library behind Python's xxhash).
        let vectors = [("order-1", 54), ("order-2", 28), ("a", 31), ("Kunde-ä", 22), ("0", 21)];
        let found: Vec<_> = vectors.iter().map(|(key, _)| slot(key)).collect();
        assert_eq!(found, vectors.iter().map(|(_, slot)| *slot).collect::<Vec<_>>());
    }

    #[test]
    fn slots_are_spread_evenly() {
        let mut counts = [0_u32; SLOTS as usize];
        for n in 0..64_000 {
            counts[usize::from(slot(&format!("order-{n}")))] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }
}
