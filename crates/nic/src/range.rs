//! One address or one block of addresses.
//!
//! A block counts, indexes and iterates over its *usable* addresses, lazily, whatever its size:
//!
//! | prefix | usable addresses |
//! | --- | --- |
//! | IPv4 `/32`, `/31` | 1, 2 (RFC 3021) |
//! | IPv4 `/25` to `/30` | all but the first (network) and the last (broadcast) |
//! | IPv4 `/24` and shorter | all whose last byte is neither 0 nor 255: 254 of each `/24`, 65024 of a `/16` |
//! | IPv6 `/128`, `/127` | 1, 2 (RFC 6164) |
//! | IPv6 `/126` and shorter | all but the first, the subnet-router anycast address (RFC 4291 section 2.6.1) |

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::{Bound, RangeBounds};
use std::str::FromStr;

use ipnet::IpNet;

use crate::Family;

/// Usable addresses of a `/24`.
const OF_24: u128 = 254;

/// One address, or a block of addresses. As text `192.0.2.7`, `192.0.2.0/24`, `fe80::1%2`.
///
/// Two are equal if everything about them is; that they share addresses is said by
/// [`IpRange::overlaps`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IpRange {
    base: IpAddr,
    prefix: u8,
    subnet: Option<u8>,
    scope: Option<u32>,
}

impl IpRange {
    /// One address.
    #[must_use]
    pub const fn host(address: IpAddr) -> Self {
        Self { base: address, prefix: Family::of(address).bits(), subnet: None, scope: None }
    }

    /// All addresses of a prefix.
    #[must_use]
    pub fn block(net: IpNet) -> Self {
        Self { base: net.network(), prefix: net.prefix_len(), subnet: None, scope: None }
    }

    /// What an address with the length of its prefix stands for where a card has it: the whole block if
    /// nothing but the prefix is said, else the one address in its subnet.
    #[must_use]
    pub fn assigned(net: IpNet) -> Self {
        if net.addr() == net.network() && net.prefix_len() < net.max_prefix_len() {
            Self::block(net)
        } else {
            Self::host(net.addr()).in_subnet(net.prefix_len())
        }
    }

    /// The same with the length of the prefix of its subnet; nothing is said of a subnet that is just
    /// the range itself.
    #[must_use]
    pub fn in_subnet(mut self, prefix: u8) -> Self {
        self.subnet = (prefix < self.prefix).then_some(prefix);
        self
    }

    /// The same on the link with this number (RFC 4007).
    #[must_use]
    pub const fn on_link(mut self, scope: Option<u32>) -> Self {
        self.scope = scope;
        self
    }

    /// The address, or the first of the block, usable or not.
    #[must_use]
    pub const fn base(&self) -> IpAddr {
        self.base
    }

    /// Length of its prefix: 32 or 128 for one address.
    #[must_use]
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Length of the prefix of the subnet that one address is in, if it is known.
    #[must_use]
    pub const fn subnet(&self) -> Option<u8> {
        self.subnet
    }

    /// The number of the link that a link-local address is on.
    #[must_use]
    pub const fn scope(&self) -> Option<u32> {
        self.scope
    }

    /// Its family.
    #[must_use]
    pub const fn family(&self) -> Family {
        Family::of(self.base)
    }

    /// Its prefix.
    #[must_use]
    pub fn net(&self) -> IpNet {
        IpNet::new(self.base, self.prefix).unwrap_or_else(|_| self.base.into())
    }

    /// One address only.
    #[must_use]
    pub const fn is_host(&self) -> bool {
        self.prefix == self.family().bits()
    }

    /// How many addresses it has, usable or not; one less than there are for `::/0`.
    #[must_use]
    pub fn total(&self) -> u128 {
        1_u128.checked_shl(self.host_bits()).unwrap_or(u128::MAX)
    }

    /// How many usable addresses it has; at least one.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "no range is empty")]
    pub fn len(&self) -> u128 {
        match (self.family(), self.host_bits()) {
            (_, bits @ (0 | 1)) => 1 << bits,
            (Family::Ip4, bits @ 2..=7) => (1 << bits) - 2,
            (Family::Ip4, bits) => OF_24 << (bits - 8),
            (Family::Ip6, 128) => u128::MAX,
            (Family::Ip6, bits) => (1 << bits) - 1,
        }
    }

    /// The usable address with this number; negative numbers count from the end. What is out of range
    /// goes round.
    #[must_use]
    pub fn get(&self, index: i128) -> IpAddr {
        let len = self.len();
        let from_end = index.unsigned_abs() % len;
        self.at(match index {
            0.. => from_end,
            _ if from_end == 0 => 0,
            _ => len - from_end,
        })
    }

    /// The usable address with this number; what is out of range goes round.
    #[must_use]
    pub fn at(&self, index: u128) -> IpAddr {
        let index = index % self.len();
        let offset = match (self.family(), self.host_bits()) {
            (_, 0 | 1) => index,
            (Family::Ip4, 8..) => (index / OF_24) * 256 + index % OF_24 + 1,
            _ => index + 1,
        };
        self.family().address(self.family().number(self.base).wrapping_add(offset))
    }

