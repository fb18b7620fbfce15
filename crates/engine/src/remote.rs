//! Remote machines: networks behind a member that has joined a hub.
//!
//! They are routed, not switched. What a guest sends to one of their networks goes to the member's plug, and
//! what comes from there to a guest, each with one hop less, super-packets as they are; both ends see each
//! other's true addresses. Beside guests, remote machines reach services, and ping the gateway: nothing else in
//! the network, and nothing by it. Packets from there come from their networks alone.
//!
//! The plug is no station of the segment: it has no address, and gets what is routed to it, never what is
//! flooded. Hardware addresses mean nothing on it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use netyard_wire::dns::{Query, Response, Table, Zone};
use netyard_wire::ethernet::{self, Ethernet};
use netyard_wire::icmp::IcmpError;
use netyard_wire::ip::{self, IpPacket};
use netyard_wire::{Frame, MacAddr};

use crate::config::{Config, Mode};
use crate::context::Context;
use crate::control::{ControlError, ControlErrorKind, Remote, RemoteLink, RemoteState, Traffic};
use crate::edge::PlugId;
use crate::icmp;
use crate::sending::Refusal;

/// The hardware address of both ends of a plug that has none.
pub(crate) const NOBODY: MacAddr = MacAddr([0; 6]);

/// The name of the hub in its zone, which serves it.
const HUB: &str = "hub";

/// The remote machines of a network, by the member that brings them.
#[derive(Debug, Default)]
pub(crate) struct Remotes {
    by_member: BTreeMap<String, Known>,
}

/// What one member has told.
#[derive(Debug)]
struct Known {
    remote: Remote,
    /// User mode only.
    plug: Option<PlugId>,
    /// Without those that overlap the network itself.
    networks: Vec<IpNet>,
    names: Option<(Zone, Table)>,
    /// Networks that cannot be reached, as they overlap this one.
    overlapping: Vec<IpNet>,
}

impl Remotes {
    /// Heeds what a member tells; `plug` is its plug, where it has just brought one.
    ///
    /// # Errors
    /// `Malformed`: there is no plug, in user mode.
    pub(crate) fn set(
        &mut self,
        config: &Config,
        member: &str,
        remote: Remote,
        plug: Option<PlugId>,
    ) -> Result<(), ControlError> {
        let plug = plug.or_else(|| self.by_member.get(member)?.plug);
        if plug.is_none() && config.mode == Mode::User {
            return Err(ControlError {
                kind: ControlErrorKind::Malformed,
                message: format!("nothing leads to the remote machines of `{member}`"),
            });
        }
        let overlaps = |net: &IpNet| match net {
            IpNet::V4(net) => config.subnet4.contains(net) || net.contains(&config.subnet4),
            IpNet::V6(net) => config.subnet6.contains(net) || net.contains(&config.subnet6),
        };
        let (overlapping, networks): (Vec<_>, Vec<_>) =
            remote.networks.iter().copied().partition(overlaps);
        let names = remote.zone.as_ref().map(|zone| {
            let subnets = networks.iter().map(|net| (net.network(), net.prefix_len()));
            let is_there =
                |address: &IpAddr| networks.iter().any(|network| network.contains(address));
            // Only remote machines are named, whatever the hub says.
            let honest = remote.names.iter().filter(|name| name.addresses.iter().all(is_there));
            let names = honest.map(|name| (name.name.as_str(), &name.addresses[..]));
            (Zone::new(zone, HUB, subnets), Table::new(zone, names))
        });
        let known = Known { remote, plug, networks, names, overlapping };
        self.by_member.insert(member.to_owned(), known);
        Ok(())
    }

    /// Whether a member has brought some.
    pub(crate) fn has(&self, member: &str) -> bool {
        self.by_member.contains_key(member)
    }

    /// The remote machines of a member go.
    pub(crate) fn remove_member(&mut self, member: &str) -> bool {
        self.by_member.remove(member).is_some()
    }

    /// Whether this is the plug of some.
    pub(crate) fn is_plug(&self, plug: PlugId) -> bool {
        self.by_member.values().any(|known| known.plug == Some(plug))
    }

    /// A plug has gone, and whoever was behind it; false if it was none of these.
    pub(crate) fn remove_plug(&mut self, plug: PlugId) -> bool {
        let before = self.by_member.len();
        self.by_member.retain(|_, known| known.plug != Some(plug));
        self.by_member.len() < before
    }

