//! A conversation with the kernel: requests and their acknowledgements, dumps that are whole.

use netyard_sys::netlink::{Protocol, Received, Socket};

use crate::attribute::{ACK, Answer, Attributes, DUMP, INTERRUPTED, Message};
use crate::error::{Error, Result, errno};
use crate::netns::Netns;

/// How often a dump is begun again when what it shows changes meanwhile.
const ATTEMPTS: usize = 32;

/// `NLMSG_ERROR`: an acknowledgement.
const ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a dump.
const DONE: u16 = 3;
/// `NLM_F_CAPPED`: our request's payload is not repeated in the acknowledgement.
const CAPPED: u16 = 0x100;
/// `NLM_F_ACK_TLVS`: attributes follow.
const EXPLAINED: u16 = 0x200;
/// `NLMSGERR_ATTR_MSG`: the kernel's explanation.
const EXPLANATION: u16 = 1;

/// A socket and the numbers of its requests.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Connection {
    /// Opens it in `netns`, or in the calling thread's network namespace.
    pub(crate) fn open(protocol: Protocol, netns: Option<&Netns>) -> Result<Self> {
        let opened = match netns {
            Some(netns) => netns.run(|| Socket::open(protocol))?,
            None => Socket::open(protocol),
        };
        let socket = opened.map_err(|error| Error::io("open a netlink socket", error))?;
        Ok(Self { socket, sequence: 0, buffer: Vec::new() })
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// A number for the next request.
    pub(crate) fn number(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends a request and waits until the kernel has done it.
    pub(crate) fn request(
        &mut self,
        mut message: Message,
        operation: impl Fn() -> String,
    ) -> Result<()> {
        message.add_flags(ACK);
        let sequence = self.send(message, &operation)?;
        loop {
            self.receive(&operation)?;
            for answer in Answer::all(&self.buffer).filter(|answer| answer.sequence == sequence) {
                if answer.kind == ERROR {
                    return acknowledgement(&answer, &operation);
                }
            }
        }
    }

    /// Sends a request whose answer is one message; `None` if `parse` makes nothing of it.
    pub(crate) fn get<T>(
        &mut self,
        message: Message,
        operation: impl Fn() -> String,
        parse: impl Fn(&Answer<'_>) -> Option<T>,
    ) -> Result<Option<T>> {
        let sequence = self.send(message, &operation)?;
        loop {
            self.receive(&operation)?;
            let mine = |answer: &Answer<'_>| answer.sequence == sequence;
            if let Some(answer) = Answer::all(&self.buffer).find(mine) {
                if answer.kind == ERROR {
                    return acknowledgement(&answer, &operation).map(|()| None);
                }
                return Ok(parse(&answer));
            }
        }
    }

    /// Sends a request whose answer is a row of messages, and collects what `parse` makes of
    /// them. Begins again when the row was not of one moment.
    pub(crate) fn dump<T>(
        &mut self,
        message: &Message,
        operation: impl Fn() -> String,
        mut parse: impl FnMut(&Answer<'_>) -> Option<T>,
    ) -> Result<Vec<T>> {
        for _ in 0..ATTEMPTS {
            if let Some(found) = self.dump_once(message.clone(), &operation, &mut parse)? {
                return Ok(found);
            }
        }
        Err(Error::Busy { what: "the kernel's table", action: "read", attempts: ATTEMPTS })
    }

    /// `None`: what is dumped changed meanwhile.
    fn dump_once<T>(
        &mut self,
        mut message: Message,
        operation: &impl Fn() -> String,
        parse: &mut impl FnMut(&Answer<'_>) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        message.add_flags(DUMP);
        let sequence = self.send(message, operation)?;
        let mut found = Vec::new();
        let mut whole = true;
        loop {
            self.receive(operation)?;
            for answer in Answer::all(&self.buffer).filter(|answer| answer.sequence == sequence) {
                whole &= answer.flags & INTERRUPTED == 0;
                match answer.kind {
                    DONE => {
                        // The payload is an int: 0, or why the dump ended early.
                        acknowledgement(&answer, operation)?;
                        return Ok(whole.then_some(found));
                    }
                    ERROR => {
                        acknowledgement(&answer, operation)?;
                    }
                    _ => found.extend(parse(&answer)),
                }
            }
        }
    }

    /// Sends a request; returns its number.
    fn send(&mut self, message: Message, operation: &impl Fn() -> String) -> Result<u32> {
        let sequence = self.number();
        let bytes = message
            .finish(sequence)
            .ok_or_else(|| Error::Invalid(format!("cannot {}: too long a value", operation())))?;
        self.send_bytes(&bytes, operation)?;
        Ok(sequence)
    }

    /// Sends messages that have their numbers already.
    pub(crate) fn send_bytes(&self, bytes: &[u8], operation: &impl Fn() -> String) -> Result<()> {
        self.socket.send(bytes).map_err(|error| match error.raw_os_error() {
            Some(errno::EMSGSIZE) => Error::Refused {
                operation: operation(),
                errno: errno::EMSGSIZE,
                detail: Some(format!(
                    "{} bytes in one transaction; net.core.wmem_max is the limit without \
                     CAP_NET_ADMIN in the first user namespace",
                    bytes.len()
                )),
            },
            _ => Error::io(operation(), error),
        })
    }

    /// Waits for a datagram.
    fn receive(&mut self, operation: &impl Fn() -> String) -> Result<()> {
        match self.socket.receive(&mut self.buffer, true) {
            Ok(Received::Datagram) => Ok(()),
            // A blocking socket without group membership cannot be overrun by notices; answers
            // wait for us to read.
            Ok(Received::Nothing | Received::Overrun) => {
                Err(Error::Malformed { operation: operation() })
            }
            Err(error) => Err(Error::io(operation(), error)),
        }
    }

    /// Takes what has been answered so far: each acknowledgement with its request's number.
    pub(crate) fn acknowledgements(
        &mut self,
        operation: impl Fn(u32) -> String,
    ) -> Result<Vec<(u32, Result<()>)>> {
        let mut found = Vec::new();
        loop {
            match self.socket.receive(&mut self.buffer, false) {
                Ok(Received::Datagram) => {}
                Ok(Received::Nothing) => return Ok(found),
                Ok(Received::Overrun) => {
                    return Err(Error::Malformed { operation: operation(0) });
                }
                Err(error) => return Err(Error::io(operation(0), error)),
            }
            for answer in Answer::all(&self.buffer).filter(|answer| answer.kind == ERROR) {
                let number = answer.sequence;
                found.push((number, acknowledgement(&answer, &|| operation(number))));
            }
        }
    }
}

/// Reads `struct nlmsgerr`: an int, 0 or a negative error number, the header of our request
/// (and its payload unless capped), then attributes with an explanation.
fn acknowledgement(answer: &Answer<'_>, operation: &impl Fn() -> String) -> Result<()> {
    const REQUEST_HEADER: usize = 16;
    let Some((code, rest)) = answer.body.split_first_chunk() else {
        return Err(Error::Malformed { operation: operation() });
    };
    let code = i32::from_ne_bytes(*code);
    if code >= 0 {
        return Ok(());
    }
    let explained = answer.flags & EXPLAINED != 0;
    let skip = match rest.first_chunk() {
        Some(len) if answer.flags & CAPPED == 0 => {
            usize::try_from(u32::from_ne_bytes(*len)).unwrap_or(usize::MAX)
        }
        _ => REQUEST_HEADER,
    };
    let attributes = Attributes(rest.get(skip..).unwrap_or_default());
    let detail = attributes.find(EXPLANATION).filter(|_| explained).map(|text| text.text());
    Err(Error::refused(operation(), code.saturating_neg(), detail))
}
