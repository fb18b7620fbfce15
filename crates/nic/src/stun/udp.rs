//! Machines on real UDP sockets, and a [`Prober`] of them: the edge where sockets and the clock are.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::task::Poll;
use std::time::{Duration, Instant};

use socket2::{Socket, Type};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;

use super::ask::{Answer, Failure, Question, Schedule};
use super::client::{Lookup, lookup};
use super::machine::{Action, Line, Machine, Port, SocketId};
use super::message::MAX_LEN;
use super::{ask_instead, names};
use crate::agreement::{self, Agreement, Probe, ProbeError, Prober, Verdict};
use crate::bind::{Bind, card_name};
use crate::{CardId, Family};

/// How long UDP may be silent until servers are asked over streams beside it.
const HEAD_START: Duration = Duration::from_secs(1);

/// From where packets leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The local address.
    pub address: IpAddr,
    /// The name of the card that they must leave by; none: the kernel's choice.
    pub card: Option<String>,
}

impl Source {
    /// The address that the kernel would send to `server` from, and the card that is named. No packet
    /// is sent.
    ///
    /// # Errors
    /// There is no way to the server.
    pub async fn towards(server: SocketAddr, card: Option<&str>) -> io::Result<Self> {
        let any: IpAddr = if server.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
        if let Some(card) = card {
            socket.bind_device(Some(card.as_bytes()))?;
        }
        socket.connect(server).await?;
        Ok(Self { address: socket.local_addr()?.ip(), card: card.map(str::to_owned) })
    }

    async fn open(&self, port: Port) -> io::Result<UdpSocket> {
        let port = match port {
            Port::Any => 0,
            Port::Exact(port) => port,
        };
        UdpSocket::from_std(self.socket(Type::DGRAM, port)?.into())
    }

    /// A socket that is bound to the address and held to the card.
    pub(super) fn socket(&self, kind: Type, port: u16) -> io::Result<Socket> {
        let bind = Bind::every(Family::of(self.address)).ip(self.address).port(port);
        let socket = bind.socket(kind)?.socket;
        if let Some(card) = &self.card {
            socket.bind_device(Some(card.as_bytes()))?;
        }
        Ok(socket)
    }
}

/// Runs a story on sockets of `source`, with ids that nobody can guess.
pub async fn run<T, F>(source: &Source, story: impl FnOnce(Line) -> F) -> T
where
    F: Future<Output = T> + Send + 'static,
{
    run_keeping(source, story).await.0
}

/// The same, with the sockets that the story's result keeps open.
async fn run_keeping<T, F>(
    source: &Source,
    story: impl FnOnce(Line) -> F,
) -> (T, BTreeMap<SocketId, UdpSocket>)
where
    F: Future<Output = T> + Send + 'static,
{
    let mut machine = Machine::new(rand::random(), Instant::now(), story);
    let mut sockets: BTreeMap<SocketId, UdpSocket> = BTreeMap::new();
    // One byte more than a message may have, so that longer ones are seen to be longer.
    let mut buffer = vec![0; MAX_LEN + 1];
    loop {
        while let Some(action) = machine.poll_action() {
            act(&mut machine, &mut sockets, source, action).await;
        }
        if let Some(result) = machine.poll_result() {
            return (result, sockets);
        }
        let wake = machine.poll_timeout();
        let timeout = async {
            match wake {
                Some(then) => tokio::time::sleep_until(then.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            (socket, from, length) = receive(&sockets, &mut buffer) => {
                let bytes = buffer.get(..length).unwrap_or_default();
                machine.handle_datagram(Instant::now(), socket, from, bytes);
            }
            () = timeout => machine.handle_timeout(Instant::now()),
        }
    }
}

/// Asks one server, with the repetitions of the standard. Where the question left from is told too.
///
/// # Errors
/// As for [`Socket::ask`](super::machine::Socket::ask).
pub async fn ask(source: &Source, server: SocketAddr) -> Result<(SocketAddr, Answer), Failure> {
    let (socket, answer) = ask_keeping(source, Question::plain(server, false)).await?;
    Ok((socket.local_addr().map_err(|error| Failure::Socket(error.kind()))?, answer))
}

/// The same, with the socket, which is not connected.
pub(super) async fn ask_keeping(
    source: &Source,
    question: Question,
) -> Result<(UdpSocket, Answer), Failure> {
    let (asked, mut sockets) = run_keeping(source, move |line| async move {
        let socket = line.open(Port::Any).await.map_err(Failure::Socket)?;
        let answer = socket.ask(question, Schedule::STANDARD).await?;
        Ok::<_, Failure>((socket, answer))
    })
    .await;
    let (socket, answer) = asked?;
    let kept = sockets.remove(&socket.id());
    Ok((kept.ok_or(Failure::Socket(io::ErrorKind::NotConnected))?, answer))
}

async fn act<T>(
    machine: &mut Machine<T>,
    sockets: &mut BTreeMap<SocketId, UdpSocket>,
    source: &Source,
    action: Action,
) {
    match action {
        Action::Open { socket, port } => {
            let opened = source.open(port).await.and_then(|open| {
                let local = open.local_addr()?;
                sockets.insert(socket, open);
                Ok(local)
            });
            let outcome = opened.map_err(|error| error.kind());
            machine.handle_opened(Instant::now(), socket, outcome);
        }
        Action::Close(socket) => drop(sockets.remove(&socket)),
        Action::Send { socket, to, bytes } => {
            let Some(open) = sockets.get(&socket) else { return };
            if let Err(error) = open.send_to(&bytes, to).await
                && is_final(error.kind())
            {
                machine.handle_unsent(Instant::now(), socket, to, error.kind());
            }
        }
    }
}

/// Whether sending again is of no use. Anything else is a lost packet.
fn is_final(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::AddrNotAvailable
            | io::ErrorKind::InvalidInput
    )
}

/// The next datagram of any socket. There are some dozens at most.
async fn receive(
    sockets: &BTreeMap<SocketId, UdpSocket>,
    buffer: &mut [u8],
) -> (SocketId, SocketAddr, usize) {
    poll_fn(|context| {
        for (id, socket) in sockets {
            let mut into = ReadBuf::new(buffer);
            // An error is one that an earlier datagram met on its way: it has no answer then. What is behind
            // it is looked for at once: only a socket that has nothing wakes the task.
            while let Poll::Ready(read) = socket.poll_recv_from(context, &mut into) {
                match read {
                    Ok(from) => return Poll::Ready((*id, from, into.filled().len())),
                    Err(_) => into.clear(),
                }
            }
        }
        Poll::Pending
    })
    .await
}

/// Asks STUN servers over UDP, where all of them are silent over TCP, and where that is silent too over TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StunProber {
    /// Names or addresses, with ports where they are not 3478; behind `stuns:` those that are asked over TLS
    /// only.
    pub servers: Vec<String>,
}

