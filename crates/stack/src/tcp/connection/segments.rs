//! The segments that a connection sends.

use std::time::Instant;

use netyard_wire::build::TcpFrame;
use netyard_wire::tcp::{Flags, TcpOptions};
use netyard_wire::{FrameBuf, MacAddr, SeqNumber};

use super::{Connection, Reset, State};
use crate::tcp::receiver::Receiver;
use crate::tcp::sender::Piece;
use crate::tcp::settings::Settings;

/// Length of a TCP header without options, bytes.
const HEADER_LEN: u32 = 20;
/// The same with all options.
const MAX_HEADER_LEN: u16 = 60;
/// The largest IP packet, bytes: how much goes at once is cut to segments later.
const MAX_PACKET: u16 = u16::MAX;

impl Connection {
    /// Bytes of payload in a full segment, if it has no options but timestamps; at most what fits a
    /// packet with all options.
    pub(super) fn segment_len(&self) -> u16 {
        self.payload_room(self.timestamps.len()).min(self.unit())
    }

    /// Bytes of payload that fit the largest packet, whatever its options.
    fn unit(&self) -> u16 {
        let header = if self.ends.is_ipv4() { 20 } else { 40 };
        MAX_PACKET - header - MAX_HEADER_LEN
    }

    /// Bytes of payload in a segment with so many bytes of options (RFC 9293 section 3.7.1, RFC 6691).
    fn payload_room(&self, options: usize) -> u16 {
        let header = if self.ends.is_ipv4() { 20 } else { 40 };
        let path = self.path.mtu.saturating_sub(header + HEADER_LEN);
        let path = u16::try_from(path).unwrap_or(u16::MAX);
        let options = u16::try_from(options).unwrap_or(u16::MAX);
        path.min(self.peer_mss).saturating_sub(options).max(1)
    }

    /// Writes the next segment into `frame`; false if there is none.
    pub(in crate::tcp) fn poll_transmit(
        &mut self,
        now: Instant,
        settings: &Settings,
        frame: &mut FrameBuf,
    ) -> bool {
        match self.state {
            State::Closed => false,
            State::SynSent | State::SynReceived => self.transmit_syn(now, settings, frame),
            _ => self.transmit_data(now, frame),
        }
    }

    fn transmit_syn(&mut self, now: Instant, settings: &Settings, frame: &mut FrameBuf) -> bool {
        let Some(handshake) = self.handshake.as_mut().filter(|handshake| handshake.due) else {
            return false;
        };
        handshake.due = false;
        handshake.first.get_or_insert(now);
        handshake.sent += 1;
        handshake.at = Some(now + self.sender.rtt.timeout());
        let header = if self.ends.is_ipv4() { 20 } else { 40 };
        let mss = self.path.mtu.saturating_sub(header + HEADER_LEN);
        let answer = self.state == State::SynReceived;
        let options = TcpOptions {
            mss: Some(u16::try_from(mss).unwrap_or(u16::MAX)),
            window_scale: settings.window_scaling.then(|| settings.window_scale()),
            sack_permitted: settings.sack,
            timestamps: if answer {
                self.timestamps.option(now)
            } else {
                settings.timestamps.then(|| self.timestamps.first(now))
            },
            ..TcpOptions::default()
        };
        let seq = self.sender.next - 1u32;
        let (ack, flags) = if answer {
            (self.receiver.next, Flags::SYN | Flags::ACK)
        } else {
            (SeqNumber(0), Flags::SYN)
        };
        let window = Receiver::syn_window(settings);
        self.emit(frame, seq, ack, flags, window, options, None);
        true
    }

    fn transmit_data(&mut self, now: Instant, frame: &mut FrameBuf) -> bool {
        let unit = self.unit();
        let unit = usize::from(unit - unit % self.sender.mss);
        let piece = self.sender.next_piece(now, unit, !self.options.no_delay);
        let probe = piece.is_none()
            && (self.sender.window_probe_due || std::mem::take(&mut self.keepalive_due));
        let seq = match &piece {
            Some(piece) => piece.seq,
            None if probe => self.sender.window_probe(),
            None if self.receiver.ack_due => self.sender.next,
            None => return false,
        };
        let (ack, window) = self.receiver.announce();
        let options = TcpOptions {
            timestamps: self.timestamps.option(now),
            sack: self.receiver.take_blocks(),
            ..TcpOptions::default()
        };
        let flags = piece.as_ref().map_or(Flags::ACK, |piece| self.flags_of(piece));
        let segment = self.emit(frame, seq, ack, flags, window, options, piece.as_ref());
        if let Some(piece) = piece {
            self.sender.sent(now, &piece, segment);
        }
        true
    }

    fn flags_of(&self, piece: &Piece) -> Flags {
        let flags = if piece.fin { Flags::ACK | Flags::FIN } else { Flags::ACK };
        // RFC 9293 section 3.9.1: pushed where nothing follows.
        let ends = piece.seq + piece.len == self.sender.una + self.sender.buffer.len();
        if ends && piece.len > 0 { flags | Flags::PSH } else { flags }
    }

    /// Writes a segment, or several in one: how much payload each of them has at most, bytes.
    #[expect(clippy::too_many_arguments, reason = "the fields of a segment")]
    fn emit(
        &self,
        frame: &mut FrameBuf,
        seq: SeqNumber,
        ack: SeqNumber,
        flags: Flags,
        window: u16,
        options: TcpOptions,
        piece: Option<&Piece>,
    ) -> u16 {
        let header = TcpFrame {
            source_mac: self.path.source_mac,
            destination_mac: MacAddr([0; 6]),
            source: self.ends.local(),
            destination: self.ends.remote(),
            seq,
            ack,
            flags,
            window,
            options,
            hop_limit: self.options.hop_limit.unwrap_or(self.path.hop_limit),
            traffic_class: self.options.traffic_class,
            ip_id: 0,
        };
        let header_len = header.header_len();
        frame.bytes.clear();
        frame.bytes.resize(header_len, 0);
        if let Some(piece) = piece {
            self.sender.append(piece, &mut frame.bytes);
        }
        let network = 14 + if self.ends.is_ipv4() { 20 } else { 40 };
        let size = self.payload_room(header_len - network - 20);
        frame.offload = header.emit(&mut frame.bytes, size);
        size
    }

    /// A RST of this connection, with a timestamp if those were agreed on (RFC 7323 section 3.2).
    pub(in crate::tcp) fn reset_frame(&self, now: Instant, reset: Reset) -> FrameBuf {
        let mut frame = FrameBuf::default();
        let flags = if reset.ack.is_some() { Flags::RST | Flags::ACK } else { Flags::RST };
        let ack = reset.ack.unwrap_or_default();
        let options = TcpOptions { timestamps: self.timestamps.option(now), ..<_>::default() };
        self.emit(&mut frame, reset.seq, ack, flags, 0, options, None);
        frame
    }
}
