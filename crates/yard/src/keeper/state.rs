//! What a keeper keeps: the yard as it is, and how it becomes what is wanted.
//!
//! # Theory of operation
//!
//! [`Keeper::apply`] holds the yard that is wanted against the yard that was reached, performs
//! the steps between them one after the other (instances come and go several at a time), and writes down
//! after each what is reached now.
//! If a step fails, the way back is the difference between what was reached and what was there
//! before; and the end of a yard is the difference to an empty one. There is no other undoing.
//!
//! Apart from that the keeper reacts ([`Keeper::look_after`]): whenever the bell rings
//! ([`Changes`]) it looks at everything and does what follows from it. Nothing depends on why it
//! rang.

mod forwards;
mod instances;
mod shared;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netyard_engine::config::Config;
use netyard_engine::control::{
    self, ControlErrorKind, Reply, Request, ServiceInstance, TurnPolicy,
};
use netyard_engine::forward::{Forward, Protocol};
use netyard_engine::policy::rules::Rules;
use netyard_sys::process::PidFd;
use netyard_sys::resolv_conf;
use tokio::sync::Mutex;
use tokio::time;

use super::changes::Changes;
use super::joined::Joined;
use super::network::{self, Link, Network};
use super::probe::Watch;
use super::supervisor::Supervisor;
use crate::api::InstanceState;
use crate::error::{ErrorKind, YardError};
use crate::instance::{Inside, find_program};
use crate::joined::Order;
use crate::journal::Journal;
use crate::logs::Log;
use crate::model::{self, InstanceSpec, Need, PlugSpec, ServiceSpec, Yard};
use crate::path_socket::PathSocket;
use crate::plan::{self, Step};
use crate::runtime::{Runtime, YardFolder};
use crate::vm;
use crate::watched::Watched;

/// Where this machine says what it searches, resolv.conf(5).
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// How long a network process may take to go when its last member has left.
const GOING: Duration = Duration::from_secs(5);

/// How long connections of an instance that is about to stop may take to end.
const DRAIN: Duration = Duration::from_secs(10);

/// The same where requests take turns: each of them ends by itself.
const DRAIN_REQUESTS: Duration = Duration::from_secs(30);

/// Every service is waited for.
const ALL: [TurnPolicy; 2] = [TurnPolicy::RoundRobin, TurnPolicy::PerRequest];

/// How often it is seen whether they have.
const DRAIN_LOOK: Duration = Duration::from_millis(100);

/// A service as its network serves it.
#[derive(Debug, Clone)]
pub(super) struct Served {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) published: Option<SocketAddr>,
}

/// The keeper of one yard.
#[derive(Debug)]
pub(super) struct Keeper {
    runtime: Runtime,
    folder: YardFolder,
    /// Whether programs have our own standard input and output instead of logs.
    attached: bool,
    changes: Changes,
    applying: Mutex<()>,
    /// What is being applied is not wanted any more.
    giving_up: Cell<bool>,
    /// Instances that are about to stop and get no new connections.
    draining: RefCell<BTreeSet<String>>,
    reached: RefCell<Yard>,
    networks: RefCell<BTreeMap<String, Network>>,
    /// The processes of networks that have joined a hub.
    joined: RefCell<BTreeMap<String, Joined>>,
    /// The generation of each network in which everything of ours is there, or being made.
    restored: RefCell<BTreeMap<String, u64>>,
    supervisors: RefCell<BTreeMap<String, Rc<Supervisor>>>,
    /// Instances that start once what they need is healthy.
    pending: RefCell<BTreeSet<String>>,
    logs: RefCell<BTreeMap<String, Arc<Log>>>,
    /// Forwards that no file names: somebody has added them while the yard runs.
    added: RefCell<Vec<Forward>>,
    /// The forwards that are open, each with its network.
    opened: RefCell<Vec<(String, Forward)>>,
    /// The sockets of those that begin at one, by their paths: they stay when a network's process is replaced.
    sockets: RefCell<BTreeMap<PathBuf, PathSocket>>,
    served: RefCell<BTreeMap<String, Served>>,
    /// By instance and service.
    watches: RefCell<BTreeMap<String, BTreeMap<String, Watch>>>,
    /// What the network processes were told last of who may get connections, by instance and service.
    eligible: RefCell<BTreeMap<String, BTreeMap<String, bool>>>,
    /// The number of the run of each program that ran when it was looked at last.
    ran: RefCell<BTreeMap<String, u32>>,
    journal: RefCell<Journal>,
    /// What goes into the namespace of somebody else, until an instance of that kind is made.
    inside: RefCell<Option<Inside>>,
}

