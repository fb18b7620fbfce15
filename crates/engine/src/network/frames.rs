//! Frames of guests and remote machines: looked at, and led to who is to have them.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use netyard_wire::arp::Arp;
use netyard_wire::ethernet::{self, Ethernet};
use netyard_wire::icmp::{Icmp, Ndp};
use netyard_wire::ip::{Fragment, ICMP, ICMPV6, IpPacket, TCP, UDP};
use netyard_wire::membership::{self, Membership};
use netyard_wire::reassembly;
use netyard_wire::tcp::Segment;
use netyard_wire::udp::Datagram;
use netyard_wire::{Checksum, Frame, Offload};

use crate::between::Between;
use crate::dhcp;
use crate::dns::{self, Client, Transport};
use crate::edge::{Edge, PlugId};
use crate::icmp;
use crate::mdns::Mdns;
use crate::neighbor;
use crate::remote::{self, Arrival, NOBODY};
use crate::switch::Verdict;

use super::{Network, Parts};

/// What a frame holds, as far as the network cares.
#[derive(Debug)]
pub(crate) enum Content<'a> {
    /// Address resolution.
    Arp(Arp),
    /// ICMP of either family, whole.
    Icmp(IpPacket<'a>, Icmp<'a>),
    /// All else over IP.
    Ip(IpPacket<'a>),
    /// Neither.
    Other,
}

impl<'a> Content<'a> {
    pub(crate) fn ip(&self) -> Option<&IpPacket<'a>> {
        match self {
            Self::Icmp(ip, _) | Self::Ip(ip) => Some(ip),
            Self::Arp(_) | Self::Other => None,
        }
    }
}

impl Network {
    /// Handles a frame that came in on a plug.
    pub fn handle_frame(
        &mut self,
        now: Instant,
        plug: PlugId,
        frame: Frame<'_>,
        edge: &mut dyn Edge,
    ) {
        if self.remotes.is_plug(plug) {
            return self.handle_remote(now, plug, frame, edge);
        }
        let Ok((header, payload)) = Ethernet::parse(frame.bytes) else {
            self.counters.drop("runt");
            return;
        };
        let verdict = self.switch.ingress(now, plug, &header);
        if let Verdict::Drop(reason) = verdict {
            self.counters.drop(reason);
            return;
        }
        let content = match self.examine(plug, &header, payload, frame.offload.checksum) {
            Ok(content) => content,
            Err(reason) => {
                self.counters.drop(reason);
                return;
            }
        };
        if let Some(heard) = self.snoop(now, plug, &content, frame.offload.checksum) {
            return heard.unwrap_or_else(|reason| self.counters.drop(reason));
        }
        let judged = self.policy.is_about_instances();
        match verdict {
            Verdict::Plug(to) if judged => {
                self.handle_judged(now, (plug, to), frame, &header, &content, edge);
            }
            Verdict::Plug(to) => {
                edge.transmit(to, frame);
            }
            Verdict::Gateway => self.handle_gateway(now, plug, frame, &header, &content, edge),
            Verdict::Flood { gateway } => {
                let group = header.destination.is_multicast().then(|| content.ip()).flatten();
                let snooping = self.snooping.as_ref().zip(group);
                let audience = snooping.map(|(it, ip)| it.audience(now, ip.destination));
                let hears = |to: &PlugId| audience.is_none_or(|audience| audience.has(*to));
                let others = self.switch.plugs().filter(|to| *to != plug).filter(hears);
                if judged {
                    for to in others.collect::<Vec<_>>() {
                        let cx = &mut self.parts(now, edge).cx;
                        if Between::overhears(cx, plug, to, &content) {
                            cx.edge.transmit(to, frame);
                        }
                    }
                } else {
                    for to in others {
                        edge.transmit(to, frame);
                    }
                }
                if gateway {
                    self.handle_gateway(now, plug, frame, &header, &content, edge);
                }
            }
            Verdict::Drop(_) => {}
        }
    }

