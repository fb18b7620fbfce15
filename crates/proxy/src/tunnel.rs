//! Connections that have changed to another protocol: bytes both ways.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{self, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{self, Instant};

use crate::front::Client;

/// Bytes that are under way in one direction at most.
const BUFFER: usize = 8 * 1024;

/// Joins both ends until they have finished, nothing has moved for too long, or the service ends.
pub(crate) async fn join(client: Arc<Client>, ours: OnUpgrade, theirs: OnUpgrade) {
    let limit = client.front().limits().tunnel;
    let joined = async {
        let (ours, theirs) = tokio::try_join!(ours, theirs).map_err(io::Error::other)?;
        let (our_read, our_write) = io::split(TokioIo::new(ours));
        let (their_read, their_write) = io::split(TokioIo::new(theirs));
        let moved = Moved(Mutex::new(Instant::now()));
        tokio::select! {
            both = async {
                tokio::try_join!(
                    carry(our_read, their_write, &moved),
                    carry(their_read, our_write, &moved),
                )
            } => both.map(drop),
            never = moved.nothing_for(limit) => never.map(drop),
        }
    };
    let mut stop = client.stop();
    tokio::select! {
        ended = joined => if let Err(error) = ended {
            tracing::debug!(%error, "a tunnel has ended");
        },
        () = stop.given() => {}
    }
}

/// Carries bytes in one direction until its end, and the end too.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    moved: &Moved,
) -> io::Result<()> {
    let mut buffer = [0; BUFFER];
    loop {
        let len = from.read(&mut buffer).await?;
        moved.now();
        let Some(bytes) = buffer.get(..len).filter(|bytes| !bytes.is_empty()) else {
            return to.shutdown().await;
        };
        to.write_all(bytes).await?;
    }
}

/// When a byte has moved last, in whichever direction.
struct Moved(Mutex<Instant>);

impl Moved {
    fn now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Ends with an error when nothing has moved for so long.
    async fn nothing_for(&self, limit: Duration) -> io::Result<Infallible> {
        loop {
            let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner) + limit;
            if until <= Instant::now() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            time::sleep_until(until).await;
        }
    }
}
