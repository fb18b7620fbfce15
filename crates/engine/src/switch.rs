//! The switch: which plug a frame goes to.
//!
//! Sans-IO: one verdict for each frame, nothing else. A hardware address belongs to one plug at a
//! time. Addresses that netyard gave out are *bound*: they never move and never age. On a plug
//! without a bound address they are *learned* from the frames that come in, and belong to that
//! plug until it has been silent for [`AGEING`]. A frame whose source address belongs to another
//! plug, or to the gateway, is dropped, so nobody can take a neighbour's or the gateway's traffic.
//!
//! The table is bounded: a plug that shows more than [`LEARNED_PER_PLUG`] addresses displaces its
//! own stalest one, and in all there are at most [`LEARNED_IN_ALL`].

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use netyard_wire::MacAddr;
use netyard_wire::ethernet::Ethernet;

use crate::edge::PlugId;

/// How long a learned address stays without traffic (IEEE 802.1Q section 8.8.3, recommended value).
const AGEING: Duration = Duration::from_secs(300);

/// Learned addresses of one plug: enough for the nested guests of a virtual machine.
const LEARNED_PER_PLUG: usize = 64;

/// Learned addresses of all plugs.
const LEARNED_IN_ALL: usize = 4096;

/// Where a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// To the gateway only.
    Gateway,
    /// To one plug.
    Plug(PlugId),
    /// To every plug but its source.
    Flood {
        /// And to the gateway.
        gateway: bool,
    },
    /// Nowhere; the name of the drop counter.
    Drop(&'static str),
}

/// The plugs of a network and the hardware addresses behind them.
#[derive(Debug)]
pub(crate) struct Switch {
    gateway: MacAddr,
    plugs: BTreeMap<PlugId, Port>,
    table: HashMap<MacAddr, Station>,
    learned: usize,
}

/// The switch's side of a plug.
#[derive(Debug)]
enum Port {
    /// The only address that its frames may come from.
    Bound(MacAddr),
    /// Addresses learned so far, [`LEARNED_PER_PLUG`] at most.
    Learning(Vec<MacAddr>),
}

/// Where an address lives.
#[derive(Debug)]
struct Station {
    plug: PlugId,
    /// When it was last a source; `None` for a bound address, which does not age.
    seen: Option<Instant>,
}

impl Station {
    fn is_stale(&self, now: Instant) -> bool {
        self.seen.is_some_and(|seen| now.saturating_duration_since(seen) >= AGEING)
    }
}

impl Switch {
    /// An empty switch; `gateway` is the gateway's hardware address.
    pub(crate) fn new(gateway: MacAddr) -> Self {
        Self { gateway, plugs: BTreeMap::new(), table: HashMap::new(), learned: 0 }
    }

    /// Adds a plug, with `mac` as the only address it may use if given. Returns false, and changes
    /// nothing, if the plug exists or the address is no station's, the gateway's or bound to
    /// another plug.
    #[must_use]
    pub(crate) fn add_plug(&mut self, plug: PlugId, mac: Option<MacAddr>) -> bool {
        if self.plugs.contains_key(&plug) {
            return false;
        }
        let Some(mac) = mac else {
            self.plugs.insert(plug, Port::Learning(Vec::new()));
            return true;
        };
        if !is_station(mac) || mac == self.gateway {
            return false;
        }
        match self.table.get(&mac) {
            Some(Station { seen: None, .. }) => return false,
            // What netyard gave out goes before what somebody happened to use.
            Some(_) => self.forget(mac),
            None => {}
        }
        self.table.insert(mac, Station { plug, seen: None });
        self.plugs.insert(plug, Port::Bound(mac));
        true
    }

    /// Takes a plug out, with all its addresses.
    pub(crate) fn remove_plug(&mut self, plug: PlugId) {
        match self.plugs.remove(&plug) {
            None => {}
            Some(Port::Bound(mac)) => {
                self.table.remove(&mac);
            }
            Some(Port::Learning(addresses)) => {
                for mac in &addresses {
                    self.table.remove(mac);
                }
                self.learned = self.learned.saturating_sub(addresses.len());
            }
        }
    }

