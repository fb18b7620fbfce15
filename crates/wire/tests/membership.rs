//! Messages about multicast groups, byte for byte, and those that lie.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use netyard_wire::ethernet::{self, Ethernet};
use netyard_wire::ip::IpPacket;
use netyard_wire::membership::{Membership, query_frame};
use netyard_wire::{Checksum, MacAddr, checksum};

const GROUP4: [u8; 4] = [239, 1, 2, 3];
const OTHER4: [u8; 4] = [239, 9, 9, 9];
const GROUP6: [u8; 16] = [0xff, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
const HOST6: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];

fn group4() -> IpAddr {
    GROUP4.into()
}

fn group6() -> IpAddr {
    Ipv6Addr::from(GROUP6).into()
}

/// A message of IGMP with its checksum, in a packet.
fn igmp(message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    if let Some(field) = message.get_mut(2..4) {
        field.fill(0);
    }
    let sum = checksum::finish(checksum::sum(&message)).to_be_bytes();
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&sum);
    }
    let len = u8::try_from(24 + message.len()).unwrap();
    let mut packet = vec![0x46, 0xc0, 0, len, 0, 0, 0x40, 0, 1, 2, 0, 0, 10, 0, 0, 7];
    packet.extend([224, 0, 0, 22, 0x94, 4, 0, 0]);
    let sum = checksum::finish(checksum::sum(&packet)).to_be_bytes();
    packet[10..12].copy_from_slice(&sum);
    [packet, message].concat()
}

/// A message of MLD with its checksum, in a packet of this source and hop limit.
fn mld_from(source: [u8; 16], hop_limit: u8, message: &[u8]) -> Vec<u8> {
    let to: [u8; 16] = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16).octets();
    let len = u8::try_from(message.len()).unwrap();
    let pseudo = checksum::pseudo_header(
        Ipv6Addr::from(source).into(),
        Ipv6Addr::from(to).into(),
        58,
        len.into(),
    );
    let mut message = message.to_vec();
    let sum = checksum::finish(checksum::combine(pseudo, checksum::sum(&message)));
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    let fixed = [0x60, 0, 0, 0, 0, 8 + len, 0, hop_limit];
    [&fixed[..], &source, &to, &[58, 0, 5, 2, 0, 0, 1, 0], &message].concat()
}

fn mld(message: &[u8]) -> Vec<u8> {
    mld_from(HOST6, 1, message)
}

/// What a packet says: `None` if it is no such message.
fn says(packet: &[u8]) -> Option<Result<String, &'static str>> {
    let ethertype = if packet[0] >> 4 == 4 { ethernet::IPV4 } else { ethernet::IPV6 };
    let ip = IpPacket::parse(ethertype, packet).unwrap();
    let message = Membership::parse(&ip, Checksum::Present)?;
    Some(message.map_err(|error| error.reason()).map(|message| match message {
        Membership::Records(records) => {
            let all = records
                .map(|(group, listens)| format!("{}{group}", if listens { '+' } else { '-' }));
            all.collect::<Vec<_>>().join(" ")
        }
        other => format!("{other:?}"),
    }))
}

fn good(packet: &[u8]) -> String {
    says(packet).unwrap().unwrap()
}

fn bad(packet: &[u8]) -> &'static str {
    says(packet).unwrap().unwrap_err()
}

fn record4(kind: u8, group: [u8; 4], sources: u8, auxiliary: u8) -> Vec<u8> {
    let behind = usize::from(sources) * 4 + usize::from(auxiliary) * 4;
    [&[kind, auxiliary, 0, sources][..], &group, &vec![7; behind]].concat()
}

fn record6(kind: u8, group: [u8; 16], sources: u8) -> Vec<u8> {
    [&[kind, 0, 0, sources][..], &group, &vec![7; usize::from(sources) * 16]].concat()
}

#[test]
fn the_three_versions_of_igmp_are_read() {
    let word = |kind: u8, group: [u8; 4]| igmp(&[&[kind, 0, 0, 0][..], &group].concat());
    assert_eq!(good(&word(0x12, GROUP4)), "Report { group: 239.1.2.3, first: true }");
    assert_eq!(good(&word(0x16, GROUP4)), "Report { group: 239.1.2.3, first: false }");
    assert_eq!(good(&word(0x17, GROUP4)), "Leave(239.1.2.3)");
    assert_eq!(good(&word(0x11, [0; 4])), "Query");
    let records = [
        record4(4, GROUP4, 0, 0),
        record4(3, OTHER4, 0, 2),
        record4(6, GROUP4, 3, 0),
        record4(1, OTHER4, 2, 1),
        record4(99, OTHER4, 0, 0),
        record4(5, GROUP4, 1, 0),
        record4(2, OTHER4, 0, 0),
        record4(1, GROUP4, 0, 0),
    ];
    let count = u8::try_from(records.len()).unwrap();
    let report = [&[0x22, 0, 0, 0, 0, 0, 0, count][..], &records.concat()].concat();
    assert_eq!(
        good(&igmp(&report)),
        "+239.1.2.3 -239.9.9.9 +239.9.9.9 +239.1.2.3 +239.9.9.9 -239.1.2.3"
    );
    // Messages of routers among each other.
    assert_eq!(says(&word(0x13, GROUP4)), None);
}

