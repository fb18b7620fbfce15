//! Sockets of another network namespace, handed over by a process that lives there.
//!
//! A socket stays in the namespace that it was made in, whoever holds it: a process without any privilege can
//! connect it there. Who wants some *orders* them over a connection of sequenced packets, a few at a time and
//! ahead of need; who is inside answers each order with what it could make:
//!
//! ```text
//! order   two bytes: how many for IPv4, how many for IPv6
//! answer  the same, as many as there are, and as many descriptors: first those for IPv4
//! ```

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::seqpacket::{MAX_DESCRIPTORS, SeqPacket};
use crate::stream;

/// How many sockets of a family are at hand at most.
const STOCK: usize = 8;
/// When so few are left, more are ordered.
const LOW: usize = STOCK / 2;
/// Sockets in one order, at most: what one message carries.
const ORDER: usize = MAX_DESCRIPTORS;

/// The end of who wants sockets.
#[derive(Debug)]
pub struct Supply {
    socket: SeqPacket,
    ipv4: Stock,
    ipv6: Stock,
    /// What is on order, for IPv4 and IPv6.
    ordered: Option<[usize; 2]>,
}

/// The sockets of one family.
#[derive(Debug, Default)]
struct Stock {
    sockets: VecDeque<OwnedFd>,
    /// How often there was none since it was last ordered and answered.
    missed: usize,
    /// Somebody has asked for one: until then none are kept at hand.
    used: bool,
}

impl Stock {
    /// How many are to be ordered.
    fn short_of(&self) -> usize {
        match self.used && self.sockets.len() <= LOW {
            true => (STOCK + self.missed).saturating_sub(self.sockets.len()).min(ORDER),
            false => 0,
        }
    }
}

/// What came over a [`Supply`] for a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Came {
    /// IPv4, or else IPv6.
    pub ipv4: bool,
    /// Some sockets did. Else none can be had now, by who is inside or by us.
    pub some: bool,
}

impl Came {
    /// Nothing came, for either family.
    pub const NONE: [Self; 2] =
        [Self { ipv4: true, some: false }, Self { ipv4: false, some: false }];
}

impl Supply {
    /// The end of a connection with somebody who calls [`give`] at the other one.
    ///
    /// # Errors
    /// It is no connection of sequenced packets.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let socket = SeqPacket::adopt(fd)?;
        Ok(Self { socket, ipv4: Stock::default(), ipv6: Stock::default(), ordered: None })
    }

    /// Takes a socket.
    ///
    /// # Errors
    /// `WouldBlock`: none is here, and some are on their way; else nobody is at the other end any more.
    pub fn take(&mut self, ipv4: bool) -> io::Result<OwnedFd> {
        let stock = if ipv4 { &mut self.ipv4 } else { &mut self.ipv6 };
        stock.used = true;
        let taken = stock.sockets.pop_front();
        stock.missed += usize::from(taken.is_none());
        let ordered = self.order();
        match taken {
            // Whether there will be more is for the next one to find out.
            Some(socket) => Ok(socket),
            None => ordered.and(Err(io::ErrorKind::WouldBlock.into())),
        }
    }

    /// Takes in an answer, and says so of each family that it is for. Nothing, if there is none.
    ///
    /// # Errors
    /// Nobody is at the other end any more, or it talks nonsense: it is of no use.
    pub fn receive(&mut self) -> io::Result<Vec<Came>> {
        let mut count = [0; 2];
        let (len, descriptors) = match self.socket.recv_now(&mut count) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Vec::new()),
            // We are out of descriptors, and those that came are lost.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                count = [0; 2];
                (count.len(), Vec::new())
            }
            received => received?,
        };
        let ([ipv4, ipv6], 2) = (count.map(usize::from), len) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        if descriptors.len() != ipv4 + ipv6 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let [ordered4, ordered6] = self.ordered.take().unwrap_or_default();
        let mut descriptors = descriptors.into_iter();
        let mut came = Vec::new();
        let families =
            [(true, &mut self.ipv4, ordered4, ipv4), (false, &mut self.ipv6, ordered6, ipv6)];
        for (ipv4, stock, ordered, count) in families {
            stock.sockets.extend(descriptors.by_ref().take(count));
            // What was ordered by somebody before us may come on top.
            stock.sockets.truncate(STOCK + stock.missed);
            if ordered + count > 0 {
                stock.missed = 0;
                came.push(Came { ipv4, some: count > 0 });
            }
        }
        if self.ipv4.missed + self.ipv6.missed > 0 {
            // Who missed one of the other family has not been answered yet.
            self.order()?;
        }
        Ok(came)
    }

    /// Orders what is short, one order at a time.
    fn order(&mut self) -> io::Result<()> {
        let (ipv4, ipv6) = (self.ipv4.short_of(), self.ipv6.short_of());
        if self.ordered.is_some() || ipv4 + ipv6 == 0 {
            return Ok(());
        }
        let ipv4 = ipv4.min(ORDER - ipv6.min(ORDER / 2));
        let order = [ipv4, ipv6.min(ORDER - ipv4)];
        let counts = order.map(|count| u8::try_from(count).unwrap_or(u8::MAX));
        self.socket.send_parts(&mut [IoSlice::new(&counts)])?;
        self.ordered = Some(order);
        Ok(())
    }
}

