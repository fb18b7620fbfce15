//! Looks after one instance: makes it, starts its program, starts it again, takes it down.
//!
//! A supervisor is a task that takes orders one after the other and otherwise watches. What it
//! sees stands in [`Observed`]; each change rings the keeper's bell.

use std::cell::RefCell;
use std::future::pending;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use netyard_engine::config::Mode;
use netyard_engine::control::{PlugKind, PlugRequest, Plugged, Reply, Request};
use netyard_link::rtnetlink::LinkName;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time;

use super::cable::{Cable, Tap};
use super::changes::Changes;
use super::files;
use super::network::Link;
use super::output::Output;
use super::stack;
use crate::api::{InstanceState, MachineStatus};
use crate::bridge::tap;
use crate::error::{ErrorKind, YardError};
use crate::instance::{
    Configuration, End, Ended, Exit, Inside, Instance, PlugConfiguration, Start, Stdio,
    find_program, link_name, signal,
};
use crate::model::{InstanceSpec, Kind, PlugSpec, VmSpec};
use crate::path_socket::PathSocket;
use crate::restart::Backoff;
use crate::vm;
use crate::watched::Watched;

/// How long a program may take to end after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// The same for a virtual machine, which is slow without KVM, and may have services to stop.
const MACHINE_GRACE: Duration = Duration::from_secs(30);

/// How long its last output may take to arrive when all its processes are gone.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How the warning starts that a virtual machine runs without KVM.
const SLOW: &str = "runs without KVM, several times slower";

/// How an instance is, as its supervisor sees it.
#[derive(Debug, Clone)]
pub(super) struct Observed {
    /// Never healthy or unhealthy: that is for others to say.
    pub(super) state: InstanceState,
    pub(super) pid: Option<u32>,
    pub(super) init_pid: Option<u32>,
    /// Its plugs as their networks made them, `eth0` first.
    pub(super) plugs: Vec<Plugged>,
    pub(super) restarts: u32,
    pub(super) started: Option<Instant>,
    /// How the program last ended, or why it did not start, for people.
    pub(super) exit: Option<String>,
    /// The exit code of the program's last run.
    pub(super) code: Option<i32>,
    /// Why it did not start.
    pub(super) error: Option<YardError>,
    pub(super) warnings: Vec<String>,
    /// What is known of its machine, if it is a virtual one.
    pub(super) vm: Option<MachineStatus>,
    /// Its program has a stack of its own.
    pub(super) own_stack: bool,
    /// Its TAPs in the order of its plugs, if it is plugged in by such.
    pub(super) taps: Vec<Tap>,
}

impl Observed {
    /// The names of TAPs of a virtual machine that somebody has deleted: it is cut off from their
    /// networks until it is started again.
    pub(super) fn lost_taps(&self) -> Vec<String> {
        let running = self.taps.iter().filter(|_| self.state == InstanceState::Running);
        running.filter(|tap| tap.is_lost()).map(|tap| tap.name.clone()).collect()
    }
}

/// What a supervisor is told to do; each order is answered when it is done.
#[derive(Debug)]
enum Order {
    /// Make the instance, do not start its program.
    Prepare,
    /// Start the program if it does not run.
    Start,
    /// Stop the program if it runs.
    Stop,
    /// Plug everything in again that leads to this network (its global name).
    Replug(String),
    /// From now on, this is what the instance is.
    Update(Box<InstanceSpec>),
    /// Stop the program, take the instance down, and take no more orders.
    End,
}

type Done = Result<(), YardError>;

/// The keeper's handle of a supervisor. It takes the instance down when this is dropped;
/// [`Supervisor::end`] waits until that is done.
#[derive(Debug)]
pub(super) struct Supervisor {
    orders: mpsc::Sender<(Order, oneshot::Sender<Done>)>,
    observed: Rc<RefCell<Observed>>,
    runs: watch::Receiver<Option<u32>>,
    hurry: Rc<Notify>,
}

