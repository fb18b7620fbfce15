//! Machines that let packets of the network through: to subnets behind them, or to everywhere.

use std::fs;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netyard_link::Result;
use netyard_link::nft::{Batch, Chain, Hook, Priority, Rule, Selector, Table};
use netyard_link::plan::{Plan, Step};
use netyard_link::rtnetlink::LinkName;
use netyard_link::sysctl::Key;

/// What a machine lets through from its tunnel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Through<'a> {
    /// The tunnel's device.
    pub(crate) device: &'a str,
    /// The network.
    pub(crate) network: Ipv4Net,
    /// Its IPv6 prefix.
    pub(crate) network6: Option<Ipv6Net>,
    /// Where to; `/0`: everywhere.
    pub(crate) subnets: &'a [IpNet],
    /// Whether they have this machine's addresses there.
    pub(crate) translate: bool,
}

/// With the steps that let packets of the network through to subnets, with this machine's addresses if those there
/// do not know a way back.
pub(crate) fn forward(mut plan: Plan, owner: &str, through: &Through<'_>) -> Result<Plan> {
    let set = |key: Key, value: &str| Step::Sysctl { namespace: None, key, value: value.into() };
    if through.subnets.iter().any(|net| net.addr().is_ipv4()) {
        plan = plan.step(set("net/ipv4/ip_forward".parse()?, "1"));
    }
    if through.subnets.iter().any(|net| net.addr().is_ipv6()) {
        // First: a router does not listen to other routers, but where this says otherwise.
        for key in listening() {
            plan = plan.step(set(key, "2"));
        }
        plan = plan.step(set("net/ipv6/conf/all/forwarding".parse()?, "1"));
    }
    let table = Table::inet(&format!("netyard-{owner}-through"));
    let passing = Chain::base(&table, "passing", Hook::Forward, Priority::MANGLE);
    let leaving = Chain::base(&table, "leaving", Hook::NatPostrouting, Priority::SNAT);
    let tunnel = LinkName::try_from(through.device.to_owned())?;
    let mut content = Batch::new();
    content.add_chain(&passing).add_chain(&leaving);
    for side in [Selector::InputName, Selector::OutputName] {
        let rule = Rule::new(&passing).comment("segments fit the way");
        content.add_rule(&rule.is(side, &tunnel).clamp_mss_to_route());
    }
    for subnet in through.subnets.iter().filter(|_| through.translate) {
        let (source, destination, network) = match subnet {
            IpNet::V4(_) => {
                (Selector::Ip4Source, Selector::Ip4Destination, Some(IpNet::V4(through.network)))
            }
            IpNet::V6(_) => {
                (Selector::Ip6Source, Selector::Ip6Destination, through.network6.map(IpNet::V6))
            }
        };
        let Some(network) = network else { continue };
        content.add_rule(
            &Rule::new(&leaving)
                .comment(
                    "what comes from the network has the address of the link that it leaves by",
                )
                .within(source, network)
                .is_not(Selector::OutputName, &tunnel)
                .within(destination, *subnet)
                .masquerade(),
        );
    }
    Ok(plan.step(Step::Table { table, content }))
}

/// The settings of links that listen to router advertisements only while nothing is forwarded.
fn listening() -> Vec<Key> {
    let links = fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten();
    let names = links.filter_map(|link| link.file_name().into_string().ok());
    let keys = names.filter(|name| !matches!(name.as_str(), "all" | "default" | "lo"));
    let keys =
        keys.filter_map(|name| format!("net/ipv6/conf/{name}/accept_ra").parse::<Key>().ok());
    keys.filter(|key| matches!(key.get(None), Ok(Some(value)) if value == "1")).collect()
}
