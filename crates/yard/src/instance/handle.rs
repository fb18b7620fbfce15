//! An instance as its keeper holds it.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::Duration;

use netyard_sys::namespace::IdMaps;
use netyard_sys::process::{self, PidFd};
use netyard_sys::seqpacket::SeqPacket;
use netyard_wire::Features;
use tokio::time;

use super::inside::{self, Inside, Parts};
use super::message::{
    self, Configuration, End, Exit, Failure, Order, PlugConfiguration, Report, Start,
};
use super::{diagnosis, signal};
use crate::error::{ErrorKind, YardError};
use crate::joined;
use crate::watched::Watched;

/// How long any step of init may take; it makes a few system calls.
const STEP: Duration = Duration::from_secs(10);

/// A program's standard input, output and error.
#[derive(Debug)]
pub(crate) struct Stdio {
    pub(crate) input: OwnedFd,
    pub(crate) output: OwnedFd,
    pub(crate) error: OwnedFd,
}

/// What an instance gives its network for a plug.
#[derive(Debug)]
pub(crate) struct PlugEnd {
    pub(crate) kind: End,
    /// The TAP: frames with a 12-byte header, one for each read and write. Or the namespace.
    pub(crate) fd: OwnedFd,
    /// The offloads that the instance's kernel takes and makes use of, of a TAP.
    pub(crate) features: Features,
    /// Of a TAP: the end by which its network asks for sockets of the namespace.
    pub(crate) supply: Option<OwnedFd>,
}

/// What has come to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The program; it can be started again.
    Program(Exit),
    /// The instance: somebody killed its init.
    Instance,
}

/// A living instance. Dropping it kills every process in it; [`Instance::destroy`] also sees them
/// gone.
#[derive(Debug)]
pub(crate) struct Instance {
    name: String,
    control: Control,
    init: Watched<PidFd>,
    init_pid: u32,
    ends: Vec<PlugEnd>,
    /// The program's end, if it came while another report was awaited.
    ended: Cell<Option<Exit>>,
    explain: Explain,
}

/// Makes an error of a step that failed inside the instance of a name.
type Explain = fn(&str, &Failure) -> YardError;

impl Instance {
    /// Makes the namespaces of an instance and the ends of its plugs. Must be called on the main thread: an
    /// instance ends with the thread that made it.
    ///
    /// # Errors
    /// What this machine does not allow, with what to do about it.
    pub(crate) async fn create(name: &str, plugs: Vec<End>) -> Result<Self, YardError> {
        let wanted = || format!("start instance {name}");
        let system = |error: io::Error| YardError::io(wanted(), &error);
        let (ours, theirs) = SeqPacket::pair().map_err(system)?;
        let mut first = First::spawn(theirs).map_err(system)?;
        let control = Control::new(ours).map_err(system)?;
        let explain: Explain = diagnosis::explain;
        let conversation = Conversation { name, control: &control, explain };

        let Report::Unshared = conversation.report().await?.0 else {
            return Err(conversation.nonsense());
        };
        first.give_ids().map_err(|error| {
            diagnosis::explain(
                name,
                &Failure::new(
                    message::Step::Namespaces,
                    "give the new user namespace its ids",
                    &error,
                ),
            )
        })?;
        conversation.say(&Order::Mapped, &[]).await?;
        let Report::Born { pid: init_pid } = conversation.report().await?.0 else {
            return Err(conversation.nonsense());
        };
        // Our own child, not reaped yet: the number is still its own.
        let init = PidFd::open(init_pid).and_then(Watched::new).map_err(system)?;
        let mut instance = Self {
            name: name.to_owned(),
            control,
            init,
            init_pid,
            ends: Vec::new(),
            ended: Cell::new(None),
            explain,
        };
        drop(first);

        let (asks, gives): (Vec<_>, Vec<_>) = plugs
            .iter()
            .filter(|end| **end == End::Tap)
            .map(|_| SeqPacket::pair())
            .collect::<io::Result<Vec<_>>>()
            .map_err(system)?
            .into_iter()
            .unzip();
        let gives: Vec<_> = gives.iter().map(AsFd::as_fd).collect();
        instance.say(&Order::Create { plugs: plugs.clone() }, &gives).await?;
        let mut asks = asks.into_iter();
        let (report, descriptors) = instance.report().await?;
        let Report::Created { offloads } = report else { return Err(instance.nonsense()) };
        let count = plugs.len();
        instance.ends = descriptors
            .into_iter()
            .zip(offloads)
            .zip(plugs)
            .map(|((fd, offloads), kind)| {
                let supply = if kind == End::Tap { asks.next().map(OwnedFd::from) } else { None };
                PlugEnd { kind, fd, features: offloads.features(), supply }
            })
            .collect();
        if instance.ends.len() != count {
            return Err(instance.nonsense());
        }
        Ok(instance)
    }

