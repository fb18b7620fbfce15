//! Frames of one interface, received and sent past the kernel's own network stack (packet(7)).
//!
//! What is received is filtered in the kernel: an interface may carry any amount of traffic that
//! does not concern us.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::call;

/// Length of the header before each frame, bytes: `struct virtio_net_hdr`, in this machine's byte
/// order.
pub const HEADER_LEN: usize = 10;

/// Which frames are received. Fragments, and packets with extension headers, are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// UDP over IPv4 to this port.
    Ipv4 {
        /// The destination port.
        udp: u16,
    },
    /// UDP over IPv6 to this port, and ICMPv6 of this type.
    Ipv6 {
        /// The destination port.
        udp: u16,
        /// The type.
        icmp: u8,
    },
}

/// A packet socket, bound to one interface.
#[derive(Debug)]
pub struct Packet {
    fd: OwnedFd,
}

/// `struct sock_filter` of linux/filter.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u16,
    /// How many instructions are passed over if the condition holds, and if not.
    then: u8,
    otherwise: u8,
    value: u32,
}

/// `struct sock_fprog`.
#[repr(C)]
struct Program {
    len: u16,
    instructions: *const Instruction,
}

/// Instructions of linux/bpf_common.h.
const LOAD_BYTE: u16 = 0x30;
const LOAD_HALF: u16 = 0x28;
/// At the offset in the index register.
const LOAD_HALF_INDEXED: u16 = 0x48;
/// Four times the low half of a byte, into the index register: the length of an IPv4 header.
const INDEX_HEADER_LENGTH: u16 = 0xb1;
const IF_EQUAL: u16 = 0x15;
const IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

/// Where the IP header begins: behind the Ethernet header.
const IP: u32 = 14;
const UDP: u32 = 17;
const ICMPV6: u32 = 58;
/// More fragments follow, or this is not the first.
const FRAGMENT: u32 = 0x3fff;
/// The whole frame.
const ACCEPT: u32 = u32::MAX;

impl Wanted {
    fn protocol(self) -> u16 {
        let protocol = match self {
            Self::Ipv4 { .. } => libc::ETH_P_IP,
            Self::Ipv6 { .. } => libc::ETH_P_IPV6,
        };
        u16::try_from(protocol).unwrap_or_default()
    }

    fn program(self) -> Vec<Instruction> {
        let plain = |code, value| Instruction { code, then: 0, otherwise: 0, value };
        let test = |code, value, then, otherwise| Instruction { code, then, otherwise, value };
        match self {
            Self::Ipv4 { udp } => vec![
                plain(LOAD_BYTE, IP + 9),
                test(IF_EQUAL, UDP, 0, 6),
                plain(LOAD_HALF, IP + 6),
                test(IF_ANY_BIT, FRAGMENT, 4, 0),
                plain(INDEX_HEADER_LENGTH, IP),
                plain(LOAD_HALF_INDEXED, IP + 2),
                test(IF_EQUAL, udp.into(), 0, 1),
                plain(RETURN, ACCEPT),
                plain(RETURN, 0),
            ],
            Self::Ipv6 { udp, icmp } => vec![
                plain(LOAD_BYTE, IP + 6),
                test(IF_EQUAL, UDP, 0, 2),
                plain(LOAD_HALF, IP + 40 + 2),
                test(IF_EQUAL, udp.into(), 3, 4),
                test(IF_EQUAL, ICMPV6, 0, 3),
                plain(LOAD_BYTE, IP + 40),
                test(IF_EQUAL, icmp.into(), 0, 1),
                plain(RETURN, ACCEPT),
                plain(RETURN, 0),
            ],
        }
    }
}