impl Supervisor {
    /// A supervisor of an instance that is not there yet. `links` are those of its plugs, `folder`
    /// is its own folder in the `runtime` folder. If it is the namespace of somebody else, a process is `inside`.
    pub(super) fn new(
        spec: InstanceSpec,
        links: Vec<Link>,
        runtime: PathBuf,
        folder: PathBuf,
        output: Output,
        changes: Changes,
        inside: Option<Inside>,
    ) -> Self {
        let (orders, taken) = mpsc::channel(16);
        let (run, runs) = watch::channel(None);
        let observed = Rc::new(RefCell::new(Observed {
            state: InstanceState::Pending,
            pid: None,
            init_pid: None,
            plugs: Vec::new(),
            restarts: 0,
            started: None,
            exit: None,
            code: None,
            error: None,
            warnings: Vec::new(),
            vm: spec.kind.vm().map(machine_status),
            own_stack: spec.kind == Kind::Stack,
            taps: Vec::new(),
        }));
        let hurry = Rc::new(Notify::new());
        let work = Work {
            hurry: Rc::clone(&hurry),
            backoff: Backoff::new(spec.restart),
            spec,
            links,
            runtime,
            folder,
            output,
            changes,
            observed: Rc::clone(&observed),
            run,
            runs: 0,
            made: None,
            again: None,
            inside,
            carriers: JoinSet::new(),
            listener: None,
        };
        tokio::task::spawn_local(work.serve(taken));
        Self { orders, observed, runs, hurry }
    }

    /// How the instance is.
    pub(super) fn observed(&self) -> Observed {
        self.observed.borrow().clone()
    }

    /// Its state: never healthy or unhealthy, that is for others to say.
    pub(super) fn state(&self) -> InstanceState {
        self.observed.borrow().state
    }

    /// The process id of its init, if there is one.
    pub(super) fn init_pid(&self) -> Option<u32> {
        self.observed.borrow().init_pid
    }

    /// See [`Observed::lost_taps`].
    pub(super) fn lost_taps(&self) -> Vec<String> {
        self.observed.borrow().lost_taps()
    }

    /// The number of the program's present run, while it runs.
    pub(super) fn runs(&self) -> watch::Receiver<Option<u32>> {
        self.runs.clone()
    }

    /// Makes the instance: namespaces, plugs, addresses.
    pub(super) async fn prepare(&self) -> Done {
        self.order(Order::Prepare).await
    }

    /// Starts its program if it does not run.
    pub(super) async fn start(&self) -> Done {
        self.order(Order::Start).await
    }

    /// Stops its program if it runs; it stays stopped.
    pub(super) async fn stop(&self) -> Done {
        self.order(Order::Stop).await
    }

    /// Has the stop that was ordered wait no longer.
    pub(super) fn hurry(&self) {
        // Kept for a stop that is only about to begin.
        self.hurry.notify_one();
    }

    /// Plugs it in again, in the new process of that network.
    pub(super) async fn replug(&self, network: &str) -> Done {
        self.order(Order::Replug(network.to_owned())).await
    }

    /// Replaces what the instance is; a program that runs is not touched.
    pub(super) async fn update(&self, spec: InstanceSpec) -> Done {
        self.order(Order::Update(Box::new(spec))).await
    }

    /// Stops the program and takes the instance down.
    pub(super) async fn end(&self) {
        // It may have ended before.
        let _ = self.order(Order::End).await;
    }

    async fn order(&self, order: Order) -> Done {
        let gone = || YardError::new(ErrorKind::Conflict, "change an instance", "it is going down");
        let (sender, receiver) = oneshot::channel();
        self.orders.send((order, sender)).await.map_err(|_| gone())?;
        receiver.await.map_err(|_| gone())?
    }
}

/// An instance that is there.
#[derive(Debug)]
struct Made {
    /// Namespaces and init, or the process in somebody else's; what is external has none.
    instance: Option<Instance>,
    plugs: Vec<Plugged>,
    /// Of a virtual machine, or of a program with a stack of its own: what its plugs are connected by.
    cables: Vec<Cable>,
    /// Of what is external: the sockets of those plugs that have one.
    sockets: Vec<Option<PathSocket>>,
    /// Of those that have cables: how it is to set itself up; its namespaces are not.
    configuration: Option<Configuration>,
}