impl Prober for StunProber {
    async fn probe(&self, probe: Probe, mut agreement: Agreement) -> Agreement {
        let card = match probe.card.map(|index| card_name(index).map(|name| (index, name))) {
            None => None,
            Some(Ok((index, name))) => Some(CardId { name: name.into(), index: Some(index) }),
            Some(Err(error)) => {
                let cannot = ProbeError::CannotSend(error.to_string());
                for server in &self.servers {
                    agreement.handle_answer(unheard(server, cannot.clone()));
                }
                return agreement;
            }
        };
        let (servers, unknown) =
            names::find_all(&self.servers, Family::of(probe.from), card.as_ref()).await;
        for (server, error) in unknown {
            agreement.handle_answer(unheard(server, ProbeError::Name(error.to_string())));
        }
        let plain = servers.iter().filter(|server| !server.tls);
        let mut asked = BTreeSet::new();
        let plain: Vec<_> = plain
            .filter(|server| asked.insert(server.address))
            .map(|server| (server.name.clone(), server.address))
            .collect();
        let head_start = if plain.is_empty() { Duration::ZERO } else { HEAD_START };
        let source = Source { address: probe.from, card: card.map(|card| card.name.to_string()) };
        let lookup = |line| lookup(line, Lookup::new(plain), agreement);
        let over_udp = run(&source, lookup);
        let over_streams = async {
            tokio::time::sleep(head_start).await;
            over_streams(&source, &servers).await
        };
        tokio::pin!(over_udp, over_streams);
        let mut instead = None;
        let mut agreement = loop {
            tokio::select! {
                found = &mut over_udp => break found.agreement,
                answers = &mut over_streams, if instead.is_none() => instead = Some(answers),
            }
        };
        if agreement.verdict() == Verdict::Silence {
            let answers = match instead {
                Some(answers) => answers,
                None => over_streams.await,
            };
            answers.into_iter().for_each(|answer| agreement.handle_answer(answer));
        }
        agreement
    }
}

/// Asks over TCP and TLS. What they say is evidence of its own; a machine has one voice, however often it
/// is named and whatever it is asked over.
async fn over_streams(source: &Source, servers: &[names::Found]) -> Vec<agreement::Answer> {
    let mut heard = BTreeSet::new();
    let mut said = ask_instead(source, servers).await;
    said.retain(|it| it.result.is_err() || heard.insert(it.server.ip()));
    let said = said.into_iter().map(|instead| {
        let (seen, took) = match instead.result {
            Ok((_, answer)) => (Ok(answer.mapped), answer.rtt),
            Err(Failure::Timeout { waited, .. }) => (Err(ProbeError::NoAnswer), waited),
            Err(other) => (Err(ProbeError::BadAnswer(other.to_string())), Duration::ZERO),
        };
        agreement::Answer { server: format!("{}/{}", instead.name, instead.carrier), seen, took }
    });
    said.collect()
}

fn unheard(server: &str, error: ProbeError) -> agreement::Answer {
    agreement::Answer { server: server.to_owned(), seen: Err(error), took: Duration::ZERO }
}