    /// The plugs, ascending.
    pub(crate) fn plugs(&self) -> impl Iterator<Item = PlugId> + '_ {
        self.plugs.keys().copied()
    }

    /// Decides about a frame that came in on `plug`, and learns from it.
    pub(crate) fn ingress(&mut self, now: Instant, plug: PlugId, header: &Ethernet) -> Verdict {
        if let Err(reason) = self.admit(now, plug, header.source) {
            return Verdict::Drop(reason);
        }
        let destination = header.destination;
        if destination == self.gateway {
            return Verdict::Gateway;
        }
        if is_link_control(destination) {
            return Verdict::Drop("link-control");
        }
        if destination.is_multicast() {
            return Verdict::Flood { gateway: true };
        }
        match self.table.get(&destination) {
            Some(station) if station.is_stale(now) => {
                self.forget(destination);
                Verdict::Flood { gateway: false }
            }
            Some(station) if station.plug == plug => Verdict::Drop("same-plug"),
            Some(station) => Verdict::Plug(station.plug),
            None => Verdict::Flood { gateway: false },
        }
    }

    /// Checks the source address of a frame, and learns it.
    fn admit(&mut self, now: Instant, plug: PlugId, source: MacAddr) -> Result<(), &'static str> {
        match self.plugs.get(&plug) {
            None => return Err("unknown-plug"),
            Some(Port::Bound(mac)) if *mac == source => return Ok(()),
            Some(Port::Bound(_)) => return Err("spoofed-mac"),
            Some(Port::Learning(_)) => {}
        }
        if !is_station(source) {
            return Err("bad-source-mac");
        }
        if source == self.gateway {
            return Err("spoofed-mac");
        }
        match self.table.get_mut(&source) {
            Some(station) if station.plug == plug => {
                station.seen = Some(now);
                Ok(())
            }
            Some(station) if !station.is_stale(now) => Err("spoofed-mac"),
            Some(_) => {
                self.forget(source);
                self.learn(now, plug, source)
            }
            None => self.learn(now, plug, source),
        }
    }

    /// Adds an address that is not in the table.
    fn learn(&mut self, now: Instant, plug: PlugId, source: MacAddr) -> Result<(), &'static str> {
        let Some(Port::Learning(addresses)) = self.plugs.get(&plug) else {
            return Err("unknown-plug");
        };
        let full = addresses.len() >= LEARNED_PER_PLUG || self.learned >= LEARNED_IN_ALL;
        if full {
            let seen = |mac: &MacAddr| self.table.get(mac).and_then(|station| station.seen);
            let Some(stalest) = addresses.iter().copied().min_by_key(seen) else {
                return Err("mac-table-full");
            };
            self.forget(stalest);
        }
        if let Some(Port::Learning(addresses)) = self.plugs.get_mut(&plug) {
            addresses.push(source);
        }
        self.table.insert(source, Station { plug, seen: Some(now) });
        self.learned += 1;
        Ok(())
    }

    /// Takes a learned address out.
    fn forget(&mut self, mac: MacAddr) {
        let Some(station) = self.table.remove(&mac) else { return };
        if let Some(Port::Learning(addresses)) = self.plugs.get_mut(&station.plug) {
            addresses.retain(|address| *address != mac);
        }
        self.learned = self.learned.saturating_sub(1);
    }
}

/// True for addresses that one station can have: neither a group's nor all zero.
pub(crate) fn is_station(mac: MacAddr) -> bool {
    !mac.is_multicast() && mac != MacAddr([0; 6])
}