#[test]
fn both_versions_of_mld_are_read() {
    let word = |kind: u8| mld(&[&[kind, 0, 0, 0, 0, 0, 0, 0][..], &GROUP6].concat());
    assert_eq!(good(&word(131)), "Report { group: ff05::9, first: false }");
    assert_eq!(good(&word(132)), "Leave(ff05::9)");
    assert_eq!(good(&word(130)), "Query");
    let records = [record6(4, GROUP6, 0), record6(3, GROUP6, 0), record6(1, GROUP6, 2)].concat();
    let report = [&[143, 0, 0, 0, 0, 0, 0, 3][..], &records].concat();
    assert_eq!(good(&mld(&report)), "+ff05::9 -ff05::9 +ff05::9");
    // A host without an address reports all the same; a ping is none of this.
    assert_eq!(good(&mld_from([0; 16], 1, &report)), "+ff05::9 -ff05::9 +ff05::9");
    assert_eq!(says(&mld(&[128, 0, 0, 0, 0, 0, 0, 0])), None);
}

#[test]
fn what_lies_is_refused() {
    assert_eq!(bad(&igmp(&[0x16, 0, 0, 0, 239, 1])), "igmp-truncated");
    assert_eq!(bad(&igmp(&[0x16, 0, 0, 0, 10, 0, 0, 1])), "igmp-group");
    let mut wrong = igmp(&[0x16, 0, 0, 0, 239, 1, 2, 3]);
    *wrong.last_mut().unwrap() ^= 1;
    assert_eq!(bad(&wrong), "igmp-checksum");
    let report =
        |count: u8, records: &[u8]| [&[0x22, 0, 0, 0, 0, 0, 0, count][..], records].concat();
    let whole = record4(4, GROUP4, 1, 1);
    assert_eq!(good(&igmp(&report(1, &whole))), "+239.1.2.3");
    for cut in 0..whole.len() {
        assert_eq!(bad(&igmp(&report(1, &whole[..cut]))), "igmp-truncated", "{cut}");
    }
    assert_eq!(bad(&igmp(&report(2, &whole))), "igmp-truncated");
    assert_eq!(bad(&igmp(&report(1, &record4(4, [10, 0, 0, 1], 0, 0)))), "igmp-group");

    let whole = record6(4, GROUP6, 1);
    let report =
        |count: u8, records: &[u8]| [&[143, 0, 0, 0, 0, 0, 0, count][..], records].concat();
    for cut in 0..whole.len() {
        assert_eq!(bad(&mld(&report(1, &whole[..cut]))), "mld-truncated", "{cut}");
    }
    assert_eq!(bad(&mld(&report(1, &record6(4, HOST6, 0)))), "mld-group");
    assert_eq!(bad(&mld(&[131, 0, 0, 0, 0])), "mld-truncated");
    assert_eq!(bad(&mld(&[131, 0, 0, 0, 0, 0, 0, 0, 0xff])), "mld-truncated");
    assert_eq!(bad(&mld_from(HOST6, 64, &report(1, &whole))), "mld-source");
    let global = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).octets();
    assert_eq!(bad(&mld_from(global, 1, &report(1, &whole))), "mld-source");
    let mut wrong = mld(&report(1, &whole));
    *wrong.last_mut().unwrap() ^= 1;
    assert_eq!(bad(&wrong), "mld-checksum");
}

fn query(source: IpAddr, group: Option<IpAddr>, within: Duration) -> String {
    let mut frame = vec![1, 2, 3];
    query_frame(&mut frame, MacAddr([2, 0, 0, 0, 0, 1]), source, group, within);
    let (header, packet) = Ethernet::parse(&frame).unwrap();
    let ip = IpPacket::parse(header.ethertype, packet).unwrap();
    assert_eq!(Membership::parse(&ip, Checksum::Present), Some(Ok(Membership::Query)));
    assert_eq!((ip.hop_limit, ip.source), (1, source));
    frame.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn questions_are_those_of_the_newest_versions() {
    let (all, one) = (Duration::from_secs(10), Duration::from_secs(1));
    let source: IpAddr = Ipv4Addr::new(10, 0, 0, 1).into();
    assert_eq!(
        query(source, None, all),
        concat!(
            "01005e000001",
            "020000000001",
            "0800",
            "46c00024000040000102",
            "fa11",
            "0a000001",
            "e0000001",
            "94040000",
            "1164",
            "ec1e",
            "00000000",
            "027d",
            "0000"
        )
    );
    let specific = query(source, Some(group4()), one);
    assert!(specific.starts_with("01005e010203") && specific.contains("0a000001ef010203"));
    assert!(specific.ends_with("ef010203027d0000"));
    let source: IpAddr = Ipv6Addr::from(HOST6).into();
    let general = query(source, None, all);
    assert!(general.starts_with("333300000001"), "{general}");
    assert!(general.contains("3a00050200000100"), "{general}");
    assert!(general.ends_with(&format!("27100000{}027d0000", "0".repeat(32))), "{general}");
    let specific = query(source, Some(group6()), one);
    assert!(specific.starts_with("333300000009"), "{specific}");
    assert!(specific.ends_with("03e80000ff050000000000000000000000000009027d0000"), "{specific}");
}
