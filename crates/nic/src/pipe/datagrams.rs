//! Sending and receiving datagrams.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;

use super::queue::End;
use super::shared::Shared;
use super::{Message, PipeError};
use crate::Family;
use crate::datagrams::{Came, Datagrams};

/// More than any datagram has, bytes.
const ROOM: usize = 1 << 16;
/// Errors about earlier datagrams that are looked past; further ones are about this one.
const MAX_EARLIER: u64 = 2;
/// What the kernel makes of ICMP messages (Linux `icmp_err_convert` and `icmpv6_err_convert`, in the numbers
/// of asm-generic/errno.h): EACCES, ENONET, EPROTO, EMSGSIZE, ENOPROTOOPT, EOPNOTSUPP, ENETUNREACH,
/// ECONNRESET, ECONNREFUSED, EHOSTDOWN, EHOSTUNREACH.
const OF_ICMP: [i32; 11] = [13, 64, 71, 90, 92, 95, 101, 104, 111, 112, 113];

/// The longest datagram that UDP carries over a family, bytes: a packet of IPv4 has 65,535 with its header of
/// 20 bytes (RFC 791 section 3.1), one of IPv6 without its header (RFC 8200 section 3); that of UDP has 8.
#[must_use]
pub const fn max_datagram(family: Family) -> usize {
    match family {
        Family::Ip4 => 65_507,
        Family::Ip6 => 65_527,
    }
}

/// Whether an error is what a datagram which was sent before has met on its way (ICMP).
fn is_about_earlier(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|number| OF_ICMP.contains(&number))
}

impl Shared {
    pub(super) async fn send_datagram(
        &self,
        socket: &Datagrams,
        bytes: &[u8],
        from: SocketAddr,
        to: SocketAddr,
    ) -> Result<(), PipeError> {
        let (len, most) = (bytes.len(), max_datagram(Family::of(to.ip())));
        if len > most {
            return Err(PipeError::TooLarge { len, most });
        }
        let mut earlier = 0;
        loop {
            let sent = match self.peer {
                Some(_) => socket.send(bytes).await,
                None => socket.send_from(bytes, from, to).await,
            };
            match sent {
                Ok(()) => {
                    self.count_undelivered(earlier);
                    return Ok(());
                }
                // This one has not been sent.
                Err(error) if earlier < MAX_EARLIER && is_about_earlier(&error) => earlier += 1,
                Err(error) => return Err(PipeError::Io(error)),
            }
        }
    }

    /// Reads datagrams until the pipe closes.
    pub(super) async fn read_datagrams(self: Arc<Self>, socket: Arc<Datagrams>) {
        let reading = async {
            let mut buffer = vec![0; ROOM];
            loop {
                let Came { len, from, to } = match socket.recv(&mut buffer).await {
                    Ok(received) => received,
                    Err(error) if is_about_earlier(&error) => {
                        self.count_undelivered(1);
                        continue;
                    }
                    Err(error) => return End::Failed(error.to_string()),
                };
                let bytes = Bytes::copy_from_slice(buffer.get(..len).unwrap_or_default());
                if self.publish(Message { bytes, from, to }).await.is_err() {
                    return End::Failed("messages came faster than they were taken".to_owned());
                }
            }
        };
        self.until_closed(reading).await;
    }
}