/// True for the group addresses that a bridge never passes on: spanning tree, pause frames, LLDP
/// (IEEE 802.1Q table 8-1).
fn is_link_control(mac: MacAddr) -> bool {
    matches!(mac.0, [0x01, 0x80, 0xc2, 0x00, 0x00, 0x00..=0x0f])
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0xff]);
    const ONE: PlugId = PlugId(1);
    const TWO: PlugId = PlugId(2);
    const THREE: PlugId = PlugId(3);

    fn mac(n: u16) -> MacAddr {
        let [high, low] = n.to_be_bytes();
        MacAddr([0x02, 0, 0, 1, high, low])
    }

    fn header(source: MacAddr, destination: MacAddr) -> Ethernet {
        Ethernet { destination, source, ethertype: 0x0800 }
    }

    fn learning_switch() -> Switch {
        let mut switch = Switch::new(GATEWAY);
        for plug in [ONE, TWO, THREE] {
            assert!(switch.add_plug(plug, None));
        }
        switch
    }

    #[test]
    fn unknown_floods_until_the_station_speaks() {
        let now = Instant::now();
        let mut switch = learning_switch();
        let flood = Verdict::Flood { gateway: false };
        assert_eq!(switch.ingress(now, ONE, &header(mac(1), mac(2))), flood);
        assert_eq!(switch.ingress(now, TWO, &header(mac(2), mac(1))), Verdict::Plug(ONE));
        assert_eq!(switch.ingress(now, ONE, &header(mac(1), mac(2))), Verdict::Plug(TWO));
        assert_eq!(switch.ingress(now, TWO, &header(mac(2), mac(2))), Verdict::Drop("same-plug"));
    }

    #[test]
    fn groups_reach_all_and_the_gateway_alone_gets_its_own() {
        let now = Instant::now();
        let mut switch = learning_switch();
        let all = Verdict::Flood { gateway: true };
        assert_eq!(switch.ingress(now, ONE, &header(mac(1), MacAddr::BROADCAST)), all);
        let group = MacAddr::ipv6_multicast("ff02::1".parse().unwrap());
        assert_eq!(switch.ingress(now, ONE, &header(mac(1), group)), all);
        assert_eq!(switch.ingress(now, ONE, &header(mac(1), GATEWAY)), Verdict::Gateway);
        let lldp = MacAddr([0x01, 0x80, 0xc2, 0, 0, 0x0e]);
        assert_eq!(switch.ingress(now, ONE, &header(mac(1), lldp)), Verdict::Drop("link-control"));
        assert_eq!(switch.plugs().collect::<Vec<_>>(), [ONE, TWO, THREE]);
    }

    #[test]
    fn nobody_takes_the_address_of_another_or_of_the_gateway() {
        let now = Instant::now();
        let mut switch = Switch::new(GATEWAY);
        assert!(switch.add_plug(ONE, Some(mac(1))));
        assert!(switch.add_plug(TWO, Some(mac(2))));
        assert!(switch.add_plug(THREE, None));
        for (plug, source, reason) in [
            (ONE, mac(2), "spoofed-mac"),
            (ONE, mac(9), "spoofed-mac"),
            (ONE, GATEWAY, "spoofed-mac"),
            (THREE, mac(1), "spoofed-mac"),
            (THREE, GATEWAY, "spoofed-mac"),
            (THREE, MacAddr::BROADCAST, "bad-source-mac"),
            (THREE, MacAddr([0; 6]), "bad-source-mac"),
            (PlugId(4), mac(1), "unknown-plug"),
        ] {
            let verdict = switch.ingress(now, plug, &header(source, GATEWAY));
            assert_eq!(verdict, Verdict::Drop(reason), "{source} on {plug:?}");
        }
        // None of that moved anything.
        assert_eq!(switch.ingress(now, TWO, &header(mac(2), mac(1))), Verdict::Plug(ONE));
    }

    #[test]
    fn a_bound_address_is_bound_once() {
        let mut switch = Switch::new(GATEWAY);
        assert!(switch.add_plug(ONE, Some(mac(1))));
        assert!(!switch.add_plug(ONE, None));
        for refused in [mac(1), GATEWAY, MacAddr::BROADCAST, MacAddr([0; 6])] {
            assert!(!switch.add_plug(TWO, Some(refused)), "{refused}");
        }
        switch.remove_plug(ONE);
        assert!(switch.add_plug(TWO, Some(mac(1))));
    }

    #[test]
    fn binding_takes_a_learned_address_away() {
        let now = Instant::now();
        let mut switch = learning_switch();
        switch.ingress(now, ONE, &header(mac(7), GATEWAY));
        assert!(switch.add_plug(PlugId(4), Some(mac(7))));
        assert_eq!(switch.ingress(now, TWO, &header(mac(2), mac(7))), Verdict::Plug(PlugId(4)));
        let verdict = switch.ingress(now, ONE, &header(mac(7), GATEWAY));
        assert_eq!(verdict, Verdict::Drop("spoofed-mac"));
    }

    #[test]
    fn learned_addresses_age_and_then_may_move() {
        let start = Instant::now();
        let mut switch = learning_switch();
        switch.ingress(start, ONE, &header(mac(1), GATEWAY));
        let before = start + AGEING - Duration::from_nanos(1);
        assert_eq!(switch.ingress(before, TWO, &header(mac(2), mac(1))), Verdict::Plug(ONE));
        let verdict = switch.ingress(before, TWO, &header(mac(1), GATEWAY));
        assert_eq!(verdict, Verdict::Drop("spoofed-mac"));
        let after = start + AGEING;
        let flood = Verdict::Flood { gateway: false };
        assert_eq!(switch.ingress(after, TWO, &header(mac(2), mac(1))), flood);
        assert_eq!(switch.ingress(after, TWO, &header(mac(1), GATEWAY)), Verdict::Gateway);
        assert_eq!(switch.ingress(after, THREE, &header(mac(3), mac(1))), Verdict::Plug(TWO));
    }

    #[test]
    fn bound_addresses_do_not_age() {
        let start = Instant::now();
        let mut switch = Switch::new(GATEWAY);
        assert!(switch.add_plug(ONE, Some(mac(1))));
        assert!(switch.add_plug(TWO, Some(mac(2))));
        let verdict = switch.ingress(start + 100 * AGEING, TWO, &header(mac(2), mac(1)));
        assert_eq!(verdict, Verdict::Plug(ONE));
    }

    #[test]
    fn a_plug_with_too_many_addresses_displaces_its_own_stalest() {
        let start = Instant::now();
        let mut switch = learning_switch();
        switch.ingress(start, TWO, &header(mac(1000), GATEWAY));
        for n in 0..u16::try_from(LEARNED_PER_PLUG).unwrap() + 1 {
            let at = start + Duration::from_secs(u64::from(n));
            assert_eq!(switch.ingress(at, ONE, &header(mac(n), GATEWAY)), Verdict::Gateway);
        }
        let now = start + Duration::from_secs(100);
        let mut towards = |n| switch.ingress(now, THREE, &header(mac(2000), mac(n)));
        assert_eq!(towards(0), Verdict::Flood { gateway: false });
        assert_eq!(towards(1), Verdict::Plug(ONE));
        assert_eq!(towards(1000), Verdict::Plug(TWO));
        assert_eq!(switch.learned, LEARNED_PER_PLUG + 2);
    }

    #[test]
    fn the_whole_table_is_bounded_and_removal_gives_room_back() {
        let now = Instant::now();
        let mut switch = Switch::new(GATEWAY);
        let plugs = LEARNED_IN_ALL / LEARNED_PER_PLUG;
        let mut n = 0u16;
        for plug in 0..plugs {
            let plug = PlugId(u32::try_from(plug).unwrap());
            assert!(switch.add_plug(plug, None));
            for _ in 0..LEARNED_PER_PLUG {
                switch.ingress(now, plug, &header(mac(n), GATEWAY));
                n += 1;
            }
        }
        let last = PlugId(9999);
        assert!(switch.add_plug(last, None));
        let newcomer = header(mac(n), GATEWAY);
        assert_eq!(switch.ingress(now, last, &newcomer), Verdict::Drop("mac-table-full"));
        assert_eq!(switch.table.len(), LEARNED_IN_ALL);
        switch.remove_plug(PlugId(0));
        assert_eq!(switch.ingress(now, last, &newcomer), Verdict::Gateway);
        assert_eq!(switch.learned, switch.table.len());
    }
}
