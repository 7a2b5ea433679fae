//! Stream ids as delivery ids: the milliseconds in the upper half, the sequence number in the lower one.

use event_bus_core::backend::DeliveryId;

/// The widest sequence number in the form that sorts; the same width stands in `shared.lua`.
const LAST_SEQUENCE: u64 = 9_999_999_999;

fn join(millis: u64, sequence: u64) -> DeliveryId {
    DeliveryId(u128::from(millis) << 64 | u128::from(sequence))
}

fn split(id: DeliveryId) -> (u64, u64) {
    let millis = u64::try_from(id.0 >> 64).unwrap_or(u64::MAX);
    let sequence = u64::try_from(id.0 & u128::from(u64::MAX)).unwrap_or(u64::MAX);
    (millis, sequence)
}

/// Reads `1526919030474-55`, and `000001526919030474-0000000055` as well.
pub(crate) fn parse(text: &[u8]) -> Option<DeliveryId> {
    let text = std::str::from_utf8(text).ok()?;
    let (millis, sequence) = text.split_once('-')?;
    Some(join(millis.parse().ok()?, sequence.parse().ok()?))
}

/// As the server writes it: `1526919030474-55`.
pub(crate) fn text(id: DeliveryId) -> String {
    let (millis, sequence) = split(id);
    format!("{millis}-{sequence}")
}

/// In the form that sorts as text.
pub(crate) fn fixed(id: DeliveryId) -> String {
    let (millis, sequence) = split(id);
    format!("{millis:015}-{sequence:010}")
}

/// The greatest id before this one.
pub(crate) fn before(id: DeliveryId) -> DeliveryId {
    match split(id) {
        (0, 0) => id,
        (millis, 0) => join(millis - 1, LAST_SEQUENCE),
        (millis, sequence) => join(millis, sequence - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_was_written() {
        for text in ["0-0", "1526919030474-55", "18446744073709551615-18446744073709551615"] {
            assert_eq!(super::text(parse(text.as_bytes()).unwrap()), text);
        }
        let id = parse(b"1526919030474-55").unwrap();
        assert_eq!(fixed(id), "001526919030474-0000000055");
        assert_eq!(parse(fixed(id).as_bytes()), Some(id));
    }

    #[test]
    fn what_is_no_id_is_none() {
        for text in ["", "1", "1-", "-1", "a-b", "1-2-3", "\u{e4}-1"] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn ids_are_ordered_as_on_the_server_and_in_the_form_that_sorts() {
        let ids = ["1-9", "1-10", "2-0", "10-0"].map(|text| parse(text.as_bytes()).unwrap());
        assert!(ids.is_sorted());
        assert!(ids.map(fixed).is_sorted());
        assert_eq!(text(before(ids[1])), "1-9");
        assert_eq!(text(before(ids[3])), "9-9999999999");
    }
}
