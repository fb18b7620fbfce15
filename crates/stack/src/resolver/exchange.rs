//! One question, asked of one resolver after the other until one answers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use netyard_wire::dns::{Edns, Flags, IN, Name, Query, Question, Rcode, Response};
use rand::RngExt as _;
use rand::rngs::StdRng;

use crate::config::Dns;
use crate::{Error, Event, Stack, TcpId, UdpId};

/// The longest answer over UDP that is asked for, bytes: it fits a packet everywhere (RFC 9715).
const UDP_SIZE: u16 = 1232;

#[derive(Debug)]
pub(super) struct Exchange {
    query: Query,
    /// How often it was asked.
    attempts: usize,
    server: Option<SocketAddr>,
    transport: Option<Transport>,
    deadline: Option<Instant>,
}

#[derive(Debug)]
enum Transport {
    Udp(UdpId),
    /// The message, with its length before it, as far as it was not sent; what has come of the answer.
    Tcp {
        id: TcpId,
        unsent: Vec<u8>,
        got: Vec<u8>,
    },
}

/// What a question has come to.
#[derive(Debug)]
pub(super) enum Outcome {
    /// An answer, which may be that there is no such name.
    Answer(Response),
    /// Nobody has answered.
    Silence,
    /// Nobody could be asked, or could answer.
    Refused,
}

impl Exchange {
    pub(super) fn new(name: Name, kind: u16) -> Self {
        let query = Query {
            id: 0,
            flags: Flags::RECURSION_DESIRED,
            question: Question { name, kind, class: IN },
            edns: Some(Edns { udp_size: UDP_SIZE }),
        };
        Self { query, attempts: 0, server: None, transport: None, deadline: None }
    }

    /// The socket whose events concern it.
    pub(super) fn socket(&self) -> Option<Event> {
        Some(match self.transport.as_ref()? {
            Transport::Udp(id) => Event::Udp(*id),
            Transport::Tcp { id, .. } => Event::Tcp(*id),
        })
    }

    /// When the next attempt is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Asks the next resolver.
    pub(super) fn attempt(
        &mut self,
        stack: &mut Stack,
        now: Instant,
        settings: &Dns,
        rng: &mut StdRng,
    ) -> Option<Outcome> {
        let servers = settings.resolvers.len();
        let mut outcome = if self.attempts == 0 { Outcome::Refused } else { Outcome::Silence };
        while servers > 0 && self.attempts < servers * settings.attempts {
            self.close(stack, now);
            self.server = settings.resolvers.get(self.attempts % servers).copied();
            self.attempts += 1;
            self.query.id = rng.random();
            self.deadline = now.checked_add(settings.timeout);
            match self.ask(stack, now) {
                Ok(()) => return None,
                Err(_) => outcome = Outcome::Refused,
            }
        }
        self.close(stack, now);
        Some(outcome)
    }

    fn ask(&mut self, stack: &mut Stack, now: Instant) -> Result<(), Error> {
        let server = self.server.ok_or(Error::NotConnected)?;
        let any: IpAddr = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let id = stack.udp_bind(SocketAddr::new(any, 0))?;
        self.transport = Some(Transport::Udp(id));
        stack.udp_connect(now, id, server)?;
        stack.udp_send(now, id, None, &self.query.emit())
    }

