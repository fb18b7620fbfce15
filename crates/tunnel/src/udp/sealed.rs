//! Datagrams that nobody but the two ends of a lane can read, make or change, and that count once.
//!
//! ```text
//! number of the lane at the hub (4 bytes) | counter (8 bytes) | content, sealed | tag (16 bytes)
//! ```
//!
//! Content is sealed with AES-128-GCM, the first twelve bytes are authenticated along with it, and the nonce
//! is the counter, added to a part of the keys (as in RFC 8446 section 5.3). Each direction of each lane has
//! keys of its own, which both ends take from their TLS connection, and a counter that begins at 0 and
//! never says the same number twice. After 2^22 datagrams come the next keys, made from those before (HKDF, RFC
//! 5869), well below what AES-GCM is good for (RFC 9001 section 6.6); the counter says which keys it is.
//! What has come before, or is older than the last two thousand, is dropped (as in RFC 6479).

use std::fmt;

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf::{HKDF_SHA256, Prk};

/// Label of the keying material of the TLS connection.
pub(crate) const EXPORTER_LABEL: &[u8] = b"EXPORTER-netyard-udp-v1";

/// Number and counter, bytes.
const HEADER_LEN: usize = 12;
const TAG_LEN: usize = 16;
/// What is around a content, bytes.
pub(crate) const OVERHEAD: usize = HEADER_LEN + TAG_LEN;

/// How many bits of the counter go by until the next keys.
const EPOCH_BITS: u32 = 22;

/// What one direction's keys are made from.
pub(crate) type Secret = [u8; 32];

/// The keys of some datagrams.
struct Epoch {
    secret: Secret,
    key: LessSafeKey,
    iv: [u8; 12],
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Epoch(..)")
    }
}

impl Epoch {
    fn new(secret: Secret) -> Result<Self, Unspecified> {
        let expanded = expand(&secret, b"netyard udp key")?;
        let (key, rest) = expanded.split_first_chunk::<16>().ok_or(Unspecified)?;
        let iv = *rest.first_chunk().ok_or(Unspecified)?;
        Ok(Self { secret, key: LessSafeKey::new(UnboundKey::new(&AES_128_GCM, key)?), iv })
    }

    fn next(&self) -> Result<Self, Unspecified> {
        Self::new(expand(&self.secret, b"netyard udp next")?)
    }

    fn nonce(&self, counter: u64) -> Nonce {
        let mut nonce = self.iv;
        for (byte, part) in nonce.iter_mut().rev().zip(counter.to_le_bytes()) {
            *byte ^= part;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

fn expand(secret: &Secret, label: &[u8]) -> Result<[u8; 32], Unspecified> {
    let mut out = [0; 32];
    Prk::new_less_safe(HKDF_SHA256, secret).expand(&[label], HKDF_SHA256)?.fill(&mut out)?;
    Ok(out)
}

/// Seals what goes one way.
#[derive(Debug)]
pub(crate) struct Sealer {
    epoch: Epoch,
    counter: u64,
}

impl Sealer {
    /// # Errors
    /// The cryptography does not work.
    pub(crate) fn new(secret: Secret) -> Result<Self, Unspecified> {
        Ok(Self { epoch: Epoch::new(secret)?, counter: 0 })
    }

    /// The counter of the next datagram.
    pub(crate) const fn counter(&self) -> u64 {
        self.counter
    }

    /// Begins a datagram behind what is in `out`; its content is appended next. Returns where it begins.
    pub(crate) fn begin(&self, out: &mut Vec<u8>, number: u32) -> usize {
        let begin = out.len();
        out.extend_from_slice(&number.to_be_bytes());
        out.extend_from_slice(&self.counter.to_be_bytes());
        begin
    }

    /// Seals the datagram that begins there; `None`: that cannot be.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>, begin: usize) -> Option<()> {
        let counter = self.counter;
        self.counter = counter.checked_add(1)?;
        let (header, content) = out.get_mut(begin..)?.split_first_chunk_mut::<HEADER_LEN>()?;
        let (nonce, aad) = (self.epoch.nonce(counter), Aad::from(&*header));
        let tag = self.epoch.key.seal_in_place_separate_tag(nonce, aad, content).ok()?;
        out.extend_from_slice(tag.as_ref());
        if self.counter.trailing_zeros() >= EPOCH_BITS {
            self.epoch = self.epoch.next().ok()?;
        }
        Some(())
    }
}

/// What is known of a datagram that was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opened {
    /// Its counter.
    pub(crate) counter: u64,
    /// Whether none with a higher one came before.
    pub(crate) is_newest: bool,
}

/// Opens what comes the other way.
#[derive(Debug)]
pub(crate) struct Opener {
    number: u64,
    before: Option<Epoch>,
    now: Epoch,
    next: Option<Epoch>,
    window: Window,
}

impl Opener {
    /// # Errors
    /// The cryptography does not work.
    pub(crate) fn new(secret: Secret) -> Result<Self, Unspecified> {
        let now = Epoch::new(secret)?;
        Ok(Self { number: 0, before: None, now, next: None, window: Window::default() })
    }

