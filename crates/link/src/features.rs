//! What this kernel can do, found out once by trying it in a namespace made for that.

use netyard_sys::namespace::{self, Namespaces};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::nft::{self, Batch, Chain, Hook, Nftables, Priority, Reject, Rule, Table};
use crate::rtnetlink::{
    BridgeOptions, Kind, LinkChange, LinkIndex, LinkName, NewLink, PeerEnd, PortOptions, Rtnetlink,
    VxlanOptions,
};
use crate::sysctl::Key;

/// What this kernel can do. A field that is false has a fallback, or is a refusal that names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Features {
    /// Links can be bridges.
    pub bridge: bool,
    /// Links can be pairs.
    pub veth: bool,
    /// Links can be VXLAN ends.
    pub vxlan: bool,
    /// Ports of a bridge can be isolated from each other (Linux 4.18).
    pub port_isolation: bool,
    /// Ports can be locked to known source addresses (Linux 5.18).
    pub port_locking: bool,
    /// Addresses can carry a mark of who made them (Linux 5.18).
    pub address_mark: bool,
    /// There is nf_tables, for IPv4 and IPv6 together.
    pub nftables: bool,
    /// There is nf_tables for frames that bridges forward.
    pub nftables_bridge: bool,
    /// Frames that bridges forward can be refused with an answer.
    pub bridge_reject: bool,
    /// Connections can be tracked in the bridge family.
    pub bridge_conntrack: bool,
    /// Turns can be taken exactly (`numgen inc`).
    pub turns: bool,
    /// Connections can be translated: dnat, masquerade.
    pub nat: bool,
    /// The kernel can be asked what kind of address a destination is.
    pub fib: bool,
    /// Tables can be owned and persistent (Linux 6.9): `nft flush ruleset` passes them over.
    pub table_owner: bool,
}

/// Whether frames between ports of one bridge pass the IP rules too (`br_netfilter`), in one
/// namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct BridgeFilter {
    /// IPv4 packets do.
    pub ipv4: bool,
    /// IPv6 packets do.
    pub ipv6: bool,
}

impl BridgeFilter {
    /// How it is in the calling thread's namespace. Without `br_netfilter` nothing does.
    ///
    /// # Errors
    /// A setting cannot be read.
    pub fn current() -> Result<Self> {
        let on = |name: &str| {
            let key: Key = format!("net/bridge/bridge-nf-call-{name}").parse()?;
            Ok::<_, Error>(key.get(None)?.is_some_and(|value| value != "0"))
        };
        Ok(Self { ipv4: on("iptables")?, ipv6: on("ip6tables")? })
    }
}

impl Features {
    /// Tries everything, in a network namespace that goes at once.
    ///
    /// # Errors
    /// No namespace can be made: it needs `CAP_SYS_ADMIN`.
    pub fn probe() -> Result<Self> {
        namespace::within_new(Namespaces::NETWORK, probe)
            .map_err(|error| Error::io("make a namespace to try features in", error))?
    }

    /// Without some of them, by name (`table-owner`): for tests of the fallbacks.
    ///
    /// # Errors
    /// [`Error::Invalid`]: there is no feature of that name.
    pub fn without<'n>(mut self, names: impl IntoIterator<Item = &'n str>) -> Result<Self> {
        for name in names {
            match self.all().into_iter().find(|(known, _)| *known == name) {
                Some((_, feature)) => *feature = false,
                None => return Err(Error::Invalid(format!("there is no feature {name:?}"))),
            }
        }
        Ok(self)
    }

    /// The features beside their names.
    fn all(&mut self) -> [(&'static str, &mut bool); 14] {
        [
            ("bridge", &mut self.bridge),
            ("veth", &mut self.veth),
            ("vxlan", &mut self.vxlan),
            ("port-isolation", &mut self.port_isolation),
            ("port-locking", &mut self.port_locking),
            ("address-mark", &mut self.address_mark),
            ("nftables", &mut self.nftables),
            ("nftables-bridge", &mut self.nftables_bridge),
            ("bridge-reject", &mut self.bridge_reject),
            ("bridge-conntrack", &mut self.bridge_conntrack),
            ("turns", &mut self.turns),
            ("nat", &mut self.nat),
            ("fib", &mut self.fib),
            ("table-owner", &mut self.table_owner),
        ]
    }
}

