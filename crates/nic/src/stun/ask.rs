//! One question and its answer: retransmission, checks, errors (RFC 8489, sections 6.2.1 and 6.3).

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::attribute::{Change, Kind};
use super::machine::{Datagram, Socket};
use super::message::{Builder, Class, Malformed, Message, Method, TransactionId};

/// What our messages call themselves.
pub const SOFTWARE: &str = concat!("netyard ", env!("CARGO_PKG_VERSION"));

/// When a request is sent again, and when it is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// The wait behind the first copy; it doubles with each one.
    pub first: Duration,
    /// No wait between two copies is longer.
    pub longest: Duration,
    /// Copies that are sent.
    pub copies: u32,
    /// The wait behind the last copy.
    pub last: Duration,
}

impl Schedule {
    /// RFC 8489, section 6.2.1: 500 ms, doubling, 7 copies, and 16 times 500 ms behind the last.
    pub const STANDARD: Self = Self {
        first: Duration::from_millis(500),
        longest: Duration::MAX,
        copies: 7,
        last: Duration::from_secs(8),
    };

    /// For tests, which ask often and must know soon: 3.6 s in all. Where one packet in twenty is lost,
    /// eight requests in a row stay without an answer once in a hundred million times.
    pub const QUICK: Self = Self {
        first: Duration::from_millis(200),
        longest: Duration::from_millis(400),
        copies: 8,
        last: Duration::from_millis(1000),
    };

    /// The wait behind the copy with this number, counted from 0.
    pub fn wait(&self, copy: u32) -> Duration {
        if copy + 1 >= self.copies {
            return self.last;
        }
        self.first.saturating_mul(1_u32.checked_shl(copy).unwrap_or(u32::MAX)).min(self.longest)
    }
}

/// A question: which address do you see?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Whom it is sent to.
    pub to: SocketAddr,
    /// Where the answer must come from.
    pub expect: SocketAddr,
    /// In the form of RFC 3489.
    pub classic: bool,
    /// From where the server should answer, if not from where it was asked.
    pub change: Option<Change>,
}

impl Question {
    /// A plain one, which is answered from where it is sent to.
    pub const fn plain(to: SocketAddr, classic: bool) -> Self {
        Self { to, expect: to, classic, change: None }
    }

    /// One that is to be answered from elsewhere.
    pub const fn from_elsewhere(self, change: Change, expect: SocketAddr) -> Self {
        Self { change: Some(change), expect, ..self }
    }

    /// The request.
    pub fn to_bytes(&self, id: TransactionId) -> Vec<u8> {
        let mut request = Builder::request(id);
        if let Some(change) = self.change {
            request = request.change(change);
        }
        // Servers of RFC 3489's time refuse what they do not know.
        if self.classic {
            request.finish()
        } else {
            request.software(SOFTWARE).finish_with_fingerprint()
        }
    }
}

/// An answer with an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Where it came from.
    pub from: SocketAddr,
    /// The address that the server saw.
    pub mapped: SocketAddr,
    /// Its two forms were there and differ: a box on the way rewrites addresses in packets.
    pub rewritten: bool,
    /// Both its forms were there.
    pub has_both_forms: bool,
    /// The server's other address: OTHER-ADDRESS, or CHANGED-ADDRESS.
    pub other: Option<SocketAddr>,
    /// It was CHANGED-ADDRESS.
    pub other_is_classic: bool,
    /// What the server calls itself.
    pub software: Option<String>,
    /// Copies of the request that had been sent.
    pub copies: u32,
    /// From the first copy to the answer.
    pub rtt: Duration,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Silence.
    #[error("no answer to {copies} requests in {} ms", .waited.as_millis())]
    Timeout {
        /// Requests that were sent.
        copies: u32,
        /// How long it was waited.
        waited: Duration,
    },
    /// An answer came, but from another address than it had to.
    #[error("the answer came from {0}")]
    WrongSource(SocketAddr),
    /// The server refused.
    #[error("the server answered with error {code}{}{reason}", if .reason.is_empty() { "" } else { ": " })]
    Refused {
        /// ERROR-CODE.
        code: u16,
        /// What it says about it.
        reason: String,
    },
    /// The server does not understand attributes of the request (error 420).
    #[error("the server does not know {}", names(.0))]
    Unsupported(Vec<Kind>),
    /// The server sends to another one (error 300).
    #[error("the server sends to {0}")]
    Elsewhere(SocketAddr),
    /// The answer has no address.
    #[error("the answer has no address in it")]
    NoAddress,
    /// The answer needs attributes that are not known here.
    #[error("the answer has required attributes that are not known: {}", names(.0))]
    NotUnderstood(Vec<Kind>),
    /// The bytes on a stream are no STUN.
    #[error("what the server sends is wrong: {0}")]
    Malformed(#[from] Malformed),
    /// A socket could not be opened or used.
    #[error("a socket failed: {0}")]
    Socket(io::ErrorKind),
}

fn names(kinds: &[Kind]) -> String {
    let names: Vec<String> =
        kinds.iter().map(|kind| format!("attribute {:#06x}", kind.0)).collect();
    names.join(", ")
}

