//! What ICMP says about connections that are not open yet, both ways.
//!
//! A guest whose connection cannot be because there is no way to the remote is told that by ICMP, as by any
//! router, and by a reset, for those who do not listen. A guest that answers a connection into the network with
//! ICMP (a firewall of its own) has refused it.

use std::io;

use netyard_wire::build::TcpFrame;
use netyard_wire::icmp::IcmpError;
use netyard_wire::tcp::{Flags, TcpOptions};
use netyard_wire::{MacAddr, Quoted, SeqNumber, ethernet};

use super::Tcp;
use super::flow::{Key, Phase};
use crate::context::{Context, HOP_LIMIT};
use crate::edge::PlugId;
use crate::service::Services;

/// What ICMP says of a connect that has failed; `None` if that was the remote's own word, or nobody's.
pub(super) fn error_of(error: &io::Error) -> Option<IcmpError> {
    match error.kind() {
        io::ErrorKind::HostUnreachable => Some(IcmpError::HostUnreachable),
        io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown
        | io::ErrorKind::AddrNotAvailable => Some(IcmpError::NetworkUnreachable),
        _ => None,
    }
}

/// Tells a guest by ICMP why the connection is not to be for which it has sent a SYN with this number.
pub(super) fn report(
    cx: &mut Context<'_>,
    key: Key,
    (plug, mac): (PlugId, MacAddr),
    seq: SeqNumber,
    error: IcmpError,
) {
    let headers = TcpFrame {
        source_mac: mac,
        destination_mac: cx.config.gateway_mac,
        source: key.guest,
        destination: key.remote,
        seq,
        ack: SeqNumber(0),
        flags: Flags::SYN,
        window: 0,
        options: TcpOptions::default(),
        hop_limit: HOP_LIMIT,
        traffic_class: 0,
        ip_id: 0,
    };
    let mut frame = vec![0; headers.header_len()];
    headers.emit(&mut frame, u16::MAX);
    let syn = frame.get(ethernet::HEADER_LEN..).unwrap_or_default();
    let gateway = (cx.gateway_for(key.guest.ip()), HOP_LIMIT);
    cx.send_icmp_error((plug, mac), gateway, key.guest.ip(), error, syn);
}

impl Tcp {
    /// Handles a guest's word that what it quotes does not reach anybody. True if that was a connection into
    /// the network that waits for its answer: it goes on to the next address or instance.
    pub(crate) fn handle_unreachable(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        plug: PlugId,
        quoted: &Quoted,
    ) -> bool {
        let key = Key { guest: quoted.receiver(), remote: quoted.sender() };
        let Some(index) = self.by_key.get(&key).copied() else { return false };
        let asked = self.flows.get(index as usize).is_some_and(|flow| {
            flow.plug == plug
                && flow.phase == Phase::SynSent
                && quoted.seq + 1u32 == flow.sender.next
        });
        if asked {
            self.next_attempt(cx, services, index);
        }
        asked
    }
}