    /// The first usable address.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.at(0)
    }

    /// The number of a usable address.
    #[must_use]
    pub fn position(&self, address: IpAddr) -> Option<u128> {
        if !self.contains(address) {
            return None;
        }
        let offset = self.family().number(address) - self.family().number(self.base);
        let index = match (self.family(), self.host_bits()) {
            (_, 0 | 1) => offset,
            (Family::Ip4, 8..) => (offset / 256) * OF_24 + (offset % 256).checked_sub(1)?,
            _ => offset.checked_sub(1)?,
        };
        (index < self.len() && self.at(index) == address).then_some(index)
    }

    /// The usable addresses, from either end.
    #[must_use]
    pub fn iter(&self) -> RangeIter {
        self.slice(..)
    }

    /// The usable addresses with these numbers; as many of them as there are.
    pub fn slice(&self, indexes: impl RangeBounds<u128>) -> RangeIter {
        let (front, back) = bounds(&indexes, self.len());
        RangeIter { range: *self, front, back }
    }

    /// True if the address is in it, usable or not.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.net().contains(&address)
    }

    /// True if they share addresses.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.base) || other.contains(self.base)
    }

    /// True if they have exactly the same addresses, whatever else is known of them.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        (self.base, self.prefix) == (other.base, other.prefix)
    }

    /// How many usable addresses it has, in words.
    #[must_use]
    pub fn count(&self) -> Count {
        Count(self.len())
    }

    fn host_bits(&self) -> u32 {
        u32::from(self.family().bits().saturating_sub(self.prefix))
    }
}

impl IntoIterator for &IpRange {
    type Item = IpAddr;
    type IntoIter = RangeIter;

    fn into_iter(self) -> RangeIter {
        self.iter()
    }
}

/// Where a slice of `len` things begins and ends.
pub(crate) fn bounds(indexes: &impl RangeBounds<u128>, len: u128) -> (u128, u128) {
    let front = match indexes.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let back = match indexes.end_bound() {
        Bound::Included(index) => index.saturating_add(1),
        Bound::Excluded(index) => *index,
        Bound::Unbounded => len,
    };
    let back = back.min(len);
    (front.min(back), back)
}

/// The usable addresses of a range, made as they are asked for.
#[derive(Debug, Clone)]
pub struct RangeIter {
    range: IpRange,
    front: u128,
    back: u128,
}

impl Iterator for RangeIter {
    type Item = IpAddr;

    fn next(&mut self) -> Option<IpAddr> {
        self.nth(0)
    }

    fn nth(&mut self, skip: usize) -> Option<IpAddr> {
        self.front = self.front.saturating_add(skip as u128).min(self.back);
        let index = (self.front < self.back).then_some(self.front)?;
        self.front += 1;
        Some(self.range.at(index))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = usize::try_from(self.back - self.front);
        (left.unwrap_or(usize::MAX), left.ok())
    }
}

impl DoubleEndedIterator for RangeIter {
    fn next_back(&mut self) -> Option<IpAddr> {
        self.back = (self.front < self.back).then(|| self.back - 1)?;
        Some(self.range.at(self.back))
    }
}

/// A number of addresses, in words: `1 IP`, `65024 IPs`, and above 2^32 `a lot of IPs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count(pub u128);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const A_LOT: u128 = 1 << 32;
        match self.0 {
            1 => f.write_str("1 IP"),
            count if count > A_LOT => f.write_str("a lot of IPs"),
            count => write!(f, "{count} IPs"),
        }
    }
}

/// `192.0.2.7`, `192.0.2.0/24`; the alternate form counts: `192.0.2.0/24 (254 IPs)`.
impl fmt::Display for IpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.base)?;
        if let Some(scope) = self.scope {
            write!(f, "%{scope}")?;
        }
        if !self.is_host() {
            write!(f, "/{}", self.prefix)?;
            if f.alternate() {
                write!(f, " ({})", self.count())?;
            }
        }
        Ok(())
    }
}

/// A text that is no range of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is neither an address nor a block: write 192.0.2.7, 192.0.2.0/24, \
     192.0.2.0/255.255.255.0 or fe80::1%2"
)]
pub struct RangeError {
    text: String,
}

/// Reads `A`, `A/LENGTH`, `A/NETMASK` and `A%LINK`, where LINK is the link's number. An address that is
/// not the first of its prefix is one address in that subnet.
impl FromStr for IpRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        read(text).ok_or_else(|| RangeError { text: text.to_owned() })
    }
}

fn read(text: &str) -> Option<IpRange> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let (address, scope) = match address.split_once('%') {
        Some((address, scope)) => (address, Some(scope.parse().ok()?)),
        None => (address, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let prefix = match length {
        None => Family::of(address).bits(),
        Some(length) => match (length.parse::<u8>(), length.parse::<IpAddr>()) {
            (Ok(prefix), _) => prefix,
            (_, Ok(mask)) if Family::of(mask) == Family::of(address) => {
                ipnet::ip_mask_to_prefix(mask).ok()?
            }
            _ => return None,
        },
    };
    Some(IpRange::assigned(IpNet::new(address, prefix).ok()?).on_link(scope))
}

impl Family {
    /// Bits of an address.
    pub(crate) const fn bits(self) -> u8 {
        match self {
            Self::Ip4 => 32,
            Self::Ip6 => 128,
        }
    }

    fn number(self, address: IpAddr) -> u128 {
        match address {
            IpAddr::V4(address) => address.to_bits().into(),
            IpAddr::V6(address) => address.to_bits(),
        }
    }

    fn address(self, number: u128) -> IpAddr {
        match self {
            // The low 32 bits: additions stay below the end of the block they began in.
            Self::Ip4 => Ipv4Addr::from_bits((number & u128::from(u32::MAX)) as u32).into(),
            Self::Ip6 => Ipv6Addr::from_bits(number).into(),
        }
    }
}
