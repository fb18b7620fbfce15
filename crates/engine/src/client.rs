//! The member's end of a network's control socket.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use netyard_sys::seqpacket::SeqPacket;
use netyard_sys::wait;

use crate::control::{
    Answer, Call, ControlError, ControlErrorKind, MAX_MESSAGE, Reply, Request, VERSION, Welcome,
};
use crate::forward::Protocol;
use crate::holder;

/// How long [`Connection::request`] waits for its answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Longest answer that comes in a file, bytes: a KiB for each flow of as many as a network has.
const MAX_FILE: u64 = 256 << 20;

/// Calls that wait at most while the network process does not read.
const MAX_WAITING: usize = 4_096;

/// A connection to a network process: one member. What it made goes when it is dropped.
///
/// Calls never wait. Answers come in any order; poll [`Connection::as_fd`] for reading and call
/// [`Connection::poll_answer`] until it returns `None`. When the network process is gone, that
/// fails with `ConnectionAborted`.
pub struct Connection {
    socket: SeqPacket,
    last_call: u64,
    /// Calls that the socket did not take yet. Each call before them brings an answer, so the next
    /// [`Connection::poll_answer`] comes, and sends them.
    waiting: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
    /// Answers that [`Connection::request`] passed over.
    early: VecDeque<(Answer, Option<OwnedFd>)>,
    /// What unanswered calls want to bind, to find out who has it if it is taken.
    binding: HashMap<u64, Vec<(Protocol, SocketAddr)>>,
    buffer: Vec<u8>,
}

