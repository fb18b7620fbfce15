//! Ephemeral ports.

/// The range that RFC 6335 section 6 leaves to programs.
const FIRST: u16 = 49_152;
const COUNT: u16 = u16::MAX - FIRST + 1;

/// A free port of the ephemeral range, looked for from a random place on (RFC 6056 section 3.3.1);
/// `None` if all are taken.
pub(crate) fn pick(random: u16, mut is_free: impl FnMut(u16) -> bool) -> Option<u16> {
    let start = random % COUNT;
    (0..COUNT).map(|n| FIRST + (start + n) % COUNT).find(|port| is_free(*port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_of_the_range_is_found_before_none_is() {
        assert_eq!(pick(0, |_| true), Some(FIRST));
        assert_eq!(pick(12_345, |port| port == FIRST), Some(FIRST));
        assert_eq!(pick(40_000, |port| port == u16::MAX), Some(u16::MAX));
        let mut looks = 0;
        let found = pick(7, |_| {
            looks += 1;
            false
        });
        assert_eq!((found, looks), (None, u32::from(COUNT)));
    }
}
