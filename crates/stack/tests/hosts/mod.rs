//! Two running hosts in one process, with a link between them.

// Each test binary uses its own part; a test fails by panicking.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::net::SocketAddr;
use std::time::Instant;

use netyard_stack::config::Dns;
use netyard_stack::device::Device;
use netyard_stack::driver::Driver;
use netyard_stack::{Host, Settings, Stack};
use netyard_wire::MacAddr;

/// 10.0.0.1 and 10.0.0.2; a time that nothing takes, in seconds, is [`LONG`].
pub struct Hosts {
    pub one: Host,
    pub other: Host,
}

pub const LONG: std::time::Duration = std::time::Duration::from_secs(60);

pub fn hosts() -> Hosts {
    let (near, far) = Device::pair().unwrap();
    Hosts { one: host(1, near), other: host(2, far) }
}

fn host(number: u8, device: Device) -> Host {
    let stack = Stack::new(Instant::now(), [number; 32], Settings::default());
    let mut driver = Driver::new(stack).unwrap();
    let nic = driver.attach(device, Some(MacAddr([2, 0, 0, 0, 0, number])), 1500).unwrap();
    let (stack, now) = driver.stack();
    stack.add_address(now, nic, format!("10.0.0.{number}/24").parse().unwrap()).unwrap();
    // The other host is no router, and says nothing to what is for somebody else.
    let silent = "198.51.100.0/24".parse().unwrap();
    let gateway = format!("10.0.0.{}", 3 - number).parse().unwrap();
    stack.add_route(silent, nic, Some(gateway)).unwrap();
    Host::run(driver, &Dns::default()).unwrap()
}

pub fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n ^ (n >> 8) ^ (n >> 16).wrapping_mul(31)) as u8).collect()
}
