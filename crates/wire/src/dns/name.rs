//! Domain names.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::message::Reader;
use crate::ParseError;

/// RFC 1035 section 2.3.4, both, bytes.
const MAX_LABEL_LEN: usize = 63;
const MAX_LEN: usize = 255;

/// Pointers followed within one name. A name has at most 127 labels, and a pointer that is not
/// behind a label serves nobody; the bound keeps hostile messages cheap.
const MAX_POINTERS: usize = 127;

/// A fully qualified domain name.
///
/// Keeps the case that it was written in, and compares without it (RFC 4343).
#[derive(Clone)]
pub struct Name {
    /// As on the wire, without compression: labels with their lengths, then a zero. A length is
    /// below 64 and so never looks like a letter.
    wire: Vec<u8>,
}

impl Name {
    /// The root of all names.
    #[must_use]
    pub fn root() -> Self {
        Self { wire: vec![0] }
    }

    /// The name under which the address's own name is found (RFC 1035 section 3.5, RFC 3596
    /// section 2.5).
    #[must_use]
    pub fn reverse(address: IpAddr) -> Self {
        let mut name = Self { wire: Vec::with_capacity(74) };
        match address {
            IpAddr::V4(address) => {
                for octet in address.octets().iter().rev() {
                    name.push_label(octet.to_string().as_bytes());
                }
                name.push_label(b"in-addr");
            }
            IpAddr::V6(address) => {
                for octet in address.octets().iter().rev() {
                    name.push_label(&[hex_digit(octet & 0xf)]);
                    name.push_label(&[hex_digit(octet >> 4)]);
                }
                name.push_label(b"ip6");
            }
        }
        name.push_label(b"arpa");
        name.wire.push(0);
        name
    }

    /// The address whose [`reverse`](Self::reverse) name this is.
    #[must_use]
    pub fn reverse_address(&self) -> Option<IpAddr> {
        // The longest has 32 digits, `ip6` and `arpa`.
        let labels: Vec<&[u8]> = self.labels().take(35).collect();
        let is = |label: &[u8], name: &str| label.eq_ignore_ascii_case(name.as_bytes());
        match labels.as_slice() {
            [d, c, b, a, zone, arpa] if is(zone, "in-addr") && is(arpa, "arpa") => {
                let [a, b, c, d] = [octet(a)?, octet(b)?, octet(c)?, octet(d)?];
                Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
            }
            [digits @ .., zone, arpa]
                if digits.len() == 32 && is(zone, "ip6") && is(arpa, "arpa") =>
            {
                let bits = digits.iter().rev().try_fold(0u128, |bits, digit| {
                    let [digit] = digit else { return None };
                    Some(bits << 4 | u128::from(char::from(*digit).to_digit(16)?))
                })?;
                Some(IpAddr::V6(Ipv6Addr::from_bits(bits)))
            }
            _ => None,
        }
    }

