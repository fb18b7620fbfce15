//! Bytes as text: base64 for URLs, without padding (RFC 4648 section 5).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The text of some bytes.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The bytes of a text; `None` if it is not the text of exactly `N` bytes.
#[must_use]
pub fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let len = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
    (len == N).then_some(bytes)
}

/// Bytes that are text in JSON.
pub(crate) mod serde {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer, const N: usize>(
        bytes: &[u8; N],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(
        deserializer: D,
    ) -> Result<[u8; N], D::Error> {
        let text = String::deserialize(deserializer)?;
        super::decode(&text)
            .ok_or_else(|| D::Error::custom(format_args!("expected {N} bytes as base64url")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_values_are_read_back() {
        let text = encode(&[0xfb, 0xff, 7]);
        assert_eq!(text, "-_8H");
        assert_eq!(decode(&text), Some([0xfb, 0xff, 7]));
        assert_eq!(decode::<2>(&text), None);
        assert_eq!(decode::<4>(&text), None);
        assert_eq!(decode::<3>("-_8="), None);
        assert_eq!(decode::<3>("+/8H"), None, "the other alphabet");
    }
}