fn machine_status(vm: &VmSpec) -> MachineStatus {
    MachineStatus { memory: vm.memory, cpus: vm.cpus, ..MachineStatus::default() }
}

/// The task's side.
#[derive(Debug)]
struct Work {
    spec: InstanceSpec,
    links: Vec<Link>,
    runtime: PathBuf,
    folder: PathBuf,
    output: Output,
    changes: Changes,
    observed: Rc<RefCell<Observed>>,
    run: watch::Sender<Option<u32>>,
    runs: u32,
    backoff: Backoff,
    hurry: Rc<Notify>,
    made: Option<Made>,
    /// The process in the namespace of somebody else, until it is `made`.
    inside: Option<Inside>,
    /// When the program starts again.
    again: Option<Instant>,
    carriers: JoinSet<()>,
    /// Hears what the monitor of a virtual machine says.
    listener: Option<AbortHandle>,
}

/// What happened next.
enum Next {
    Order(Option<(Order, oneshot::Sender<Done>)>),
    Ended(Ended),
    Again,
}

impl Work {
    async fn serve(mut self, mut orders: mpsc::Receiver<(Order, oneshot::Sender<Done>)>) {
        let last = loop {
            match self.next(&mut orders).await {
                Next::Order(Some((Order::End, answer))) => break Some(answer),
                Next::Order(None) => break None,
                Next::Order(Some((order, answer))) => {
                    let done = self.obey(order).await;
                    // Whoever ordered may have gone.
                    let _ = answer.send(done);
                }
                Next::Ended(ended) => self.ended(ended).await,
                Next::Again => {
                    self.see(|observed| observed.restarts += 1);
                    if let Err(error) = self.start().await {
                        tracing::warn!(instance = self.spec.name, %error, "not started again");
                        self.failed(&error);
                        self.rest(false, InstanceState::Failed);
                    }
                }
            }
        };
        self.stop().await;
        self.unmake().await;
        // All writers are gone; what they wrote last is on its way.
        let last_words = async { while self.carriers.join_next().await.is_some() {} };
        let _ = time::timeout(LAST_WORDS, last_words).await;
        if let Some(last) = last {
            let _ = last.send(Ok(()));
        }
    }

    async fn next(&mut self, orders: &mut mpsc::Receiver<(Order, oneshot::Sender<Done>)>) -> Next {
        let ended = async {
            match self.made.as_ref().and_then(|made| made.instance.as_ref()) {
                Some(instance) => instance.ended().await,
                None => pending().await,
            }
        };
        let again = async {
            match self.again {
                Some(at) => time::sleep_until(at.into()).await,
                None => pending().await,
            }
        };
        tokio::select! {
            ended = ended => Next::Ended(ended),
            order = orders.recv() => Next::Order(order),
            () = again => Next::Again,
        }
    }

    async fn obey(&mut self, order: Order) -> Done {
        match order {
            Order::Prepare => self.make().await,
            Order::Start => {
                if self.is_running() {
                    return Ok(());
                }
                let started = self.start().await;
                if let Err(error) = &started {
                    self.failed(error);
                }
                started
            }
            Order::Stop => {
                self.again = None;
                self.stop().await;
                self.see(|observed| observed.state = InstanceState::Stopped);
                Ok(())
            }
            Order::Replug(network) => self.replug(&network).await,
            Order::End => Ok(()),
            Order::Update(spec) => {
                self.backoff.set_policy(spec.restart);
                self.spec = *spec;
                let vm = self.spec.kind.vm().map(machine_status);
                self.see(|observed| {
                    if !same_machine(observed.vm.as_ref(), vm.as_ref()) {
                        observed.vm = vm;
                    }
                });
                Ok(())
            }
        }
    }

    fn is_running(&self) -> bool {
        self.run.borrow().is_some()
    }

    /// Changes what is observed.
    fn see(&self, change: impl FnOnce(&mut Observed)) {
        change(&mut self.observed.borrow_mut());
        self.changes.tell();
    }

    fn failed(&self, error: &YardError) {
        self.see(|observed| {
            observed.state = InstanceState::Failed;
            observed.exit = Some(error.found.clone());
            observed.error = Some(error.clone());
        });
    }

