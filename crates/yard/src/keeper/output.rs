//! Where a program's output goes.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::SystemTime;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::task::JoinSet;

use crate::instance::Stdio;
use crate::logs::{Lines, Log, Stream};

/// Where a program's output goes, and where its input comes from.
#[derive(Debug, Clone)]
pub(super) enum Output {
    /// Output to a log, no input.
    Log(Arc<Log>),
    /// The keeper's own, terminal and all.
    Ours,
}

impl Output {
    /// What a program is started with. What carries its output is added to `carriers`; each ends
    /// when nobody has that output open any more.
    pub(super) fn open(&self, carriers: &mut JoinSet<()>) -> io::Result<Stdio> {
        let log = match self {
            Self::Log(log) => log,
            Self::Ours => {
                return Ok(Stdio {
                    input: io::stdin().as_fd().try_clone_to_owned()?,
                    output: io::stdout().as_fd().try_clone_to_owned()?,
                    error: io::stderr().as_fd().try_clone_to_owned()?,
                });
            }
        };
        let mut piped = |stream| -> io::Result<OwnedFd> {
            let (ours, theirs) = io::pipe()?;
            let receiver = Receiver::from_owned_fd(ours.into())?;
            carriers.spawn_local(carry(receiver, Lines::new(stream), Arc::clone(log)));
            Ok(theirs.into())
        };
        let (output, error) = (piped(Stream::Output)?, piped(Stream::Error)?);
        Ok(Stdio { input: std::fs::File::open("/dev/null")?.into(), output, error })
    }
}

/// Carries one output to the log until it ends.
async fn carry(mut receiver: Receiver, mut lines: Lines, log: Arc<Log>) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(len @ 1..) = receiver.read(&mut buffer).await {
        let bytes = buffer.get(..len).unwrap_or_default();
        keep(&log, lines.push(SystemTime::now(), bytes));
    }
    keep(&log, lines.finish(SystemTime::now()));
}

fn keep(log: &Log, lines: hyper::body::Bytes) {
    if !lines.is_empty()
        && let Err(error) = log.write(lines)
    {
        tracing::warn!(%error, "cannot write a log; output is lost");
    }
}