    /// The plug that leads to an address: that of the longest prefix.
    pub(crate) fn plug_to(&self, address: IpAddr) -> Option<PlugId> {
        let all = self.by_member.values().filter_map(|known| Some((known.plug?, &known.networks)));
        let found = all.flat_map(|(plug, nets)| {
            nets.iter()
                .filter(|net| net.contains(&address))
                .map(move |net| (net.prefix_len(), plug))
        });
        found.max_by_key(|(len, _)| *len).map(|(_, plug)| plug)
    }

    /// The links that lead to remote machines, in bridge mode.
    pub(crate) fn interfaces(&self) -> Vec<String> {
        let known = self.by_member.values();
        known.filter_map(|known| known.remote.interface.clone()).collect()
    }

    /// The answer to a query about a name of remote machines, or the name of an address of theirs.
    pub(crate) fn answer(&self, query: &Query) -> Option<Response> {
        let zones = self.by_member.values().filter_map(|known| known.names.as_ref());
        zones.into_iter().find_map(|(zone, table)| zone.answer(query, table))
    }

    /// What `inspect` shows; the driver knows the traffic of plugs.
    pub(crate) fn state(&self) -> Vec<(Option<PlugId>, RemoteState)> {
        let state = |(member, known): (&String, &Known)| {
            let state = RemoteState {
                remote: known.remote.clone(),
                member: member.clone(),
                from_remote: Traffic::default(),
                to_remote: Traffic::default(),
            };
            (known.plug, state)
        };
        self.by_member.iter().map(state).collect()
    }

    /// What is in the way, and what to do about it.
    pub(crate) fn warnings(&self, config: &Config) -> Vec<String> {
        self.by_member.values().flat_map(|known| known.warnings(config)).collect()
    }
}

impl Known {
    fn warnings(&self, config: &Config) -> Vec<String> {
        let Remote { hub, link, name, unaccepted, .. } = &self.remote;
        let mut warnings = Vec::new();
        match link {
            RemoteLink::Connecting(Some(why)) => {
                warnings.push(format!("the hub {hub} is not reached: {why}; it is tried again"));
            }
            RemoteLink::Refused(why) => {
                warnings.push(format!("the hub {hub} has refused network `{}`: {why}", config.name))
            }
            RemoteLink::Connecting(None) | RemoteLink::Connected => {}
        }
        if let (RemoteLink::Connected, Some(name)) = (link, name) {
            warnings.extend(unaccepted.iter().map(|net| {
                format!(
                    "the hub {hub} has not accepted {net}: have its administrator say \
                     `netyard peers accept {name} {net}`"
                )
            }));
        }
        warnings.extend(self.overlapping.iter().map(|net| {
            format!(
                "{net} of the hub {hub} overlaps network `{}` and is not reached: give the network \
                 another `subnet`",
                config.name
            )
        }));
        warnings
    }
}

/// Where a packet from remote machines goes.
pub(crate) enum Arrival<'a> {
    /// It was sent on to a guest, or dropped.
    Done,
    /// It is for the gateway to handle.
    Gateway(IpPacket<'a>),
}

/// Handles a frame from the plug of remote machines; `serves` says which addresses are those of services.
pub(crate) fn arrive<'a>(
    cx: &mut Context<'_>,
    plug: PlugId,
    frame: Frame<'a>,
    serves: &dyn Fn(IpAddr) -> bool,
) -> Result<Arrival<'a>, &'static str> {
    let (header, payload) = Ethernet::parse(frame.bytes).map_err(|_| "runt")?;
    let packet = IpPacket::parse(header.ethertype, payload).map_err(|error| error.reason())?;
    if cx.remotes.plug_to(packet.source) != Some(plug) {
        return Err("remote-source");
    }
    if let Some(guest) = cx.guests.by_address(packet.destination) {
        let to = (guest.plug, guest.mac);
        route(cx, (plug, NOBODY), to, frame, &packet);
        return Ok(Arrival::Done);
    }
    let pings = matches!(packet.protocol, ip::ICMP | ip::ICMPV6)
        && cx.config.is_gateway(packet.destination);
    if pings || serves(packet.destination) {
        return Ok(Arrival::Gateway(packet));
    }
    Err("remote-destination")
}

/// Sends a guest's packet on to remote machines; `from` is the guest's plug with its address.
pub(crate) fn leave(
    cx: &mut Context<'_>,
    from: (PlugId, MacAddr),
    to: PlugId,
    frame: Frame<'_>,
    packet: &IpPacket<'_>,
) {
    // Link-local addresses mean nothing there.
    if cx.config.is_local(packet.source) {
        route(cx, from, (to, NOBODY), frame, packet);
    } else {
        cx.counters.drop("remote-link-local");
    }
}