impl Packet {
    /// Opens a non-blocking socket for an interface, given by its number.
    ///
    /// # Errors
    /// `PermissionDenied` without `CAP_NET_RAW`; no such interface.
    pub fn open(interface: u32, wanted: Wanted) -> io::Result<Self> {
        // Without a protocol nothing is received until it is bound.
        let fd = call::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK)?;
        let instructions = wanted.program();
        let program = Program {
            len: u16::try_from(instructions.len()).unwrap_or_default(),
            instructions: instructions.as_ptr(),
        };
        let size = libc::socklen_t::try_from(size_of::<Program>()).unwrap_or_default();
        let option = (&raw const program).cast();
        // SAFETY: `program` and the instructions that it points at outlive the call, which only
        // reads them.
        call::check(unsafe {
            libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, option, size)
        })?;
        call::set_option(fd.as_fd(), libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        // struct sockaddr_ll: family, protocol in network order, interface, hardware type, packet
        // type, address length, address.
        let family = u16::try_from(libc::AF_PACKET).unwrap_or_default().to_ne_bytes();
        let interface = interface.to_ne_bytes();
        let protocol = wanted.protocol().to_be_bytes();
        let address = [&family[..], &protocol, &interface, &[0; 12]].concat();
        // SAFETY: the pointer and length describe `address`, which the kernel only reads.
        call::check(unsafe {
            libc::bind(fd.as_raw_fd(), address.as_ptr().cast(), call::length(&address))
        })?;
        Ok(Self { fd })
    }

    /// Takes one frame: its header, and its length in `into`. What does not fit is cut off.
    ///
    /// # Errors
    /// `WouldBlock`: there is none; the interface is gone or down.
    pub fn recv(&self, into: &mut [u8]) -> io::Result<([u8; HEADER_LEN], usize)> {
        let mut header = [0; HEADER_LEN];
        let mut parts = [
            libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: HEADER_LEN },
            libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() },
        ];
        let mut message = call::message_header();
        message.msg_iov = parts.as_mut_ptr();
        message.msg_iovlen = parts.len() as _;
        // SAFETY: `message` points at `parts`, which describe `header` and `into`; all outlive the
        // call and are ours to write.
        let len = call::check_len(unsafe {
            libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT)
        })?;
        Ok((header, len.saturating_sub(HEADER_LEN)))
    }

    /// Sends one frame out of the interface.
    ///
    /// # Errors
    /// `WouldBlock`, no memory; the interface is gone or down.
    pub fn send(&self, header: &[u8; HEADER_LEN], frame: &[u8]) -> io::Result<()> {
        let mut parts = [header.as_slice(), frame].map(|part| libc::iovec {
            iov_base: part.as_ptr().cast_mut().cast(),
            iov_len: part.len(),
        });
        let mut message = call::message_header();
        message.msg_iov = parts.as_mut_ptr();
        message.msg_iovlen = parts.len() as _;
        // SAFETY: `message` points at `parts`, which describe `header` and `frame`; all outlive the
        // call and the kernel only reads them.
        call::check_len(unsafe {
            libc::sendmsg(self.fd.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT)
        })
        .map(drop)
    }
}

impl AsFd for Packet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel does (linux/filter.h); true if it accepts the frame.
    fn accepts(wanted: Wanted, frame: &[u8]) -> bool {
        let byte = |at: u32| frame.get(usize::try_from(at).unwrap()).map(|byte| u32::from(*byte));
        let half = |at: u32| Some(byte(at)? << 8 | byte(at + 1)?);
        let program = wanted.program();
        let (mut accumulator, mut index, mut at) = (0, 0, 0);
        loop {
            let Instruction { code, then, otherwise, value } = program[at];
            at += 1;
            let loaded = match code {
                LOAD_BYTE => byte(value),
                LOAD_HALF => half(value),
                LOAD_HALF_INDEXED => half(value + index),
                INDEX_HEADER_LENGTH => byte(value).map(|byte| {
                    index = 4 * (byte & 0xf);
                    accumulator
                }),
                IF_EQUAL => {
                    at += usize::from(if accumulator == value { then } else { otherwise });
                    continue;
                }
                IF_ANY_BIT => {
                    at += usize::from(if accumulator & value != 0 { then } else { otherwise });
                    continue;
                }
                _ => return value != 0,
            };
            let Some(loaded) = loaded else { return false };
            accumulator = loaded;
        }
    }

    /// An IPv4 packet in a frame, with four bytes of options.
    fn frame4(protocol: u8, fragment: u16, port: u16) -> Vec<u8> {
        let mut frame = vec![0; 14 + 24 + 8];
        frame[14] = 0x46;
        frame[20..22].copy_from_slice(&fragment.to_be_bytes());
        frame[23] = protocol;
        frame[14 + 24 + 2..][..2].copy_from_slice(&port.to_be_bytes());
        frame
    }

    fn frame6(protocol: u8, head: [u8; 4]) -> Vec<u8> {
        let mut frame = vec![0; 14 + 40 + 8];
        frame[20] = protocol;
        frame[54..58].copy_from_slice(&head);
        frame
    }

    #[test]
    fn only_what_is_wanted_passes() {
        let wanted = Wanted::Ipv4 { udp: 67 };
        assert!(accepts(wanted, &frame4(17, 0x4000, 67)));
        assert!(!accepts(wanted, &frame4(17, 0, 68)));
        assert!(!accepts(wanted, &frame4(6, 0, 67)));
        assert!(!accepts(wanted, &frame4(17, 0x2000, 67)));
        assert!(!accepts(wanted, &frame4(17, 7, 67)));
        assert!(!accepts(wanted, &frame4(17, 0, 67)[..30]));
        let wanted = Wanted::Ipv6 { udp: 547, icmp: 133 };
        let [high, low] = 547_u16.to_be_bytes();
        assert!(accepts(wanted, &frame6(17, [0, 0, high, low])));
        assert!(!accepts(wanted, &frame6(17, [133, 0, 0, 67])));
        assert!(accepts(wanted, &frame6(58, [133, 0, 0, 0])));
        assert!(!accepts(wanted, &frame6(58, [135, 0, high, low])));
        assert!(!accepts(wanted, &frame6(6, [133, 0, high, low])));
        assert!(!accepts(wanted, &[]));
    }
}