    /// Makes namespaces and plugs, if they are not there. What was half made goes again.
    async fn make(&mut self) -> Done {
        if self.made.is_some() {
            return Ok(());
        }
        // Where there is a cable for each plug, the namespaces have none.
        let has_cables = self.spec.kind.has_cables();
        let plugs = self.links.iter().zip(&self.spec.plugs).filter(|_| has_cables);
        let cables = plugs
            .map(|(link, plug)| Cable::lay(link, &self.spec, plug, &self.folder))
            .collect::<Result<Vec<_>, _>>()?;
        let ends = self.links.iter().filter(|_| !has_cables).map(|link| match link.config().mode {
            Mode::User => End::Tap,
            Mode::Bridge(_) => End::Namespace,
        });
        let instance = match &self.spec.kind {
            Kind::External(_) => None,
            Kind::Namespace(_) => Some(self.enter().await?),
            _ => Some(Instance::create(&self.spec.name, ends.collect()).await?),
        };
        let sockets = self.spec.plugs.iter().map(|plug| self.open_socket(plug));
        let sockets = sockets.collect::<Result<_, _>>()?;
        // Of a namespace of somebody else it is not.
        let init = instance.as_ref().filter(|_| self.spec.kind.has_program());
        let init_pid = init.map(Instance::init_pid);
        self.made =
            Some(Made { instance, plugs: Vec::new(), cables, sockets, configuration: None });
        self.see(|observed| observed.init_pid = init_pid);
        let made = self.plug_in_and_configure().await;
        if made.is_err() {
            self.unmake().await;
        }
        made
    }

    /// Takes over the process in the namespace of somebody else.
    async fn enter(&mut self) -> Result<Instance, YardError> {
        let wanted = || format!("plug instance {} in", self.spec.name);
        let bridged = |link: &&Link| link.config().mode != Mode::User;
        if let Some(link) = self.links.iter().find(bridged) {
            let found = format!("the network {} is on a bridge", link.config().name);
            return Err(YardError::new(ErrorKind::Unsupported, wanted(), found)
                .next("name a network in user mode, or none"));
        }
        let inside = self.inside.take().ok_or_else(|| {
            YardError::new(ErrorKind::Conflict, wanted(), "its namespace was left")
                .next("attach to it once more")
        })?;
        Instance::enter(&self.spec.name, inside).await
    }

    async fn plug_in_and_configure(&mut self) -> Done {
        for number in 0..self.spec.plugs.len() {
            let plugged = self.plug_in(number, None).await?;
            if let Some(made) = &mut self.made {
                made.plugs.push(plugged);
            }
        }
        let mut configuration = self.configuration()?;
        if let Some(made) = self.made.as_mut().filter(|_| self.spec.kind.has_cables()) {
            made.configuration = Some(configuration.clone());
            configuration.plugs.clear();
        }
        let Some(made) = &self.made else { return Ok(()) };
        let configured = async {
            match &made.instance {
                Some(instance) => instance.configure(configuration).await,
                None => Ok(Vec::new()),
            }
        };
        let supplied = async {
            for (number, plugged) in made.plugs.iter().enumerate() {
                self.supply(number, plugged).await?;
            }
            Done::Ok(())
        };
        let (configured, supplied) = tokio::join!(configured, supplied);
        let warnings = configured?;
        supplied?;
        for warning in &warnings {
            tracing::info!(instance = self.spec.name, warning);
        }
        let external = self.spec.kind.external().is_some();
        let plugs = self.links.iter().zip(&self.spec.plugs);
        let plugs = plugs.filter(|(_, plug)| external && plug.socket.is_none());
        let mut taps = plugs
            .map(|(link, plug)| self.tap_name(link, plug).map(|name| Tap::of_network(name.into())))
            .collect::<Result<Vec<_>, _>>()?;
        taps.extend(made.cables.iter().filter_map(Cable::tap));
        self.see(|observed| {
            observed.plugs.clone_from(&made.plugs);
            observed.warnings = warnings;
            observed.taps = taps;
        });
        Ok(())
    }

