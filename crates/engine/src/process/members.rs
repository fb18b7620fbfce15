//! The members of a network: their connections, their requests, and when the last has left.
//!
//! Each connection is one member, and a fault of one ends at its own connection: a message that
//! cannot be understood is answered with an error, a member that does not read its answers is
//! disconnected, and whatever it made goes with it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::{self, File, TryLockError};
use std::io::{self, Seek as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use netyard_sys::memory;
use netyard_sys::seqpacket::{Listener, SeqPacket};
use serde::Deserialize;

use crate::capture::Filter;
use crate::control::{
    Answer, Call, ControlError, ControlErrorKind, MAX_MESSAGE, PlugKind, PlugRequest, Reply,
    Request, State, VERSION, Welcome,
};
use crate::drive::Drive;
use crate::edge::PlugId;
use crate::network::DialId;
use crate::policy::rules::What;
use crate::policy::{Decision, Tested};

/// The watch key of the listening socket; members count from 1.
const LISTENER: u32 = 0;

/// Messages handled of one member before the others, and the traffic, get their turn.
const MESSAGES_PER_TURN: usize = 32;

/// Bytes of answers that wait at most for a member that does not read them.
const MAX_WAITING: usize = 1 << 20;

/// Dials that may be under way at once; each costs descriptors.
const MAX_DIALS: usize = 1_024;

/// Longer tries to dial are cut to this.
const MAX_DIAL: Duration = Duration::from_secs(3_600);

/// How long a process waits for its first member.
const FIRST_MEMBER_WITHIN: Duration = Duration::from_secs(10);

/// How soon an end that somebody's joining has put off is tried again.
const END_AGAIN: Duration = Duration::from_millis(50);

/// A network with its members.
#[derive(Debug)]
pub(super) struct Members {
    driver: Box<dyn Drive>,
    listener: Listener,
    folder: PathBuf,
    members: BTreeMap<u32, Member>,
    last_key: u32,
    dials: HashMap<DialId, Dial>,
    buffer: Vec<u8>,
    permanent: bool,
    /// When to see whether nobody is left; `None` while somebody is here.
    end_at: Option<Instant>,
}

#[derive(Debug)]
struct Member {
    socket: SeqPacket,
    /// Set by `Hello`; unique among the members.
    name: Option<String>,
    /// Answers that the socket did not take yet.
    waiting: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
}

/// A `Dial` that is not answered yet.
#[derive(Debug)]
struct Dial {
    member: u32,
    call: u64,
}

/// What comes of a request.
type Outcome = Result<(Reply, Option<OwnedFd>), ControlError>;

/// The number of a call whose rest cannot be understood.
#[derive(Deserialize)]
struct Number {
    id: u64,
}

impl Members {
    /// Serves the members that connect to `listener`, which is non-blocking.
    pub(super) fn new(
        driver: Box<dyn Drive>,
        listener: Listener,
        folder: PathBuf,
    ) -> io::Result<Self> {
        driver.watch(listener.as_fd(), LISTENER)?;
        Ok(Self {
            permanent: driver.config().permanent,
            driver,
            listener,
            folder,
            members: BTreeMap::new(),
            last_key: LISTENER,
            dials: HashMap::new(),
            buffer: vec![0; MAX_MESSAGE],
            end_at: Some(Instant::now() + FIRST_MEMBER_WITHIN),
        })
    }

    /// Whoever wanted the network has gone before it was up: it does not stay for that.
    pub(super) fn nobody_asked(&mut self) {
        self.driver.set_permanent(false);
        self.permanent = false;
    }

    /// Runs until the last member has left, unless the network is permanent.
    pub(super) fn serve(mut self) -> io::Result<()> {
        let mut ready = Vec::new();
        loop {
            self.driver.turn(self.end_at, &mut ready)?;
            let heard = !ready.is_empty();
            for key in ready.drain(..) {
                match key {
                    LISTENER => self.accept(),
                    _ => self.hear(key),
                }
            }
            if heard {
                self.driver.settle();
            }
            self.tell_dials();
            if let Some(lock) = self.is_over()? {
                self.end(lock);
                return Ok(());
            }
        }
    }

    /// Takes new members.
    fn accept(&mut self) {
        loop {
            let accepted = self.listener.accept().and_then(|socket| {
                socket.set_nonblocking(true)?;
                self.driver.watch(socket.as_fd(), self.last_key + 1)?;
                Ok(socket)
            });
            match accepted {
                Ok(socket) => {
                    self.last_key += 1;
                    let member = Member { socket, name: None, waiting: VecDeque::new() };
                    self.members.insert(self.last_key, member);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::warn!(%error, "cannot take a member");
                    return;
                }
            }
        }
    }

    /// Handles what a member has sent, and sends it what waits.
    fn hear(&mut self, key: u32) {
        self.flush(key);
        let mut buffer = std::mem::take(&mut self.buffer);
        for _ in 0..MESSAGES_PER_TURN {
            let Some(member) = self.members.get(&key) else { break };
            match member.socket.recv(&mut buffer) {
                Ok((0, _)) => {
                    self.leave(key);
                    break;
                }
                Ok((len, descriptors)) => {
                    self.handle(key, buffer.get(..len).unwrap_or_default(), descriptors);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    let why = format!("the message is longer than {MAX_MESSAGE} bytes");
                    self.answer(key, 0, Err(malformed(why)));
                }
                Err(error) => {
                    tracing::warn!(%error, "a member's connection is broken");
                    self.leave(key);
                    break;
                }
            }
        }
        self.buffer = buffer;
    }

    /// Handles one message.
    fn handle(&mut self, key: u32, message: &[u8], descriptors: Vec<OwnedFd>) {
        let call: Call = match serde_json::from_slice(message) {
            Ok(call) => call,
            Err(error) => {
                let id = serde_json::from_slice(message).map_or(0, |number: Number| number.id);
                let why = format!("the message cannot be understood: {error}");
                self.answer(key, id, Err(malformed(why)));
                return;
            }
        };
        let Call { id, request } = call;
        let name = self.members.get(&key).and_then(|member| member.name.clone());
        let outcome = match (name, request) {
            (None, Request::Hello { version, member }) => self.hello(key, version, &member),
            (None, _) => Err(malformed("`hello` must come first".to_owned())),
            (Some(_), Request::Hello { .. }) => Err(malformed("`hello` came twice".to_owned())),
            (Some(name), Request::AddPlug(request)) => self.add_plug(&name, &request, descriptors),
            (Some(name), Request::SetSupply { plug }) => self.set_supply(&name, plug, descriptors),
            (Some(name), Request::AddForward(forward)) => {
                let socket = descriptors.into_iter().next();
                let bound = self.driver.add_forward(&name, forward, socket);
                bound.map(|at| (Reply::Forwarding { at }, None))
            }
            (Some(name), Request::Capture(filter)) => self.capture(&name, filter, descriptors),
            (Some(name), Request::SetRemote(remote)) => {
                let socket = descriptors.into_iter().next();
                self.driver.set_remote(&name, remote, socket).map(|()| (Reply::Done, None))
            }
            (Some(_), Request::Dial { to, within }) => match self.dial(key, id, to, within) {
                Ok(()) => return,
                Err(error) => Err(error),
            },
            (Some(name), request) => self.perform(&name, request).map(|reply| (reply, None)),
        };
        self.answer(key, id, outcome);
    }

    fn hello(&mut self, key: u32, version: u32, member: &str) -> Outcome {
        if version != VERSION {
            let message = format!(
                "this network speaks version {VERSION} of the control messages, and `{member}` \
                 version {version}: stop one side and start it with the other's netyard"
            );
            return Err(ControlError { kind: ControlErrorKind::Version, message });
        }
        let mut name = member.to_owned();
        let mut number = 1;
        while self.members.values().any(|other| other.name.as_ref() == Some(&name)) {
            number += 1;
            name = format!("{member}~{number}");
        }
        if let Some(member) = self.members.get_mut(&key) {
            member.name = Some(name);
        }
        let config = self.driver.config().clone();
        let welcome = Welcome { config, warnings: self.driver.warnings() };
        Ok((Reply::Welcome(Box::new(welcome)), None))
    }

    fn add_plug(
        &mut self,
        member: &str,
        request: &PlugRequest,
        descriptors: Vec<OwnedFd>,
    ) -> Outcome {
        let wanted = usize::from(!matches!(request.kind, PlugKind::Device { .. }));
        if descriptors.len() != wanted {
            return Err(malformed(format!("such a plug comes with {wanted} descriptors")));
        }
        let descriptor = descriptors.into_iter().next();
        let plugged = self.driver.add_plug(member, request, descriptor)?;
        Ok((Reply::Plugged(plugged), None))
    }

    fn set_supply(&mut self, member: &str, plug: PlugId, descriptors: Vec<OwnedFd>) -> Outcome {
        let [supply] = <[OwnedFd; 1]>::try_from(descriptors)
            .map_err(|_| malformed("a supply comes with one descriptor".to_owned()))?;
        self.driver.set_supply(member, plug, supply)?;
        Ok((Reply::Done, None))
    }

    fn capture(&mut self, member: &str, filter: Filter, descriptors: Vec<OwnedFd>) -> Outcome {
        let [to] = <[OwnedFd; 1]>::try_from(descriptors)
            .map_err(|_| malformed("a capture comes with one descriptor".to_owned()))?;
        self.driver.capture(member, filter, to)?;
        Ok((Reply::Done, None))
    }

    /// Starts to dial; the answer comes when it is known.
    fn dial(
        &mut self,
        member: u32,
        call: u64,
        to: std::net::SocketAddr,
        within: Duration,
    ) -> Result<(), ControlError> {
        if self.dials.len() >= MAX_DIALS {
            let message = format!("{MAX_DIALS} connections are being dialled: try again later");
            return Err(ControlError { kind: ControlErrorKind::Exhausted, message });
        }
        let dial = self.driver.dial(to, within.min(MAX_DIAL))?;
        self.dials.insert(dial, Dial { member, call });
        Ok(())
    }

    /// Does what needs no descriptor and is answered at once.
    fn perform(&mut self, member: &str, request: Request) -> Result<Reply, ControlError> {
        let driver = &mut self.driver;
        match request {
            Request::RemoveForward { forward } => {
                if driver.remove_forward(member, &forward) {
                    return Ok(Reply::Done);
                }
                Err(unknown(format!("`{member}` has no forward {forward}")))
            }
            Request::SetService(spec) => {
                let (addresses, published) = driver.set_service(member, spec)?;
                Ok(Reply::Serving { addresses, published })
            }
            Request::RemoveService { name } => {
                driver.remove_service(member, &name).map(|()| Reply::Done)
            }
            Request::SetRules(rules) => driver.set_rules(member, rules).map(|()| Reply::Done),
            Request::TestRules { guest, protocol, to } => {
                driver.test_policy(&guest, protocol, to).map(decided)
            }
            Request::TestEntry { from, guest, protocol, port } => {
                driver.test_entry(&from, &guest, What::to(protocol, port)).map(decided)
            }
            Request::SetEligible { service, instance, eligible } => {
                driver.set_eligible(member, &service, &instance, eligible).map(|()| Reply::Done)
            }
            Request::ProgramEnded { instance } => {
                driver.program_ended(member, &instance);
                Ok(Reply::Done)
            }
            Request::InstanceHangs { service, instance } => {
                driver.instance_hangs(member, &service, &instance);
                Ok(Reply::Done)
            }
            Request::RemovePlug { plug } => {
                if driver.remove_plug(member, plug) {
                    return Ok(Reply::Done);
                }
                Err(unknown(format!("`{member}` has no plug {}", plug.0)))
            }
            Request::SetPermanent { permanent } => {
                driver.set_permanent(permanent);
                self.permanent = permanent;
                Ok(Reply::Done)
            }
            Request::Inspect => Ok(Reply::State(Box::new(self.state(member)))),
            Request::Flows => driver.flows().map(Reply::Flows),
            Request::Services => {
                let mut services = driver.services();
                services.retain(|service| service.member == member);
                Ok(Reply::Services(services))
            }
            Request::Names => Ok(Reply::Names(driver.names())),
            Request::Hello { .. }
            | Request::AddPlug(_)
            | Request::AddForward(_)
            | Request::SetSupply { .. }
            | Request::SetRemote(_)
            | Request::Capture(_)
            | Request::Dial { .. } => Err(malformed("not at this time".to_owned())),
        }
    }

    fn state(&mut self, asked_by: &str) -> State {
        let mut state = self.driver.state();
        state.asked_by = asked_by.to_owned();
        state.members = self.members.values().filter_map(|member| member.name.clone()).collect();
        state
    }

    /// Answers the dials whose outcome is known.
    fn tell_dials(&mut self) {
        while let Some((dial, result)) = self.driver.poll_dialed() {
            let Some(dial) = self.dials.remove(&dial) else { continue };
            let outcome = result.map(|stream| (Reply::Dialed, Some(stream)));
            self.answer(dial.member, dial.call, outcome);
        }
    }

    /// Answers a call.
    fn answer(&mut self, key: u32, id: u64, outcome: Outcome) {
        let (reply, descriptor) = match outcome {
            Ok((reply, descriptor)) => (Ok(reply), descriptor),
            Err(error) => (Err(error), None),
        };
        let (message, descriptor) = match encode(&Answer { id, reply }, descriptor) {
            Ok(encoded) => encoded,
            Err(error) => {
                tracing::error!(%error, "an answer cannot be written");
                self.leave(key);
                return;
            }
        };
        let Some(member) = self.members.get_mut(&key) else { return };
        let waiting: usize = member.waiting.iter().map(|(message, _)| message.len()).sum();
        if waiting > MAX_WAITING {
            tracing::warn!(member = member.name, "disconnected: it does not read its answers");
            self.leave(key);
            return;
        }
        member.waiting.push_back((message, descriptor));
        self.flush(key);
    }

    /// Sends a member what waits, as far as its socket takes it.
    fn flush(&mut self, key: u32) {
        let Some(member) = self.members.get_mut(&key) else { return };
        if member.waiting.is_empty() {
            return;
        }
        while let Some((message, descriptor)) = member.waiting.front() {
            let descriptors: Vec<BorrowedFd<'_>> = descriptor.iter().map(|fd| fd.as_fd()).collect();
            match member.socket.send(message, &descriptors) {
                Ok(()) => member.waiting.pop_front(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    // It is gone; what it sent before is void.
                    self.leave(key);
                    return;
                }
            };
        }
        let room = !member.waiting.is_empty();
        if let Err(error) = self.driver.watch_room(member.socket.as_fd(), key, room) {
            tracing::warn!(%error, "a member cannot be watched");
            self.leave(key);
        }
    }

    /// Ends a member and takes everything out that it made.
    fn leave(&mut self, key: u32) {
        let Some(member) = self.members.remove(&key) else { return };
        for (dial, _) in self.dials.extract_if(|_, dial| dial.member == key) {
            self.driver.abandon_dial(dial);
        }
        if let Some(name) = member.name {
            self.driver.remove_member(&name);
        }
        if self.members.is_empty() {
            self.end_at = Some(Instant::now());
        }
    }

    /// The lock of the folder, if nobody is left and nobody can come any more; without a lock if the
    /// folder is not ours any more.
    fn is_over(&mut self) -> io::Result<Option<Option<File>>> {
        if self.permanent || !self.members.is_empty() {
            self.end_at = None;
        }
        if self.end_at.is_none_or(|at| Instant::now() < at) {
            return Ok(None);
        }
        // Who joins holds the lock until it is connected.
        let lock = match File::open(self.folder.join(super::LOCK)) {
            Ok(file) => match file.try_lock() {
                Ok(()) => Some(file),
                Err(TryLockError::WouldBlock) => {
                    self.end_at = Some(Instant::now() + END_AGAIN);
                    return Ok(None);
                }
                Err(TryLockError::Error(error)) => return Err(error),
            },
            // Somebody has cleaned up behind us: nobody can find us.
            Err(_) => None,
        };
        self.accept();
        if !self.members.is_empty() {
            self.end_at = None;
            return Ok(None);
        }
        Ok(Some(lock))
    }

    /// Ends the network and takes its folder away. Whoever joins meanwhile waits for the lock.
    fn end(self, lock: Option<File>) {
        // What it made on the host goes first: what there is to undo may be noted in the folder.
        drop(self.driver);
        if lock.is_some() {
            for file in [super::SOCKET, super::LOG, super::LEASES, super::LOCK] {
                let _ = fs::remove_file(self.folder.join(file));
            }
            // Stays if somebody keeps something else there.
            let _ = fs::remove_dir(&self.folder);
        }
    }
}

/// Writes an answer. One that is too long for a message goes through a file in memory.
fn encode(answer: &Answer, descriptor: Option<OwnedFd>) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let message = serde_json::to_vec(answer)?;
    if message.len() <= MAX_MESSAGE {
        return Ok((message, descriptor));
    }
    let mut file = memory::file(c"answer")?;
    file.write_all(&message)?;
    file.rewind()?;
    let elsewhere = serde_json::to_vec(&Answer { id: answer.id, reply: Ok(Reply::Elsewhere) })?;
    Ok((elsewhere, Some(file.into())))
}

fn decided(tested: Tested) -> Reply {
    let Tested { decision, rule, meaning } = tested;
    let allowed = matches!(decision, Decision::Allow(_));
    Reply::Decided { allowed, rule, meaning: meaning.to_owned() }
}

fn malformed(message: String) -> ControlError {
    ControlError { kind: ControlErrorKind::Malformed, message }
}

fn unknown(message: String) -> ControlError {
    ControlError { kind: ControlErrorKind::Unknown, message }
}
