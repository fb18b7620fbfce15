//! The text of a configuration, as the environment variable `GONET` has it.
//!
//! Statements stand between semicolons; a statement is a keyword and pairs `key=value`, with spaces
//! between. Nothing is quoted. Every text that any generation of the original took is taken, with the
//! same meaning; where the original took what is most likely a mistake, there is a warning. A route
//! with the longest prefix wins here, wherever it stands.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use netyard_wire::MacAddr;
use netyard_wire::dns::Name;

use crate::config::{Config, Nic, Route, Source};
use crate::tcp::Algorithm;

/// The environment variables that hold a configuration; the first that is set counts.
pub const VARIABLES: [&str; 2] = ["NETYARD_STACK", "GONET"];

/// Numbers of the original end below this.
const MAX_NUMBER: u32 = 0x00ff_ffff;
/// What statements are known, with their keys.
const KNOWN: [(&str, &str); 6] = [
    ("verbose", "none"),
    ("nic", "id, ether, mtu, fd, dev, sniff, pcap"),
    ("ip", "nic, addr"),
    ("route", "nic, ipnet, gw"),
    ("dns", "ip, search, ndots, timeout, attempts, hosts"),
    ("tcp", "cc, rmem, wmem, rto_min"),
];

/// Something to say about one place of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Which statement, from 1.
    pub statement: usize,
    /// Its keyword.
    pub keyword: String,
    /// Which key of it; empty where the whole statement is meant.
    pub key: String,
    /// Where, in characters from the beginning of the text, from 1.
    pub column: usize,
    /// What is wrong, and what is wanted.
    pub message: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { statement, keyword, key, column, message } = self;
        write!(f, "statement {statement} (`{keyword}`), ")?;
        if !key.is_empty() {
            write!(f, "key `{key}`, ")?;
        }
        write!(f, "column {column}: {message}")
    }
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notes(pub Vec<Note>);

impl fmt::Display for Notes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(notes) = self;
        for (place, note) in notes.iter().enumerate() {
            write!(f, "{}{note}", if place == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Notes {}

/// A configuration that was read, with what is most likely a mistake in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// The configuration.
    pub config: Config,
    /// What was taken, though it looks wrong.
    pub warnings: Vec<Note>,
}

impl Config {
    /// Reads the first of [`VARIABLES`] that is set and not empty; `None` if none is.
    ///
    /// # Errors
    /// As [`Config::parse`].
    pub fn from_environment() -> Result<Option<Parsed>, Notes> {
        let set = |name| std::env::var(name).ok().filter(|text: &String| !text.trim().is_empty());
        VARIABLES.into_iter().find_map(set).map(|text| Self::parse(&text)).transpose()
    }

    /// Reads a configuration.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str) -> Result<Parsed, Notes> {
        let mut reader = Reader::default();
        let mut column = 1;
        for statement in text.split(';') {
            let blank = |letter: char| matches!(letter, ' ' | '\t' | '\r' | '\n');
            let before = statement.chars().take_while(|letter| blank(*letter)).count();
            let trimmed = statement.trim_matches(blank);
            if !trimmed.is_empty() {
                reader.read(trimmed, column + before);
            }
            column += statement.chars().count() + 1;
        }
        let Reader { config, warnings, errors, .. } = reader;
        if errors.is_empty() { Ok(Parsed { config, warnings }) } else { Err(Notes(errors)) }
    }
}

/// One pair of a statement.
#[derive(Debug, Clone, Copy)]
struct Pair<'a> {
    key: &'a str,
    value: &'a str,
    column: usize,
}

#[derive(Debug, Default)]
struct Reader {
    config: Config,
    warnings: Vec<Note>,
    errors: Vec<Note>,
    /// The statement that is being read: its number, keyword and column.
    statement: usize,
    keyword: String,
    column: usize,
}