/// Runs in a new namespace.
fn probe() -> Result<Features> {
    let mut found = Features::default();
    links(&mut found)?;
    // A kernel without nf_tables has no such socket, or refuses the first table.
    let Ok(mut kernel) = Nftables::open() else { return Ok(found) };
    rules(&mut found, &mut kernel);
    Ok(found)
}

fn links(found: &mut Features) -> Result<()> {
    const LOOPBACK: LinkIndex = LinkIndex(1);
    let mut kernel = Rtnetlink::open()?;
    let (bridge, near, far, overlay) =
        (name("bridge0")?, name("near0")?, name("far0")?, name("overlay0")?);
    let options = Kind::Bridge(BridgeOptions::default());
    let master = kernel.add_link(&NewLink::new(&bridge, options)).ok();
    found.bridge = master.is_some();
    let pair = Kind::Veth(PeerEnd { name: &far, mac: None, namespace: None });
    let port = kernel.add_link(&NewLink::new(&near, pair).master(master)).ok();
    found.veth = port.is_some();
    let options = Kind::Vxlan(VxlanOptions::new(1));
    found.vxlan = kernel.add_link(&NewLink::new(&overlay, options)).is_ok();
    if let Some(port) = port {
        let isolated = PortOptions { isolated: Some(true), ..PortOptions::default() };
        let locked = PortOptions { locked: Some(true), ..PortOptions::default() };
        // A kernel that does not know an option may pass it over: read it back.
        let mut takes = |options: PortOptions| -> Result<bool> {
            let set = kernel.change_link(port, &LinkChange::new().port(options));
            let is = kernel.link_by_index(port)?.and_then(|link| link.port);
            Ok(set.is_ok() && is.is_some_and(|is| is.satisfies(&options)))
        };
        found.port_isolation = takes(isolated)?;
        found.port_locking = takes(locked)?;
    }
    let net = ipnet::IpNet::new_assert([127, 0, 0, 2].into(), 32);
    found.address_mark = kernel.add_address(LOOPBACK, net).is_ok()
        && kernel.addresses(Some(LOOPBACK))?.iter().any(|it| it.net == net && it.is_ours());
    Ok(())
}

fn rules(found: &mut Features, kernel: &mut Nftables) {
    use nft::Selector;
    let inet = Table::inet("probe");
    let bridge = Table::new(nft::Family::Bridge, "probe");
    let mut takes = |build: &dyn Fn(&mut Batch)| {
        let mut batch = Batch::new();
        build(&mut batch);
        kernel.commit(&batch).is_ok()
    };
    let base = |table: &Table, hook| Chain::base(table, "probe", hook, Priority::FILTER);
    found.nftables = takes(&|batch| {
        batch.add_table(&inet);
    });
    found.nftables_bridge = takes(&|batch| {
        batch.add_table(&bridge);
    });
    // Each trial leaves nothing: what it needs is made and removed in one transaction.
    let mut rule = |table: &Table, hook, build: &dyn Fn(Rule) -> Rule| {
        let chain = base(table, hook);
        takes(&|batch| {
            batch.add_chain(&chain).add_rule(&build(Rule::new(&chain)));
            batch.flush_chain(&chain).remove_chain(&chain);
        })
    };
    found.turns = rule(&inet, Hook::Forward, &|rule| {
        rule.is(Selector::Turn { modulus: 2, offset: 0 }, nft::Value::number(0))
    });
    found.fib =
        rule(&inet, Hook::Prerouting, &|rule| rule.is(Selector::FibDestinationType, nft::LOCAL));
    found.nat = rule(&inet, Hook::NatPostrouting, &Rule::masquerade);
    found.bridge_reject = rule(&bridge, Hook::Input, &|rule| rule.reject(Reject::PortUnreachable));
    found.bridge_conntrack = rule(&bridge, Hook::Forward, &|rule| rule.ct_state(nft::CtState::NEW));
    let owned = Table::inet("owned").owned(true);
    found.table_owner = takes(&|batch| {
        batch.add_table(&owned);
    });
}

fn name(name: &str) -> Result<LinkName> {
    name.parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_masked_by_name() {
        let mut all = Features::default();
        all.all().into_iter().for_each(|(_, feature)| *feature = true);
        let masked = all.without(["table-owner", "vxlan"]).unwrap();
        assert_eq!(masked, Features { table_owner: false, vxlan: false, ..all });
        assert!(all.without(["no-such"]).is_err());
        // Every field has a name.
        let none = all.without(Features::default().all().map(|(name, _)| name)).unwrap();
        assert_eq!(none, Features::default());
    }
}