impl Keeper {
    /// The keeper of a yard in which nothing is yet. If the namespace of somebody else is to be an instance of it,
    /// it is by the process of `inside`.
    pub(super) fn new(
        runtime: Runtime,
        folder: YardFolder,
        yard: &Yard,
        attached: bool,
        inside: Option<Inside>,
    ) -> Self {
        Self {
            attached,
            changes: Changes::new(),
            applying: Mutex::new(()),
            giving_up: Cell::new(false),
            draining: RefCell::default(),
            reached: RefCell::new(Yard::empty(yard.name.clone(), &yard.path)),
            networks: RefCell::default(),
            joined: RefCell::default(),
            restored: RefCell::default(),
            supervisors: RefCell::default(),
            pending: RefCell::default(),
            logs: RefCell::default(),
            added: RefCell::default(),
            opened: RefCell::default(),
            sockets: RefCell::default(),
            served: RefCell::default(),
            watches: RefCell::default(),
            eligible: RefCell::default(),
            ran: RefCell::default(),
            journal: RefCell::new(Journal::begin(folder.path())),
            inside: RefCell::new(inside),
            runtime,
            folder,
        }
    }

    /// The socket of the control API.
    pub(super) fn socket(&self) -> PathBuf {
        self.folder.socket()
    }

    /// Changes of anything in the yard.
    pub(super) fn changes(&self) -> Changes {
        self.changes.clone()
    }

    /// The yard as it is now.
    pub(super) fn yard(&self) -> Yard {
        self.reached.borrow().clone()
    }

    /// The supervisor of an instance.
    pub(super) fn supervisor(&self, name: &str) -> Option<Rc<Supervisor>> {
        self.supervisors.borrow().get(name).cloned()
    }

    /// The log of an instance that has one.
    pub(super) fn log(&self, name: &str) -> Option<Arc<Log>> {
        self.logs.borrow().get(name).cloned()
    }

    /// The link to a network, by its name in the yard.
    pub(super) fn link(&self, network: &str) -> Option<Link> {
        self.networks.borrow().get(network).map(Network::link)
    }

    /// How a network serves a service.
    pub(super) fn served(&self, service: &str) -> Option<Served> {
        self.served.borrow().get(service).cloned()
    }

    /// Looks at the health check of an instance of a service.
    pub(super) fn watch<T>(
        &self,
        service: &str,
        instance: &str,
        look: impl FnOnce(&Watch) -> T,
    ) -> Option<T> {
        self.watches.borrow().get(instance)?.get(service).map(look)
    }

    /// Starts an instance now, whatever it needs.
    pub(super) async fn start(&self, name: &str) -> Result<(), YardError> {
        let supervisor = self.known(name)?;
        self.pending.borrow_mut().remove(name);
        supervisor.start().await
    }

    /// Stops an instance.
    pub(super) async fn stop(&self, name: &str) -> Result<(), YardError> {
        let supervisor = self.known(name)?;
        self.pending.borrow_mut().remove(name);
        self.drain(BTreeSet::from([name.to_owned()]), &ALL).await;
        let stopped = supervisor.stop().await;
        self.draining.borrow_mut().remove(name);
        stopped
    }

    /// Gives instances no new connections of their services, and those that they have of services
    /// with these policies some time to end.
    async fn drain(&self, names: BTreeSet<String>, policies: &[TurnPolicy]) {
        let runs =
            |name: &String| self.supervisor(name).is_some_and(|it| it.runs().borrow().is_some());
        let names: BTreeSet<_> = names.into_iter().filter(runs).collect();
        self.draining.borrow_mut().extend(names.iter().cloned());
        for (link, request) in self.changed_eligibility() {
            if let Err(error) = link.ask(request, None).await {
                tracing::warn!(%error, "not drained");
            }
        }
        let yard = self.yard();
        let mut services = names.iter().flat_map(|name| yard.services_of(name));
        let time = match services.any(|service| service.policy == TurnPolicy::PerRequest) {
            true => DRAIN_REQUESTS,
            false => DRAIN,
        };
        let until = Instant::now() + time;
        while Instant::now() < until && self.any_connected(&names, policies).await {
            time::sleep(DRAIN_LOOK).await;
        }
    }

    /// Whether a service with one of these policies has a connection open to one of these instances, or one
    /// that waits for its first answer.
    async fn any_connected(&self, names: &BTreeSet<String>, policies: &[TurnPolicy]) -> bool {
        let yard = self.yard();
        let mut services = names.iter().flat_map(|name| yard.services_of(name));
        if services.all(|service| !policies.contains(&service.policy)) {
            return false;
        }
        let services = self.service_states().await;
        let services = services.iter().map(|(_, service)| service);
        services
            .filter(|service| policies.contains(&service.spec.policy))
            .flat_map(|service| service.spec.instances.iter().zip(&service.instances))
            .any(|(instance, turns)| {
                names.contains(&instance.name) && turns.opening + turns.open > 0
            })
    }

    fn known(&self, name: &str) -> Result<Rc<Supervisor>, YardError> {
        self.supervisor(name).ok_or_else(|| self.unknown(name))
    }

