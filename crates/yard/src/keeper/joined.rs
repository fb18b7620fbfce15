//! The keeper's process for a network that joins a hub: started again when it ends, until it is not wanted.

use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use netyard_sys::process::PidFd;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time;

use crate::joined::{Order, VERB};
use crate::watched::Watched;

/// Pause before the process is started again, the first and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How long it may take to say goodbye and take back what it has made.
const GOING: Duration = Duration::from_secs(10);

/// Signal numbers of signal(7).
const KILL: i32 = 9;

/// See the module. The process ends, too, when this is dropped, but nobody waits for that.
#[derive(Debug)]
pub(super) struct Joined {
    /// Dropped: it is not wanted any more.
    wanted: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Joined {
    pub(super) fn start(order: Order) -> Self {
        let (wanted, unwanted) = oneshot::channel();
        Self { wanted, task: tokio::task::spawn_local(keep(order, unwanted)) }
    }

    /// Sees it gone.
    pub(super) async fn stop(self) {
        drop(self.wanted);
        // It ends by itself, or was ended.
        let _ = self.task.await;
    }
}

async fn keep(order: Order, mut unwanted: oneshot::Receiver<()>) {
    let mut pause = FIRST_PAUSE;
    loop {
        match start(&order) {
            Ok((child, input)) => {
                let stopped = tokio::select! {
                    () = child.ended() => false,
                    _ = &mut unwanted => true,
                };
                drop(input);
                if stopped {
                    end(&child).await;
                }
                // Reaped: it has ended.
                let exit = child.get().reap();
                if stopped {
                    return;
                }
                tracing::warn!(
                    network = order.network_name(),
                    ?exit,
                    "the process that joins its hub has ended; starting another"
                );
            }
            Err(error) => {
                tracing::error!(%error, network = order.network_name(), "cannot join its hub");
            }
        }
        tokio::select! {
            () = time::sleep(pause) => {}
            _ = &mut unwanted => return,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Starts the process; it ends when its input is closed.
fn start(order: &Order) -> io::Result<(Watched<PidFd>, ChildStdin)> {
    let mut child: Child = Command::new("/proc/self/exe")
        .arg0("netyard")
        .arg(VERB)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        // Signals of a terminal are for the keeper.
        .process_group(0)
        .spawn()?;
    let mut told = || {
        let held = Watched::new(PidFd::open(child.id())?)?;
        let mut input = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let line = serde_json::to_string(order)?;
        writeln!(input, "{line}")?;
        Ok((held, input))
    };
    let started = told();
    if started.is_err() {
        // It has nothing to do, and nobody else would see its end.
        let _ = child.kill();
        let _ = child.wait();
    }
    started
}

/// Waits for the end of a process whose input was closed, and makes sure of it.
async fn end(child: &Watched<PidFd>) {
    if time::timeout(GOING, child.ended()).await.is_err() {
        tracing::warn!("a process that has joined a hub does not end");
        let _ = child.get().signal(KILL);
        child.ended().await;
    }
}
