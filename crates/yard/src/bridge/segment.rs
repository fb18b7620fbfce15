//! The bridge with the gateway's addresses: what it is to be like, and the plan that makes it.

use std::net::IpAddr;

use ipnet::IpNet;
use netyard_engine::config::{Config, Mode, Uplink};
use netyard_engine::control::{ControlError, ControlErrorKind};
use netyard_link::plan::{Kernel, Owner, Place, Plan, Step};
use netyard_link::rtnetlink::{BridgeOptions, Link, LinkName, MAIN_TABLE, PortOptions, Route};
use netyard_link::sysctl::Key;
use netyard_wire::MacAddr;

use super::{checks, failed, names, refused};
use crate::model::DEFAULT_MTU;

/// `FE80::/10` as interfaces have it.
const LINK_LOCAL_PREFIX: u8 = 64;

/// The segment as it is to be.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) bridge: LinkName,
    /// There is one of that name, which is not ours.
    pub(super) joined: Option<Link>,
    /// The card that becomes its port.
    pub(super) card: Option<Link>,
    pub(super) mac: MacAddr,
    pub(super) mtu: u16,
    /// The host has IPv6.
    pub(super) ipv6: bool,
    gateway: [IpNet; 2],
    link_local: IpNet,
    /// Settings of other links that forwarding would change.
    advertised: Vec<Key>,
}

impl Wanted {
    /// Looks at the machine; refuses what cannot be.
    pub(super) fn look(
        config: &Config,
        owner: &Owner,
        kernel: &mut Kernel,
    ) -> Result<Self, ControlError> {
        let Mode::Bridge(wanted) = &config.mode else {
            return Err(refused(ControlErrorKind::Malformed, "this is no network in bridge mode"));
        };
        checks::features(kernel.features())?;
        let bridge = match &wanted.name {
            Some(name) => name.parse().map_err(|error| failed(&error))?,
            None => names::bridge(&config.name)?,
        };
        let links = kernel.here().and_then(|here| here.links()).map_err(|error| failed(&error))?;
        let joined = checks::joined(&bridge, &links, owner)?;
        let card = match &config.uplink {
            Uplink::Card(name) => Some(checks::card(name, &bridge, &links, owner)?),
            _ => None,
        };
        let gateway = [
            net(config.gateway4().into(), config.subnet4.prefix_len())?,
            net(config.gateway6().into(), config.subnet6.prefix_len())?,
        ];
        let routes = kernel.here().and_then(|here| here.routes(None));
        let routes = routes.map_err(|error| failed(&error))?;
        // The networks of the bridge and of the card are this one's.
        let own: Vec<_> = joined.iter().chain(&card).map(|link| link.index).collect();
        let foreign = |route: &&Route| route.link.is_none_or(|link| !own.contains(&link));
        checks::overlaps(config, routes.iter().filter(foreign), &links)?;
        if let Some(card) = &card {
            checks::on_card(config, card, kernel)?;
        }
        if let Some(bridge) = &joined {
            checks::on_bridge(config, bridge, &routes, kernel)?;
        }
        let mac = match (&joined, &card) {
            (Some(link), _) | (None, Some(link)) => link.mac.unwrap_or(config.gateway_mac),
            (None, None) => config.gateway_mac,
        };
        let mtu = match (&joined, &card) {
            (Some(link), _) | (None, Some(link)) => checks::mtu(wanted.mtu, link)?,
            (None, None) => {
                wanted.mtu.unwrap_or_else(|| of_the_uplink(&config.uplink, &routes, &links))
            }
        };
        let link_local = net(config.gateway_link_local().into(), LINK_LOCAL_PREFIX)?;
        let ipv6 = has_ipv6()?;
        let advertised = if ipv6 { advertised(&links)? } else { Vec::new() };
        Ok(Self { bridge, joined, card, mac, mtu, ipv6, gateway, link_local, advertised })
    }

    /// How a bridge of ours behaves. Groups go to their members: each new guest reports the groups of its
    /// addresses, and a thousand others would have to look at that. On a card's network asking for
    /// memberships is for the routers there.
    fn options(&self) -> BridgeOptions {
        /// Members spread their answers over it, seconds.
        const RESPONSE: u32 = 1;
        BridgeOptions {
            multicast_snooping: Some(self.card.is_none()),
            multicast_querier: self.card.is_none().then_some(RESPONSE),
            ..BridgeOptions::default()
        }
    }

