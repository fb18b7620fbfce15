//! Who gets which address, decided before anything runs, the same on every run.
//!
//! IPv4 addresses of a network are used from both ends: gateway `.1` unless the file names another,
//! instances upwards from there; `host.<zone>` is the last usable one, and the network process gives
//! out the services' virtual addresses from there downwards. An instance's IPv6 address has the same number in its /64.
//! Addresses that the yard file names are taken first; the other instances follow in the order
//! of the file. When a running yard changes, [`keep`] leaves addresses where they are.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv6Net;

use crate::model::{Address, NetworkSpec, PlugSpec, Yard};

/// A network's own IPv4 addresses: the gateway and `host.<zone>`.
pub(crate) const OWN_ADDRESSES: u32 = 2;

/// The IPv6 prefix of a network: unique local, locally assigned (RFC 4193 section 3.1). Global ID
/// and subnet ID are 56 bits of a hash of the network's global name, where section 3.2.2 takes
/// them of the time of day and an interface: the same name must give the same prefix.
#[must_use]
pub fn unique_local(global: &str) -> Ipv6Net {
    let [_, a, b, c, d, e, f, g] = hash(global).to_be_bytes();
    let prefix = u64::from_be_bytes([0xfd, a, b, c, d, e, f, g]);
    Ipv6Net::new_assert(Ipv6Addr::from_bits(u128::from(prefix) << 64), 64)
}

/// FNV-1a, then the finalizer of MurmurHash3: a short name changes every bit.
fn hash(text: &str) -> u64 {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// Gives every plug that has no address yet the lowest free one of its network. A plug stays
/// without one where its network is full or not of this yard.
pub fn plan(yard: &mut Yard) {
    let Yard { networks, instances, services, .. } = yard;
    for (name, network) in networks {
        let services = services.iter().filter(|service| service.network == *name).count();
        let plugs = || instances.iter().flat_map(|instance| &instance.plugs);
        let taken: BTreeSet<Ipv4Addr> = plugs()
            .filter(|plug| plug.network == *name)
            .filter_map(|plug| plug.address.get())
            .collect();
        let mut free = instance_addresses(network, services).filter(|it| !taken.contains(it));
        for plug in instances.iter_mut().flat_map(|instance| &mut instance.plugs) {
            if plug.network == *name && plug.address == Address::Any {
                plug.address = free.next().map_or(Address::Any, Address::Planned);
            }
        }
    }
}

/// Plans `wanted` again so that instances of `current` keep the addresses that they have, where
/// the file does not say otherwise.
pub fn keep(wanted: &mut Yard, current: &Yard) {
    let mut fixed: BTreeSet<(String, Ipv4Addr)> = BTreeSet::new();
    for plug in wanted.instances.iter().flat_map(|instance| &instance.plugs) {
        if let Address::Fixed(address) = plug.address {
            fixed.insert((plug.network.clone(), address));
        }
    }
    let Yard { networks, instances, services, .. } = &mut *wanted;
    for instance in instances {
        for plug in &mut instance.plugs {
            if matches!(plug.address, Address::Fixed(_)) {
                continue;
            }
            let services = services.iter().filter(|it| it.network == plug.network).count();
            let set_aside = |address: &Ipv4Addr| {
                let network = networks.get(&plug.network);
                network.is_some_and(|network| network.config().is_set_aside(*address))
            };
            plug.address = planned(current, &instance.name, &plug.network)
                .filter(|address| !set_aside(address))
                .filter(|address| !fixed.contains(&(plug.network.clone(), *address)))
                .filter(|address| {
                    networks
                        .get(&plug.network)
                        .is_some_and(|network| is_instance_address(network, services, *address))
                })
                .map_or(Address::Any, Address::Planned);
        }
    }
    plan(wanted);
}

/// The address that an instance of a running yard has on a network.
fn planned(yard: &Yard, instance: &str, network: &str) -> Option<Ipv4Addr> {
    let plugs: &[PlugSpec] = &yard.instance(instance)?.plugs;
    plugs.iter().find(|plug| plug.network == network)?.address.get()
}

/// How many instances a network has addresses for, beside `services` virtual addresses.
pub(crate) fn room(network: &NetworkSpec, services: usize) -> u32 {
    let services = u32::try_from(services).unwrap_or(u32::MAX);
    let set_aside = network.dhcp.and_then(|dhcp| dhcp.range).map_or(0, |range| range.count());
    let others = OWN_ADDRESSES.saturating_add(services).saturating_add(set_aside);
    network.config().usable4().saturating_sub(others)
}

/// Every address that an instance gets which asks for none, ascending.
fn instance_addresses(
    network: &NetworkSpec,
    services: usize,
) -> impl Iterator<Item = Ipv4Addr> + use<> {
    let (config, last) = (network.config(), last(network, services));
    let gateway = config.gateway4();
    let free = move |address: &Ipv4Addr| *address != gateway && !config.is_set_aside(*address);
    let first = network.config().nth4(0).to_bits();
    (1..=last).map(move |number| Ipv4Addr::from_bits(first.wrapping_add(number))).filter(free)
}

/// True for an address that an instance may have.
pub(crate) fn is_instance_address(
    network: &NetworkSpec,
    services: usize,
    address: Ipv4Addr,
) -> bool {
    let config = network.config();
    let number = address.to_bits().wrapping_sub(network.subnet.network().to_bits());
    let fits = (1..=last(network, services)).contains(&number) || config.is_set_aside(address);
    fits && address != config.gateway4()
}

/// The number of the highest address below those of services and `host.<zone>`.
fn last(network: &NetworkSpec, services: usize) -> u32 {
    let config = network.config();
    let all = (1..config.usable4()).rev();
    let mut free = all.filter(|number| !config.is_set_aside(config.nth4(*number)));
    free.nth(services).unwrap_or(0)
}
