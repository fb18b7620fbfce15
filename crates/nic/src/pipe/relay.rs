//! Relays: what comes in at one pipe goes out at another.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::shared::Shared;
use super::{Filter, Limits, Pipe, PipeError, Policy, Proto, Subscription};

/// The longest piece of a stream that becomes a datagram, bytes: it fits every path of IPv6.
const PIECE: usize = 1200;

/// What a relay carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RelayStats {
    /// Messages that went out.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Datagrams that did not: too long for the family, nobody to send them to, or the kernel refused them.
    pub dropped: u64,
}

/// Carries messages in one direction, until the first pipe ends, the second one fails, or it is dropped.
#[derive(Debug)]
pub struct Relay {
    task: JoinHandle<Result<(), PipeError>>,
    stats: watch::Receiver<RelayStats>,
}

impl Relay {
    /// What it has carried so far.
    #[must_use]
    pub fn stats(&self) -> RelayStats {
        *self.stats.borrow()
    }

    /// Waits until the first pipe has ended and all that came of it has been sent.
    ///
    /// # Errors
    /// A pipe has failed.
    pub async fn finished(&mut self) -> Result<RelayStats, PipeError> {
        match (&mut self.task).await {
            Ok(result) => result.map(|()| self.stats()),
            // It was ended from outside.
            Err(_) => Err(PipeError::Closed),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Joins two pipes, so that each one's other end talks to the other's.
pub fn relay(one: &mut Pipe, two: &mut Pipe) -> [Relay; 2] {
    [one.relay_to(two), two.relay_to(one)]
}

impl Pipe {
    /// Sends what comes in, and what has come and was not taken yet, to the other end of another pipe; to a
    /// server's client that it has heard last. The inbox is the relay's from now on. When nothing more comes,
    /// the other end is told that nothing more will.
    ///
    /// Nothing is lost between streams. Of a stream that is relayed to datagrams each has at most 1,200 bytes.
    pub fn relay_to(&mut self, other: &Self) -> Relay {
        let limits = match self.proto() {
            Proto::Tcp => Limits::new(Policy::Wait),
            Proto::Udp => self.shared.limits,
        };
        let from =
            self.inbox.take().unwrap_or_else(|| self.subscribe_within(Filter::all(), limits));
        let rest = std::mem::take(&mut self.rest);
        let cut = (self.proto() == Proto::Tcp && other.proto() == Proto::Udp).then_some(PIECE);
        let to = other.shared.clone();
        let (told, stats) = watch::channel(RelayStats::default());
        let task = tokio::spawn(async move {
            if !rest.is_empty() {
                send(&to, &rest, cut, &told).await?;
            }
            carry(from, &to, cut, &told).await
        });
        Relay { task, stats }
    }
}

async fn carry(
    from: Subscription,
    to: &Arc<Shared>,
    cut: Option<usize>,
    stats: &watch::Sender<RelayStats>,
) -> Result<(), PipeError> {
    loop {
        let next = tokio::select! {
            next = from.next() => next?,
            () = to.closing() => return Err(PipeError::Closed),
        };
        match next {
            Some(message) => send(to, &message.bytes, cut, stats).await?,
            None => return to.finish().await,
        }
    }
}

async fn send(
    to: &Arc<Shared>,
    bytes: &[u8],
    cut: Option<usize>,
    stats: &watch::Sender<RelayStats>,
) -> Result<(), PipeError> {
    let mut rest = bytes;
    loop {
        let (piece, after) = rest.split_at(rest.len().min(cut.unwrap_or(usize::MAX)));
        match to.reply(piece).await {
            // Datagrams that nobody takes are lost, as datagrams are.
            Err(PipeError::Io(_) | PipeError::NoClient(_) | PipeError::TooLarge { .. })
                if to.proto == Proto::Udp =>
            {
                stats.send_modify(|stats| stats.dropped += 1);
            }
            Err(error) => return Err(error),
            Ok(()) => stats.send_modify(|stats| {
                stats.messages += 1;
                stats.bytes += piece.len() as u64;
            }),
        }
        rest = after;
        if rest.is_empty() {
            return Ok(());
        }
    }
}
