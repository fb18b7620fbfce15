//! Whether the way to the hub is another than the one that a lane has taken.
//!
//! A connection keeps the address that it began with. When the machine loses that, or would use another one now (another
//! card, another network), nobody tells the connection: there would be silence until it is given up. The kernel
//! says when links, addresses and routes change; what it would send from is asked again then.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram as StdSocket;
use std::time::{Duration, Instant};

use netyard_link::rtnetlink::Watch;
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::time::{sleep, sleep_until};

use crate::udp::Socket;

/// Changes come together: it is looked when there was none for so long, and at the latest after so long.
const QUIET: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_millis(250);
/// One of two ways that serve alike is missed once in some million times.
const LOOKS: usize = 20;

/// By which address of this machine something is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Way {
    /// The hub, or the proxy on the way to it.
    pub(super) to: SocketAddr,
    /// `None`: nothing leads there.
    pub(super) from: Option<IpAddr>,
}

impl Way {
    /// The way there is now, for what carries this mark. By the tunnel, whose addresses are these, nothing gets to the
    /// hub.
    pub(super) fn now(to: SocketAddr, mark: Option<u32>, tunnel: &[IpAddr]) -> Self {
        let from = Socket::source(to, mark).ok().filter(|from| !tunnel.contains(from));
        Self { to, from }
    }

    /// Whether there is another one now, as `look` says. Where several serve alike the kernel takes one or another each
    /// time: it is looked until this one is among them, or is not for [`LOOKS`] times.
    pub(super) fn is_left(&self, look: impl FnMut() -> Self) -> bool {
        std::iter::repeat_with(look).take(LOOKS).all(|now| self.is_left_for(&now))
    }

    /// Whether there is another one now. One that is gone may come back.
    fn is_left_for(&self, now: &Self) -> bool {
        now.from.is_some() && now.from != self.from
    }
}

/// The changes of this machine's links, addresses and routes.
#[derive(Debug)]
pub(super) struct Moves {
    notices: Watch,
    /// A duplicate that serves for its readiness alone.
    readiness: UnixDatagram,
    /// The first and the last that nobody was told of.
    came: Option<(Instant, Instant)>,
}

impl Moves {
    /// Changes from now on.
    pub(super) fn open() -> io::Result<Self> {
        let notices = Watch::open(None).map_err(io::Error::other)?;
        let duplicate = StdSocket::from(notices.as_fd().try_clone_to_owned()?);
        duplicate.set_nonblocking(true)?;
        Ok(Self { notices, readiness: UnixDatagram::from_std(duplicate)?, came: None })
    }

    /// Waits until something has changed. Nothing is lost when the future is dropped.
    pub(super) async fn settled(&mut self) {
        loop {
            let due = self.came.map(|(first, last)| (last + QUIET).min(first + LONGEST));
            let quiet = async {
                match due {
                    Some(due) => sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            let notices = &mut self.notices;
            tokio::select! {
                taken = self.readiness.async_io(Interest::READABLE, || take(notices)) => {
                    if let Err(error) = taken {
                        tracing::warn!(%error, "changes of this machine's addresses are not seen");
                        sleep(LONGEST).await;
                    }
                    let now = Instant::now();
                    self.came = Some((self.came.map_or(now, |(first, _)| first), now));
                }
                () = quiet => {
                    self.came = None;
                    return;
                }
            }
        }
    }
}

/// Takes the notices that there are; `WouldBlock`: there are none.
fn take(notices: &mut Watch) -> io::Result<()> {
    let mut is_any = false;
    while notices.next_change().map_err(io::Error::other)?.is_some() {
        is_any = true;
    }
    if is_any { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_is_left_for_another_one_and_not_for_none() {
        let to = SocketAddr::from(([127, 0, 0, 1], 9));
        let here = Way::now(to, None, &[[10, 0, 0, 1].into()]);
        assert_eq!(here.from, Some([127, 0, 0, 1].into()));
        assert_eq!(Way::now(to, None, &[[127, 0, 0, 1].into()]).from, None, "the tunnel's own");
        let elsewhere = Way { from: Some([127, 0, 0, 2].into()), ..here };
        let nowhere = Way { from: None, ..here };
        assert!(here.is_left_for(&elsewhere) && nowhere.is_left_for(&here));
        assert!(!here.is_left_for(&nowhere) && !here.is_left_for(&here));
    }

    #[test]
    fn a_way_that_serves_beside_others_is_not_left() {
        let to = SocketAddr::from(([127, 0, 0, 1], 9));
        let from = |host: u8| Way { to, from: Some([127, 0, 0, host].into()) };
        let mut looks = 0;
        assert!(!from(1).is_left(|| {
            looks += 1;
            from(if looks % 4 == 0 { 1 } else { 2 })
        }));
        assert!(from(3).is_left(|| from(1)));
    }
}
