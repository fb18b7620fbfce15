//! The keeper's link to one network process: requests, and a new process when the old one dies.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use netyard_engine::client::Connection;
use netyard_engine::config::Config;
use netyard_engine::control::{Answer, ControlError, ControlErrorKind, Reply, Request, Welcome};
use netyard_engine::policy::rules::Rules;
use netyard_engine::process;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time;

use super::changes::Changes;
use crate::error::YardError;
use crate::networks;
use crate::watched::Watched;

/// How long a network process may take for an answer: far more than it needs, as its data path
/// never waits.
const ANSWER: Duration = Duration::from_secs(15);
/// How long one may take to show its state: somebody waits to see it.
const LOOK: Duration = Duration::from_secs(5);

/// Pause between two tries to replace a network process, the first and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A reply, with its descriptor if it brings one.
type Replied = Result<(Reply, Option<OwnedFd>), ControlError>;

/// Membership in one network. It ends, and with it everything that was made through it, when
/// this is dropped.
#[derive(Debug)]
pub(super) struct Network {
    link: Link,
    task: JoinHandle<()>,
}

/// What requests go through; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Link {
    shared: Rc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// How to join, also again.
    folder: PathBuf,
    member: String,
    config: Config,
    /// `None` while there is no process.
    connection: RefCell<Option<Connection>>,
    waiting: RefCell<HashMap<u64, oneshot::Sender<Replied>>>,
    /// How often the process was replaced.
    generation: Cell<u64>,
    /// There is no process, and the first try to start another one has failed.
    lost: Cell<bool>,
    /// What our plugs may reach outside.
    rules: RefCell<Rules>,
}

impl Network {
    /// Joins the network of a folder as `member`. If it does not run it is made as `config`
    /// says; if it does, it is as it is. What is to be done `meanwhile` is done before we wait for it. With it comes
    /// what is in the way of its traffic, and what to do about it.
    ///
    /// # Errors
    /// It cannot be joined or made.
    pub(super) fn join(
        folder: &Path,
        config: &Config,
        member: &str,
        changes: Changes,
        meanwhile: impl FnOnce(),
    ) -> Result<(Self, Vec<String>), YardError> {
        let joined = join(folder, config, member, meanwhile)?;
        let (connection, Welcome { config, warnings }) = joined;
        let watched = watch(&connection)
            .map_err(|error| YardError::io(format!("join network {}", config.name), &error))?;
        let link = Link {
            shared: Rc::new(Shared {
                folder: folder.to_owned(),
                member: member.to_owned(),
                config,
                connection: RefCell::new(Some(connection)),
                waiting: RefCell::default(),
                generation: Cell::new(0),
                lost: Cell::new(false),
                rules: RefCell::default(),
            }),
        };
        let task = tokio::task::spawn_local(serve(link.clone(), watched, changes));
        Ok((Self { link, task }, warnings))
    }

    pub(super) fn link(&self) -> Link {
        self.link.clone()
    }

    /// Leaves the network: everything that was made through it goes.
    pub(super) fn leave(self) {}
}

impl Drop for Network {
    fn drop(&mut self) {
        self.task.abort();
        // Others may hold the link for a while.
        self.link.hang_up();
    }
}

impl Link {
    /// The network as it really is.
    pub(super) fn config(&self) -> &Config {
        &self.shared.config
    }

    /// How often its process was replaced. What was made before has to be made again.
    pub(super) fn generation(&self) -> u64 {
        self.shared.generation.get()
    }

    /// Whether its process is gone and another one cannot be started now: that goes on being tried.
    pub(super) fn is_lost(&self) -> bool {
        self.shared.lost.get()
    }

    /// Says what our plugs may reach outside, also to a process that replaces this one: it hears that before
    /// anything else.
    ///
    /// # Errors
    /// What the network process says; `Failed` if it is gone.
    pub(super) async fn set_rules(&self, rules: Rules) -> Result<(), ControlError> {
        self.shared.rules.replace(rules.clone());
        self.ask(Request::SetRules(rules), None).await.map(drop)
    }

    /// Asks for something and waits for the answer.
    ///
    /// # Errors
    /// What the network process says; `Failed` if it is gone.
    pub(super) async fn ask(&self, request: Request, descriptor: Option<OwnedFd>) -> Replied {
        let patience =
            if matches!(request, Request::Inspect | Request::Services) { LOOK } else { ANSWER };
        let answer = self.send(request, descriptor)?;
        match time::timeout(patience, answer).await {
            Ok(Ok(replied)) => replied,
            Ok(Err(_)) => Err(self.gone()),
            Err(_) => Err(failed(format!("network {} does not answer", self.config().name))),
        }
    }

