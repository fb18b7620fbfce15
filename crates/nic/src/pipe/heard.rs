//! Who was heard, and where: a server on every address of this machine answers from the one that was asked.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::Message;

/// Other ends whose choice is remembered, at least; twice as many at most. Those that were heard longest ago are
/// forgotten first.
const REMEMBERED: usize = 4096;

/// The other ends of a pipe.
#[derive(Debug, Default)]
pub(super) struct Heard {
    last: Option<SocketAddr>,
    /// Which address each has sent to, of late.
    recent: HashMap<SocketAddr, SocketAddr>,
    /// The same, before `recent` was full and begun anew.
    before: HashMap<SocketAddr, SocketAddr>,
}

impl Heard {
    /// Of a pipe that has one other end from the beginning, or none.
    pub(super) fn new(last: Option<SocketAddr>) -> Self {
        Self { last, ..Self::default() }
    }

    /// Who was heard last.
    pub(super) const fn last(&self) -> Option<SocketAddr> {
        self.last
    }

    /// Takes note of who has sent a message.
    pub(super) fn note(&mut self, message: &Message) {
        self.last = Some(message.from);
    }

    /// Takes note of where it was sent to, too.
    pub(super) fn note_place(&mut self, message: &Message) {
        self.recent.insert(message.from, message.to);
        if self.recent.len() >= REMEMBERED {
            self.before = std::mem::take(&mut self.recent);
        }
    }

    /// Which address this one has sent to.
    pub(super) fn place(&self, of: SocketAddr) -> Option<SocketAddr> {
        self.recent.get(&of).or_else(|| self.before.get(&of)).copied()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn the_latest_are_remembered_with_their_latest_choice() {
        let mut heard = Heard::default();
        let from =
            |number: usize| SocketAddr::from(([192, 0, 2, 1], u16::try_from(number).unwrap()));
        let here = |number: u8| SocketAddr::from(([198, 51, 100, number], 9));
        let mut note = |number, to| {
            heard.note_place(&Message { bytes: Bytes::new(), from: from(number), to });
        };
        for number in 0..3 * REMEMBERED {
            note(number, here(1));
        }
        note(3 * REMEMBERED - 1, here(2));
        assert_eq!(heard.place(from(3 * REMEMBERED - 1)), Some(here(2)));
        for number in 2 * REMEMBERED..3 * REMEMBERED - 1 {
            assert_eq!(heard.place(from(number)), Some(here(1)), "{number}");
        }
        assert_eq!(heard.place(from(0)), None);
        assert!(heard.recent.len() + heard.before.len() <= 2 * REMEMBERED);
    }
}