    /// Hears an event of its socket.
    pub(super) fn handle(
        &mut self,
        stack: &mut Stack,
        now: Instant,
        settings: &Dns,
        rng: &mut StdRng,
    ) -> Option<Outcome> {
        let heard = match &mut self.transport {
            Some(Transport::Udp(id)) => {
                let id = *id;
                self.hear_datagrams(stack, id)
            }
            Some(Transport::Tcp { id, unsent, got }) => {
                hear_stream(stack, now, *id, unsent, got, &self.query)
            }
            None => return None,
        };
        let response = match heard {
            Ok(response) => response,
            Err(Error::WouldBlock) => return None,
            Err(_) => return self.attempt_or(stack, now, settings, rng, Outcome::Refused),
        };
        let rcode = response.flags.rcode();
        if response.flags.contains(Flags::TRUNCATED)
            && matches!(self.transport, Some(Transport::Udp(_)))
        {
            return match self.ask_whole(stack, now) {
                Ok(()) => None,
                Err(_) => self.attempt_or(stack, now, settings, rng, Outcome::Refused),
            };
        }
        match rcode {
            Rcode::NoError | Rcode::NameError => {
                self.close(stack, now);
                Some(Outcome::Answer(response))
            }
            Rcode::FormatError | Rcode::NotImplemented if self.query.edns.is_some() => {
                // RFC 6891 section 7: a resolver that is older than EDNS.
                self.query.edns = None;
                self.attempts = self.attempts.saturating_sub(1);
                self.attempt(stack, now, settings, rng)
            }
            _ => self.attempt_or(stack, now, settings, rng, Outcome::Refused),
        }
    }

    /// Asks the next resolver; if there is none, it was `last`.
    fn attempt_or(
        &mut self,
        stack: &mut Stack,
        now: Instant,
        settings: &Dns,
        rng: &mut StdRng,
        last: Outcome,
    ) -> Option<Outcome> {
        self.attempt(stack, now, settings, rng).map(|_| last)
    }

    /// The answer to this question among what has come.
    fn hear_datagrams(&self, stack: &mut Stack, id: UdpId) -> Result<Response, Error> {
        let mut buffer = [0; 4096];
        loop {
            let (len, _) = stack.udp_recv(id, &mut buffer, false)?;
            let answer = Response::parse(buffer.get(..len).unwrap_or_default());
            // Others may guess and send; RFC 5452 section 9.1 says what is the answer.
            if let Some(answer) = answer.ok().filter(|answer| answer.answers(&self.query)) {
                return Ok(answer);
            }
        }
    }

    /// Asks the same resolver over TCP (RFC 7766): the answer is too long for UDP.
    fn ask_whole(&mut self, stack: &mut Stack, now: Instant) -> Result<(), Error> {
        self.close(stack, now);
        let server = self.server.ok_or(Error::NotConnected)?;
        let message = self.query.emit();
        let len = u16::try_from(message.len()).map_err(|_| Error::MessageTooLong)?;
        let unsent = [&len.to_be_bytes(), message.as_slice()].concat();
        let id = stack.tcp_connect(now, server, None)?;
        self.transport = Some(Transport::Tcp { id, unsent, got: Vec::new() });
        Ok(())
    }

    /// Gives its socket back.
    pub(super) fn close(&mut self, stack: &mut Stack, now: Instant) {
        match self.transport.take() {
            Some(Transport::Udp(id)) => stack.udp_close(id),
            Some(Transport::Tcp { id, .. }) => stack.tcp_close(now, id),
            None => {}
        }
    }
}

/// Sends what is left of a question, and takes what has come of the answer.
fn hear_stream(
    stack: &mut Stack,
    now: Instant,
    id: TcpId,
    unsent: &mut Vec<u8>,
    got: &mut Vec<u8>,
    query: &Query,
) -> Result<Response, Error> {
    if !unsent.is_empty() {
        let count = stack.tcp_send(id, unsent)?;
        unsent.drain(..count);
    }
    let mut buffer = [0; 4096];
    loop {
        match stack.tcp_recv(now, id, &mut buffer, false)? {
            0 => return Err(Error::ConnectionReset),
            len => got.extend_from_slice(buffer.get(..len).unwrap_or_default()),
        }
        let Some((len, message)) = got.split_first_chunk() else { continue };
        let Some(message) = message.get(..u16::from_be_bytes(*len).into()) else { continue };
        let answer = Response::parse(message).ok().filter(|answer| answer.answers(query));
        return answer.ok_or(Error::ConnectionReset);
    }
}