    /// There is no such instance.
    pub(super) fn unknown(&self, name: &str) -> YardError {
        let yard = self.reached.borrow();
        let names: Vec<_> = yard.instances.iter().map(|it| it.name.as_str()).collect();
        let found = format!("yard {} has no instance of that name", yard.name);
        let error = YardError::new(ErrorKind::Unknown, format!("find instance {name}"), found);
        if names.is_empty() {
            error
        } else {
            error.next(format!("choose one of {}", names.join(", ")))
        }
    }

    /// Makes the yard what a file says, and keeps forwards that were added; returns the steps that were performed,
    /// for people. If a step fails, everything is as it was before.
    ///
    /// # Errors
    /// The step that failed.
    pub(super) async fn apply(&self, file: Yard) -> Result<Vec<String>, YardError> {
        let _one_at_a_time = self.applying.lock().await;
        let before = self.yard();
        let mut wanted = file.clone();
        self.keep_forwards(&mut wanted);
        let steps = plan::difference(Some(&before), &wanted);
        check_programs(&steps, &wanted)?;
        let leaving: BTreeSet<_> =
            steps.iter().filter_map(Step::stops).map(str::to_owned).collect();
        self.drain(leaving.clone(), &ALL).await;
        let applied = self.go(&before, &steps, wanted).await;
        self.draining.borrow_mut().retain(|name| !leaving.contains(name));
        if applied.is_ok() {
            self.forget_forwards(&file);
        }
        applied
    }

    /// Performs the steps to `wanted`, or none.
    async fn go(
        &self,
        before: &Yard,
        steps: &[Step],
        wanted: Yard,
    ) -> Result<Vec<String>, YardError> {
        for part in parts(steps) {
            let done = match self.giving_up.get() {
                true => Err(super::interrupted(&wanted.name)),
                false => self.perform(part, &wanted).await,
            };
            if let Err(error) = done {
                self.go_to(before).await;
                return Err(error);
            }
        }
        let fallen = self.fallen(steps);
        self.reached.replace(wanted);
        let mut done: Vec<_> = steps.iter().map(ToString::to_string).collect();
        done.extend(
            fallen.iter().map(|(name, state)| format!("~ instance {name}: start ({state})")),
        );
        self.pending.borrow_mut().extend(fallen.into_iter().map(|(name, _)| name));
        self.changes.tell();
        Ok(done)
    }

    /// The instances that no step has started and that do not run although they should, with how
    /// they are.
    fn fallen(&self, steps: &[Step]) -> Vec<(String, InstanceState)> {
        let started = |name: &str| {
            steps.iter().any(|step| {
                matches!(step, Step::StartInstance { name: it, .. } |
                    Step::RestartInstance { name: it, .. } if it == name)
            })
        };
        let supervised: Vec<_> = self.supervisors.borrow().keys().cloned().collect();
        let states = supervised.into_iter().map(|name| {
            let state = self.state_of(&name);
            (name, state)
        });
        let fallen = |state: &InstanceState| match state {
            InstanceState::Stopped | InstanceState::Failed => true,
            InstanceState::Exited { code } => *code != 0,
            _ => false,
        };
        states.filter(|(name, state)| fallen(state) && !started(name)).collect()
    }

    /// Has [`Keeper::apply`] stop after the step that it is at, and undo what it did.
    pub(super) fn give_up(&self) {
        self.giving_up.set(true);
    }

    /// Ends everything in the yard.
    pub(super) async fn end(&self) {
        let _one_at_a_time = self.applying.lock().await;
        let yard = self.yard();
        let answered = yard.services.iter().filter(|it| it.policy == TurnPolicy::PerRequest);
        let answering = answered.flat_map(|service| service.instances.iter().cloned()).collect();
        self.drain(answering, &[TurnPolicy::PerRequest]).await;
        self.go_to(&Yard::empty(yard.name, &yard.path)).await;
    }

    /// Goes to a yard that was there before, as far as that is possible.
    async fn go_to(&self, wanted: &Yard) {
        let steps = plan::difference(Some(&self.yard()), wanted);
        let mut all_done = true;
        for step in parts(&steps) {
            if let Err(error) = self.perform(step, wanted).await {
                tracing::error!(%error, "cannot be undone");
                all_done = false;
            }
        }
        // What could not be made is not taken for there: it is made when a file is applied next.
        if all_done {
            self.reached.replace(wanted.clone());
        }
        self.close_orphans().await;
        self.changes.tell();
    }

    async fn perform(&self, steps: &[Step], wanted: &Yard) -> Result<(), YardError> {
        for part in parts(steps) {
            tracing::debug!(step = %part.iter().map(ToString::to_string).collect::<String>());
            match part {
                [Step::StopInstance { .. }, ..] => self.stop_instances(part).await,
                [Step::StartInstance { .. }, ..] => self.start_instances(part, wanted).await?,
                [step] => self.step(step, wanted).await?,
                _ => {}
            }
            self.watch_services();
            self.changes.tell();
        }
        Ok(())
    }

