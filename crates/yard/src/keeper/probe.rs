//! Runs the health check of one instance of one service.

use std::cell::RefCell;
use std::future::pending;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::time::Instant;

use http_body_util::Empty;
use hyper::Request as HttpRequest;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use netyard_engine::control::{Reply, Request};
use netyard_engine::forward::Protocol;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::{self, JoinHandle};
use tokio::time;

use super::changes::Changes;
use super::network::Link;
use super::supervisor::Supervisor;
use crate::health::{self, Checker, Health, ProbeId};
use crate::instance::sockets;
use crate::model::{Check, Probe};

/// The health of one instance of one service, and the task that finds it out.
#[derive(Debug)]
pub(super) struct Watch {
    check: Check,
    to: SocketAddr,
    checker: Rc<RefCell<Checker>>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Watches an instance whose service port is `to`, while it runs.
    pub(super) fn new(
        check: Check,
        to: SocketAddr,
        link: Link,
        instance: &Rc<Supervisor>,
        changes: Changes,
    ) -> Self {
        let checker = Rc::new(RefCell::new(Checker::new(check.clone())));
        let work = Work {
            check: check.clone(),
            to,
            link,
            instance: Rc::downgrade(instance),
            checker: Rc::clone(&checker),
            changes,
        };
        let task = task::spawn_local(work.serve(instance.runs()));
        Self { check, to, checker, task }
    }

    /// Whether it does this check at this place.
    pub(super) fn is_of(&self, check: &Check, to: SocketAddr) -> bool {
        self.check == *check && self.to == to
    }

    pub(super) fn health(&self) -> Health {
        self.checker.borrow().health()
    }

    /// Whether the instance may get new connections of the service.
    pub(super) fn is_healthy(&self) -> bool {
        self.health() == Health::Healthy
    }

    /// Why the last probe failed, if it did.
    pub(super) fn problem(&self) -> Option<String> {
        self.checker.borrow().problem().map(str::to_owned)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Work {
    check: Check,
    to: SocketAddr,
    link: Link,
    instance: Weak<Supervisor>,
    checker: Rc<RefCell<Checker>>,
    changes: Changes,
}

/// A probe under way.
type Running<'a> = Option<(ProbeId, Pin<Box<dyn Future<Output = Result<(), String>> + 'a>>)>;

impl Work {
    /// Ends when the instance's supervisor does.
    async fn serve(self, mut runs: watch::Receiver<Option<u32>>) {
        loop {
            let running = runs.borrow_and_update().is_some();
            self.change(
                |checker| {
                    if running { checker.start(Instant::now()) } else { checker.stop() }
                },
            );
            let ended = if running {
                self.probe_until_changed(&mut runs).await
            } else {
                runs.changed().await
            };
            if ended.is_err() {
                return;
            }
        }
    }

    async fn probe_until_changed(
        &self,
        runs: &mut watch::Receiver<Option<u32>>,
    ) -> Result<(), watch::error::RecvError> {
        let mut running: Running<'_> = None;
        loop {
            let due = self.checker.borrow().poll_timeout();
            let due = async {
                match due {
                    Some(at) => time::sleep_until(at.into()).await,
                    None => pending().await,
                }
            };
            let probe = async {
                match &mut running {
                    Some((id, probe)) => (*id, probe.await),
                    None => pending().await,
                }
            };
            let answered = tokio::select! {
                changed = runs.changed() => return changed,
                answered = answer_until(probe, due) => answered,
            };
            if let Some((id, outcome)) = answered {
                running = None;
                self.change(|checker| checker.handle_probe(Instant::now(), id, outcome));
            } else {
                let next = self.change(|checker| checker.handle_timeout(Instant::now()));
                // One that is still under way has had its time.
                running = next.map(|id| (id, Box::pin(self.probe()) as Pin<Box<_>>));
            }
        }
    }