/// Attributes of answers that are understood, or may be there without harm.
const UNDERSTOOD: [Kind; 11] = [
    Kind::MAPPED_ADDRESS,
    Kind::XOR_MAPPED_ADDRESS,
    Kind::SOURCE_ADDRESS,
    Kind::CHANGED_ADDRESS,
    Kind::ERROR_CODE,
    Kind::UNKNOWN_ATTRIBUTES,
    Kind::PADDING,
    Kind::MESSAGE_INTEGRITY,
    Kind::MESSAGE_INTEGRITY_SHA256,
    Kind::REALM,
    Kind::NONCE,
];

/// Makes of a message what it says to a question with this id. `None`: it is no answer to it. Times
/// are left at zero.
pub fn read_answer(
    id: TransactionId,
    from: SocketAddr,
    bytes: &[u8],
) -> Option<Result<Answer, Failure>> {
    let message = Message::parse(bytes).ok()?;
    if message.id() != id || message.method() != Method::BINDING {
        return None;
    }
    match message.class() {
        Class::Success => Some(read_success(&message, from)),
        Class::Error => Some(Err(read_error(&message))),
        Class::Request | Class::Indication => None,
    }
}

fn read_success(message: &Message<'_>, from: SocketAddr) -> Result<Answer, Failure> {
    let strange: Vec<Kind> = message
        .attributes()
        .map(|attribute| attribute.kind)
        .filter(|kind| kind.is_required() && !UNDERSTOOD.contains(kind))
        .collect();
    // Classic servers put in what they like; in their time it was to be ignored.
    if !strange.is_empty() && !message.id().is_classic() {
        return Err(Failure::NotUnderstood(strange));
    }
    let mapped = message.mapped().ok_or(Failure::NoAddress)?;
    let plain = message.address(Kind::MAPPED_ADDRESS);
    let hidden = message.xor_mapped();
    let modern = message.address(Kind::OTHER_ADDRESS);
    Ok(Answer {
        from,
        mapped,
        rewritten: plain.is_some_and(|plain| plain != mapped),
        has_both_forms: plain.is_some() && hidden.is_some(),
        other: modern.or_else(|| message.address(Kind::CHANGED_ADDRESS)),
        other_is_classic: modern.is_none(),
        software: message.software(),
        copies: 0,
        rtt: Duration::ZERO,
    })
}

fn read_error(message: &Message<'_>) -> Failure {
    match message.error_code() {
        Ok(Some(error)) => match (error.code, message.address(Kind::ALTERNATE_SERVER)) {
            (300, Some(server)) => Failure::Elsewhere(server),
            (420, _) => Failure::Unsupported(message.unknown_attributes().collect()),
            (code, _) => Failure::Refused { code, reason: error.reason },
        },
        Ok(None) => Failure::Refused { code: 0, reason: String::new() },
        Err(malformed) => Failure::Malformed(malformed),
    }
}

/// A question under way on a socket.
#[derive(Debug)]
pub(crate) struct Asking {
    question: Question,
    id: TransactionId,
    request: Vec<u8>,
    schedule: Schedule,
    began: Instant,
    copies: u32,
    /// When the next copy is due; behind the last one, when it is given up.
    next: Instant,
    wrong_source: Option<SocketAddr>,
}

impl Asking {
    /// Nothing is sent before `begin`.
    pub(crate) fn new(
        socket: &Socket,
        question: Question,
        schedule: Schedule,
        begin: Instant,
    ) -> Self {
        let id = socket.line().id(question.classic);
        let request = question.to_bytes(id);
        Self {
            question,
            id,
            request,
            schedule,
            began: begin,
            copies: 0,
            next: begin,
            wrong_source: None,
        }
    }

    pub(crate) const fn question(&self) -> &Question {
        &self.question
    }

    pub(crate) const fn next(&self) -> Instant {
        self.next
    }

    /// Sends what is due; says so when nothing more is to come.
    pub(crate) fn go_on(&mut self, socket: &Socket, now: Instant) -> Option<Failure> {
        if let Some(kind) = socket.unsent(self.question.to) {
            return Some(Failure::Socket(kind));
        }
        if now < self.next {
            return None;
        }
        if self.copies == self.schedule.copies {
            let waited = now.duration_since(self.began);
            let timeout = Failure::Timeout { copies: self.copies, waited };
            return Some(self.wrong_source.map_or(timeout, Failure::WrongSource));
        }
        socket.send(self.question.to, &self.request);
        self.next = now + self.schedule.wait(self.copies);
        self.copies += 1;
        None
    }

    /// Looks at a datagram.
    pub(crate) fn handle(&mut self, datagram: &Datagram) -> Option<Result<Answer, Failure>> {
        let result = read_answer(self.id, datagram.from, &datagram.bytes)?;
        // The id is known to the server alone, so this is its doing, or that of a box on the way. The
        // right answer may still come.
        if datagram.from != self.question.expect && result.is_ok() {
            self.wrong_source = Some(datagram.from);
            return None;
        }
        Some(result.map(|answer| Answer {
            copies: self.copies,
            rtt: datagram.at.duration_since(self.began),
            ..answer
        }))
    }
}

impl Socket {
    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// There is none, or it is no address.
    pub async fn ask(&self, question: Question, schedule: Schedule) -> Result<Answer, Failure> {
        let mut asking = Asking::new(self, question, schedule, self.line().now());
        loop {
            if let Some(failure) = asking.go_on(self, self.line().now()) {
                return Err(failure);
            }
            let next = asking.next();
            if let Some(result) = self.recv(next, |datagram| asking.handle(datagram)).await {
                return result;
            }
        }
    }
}