    async fn step(&self, step: &Step, wanted: &Yard) -> Result<(), YardError> {
        match step {
            Step::CloseForward { network, forward } => self.close_forward(network, forward).await,
            Step::OpenForward { network, forward } => self.open_forward(network, forward).await,
            Step::RemoveService { name } => self.remove_service(name).await,
            Step::Unpublish { name } => {
                let yard = self.yard();
                let Some(service) = yard.service(name) else { return Ok(()) };
                let hidden = ServiceSpec { publish: None, ..service.clone() };
                self.set_service(&hidden, &yard).await
            }
            Step::SetService { name, .. } => match wanted.service(name) {
                Some(service) => self.set_service(service, wanted).await,
                None => Ok(()),
            },
            // These are performed together.
            Step::StopInstance { .. } | Step::StartInstance { .. } => Ok(()),
            Step::RemoveNetwork { name } => {
                self.leave_network(name).await;
                Ok(())
            }
            Step::SetRules { network } => self.set_rules(network, wanted).await,
            Step::RemakeNetwork { name, .. } => {
                self.leave_network(name).await;
                self.make_network(name, wanted).await
            }
            Step::MakeNetwork { name } => self.make_network(name, wanted).await,
            Step::UpdateInstance { name, .. } => self.update_instance(name, wanted, false).await,
            Step::RestartInstance { name, .. } => self.update_instance(name, wanted, true).await,
        }
    }

    /// Tells a network what the yard's instances may reach outside.
    async fn set_rules(&self, name: &str, wanted: &Yard) -> Result<(), YardError> {
        let Some(spec) = wanted.networks.get(name) else { return Ok(()) };
        let set = self.linked(name)?.set_rules(spec.rules.clone()).await;
        set.map_err(|error| refused(format!("set the rules of network {name}"), &error))?;
        if let Some(reached) = self.reached.borrow_mut().networks.get_mut(name) {
            reached.rules.clone_from(&spec.rules);
        }
        Ok(())
    }

    async fn open_forward(&self, network: &str, forward: &Forward) -> Result<(), YardError> {
        let key = (network.to_owned(), forward.clone());
        if self.opened.borrow().contains(&key) {
            return Ok(());
        }
        if let Err(error) = self.ask_forward(network, forward).await {
            self.close_socket(forward);
            return Err(error);
        }
        self.opened.borrow_mut().push(key);
        let mut yard = self.reached.borrow_mut();
        // Its instance may come later, and brings it along.
        if let Some(instance) = yard.instances.iter_mut().find(|it| it.name == forward.instance) {
            instance.forwards.push(forward.clone());
        }
        Ok(())
    }

    async fn ask_forward(&self, network: &str, forward: &Forward) -> Result<(), YardError> {
        let wanted = format!("open the forward {forward} of instance {}", forward.instance);
        let socket = self.socket_of(forward)?;
        let request = Request::AddForward(forward.clone());
        let asked = self.linked(network)?.ask(request, socket).await;
        asked.map(drop).map_err(|error| refused(wanted, &error))
    }

    async fn close_forward(&self, network: &str, forward: &Forward) -> Result<(), YardError> {
        let wanted = format!("close the forward {forward} of instance {}", forward.instance);
        let request = Request::RemoveForward { forward: forward.clone() };
        // A process that has just replaced another one does not know it yet, and is not told of it then.
        if let Err(error) = self.ask(network, wanted, request).await
            && error.kind != ErrorKind::Unknown
        {
            return Err(error);
        }
        self.opened.borrow_mut().retain(|(_, other)| other != forward);
        self.close_socket(forward);
        for instance in &mut self.reached.borrow_mut().instances {
            instance.forwards.retain(|other| other != forward);
        }
        Ok(())
    }

    /// Closes forwards whose instances never came.
    async fn close_orphans(&self) {
        let orphans: Vec<_> = {
            let (yard, opened) = (self.reached.borrow(), self.opened.borrow());
            let wanted = |forward| yard.instances.iter().any(|it| it.forwards.contains(forward));
            opened.iter().filter(|(_, forward)| !wanted(forward)).cloned().collect()
        };
        for (network, forward) in orphans {
            if let Err(error) = self.close_forward(&network, &forward).await {
                tracing::error!(%error, "cannot be undone");
            }
        }
    }

    async fn remove_service(&self, name: &str) -> Result<(), YardError> {
        let Some(service) = self.yard().service(name).cloned() else { return Ok(()) };
        let request = Request::RemoveService { name: name.to_owned() };
        let removed =
            self.ask(&service.network, format!("remove service {name}"), request).await.map(drop);
        self.reached.borrow_mut().services.retain(|other| other.name != name);
        self.served.borrow_mut().remove(name);
        removed
    }