impl Reader {
    fn read(&mut self, text: &str, column: usize) {
        let mut at = column;
        let mut words = text.split(' ').map(|word| {
            let start = at;
            at += word.chars().count() + 1;
            (word, start)
        });
        let keyword = words.next().map_or("", |(keyword, _)| keyword);
        self.statement += 1;
        (self.keyword, self.column) = (keyword.to_owned(), column);
        let pairs: Vec<Pair<'_>> = words
            .filter(|(word, _)| !word.is_empty())
            .map(|(word, column)| {
                let (key, value) = word.split_once('=').unwrap_or((word, ""));
                Pair { key, value, column }
            })
            .collect();
        match keyword {
            "verbose" => self.config.verbose = true,
            "nic" => self.nic(&pairs),
            "ip" => self.ip(&pairs),
            "route" => self.route(&pairs),
            "dns" => self.dns(&pairs),
            "tcp" => self.tcp(&pairs),
            _ => {
                let known = KNOWN.map(|(keyword, _)| keyword).join(", ");
                self.fail(None, format!("unknown keyword; known are {known}"));
            }
        }
    }

    fn note(&self, pair: Option<&Pair<'_>>, message: String) -> Note {
        Note {
            statement: self.statement,
            keyword: self.keyword.clone(),
            key: pair.map_or_else(String::new, |pair| pair.key.to_owned()),
            column: pair.map_or(self.column, |pair| pair.column),
            message,
        }
    }

    fn fail(&mut self, pair: Option<&Pair<'_>>, message: impl Into<String>) {
        self.errors.push(self.note(pair, message.into()));
    }

    fn unknown(&mut self, pair: &Pair<'_>) {
        let keys = KNOWN.iter().find(|(keyword, _)| *keyword == self.keyword);
        let keys = keys.map_or("none", |(_, keys)| keys);
        self.fail(Some(pair), format!("unknown key; `{}` has {keys}", self.keyword));
    }

    /// Warns of a key that was there before: the last one counts, as in the original.
    fn once(&mut self, pair: &Pair<'_>, pairs: &[Pair<'_>]) {
        if pairs.iter().any(|other| other.key == pair.key && other.column < pair.column) {
            let message = "given twice; the last one counts".to_owned();
            self.warnings.push(self.note(Some(pair), message));
        }
    }

    /// A number: what follows the digits does not count, with a warning.
    fn number(&mut self, pair: &Pair<'_>) -> Option<u32> {
        let end = pair.value.find(|letter: char| !letter.is_ascii_digit());
        let (digits, rest) = pair.value.split_at(end.unwrap_or(pair.value.len()));
        let number = digits.parse().ok().filter(|number| *number < MAX_NUMBER);
        if number.is_none() {
            let found = pair.value;
            self.fail(
                Some(pair),
                format!("a number below {MAX_NUMBER} is wanted, found `{found}`"),
            );
        } else if !rest.is_empty() {
            let message = format!("`{rest}` behind the number does not count");
            self.warnings.push(self.note(Some(pair), message));
        }
        number
    }

    fn nic(&mut self, pairs: &[Pair<'_>]) {
        let (mut id, mut mac, mut mtu, mut sniff, mut capture) = (None, None, None, false, None);
        let (mut fd, mut dev) = (None, None);
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
                "sniff" => match pair.value {
                    "true" => sniff = true,
                    "false" => sniff = false,
                    found => {
                        let message = format!("`true` or `false` is wanted, found `{found}`");
                        self.fail(Some(pair), message);
                    }
                },
                "pcap" => capture = Some(pair.value.to_owned()),
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
        let nic = Nic { mac, mtu, sniff, capture, ..Nic::new(id, device) };
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

    fn ip(&mut self, pairs: &[Pair<'_>]) {
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

    fn route(&mut self, pairs: &[Pair<'_>]) {
        let nic = self.nic_of(pairs);
        let (mut prefix, mut gateway) = (None, None);
        let before = self.errors.len();
        for pair in pairs {
            self.once(pair, pairs);
            match pair.key {
                "nic" => {}
                "ipnet" => match pair.value.parse::<IpNet>() {
                    Ok(net) => prefix = Some(net.trunc()),
                    Err(_) => {
                        let found = pair.value;
                        let message = format!("a prefix is wanted (10.0.0.0/8), found `{found}`");
                        self.fail(Some(pair), message);
                    }
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

    fn dns(&mut self, pairs: &[Pair<'_>]) {
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
        let plain = pair.value.parse().map(|ip: IpAddr| SocketAddr::new(ip, 53));
        match plain.or_else(|_| pair.value.parse()) {
            Ok(resolver) => self.config.dns.resolvers.push(resolver),
            Err(_) => {
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

    fn tcp(&mut self, pairs: &[Pair<'_>]) {
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