    /// A plan with the steps that make it behind those that it has.
    pub(super) fn steps(&self, config: &Config, mut plan: Plan) -> Result<Plan, ControlError> {
        let here = || Place::here(self.bridge.clone());
        let set = |key: String, value: &str| {
            let key: Key = key.parse().map_err(|error| failed(&error))?;
            Ok::<_, ControlError>(Step::Sysctl { namespace: None, key, value: value.into() })
        };
        plan = plan.step(set("net/ipv4/ip_forward".into(), "1")?);
        if self.ipv6 {
            // First: switching forwarding on forgets what routers have advertised, and does not
            // listen to them any more, but where this says otherwise.
            for key in &self.advertised {
                plan = plan.step(Step::Sysctl {
                    namespace: None,
                    key: key.clone(),
                    value: "2".into(),
                });
            }
            plan = plan.step(set("net/ipv6/conf/all/forwarding".into(), "1")?);
        }
        if self.joined.is_some() {
            plan = plan.step(Step::Up { at: here() });
        } else {
            plan = plan.step(Step::Bridge {
                name: self.bridge.clone(),
                mac: Some(self.mac),
                mtu: Some(self.mtu.into()),
                options: self.options(),
            });
            if self.ipv6 {
                // A card's routers advertise to the bridge now; else there is none but us.
                let accept = if self.card.is_some() { "2" } else { "0" };
                let own = |name: &str| format!("net/ipv6/conf/{}/{name}", self.bridge);
                plan = plan.step(set(own("accept_ra"), accept)?);
                // Usable at once: whoever else had it would be an impostor.
                if self.card.is_none() {
                    plan = plan.step(Step::Address { at: here(), net: self.link_local });
                }
            }
        }
        if let Some(card) = &self.card {
            let link = LinkName::try_from(card.name.clone()).map_err(|error| failed(&error))?;
            plan = plan
                .step(Step::Up { at: Place::here(link.clone()) })
                .step(Step::Move { from: link.clone(), to: self.bridge.clone() })
                .step(Step::Join {
                    link,
                    bridge: self.bridge.clone(),
                    port: PortOptions::default(),
                });
        }
        for net in self.gateway {
            if self.ipv6 || net.addr().is_ipv4() {
                plan = plan.step(Step::Address { at: here(), net });
            }
        }
        // Somebody listens there for those that guests may reach.
        let alias = [IpAddr::V4(config.host4()), IpAddr::V6(config.host6())];
        for address in alias.into_iter().filter(|_| !config.host.is_empty()) {
            if self.ipv6 || address.is_ipv4() {
                plan = plan.step(Step::Address { at: here(), net: IpNet::from(address) });
            }
        }
        Ok(plan)
    }
}

fn net(address: IpAddr, len: u8) -> Result<IpNet, ControlError> {
    IpNet::new(address, len)
        .map_err(|_| refused(ControlErrorKind::Malformed, format!("{address}/{len} is no prefix")))
}

/// Without a wish, no packet is larger than those that can leave, whichever family they are of.
fn of_the_uplink(uplink: &Uplink, routes: &[Route], links: &[Link]) -> u16 {
    let best = |ipv4: bool| {
        let default = routes.iter().filter(|route| {
            route.destination.prefix_len() == 0
                && route.destination.addr().is_ipv4() == ipv4
                && route.table == MAIN_TABLE
        });
        let best = default.min_by_key(|route| route.metric.unwrap_or_default())?;
        links.iter().find(|link| Some(link.index) == best.link).map(|link| checks::fit(link.mtu))
    };
    let narrowest = [true, false].into_iter().filter(|_| *uplink != Uplink::None).filter_map(best);
    narrowest.min().map_or(DEFAULT_MTU, |mtu| mtu.clamp(SMALLEST_MTU, DEFAULT_MTU))
}

/// Every IPv6 link has at least this (RFC 8200 section 5).
const SMALLEST_MTU: u16 = 1280;

fn has_ipv6() -> Result<bool, ControlError> {
    let read = |key: &str| key.parse::<Key>()?.get(None);
    let off = read("net/ipv6/conf/default/disable_ipv6").map_err(|error| failed(&error))?;
    Ok(off.is_some_and(|off| off == "0"))
}

/// Links that listen to router advertisements as long as they do not forward, and those that listen
/// because another network has told them to.
fn advertised(links: &[Link]) -> Result<Vec<Key>, ControlError> {
    let mut keys = Vec::new();
    for name in links.iter().map(|link| link.name.as_str()).chain(["default"]) {
        let read = |setting: &str| {
            let key: Key = format!("net/ipv6/conf/{name}/{setting}").parse()?;
            Ok::<_, netyard_link::Error>((key.get(None)?, key))
        };
        let (accepts, key) = read("accept_ra").map_err(|error| failed(&error))?;
        let (forwards, _) = read("forwarding").map_err(|error| failed(&error))?;
        let listens = match accepts.as_deref() {
            Some("1") => forwards.as_deref() == Some("0"),
            accepts => accepts == Some("2"),
        };
        if listens && name != "lo" {
            keys.push(key);
        }
    }
    Ok(keys)
}