    /// Makes a service or changes it; `yard` knows its instances' addresses.
    async fn set_service(&self, service: &ServiceSpec, yard: &Yard) -> Result<(), YardError> {
        let wanted = match service.publish {
            Some(at) => format!("publish service {} on {at}", service.name),
            None => format!("set service {}", service.name),
        };
        let link = self.linked(&service.network)?;
        let spec = self.engine_service(service, yard, link.config());
        let told: Vec<_> = spec.instances.iter().map(|it| (it.name.clone(), it.eligible)).collect();
        match link.ask(Request::SetService(spec), None).await {
            Ok((Reply::Serving { addresses, published }, _)) => {
                let served = Served { addresses, published };
                self.served.borrow_mut().insert(service.name.clone(), served);
            }
            Ok(_) => return Err(nonsense(wanted)),
            Err(error) => return Err(refused(wanted, &error)),
        }
        for (instance, eligible) in told {
            let mut known = self.eligible.borrow_mut();
            known.entry(instance).or_default().insert(service.name.clone(), eligible);
        }
        let mut yard = self.reached.borrow_mut();
        match yard.services.iter_mut().find(|other| other.name == service.name) {
            Some(other) => other.clone_from(service),
            None => yard.services.push(service.clone()),
        }
        Ok(())
    }

    /// A service as the network process wants to hear it.
    fn engine_service(
        &self,
        service: &ServiceSpec,
        yard: &Yard,
        config: &Config,
    ) -> control::ServiceSpec {
        let instances = service.instances.iter().filter_map(|name| {
            let plug = plug_on(yard.instance(name)?, &service.network)?;
            let address4 = plug.address.get()?;
            let number = address4.to_bits().wrapping_sub(config.nth4(0).to_bits());
            Some(ServiceInstance {
                name: name.clone(),
                address4,
                address6: plug.address6.unwrap_or_else(|| config.nth6(number)),
                weight: service.weight(name),
                eligible: self.is_eligible(&service.name, name),
            })
        });
        control::ServiceSpec {
            name: service.name.clone(),
            protocol: service.protocol,
            port: service.port,
            publish: service.publish,
            delivery: service.delivery,
            policy: service.policy,
            affinity: service.affinity,
            instances: instances.collect(),
        }
    }

    async fn make_network(&self, name: &str, wanted: &Yard) -> Result<(), YardError> {
        let Some(spec) = wanted.networks.get(name) else { return Ok(()) };
        let folder = self.runtime.network(&spec.global);
        let mut config = spec.config();
        config.dns.search = spelled_out(&config.zone, &config.dns.search, &hosts_search());
        // Meanwhile the process in the namespace of somebody else makes its link. If it cannot be
        // started, that is told when it is needed.
        let meanwhile = || drop(self.inside.borrow_mut().as_mut().map(Inside::start));
        let (network, warnings) =
            Network::join(&folder, &config, &wanted.name, self.changes.clone(), meanwhile)?;
        shared::check_shared(spec, network.link().config())?;
        let order = Order::of(&self.runtime, &wanted.name, spec, network.link().config())?;
        if let Some(order) = order {
            self.joined.borrow_mut().insert(name.to_owned(), Joined::start(order));
        }
        network::tell(name, &warnings);
        self.restored.borrow_mut().insert(name.to_owned(), network.link().generation());
        self.networks.borrow_mut().insert(name.to_owned(), network);
        self.reached.borrow_mut().networks.insert(name.to_owned(), spec.clone());
        match spec.rules == Rules::default() {
            // A member has none when it joins.
            true => Ok(()),
            false => self.set_rules(name, wanted).await,
        }
    }

    /// Leaves a network, and sees its process gone if nobody else needs it.
    async fn leave_network(&self, name: &str) {
        {
            let mut reached = self.reached.borrow_mut();
            reached.networks.remove(name);
            reached.services.retain(|service| service.network != name);
        }
        self.close_sockets_of(name);
        self.opened.borrow_mut().retain(|(network, _)| network != name);
        let joined = self.joined.borrow_mut().remove(name);
        if let Some(joined) = joined {
            joined.stop().await;
        }
        let Some(network) = self.networks.borrow_mut().remove(name) else { return };
        let process = match network.link().ask(Request::Inspect, None).await {
            Ok((Reply::State(state), _)) if state.members.len() <= 1 => {
                let permanent = state.config.is_some_and(|config| config.permanent);
                if permanent { None } else { PidFd::open(state.pid).ok() }
            }
            _ => None,
        };
        network.leave();
        if let Some(process) = process.and_then(|process| Watched::new(process).ok()) {
            // A process that we cannot reap: its end is all we want to know.
            let ended = process.ended();
            if time::timeout(GOING, ended).await.is_err() {
                tracing::warn!(network = name, "its process takes long to end");
            }
        }
    }