impl AsFd for Supply {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Answers an order with sockets of this network namespace, without waiting. False: nobody is at the other end any
/// more, or it talks nonsense.
#[must_use]
pub fn give(socket: &SeqPacket) -> bool {
    let mut order = [0; 2];
    match socket.recv_now(&mut order) {
        Ok((2, _)) => {}
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
        _ => return false,
    }
    let [ipv4, ipv6] = order.map(usize::from);
    if ipv4 + ipv6 > ORDER {
        return false;
    }
    let make = |ipv4, count| -> Vec<OwnedFd> {
        // Without IPv6, or descriptors, there are fewer.
        (0..count).map_while(|_| stream::unconnected(ipv4).ok()).collect()
    };
    let (ipv4, ipv6) = (make(true, ipv4), make(false, ipv6));
    let counts = [ipv4.len(), ipv6.len()].map(|count| u8::try_from(count).unwrap_or(u8::MAX));
    let descriptors: Vec<_> = ipv4.iter().chain(&ipv6).map(AsFd::as_fd).collect();
    // Too many descriptors may be on their way (`ETOOMANYREFS`).
    socket.send(&counts, &descriptors).or_else(|_| socket.send(&[0, 0], &[])).is_ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::stream::Stream;
    use crate::wait;

    fn connected() -> (Supply, SeqPacket) {
        let (near, far) = SeqPacket::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        (Supply::new(near.as_fd().try_clone_to_owned().unwrap()).unwrap(), far)
    }

    fn came(ipv4: bool, some: bool) -> Came {
        Came { ipv4, some }
    }

    fn is_awaited(taken: io::Result<OwnedFd>) -> bool {
        taken.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    #[test]
    fn sockets_come_when_some_were_asked_for_and_connect() {
        let (mut supply, far) = connected();
        assert_eq!(supply.receive().unwrap(), []);
        for _ in 0..20 {
            assert!(is_awaited(supply.take(true)));
        }
        let mut got = 0;
        while got < 40 {
            assert!(give(&far));
            if supply.receive().unwrap() == [came(true, true)] {
                assert!(supply.ipv4.sockets.len() <= STOCK + 20);
                assert!(supply.ipv6.sockets.is_empty(), "nobody has asked for any");
            }
            while let Ok(socket) = supply.take(true) {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                Stream::connect_by(socket, listener.local_addr().unwrap()).unwrap();
                listener.accept().unwrap();
                got += 1;
            }
        }
    }

    #[test]
    fn both_families_share_an_order() {
        let (mut supply, far) = connected();
        assert!(is_awaited(supply.take(false)));
        assert!(is_awaited(supply.take(true)));
        // The first order was for the one family alone, the next one is for who has missed.
        assert!(give(&far));
        assert_eq!(supply.receive().unwrap(), [came(false, true)]);
        assert!(give(&far));
        assert_eq!(supply.receive().unwrap(), [came(true, true)]);
        assert!(supply.take(false).is_ok());
        assert!(supply.take(true).is_ok());
    }

    #[test]
    fn a_family_that_cannot_be_had_is_told_once_and_asked_for_again_when_wanted() {
        let (mut supply, far) = connected();
        let mut order = [0; 2];
        for _ in 0..2 {
            assert!(is_awaited(supply.take(false)));
            assert!(is_awaited(supply.take(false)));
            assert_eq!(far.recv_now(&mut order).unwrap().0, 2);
            far.send(&[0, 0], &[]).unwrap();
            assert_eq!(supply.receive().unwrap(), [came(false, false)]);
            let nothing = far.recv_now(&mut order).unwrap_err();
            assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn an_answer_that_we_have_no_descriptors_for_is_none_and_the_next_one_counts() {
        let (mut supply, far) = connected();
        assert!(is_awaited(supply.take(true)));
        // As one whose descriptors were cut off: it does not fit.
        far.send(&[1, 0, 0], &[far.as_fd()]).unwrap();
        assert_eq!(supply.receive().unwrap(), [came(true, false)]);
        assert!(is_awaited(supply.take(true)));
        assert!(give(&far) && give(&far));
        assert_eq!(supply.receive().unwrap(), [came(true, true)]);
        assert!(supply.take(true).is_ok());
    }

    #[test]
    fn nobody_waits_at_an_end_that_was_made_a_blocking_one() {
        let (mut supply, far) = connected();
        supply.socket.set_nonblocking(false).unwrap();
        assert_eq!(supply.receive().unwrap(), []);
        far.set_nonblocking(false).unwrap();
        assert!(give(&far));
    }

    #[test]
    fn the_end_of_either_is_told_and_nonsense_is_no_answer() {
        let (mut supply, far) = connected();
        far.send(&[1, 0], &[]).unwrap();
        assert_eq!(supply.receive().unwrap_err().kind(), io::ErrorKind::InvalidData);
        far.send(&[0, 0], &[]).unwrap();
        assert_eq!(supply.receive().unwrap(), [], "nobody has asked");
        drop(far);
        wait::gone(supply.socket.as_fd());
        assert!(supply.receive().is_err());
        assert!(supply.take(true).is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock));
        let (near, far) = SeqPacket::pair().unwrap();
        near.send(&[200, 200], &[]).unwrap();
        assert!(!give(&far), "more than a message carries");
        drop(near);
        wait::gone(far.as_fd());
        assert!(!give(&far));
    }
}
