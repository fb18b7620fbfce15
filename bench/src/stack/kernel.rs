//! The servers on the kernel, in a namespace behind a TAP, and the relay between its TAP and ours.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;

use netyard_sys::poll::{Events, Interest, Poll};
use netyard_sys::tap::Tap;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

use super::contender::{ANSWERS, DEVICE, SINK, SOURCE, answer, ready};

/// The device of the kernel that is measured, which somebody moves into its namespace.
pub(super) const GUEST_DEVICE: &str = "dev1";

/// Read or written at once, bytes.
const CHUNK: usize = 256 * 1024;
/// A frame with its header, bytes.
const FRAME: usize = 12 + 14 + 65_535;
/// Frames taken from one device before the other one has its turn.
const BATCH: usize = 64;

pub(super) fn serve() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        for port in [SINK, SOURCE, ANSWERS] {
            let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
            let listener = TcpListener::bind(any).await?;
            tokio::task::spawn_local(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::task::spawn_local(connection(stream, port));
                }
            });
        }
        ready()?;
        std::future::pending().await
    })
}

/// Ends with its client.
async fn connection(mut stream: TcpStream, port: u16) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let len = if port == ANSWERS { 1024 } else { CHUNK };
    let mut buffer = vec![0; len];
    loop {
        if port == SOURCE {
            stream.write_all(&buffer).await?;
            continue;
        }
        let len = stream.read(&mut buffer).await?;
        let request = buffer.get(..len).filter(|request| !request.is_empty());
        let Some(request) = request else { return Ok(()) };
        if port == ANSWERS {
            stream.write_all(answer(request)).await?;
        }
    }
}

/// Carries frames between the two TAPs as they are, with what they leave undone.
pub(super) fn relay() -> io::Result<()> {
    let mut devices =
        [Tap::create(DEVICE)?, Tap::create(GUEST_DEVICE)?].map(|tap| File::from(tap.fd));
    let poll = Poll::new()?;
    for (device, token) in devices.iter().zip(0..) {
        poll.add(device.as_fd(), token, Interest::Readable)?;
    }
    let mut buffer = vec![0; FRAME];
    let mut events = Events::new();
    ready()?;
    loop {
        poll.wait(&mut events, None)?;
        let [one, other] = &mut devices;
        for event in events.iter() {
            let (from, to) =
                if event.token == 0 { (&mut *one, &mut *other) } else { (&mut *other, &mut *one) };
            for _ in 0..BATCH {
                match from.read(&mut buffer) {
                    Ok(len) => {
                        // A device that is not up yet, or has no room, drops.
                        let _ = to.write(buffer.get(..len).unwrap_or_default());
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
        }
    }
}
