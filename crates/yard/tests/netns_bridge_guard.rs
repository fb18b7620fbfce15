//! Networks in bridge mode: what guests may send.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

mod bridge;

use std::net::Ipv6Addr;

use bridge::{Guest, Network, SOON, config, nft};
use netyard_engine::plumbing::Plumbing;
use netyard_testbed::{Background, isolate, peer, run};

/// Sends frames as they are, from a guest's link.
const SEND_FRAMES: &str = r#"
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("eth0", 0))
for frame in sys.argv[1:]:
    s.send(bytes.fromhex(frame))
"#;

/// Says what comes to a guest's link.
const HEAR_FRAMES: &str = r#"
import socket
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind(("eth0", 3))
print("listening")
while True:
    print(s.recv(2000).hex())
"#;

#[test]
fn guests_send_with_their_own_addresses_only() {
    isolate(|| {
        let mut network = Network::open(config("lab", "br1"));
        let (red, blue) = (network.guest("red", 11), network.guest("blue", 12));
        let python = |guest: &Guest, program: &str, arguments: &[String]| {
            let mut command = guest.namespace.command(peer("env"));
            command.args(["python3", "-u", "-c", program]).args(arguments);
            command
        };
        let mut ears = Background::start(&mut python(&blue, HEAR_FRAMES, &[]));
        ears.wait_for_line("listening", SOON);
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let own = hex(&red.plugged.mac.0);
        let asks = |mac: &str, sender: &str, address: &[u8], target: &[u8]| {
            let (address, target) = (hex(address), hex(target));
            let end = "00".repeat(18);
            format!(
                "ffffffffffff{mac}08060001080006040001{sender}{address}000000000000{target}{end}"
            )
        };
        let arp = |mac: &str, sender: &str, address: &[u8]| {
            asks(mac, sender, address, &blue.plugged.address4.octets())
        };
        // UDP without a checksum, to everybody.
        let ipv4 = |mac: &str, source: &[u8], port: u16| {
            let mut header = [0x45, 0, 0, 28, 0, 0, 0x40, 0, 0x40, 17, 0, 0].to_vec();
            header.extend(source);
            header.extend([255; 4]);
            let sum = netyard_wire::checksum::finish(netyard_wire::checksum::sum(&header));
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            let body = format!("{port:04x}004400080000");
            format!("ffffffffffff{mac}0800{}{body}", hex(&header))
        };
        let ipv6 = |mac: &str, source: Ipv6Addr, kind: u8, target: Ipv6Addr| {
            let to = "ff020000000000000000000000000001";
            let body = format!("{kind:02x}00000020000000{}", hex(&target.octets()));
            format!("333300000001{mac}86dd6000000000183aff{}{to}{body}", hex(&source.octets()))
        };
        let (red4, red6) = (red.plugged.address4.octets(), red.plugged.address6);
        let nobody = Ipv6Addr::UNSPECIFIED;
        let other = "020000000099";
        let (honest, lies) = (
            [
                arp(&own, &own, &red4),
                asks(&own, &own, &[0; 4], &red4),
                ipv4(&own, &red4, 4000),
                ipv6(&own, red6, 136, red6),
                ipv6(&own, nobody, 135, red6),
                ipv6(&own, nobody, 135, "fe80::77".parse().unwrap()),
                ipv6(&own, "fe80::77".parse().unwrap(), 136, "fe80::77".parse().unwrap()),
            ],
            [
                arp(other, &own, &red4),
                arp(&own, other, &red4),
                arp(&own, &own, &network.config.gateway4().octets()),
                ipv4(&own, &[192, 168, 1, 12], 4000),
                ipv4(&own, &[10, 9, 9, 9], 4000),
                ipv4(other, &red4, 4000),
                // A DHCP server, a router, a redirect.
                ipv4(&own, &red4, 67),
                ipv6(&own, red6, 134, red6),
                ipv6(&own, red6, 137, red6),
                // Somebody else, and the gateway.
                ipv6(&own, red6, 136, blue.plugged.address6),
                ipv6(&own, blue.plugged.address6, 135, red6),
                ipv6(&own, red6, 136, network.segment.mac.link_local()),
                ipv6(&own, network.segment.mac.link_local(), 135, red6),
                // Claims to addresses of others before they have them.
                arp(&own, &own, &[0; 4]),
                ipv6(&own, nobody, 135, blue.plugged.address6),
                ipv6(&own, nobody, 135, network.segment.mac.link_local()),
                // What nobody knows.
                format!("ffffffffffff{own}88b5{}", "00".repeat(46)),
            ],
        );
        // Behind each frame one that surely arrives, unlike any other.
        let mut hears = |number: usize, frame: &String| {
            let mark =
                format!("ffffffffffff{own}0806{}{number:08x}", &arp(&own, &own, &red4)[28..84]);
            run(&mut python(&red, SEND_FRAMES, &[frame.clone(), mark.clone()]));
            ears.wait_for_line(&mark, SOON);
            ears.output().contains(frame)
        };
        for (number, frame) in honest.iter().enumerate() {
            assert!(hears(number, frame), "honest {number}");
        }
        for (number, frame) in lies.iter().enumerate() {
            assert!(!hears(100 + number, frame), "lie {number}");
        }
        // Behind a VLAN tag is what else would pass; whoever hears it has the tag taken off.
        let tagged = [
            ("8100000a", ipv4(&own, &red4, 4001)),
            ("88a8000a", ipv4(&own, &red4, 4002)),
            ("8100000a", asks(&own, &own, &red4, &[192, 168, 1, 77])),
        ];
        for (tag, frame) in &tagged {
            let (addresses, rest) = frame.split_at(24);
            run(&mut python(&red, SEND_FRAMES, &[format!("{addresses}{tag}{rest}")]));
        }
        assert!(hears(200, &honest[0]));
        for (tag, frame) in &tagged {
            assert!(!ears.output().contains(frame), "{tag} {frame}");
        }
        drop(ears);
        let drops = network.plumber.refusals().drops;
        let expected = [
            ("rogue-dhcp", 1),
            ("rogue-redirect", 1),
            ("rogue-router", 1),
            ("spoofed-arp", 3),
            ("spoofed-ip", 4),
            ("spoofed-mac", 2),
            ("spoofed-ndp", 4),
            ("unknown-ethertype", 4),
        ];
        assert_eq!(drops, expected.map(|(name, count)| (name.to_owned(), count)).into());
        // The same address again, for somebody else.
        network.plumber.remove_plugs(&[red.plugged.plug]);
        assert!(!nft(&["list", "ruleset"]).contains("ve-red"));
    });
}
