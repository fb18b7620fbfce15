//! What each statement means.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use netyard_wire::MacAddr;
use netyard_wire::dns::Name;

use super::{Pair, Reader};
use crate::blocking::literal;
use crate::config::{Nic, Route, Source};
use crate::sniffer::Detail;
use crate::tcp::Algorithm;

impl Reader {
    pub(super) fn verbose(&mut self, pairs: &[Pair<'_>]) {
        self.config.verbose = true;
        for pair in pairs {
            self.warn(pair, "`verbose` has no keys: it does not count");
        }
    }

    pub(super) fn nic(&mut self, pairs: &[Pair<'_>]) {
        let (mut id, mut mac, mut mtu, mut sniff, mut capture) = (None, None, None, None, None);
        let (mut fd, mut dev, mut offload) = (None, None, true);
        let before = self.errors.len();
        for pair in pairs {
            if pair.key == "ether" && mac.is_some() {
                self.fail(Some(pair), "given twice");
                continue;
            }
            self.once(pair, pairs);
            match pair.key {
                "id" => id = self.number(pair).map(|id| (id, *pair)),
                "ether" => match hardware_address(pair.value) {
                    Ok(address) => mac = Some(address),
                    Err(message) => self.fail(Some(pair), message),
                },
                "mtu" => mtu = self.number(pair).filter(|mtu| *mtu != 0),
                "fd" => fd = self.number(pair).filter(|fd| *fd != 0),
                "dev" => match self.device(pair) {
                    Some(device) => dev = Some(device),
                    None => continue,
                },
                "sniff" => match detail(pair.value) {
                    Some(detail) => sniff = detail,
                    None => self.fail_value(pair, "`true`, `false`, `brief`, `full` or `json`"),
                },
                "pcap" if pair.value.is_empty() => {
                    self.fail(Some(pair), "a file is wanted: `pcap=trace.pcapng`");
                }
                "pcap" => capture = Some(pair.value.to_owned()),
                "offload" => match pair.value {
                    "auto" => offload = true,
                    "off" => offload = false,
                    _ => self.fail_value(pair, "`auto` or `off`"),
                },
                "queues" => {
                    if self.number(pair).is_some_and(|queues| queues != 1) {
                        self.fail(
                            Some(pair),
                            "one thread has the stack, and a device one queue: 1",
                        );
                    }
                }
                _ => self.unknown(pair),
            }
        }
        let id = match id {
            Some((0, pair)) => return self.fail(Some(&pair), "an id is not 0"),
            Some((id, pair)) if self.config.nics.iter().any(|nic| nic.id == id) => {
                return self.fail(Some(&pair), format!("there is an interface {id} already"));
            }
            Some((id, _)) => id,
            None if self.errors.len() > before => return,
            None => return self.fail(None, "an interface needs an `id`"),
        };
        let device = match (fd, dev) {
            (Some(_), Some(_)) => return self.fail(None, "either `fd` or `dev`, not both"),
            (Some(fd), None) => Source::Descriptor(i32::try_from(fd).unwrap_or(i32::MAX)),
            (None, Some(device)) => device,
            (None, None) if self.errors.len() > before => return,
            (None, None) => {
                return self
                    .fail(None, "a device is needed: `dev=NAME`, `dev=unix:PATH` or `fd=NUMBER`");
            }
        };
        if mac.is_none() && matches!(device, Source::Socket(_)) {
            return self.fail(None, "a socket carries Ethernet: give the interface an `ether`");
        }
        if mtu.is_some_and(|mtu| !(68..=65_535).contains(&mtu)) {
            let pair = pairs.iter().rfind(|pair| pair.key == "mtu");
            return self.fail(pair, "an MTU is at least 68 and at most 65535 bytes");
        }
        let nic = Nic { mac, mtu, sniff, capture, offload, ..Nic::new(id, device) };
        self.config.nics.push(nic);
    }

    /// The name of a device, which may stand behind `/dev/`, or a socket by its path.
    fn device(&mut self, pair: &Pair<'_>) -> Option<Source> {
        if let Some(path) = pair.value.strip_prefix("unix:") {
            if path.is_empty() {
                self.fail(Some(pair), "a path is wanted: `dev=unix:/run/plug.sock`");
                return None;
            }
            return Some(Source::Socket(path.into()));
        }
        let name = pair.value.strip_prefix("/dev/").unwrap_or(pair.value);
        if name.is_empty() || name.len() > 15 || name.contains('/') {
            let message = format!(
                "a device has a name of 1 to 15 letters, and a socket is `unix:PATH`; found `{}`",
                pair.value
            );
            self.fail(Some(pair), message);
            return None;
        }
        Some(Source::Name(name.to_owned()))
    }

    /// The place of the interface that a statement names.
    fn nic_of(&mut self, pairs: &[Pair<'_>]) -> Option<usize> {
        let Some(pair) = pairs.iter().rfind(|pair| pair.key == "nic") else {
            self.fail(None, "the interface is missing: `nic=ID`");
            return None;
        };
        let id = self.number(pair)?;
        let place = self.config.nics.iter().position(|nic| nic.id == id);
        if place.is_none() {
            let message = format!("no interface {id} was defined before; write its `nic` first");
            self.fail(Some(pair), message);
        }
        place
    }

    pub(super) fn ip(&mut self, pairs: &[Pair<'_>]) {
        let nic = self.nic_of(pairs);
        let (mut addresses, mut autoconf, mut dhcp) = (Vec::new(), false, false);
        let before = self.errors.len();
        for pair in pairs {
            match (pair.key, pair.value) {
                ("nic", _) => self.once(pair, pairs),
                ("addr", "slaac") => autoconf = true,
                ("addr", "dhcp") => dhcp = true,
                ("addr", "auto") => (autoconf, dhcp) = (true, true),
                ("addr", value) => match net(value) {
                    Some(net) => addresses.push(net),
                    None => {
                        let message = format!(
                            "an address is wanted, with the length of its prefix (10.0.0.2/24), \
                             found `{value}`"
                        );
                        self.fail(Some(pair), message);
                    }
                },
                _ => self.unknown(pair),
            }
        }
        let any = !addresses.is_empty() || autoconf || dhcp;
        if !any && self.errors.len() == before {
            self.fail(None, "an address is missing: `addr=ADDRESS/LENGTH`");
        }
        let Some(nic) = nic.and_then(|place| self.config.nics.get_mut(place)) else { return };
        if (autoconf || dhcp) && nic.mac.is_none() {
            let message = "`slaac` and `dhcp` want Ethernet: give the interface an `ether`";
            return self.fail(None, message);
        }
        nic.addresses.extend(addresses);
        nic.autoconf |= autoconf;
        nic.dhcp |= dhcp;
    }

    pub(super) fn route(&mut self, pairs: &[Pair<'_>]) {
        let nic = self.nic_of(pairs);
        let (mut prefix, mut gateway) = (None, None);
        let before = self.errors.len();
        for pair in pairs {
            self.once(pair, pairs);
            match pair.key {
                "nic" => {}
                "ipnet" => match pair.value.parse::<IpNet>() {
                    Ok(net) => prefix = Some(net.trunc()),
                    Err(_) => self.fail_value(pair, "a prefix (10.0.0.0/8)"),
                },
                "gw" if pair.value.is_empty() => gateway = None,
                "gw" => match pair.value.parse::<IpAddr>() {
                    Ok(ip) => gateway = Some(ip),
                    Err(_) => {
                        let message = format!("an address is wanted, found `{}`", pair.value);
                        self.fail(Some(pair), message);
                    }
                },
                _ => self.unknown(pair),
            }
        }
        let nic = nic.and_then(|place| self.config.nics.get(place)).map(|nic| nic.id);
        match (nic, prefix) {
            (_, None) if self.errors.len() == before => {
                self.fail(None, "the prefix is missing: `ipnet=PREFIX/LENGTH`");
            }
            (Some(nic), Some(prefix)) => {
                if gateway.is_some_and(|gateway| gateway.is_ipv4() != prefix.addr().is_ipv4()) {
                    return self.fail(None, "the gateway and the prefix are of different families");
                }
                self.config.routes.push(Route { nic, prefix, gateway });
            }
            _ => {}
        }
    }

    pub(super) fn dns(&mut self, pairs: &[Pair<'_>]) {
        for pair in pairs {
            if !matches!(pair.key, "ip" | "search") {
                self.once(pair, pairs);
            }
            match pair.key {
                "ip" => self.resolver(pair),
                "search" => self.search(pair),
                "ndots" => {
                    if let Some(dots) = self.number(pair) {
                        self.config.dns.ndots = usize::try_from(dots).unwrap_or(usize::MAX);
                    }
                }
                "timeout" | "attempts" => match self.number(pair) {
                    Some(0) => self.fail(Some(pair), "at least 1 is wanted"),
                    Some(seconds) if pair.key == "timeout" => {
                        self.config.dns.timeout = Duration::from_secs(seconds.into());
                    }
                    Some(count) => {
                        self.config.dns.attempts = usize::try_from(count).unwrap_or(usize::MAX);
                    }
                    None => {}
                },
                "hosts" if pair.value.is_empty() => {
                    self.fail(Some(pair), "a file is wanted: `hosts=/etc/hosts`");
                }
                "hosts" => self.config.dns.hosts = Some(pair.value.into()),
                _ => self.unknown(pair),
            }
        }
    }

    fn resolver(&mut self, pair: &Pair<'_>) {
        match literal(pair.value, 53).or_else(|| pair.value.parse().ok()) {
            Some(resolver) => self.config.dns.resolvers.push(resolver),
            None => {
                let found = pair.value;
                let message = format!("an address is wanted, or ADDRESS:PORT, found `{found}`");
                self.fail(Some(pair), message);
            }
        }
    }

    fn search(&mut self, pair: &Pair<'_>) {
        match pair.value.parse::<Name>() {
            Ok(_) => self.config.dns.search.push(pair.value.to_owned()),
            Err(error) => {
                let message = format!("a domain is wanted, found `{}`: {error}", pair.value);
                self.fail(Some(pair), message);
            }
        }
    }

    pub(super) fn tcp(&mut self, pairs: &[Pair<'_>]) {
        for pair in pairs {
            self.once(pair, pairs);
            match (pair.key, pair.value) {
                ("cc", "cubic") => self.config.tcp.congestion = Algorithm::Cubic,
                ("cc", "reno" | "newreno") => self.config.tcp.congestion = Algorithm::NewReno,
                ("cc", found) => {
                    self.fail(
                        Some(pair),
                        format!("`cubic` or `newreno` is wanted, found `{found}`"),
                    );
                }
                ("rmem" | "wmem", _) => {
                    let Some(bytes) = self.number(pair).filter(|bytes| *bytes > 0) else {
                        continue;
                    };
                    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
                    match pair.key {
                        "rmem" => self.config.tcp.receive_buffer = bytes,
                        _ => self.config.tcp.send_buffer = bytes,
                    }
                }
                ("rto_min", _) => {
                    if let Some(milliseconds) = self.number(pair).filter(|time| *time > 0) {
                        self.config.tcp.min_rto = Duration::from_millis(milliseconds.into());
                    }
                }
                _ => self.unknown(pair),
            }
        }
    }
}

/// How much is told of each packet.
fn detail(text: &str) -> Option<Option<Detail>> {
    Some(match text {
        "false" => None,
        "brief" => Some(Detail::Brief),
        "true" => Some(Detail::Usual),
        "full" => Some(Detail::Full),
        "json" => Some(Detail::Json),
        _ => return None,
    })
}

/// An address with the length of its prefix; without one it stands for itself alone.
fn net(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// A hardware address in one of the three usual ways to write one: pairs of digits with `:` or `-`
/// between them, or groups of four with dots.
fn hardware_address(text: &str) -> Result<MacAddr, String> {
    let wanted = "six pairs of hexadecimal digits are wanted, like fe:e1:ba:d0:33:33";
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let rest = |mark: char, group: usize| {
        text.split(mark)
            .all(|part| part.len() == group && part.bytes().all(|digit| digit.is_ascii_hexdigit()))
    };
    if !(rest(':', 2) || rest('-', 2) || rest('.', 4)) {
        return Err(format!("{wanted}, found `{text}`"));
    }
    let mut octets = Vec::new();
    for pair in digits.chunks(2) {
        let pair = std::str::from_utf8(pair).unwrap_or_default();
        octets.extend(u8::from_str_radix(pair, 16));
    }
    let count = octets.len();
    let octets = octets.try_into().map_err(|_| format!("{wanted}, found {count} bytes"))?;
    Ok(MacAddr(octets))
}
