//! The machine's own interfaces and addresses, and notice of their changes.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::address;
use crate::call;

/// Every address of every interface, in the network namespace of the calling thread.
///
/// # Errors
/// What the kernel said.
pub fn addresses() -> io::Result<Vec<IpAddr>> {
    let mut list = std::ptr::null_mut();
    // SAFETY: getifaddrs(3) stores a pointer to a list, which is freed below.
    call::check(unsafe { libc::getifaddrs(&raw mut list) })?;
    let mut found = Vec::new();
    let mut next: *const libc::ifaddrs = list;
    // SAFETY: each entry is either null or a valid entry of the list, which lives until it is
    // freed below.
    while let Some(entry) = unsafe { next.as_ref() } {
        found.extend(socket_address(entry.ifa_addr).map(|address| address.ip()));
        next = entry.ifa_next;
    }
    // SAFETY: `list` is what getifaddrs(3) stored; nothing refers to it any more.
    unsafe { libc::freeifaddrs(list) };
    Ok(found)
}

/// Interfaces that are up and take multicast, loopback and point-to-point ones left out, in the network namespace of the
/// calling thread: their numbers and names.
///
/// # Errors
/// What the kernel said.
pub fn multicast_cards() -> io::Result<BTreeMap<u32, String>> {
    let mut list = std::ptr::null_mut();
    // SAFETY: getifaddrs(3) stores a pointer to a list, which is freed below.
    call::check(unsafe { libc::getifaddrs(&raw mut list) })?;
    let mut names = BTreeSet::new();
    let mut next: *const libc::ifaddrs = list;
    // SAFETY: each entry is either null or a valid entry of the list, which lives until it is freed below.
    while let Some(entry) = unsafe { next.as_ref() } {
        let is = |flag: libc::c_int| entry.ifa_flags & flag.cast_unsigned() != 0;
        let speaks = is(libc::IFF_UP) && is(libc::IFF_MULTICAST);
        if speaks && !is(libc::IFF_LOOPBACK) && !is(libc::IFF_POINTOPOINT) {
            // SAFETY: the name is a string that ends with a zero and lives as long as its entry.
            names
                .extend(unsafe { CStr::from_ptr(entry.ifa_name) }.to_str().map(str::to_owned).ok());
        }
        next = entry.ifa_next;
    }
    // SAFETY: `list` is what getifaddrs(3) stored; nothing refers to it any more.
    unsafe { libc::freeifaddrs(list) };
    let socket = call::socket(libc::AF_INET, libc::SOCK_DGRAM)?;
    // One may have gone meanwhile.
    let numbered = |name: String| Some((index_by(socket.as_fd(), &name).ok()?, name));
    Ok(names.into_iter().filter_map(numbered).collect())
}

/// The number of an interface of a socket's network namespace.
pub(crate) fn index_by(socket: BorrowedFd<'_>, name: &str) -> io::Result<u32> {
    let mut request = call::interface_request(name)?;
    // SAFETY: SIOCGIFINDEX reads and writes one ifreq, which outlives the call.
    call::check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX, &raw mut request) })?;
    // SAFETY: the kernel has filled in this member; every bit pattern of it is a number.
    let index = unsafe { request.ifr_ifru.ifru_ifindex };
    u32::try_from(index).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Reads the address of a list entry; `None` if it has none or one of another family.
fn socket_address(pointer: *const libc::sockaddr) -> Option<SocketAddr> {
    // SAFETY: null, or the entry's valid address.
    let family = unsafe { pointer.as_ref() }?.sa_family;
    let size = match libc::c_int::from(family) {
        libc::AF_INET => size_of::<libc::sockaddr_in>(),
        libc::AF_INET6 => size_of::<libc::sockaddr_in6>(),
        _ => return None,
    };
    // SAFETY: an address of this family has `size` initialised bytes.
    address::decode(unsafe { std::slice::from_raw_parts(pointer.cast::<u8>(), size) })
}

/// The largest packet that an interface of the calling thread's network namespace takes, bytes.
///
/// # Errors
/// `ENODEV`: there is no interface of that name.
pub fn mtu(name: &str) -> io::Result<u32> {
    let socket = call::socket(libc::AF_INET, libc::SOCK_DGRAM)?;
    let mut request = call::interface_request(name)?;
    // SAFETY: SIOCGIFMTU reads and writes one ifreq, which outlives the call.
    call::check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) })?;
    // SAFETY: SIOCGIFMTU has filled in the MTU.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    u32::try_from(mtu).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Becomes readable when an address of the machine comes or goes, or a link changes (`rtnetlink(7)`).
#[derive(Debug)]
pub struct Changes {
    fd: OwnedFd,
}

impl Changes {
    /// Starts to listen for changes of addresses; of links, too, if `links` is true.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn new(links: bool) -> io::Result<Self> {
        let fd = call::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_NONBLOCK)?;
        let addresses = libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR;
        let groups = (addresses | if links { libc::RTMGRP_LINK } else { 0 }).cast_unsigned();
        // struct sockaddr_nl: family, padding, port id (chosen by the kernel), groups.
        let family = u32::try_from(libc::AF_NETLINK).unwrap_or_default();
        let family = u16::try_from(family).unwrap_or_default().to_ne_bytes();
        let address = [&family[..], &[0; 6], &groups.to_ne_bytes()].concat();
        // SAFETY: the pointer and length describe `address`, which the kernel only reads.
        call::check(unsafe {
            libc::bind(fd.as_raw_fd(), address.as_ptr().cast(), call::length(&address))
        })?;
        Ok(Self { fd })
    }

    /// Throws away the notices so far; true if there were any (or some were lost).
    #[must_use]
    pub fn take(&self) -> bool {
        let mut scratch = [0_u8; 4096];
        let mut any = false;
        loop {
            let (fd, into) = (self.fd.as_raw_fd(), scratch.as_mut_ptr().cast());
            // SAFETY: the pointer and length describe `scratch`, which is ours to write.
            let result = unsafe { libc::recv(fd, into, scratch.len(), libc::MSG_DONTWAIT) };
            match call::check_len(result) {
                Ok(_) => any = true,
                // Notices were lost: something has changed.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => any = true,
                Err(_) => return any,
            }
        }
    }
}

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn loopback_is_among_the_addresses() {
        let found = addresses().unwrap();
        assert!(found.contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
        assert!(found.contains(&IpAddr::V6(Ipv6Addr::LOCALHOST)));
    }

    #[test]
    fn without_a_change_there_is_no_notice() {
        assert!(!Changes::new(false).unwrap().take());
    }
}
