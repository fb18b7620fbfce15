//! The threads of a service, and how connections of clients come to them.

use std::io;
use std::net::{self, SocketAddr};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time;

use crate::front::{Front, Stop};
use crate::seats::{Seat, Seats};
use crate::stream::Stream;
use crate::turns::Asker;

/// A pause when connections cannot be taken: out of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// The threads that serve a service, in turn.
#[derive(Debug)]
pub(crate) struct Crew {
    members: Vec<Member>,
    /// Connections that were given to a thread.
    given: AtomicUsize,
    seats: Arc<Seats>,
}

/// A thread, and what clients meet there.
#[derive(Debug)]
struct Member {
    handle: Handle,
    front: Arc<Front>,
}

impl Crew {
    pub(crate) fn new(
        members: impl Iterator<Item = (Handle, Front)>,
        seats: Arc<Seats>,
        stop: &Stop,
    ) -> Self {
        let member = |(handle, front): (Handle, Front)| {
            let front = Arc::new(front);
            handle.spawn(Arc::clone(&front).keep_tidy(stop.clone()));
            Member { handle, front }
        };
        Self { members: members.map(member).collect(), given: AtomicUsize::new(0), seats }
    }

    /// The thread that gets the next connection.
    fn next(&self) -> Option<&Member> {
        let given = self.given.fetch_add(1, Ordering::Relaxed);
        self.members.get(given.checked_rem(self.members.len())?)
    }

    /// Takes connections from a listening socket that does not block, until `closed` or the service
    /// ends.
    pub(crate) fn listen(
        self: &Arc<Self>,
        listener: net::TcpListener,
        closed: oneshot::Receiver<()>,
        stop: &Stop,
    ) -> io::Result<()> {
        let Some(first) = self.members.first() else { return Ok(()) };
        let listener = {
            let _inside = first.handle.enter();
            TcpListener::from_std(listener)?
        };
        let accepting = Arc::clone(self).accept_all(listener, closed, stop.clone());
        first.handle.spawn(accepting);
        Ok(())
    }

    async fn accept_all(
        self: Arc<Self>,
        listener: TcpListener,
        mut closed: oneshot::Receiver<()>,
        mut stop: Stop,
    ) {
        let sign = stop.clone();
        let mut failing = false;
        loop {
            let accepted = tokio::select! {
                biased;
                _ = &mut closed => return,
                () = stop.given() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, client)) => {
                    if std::mem::take(&mut failing) {
                        tracing::info!(service = self.name(), "connections are taken again");
                    }
                    self.hand_over(stream, client, &sign);
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // It is said once, however long it lasts.
                    if failing {
                        tracing::debug!(%error, service = self.name(), "still none can be taken");
                    } else {
                        tracing::warn!(%error, service = self.name(), "connections cannot be taken");
                    }
                    failing = true;
                    time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn name(&self) -> &str {
        self.members.first().map_or("", |first| first.front.name())
    }

    /// Gives a connection to a thread, if there is a seat for it.
    fn hand_over(&self, stream: TcpStream, client: SocketAddr, stop: &Stop) {
        let Some(member) = self.next() else { return };
        let silence = member.front.limits().silence;
        let Some(seat) = self.seats.take(client.ip()) else {
            Stream::of_tcp(stream, silence).breaker().break_off();
            return;
        };
        // It belongs to the event loop of the thread that has taken it.
        match stream.into_std() {
            Ok(stream) => member.admit(asker(client, false), seat, stop, move || {
                Ok(Stream::of_tcp(TcpStream::from_std(stream)?, silence))
            }),
            Err(error) => tracing::warn!(%error, "a connection cannot be handed over"),
        }
    }

    /// Gives a connection to a thread of which this is our end, if there is a seat for it.
    pub(crate) fn adopt(&self, stream: UnixStream, client: SocketAddr, stop: &Stop) {
        let Some(member) = self.next() else { return };
        let silence = member.front.limits().silence;
        if let Some(seat) = self.seats.take(client.ip()) {
            member.admit(asker(client, true), seat, stop, move || Stream::adopt(stream, silence));
        }
    }

    /// Keeps connections without a request open to these instances only.
    pub(crate) fn keep(&self, instances: &[u64]) {
        for member in &self.members {
            member.front.pool().keep(instances);
        }
    }
}

fn asker(client: SocketAddr, handed_over: bool) -> Asker {
    Asker { address: client.ip(), handed_over }
}

impl Member {
    /// Serves a connection on this thread, where `open` brings it into the event loop.
    fn admit(
        &self,
        asker: Asker,
        seat: Seat,
        stop: &Stop,
        open: impl FnOnce() -> io::Result<Stream> + Send + 'static,
    ) {
        let (front, stop) = (Arc::clone(&self.front), stop.clone());
        self.handle.spawn(async move {
            match open() {
                Ok(stream) => front.admit(stream, asker, seat, stop),
                Err(error) => tracing::warn!(%error, "a connection cannot be taken over"),
            }
        });
    }
}
