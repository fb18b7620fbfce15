//! The network's own names: guests, services, gateway and host, and the way back from their
//! addresses.
//!
//! They are what is plugged in at the moment of the question, so nothing has to be kept in step.

use std::net::IpAddr;

use netyard_wire::dns::{Hosts, Zone};

use crate::config::Config;
use crate::guests::Guests;
use crate::service::Services;

/// The name of the gateway, which serves the zone.
const GATEWAY: &str = "gateway";
const HOST: &str = "host";

/// The zones of a network.
pub(super) fn zone(config: &Config) -> Zone {
    let (four, six) = (config.subnet4, config.subnet6);
    let subnets =
        [(four.network().into(), four.prefix_len()), (six.network().into(), six.prefix_len())];
    Zone::new(&config.zone, GATEWAY, subnets)
}

/// Who is in them.
pub(super) struct Members<'a> {
    pub(super) config: &'a Config,
    pub(super) guests: &'a Guests,
    pub(super) services: &'a Services,
}

impl Hosts for Members<'_> {
    /// A service goes before an instance of its name.
    fn addresses(&self, host: &str) -> Option<Vec<IpAddr>> {
        let Self { config, guests, services } = self;
        let own: Option<[IpAddr; 2]> = match host {
            GATEWAY => Some([config.gateway4().into(), config.gateway6().into()]),
            HOST => Some([config.host4().into(), config.host6().into()]),
            host => services.id_of(host).and_then(|id| Some(services.get(id)?.addresses())),
        };
        if let Some(addresses) = own {
            return Some(addresses.to_vec());
        }
        let addresses: Vec<IpAddr> = guests
            .by_name(host)
            .into_iter()
            .flat_map(|guest| [guest.address4.into(), guest.address6.into()])
            .collect();
        (!addresses.is_empty()).then_some(addresses)
    }

    fn host(&self, address: IpAddr) -> Option<String> {
        let Self { config, guests, services } = self;
        let host = if config.is_gateway(address) {
            GATEWAY
        } else if config.is_host(address) {
            HOST
        } else if let Some(guest) = guests.by_address(address) {
            &guest.name
        } else {
            services.get(services.by_address(address)?)?.name()
        };
        Some(host.to_owned())
    }
}