    /// Asks for something at once, in the order of the calls; the answer can be awaited.
    fn send(
        &self,
        request: Request,
        descriptor: Option<OwnedFd>,
    ) -> Result<oneshot::Receiver<Replied>, ControlError> {
        let (sender, receiver) = oneshot::channel();
        let mut connection = self.shared.connection.borrow_mut();
        let connection = connection.as_mut().ok_or_else(|| self.gone())?;
        let id = connection.call(request, descriptor).map_err(|error| failed(error.to_string()))?;
        self.shared.waiting.borrow_mut().insert(id, sender);
        Ok(receiver)
    }

    /// Tells something whose answer is of no interest.
    pub(super) fn tell(&self, request: Request) {
        // If the process is gone, everything is told anew to the next one.
        let _ = self.send(request, None);
    }

    fn gone(&self) -> ControlError {
        failed(format!(
            "the process of network {} has ended; another one is started",
            self.config().name
        ))
    }

    fn hang_up(&self) {
        self.shared.connection.borrow_mut().take();
        self.shared.waiting.borrow_mut().clear();
    }

    /// The next answer, as [`Watched::read`] wants it.
    fn poll(&self) -> io::Result<(Answer, Option<OwnedFd>)> {
        let mut connection = self.shared.connection.borrow_mut();
        let connection = connection.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        connection.poll_answer()?.ok_or(io::ErrorKind::WouldBlock.into())
    }
}

fn failed(message: String) -> ControlError {
    ControlError { kind: ControlErrorKind::Failed, message }
}

fn join(
    folder: &Path,
    config: &Config,
    member: &str,
    meanwhile: impl FnOnce(),
) -> Result<(Connection, Welcome), YardError> {
    let wanted = || format!("join network {}", config.name);
    let joining = process::begin(folder, config, Path::new("/proc/self/exe"));
    let joined = joining.and_then(|joining| {
        meanwhile();
        joining.finish()
    });
    let mut connection = joined.map_err(|error| networks::join_failed(wanted(), &error))?;
    let welcome = connection.hello(member).map_err(|error| YardError::io(wanted(), &error))?;
    Ok((connection, welcome))
}

/// Tells what is in the way of a network's traffic.
pub(super) fn tell(network: &str, warnings: &[String]) {
    for warning in warnings {
        tracing::warn!(network, "{warning}");
    }
}

/// Watches the connection's readiness apart from the connection, which requests go through.
fn watch(connection: &Connection) -> io::Result<Watched<OwnedFd>> {
    Watched::new(connection.as_fd().try_clone_to_owned()?)
}

/// Hands answers out; when the process dies, starts another one.
async fn serve(link: Link, mut watched: Watched<OwnedFd>, changes: Changes) {
    let name = link.config().name.clone();
    loop {
        let error = loop {
            match watched.read(|_| link.poll()).await {
                Ok((answer, descriptor)) => {
                    let waiting = link.shared.waiting.borrow_mut().remove(&answer.id);
                    if let Some(waiting) = waiting {
                        // Whoever asked may have given up.
                        let _ = waiting.send(answer.reply.map(|reply| (reply, descriptor)));
                    }
                }
                Err(error) => break error,
            }
        };
        tracing::warn!(network = name, %error, "the network process has ended; starting another");
        link.hang_up();
        changes.tell();
        watched = rejoin(&link, &changes).await;
        link.shared.lost.set(false);
        link.shared.generation.set(link.generation() + 1);
        tracing::warn!(network = name, "a new network process runs");
        changes.tell();
    }
}

/// Joins again, for as long as it takes.
async fn rejoin(link: &Link, changes: &Changes) -> Watched<OwnedFd> {
    let shared = &link.shared;
    let mut pause = FIRST_PAUSE;
    loop {
        let joined = join(&shared.folder, &shared.config, &shared.member, || ()).and_then(
            |(connection, welcome)| {
                Ok((fence(connection, &shared.rules.borrow())?, welcome.warnings))
            },
        );
        match joined.map(|(connection, warnings)| (watch(&connection), connection, warnings)) {
            Ok((Ok(watched), connection, warnings)) => {
                tell(&shared.config.name, &warnings);
                shared.connection.replace(Some(connection));
                return watched;
            }
            Ok((Err(error), ..)) => tracing::error!(%error, "cannot watch the network process"),
            Err(error) => tracing::error!(%error, "cannot start the network process"),
        }
        if !shared.lost.replace(true) {
            changes.tell();
        }
        time::sleep(pause).await;
        pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
    }
}

/// Tells a new process what our plugs may reach outside, before there are any.
fn fence(mut connection: Connection, rules: &Rules) -> Result<Connection, YardError> {
    if *rules != Rules::default() {
        let wanted = || "set the rules of a network".to_owned();
        match connection.request(Request::SetRules(rules.clone()), None) {
            Ok((Ok(_), _)) => {}
            Ok((Err(error), _)) => return Err(YardError::control(wanted(), &error)),
            Err(error) => return Err(YardError::io(wanted(), &error)),
        }
    }
    Ok(connection)
}