    /// Adds a plug to its network: as the file says, or as it `was`.
    async fn plug_in(&self, number: usize, was: Option<&Plugged>) -> Result<Plugged, YardError> {
        let wanted = format!("plug instance {} in", self.spec.name);
        let missing = || YardError::new(ErrorKind::Bug, wanted.clone(), "there is no such plug");
        let spec = self.spec.plugs.get(number).ok_or_else(missing)?;
        let link = self.links.get(number).ok_or_else(missing)?;
        let made = self.made.as_ref().ok_or_else(missing)?;
        let mut interface = spec.tap.clone();
        let (kind, features, device): (_, _, Option<BorrowedFd<'_>>) =
            match (&self.spec.kind, made.cables.get(number)) {
                (Kind::External(external), _) => match (made.sockets.get(number), &spec.socket) {
                    (Some(Some(socket)), Some(wanted)) => {
                        (wanted.protocol.kind(), 0, Some(socket.as_fd()))
                    }
                    _ => {
                        interface = Some(self.tap_name(link, spec)?.into());
                        (PlugKind::Device { owner: external.owner }, 0, None)
                    }
                },
                (_, Some(cable)) => {
                    let (kind, device) = cable.network_end();
                    (kind, 0, Some(device))
                }
                (_, None) => {
                    let instance = made.instance.as_ref().ok_or_else(missing)?;
                    let end = instance.ends().get(number).ok_or_else(missing)?;
                    let kind = match end.kind {
                        End::Tap => PlugKind::Tap,
                        End::Namespace => PlugKind::Namespace,
                    };
                    (kind, end.features.bits(), Some(end.fd.as_fd()))
                }
            };
        let descriptor = device
            .map(|device| device.try_clone_to_owned())
            .transpose()
            .map_err(|error| YardError::io(wanted.clone(), &error))?;
        let request = Request::AddPlug(PlugRequest {
            features,
            mac: was.map(|was| was.mac).or(spec.mac),
            address: was.map(|was| was.address4).or(spec.address.get()),
            address6: was.map(|was| was.address6).or(spec.address6),
            link: spec.link,
            interface,
            guest_interface: (kind == PlugKind::Namespace).then(|| link_name(number)),
            silent: self.spec.kind == Kind::Stack,
            ..PlugRequest::new(self.spec.name.clone(), kind)
        });
        let plugged = match link.ask(request, descriptor).await {
            Ok((Reply::Plugged(plugged), _)) => plugged,
            Ok(_) => {
                let found = "the network says something else";
                return Err(YardError::new(ErrorKind::Peer, wanted, found));
            }
            Err(error) => return Err(YardError::control(wanted, &error)),
        };
        Ok(plugged)
    }

    /// Hands a plug's network the connection by which the instance gives sockets out, if it does.
    async fn supply(&self, number: usize, plugged: &Plugged) -> Done {
        let instance = self.made.as_ref().and_then(|made| made.instance.as_ref());
        let end = instance.and_then(|instance| instance.ends().get(number));
        let (Some(supply), Some(link)) =
            (end.and_then(|end| end.supply.as_ref()), self.links.get(number))
        else {
            return Ok(());
        };
        let wanted = format!("plug instance {} in", self.spec.name);
        let supply = supply.try_clone().map_err(|error| YardError::io(&wanted, &error))?;
        let asked = link.ask(Request::SetSupply { plug: plugged.plug }, Some(supply)).await;
        asked.map(drop).map_err(|error| YardError::control(wanted, &error))
    }

    /// The socket of a plug of something external, if it has one.
    fn open_socket(&self, plug: &PlugSpec) -> Result<Option<PathSocket>, YardError> {
        let external = self.spec.kind.external();
        let socket = external.and_then(|external| Some((plug.socket.as_ref()?, external.owner)));
        socket.map(|(socket, owner)| PathSocket::for_plug(socket, owner)).transpose()
    }

    fn tap_name(&self, link: &Link, plug: &PlugSpec) -> Result<LinkName, YardError> {
        tap::name(&link.config().name, &self.spec.name, plug.tap.as_deref())
    }

    /// What the instance's init sets up.
    fn configuration(&self) -> Result<Configuration, YardError> {
        let plugged: &[Plugged] = self.made.as_ref().map_or(&[], |made| &made.plugs);
        let plugs = plugged.iter().zip(&self.links);
        let plugs = plugs.map(|(plugged, link)| PlugConfiguration::new(plugged, link.config()));
        let plugs = plugs.collect();
        let networks: Vec<_> = self.links.iter().map(Link::config).collect();
        let files = files::write(&self.folder, &networks)?;
        Ok(Configuration {
            host_name: self.spec.name.clone(),
            plugs,
            resolv_conf: files.resolv_conf,
            hosts: files.hosts,
            runtime: self.runtime.clone(),
        })
    }

    /// Takes plugs and namespaces away.
    async fn unmake(&mut self) {
        let Some(made) = self.made.take() else { return };
        for (plugged, link) in made.plugs.iter().zip(&self.links) {
            link.tell(Request::RemovePlug { plug: plugged.plug });
        }
        if let Some(instance) = made.instance {
            instance.destroy().await;
        }
        self.see(|observed| {
            observed.init_pid = None;
            observed.plugs.clear();
            observed.taps.clear();
        });
    }

    async fn replug(&mut self, network: &str) -> Done {
        let Some(made) = &self.made else { return Ok(()) };
        let old = made.plugs.clone();
        for (number, was) in old.iter().enumerate() {
            if self.links.get(number).is_none_or(|link| link.config().name != network) {
                continue;
            }
            let plugged = self.plug_in(number, Some(was)).await?;
            if let Some(plug) = self.made.as_mut().and_then(|made| made.plugs.get_mut(number)) {
                plug.clone_from(&plugged);
            }
            self.supply(number, &plugged).await?;
            let (Some(made), Some(link)) = (&self.made, self.links.get(number)) else {
                continue;
            };
            // What the network makes in the namespace is as bare as it was the first time.
            if let Some(instance) = &made.instance
                && instance.ends().get(number).is_some_and(|end| end.kind == End::Namespace)
            {
                let plug = PlugConfiguration::new(&plugged, link.config());
                instance.relink(number, plug).await?;
            }
        }
        Ok(())
    }

    /// Starts the program.
    async fn start(&mut self) -> Done {
        self.again = None;
        self.see(|observed| observed.state = InstanceState::Starting);
        self.make().await?;
        if !self.spec.kind.has_program() {
            // Somebody else starts it.
            self.runs(None);
            return Ok(());
        }
        let wanted = || format!("start instance {}", self.spec.name);
        let mut env: Vec<_> =
            self.spec.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        let program = match self.spec.run.first() {
            Some(name) => find_program(name, &env, &self.spec.cwd)?,
            // An image runs what is in it.
            None if self.spec.kind.vm().is_some() => PathBuf::new(),
            None => return Err(YardError::new(ErrorKind::Input, wanted(), "it has no program")),
        };
        let stdio = self
            .output
            .open(&mut self.carriers)
            .map_err(|error: io::Error| YardError::io(wanted(), &error))?;
        let mut descriptors = Vec::new();
        if self.spec.kind == Kind::Stack {
            self.lay_cables().await?;
            descriptors = self.connect_stack(&mut env)?;
        }
        let Some(instance) = self.made.as_ref().and_then(|made| made.instance.as_ref()) else {
            return Ok(());
        };
        let start = Start {
            program,
            argv: self.spec.run.clone(),
            env,
            cwd: self.spec.cwd.clone(),
            shares_terminal: matches!(self.output, Output::Ours),
        };
        let pid = match self.spec.kind.vm().cloned() {
            Some(vm) => self.start_machine(vm, start, stdio).await?,
            None => instance.start(start, stdio, &descriptors).await?,
        };
        self.runs(pid);
        Ok(())
    }

    /// It has been started.
    fn runs(&mut self, pid: Option<u32>) {
        let now = Instant::now();
        self.backoff.handle_start(now);
        self.runs = self.runs.wrapping_add(1);
        self.run.send_replace(Some(self.runs));
        self.see(|observed| {
            observed.state = InstanceState::Running;
            observed.pid = pid;
            observed.started = Some(now);
        });
    }

    /// What a program with a stack of its own is started with: its ends of the cables, and a variable
    /// that says what to do with them. The file's own variables come after, and count.
    fn connect_stack(
        &mut self,
        env: &mut Vec<(String, String)>,
    ) -> Result<Vec<OwnedFd>, YardError> {
        let name = &self.spec.name;
        let failed = |error: io::Error| YardError::io(format!("start instance {name}"), &error);
        let missing = || YardError::new(ErrorKind::Bug, "start a stack", "it is not made");
        let made = self.made.as_mut().ok_or_else(missing)?;
        let configuration = made.configuration.as_ref().ok_or_else(missing)?;
        let networks: Vec<_> = self.links.iter().map(Link::config).collect();
        let text = stack::configuration(&configuration.plugs, &files::search(&networks));
        let ends = made.cables.iter_mut().map(Cable::machine_end);
        let ends = ends.collect::<io::Result<_>>().map_err(failed)?;
        env.insert(0, (stack::VARIABLE.to_owned(), text));
        Ok(ends)
    }

    /// Starts the monitor of a virtual machine, as the instance's program; its process id.
    async fn start_machine(
        &mut self,
        vm: VmSpec,
        start: Start,
        stdio: Stdio,
    ) -> Result<Option<u32>, YardError> {
        let name = self.spec.name.clone();
        let failed = |error: io::Error| YardError::io(format!("start instance {name}"), &error);
        let missing = || YardError::new(ErrorKind::Bug, "start a machine", "it is not made");
        self.lay_cables().await?;
        let made = self.made.as_mut().ok_or_else(missing)?;
        let configuration = made.configuration.clone().ok_or_else(missing)?;
        let monitor = Start {
            program: PathBuf::from("/proc/self/exe"),
            argv: vec!["netyard".to_owned(), vm::VERB.to_owned()],
            env: Vec::new(),
            cwd: PathBuf::from("/"),
            shares_terminal: start.shares_terminal,
        };
        // Whole programs are read: not on the thread that everything else runs on.
        let wires: Vec<_> = made.cables.iter().map(Cable::wire).collect();
        let prepared = tokio::task::spawn_blocking(move || {
            vm::Machine::prepare(&vm, &start, &configuration, &wires)
        });
        let machine = prepared.await.map_err(|error| failed(io::Error::other(error)))??;
        let kernel = machine.kernel().to_owned();
        let mut ends = Vec::new();
        for cable in &mut made.cables {
            ends.push(cable.machine_end().map_err(failed)?);
        }
        let (reports, order) = machine.order(ends).map_err(failed)?;
        let stdio = Stdio { input: order, ..stdio };
        let begun = Instant::now();
        let instance = made.instance.as_ref().ok_or_else(missing)?;
        let pid = instance.start(monitor, stdio, &[]).await?;
        let reports = Watched::new(reports).map_err(failed)?;
        let (observed, changes) = (Rc::clone(&self.observed), self.changes.clone());
        let hear = async move {
            while let Ok(Some((report, _))) = reports.read(vm::receive::<vm::Report>).await {
                note(&mut observed.borrow_mut(), &name, report, begun);
                changes.tell();
            }
        };
        if let Some(before) = self.listener.replace(self.carriers.spawn_local(hear)) {
            before.abort();
        }
        self.see(|observed| {
            if let Some(vm) = &mut observed.vm {
                vm.kernel = Some(kernel);
            }
        });
        Ok(pid)
    }

    /// Sees to it that each plug has a cable that can be used.
    async fn lay_cables(&mut self) -> Done {
        for (number, plug) in self.spec.plugs.clone().iter().enumerate() {
            let (Some(made), Some(link)) = (&mut self.made, self.links.get(number)) else {
                return Ok(());
            };
            let Some(cable) = made.cables.get_mut(number).filter(|it| it.is_spent()) else {
                continue;
            };
            *cable = Cable::lay(link, &self.spec, plug, &self.folder)?;
            let was = made.plugs.get(number).cloned();
            if let Some(was) = &was {
                link.tell(Request::RemovePlug { plug: was.plug });
            }
            let plugged = self.plug_in(number, was.as_ref()).await?;
            if let Some(plug) = self.made.as_mut().and_then(|made| made.plugs.get_mut(number)) {
                *plug = plugged;
            }
        }
        if let Some(made) = &self.made {
            self.see(|observed| {
                observed.plugs.clone_from(&made.plugs);
                observed.taps = made.cables.iter().filter_map(Cable::tap).collect();
            });
        }
        Ok(())
    }

    /// Ends the program if it runs: asks it to, then makes it.
    async fn stop(&mut self) {
        if !self.is_running() {
            return;
        }
        let Some(made) = &self.made else { return };
        let instance = made.instance.as_ref().filter(|_| self.spec.kind.has_program());
        let Some(instance) = instance else {
            // Whoever has its TAP open, or is in the namespace, may go on; services do not lead to it any more.
            self.run.send_replace(None);
            self.see(|observed| {
                (observed.state, observed.started) = (InstanceState::Stopped, None)
            });
            return;
        };
        let hurry = &self.hurry;
        let end = |signal, within| async move {
            // An instance that is gone says so in `ended`.
            let _ = instance.signal(signal).await;
            tokio::select! {
                ended = time::timeout(within, instance.ended()) => ended.ok(),
                () = hurry.notified() => None,
            }
        };
        let grace = if self.spec.kind.vm().is_some() { MACHINE_GRACE } else { GRACE };
        let mut ended = end(signal::TERMINATE, grace).await;
        if ended.is_none() {
            tracing::info!(instance = self.spec.name, "has not ended by itself; killing it");
            ended = end(signal::KILL, GRACE).await;
        }
        let ended = ended.unwrap_or(Ended::Instance);
        self.not_running(match ended {
            Ended::Program(exit) => exit,
            Ended::Instance => Exit::Signal(signal::KILL),
        });
        if ended == Ended::Instance {
            self.unmake().await;
        }
    }

    /// The program has ended by itself, or the whole instance by somebody's hand.
    async fn ended(&mut self, ended: Ended) {
        let ran = self.is_running();
        let exit = match ended {
            Ended::Program(exit) => exit,
            Ended::Instance => Exit::Signal(signal::KILL),
        };
        if ran {
            self.not_running(exit);
            tracing::info!(instance = self.spec.name, %exit, "has ended");
        }
        if ended == Ended::Instance {
            tracing::warn!(instance = self.spec.name, "its init was killed");
            self.unmake().await;
        }
        if ran {
            self.rest(exit.code() == 0, InstanceState::Exited { code: exit.code() });
        }
    }

    fn not_running(&self, exit: Exit) {
        self.run.send_replace(None);
        self.see(|observed| {
            observed.state = InstanceState::Exited { code: exit.code() };
            observed.pid = None;
            observed.started = None;
            observed.exit = Some(exit.to_string());
            observed.code = Some(exit.code());
            if let Some(vm) = &mut observed.vm {
                (vm.accelerator, vm.state) = (None, None);
            }
        });
    }

    /// Until the program starts again, or in the `last` state if it does not.
    fn rest(&mut self, success: bool, last: InstanceState) {
        self.again = self.backoff.handle_exit(Instant::now(), success);
        let state = if self.again.is_some() { InstanceState::Backoff } else { last };
        self.see(|observed| observed.state = state);
    }
}

/// Whether both are the same machine, however far it has come.
fn same_machine(one: Option<&MachineStatus>, other: Option<&MachineStatus>) -> bool {
    let size = |machine: &MachineStatus| (machine.memory, machine.cpus);
    one.map(size) == other.map(size)
}

/// Notes what the monitor of a virtual machine says.
fn note(observed: &mut Observed, name: &str, report: vm::Report, begun: Instant) {
    let Some(machine) = &mut observed.vm else { return };
    match report {
        vm::Report::Accelerator { accelerator, why } => {
            machine.accelerator = Some(accelerator);
            if let Some(why) = why {
                tracing::info!(instance = name, why, "runs without KVM");
                observed.warnings.retain(|other| !other.starts_with(SLOW));
                observed.warnings.push(format!("{SLOW}: {why}"));
            }
        }
        vm::Report::State(state) => machine.state = Some(state),
        vm::Report::Booted => {
            let took = Instant::now().saturating_duration_since(begun);
            machine.boot_ms = Some(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        }
    }
}