    /// Takes over a process in a network namespace that somebody else has made, as the init of an instance without
    /// a program.
    ///
    /// # Errors
    /// What the kernel does not allow there, with what to do about it.
    pub(crate) async fn enter(name: &str, inside: Inside) -> Result<Self, YardError> {
        let system = |error: io::Error| YardError::io(format!("plug {name} in"), &error);
        let Parts { control, process, pid, asks } = inside.into_parts().map_err(system)?;
        let mut instance = Self {
            name: name.to_owned(),
            control: Control::new(control).map_err(system)?,
            init: Watched::new(process).map_err(system)?,
            init_pid: pid,
            ends: Vec::new(),
            ended: Cell::new(None),
            explain: inside::explain,
        };
        let (report, descriptors) = instance.report().await?;
        let Report::Created { offloads } = report else { return Err(instance.nonsense()) };
        let (Some(offloads), Some(fd)) = (offloads.first(), descriptors.into_iter().next()) else {
            return Err(instance.nonsense());
        };
        let features = offloads.features();
        instance.ends.push(PlugEnd { kind: End::Tap, fd, features, supply: Some(asks) });
        Ok(instance)
    }

    /// The ends of its plugs: `eth0`, `eth1`, ...
    pub(crate) fn ends(&self) -> &[PlugEnd] {
        &self.ends
    }

    /// The host's number of its pid 1.
    pub(crate) fn init_pid(&self) -> u32 {
        self.init_pid
    }

    /// Sets its links, addresses, routes, mounts and names up. Returns what could not be done and
    /// can be lived without.
    ///
    /// # Errors
    /// What this machine does not allow, with what to do about it.
    pub(crate) async fn configure(
        &self,
        configuration: Configuration,
    ) -> Result<Vec<String>, YardError> {
        self.say(&Order::Configure(configuration), &[]).await?;
        match self.report().await?.0 {
            Report::Ready { warnings } => Ok(warnings),
            _ => Err(self.nonsense()),
        }
    }

    /// Sets the link of a plug up again, which its network has made anew.
    ///
    /// # Errors
    /// As [`Instance::configure`].
    pub(crate) async fn relink(
        &self,
        number: usize,
        plug: PlugConfiguration,
    ) -> Result<(), YardError> {
        self.say(&Order::Relink { number, plug }, &[]).await?;
        loop {
            match self.report().await?.0 {
                Report::Relinked => return Ok(()),
                Report::Exited { exit } => self.ended.set(Some(exit)),
                _ => return Err(self.nonsense()),
            }
        }
    }