    /// The content of a datagram; `None`: the other end has not sealed it, or it has come before.
    pub(crate) fn open<'a>(&mut self, datagram: &'a mut [u8]) -> Option<(Opened, &'a [u8])> {
        let (header, sealed) = datagram.split_first_chunk_mut::<HEADER_LEN>()?;
        let counter = u64::from_be_bytes(*header.last_chunk()?);
        if !self.window.is_new(counter) {
            return None;
        }
        let number = counter >> EPOCH_BITS;
        let epoch = match number.checked_sub(self.number) {
            None if number + 1 == self.number => self.before.as_ref()?,
            None => return None,
            Some(0) => &self.now,
            Some(1) => {
                if self.next.is_none() {
                    self.next = Some(self.now.next().ok()?);
                }
                self.next.as_ref()?
            }
            Some(_) => return None,
        };
        let nonce = epoch.nonce(counter);
        let content = epoch.key.open_in_place(nonce, Aad::from(&*header), sealed).ok()?;
        if number > self.number
            && let Some(next) = self.next.take()
        {
            self.number = number;
            self.before = Some(std::mem::replace(&mut self.now, next));
        }
        Some((Opened { counter, is_newest: self.window.mark(counter) }, content))
    }
}

/// Which counters have come: those of the last [`Window::LEN`] bit by bit.
#[derive(Debug)]
struct Window {
    /// One more than the highest.
    end: u64,
    bits: [u64; Self::WORDS],
}

impl Default for Window {
    fn default() -> Self {
        Self { end: 0, bits: [0; Self::WORDS] }
    }
}

impl Window {
    const WORDS: usize = 32;
    /// One word is being filled anew.
    const LEN: u64 = (Self::WORDS as u64 - 1) * 64;

    fn is_new(&self, counter: u64) -> bool {
        match self.end.checked_sub(counter) {
            None | Some(0) => true,
            Some(age) => {
                age <= Self::LEN && self.word(counter).is_some_and(|word| word & bit(counter) == 0)
            }
        }
    }

    /// It has come; true if none that is higher came before.
    fn mark(&mut self, counter: u64) -> bool {
        let is_newest = counter >= self.end;
        if is_newest {
            let first = self.end.div_ceil(64);
            let last = counter / 64;
            for word in (first..=last).take(Self::WORDS) {
                if let Some(word) = self.bits.get_mut(place(word * 64)) {
                    *word = 0;
                }
            }
            self.end = counter.saturating_add(1);
        }
        if let Some(word) = self.bits.get_mut(place(counter)) {
            *word |= bit(counter);
        }
        is_newest
    }

    fn word(&self, counter: u64) -> Option<u64> {
        self.bits.get(place(counter)).copied()
    }
}

const fn bit(counter: u64) -> u64 {
    1 << (counter % 64)
}

const fn place(counter: u64) -> usize {
    // Below the number of words.
    (counter / 64 % Window::WORDS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Sealer, Opener) {
        (Sealer::new([7; 32]).unwrap(), Opener::new([7; 32]).unwrap())
    }

    fn seal(sealer: &mut Sealer, content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let begin = sealer.begin(&mut out, 9);
        out.extend_from_slice(content);
        sealer.finish(&mut out, begin).unwrap();
        assert_eq!(out.len(), content.len() + OVERHEAD);
        out
    }

    fn open(opener: &mut Opener, datagram: &[u8]) -> Option<(u64, bool, Vec<u8>)> {
        let mut datagram = datagram.to_vec();
        let (opened, content) = opener.open(&mut datagram)?;
        Some((opened.counter, opened.is_newest, content.to_vec()))
    }

    #[test]
    fn what_was_sealed_is_opened_once_in_any_order() {
        let (mut sealer, mut opener) = pair();
        let sent: Vec<_> = (0..5_u8).map(|n| seal(&mut sealer, &[n; 3])).collect();
        for (n, is_newest) in [(1_u8, true), (0, false), (4, true), (3, false)] {
            let expected = Some((n.into(), is_newest, vec![n; 3]));
            assert_eq!(open(&mut opener, &sent[usize::from(n)]), expected);
            assert_eq!(open(&mut opener, &sent[usize::from(n)]), None, "again");
        }
        for _ in 0..3000 {
            assert!(open(&mut opener, &seal(&mut sealer, b"")).is_some());
        }
        assert_eq!(open(&mut opener, &sent[2]), None, "too old");
    }

    #[test]
    fn what_somebody_else_has_touched_is_not_opened() {
        let (mut sealer, mut opener) = pair();
        let sealed = seal(&mut sealer, b"packet");
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(open(&mut opener, &changed), None, "byte {at}");
            assert_eq!(open(&mut opener, &sealed[..at]), None, "{at} bytes");
        }
        let mut other = Opener::new([8; 32]).unwrap();
        assert_eq!(open(&mut other, &sealed), None, "other keys");
        assert!(open(&mut opener, &sealed).is_some(), "none of that has used it up");
    }

    #[test]
    fn keys_change_on_the_way_and_late_ones_are_opened_still() {
        let (mut sealer, mut opener) = pair();
        let boundary = 1 << EPOCH_BITS;
        sealer.counter = boundary - 3;
        let sent: Vec<_> = (0..6).map(|_| seal(&mut sealer, b"x")).collect();
        for n in [0, 1, 4, 2, 3, 5] {
            let counter = boundary - 3 + n;
            let opened = open(&mut opener, &sent[usize::try_from(n).unwrap()]);
            assert_eq!(opened.map(|it| it.0), Some(counter));
        }
        assert_eq!(opener.number, 1);
        let (mut late, mut opener) = pair();
        late.counter = 2 * boundary;
        assert_eq!(open(&mut opener, &seal(&mut late, b"x")), None, "two epochs ahead");
    }
}