    /// The labels, from the host's to the top level's, in the case they were written in.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        self.suffixes().filter_map(|suffix| match suffix {
            [len, rest @ ..] => rest.get(..usize::from(*len)),
            [] => None,
        })
    }

    /// True if the name is `zone` or below it.
    #[must_use]
    pub fn is_within(&self, zone: &Self) -> bool {
        let root = zone.wire.len() == 1;
        root || self.suffixes().any(|suffix| suffix.eq_ignore_ascii_case(&zone.wire))
    }

    /// What is in front of `zone`, as text with its labels in lower case: `web-1` for `Web-1.lan`
    /// in `lan`, nothing for the zone itself. `None` if the name is not within the zone, or its
    /// labels are not plain ASCII.
    #[must_use]
    pub fn strip_zone(&self, zone: &Self) -> Option<String> {
        let own = self.labels().count().checked_sub(zone.labels().count())?;
        if !self.is_within(zone) {
            return None;
        }
        let mut text = String::new();
        for label in self.labels().take(own) {
            if !label.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'.') {
                return None;
            }
            if !text.is_empty() {
                text.push('.');
            }
            text.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
        }
        Some(text)
    }

    /// Its length on the wire, uncompressed, bytes.
    #[must_use]
    pub fn wire_len(&self) -> usize {
        self.wire.len()
    }

    /// The name as on the wire, uncompressed.
    pub(crate) fn as_wire(&self) -> &[u8] {
        &self.wire
    }

    /// Reads an uncompressed name; what is behind it comes back too.
    pub(crate) fn split_plain(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let mut rest = bytes;
        loop {
            let (len, behind) = rest.split_first()?;
            rest = match len {
                0 => {
                    let len = bytes.len().checked_sub(behind.len())?;
                    let wire = bytes.get(..len).filter(|wire| wire.len() <= MAX_LEN)?.to_vec();
                    return Some((Self { wire }, behind));
                }
                1..=63 => behind.get(usize::from(*len)..)?,
                _ => return None,
            };
        }
    }

    /// Reads a name, compressed or not, and leaves the reader behind it.
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, ParseError> {
        let mut wire = Vec::with_capacity(32);
        // A pointer may only lead to what came before; so nothing is read twice for one name.
        let mut before = reader.position();
        let mut at = reader.rest();
        let mut behind = None;
        let mut pointers = 0..MAX_POINTERS;
        loop {
            match at {
                [0, rest @ ..] => {
                    wire.push(0);
                    reader.set_rest(behind.unwrap_or(rest));
                    return Ok(Self { wire });
                }
                [len @ 1..=63, rest @ ..] => {
                    let (label, rest) = rest
                        .split_at_checked(usize::from(*len))
                        .ok_or(ParseError::new("dns-truncated"))?;
                    wire.push(*len);
                    wire.extend_from_slice(label);
                    if wire.len() >= MAX_LEN {
                        return Err(ParseError::new("dns-name-length"));
                    }
                    at = rest;
                }
                [high @ 0xc0..=0xff, low, rest @ ..] => {
                    let target = usize::from(u16::from_be_bytes([high & 0x3f, *low]));
                    if target >= before || pointers.next().is_none() {
                        return Err(ParseError::new("dns-name-pointer"));
                    }
                    behind = behind.or(Some(rest));
                    before = target;
                    at = reader.from(target);
                }
                [] | [0xc0..=0xff] => return Err(ParseError::new("dns-truncated")),
                _ => return Err(ParseError::new("dns-label-kind")),
            }
        }
    }

    /// Appends the name. Where its end is also the end of `question`, which stands at
    /// `question_at` in the message, a pointer takes its place (RFC 1035 section 4.1.4).
    pub(super) fn write(&self, out: &mut Vec<u8>, question: Option<(&Self, u16)>) {
        if let Some((question, question_at)) = question {
            for suffix in self.suffixes() {
                let Some(offset) = question.offset_of(suffix) else { continue };
                let Some(target) = question_at.checked_add(offset).filter(|at| *at < 0x4000) else {
                    break;
                };
                let own = self.wire.len().saturating_sub(suffix.len());
                out.extend_from_slice(self.wire.get(..own).unwrap_or_default());
                out.extend_from_slice(&(0xc000 | target).to_be_bytes());
                return;
            }
        }
        out.extend_from_slice(&self.wire);
    }

    /// Where in this name the other's tail begins, if it is a tail of this one too.
    fn offset_of(&self, tail: &[u8]) -> Option<u16> {
        let own = self.suffixes().find(|suffix| suffix.eq_ignore_ascii_case(tail))?;
        u16::try_from(self.wire.len().saturating_sub(own.len())).ok()
    }

    /// The name, its parent, and so on to the top level; each as on the wire.
    fn suffixes(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.wire.as_slice();
        std::iter::from_fn(move || {
            let suffix = rest;
            let (len @ 1.., behind) = rest.split_first()? else { return None };
            rest = behind.get(usize::from(*len)..)?;
            Some(suffix)
        })
    }

    /// Appends a label of 1 to 63 bytes.
    fn push_label(&mut self, label: &[u8]) {
        if let Ok(len) = u8::try_from(label.len()) {
            self.wire.push(len);
            self.wire.extend_from_slice(label);
        }
    }
}

fn hex_digit(nibble: u8) -> u8 {
    char::from_digit(u32::from(nibble), 16)
        .and_then(|digit| u8::try_from(digit).ok())
        .unwrap_or(b'0')
}

/// A decimal octet as reverse names have it: no sign, no leading zero.
fn octet(label: &[u8]) -> Option<u8> {
    let plain = matches!(label, [b'0'] | [b'1'..=b'9', ..]);
    std::str::from_utf8(label).ok().filter(|_| plain)?.parse().ok()
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.wire.eq_ignore_ascii_case(&other.wire)
    }
}

impl Eq for Name {}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for byte in &self.wire {
            state.write_u8(byte.to_ascii_lowercase());
        }
    }
}

/// As in a zone file (RFC 1035 section 5.1), without the last dot; the root is `.`.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for label in self.labels() {
            f.write_str(separator)?;
            for byte in label {
                match byte {
                    b'.' | b'\\' => write!(f, "\\{}", char::from(*byte))?,
                    0x21..=0x7e => write!(f, "{}", char::from(*byte))?,
                    _ => write!(f, "\\{byte:03}")?,
                }
            }
            separator = ".";
        }
        if separator.is_empty() { f.write_str(".") } else { Ok(()) }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is not a domain name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Two dots in a row, a dot in front, or nothing at all.
    #[error("a domain name has no empty labels")]
    EmptyLabel,
    /// A label of more than 63 bytes.
    #[error("a label of a domain name has at most 63 bytes")]
    LabelTooLong,
    /// A name of more than 255 bytes on the wire.
    #[error("a domain name has at most 255 bytes")]
    TooLong,
    /// A backslash before neither a character nor three digits up to 255.
    #[error("a backslash in a domain name is followed by a character or by three digits")]
    Escape,
}

