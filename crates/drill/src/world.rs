//! One stack in virtual time, behind one lock.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use libc::c_int;
use netyard_stack::{Medium, NicIndex, Stack};
use netyard_wire::ethernet::{self, Ethernet};
use netyard_wire::ip::IpPacket;
use netyard_wire::{Features, Frame, FrameBuf, MacAddr, Offload, fit};

use crate::clock::Clock;
use crate::errno::{AGAIN, Errno};
use crate::flags::Flags;
use crate::sockets::Socket;

/// How long others have to end their turn, in real time; they need microseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// Where connections come from that are bound to no address: the networks that packetdrill takes local
/// addresses from.
const HOME: [&str; 2] = ["192.168.0.1/16", "fd3d:fa7b:d17d::1/48"];

/// What packetdrill drives: a stack, its clock, its packets, its sockets.
#[derive(Debug)]
pub(crate) struct World {
    state: Mutex<State>,
    /// Somebody has gone to sleep, was woken, or has come back.
    moved: Condvar,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) stack: Stack,
    pub(crate) clock: Clock,
    pub(crate) sockets: BTreeMap<c_int, Socket>,
    nic: NicIndex,
    /// Packets that the stack has sent, and when.
    sent: VecDeque<(Instant, Vec<u8>)>,
}

impl World {
    /// # Errors
    /// The stack does not take the MTU.
    pub(crate) fn new(flags: Flags) -> Result<Self, netyard_stack::Error> {
        let clock = Clock::new();
        let now = clock.now();
        // Runs of a script are to be alike, and nobody attacks.
        let mut stack = Stack::new(now, [0; 32], flags.settings);
        let nic = stack.add_nic(Medium::Ip, flags.mtu)?;
        let mut state =
            State { stack, clock, sockets: BTreeMap::new(), nic, sent: VecDeque::new() };
        for home in HOME.iter().filter_map(|home| home.parse::<IpNet>().ok()) {
            state.stack.add_address(now, nic, home)?;
        }
        for everywhere in ["0.0.0.0/0", "::/0"].iter().filter_map(|net| net.parse().ok()) {
            state.stack.add_route(everywhere, nic, None)?;
        }
        Ok(Self { state: Mutex::new(state), moved: Condvar::new() })
    }

    /// A call that does not wait.
    pub(crate) fn call<T>(&self, call: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.enter();
        let result = call(&mut state);
        self.leave(state);
        result
    }

    /// A call that waits as long as it comes to [`AGAIN`], if it `waits` at all, at most until `deadline`.
    pub(crate) fn wait<T>(
        &self,
        waits: bool,
        deadline: Option<Instant>,
        mut attempt: impl FnMut(&mut State) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let mut state = self.enter();
        loop {
            let result = attempt(&mut state);
            let now = state.clock.now();
            let in_time = deadline.is_none_or(|deadline| now < deadline);
            if !(waits && in_time && matches!(result, Err(AGAIN))) {
                self.leave(state);
                return result;
            }
            state.settle_packets();
            if state.clock.is_driver() {
                state = self.settle(state);
                let due = [state.next_timeout(), deadline].into_iter().flatten().min();
                // What nothing can end is an error of the script.
                state.step(due.ok_or(Errno(libc::EDEADLK))?);
                continue;
            }
            state.clock.fall_asleep(deadline);
            self.moved.notify_all();
            while state.clock.is_asleep() {
                state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Takes a packet that a peer has sent. False: it is none.
    pub(crate) fn receive(&self, packet: &[u8]) -> bool {
        self.call(|state| state.receive(packet))
    }

    /// The next packet that the stack sends, and when it does so, as the clock tells it; `None`: it
    /// sends nothing any more. Lets the time go on until then.
    pub(crate) fn next_packet(&self) -> Option<(Duration, Vec<u8>)> {
        let mut state = self.enter();
        loop {
            state = self.settle(state);
            if let Some((at, packet)) = state.sent.pop_front() {
                return Some((state.clock.told(at), packet));
            }
            let due = state.next_timeout()?;
            state.step(due);
            self.moved.notify_all();
        }
    }

    /// Lets the time go on by so much.
    pub(crate) fn sleep(&self, time: Duration) {
        let mut state = self.enter();
        let until = state.clock.now() + time;
        loop {
            state = self.settle(state);
            let due = state.next_timeout().filter(|due| *due <= until);
            state.step(due.unwrap_or(until));
            self.moved.notify_all();
            if due.is_none() {
                return self.leave(self.settle(state));
            }
        }
    }

    fn enter(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.clock.enter();
        // The clock creeps on by itself, without letting anything happen.
        let now = state.clock.now();
        while state.stack.poll_timeout().is_some_and(|due| due <= now) {
            state.step(now);
        }
        self.moved.notify_all();
        state
    }

    fn leave(&self, mut state: MutexGuard<'_, State>) {
        state.settle_packets();
        self.moved.notify_all();
    }

    /// Lets all others have their turn.
    fn settle<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.settle_packets();
        self.moved.notify_all();
        while !state.clock.is_settled() {
            let waited = self.moved.wait_timeout(state, PATIENCE);
            let (back, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = back;
            if timeout.timed_out() {
                state.clock.give_up();
            }
        }
        state
    }
}

impl State {
    /// Takes in what the stack has to send and to tell.
    fn settle_packets(&mut self) {
        let now = self.clock.now();
        let mut frame = FrameBuf::default();
        let mut scratch = Vec::new();
        while self.stack.poll_transmit(now, &mut frame).is_some() {
            let frame = Frame { bytes: &frame.bytes, offload: frame.offload };
            let mut emit = |frame: Frame<'_>| {
                let packet = frame.bytes.get(ethernet::HEADER_LEN..).unwrap_or_default();
                self.sent.push_back((now, packet.to_vec()));
            };
            // What the stack builds suits its own offloads.
            let _ = fit(frame, Features::NONE, &mut scratch, &mut emit);
        }
        let mut told = false;
        while self.stack.poll_event().is_some() {
            told = true;
        }
        if told {
            self.clock.wake_all();
        }
    }

    fn next_timeout(&self) -> Option<Instant> {
        [self.stack.poll_timeout(), self.clock.deadline()].into_iter().flatten().min()
    }

    /// Lets the time go on, and happen what is due then.
    fn step(&mut self, to: Instant) {
        self.clock.advance(to);
        self.stack.handle_timeout(self.clock.now());
        self.settle_packets();
    }

    fn receive(&mut self, packet: &[u8]) -> bool {
        let ethertype = match packet.first().map(|byte| byte >> 4) {
            Some(4) => ethernet::IPV4,
            Some(6) => ethernet::IPV6,
            _ => return false,
        };
        // packetdrill makes up this host's addresses, and tells them by using them.
        if let Ok(parsed) = IpPacket::parse(ethertype, packet) {
            self.own(parsed.destination);
        }
        let none = MacAddr([0; 6]);
        let header = Ethernet { destination: none, source: none, ethertype }.emit();
        let bytes = [&header, packet].concat();
        let frame = Frame { bytes: &bytes, offload: Offload::default() };
        self.stack.handle_frame(self.clock.now(), self.nic, frame);
        true
    }

    /// Makes an address one of this host's, if it can be.
    pub(crate) fn own(&mut self, ip: IpAddr) {
        let ip = ip.to_canonical();
        let known = self.stack.addresses(self.nic).iter().any(|net| net.addr() == ip);
        if !known && !ip.is_unspecified() && !ip.is_multicast() {
            // Who uses an address that no host can have finds out by the call itself.
            let _ = self.stack.add_address(self.clock.now(), self.nic, ip.into());
        }
    }
}
