//! What the kernel tells of a TCP connection: `TCP_INFO`, tcp(7), `struct tcp_info` of linux/tcp.h; and how fast it
//! sends at most: `SO_MAX_PACING_RATE`, tc-fq(8).

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::call;

/// How the way of a connection has been so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpInfo {
    /// The round trip, smoothed.
    pub round_trip: Duration,
    /// The shortest of the last five minutes.
    pub shortest_round_trip: Duration,
    /// Segments that were sent and not acknowledged.
    pub under_way: u32,
    /// Segments that have arrived, in order or not, from the connection's beginning on; wraps around.
    pub delivered: u32,
    /// Largest payload of a segment, bytes.
    pub segment_len: u32,
    /// Bytes that the kernel has taken and not sent once.
    pub unsent: u32,
    /// Segments that were sent again, from the connection's beginning on; wraps around.
    pub sent_again: u32,
    /// How fast it is sent today, bytes in a second; `u64::MAX` where nothing is held back.
    pub pacing_rate: u64,
}

/// Asks about a connected TCP socket.
///
/// # Errors
/// It is none; the kernel is older than Linux 4.18, which does not tell all of that.
pub fn tcp_info(socket: BorrowedFd<'_>) -> io::Result<TcpInfo> {
    /// Where the fields lie that are looked at, bytes from the beginning.
    const SEGMENT_LEN: usize = 16;
    const UNDER_WAY: usize = 24;
    const ROUND_TRIP: usize = 68;
    const SENT_AGAIN: usize = 100;
    const PACING_RATE: usize = 104;
    const UNSENT: usize = 144;
    const SHORTEST_ROUND_TRIP: usize = 148;
    const DELIVERED: usize = 192;
    const LEN: usize = DELIVERED + 4;
    let mut bytes = [0; LEN];
    let len = call::option_bytes(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut bytes)?;
    if len < LEN {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let word = |at| u32::from_ne_bytes(field(&bytes, at));
    Ok(TcpInfo {
        round_trip: Duration::from_micros(word(ROUND_TRIP).into()),
        shortest_round_trip: Duration::from_micros(word(SHORTEST_ROUND_TRIP).into()),
        under_way: word(UNDER_WAY),
        delivered: word(DELIVERED),
        segment_len: word(SEGMENT_LEN),
        unsent: word(UNSENT),
        sent_again: word(SENT_AGAIN),
        pacing_rate: u64::from_ne_bytes(field(&bytes, PACING_RATE)),
    })
}

/// Has a TCP socket send no faster than `rate`, bytes in a second; `u64::MAX`: as fast as it can. From then on it
/// sends at an even pace, whatever its congestion control does else. A kernel older than Linux 5.0 takes the low 32 bits
/// of the rate.
///
/// # Errors
/// It is no socket.
pub fn limit_rate(socket: BorrowedFd<'_>, rate: u64) -> io::Result<()> {
    call::set_option_bytes(socket, libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, &rate.to_ne_bytes())
}

fn field<const LEN: usize>(bytes: &[u8], at: usize) -> [u8; LEN] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; LEN])
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_connection_knows_its_round_trip_and_how_fast_it_may_send() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"there").unwrap();
        server.read_exact(&mut [0; 5]).unwrap();
        server.write_all(b"back").unwrap();
        client.read_exact(&mut [0; 4]).unwrap();
        let info = tcp_info(client.as_fd()).unwrap();
        assert!(info.round_trip > Duration::ZERO && info.round_trip < Duration::from_secs(5));
        assert!(info.pacing_rate > 0);
        assert_eq!(info.sent_again, 0);
        assert!(info.shortest_round_trip > Duration::ZERO);
        assert!(info.shortest_round_trip <= info.round_trip);
        // The SYN counts.
        assert_eq!((info.under_way, info.unsent, info.delivered), (0, 0, 2));
        assert!((500..65_536).contains(&info.segment_len), "{}", info.segment_len);
        limit_rate(client.as_fd(), 1_000_000).unwrap();
        assert!(tcp_info(client.as_fd()).unwrap().pacing_rate <= 1_000_000);
        limit_rate(client.as_fd(), u64::MAX).unwrap();
        assert!(tcp_info(UdpSocket::bind("127.0.0.1:0").unwrap().as_fd()).is_err());
    }
}