    /// Changes the checker; rings the bell if the instance's health has changed with it.
    fn change<T>(&self, change: impl FnOnce(&mut Checker) -> T) -> T {
        let mut checker = self.checker.borrow_mut();
        let before = checker.health();
        let result = change(&mut checker);
        if checker.health() != before {
            self.changes.tell();
        }
        result
    }

    /// One probe. What takes too long is dropped.
    async fn probe(&self) -> Result<(), String> {
        let path = match &self.check.probe {
            Probe::Bound => return self.bound(),
            Probe::Tcp => None,
            Probe::Http { path } => Some(path),
        };
        let to = SocketAddr::new(self.to.ip(), self.check.port.unwrap_or(self.to.port()));
        let dial = Request::Dial { to, within: self.check.timeout };
        match (self.link.ask(dial, None).await, path) {
            (Ok((Reply::Dialed, Some(_))), None) => Ok(()),
            (Ok((Reply::Dialed, Some(stream))), Some(path)) => get(stream, to, path).await,
            (Ok(_), _) => Err("the network process says something else".to_owned()),
            (Err(error), _) => Err(error.message),
        }
    }

    /// Whether the program has the service's UDP port open. What runs on another kernel, or is somebody
    /// else's, is believed.
    fn bound(&self) -> Result<(), String> {
        let observed = self.instance.upgrade().map(|instance| instance.observed());
        let here = observed.filter(|observed| observed.vm.is_none() && !observed.own_stack);
        let Some(init) = here.and_then(|observed| observed.init_pid) else { return Ok(()) };
        let (open, port) = (sockets::listening(init), self.to.port());
        if sockets::is_reachable(&open, Protocol::Udp, port) {
            Ok(())
        } else {
            Err(format!("the program has not opened UDP port {port} to the network"))
        }
    }
}

/// Waits for an answer until the time is up. One that has come by then counts, also where this process has waited
/// for a processor and sees both at once.
async fn answer_until<T>(
    answer: impl Future<Output = T>,
    due: impl Future<Output = ()>,
) -> Option<T> {
    let due = async {
        due.await;
        // Who brings the answer has a turn first.
        task::yield_now().await;
    };
    tokio::select! {
        biased;
        answer = answer => Some(answer),
        () = due => None,
    }
}

/// Asks for a path over HTTP.
async fn get(stream: OwnedFd, host: SocketAddr, path: &str) -> Result<(), String> {
    let said = |error: &dyn std::error::Error| error.to_string();
    let stream = StdStream::from(stream);
    stream.set_nonblocking(true).map_err(|error| said(&error))?;
    let stream = UnixStream::from_std(stream).map_err(|error| said(&error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| said(&error))?;
    let request = HttpRequest::get(path)
        .header("host", host.to_string())
        .header("user-agent", "netyard")
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| said(&error))?;
    // Once the connection has ended, an answer that has not come yet is an error.
    let carry = async {
        let _ = connection.await;
        pending::<()>().await;
    };
    let answer = tokio::select! {
        answer = sender.send_request(request) => answer,
        () = carry => return Err("the connection has ended".to_owned()),
    };
    let status = answer.map_err(|error| said(&error))?.status().as_u16();
    if health::passes(status) { Ok(()) } else { Err(format!("answered {status}")) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn an_answer_that_comes_as_the_time_is_up_counts() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        task::LocalSet::new().block_on(&runtime, async {
            for _ in 0..20 {
                let at = time::Instant::now() + Duration::from_millis(5);
                let (say, heard) = oneshot::channel();
                task::spawn_local(async move {
                    time::sleep_until(at).await;
                    say.send("well").unwrap();
                });
                assert_eq!(answer_until(heard, time::sleep_until(at)).await, Some(Ok("well")));
            }
        });
    }

    #[test]
    fn no_answer_is_not_waited_for() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let due = time::sleep(Duration::from_millis(5));
            assert_eq!(answer_until(pending::<()>(), due).await, None);
        });
    }
}
