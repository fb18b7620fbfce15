//! Giving a TCP packet other addresses and ports: super-frames stay whole, checksums are adjusted,
//! never computed anew, and the family may change.

use std::net::{IpAddr, SocketAddr};

use netyard_wire::ethernet::{self, Ethernet};
use netyard_wire::ip::{self, IpPacket};
use netyard_wire::{Checksum, GsoKind, MAX_FRAME_LEN, MacAddr, Offload, checksum};

/// Where the checksum lies in a TCP header, bytes.
const TCP_CHECKSUM: u16 = 16;

/// Where a translated frame goes.
pub(super) struct Path {
    pub(super) source_mac: MacAddr,
    pub(super) destination_mac: MacAddr,
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
}

impl Path {
    /// Writes the TCP packet into `out` with this path's addresses and ports; what is left to be
    /// done to it. `None` if the offload metadata does not fit a TCP packet or the result would
    /// be too long.
    pub(super) fn rewrite(
        &self,
        out: &mut Vec<u8>,
        offload: Offload,
        packet: &IpPacket<'_>,
    ) -> Option<Offload> {
        let ethertype = if self.source.is_ipv4() { ethernet::IPV4 } else { ethernet::IPV6 };
        let header =
            Ethernet { destination: self.destination_mac, source: self.source_mac, ethertype };
        out.clear();
        out.extend_from_slice(&header.emit());
        self.ip_header(out, packet)?;
        let start = out.len();
        out.extend_from_slice(packet.payload);
        if out.len() > MAX_FRAME_LEN {
            return None;
        }

        let old_start = ethernet::HEADER_LEN + packet.header.len();
        let tcp = out.get_mut(start..)?.first_chunk_mut::<18>()?;
        let [s0, s1, d0, d1, .., c0, c1] = tcp;
        let old_ports = [*s0, *s1, *d0, *d1];
        [*s0, *s1] = self.source.port().to_be_bytes();
        [*d0, *d1] = self.destination.port().to_be_bytes();
        let new_ports = [*s0, *s1, *d0, *d1];
        // Length and protocol are the same in both pseudo-headers.
        let old_addresses = Addresses::new(packet.source, packet.destination);
        let new_addresses = Addresses::new(self.source.ip(), self.destination.ip());
        let (old, new) = (old_addresses.as_bytes(), new_addresses.as_bytes());
        let field = u16::from_be_bytes([*c0, *c1]);
        let (field, checksum) = match offload.checksum {
            Checksum::Partial { start: covered, offset } => {
                if usize::from(covered) != old_start || offset != TCP_CHECKSUM {
                    return None;
                }
                let covered = u16::try_from(start).ok()?;
                let checksum = Checksum::Partial { start: covered, offset };
                (checksum::adjust_partial(field, old, new), checksum)
            }
            state => {
                let field = checksum::adjust(field, old, new);
                (checksum::adjust(field, &old_ports, &new_ports), state)
            }
        };
        [*c0, *c1] = field.to_be_bytes();

        let mut gso = offload.gso;
        if let Some(gso) = &mut gso {
            let transport = usize::from(gso.header_len).checked_sub(old_start)?;
            gso.header_len = u16::try_from(start + transport).ok()?;
            gso.kind = if self.source.is_ipv4() { GsoKind::Tcp4 } else { GsoKind::Tcp6 };
        }
        Some(Offload { checksum, gso })
    }

    /// Appends the IP header: the packet's own with new addresses, or a fresh one where the
    /// family changes.
    fn ip_header(&self, out: &mut Vec<u8>, packet: &IpPacket<'_>) -> Option<()> {
        let start = out.len();
        match (packet.source, self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(_), IpAddr::V4(_), _) => out.extend_from_slice(packet.header),
            (IpAddr::V6(_), IpAddr::V6(_), _) => out.extend_from_slice(packet.header),
            (IpAddr::V6(_), IpAddr::V4(_), _) => {
                let total = u16::try_from(packet.payload.len().checked_add(20)?).ok()?;
                let [l0, l1] = total.to_be_bytes();
                // An atomic datagram may have any identification (RFC 6864 section 4.1).
                let fixed = [0x45, packet.traffic_class, l0, l1, 0, 0, 0x40, 0];
                out.extend_from_slice(&fixed);
                out.extend_from_slice(&[packet.hop_limit, ip::TCP, 0, 0]);
                out.extend_from_slice(&[0; 8]);
            }
            (IpAddr::V4(_), IpAddr::V6(_), _) => {
                let [l0, l1] = u16::try_from(packet.payload.len()).ok()?.to_be_bytes();
                let class = packet.traffic_class;
                let fixed =
                    [0x60 | class >> 4, class << 4, 0, 0, l0, l1, ip::TCP, packet.hop_limit];
                out.extend_from_slice(&fixed);
                out.extend_from_slice(&[0; 32]);
            }
        }
        let header = out.get_mut(start..)?;
        match Addresses::new(self.source.ip(), self.destination.ip()) {
            Addresses::V4(addresses) => {
                header.get_mut(12..20)?.copy_from_slice(&addresses);
                header.get_mut(10..12)?.copy_from_slice(&[0, 0]);
                let sum = checksum::finish(checksum::sum(header));
                header.get_mut(10..12)?.copy_from_slice(&sum.to_be_bytes());
            }
            Addresses::V6(addresses) => header.get_mut(8..40)?.copy_from_slice(&addresses),
        }
        Some(())
    }
}

/// Source and destination as they stand in an IP header.
enum Addresses {
    V4([u8; 8]),
    V6([u8; 32]),
}

impl Addresses {
    /// Both of one family; mixed ones become IPv6, which nobody routes.
    fn new(source: IpAddr, destination: IpAddr) -> Self {
        if let (IpAddr::V4(source), IpAddr::V4(destination)) = (source, destination) {
            let [a, b, c, d] = source.octets();
            let [e, f, g, h] = destination.octets();
            return Self::V4([a, b, c, d, e, f, g, h]);
        }
        let octets = |address| match address {
            IpAddr::V4(address) => std::net::Ipv4Addr::to_ipv6_mapped(&address).octets(),
            IpAddr::V6(address) => address.octets(),
        };
        let mut both = [0; 32];
        let (first, second) = both.split_at_mut(16);
        first.copy_from_slice(&octets(source));
        second.copy_from_slice(&octets(destination));
        Self::V6(both)
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::V4(bytes) => bytes,
            Self::V6(bytes) => bytes,
        }
    }
}
