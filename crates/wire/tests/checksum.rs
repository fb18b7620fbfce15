//! The checksum against RFC 1071's example, a plain reference, and full recomputation.

use netyard_wire::checksum;
use proptest::prelude::*;

/// The definition, word by word.
fn reference(bytes: &[u8]) -> u16 {
    let mut sum: u64 = bytes
        .chunks(2)
        .map(|word| u64::from(word[0]) << 8 | u64::from(*word.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or_default()
}

/// Zero has two representations in ones' complement.
fn same(one: u16, other: u16) -> bool {
    one == other || (one == 0 && other == 0xffff) || (one == 0xffff && other == 0)
}

#[test]
fn rfc_1071_section_3() {
    let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    assert_eq!(checksum::fold(checksum::sum(&bytes)), 0xddf2);
    assert_eq!(checksum::finish(checksum::sum(&bytes)), !0xddf2);
}

#[test]
fn rfc_1624_section_4() {
    // The case that RFC 1141's equation gets wrong: 0xdd2f, 0x5555 becomes 0x3285.
    assert_eq!(checksum::adjust(0xdd2f, &[0x55, 0x55], &[0x32, 0x85]), 0x0000);
}

#[test]
fn the_largest_packet_of_ones_does_not_overflow() {
    assert_eq!(checksum::sum(&[0xff; 65_535]), u32::from(reference(&[0xff; 65_535])));
    assert_eq!(checksum::fold(u32::MAX), 0xffff);
    assert_eq!(checksum::combine(u32::MAX, u32::MAX), 0xffff * 2);
}

#[test]
fn pseudo_headers_are_summed_as_they_would_stand_in_memory() {
    let v4 = [10, 0, 0, 1, 192, 168, 127, 5, 0, 6, 0x12, 0x34];
    let sum = checksum::pseudo_header([10, 0, 0, 1].into(), [192, 168, 127, 5].into(), 6, 0x1234);
    assert_eq!(checksum::fold(sum), reference(&v4));

    let (source, destination) = ([0xfd; 16], [0x9a; 16]);
    let tail = [0, 1, 0x12, 0x34, 0, 0, 0, 17];
    let v6 = [&source[..], &destination, &tail].concat();
    let sum = checksum::pseudo_header(source.into(), destination.into(), 17, 0x1_1234);
    assert_eq!(checksum::fold(sum), reference(&v6));
}

proptest! {
    #[test]
    fn sums_are_the_reference_at_every_length(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        skip in 0usize..9,
    ) {
        let bytes = bytes.get(skip..).unwrap_or_default(); // any alignment
        prop_assert_eq!(checksum::sum(bytes), u32::from(reference(bytes)));
    }

    #[test]
    fn sums_of_parts_combine(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0usize..150) {
        let (head, tail) = bytes.split_at((cut * 2).min(bytes.len() & !1));
        let sum = checksum::combine(checksum::sum(head), checksum::sum(tail));
        prop_assert_eq!(checksum::fold(sum), reference(&bytes));
    }

    #[test]
    fn adjusting_is_recomputing(
        mut bytes in prop::collection::vec(any::<u8>(), 2..100),
        new in prop::collection::vec(any::<u8>(), 1..40),
        at in 0usize..50,
    ) {
        let at = (at * 2).min((bytes.len() - 1) & !1);
        // Words that end the data may be odd; in the middle, whole words are changed.
        let len = if bytes.len() - at <= new.len() { bytes.len() - at } else { new.len() & !1 };
        let before = checksum::finish(checksum::sum(&bytes));
        let partial_before = checksum::fold(checksum::sum(&bytes));
        let old = bytes[at..at + len].to_vec();
        bytes[at..at + len].copy_from_slice(&new[..len]);

        let adjusted = checksum::adjust(before, &old, &new[..len]);
        prop_assert!(same(adjusted, checksum::finish(checksum::sum(&bytes))));
        let adjusted = checksum::adjust_partial(partial_before, &old, &new[..len]);
        prop_assert!(same(adjusted, checksum::fold(checksum::sum(&bytes))));
    }
}
