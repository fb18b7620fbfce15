//! An application that does what a random schedule says, on whatever TCP.

// Each test binary uses its own part; a test fails by panicking.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, Instant};

use netyard_stack::{Error, Stack, State, TcpId};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

/// One end of a connection.
pub trait Socket {
    /// How many bytes were taken; `None`: there is no room.
    fn send(&mut self, bytes: &[u8]) -> Option<usize>;
    /// How many bytes have come, 0 at the end; `None`: none yet.
    fn recv(&mut self, into: &mut [u8]) -> Option<usize>;
    /// Nothing more will be sent.
    fn finish(&mut self);
}

/// An end on our stack.
pub struct Ours<'a>(pub &'a mut Stack, pub TcpId, pub Instant);

impl Socket for Ours<'_> {
    fn send(&mut self, bytes: &[u8]) -> Option<usize> {
        or_wait(self.0.tcp_send(self.1, bytes))
    }

    fn recv(&mut self, into: &mut [u8]) -> Option<usize> {
        or_wait(self.0.tcp_recv(self.2, self.1, into, false))
    }

    fn finish(&mut self) {
        self.0.tcp_shutdown(self.1, false, true).unwrap();
    }
}

/// True once a connection of our stack has opened.
pub fn is_open(stack: &Stack, id: TcpId) -> bool {
    stack.tcp_info(id).unwrap().state != State::SynSent
}

fn or_wait(done: Result<usize, Error>) -> Option<usize> {
    match done {
        Err(Error::WouldBlock) => None,
        done => Some(done.unwrap()),
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Write(usize),
    Pause(Duration),
    /// Goes on when so many bytes of the other end have come.
    Await(usize),
}

/// One end: what it writes when, and how it reads.
#[derive(Debug)]
pub struct Application {
    steps: Vec<Step>,
    next: usize,
    /// Of the step that is a write: what is done of it.
    done: usize,
    sent: Vec<u8>,
    /// What it has received so far.
    pub got: Vec<u8>,
    /// What a read takes at most, and how long it rests after one.
    read: usize,
    rest: Duration,
    write_at: Instant,
    read_at: Instant,
    finished: bool,
    ended: bool,
    rng: SmallRng,
}

/// Two applications that suit each other: what one waits for, the other sends without waiting.
pub fn pair(seed: u64, now: Instant, most: usize) -> [Application; 2] {
    let mut rng = SmallRng::seed_from_u64(seed);
    let first = Application::random(&mut rng, now, most, None);
    let promised = first.steps.iter().map(Step::len).sum();
    let second = Application::random(&mut rng, now, most, Some(promised));
    if rng.random() { [first, second] } else { [second, first] }
}

impl Step {
    fn len(&self) -> usize {
        if let Self::Write(len) = self { *len } else { 0 }
    }
}

impl Application {
    /// `promised`: what the other end will send in any case.
    fn random(rng: &mut SmallRng, now: Instant, most: usize, promised: Option<usize>) -> Self {
        let steps: Vec<Step> = (0..rng.random_range(0..12))
            .map(|_| match (rng.random_range(0..4), promised) {
                (0, _) => Step::Pause(Duration::from_millis(rng.random_range(0..400))),
                (1, Some(promised)) => Step::Await(rng.random_range(0..=promised)),
                // Small ones and large ones alike.
                _ => Step::Write(most >> rng.random_range(0..16)),
            })
            .collect();
        let read = 1 << rng.random_range(8..18);
        // smoltcp forgets what was not read ten seconds after the end.
        let rests = read >= 8192 && rng.random_bool(0.3);
        Self {
            steps,
            next: 0,
            done: 0,
            sent: Vec::new(),
            got: Vec::new(),
            read,
            rest: Duration::from_millis(if rests { rng.random_range(0..20) } else { 0 }),
            write_at: now,
            read_at: now,
            finished: false,
            ended: false,
            rng: SmallRng::seed_from_u64(rng.random()),
        }
    }

    /// True once it has written and read everything.
    pub fn is_over(&self) -> bool {
        self.finished && self.ended
    }

    /// Checks that it has received what the other end sent.
    pub fn assert_heard(&self, other: &Self, what: &str) {
        assert!(self.is_over(), "{what}: it has not ended, {self:?}");
        assert_eq!(self.got.len(), other.sent.len(), "{what}");
        assert!(self.got == other.sent, "{what}: the same number of other bytes");
    }

    /// Does what can be done now; when there is more to do though nothing happens.
    pub fn drive(&mut self, now: Instant, socket: &mut impl Socket) -> Option<Instant> {
        let mut buffer = vec![0; self.read];
        while !self.ended && self.read_at <= now {
            match socket.recv(&mut buffer) {
                None => break,
                Some(0) => self.ended = true,
                Some(len) => {
                    self.got.extend_from_slice(&buffer[..len]);
                    self.read_at = now + self.rest;
                }
            }
        }
        while !self.finished && self.write_at <= now {
            match self.steps.get(self.next) {
                None => {
                    socket.finish();
                    self.finished = true;
                }
                Some(Step::Pause(time)) => {
                    self.write_at = now + *time;
                    self.next += 1;
                }
                Some(Step::Await(len)) if self.got.len() < *len => break,
                Some(Step::Write(len)) if self.done < *len => {
                    let bytes: Vec<u8> =
                        (0..(len - self.done).min(65_536)).map(|_| self.rng.random()).collect();
                    let Some(taken) = socket.send(&bytes) else { break };
                    self.sent.extend_from_slice(&bytes[..taken]);
                    self.done += taken;
                }
                Some(Step::Await(_) | Step::Write(_)) => {
                    self.done = 0;
                    self.next += 1;
                }
            }
        }
        let later = [(!self.ended, self.read_at), (!self.finished, self.write_at)];
        later.into_iter().filter(|(open, at)| *open && *at > now).map(|(_, at)| at).min()
    }
}