    async fn ask(
        &self,
        network: &str,
        wanted: String,
        request: Request,
    ) -> Result<(Reply, Option<OwnedFd>), YardError> {
        let link = self.linked(network)?;
        link.ask(request, None).await.map_err(|error| refused(wanted, &error))
    }

    fn linked(&self, network: &str) -> Result<Link, YardError> {
        self.link(network).ok_or_else(|| {
            YardError::new(ErrorKind::Bug, format!("use network {network}"), "it is not there")
        })
    }

    /// Looks after everything for ever: reacts to each change.
    pub(super) async fn look_after(self: Rc<Self>) {
        let mut changes = self.changes.listen();
        loop {
            self.write_journal();
            self.close_lost_sockets();
            self.restore_networks();
            self.tell_eligible();
            self.start_pending();
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Writes down which inits there are now.
    fn write_journal(&self) {
        let supervisors = self.supervisors.borrow();
        let inits = supervisors
            .iter()
            .filter_map(|(name, supervisor)| Some((name.as_str(), supervisor.init_pid()?)));
        if let Err(error) = self.journal.borrow_mut().set(inits) {
            tracing::warn!(%error, "cannot write the journal");
        }
    }

    /// Tells the network processes who may get connections, where that has changed.
    fn tell_eligible(&self) {
        let ended = self.ended_programs();
        for (link, request) in self.changed_eligibility().into_iter().chain(ended) {
            link.tell(request);
        }
    }

    /// Returns when the network processes know who may get connections now: whoever hears that all is well
    /// connects at once.
    pub(super) async fn eligible_known(&self) {
        self.tell_eligible();
        let networks: BTreeSet<_> =
            self.reached.borrow().services.iter().map(|service| service.network.clone()).collect();
        for link in networks.iter().filter_map(|network| self.link(network)) {
            // A process answers in the order in which it is asked. One that has gone is told everything anew.
            let _ = link.ask(Request::Services, None).await;
        }
    }

    /// What the network processes are to be told of programs that have ended since the last look: over
    /// UDP nothing else tells their clients.
    fn ended_programs(&self) -> Vec<(Link, Request)> {
        let yard = self.reached.borrow();
        let mut ran = self.ran.borrow_mut();
        // Those that have left the yard are in it no more.
        let mut before_all = std::mem::take(&mut *ran);
        let mut news = Vec::new();
        for instance in yard.instances.iter().map(|instance| &instance.name) {
            let runs = self.supervisor(instance).map(|supervisor| supervisor.runs());
            let runs = runs.and_then(|runs| *runs.borrow());
            let before = before_all.remove(instance);
            ran.extend(runs.map(|run| (instance.clone(), run)));
            if before.is_none() || before == runs {
                continue;
            }
            let services = yard.services_of(instance).filter(|it| it.protocol == Protocol::Udp);
            let networks: BTreeSet<_> = services.map(|service| &service.network).collect();
            let links = networks.into_iter().filter_map(|network| self.link(network));
            let ended = Request::ProgramEnded { instance: instance.clone() };
            news.extend(links.map(|link| (link, ended.clone())));
        }
        news
    }

    /// What the network processes are to be told of who may get connections.
    fn changed_eligibility(&self) -> Vec<(Link, Request)> {
        let yard = self.reached.borrow();
        let mut told = self.eligible.borrow_mut();
        let mut news = Vec::new();
        for service in &yard.services {
            let Some(link) = self.link(&service.network) else { continue };
            for instance in &service.instances {
                let eligible = self.is_eligible(&service.name, instance);
                let known = told.get_mut(instance).and_then(|known| known.get_mut(&service.name));
                let before = match known {
                    Some(known) => std::mem::replace(known, eligible),
                    None => {
                        let known = told.entry(instance.clone()).or_default();
                        known.insert(service.name.clone(), eligible).unwrap_or_default()
                    }
                };
                if before == eligible {
                    continue;
                }
                let (of, name) = (service.name.clone(), instance.clone());
                // Who is about to stop may still answer.
                let hangs = !eligible && self.is_in_service(instance);
                let request =
                    Request::SetEligible { service: of.clone(), instance: name.clone(), eligible };
                news.push((link.clone(), request));
                if hangs && service.protocol == Protocol::Udp {
                    let request = Request::InstanceHangs { service: of, instance: name };
                    news.push((link.clone(), request));
                }
            }
        }
        news
    }

    /// An instance gets connections of a service while its program runs and its check passes.
    pub(super) fn is_eligible(&self, service: &str, instance: &str) -> bool {
        self.is_in_service(instance)
            && self.watch(service, instance, Watch::is_healthy).unwrap_or_default()
    }

    /// Whether the program of an instance runs and is not about to stop.
    fn is_in_service(&self, instance: &str) -> bool {
        let runs = self
            .supervisors
            .borrow()
            .get(instance)
            .is_some_and(|supervisor| supervisor.state() == InstanceState::Running);
        runs && !self.draining.borrow().contains(instance)
    }

    /// How an instance is, its checks included.
    pub(super) fn state_of(&self, name: &str) -> InstanceState {
        let Some(supervisor) = self.supervisor(name) else { return InstanceState::Pending };
        match supervisor.state() {
            InstanceState::Running if !supervisor.lost_taps().is_empty() => {
                InstanceState::Unhealthy
            }
            InstanceState::Running => {
                let yard = self.reached.borrow();
                let mut checks = yard.services_of(name).map(|service| {
                    self.watch(&service.name, name, Watch::health)
                        .unwrap_or(crate::health::Health::Unknown)
                });
                combine(&mut checks)
            }
            state => state,
        }
    }

    /// Starts what waits and has what it needs.
    fn start_pending(self: &Rc<Self>) {
        let yard = self.reached.borrow();
        let ready: Vec<_> = self
            .pending
            .borrow()
            .iter()
            .filter_map(|name| yard.instance(name))
            .filter(|instance| instance.needs.iter().all(|need| self.is_met(need, &yard)))
            .map(|instance| instance.name.clone())
            .collect();
        for name in ready {
            self.pending.borrow_mut().remove(&name);
            let Some(supervisor) = self.supervisor(&name) else { continue };
            tokio::task::spawn_local(async move {
                if let Err(error) = supervisor.start().await {
                    tracing::error!(instance = name, %error, "not started");
                }
            });
        }
    }

    /// Whether something is about to start.
    pub(super) fn is_settling(&self) -> bool {
        let yard = self.reached.borrow();
        let supervisors = self.supervisors.borrow();
        yard.instances.iter().any(|instance| {
            match supervisors.get(&instance.name).map(|it| it.state()) {
                Some(InstanceState::Starting) => true,
                Some(InstanceState::Pending) | None => {
                    instance.needs.iter().all(|need| self.is_met(need, &yard))
                }
                Some(_) => false,
            }
        })
    }

    fn is_met(&self, need: &Need, yard: &Yard) -> bool {
        match need {
            Need::Service(service) => yard.service(service).is_some_and(|service| {
                service.instances.iter().any(|name| self.is_eligible(&service.name, name))
            }),
            Need::Instance(name) => match self.state_of(name) {
                // What has done its work is not missed.
                InstanceState::Healthy | InstanceState::Exited { code: 0 } => true,
                InstanceState::Running => yard.services_of(name).next().is_none(),
                _ => false,
            },
        }
    }

    /// Watches exactly the instances of services that are there.
    fn watch_services(&self) {
        let yard = self.reached.borrow();
        let instances: BTreeMap<_, _> =
            yard.instances.iter().map(|instance| (instance.name.as_str(), instance)).collect();
        self.watches.borrow_mut().retain(|name, watches| {
            watches.retain(|service, watch| {
                let service = yard.service(service).filter(|it| it.instances.contains(name));
                let address =
                    instances.get(name.as_str()).zip(service).and_then(|(instance, service)| {
                        self.link(&service.network)?;
                        Some((service, address_on(instance, &service.network)?))
                    });
                address.is_some_and(|(service, address)| {
                    watch.is_of(&service.check, SocketAddr::new(address.into(), service.port))
                })
            });
            !watches.is_empty()
        });
        for service in &yard.services {
            for name in &service.instances {
                if let Some(instance) = instances.get(name.as_str()) {
                    self.watch_instance(instance, std::slice::from_ref(service));
                }
            }
        }
    }

    /// Watches an instance for those of the services that it is one of, where nobody does.
    fn watch_instance(&self, instance: &InstanceSpec, services: &[ServiceSpec]) {
        let Some(supervisor) = self.supervisor(&instance.name) else { return };
        let mut watches = self.watches.borrow_mut();
        for service in services.iter().filter(|it| it.instances.contains(&instance.name)) {
            let known = watches.get(&instance.name);
            if known.is_some_and(|known| known.contains_key(&service.name)) {
                continue;
            }
            let (Some(link), Some(address)) =
                (self.link(&service.network), address_on(instance, &service.network))
            else {
                continue;
            };
            let to = SocketAddr::new(address.into(), service.port);
            let check = service.check.clone();
            let watch = Watch::new(check, to, link, &supervisor, self.changes.clone());
            let known = watches.entry(instance.name.clone()).or_default();
            known.insert(service.name.clone(), watch);
        }
    }

    /// Makes everything again in network processes that have replaced others.
    fn restore_networks(self: &Rc<Self>) {
        let mut restored = self.restored.borrow_mut();
        for (name, network) in self.networks.borrow().iter() {
            let now = network.link().generation();
            if restored.insert(name.clone(), now).is_some_and(|before| before != now) {
                tokio::task::spawn_local(Rc::clone(self).restore_network(name.clone()));
            }
        }
    }

    async fn restore_network(self: Rc<Self>, name: String) {
        let _one_at_a_time = self.applying.lock().await;
        let Some(link) = self.link(&name) else { return };
        let yard = self.yard();
        let told = |result: Result<(), YardError>| {
            if let Err(error) = result {
                tracing::error!(network = name, %error, "not restored");
            }
        };
        let supervisors: Vec<_> = self.supervisors.borrow().values().cloned().collect();
        for supervisor in supervisors {
            told(supervisor.replug(&link.config().name).await);
        }
        let opened = self.opened.borrow().clone();
        for (_, forward) in opened.iter().filter(|(network, _)| *network == name) {
            let asked = self.ask_forward(&name, forward).await;
            if asked.is_err() {
                // Clients are refused, as at a port, and wait for nobody.
                self.close_socket(forward);
            }
            told(asked);
        }
        for service in yard.services.iter().filter(|service| service.network == name) {
            told(self.set_service(service, &yard).await);
        }
        tracing::warn!(network = name, "restored");
    }
}

/// What the checks of a running instance say together.
fn combine(checks: &mut dyn Iterator<Item = crate::health::Health>) -> InstanceState {
    use crate::health::Health;
    let mut state = None;
    for health in checks {
        state = Some(match (state, health) {
            (Some(InstanceState::Unhealthy), _) | (_, Health::Unhealthy) => {
                InstanceState::Unhealthy
            }
            (Some(InstanceState::Running), _) | (_, Health::Unknown) => InstanceState::Running,
            (_, Health::Healthy) => InstanceState::Healthy,
        });
    }
    state.unwrap_or(InstanceState::Running)
}

/// Cuts steps into single ones, but instances that stop or start one after the other stay together.
fn parts(steps: &[Step]) -> impl Iterator<Item = &[Step]> {
    let stops = |step: &Step| matches!(step, Step::StopInstance { .. });
    let starts = |step: &Step| step.starts().is_some();
    steps.chunk_by(move |one, next| stops(one) && stops(next) || starts(one) && starts(next))
}

fn address_on(instance: &InstanceSpec, network: &str) -> Option<std::net::Ipv4Addr> {
    plug_on(instance, network)?.address.get()
}

fn plug_on<'i>(instance: &'i InstanceSpec, network: &str) -> Option<&'i PlugSpec> {
    instance.plugs.iter().find(|plug| plug.network == network)
}

