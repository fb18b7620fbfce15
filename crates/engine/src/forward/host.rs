//! The host's side of a forward: ports of an address, or a Unix socket.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{ForwardError, Ports};

/// Where clients on the host come in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostSide {
    /// Ports of an address that is bound; an unspecified one is every address of its family.
    Ports(IpAddr, Ports),
    /// A Unix stream socket, which is made for the forward.
    Socket(SocketFile),
}

/// A Unix socket that is made.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SocketFile {
    /// Where it is.
    pub path: PathBuf,
    /// Who may connect: the permissions of its file. Its owner is who makes it.
    pub mode: u32,
}

impl SocketFile {
    /// Whoever has made it, and nobody else.
    const MODE: u32 = 0o600;

    /// The path and what stands behind it, of a text that said `unix:`. The last colon ends the path.
    pub(super) fn split(text: &str) -> Result<(Self, &str), ForwardError> {
        let shape = || ForwardError::Socket(text.to_owned());
        let (path, rest) = text.rsplit_once(':').ok_or_else(shape)?;
        let file = Self { path: PathBuf::from(path), mode: Self::MODE };
        file.check().map_err(|_| shape())?;
        Ok((file, rest))
    }

    /// What a word behind the ports says: `mode=660`. False if it is none of ours.
    pub(super) fn read(&mut self, word: &str) -> Result<bool, ForwardError> {
        let Some(digits) = word.strip_prefix("mode=") else { return Ok(false) };
        let octal = digits.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
        let mode = u32::from_str_radix(digits, 8).ok().filter(|mode| octal && *mode <= 0o777);
        self.mode = mode.ok_or_else(|| ForwardError::Mode(digits.to_owned()))?;
        Ok(true)
    }

    pub(super) fn check(&self) -> Result<(), ForwardError> {
        let text = self.path.to_string_lossy();
        let named = self.path.file_name().is_some() && !text.ends_with('/');
        // A path with a zero byte reaches no system call.
        if !named || text.contains('\0') {
            return Err(ForwardError::Socket(text.into_owned()));
        }
        match self.mode {
            0..=0o777 => Ok(()),
            mode => Err(ForwardError::Mode(format!("{mode:o}"))),
        }
    }

    /// As the end of a forward's text.
    pub(super) fn words(&self) -> String {
        match self.mode {
            Self::MODE => String::new(),
            mode => format!("/mode={mode:o}"),
        }
    }
}

impl HostSide {
    /// The address that is bound, if any is.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Ports(address, _) => Some(*address),
            Self::Socket(_) => None,
        }
    }

    /// The Unix socket, if it is one.
    #[must_use]
    pub fn socket(&self) -> Option<&SocketFile> {
        match self {
            Self::Ports(..) => None,
            Self::Socket(file) => Some(file),
        }
    }

    /// The same with the path of a socket taken from `folder`, unless it is absolute.
    #[must_use]
    pub fn within(self, folder: &Path) -> Self {
        match self {
            Self::Socket(file) => {
                let path = folder.join(file.path).components().collect();
                Self::Socket(SocketFile { path, ..file })
            }
            ports @ Self::Ports(..) => ports,
        }
    }

    /// How many places to come in: ports, or one socket.
    pub(super) fn count(&self) -> u16 {
        match self {
            Self::Ports(_, ports) => ports.count(),
            Self::Socket(_) => 1,
        }
    }

    /// True when both cannot be at once, of one protocol.
    pub(super) fn conflicts(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Ports(host, ports), Self::Ports(other, others)) => {
                let same_family = host.is_ipv4() == other.is_ipv4();
                let every = host.is_unspecified() || other.is_unspecified();
                (host == other || same_family && every) && ports.overlaps(*others)
            }
            (Self::Socket(file), Self::Socket(other)) => file.path == other.path,
            _ => false,
        }
    }
}

/// `127.0.0.1:8081`, `[::1]:8000-8010`, `unix:/run/web.sock`.
impl std::fmt::Display for HostSide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ports(IpAddr::V4(host), ports) => write!(f, "{host}:{ports}"),
            Self::Ports(IpAddr::V6(host), ports) => write!(f, "[{host}]:{ports}"),
            Self::Socket(file) => write!(f, "unix:{}", file.path.display()),
        }
    }
}

/// Splits the optional host address off the front.
pub(super) fn split_host(text: &str) -> Result<(IpAddr, &str), ForwardError> {
    if let Some(bracketed) = text.strip_prefix('[') {
        let (address, rest) =
            bracketed.split_once("]:").ok_or_else(|| ForwardError::Shape(text.to_owned()))?;
        let address: Ipv6Addr =
            address.parse().map_err(|_| ForwardError::Address(address.to_owned()))?;
        return Ok((address.into(), rest));
    }
    let default = IpAddr::V4(Ipv4Addr::LOCALHOST);
    match text.split_once(':') {
        // Ports never have a dot or a letter, so `127.0.0.1:8081` is an address and a port.
        Some((head, rest)) if rest.contains(':') || !is_ports(head) => {
            if rest.matches(':').count() > 1 {
                return Err(if text.parse::<IpAddr>().is_ok() || text.contains("::") {
                    ForwardError::Brackets(text.to_owned())
                } else {
                    ForwardError::Shape(text.to_owned())
                });
            }
            let address: Ipv4Addr =
                head.parse().map_err(|_| ForwardError::Address(head.to_owned()))?;
            Ok((address.into(), rest))
        }
        _ => Ok((default, text)),
    }
}

/// True for text that was meant as a port or a port range.
fn is_ports(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-')
}
