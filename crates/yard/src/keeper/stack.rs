//! What a program with a TCP/IP stack of its own is told: the configuration that `netyard-stack` reads.

use std::fmt::Write as _;

use crate::instance::{FIRST_DESCRIPTOR, PlugConfiguration};

/// The variable that holds it.
pub(super) const VARIABLE: &str = "NETYARD_STACK";

/// The configuration of a stack with these plugs, each on the descriptor of its place. The first plug leads
/// out; every gateway is a name server, and short names are looked up in these domains.
pub(super) fn configuration(plugs: &[PlugConfiguration], search: &[&str]) -> String {
    let mut text = String::new();
    for ((number, descriptor), plug) in (1..).zip(FIRST_DESCRIPTOR..).zip(plugs) {
        let PlugConfiguration { mac, mtu, address4, address6, gateway } = plug;
        let ((address4, length4), (address6, length6)) = (address4, address6);
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "nic id={number} ether={mac} mtu={mtu} fd={descriptor}; \
             ip nic={number} addr={address4}/{length4} addr={address6}/{length6}; "
        );
        if number == 1 {
            let (gateway4, gateway6) = gateway;
            let _ = write!(
                text,
                "route nic=1 ipnet=0.0.0.0/0 gw={gateway4}; route nic=1 ipnet=::/0 gw={gateway6}; "
            );
        }
    }
    text.push_str("dns");
    for plug in plugs {
        let _ = write!(text, " ip={}", plug.gateway.0);
    }
    for domain in search {
        let _ = write!(text, " search={domain}");
    }
    text
}

#[cfg(test)]
mod tests {
    use netyard_wire::MacAddr;

    use super::*;

    #[test]
    fn the_first_plug_leads_out_and_every_gateway_knows_names() {
        let plug = |n: u8| PlugConfiguration {
            mac: MacAddr([2, 0, 0, 0, 0, n]),
            mtu: 1500,
            address4: ([10, 0, n, 2].into(), 24),
            address6: ("fd00::2".parse().unwrap(), 64),
            gateway: ([10, 0, n, 1].into(), "fd00::1".parse().unwrap()),
        };
        assert_eq!(
            configuration(&[plug(1), plug(2)], &["lan", "back"]),
            "nic id=1 ether=02:00:00:00:00:01 mtu=1500 fd=100; \
             ip nic=1 addr=10.0.1.2/24 addr=fd00::2/64; \
             route nic=1 ipnet=0.0.0.0/0 gw=10.0.1.1; route nic=1 ipnet=::/0 gw=fd00::1; \
             nic id=2 ether=02:00:00:00:00:02 mtu=1500 fd=101; \
             ip nic=2 addr=10.0.2.2/24 addr=fd00::2/64; \
             dns ip=10.0.1.1 ip=10.0.2.1 search=lan search=back"
        );
    }
}
