//! What is sent to guests: headers, and payload peeked behind them.

use std::io;
use std::time::Duration;

use netyard_wire::build::TcpFrame;
use netyard_wire::tcp::{Flags, TcpOptions};
use netyard_wire::{Frame, MacAddr, SeqNumber};

use super::flow::{Flow, Key, Phase, mss_of};
use super::receiver::WINDOW_SCALE;
use crate::context::{Context, HOP_LIMIT};
use crate::edge::PlugId;

/// How soon a frame that a plug refused is offered again.
const BLOCKED_RETRY: Duration = Duration::from_millis(2);

/// Sends the next piece to the guest, if there is one. False if there is not.
pub(super) fn send_piece(
    cx: &mut Context<'_>,
    flow: &mut Flow,
    frame: &mut [u8],
) -> io::Result<bool> {
    let header = TcpFrame::header_len(&blank(cx, flow));
    let mss = usize::from(flow.sender.mss.max(1));
    // The longest IP packet, in whole segments; one at least, where the MTU is about as long.
    let largest = ((usize::from(u16::MAX) - 60) / mss).max(1) * mss;
    let nothing_new = !flow.readable && flow.sender.fin.is_none();
    let Some(piece) = flow.sender.next_piece(largest) else {
        if flow.sender.window_is_closed() && !nothing_new {
            flow.sender.wait_for_window(cx.now);
        }
        return Ok(false);
    };
    if nothing_new && !piece.again {
        return Ok(false);
    }
    // The FIN is a sequence number, not a byte.
    let until_fin = match flow.sender.fin {
        Some(fin) => usize::try_from(fin - piece.seq).unwrap_or(0),
        None => usize::MAX,
    };
    let wanted = piece.len.min(until_fin);
    let mut count = 0;
    if wanted > 0 {
        let offset = usize::try_from(piece.seq - flow.sender.una).unwrap_or(0);
        let Some(payload) = frame.get_mut(header..header + wanted) else { return Ok(false) };
        let peeked = match &flow.preamble {
            Some(preamble) => preamble.peek(cx, flow.socket, offset, payload),
            None => cx.edge.peek(flow.socket, offset, payload),
        };
        match peeked {
            Ok(0) if piece.again => {
                // What was sent once is still queued; a stream that has lost it is broken.
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(0) => {
                flow.sender.fin = Some(piece.seq);
                flow.readable = false;
            }
            Ok(peeked) => count = peeked,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                flow.readable = false;
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
    }
    let end = piece.seq + count;
    let fin = flow.sender.fin == Some(end);
    let mut flags = Flags::ACK;
    if fin {
        flags = flags | Flags::FIN;
    }
    if count > 0 && (count < wanted || fin) {
        flags = flags | Flags::PSH;
    }
    let mut headers = blank(cx, flow);
    headers.seq = piece.seq;
    headers.flags = flags;
    flow.receiver.answer(cx.now);
    let (ack, window) = flow.receiver.announce();
    headers.ack = ack;
    headers.window = window;
    let Some(bytes) = frame.get_mut(..header + count) else { return Ok(false) };
    let offload = headers.emit(bytes, flow.sender.mss);
    if !cx.edge.transmit(flow.plug, Frame { bytes, offload }) {
        flow.blocked_until = Some(cx.now + BLOCKED_RETRY);
        return Ok(false);
    }
    if count < wanted && !piece.again && !flow.ended {
        // Nothing is behind it, and what comes will be told.
        flow.readable = false;
    }
    flow.ip_id = flow.ip_id.wrapping_add(u16::try_from(count / mss + 1).unwrap_or(1));
    flow.sender.sent(cx.now, piece, count + usize::from(fin));
    Ok(true)
}

/// Sends SYN or SYN-ACK, as the phase wants.
pub(super) fn send_syn(cx: &mut Context<'_>, flow: &mut Flow, frame: &mut [u8]) {
    let mut headers = blank(cx, flow);
    headers.seq = flow.sender.una;
    let answering = flow.phase == Phase::SynReceived;
    headers.options = TcpOptions {
        mss: Some(mss_of(cx.config.mtu, flow.key.guest.ip())),
        window_scale: (!answering || flow.receiver.scaled).then_some(WINDOW_SCALE),
        sack_permitted: !answering || flow.receiver.sack,
        ..TcpOptions::default()
    };
    if answering {
        headers.flags = Flags::SYN | Flags::ACK;
        // RFC 7323 section 2.2: the window of a SYN is not scaled.
        let scaled = std::mem::replace(&mut flow.receiver.scaled, false);
        (headers.ack, headers.window) = flow.receiver.announce();
        flow.receiver.scaled = scaled;
    } else {
        headers.flags = Flags::SYN;
        headers.window = u16::MAX;
    }
    send_headers(cx, flow.plug, &headers, frame);
}

/// Sends a bare acknowledgement, with SACK blocks if there are gaps.
pub(super) fn send_ack(cx: &mut Context<'_>, flow: &mut Flow, frame: &mut [u8]) {
    let mut headers = blank(cx, flow);
    headers.seq = flow.sender.next;
    headers.flags = Flags::ACK;
    (headers.ack, headers.window) = flow.receiver.announce();
    if flow.receiver.sack {
        headers.options.sack = flow.receiver.ahead.blocks();
    }
    send_headers(cx, flow.plug, &headers, frame);
}

/// Asks the guest for its window, or whether it is there.
pub(super) fn probe(cx: &mut Context<'_>, flow: &mut Flow, frame: &mut [u8]) {
    let mut headers = blank(cx, flow);
    headers.seq = flow.sender.probe();
    headers.flags = Flags::ACK;
    (headers.ack, headers.window) = flow.receiver.announce();
    send_headers(cx, flow.plug, &headers, frame);
}

/// The headers that every segment of a flow has.
fn blank(cx: &Context<'_>, flow: &Flow) -> TcpFrame {
    TcpFrame {
        source_mac: cx.config.gateway_mac,
        destination_mac: flow.mac,
        source: flow.key.remote,
        destination: flow.key.guest,
        seq: SeqNumber(0),
        ack: SeqNumber(0),
        flags: Flags(0),
        window: 0,
        options: TcpOptions::default(),
        hop_limit: HOP_LIMIT,
        traffic_class: 0,
        ip_id: flow.ip_id,
    }
}

/// A segment without a flow.
pub(super) struct Reply {
    pub(super) key: Key,
    pub(super) plug: PlugId,
    pub(super) mac: MacAddr,
    pub(super) seq: SeqNumber,
    pub(super) ack: SeqNumber,
    pub(super) flags: Flags,
}

impl Reply {
    pub(super) fn send(&self, cx: &mut Context<'_>, frame: &mut [u8]) {
        let headers = TcpFrame {
            source_mac: cx.config.gateway_mac,
            destination_mac: self.mac,
            source: self.key.remote,
            destination: self.key.guest,
            seq: self.seq,
            ack: self.ack,
            flags: self.flags,
            window: 0,
            options: TcpOptions::default(),
            hop_limit: HOP_LIMIT,
            traffic_class: 0,
            ip_id: 0,
        };
        send_headers(cx, self.plug, &headers, frame);
    }
}

fn send_headers(cx: &mut Context<'_>, plug: PlugId, headers: &TcpFrame, frame: &mut [u8]) {
    let Some(bytes) = frame.get_mut(..headers.header_len()) else { return };
    let offload = headers.emit(bytes, u16::MAX);
    // A lost segment without payload is made good by the timers like any other.
    cx.edge.transmit(plug, Frame { bytes, offload });
}