    /// Starts the program, which must not run; its host process id, if it still has one. It gets `extra`
    /// descriptors under the numbers from [`FIRST_DESCRIPTOR`](message::FIRST_DESCRIPTOR) on.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) async fn start(
        &self,
        start: Start,
        stdio: Stdio,
        extra: &[OwnedFd],
    ) -> Result<Option<u32>, YardError> {
        let mut descriptors = vec![stdio.input.as_fd(), stdio.output.as_fd(), stdio.error.as_fd()];
        descriptors.extend(extra.iter().map(AsFd::as_fd));
        self.say(&Order::Start(start), &descriptors).await?;
        match self.report().await? {
            (Report::Started, descriptors) => {
                let held = descriptors.into_iter().next().map(PidFd::from);
                Ok(held.and_then(|held| held.pid().ok()?))
            }
            _ => Err(self.nonsense()),
        }
    }

    /// Sends the program a signal.
    ///
    /// # Errors
    /// The instance is gone.
    pub(crate) async fn signal(&self, signal: i32) -> Result<(), YardError> {
        self.say(&Order::Signal { signal }, &[]).await
    }

    /// Waits until the program or the whole instance has ended. Can be cancelled.
    pub(crate) async fn ended(&self) -> Ended {
        if let Some(exit) = self.ended.take() {
            return Ended::Program(exit);
        }
        loop {
            match self.control.receive().await {
                Ok(Some((Report::Exited { exit }, _))) => return Ended::Program(exit),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return Ended::Instance,
            }
        }
    }

    /// Kills every process in it and sees them gone.
    pub(crate) async fn destroy(self) {
        self.kill();
        // Once pid 1 has ended, the kernel has ended all the others.
        let reap = |init: &PidFd| init.reap()?.ok_or(io::ErrorKind::WouldBlock.into());
        let _ = time::timeout(STEP, self.init.read(reap)).await;
    }

    fn kill(&self) {
        // It may have ended already.
        let _ = self.init.get().signal(signal::KILL);
    }

    fn conversation(&self) -> Conversation<'_> {
        Conversation { name: &self.name, control: &self.control, explain: self.explain }
    }

    async fn say(&self, order: &Order, descriptors: &[BorrowedFd<'_>]) -> Result<(), YardError> {
        self.conversation().say(order, descriptors).await
    }

    async fn report(&self) -> Result<(Report, Vec<OwnedFd>), YardError> {
        self.conversation().report().await
    }

    fn nonsense(&self) -> YardError {
        self.conversation().nonsense()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.kill();
        // Most often too early, and then reaped by whoever reaps us.
        let _ = self.init.get().reap();
    }
}

/// The first process of init, reaped when dropped: it ends by itself once pid 1 is born.
struct First {
    child: Child,
}

impl First {
    fn spawn(control: SeqPacket) -> io::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("netyard").arg("instance-init");
        command.stdin(OwnedFd::from(control)).stdout(std::process::Stdio::null());
        joined::withhold(&mut command);
        Ok(Self { child: command.spawn()? })
    }

    fn give_ids(&mut self) -> io::Result<()> {
        let maps = if process::effective_user() == 0 { IdMaps::every()? } else { IdMaps::own() };
        maps.write(self.child.id())
    }
}

impl Drop for First {
    fn drop(&mut self) {
        // After Born it is ending; before, something failed and it must not stay.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Orders and reports of one instance.
struct Conversation<'a> {
    name: &'a str,
    control: &'a Control,
    explain: Explain,
}

impl Conversation<'_> {
    async fn say(&self, order: &Order, descriptors: &[BorrowedFd<'_>]) -> Result<(), YardError> {
        self.control
            .send(order, descriptors)
            .await
            .map_err(|error| YardError::io(format!("tell instance {}", self.name), &error))
    }

    /// The next report; a failure is an error with what to do about it.
    async fn report(&self) -> Result<(Report, Vec<OwnedFd>), YardError> {
        let wanted = || format!("start instance {}", self.name);
        let report = time::timeout(STEP, self.control.receive()).await.map_err(|_| {
            YardError::new(ErrorKind::TimedOut, wanted(), "its init does not answer")
        })?;
        match report.map_err(|error| YardError::io(wanted(), &error))? {
            Some((Report::Failed(failure), _)) => Err((self.explain)(self.name, &failure)),
            Some(report) => Ok(report),
            None => Err(YardError::new(ErrorKind::System, wanted(), "its init was killed")),
        }
    }

    fn nonsense(&self) -> YardError {
        let wanted = format!("start instance {}", self.name);
        YardError::new(ErrorKind::Bug, wanted, "its init said something unexpected")
    }
}

/// The keeper's end of the control connection.
#[derive(Debug)]
struct Control {
    socket: Watched<SeqPacket>,
}

impl Control {
    fn new(socket: SeqPacket) -> io::Result<Self> {
        Watched::new(socket).map(|socket| Self { socket })
    }

    async fn send(&self, order: &Order, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.socket.write(|socket| message::send(socket, order, descriptors)).await
    }

    async fn receive(&self) -> io::Result<Option<(Report, Vec<OwnedFd>)>> {
        self.socket.read(message::receive).await
    }
}