/// Finds every program that is going to be started before anything is made.
fn check_programs(steps: &[Step], wanted: &Yard) -> Result<(), YardError> {
    for step in steps {
        let (Step::StartInstance { name, .. } | Step::RestartInstance { name, .. }) = step else {
            continue;
        };
        let Some(instance) = wanted.instance(name).filter(|it| it.kind.has_program()) else {
            continue;
        };
        let env: Vec<_> =
            instance.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        if !instance.cwd.is_dir() {
            let found = format!("there is no folder {}", instance.cwd.display());
            return Err(YardError::new(
                ErrorKind::Unknown,
                format!("start instance {name}"),
                found,
            )
            .next("make it, or name another as its working folder"));
        }
        let blame = |error: YardError| YardError {
            wanted: format!("start instance {name}: {}", error.wanted),
            ..error
        };
        if let Some(vm) = instance.kind.vm() {
            vm::check(vm, instance.plugs.len()).map_err(blame)?;
            if vm.is_image() {
                continue;
            }
        }
        let program = instance.run.first().map(String::as_str).unwrap_or_default();
        find_program(program, &env, &instance.cwd).map_err(blame)?;
    }
    Ok(())
}

/// The domains that this machine searches.
fn hosts_search() -> Vec<String> {
    let text = std::fs::read(RESOLV_CONF).unwrap_or_default();
    resolv_conf::search(&String::from_utf8_lossy(&text))
}

/// The search list of a network with this zone, with domains of the host in the place of the word that stands for
/// them, as far as there is room.
fn spelled_out(zone: &str, search: &[String], host: &[String]) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut room = model::MAX_SEARCH_BYTES.saturating_sub(model::name_bytes(zone));
    for word in search {
        let domains = if word == model::SEARCH_OF_HOST { host } else { std::slice::from_ref(word) };
        for domain in domains {
            let bytes = model::name_bytes(domain);
            let is_new = domain != zone && !all.contains(domain);
            if is_new && all.len() < model::MAX_SEARCH && bytes <= room {
                room -= bytes;
                all.push(domain.clone());
            }
        }
    }
    all
}

fn nonsense(wanted: String) -> YardError {
    YardError::new(ErrorKind::Peer, wanted, "the network process says something else")
}

fn refused(wanted: String, error: &control::ControlError) -> YardError {
    let refused = YardError::control(wanted, error);
    match error.kind {
        ControlErrorKind::Taken => refused.next("stop what has it, or choose another"),
        _ => refused,
    }
}