/// Without the buffers, which are long.
impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("socket", &self.socket)
            .field("last_call", &self.last_call)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects to the network process at a path.
    ///
    /// # Errors
    /// `NotFound`, `ConnectionRefused`: there is no such process.
    pub fn connect(path: &Path) -> io::Result<Self> {
        Self::new(SeqPacket::connect(path)?)
    }

    pub(crate) fn new(socket: SeqPacket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            last_call: 0,
            waiting: VecDeque::new(),
            early: VecDeque::new(),
            binding: HashMap::new(),
            buffer: vec![0; MAX_MESSAGE],
        })
    }

    /// Sends a request, with its descriptor if it brings one; returns the number that the answer
    /// will carry. [`Request::Hello`] must be the first.
    ///
    /// # Errors
    /// The network process is gone; `InvalidInput`: the request is longer than [`MAX_MESSAGE`].
    pub fn call(&mut self, request: Request, descriptor: Option<OwnedFd>) -> io::Result<u64> {
        self.last_call += 1;
        let id = self.last_call;
        let binds = binds(&request);
        let message = serde_json::to_vec(&Call { id, request }).map_err(io::Error::other)?;
        if message.len() > MAX_MESSAGE {
            let why = format!("the request is {} bytes long, {MAX_MESSAGE} at most", message.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        if self.waiting.len() >= MAX_WAITING {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        if !binds.is_empty() {
            self.binding.insert(id, binds);
        }
        self.waiting.push_back((message, descriptor));
        self.flush()?;
        Ok(id)
    }

    /// The next answer, with its descriptor if it brings one; `None` if there is none yet.
    ///
    /// # Errors
    /// `ConnectionAborted`: the network process is gone; `InvalidData`: it does not speak our
    /// language.
    pub fn poll_answer(&mut self) -> io::Result<Option<(Answer, Option<OwnedFd>)>> {
        match self.early.pop_front() {
            Some(answer) => Ok(Some(answer)),
            None => self.receive(),
        }
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// As [`Connection::call`] and [`Connection::poll_answer`]; `TimedOut` after ten seconds.
    pub fn request(
        &mut self,
        request: Request,
        descriptor: Option<OwnedFd>,
    ) -> io::Result<(Result<Reply, ControlError>, Option<OwnedFd>)> {
        let id = self.call(request, descriptor)?;
        let deadline = Instant::now() + ANSWER_WITHIN;
        loop {
            match self.receive()? {
                Some((answer, descriptor)) if answer.id == id => {
                    return Ok((answer.reply, descriptor));
                }
                Some(other) => self.early.push_back(other),
                None => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    wait::readable([self.socket.as_fd()], Some(left))?;
                }
            }
        }
    }

    /// Says who we are, and waits for what the network is.
    ///
    /// # Errors
    /// As [`Connection::request`]; the network's refusal as an error of kind `Other`.
    pub fn hello(&mut self, member: &str) -> io::Result<Welcome> {
        let hello = Request::Hello { version: VERSION, member: member.to_owned() };
        match self.request(hello, None)?.0 {
            Ok(Reply::Welcome(welcome)) => Ok(*welcome),
            Ok(_) => Err(io::ErrorKind::InvalidData.into()),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    fn receive(&mut self) -> io::Result<Option<(Answer, Option<OwnedFd>)>> {
        self.flush()?;
        let (len, mut descriptors) = match self.socket.recv(&mut self.buffer) {
            Ok((0, _)) => return Err(io::ErrorKind::ConnectionAborted.into()),
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            Err(error) => return Err(error),
        };
        let message = self.buffer.get(..len).unwrap_or_default();
        let mut answer: Answer = serde_json::from_slice(message)?;
        if let Ok(Reply::Elsewhere) = answer.reply {
            let file = descriptors.pop().ok_or(io::ErrorKind::InvalidData)?;
            let mut text = Vec::new();
            File::from(file).take(MAX_FILE).read_to_end(&mut text)?;
            answer = serde_json::from_slice(&text)?;
        }
        let binds = self.binding.remove(&answer.id).unwrap_or_default();
        if let Err(error) = &mut answer.reply
            && error.kind == ControlErrorKind::Taken
        {
            name_holder(error, &binds);
        }
        Ok(Some((answer, descriptors.pop())))
    }

    /// Sends what waits, as far as the socket takes it.
    fn flush(&mut self) -> io::Result<()> {
        while let Some((message, descriptor)) = self.waiting.front() {
            let descriptors: Vec<BorrowedFd<'_>> = descriptor.iter().map(AsFd::as_fd).collect();
            match self.socket.send(message, &descriptors) {
                Ok(()) => self.waiting.pop_front(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
                Err(error) => return Err(error),
            };
        }
        Ok(())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The host addresses that a request wants to bind.
fn binds(request: &Request) -> Vec<(Protocol, SocketAddr)> {
    match request {
        Request::AddForward(forward) => {
            forward.pairs().map(|(at, _)| (forward.protocol, at)).collect()
        }
        Request::SetService(spec) => {
            spec.publish.map(|at| (Protocol::Tcp, at)).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

/// Adds to the error who has the wanted port, if that can be found out. (We look, and not the
/// network process: that has given up the rights for it.)
pub(crate) fn name_holder(error: &mut ControlError, binds: &[(Protocol, SocketAddr)]) {
    let found = binds.iter().find_map(|(protocol, at)| Some((at, holder::find(*protocol, *at)?)));
    if let Some((at, holder)) = found {
        error.message = format!("{} ({at} is held by {holder})", error.message);
    }
}

#[cfg(test)]
mod tests {
    use netyard_testbed::wait_for;

    use super::*;
    use crate::control::ServiceSpec;
    use crate::control::TurnPolicy;

    /// Far above what a program takes to start.
    const SOON: Duration = Duration::from_secs(60);

    /// A client and the network process's end of its connection.
    fn connected() -> (Connection, SeqPacket) {
        let (near, far) = SeqPacket::pair().unwrap();
        (Connection::new(near).unwrap(), far)
    }

    fn answer(far: &SeqPacket, id: u64, reply: Result<Reply, ControlError>) {
        far.send(&serde_json::to_vec(&Answer { id, reply }).unwrap(), &[]).unwrap();
    }

    #[test]
    fn answers_are_told_apart_by_number() {
        let (mut connection, far) = connected();
        assert!(connection.poll_answer().unwrap().is_none());
        let first = connection.call(Request::Inspect, None).unwrap();
        let second = first + 1;
        answer(&far, first, Ok(Reply::Done));
        answer(&far, second, Ok(Reply::Dialed));
        let reply = connection.request(Request::Inspect, None).unwrap().0;
        assert!(matches!(reply, Ok(Reply::Dialed)));
        assert_eq!(connection.poll_answer().unwrap().unwrap().0.id, first);
    }

    #[test]
    fn the_end_of_the_process_is_told() {
        let (mut connection, far) = connected();
        drop(far);
        // A program that another test starts has a copy of it until it runs.
        let error = wait_for("the end", SOON, || connection.poll_answer().err());
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        let error = connection.call(Request::Inspect, None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }

    #[test]
    fn calls_wait_until_the_process_reads() {
        let (mut connection, far) = connected();
        let calls = 2_000;
        for _ in 0..calls {
            connection.call(Request::Inspect, None).unwrap();
        }
        let mut buffer = vec![0; 1_024];
        for id in 1..=calls {
            let (len, _) = far.recv(&mut buffer).unwrap();
            let call: Call = serde_json::from_slice(&buffer[..len]).unwrap();
            assert_eq!(call.id, id);
            answer(&far, id, Ok(Reply::Done));
            assert!(connection.poll_answer().unwrap().is_some());
        }
    }

    #[test]
    fn a_request_that_is_too_long_is_refused_here() {
        let (mut connection, _far) = connected();
        let member = "x".repeat(MAX_MESSAGE);
        let error = connection.call(Request::Hello { version: VERSION, member }, None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_taken_port_is_told_with_its_holder() {
        let (mut connection, far) = connected();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let spec = ServiceSpec {
            name: "web".into(),
            protocol: Protocol::Tcp,
            port: 80,
            publish: Some(at),
            delivery: Default::default(),
            policy: TurnPolicy::RoundRobin,
            affinity: None,
            instances: Vec::new(),
        };
        let id = connection.call(Request::SetService(spec), None).unwrap();
        let message = "cannot bind".to_owned();
        answer(&far, id, Err(ControlError { kind: ControlErrorKind::Taken, message }));
        let error = connection.poll_answer().unwrap().unwrap().0.reply.unwrap_err();
        let expected = format!("pid {}", std::process::id());
        assert!(error.message.contains(&expected), "{}", error.message);
    }
}