    /// Heeds what a guest says about groups, or asks. That ends here, whatever it is sent to: hosts answer questions that
    /// come to an address of their own, too (RFC 9776 section 4.1, RFC 9777 section 5.1). `None`: it is nothing of that.
    fn snoop(
        &mut self,
        now: Instant,
        plug: PlugId,
        content: &Content<'_>,
        checksum: Checksum,
    ) -> Option<Result<(), &'static str>> {
        let (snooping, ip) = (self.snooping.as_mut()?, content.ip()?);
        if membership::may_be_part(ip) {
            return Some(Err("fragment"));
        }
        let message = Membership::parse(ip, checksum)?.map_err(|error| error.reason());
        Some(message.and_then(|message| snooping.handle(now, plug, message)))
    }

    /// Handles a frame that came from remote machines.
    fn handle_remote(&mut self, now: Instant, plug: PlugId, frame: Frame<'_>, edge: &mut dyn Edge) {
        let Parts { mut cx, services, .. } = self.parts(now, edge);
        let serves = |address| services.by_address(address).is_some();
        let packet = match remote::arrive(&mut cx, plug, frame, &serves) {
            Ok(Arrival::Gateway(packet)) => packet,
            Ok(Arrival::Done) => return,
            Err(reason) => return self.counters.drop(reason),
        };
        let header = Ethernet { destination: NOBODY, source: NOBODY, ethertype: ethernet::IPV4 };
        let content = match packet.protocol {
            ICMP | ICMPV6 if packet.fragment.is_none() => {
                match Icmp::parse(&packet, frame.offload.checksum) {
                    // Neighbours are on the segment.
                    Ok(Icmp::Ndp(_)) => return self.counters.drop("remote-destination"),
                    Ok(message) => Content::Icmp(packet, message),
                    Err(error) => return self.counters.drop(error.reason()),
                }
            }
            _ => Content::Ip(packet),
        };
        self.handle_gateway(now, plug, frame, &header, &content, edge);
    }

    /// Parses a frame and checks that its sender speaks for itself only.
    pub(super) fn examine<'a>(
        &self,
        plug: PlugId,
        header: &Ethernet,
        payload: &'a [u8],
        checksum: Checksum,
    ) -> Result<Content<'a>, &'static str> {
        let guest = self.guests.by_plug(plug).ok_or("unknown-plug")?;
        let ip = match header.ethertype {
            ethernet::ARP => {
                let arp = Arp::parse(payload).map_err(|error| error.reason())?;
                neighbor::check_arp(guest, header, &arp)?;
                return Ok(Content::Arp(arp));
            }
            ethernet::IPV4 | ethernet::IPV6 => {
                IpPacket::parse(header.ethertype, payload).map_err(|error| error.reason())?
            }
            // A receiver takes the tag off, and what is behind it was not looked at.
            ethernet::VLAN | ethernet::PROVIDER_VLAN => return Err("vlan-tag"),
            _ => return Ok(Content::Other),
        };
        if !guest.may_send_from(ip.source) {
            return Err("spoofed-ip");
        }
        dhcp::check_guest(&ip)?;
        if ip.fragment.is_none() && matches!(ip.protocol, ICMP | ICMPV6) {
            let message = Icmp::parse(&ip, checksum).map_err(|error| error.reason())?;
            neighbor::check_icmp(&self.config, guest, header, &message)?;
            return Ok(Content::Icmp(ip, message));
        }
        Ok(Content::Ip(ip))
    }

    /// Handles what is for the gateway, or goes through it.
    fn handle_gateway(
        &mut self,
        now: Instant,
        plug: PlugId,
        frame: Frame<'_>,
        header: &Ethernet,
        content: &Content<'_>,
        edge: &mut dyn Edge,
    ) {
        if let Content::Ip(ip) | Content::Icmp(ip, _) = content
            && let Some(to) = self.remotes.plug_to(ip.destination)
        {
            let cx = &mut self.parts(now, edge).cx;
            return remote::leave(cx, (plug, header.source), to, frame, ip);
        }
        if let Content::Ip(ip) = content
            && let Some(fragment) = ip.fragment
        {
            if let Some(whole) = self.reassemble(now, plug, frame, ip, fragment) {
                self.handle_reassembled(now, plug, &whole, header, edge);
            }
            return;
        }
        let Parts { mut cx, services, tcp, udp, pings, dns, mdns, vip, dhcp, router, .. } =
            self.parts(now, edge);
        let mac = header.source;
        let cx = &mut cx;
        let ip = match content {
            Content::Ip(ip) => ip,
            Content::Arp(arp) => {
                let is_service = |address| services.by_address(address).is_some();
                neighbor::handle_arp(cx, plug, arp, &is_service);
                return;
            }
            Content::Icmp(ip, Icmp::Ndp(Ndp::RouterSolicitation { .. })) => {
                if let (Some(router), IpAddr::V6(source)) = (router, ip.source) {
                    router.answer(cx, plug, mac, source);
                }
                return;
            }
            Content::Icmp(ip, message) => {
                let taken = match message.unreachable() {
                    Some((quoted, true)) if quoted.protocol == UDP => {
                        udp.handle_closed_port(cx, services, plug, &quoted)
                    }
                    Some((quoted, _)) if quoted.protocol == TCP => {
                        tcp.handle_unreachable(cx, services, plug, &quoted)
                    }
                    _ => false,
                };
                if taken {
                    return;
                }
                let is_service = |address| services.by_address(address).is_some();
                icmp::handle_icmp(cx, pings, plug, header, ip, message, &is_service);
                return;
            }
            Content::Other => {
                // A broadcast of another protocol concerns the guests only.
                if !header.destination.is_multicast() {
                    cx.counters.drop("unknown-ethertype");
                }
                return;
            }
        };
        let parsed = match ip.protocol {
            TCP => Segment::parse(ip, frame.offload.checksum).map(|segment| {
                if vip.handle_frame(cx, services, frame, ip, &segment) {
                    return;
                }
                let asks = tcp.handle_segment(cx, services, plug, mac, ip, &segment);
                if let Some(client) = asks {
                    dns.open(cx, client);
                }
            }),
            UDP => Datagram::parse(ip, frame.offload.checksum).map(|datagram| {
                let gateway = cx.config.is_gateway(ip.destination);
                if gateway && datagram.destination_port == dns::PORT {
                    let client = Client {
                        plug: Some(plug),
                        source: SocketAddr::new(ip.source, datagram.source_port),
                        destination: SocketAddr::new(ip.destination, dns::PORT),
                        transport: Transport::Frame(plug, mac),
                    };
                    dns.handle_query(cx, services, client, datagram.payload);
                } else if let Some(mdns) = mdns
                    && Mdns::listens(ip, &datagram)
                {
                    if let Err(reason) = mdns.handle_guest(cx, plug, ip, &datagram) {
                        cx.counters.drop(reason);
                    }
                } else if let Some(dhcp) = dhcp
                    && dhcp::Gateway::listens(cx.config, ip, &datagram)
                {
                    let guest = cx.guests.by_plug(plug);
                    let asker = dhcp::Asker { plug, mac, guest, taken: &|_| false };
                    dhcp.handle_datagram(cx, &asker, ip, &datagram);
                } else {
                    let gso = frame.offload.gso;
                    udp.handle_datagram(cx, services, plug, mac, ip, &datagram, gso);
                }
            }),
            _ => {
                cx.counters.drop("unknown-protocol");
                return;
            }
        };
        if let Err(error) = parsed {
            self.counters.drop(error.reason());
        }
    }

    /// Takes a fragment; the frame of its datagram, if that is whole now.
    pub(super) fn reassemble(
        &mut self,
        now: Instant,
        plug: PlugId,
        frame: Frame<'_>,
        ip: &IpPacket<'_>,
        fragment: Fragment,
    ) -> Option<Vec<u8>> {
        // What goes to a group concerns the guests only, and TCP makes no fragments.
        if icmp::is_group(&self.config, ip.destination) {
            return None;
        }
        if !matches!(ip.protocol, UDP | ICMP | ICMPV6) {
            self.counters.drop("fragment");
            return None;
        }
        let payload = self.fragments.entry(plug).or_default().handle(now, ip, fragment)?;
        let packet = reassembly::join(ip, &payload)?;
        Some([frame.bytes.get(..ethernet::HEADER_LEN)?, &packet].concat())
    }

    /// Handles the frame of a datagram that has come in fragments.
    fn handle_reassembled(
        &mut self,
        now: Instant,
        plug: PlugId,
        bytes: &[u8],
        header: &Ethernet,
        edge: &mut dyn Edge,
    ) {
        let payload = bytes.get(ethernet::HEADER_LEN..).unwrap_or_default();
        match self.examine(plug, header, payload, Checksum::Present) {
            // RFC 6980 section 5: neighbour discovery is never in fragments.
            Ok(Content::Icmp(_, Icmp::Ndp(_))) => self.counters.drop("fragment"),
            Ok(content) => {
                let frame = Frame { bytes, offload: Offload::default() };
                self.handle_gateway(now, plug, frame, header, &content, edge);
            }
            Err(reason) => self.counters.drop(reason),
        }
    }
}