/// Sends a packet on, as a router does.
fn route(
    cx: &mut Context<'_>,
    from: (PlugId, MacAddr),
    (plug, mac): (PlugId, MacAddr),
    frame: Frame<'_>,
    packet: &IpPacket<'_>,
) {
    let whole = ethernet::HEADER_LEN + packet.len();
    // What is behind the packet is padding of the link that it came by.
    let Some(bytes) = frame.bytes.get(ethernet::HEADER_LEN..whole) else {
        return cx.counters.drop("truncated");
    };
    let header = Ethernet {
        destination: mac,
        source: cx.config.gateway_mac,
        ethertype: if packet.source.is_ipv4() { ethernet::IPV4 } else { ethernet::IPV6 },
    };
    cx.scratch.clear();
    cx.scratch.extend_from_slice(&header.emit());
    cx.scratch.extend_from_slice(bytes);
    let copy = cx.scratch.get_mut(ethernet::HEADER_LEN..).unwrap_or_default();
    if !ip::take_hop(copy) {
        let refusal = Refusal::told("hop-limit", IcmpError::TimeExceeded);
        return icmp::refuse(cx, from.0, from.1, packet, refusal);
    }
    let offload = frame.offload;
    // The tunnel is a stream and takes packets of any length; what is too long for a link behind it, its hub
    // says.
    if mac == NOBODY || offload.gso.is_some() {
        cx.edge.transmit(plug, Frame { bytes: cx.scratch, offload });
    } else if packet.stays_whole() && packet.len() > usize::from(cx.config.mtu) {
        let refusal = Refusal::told("remote-over-mtu", IcmpError::TooBig(cx.config.mtu.into()));
        icmp::refuse(cx, from.0, from.1, packet, refusal);
    } else {
        cx.transmit_cut(plug, offload);
    }
}

#[cfg(test)]
mod tests {
    use netyard_wire::build;
    use netyard_wire::icmp::Icmp;
    use netyard_wire::{Gso, GsoKind, Offload};

    use super::*;
    use crate::fake::{Bench, GUEST_MAC, PLUG, guest};

    const REMOTE: PlugId = PlugId(77);
    const FAR: &str = "10.1.1.3";

    fn remote(networks: &[&str]) -> Remote {
        Remote {
            hub: "192.0.2.10:6441".into(),
            link: RemoteLink::Connected,
            name: Some("office".into()),
            addresses: vec!["10.1.1.5".parse().unwrap()],
            networks: networks.iter().map(|net| net.parse().unwrap()).collect(),
            unaccepted: Vec::new(),
            zone: Some("lab.internal".into()),
            names: Vec::new(),
            interface: None,
        }
    }

    fn bench() -> Bench {
        let mut bench = Bench::new();
        let told = remote(&["10.1.1.0/24", "fd00:5::/64"]);
        bench.remotes.set(&bench.config, "yard", told, Some(REMOTE)).unwrap();
        bench
    }

    /// A datagram between these addresses.
    fn datagram(from: &str, to: &str, hop_limit: u8, len: usize) -> (Vec<u8>, Offload) {
        let at = |text: &str, port| std::net::SocketAddr::new(text.parse().unwrap(), port);
        let mut bytes = Vec::new();
        let (from, to) = (at(from, 1), at(to, 2));
        let offload =
            build::udp_frame(&mut bytes, GUEST_MAC, NOBODY, from, to, hop_limit, &vec![7; len]);
        (bytes, offload)
    }

    fn packet(bytes: &[u8]) -> (Ethernet, IpPacket<'_>) {
        let (header, packet) = Ethernet::parse(bytes).unwrap();
        (header, IpPacket::parse(header.ethertype, packet).unwrap())
    }