/// Reads what `Display` writes; a last dot is allowed.
impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text == "." {
            return Ok(Self::root());
        }
        let mut name = Self { wire: Vec::with_capacity(text.len().saturating_add(2)) };
        let mut label = Vec::new();
        let mut bytes = text.bytes().peekable();
        while let Some(byte) = bytes.next() {
            match byte {
                b'.' => {
                    name.close_label(&mut label)?;
                    if bytes.peek().is_none() {
                        return name.close();
                    }
                }
                b'\\' => label.push(unescape(&mut bytes).ok_or(NameError::Escape)?),
                _ => label.push(byte),
            }
        }
        name.close_label(&mut label)?;
        name.close()
    }
}

/// What stands behind a backslash: three digits, or any other character.
fn unescape(bytes: &mut impl Iterator<Item = u8>) -> Option<u8> {
    let first = bytes.next()?;
    if !first.is_ascii_digit() {
        return Some(first);
    }
    let digits = [first, bytes.next()?, bytes.next()?];
    std::str::from_utf8(&digits).ok()?.parse().ok()
}

impl Name {
    fn close_label(&mut self, label: &mut Vec<u8>) -> Result<(), NameError> {
        match label.len() {
            0 => return Err(NameError::EmptyLabel),
            1..=MAX_LABEL_LEN => self.push_label(label),
            _ => return Err(NameError::LabelTooLong),
        }
        label.clear();
        Ok(())
    }

    fn close(mut self) -> Result<Self, NameError> {
        self.wire.push(0);
        if self.wire.len() > MAX_LEN { Err(NameError::TooLong) } else { Ok(self) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn names_compare_without_case_but_keep_it() {
        assert_eq!(name("Web-1.LAN"), name("web-1.lan."));
        assert_eq!(name("Web-1.LAN").to_string(), "Web-1.LAN");
        assert_ne!(name("web-1.lan"), name("web-2.lan"));
        assert_eq!(name("."), Name::root());
        assert_eq!(Name::root().to_string(), ".");
    }

    #[test]
    fn text_that_is_no_name_is_refused() {
        let long = "a".repeat(64);
        let longest = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
        assert_eq!("".parse::<Name>(), Err(NameError::EmptyLabel));
        assert_eq!(".lan".parse::<Name>(), Err(NameError::EmptyLabel));
        assert_eq!("a..lan".parse::<Name>(), Err(NameError::EmptyLabel));
        assert_eq!("lan..".parse::<Name>(), Err(NameError::EmptyLabel));
        assert_eq!(long.parse::<Name>(), Err(NameError::LabelTooLong));
        assert!(longest.parse::<Name>().is_ok());
        assert_eq!(format!("{longest}e").parse::<Name>(), Err(NameError::TooLong));
        for text in ["a\\", "a\\1", "a\\12", "a\\256", "a\\1+2"] {
            assert_eq!(text.parse::<Name>(), Err(NameError::Escape), "{text}");
        }
    }

    #[test]
    fn odd_bytes_are_escaped_and_read_back() {
        let odd = name("a\\.b.c\\\\d.\\007\\255");
        assert_eq!(odd.labels().collect::<Vec<_>>(), [&b"a.b"[..], b"c\\d", &[7, 255]]);
        assert_eq!(odd.to_string(), "a\\.b.c\\\\d.\\007\\255");
    }

    #[test]
    fn zones_hold_names_at_label_boundaries() {
        let zone = name("lab.lan");
        assert!(zone.is_within(&zone));
        assert!(name("WEB.lab.LAN").is_within(&zone));
        assert!(!name("xlab.lan").is_within(&zone));
        assert!(!name("lan").is_within(&zone));
        assert!(name("lan").is_within(&Name::root()));
        assert_eq!(name("Web.LAB.lan").strip_zone(&zone).as_deref(), Some("web"));
        assert_eq!(name("a.b.lab.lan").strip_zone(&zone).as_deref(), Some("a.b"));
        assert_eq!(zone.strip_zone(&zone).as_deref(), Some(""));
        assert_eq!(name("web.lan").strip_zone(&zone), None);
        assert_eq!(name("a\\.b.lab.lan").strip_zone(&zone), None, "not a name of two labels");
    }

    #[test]
    fn reverse_names_lead_back_to_their_address() {
        let v4: IpAddr = "192.168.127.5".parse().unwrap();
        let v6: IpAddr = "fd00::1:2".parse().unwrap();
        assert_eq!(Name::reverse(v4).to_string(), "5.127.168.192.in-addr.arpa");
        assert_eq!(
            Name::reverse(v6).to_string(),
            "2.0.0.0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa"
        );
        assert_eq!(Name::reverse(v4).reverse_address(), Some(v4));
        assert_eq!(Name::reverse(v6).reverse_address(), Some(v6));
        for text in [
            "127.168.192.in-addr.arpa",
            "1.2.3.4.5.in-addr.arpa",
            "256.1.1.1.in-addr.arpa",
            "01.1.1.1.in-addr.arpa",
            "+1.1.1.1.in-addr.arpa",
            "1.1.1.1.ip6.arpa",
            "lan",
            ".",
        ] {
            assert_eq!(name(text).reverse_address(), None, "{text}");
        }
    }
}