    /// What becomes of a frame from remote machines.
    fn arrive_at(bench: &mut Bench, bytes: &[u8], offload: Offload) -> Result<bool, &'static str> {
        let serves = |address: IpAddr| address == IpAddr::from([192, 168, 127, 200]);
        let frame = Frame { bytes, offload };
        bench.with(|cx| {
            arrive(cx, REMOTE, frame, &serves).map(|it| matches!(it, Arrival::Gateway(_)))
        })
    }

    #[test]
    fn packets_are_routed_both_ways_with_one_hop_less_and_super_packets_stay_whole() {
        let mut bench = bench();
        let own = guest().address4.to_string();
        let (bytes, offload) = datagram(FAR, &own, 9, 3_000);
        let gso = Gso { kind: GsoKind::Udp, size: 1_000, header_len: 42, ecn: false };
        let offload = Offload { gso: Some(gso), ..offload };
        assert_eq!(arrive_at(&mut bench, &bytes, offload), Ok(false));
        let (plug, frame) = bench.transmitted();
        let (header, came) = packet(&frame.bytes);
        assert_eq!(
            (plug, header.destination, header.source),
            (PLUG, GUEST_MAC, bench.config.gateway_mac)
        );
        assert_eq!((came.hop_limit, frame.offload), (8, offload));

        let (mut bytes, offload) = datagram(&own, FAR, 9, 10);
        bytes.extend([0; 9]);
        let (_, sent) = packet(&bytes);
        bench.with(|cx| {
            leave(cx, (PLUG, GUEST_MAC), REMOTE, Frame { bytes: &bytes, offload }, &sent);
        });
        let (plug, frame) = bench.transmitted();
        let (header, left) = packet(&frame.bytes);
        assert_eq!((plug, header.destination, left.hop_limit), (REMOTE, NOBODY, 8));
        assert_eq!(frame.bytes.len(), bytes.len() - 9, "without the padding");
        assert!(bench.counters.all().is_empty());
    }

    #[test]
    fn remote_machines_speak_for_themselves_and_reach_what_is_theirs_to_reach() {
        let mut bench = bench();
        let own = guest().address4.to_string();
        let mut refused = |from: &str, to: &str| {
            let (bytes, offload) = datagram(from, to, 9, 10);
            arrive_at(&mut bench, &bytes, offload)
        };
        assert_eq!(refused("192.168.127.9", &own), Err("remote-source"));
        assert_eq!(refused("203.0.113.1", &own), Err("remote-source"));
        assert_eq!(refused(FAR, "203.0.113.1"), Err("remote-destination"));
        assert_eq!(refused(FAR, "192.168.127.1"), Err("remote-destination"), "not a ping");
        assert_eq!(refused(FAR, "10.1.1.9"), Err("remote-destination"), "nobody's way round");
        assert_eq!(refused(FAR, "192.168.127.200"), Ok(true), "a service");
        let mut bytes = Vec::new();
        let ping = Icmp::EchoRequest { id: 1, seq: 1, data: b"ping" };
        let (far, gateway) = (FAR.parse().unwrap(), bench.config.gateway4().into());
        let offload = build::icmp_frame(&mut bytes, NOBODY, NOBODY, far, gateway, 9, &ping);
        assert_eq!(arrive_at(&mut bench, &bytes, offload), Ok(true));
    }

    #[test]
    fn the_last_hop_and_what_is_too_long_are_told_to_the_sender() {
        let mut bench = bench();
        let own = guest().address4.to_string();
        let (bytes, offload) = datagram(FAR, &own, 1, 10);
        assert_eq!(arrive_at(&mut bench, &bytes, offload), Ok(false));
        let (plug, frame) = bench.transmitted();
        let (_, told) = packet(&frame.bytes);
        assert_eq!((plug, told.destination), (REMOTE, FAR.parse::<IpAddr>().unwrap()));
        assert_eq!(bench.counters.of("hop-limit"), 1);
    }

    #[test]
    fn what_overlaps_the_network_is_not_led_there_and_told() {
        let mut bench = Bench::new();
        let told = Remote {
            unaccepted: vec!["192.168.127.0/24".parse().unwrap()],
            ..remote(&["10.1.1.0/24", "192.168.0.0/16", "10.1.1.64/26"])
        };
        bench.remotes.set(&bench.config, "yard", told.clone(), Some(REMOTE)).unwrap();
        let plug_to = |address: &str| bench.remotes.plug_to(address.parse().unwrap());
        assert_eq!((plug_to(FAR), plug_to("192.168.5.5")), (Some(REMOTE), None));
        let [accept, overlap] = &bench.remotes.warnings(&bench.config)[..] else { panic!() };
        assert!(accept.contains("`netyard peers accept office 192.168.127.0/24`"), "{accept}");
        assert!(overlap.contains("192.168.0.0/16"), "{overlap}");
        // The longest prefix leads, whoever brings it.
        let other = PlugId(78);
        let wide = remote(&["10.1.0.0/16"]);
        bench.remotes.set(&bench.config, "other", wide, Some(other)).unwrap();
        let plug_to = |address: &str| bench.remotes.plug_to(address.parse().unwrap());
        assert_eq!((plug_to(FAR), plug_to("10.1.2.1")), (Some(REMOTE), Some(other)));
        assert!(bench.remotes.set(&bench.config, "none", told, None).is_err(), "without a plug");
    }
}
