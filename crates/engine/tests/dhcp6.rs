//! The DHCPv6 server and clients whose messages somebody else's code writes and reads.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

use std::net::Ipv6Addr;
use std::time::{Duration, Instant, UNIX_EPOCH};

use dhcproto::v6::{
    DhcpOption, DhcpOptions, IAAddr, IANA, IAPD, Message, MessageType, ORO, OptionCode, Status,
};
use dhcproto::{Decodable as _, Decoder, Encodable as _};
use netyard_engine::dhcp::v6::{Server, Settings, duid};
use netyard_engine::dhcp::{Request, Reservation};
use netyard_wire::MacAddr;

const SERVER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xff]);
const HOUR: u32 = 3_600;

fn settings() -> Settings {
    Settings {
        server: duid(SERVER_MAC),
        subnet: "fd00:1:2:3::/64".parse().unwrap(),
        dns: vec![address(1)],
        search: vec!["lab.lan".parse().unwrap()],
        pool: Some(address(0x100)..=address(0x102)),
        reservations: [(
            MacAddr([2, 0, 0, 0, 0, 0x77]),
            Reservation { address: address(0x77), host_name: None },
        )]
        .into(),
        lease: Duration::from_secs(u64::from(10 * HOUR)),
    }
}

fn address(n: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, n)
}

fn client(n: u8) -> Vec<u8> {
    duid(MacAddr([2, 0, 0, 0, 0, n]))
}

struct Lab {
    server: Server,
    now: Instant,
    planned: Option<Reservation<Ipv6Addr>>,
}

impl Lab {
    fn new() -> Self {
        Self { server: Server::new(settings()), now: Instant::now(), planned: None }
    }

    fn try_ask(&mut self, message: &Message) -> Result<Option<Vec<u8>>, &'static str> {
        let bytes = message.to_vec().unwrap();
        let planned = self.planned.clone();
        let request = Request { message: &bytes, mac: None, planned, taken: &|_| false };
        self.server.handle(self.now, &request)
    }

    /// Sends a message that is answered.
    fn ask(&mut self, message: &Message) -> Message {
        let reply = self.try_ask(message).unwrap().unwrap();
        let seen = Message::decode(&mut Decoder::new(&reply)).unwrap();
        assert_eq!(seen.xid(), message.xid());
        let id = |message: &Message| message.opts().get(OptionCode::ClientId).cloned();
        assert_eq!(id(&seen), id(message));
        let server = seen.opts().get(OptionCode::ServerId);
        assert_eq!(server, Some(&DhcpOption::ServerId(duid(SERVER_MAC))));
        seen
    }

    /// Goes through the four messages; returns the address.
    fn lease(&mut self, n: u8) -> Option<Ipv6Addr> {
        let advertise = self.ask(&message(n, MessageType::Solicit, &[]));
        assert_eq!(advertise.msg_type(), MessageType::Advertise);
        let offered = *addresses(&advertise).first()?;
        let reply = self.ask(&to_us(message(n, MessageType::Request, &[offered.0])));
        assert_eq!(reply.msg_type(), MessageType::Reply);
        assert_eq!(addresses(&reply), [offered]);
        Some(offered.0)
    }
}

fn message(n: u8, kind: MessageType, addresses: &[Ipv6Addr]) -> Message {
    let mut message = Message::new(kind);
    message.opts_mut().insert(DhcpOption::ClientId(client(n)));
    message.opts_mut().insert(association(1, addresses));
    message
}

fn association(id: u32, addresses: &[Ipv6Addr]) -> DhcpOption {
    let one = |addr: &Ipv6Addr| {
        let opts = DhcpOptions::new();
        DhcpOption::IAAddr(IAAddr { addr: *addr, preferred_life: 0, valid_life: 0, opts })
    };
    let opts = addresses.iter().map(one).collect();
    DhcpOption::IANA(IANA { id, t1: 0, t2: 0, opts })
}

fn to_us(mut message: Message) -> Message {
    message.opts_mut().insert(DhcpOption::ServerId(duid(SERVER_MAC)));
    message
}

fn associations(message: &Message) -> Vec<&IANA> {
    let all = message.opts().iter().filter_map(|option| match option {
        DhcpOption::IANA(association) => Some(association),
        _ => None,
    });
    all.collect()
}

/// All addresses with their valid lifetimes.
fn addresses(message: &Message) -> Vec<(Ipv6Addr, u32)> {
    let all = associations(message).into_iter().flat_map(|it| it.opts.iter());
    all.filter_map(|option| match option {
        DhcpOption::IAAddr(address) => Some((address.addr, address.valid_life)),
        _ => None,
    })
    .collect()
}

fn status(options: &DhcpOptions) -> Option<Status> {
    match options.get(OptionCode::StatusCode)? {
        DhcpOption::StatusCode(code) => Some(code.status),
        _ => None,
    }
}

#[test]
fn a_client_gets_an_address_resolvers_and_domains() {
    let mut lab = Lab::new();
    let mut solicit = message(1, MessageType::Solicit, &[]);
    let wants = vec![OptionCode::DomainNameServers, OptionCode::DomainSearchList];
    solicit.opts_mut().insert(DhcpOption::ORO(ORO { opts: wants }));
    let advertise = lab.ask(&solicit);
    assert_eq!(advertise.msg_type(), MessageType::Advertise);
    assert_eq!(addresses(&advertise), [(address(0x100), 10 * HOUR)]);
    let preference = advertise.opts().get(OptionCode::Preference);
    assert_eq!(preference, Some(&DhcpOption::Preference(255)));
    assert_eq!(lab.server.leases().iter(lab.now).count(), 0);

    let reply = lab.ask(&to_us(message(1, MessageType::Request, &[address(0x100)])));
    let [lent] = associations(&reply)[..] else { panic!("{reply:?}") };
    assert_eq!((lent.id, lent.t1, lent.t2), (1, 5 * HOUR, 8 * HOUR));
    let dns = reply.opts().get(OptionCode::DomainNameServers);
    assert_eq!(dns, Some(&DhcpOption::DomainNameServers(vec![address(1)])));
    let Some(DhcpOption::DomainSearchList(search)) = reply.opts().get(OptionCode::DomainSearchList)
    else {
        panic!("{reply:?}")
    };
    assert_eq!(search.iter().map(ToString::to_string).collect::<Vec<_>>(), ["lab.lan."]);
    assert_eq!(lab.server.leases().iter(lab.now).count(), 1);
}

#[test]
fn a_client_gets_no_more_than_it_asks_for() {
    let mut lab = Lab::new();
    let mut solicit = message(1, MessageType::Solicit, &[]);
    let wants = vec![OptionCode::DomainNameServers];
    solicit.opts_mut().insert(DhcpOption::ORO(ORO { opts: wants }));
    let advertise = lab.ask(&solicit);
    assert!(advertise.opts().get(OptionCode::DomainNameServers).is_some());
    assert!(advertise.opts().get(OptionCode::DomainSearchList).is_none());
}

#[test]
fn a_client_in_a_hurry_gets_its_address_at_once() {
    let mut lab = Lab::new();
    let mut solicit = message(1, MessageType::Solicit, &[]);
    solicit.opts_mut().insert(DhcpOption::RapidCommit);
    let reply = lab.ask(&solicit);
    assert_eq!(reply.msg_type(), MessageType::Reply);
    assert!(reply.opts().get(OptionCode::RapidCommit).is_some());
    assert_eq!(addresses(&reply), [(address(0x100), 10 * HOUR)]);
    assert_eq!(lab.server.leases().iter(lab.now).count(), 1);
}

#[test]
fn every_association_has_its_own_address_and_prefixes_are_refused() {
    let mut lab = Lab::new();
    let mut solicit = message(1, MessageType::Solicit, &[]);
    solicit.opts_mut().insert(association(2, &[address(0x102)]));
    let opts = DhcpOptions::new();
    solicit.opts_mut().insert(DhcpOption::IAPD(IAPD { id: 3, t1: 0, t2: 0, opts }));
    let advertise = lab.ask(&solicit);
    let mut given: Vec<_> = addresses(&advertise).into_iter().map(|(it, _)| it).collect();
    given.sort();
    assert_eq!(given, [address(0x100), address(0x102)]);
    let Some(DhcpOption::IAPD(prefix)) = advertise.opts().get(OptionCode::IAPD) else {
        panic!("{advertise:?}")
    };
    assert_eq!((prefix.id, status(&prefix.opts)), (3, Some(Status::NoPrefixAvail)));
}

#[test]
fn the_pool_ends_and_comes_back() {
    let mut lab = Lab::new();
    let given = [1, 2, 3, 4].map(|n| lab.lease(n));
    assert_eq!(given, [Some(address(0x100)), Some(address(0x101)), Some(address(0x102)), None]);
    let advertise = lab.ask(&message(4, MessageType::Solicit, &[]));
    assert_eq!(status(&associations(&advertise)[0].opts), Some(Status::NoAddrsAvail));

    let release = to_us(message(2, MessageType::Release, &[address(0x101)]));
    let reply = lab.ask(&release);
    assert_eq!(status(reply.opts()), Some(Status::Success));
    assert!(associations(&reply).is_empty());
    assert_eq!(lab.lease(4), Some(address(0x101)));
    // That was not its own any more.
    let reply = lab.ask(&release);
    assert_eq!(status(&associations(&reply)[0].opts), Some(Status::NoBinding));
}

#[test]
fn a_declined_address_rests() {
    let mut lab = Lab::new();
    assert_eq!(lab.lease(1), Some(address(0x100)));
    let reply = lab.ask(&to_us(message(1, MessageType::Decline, &[address(0x100)])));
    assert_eq!(status(reply.opts()), Some(Status::Success));
    assert_eq!(lab.lease(1), Some(address(0x101)));
    assert_eq!(lab.lease(2), Some(address(0x102)));
    assert_eq!(lab.lease(3), None);
}

#[test]
fn addresses_are_extended_and_lost_ones_are_told() {
    let mut lab = Lab::new();
    assert_eq!(lab.lease(1), Some(address(0x100)));
    assert_eq!(lab.lease(2), Some(address(0x101)));
    lab.now += Duration::from_secs(9 * u64::from(HOUR));
    let renewed = lab.ask(&to_us(message(1, MessageType::Renew, &[address(0x100)])));
    assert_eq!(addresses(&renewed), [(address(0x100), 10 * HOUR)]);
    lab.now += Duration::from_secs(9 * u64::from(HOUR));
    assert_eq!(lab.server.leases().iter(lab.now).count(), 1);
    let rebound = lab.ask(&message(1, MessageType::Rebind, &[address(0x100), address(9)]));
    assert_eq!(addresses(&rebound), [(address(0x100), 10 * HOUR), (address(9), 0)]);
}

#[test]
fn reservations_hold_by_plug_and_by_hardware_address() {
    let mut lab = Lab::new();
    assert_eq!(lab.lease(0x77), Some(address(0x77)));
    lab.planned = Some(Reservation { address: address(0x19), host_name: None });
    for n in [1, 2, 0x77] {
        let solicit = message(n, MessageType::Solicit, &[address(0x100)]);
        assert_eq!(addresses(&lab.ask(&solicit)), [(address(0x19), 10 * HOUR)]);
        assert_eq!(lab.lease(n), Some(address(0x19)));
        let old = to_us(message(n, MessageType::Renew, &[address(0x100)]));
        let reply = lab.ask(&old);
        assert_eq!(addresses(&reply), [(address(0x19), 10 * HOUR), (address(0x100), 0)]);
        let release = lab.ask(&to_us(message(n, MessageType::Release, &[address(0x19)])));
        assert!(associations(&release).is_empty());
        // There is one address for a plug.
        let mut two = message(n, MessageType::Solicit, &[]);
        two.opts_mut().insert(association(2, &[]));
        let reply = lab.ask(&two);
        assert_eq!(addresses(&reply), [(address(0x19), 10 * HOUR)]);
        let refused = associations(&reply).into_iter().filter_map(|it| status(&it.opts));
        assert_eq!(refused.collect::<Vec<_>>(), [Status::NoAddrsAvail]);
    }
    assert_eq!(lab.server.leases().iter(lab.now).count(), 0, "no state is kept about them");
}

#[test]
fn a_client_that_was_away_is_told_whether_it_is_on_the_same_link() {
    let mut lab = Lab::new();
    let confirm = |lab: &mut Lab, address| {
        let reply = lab.ask(&message(1, MessageType::Confirm, &[address]));
        status(reply.opts()).unwrap()
    };
    assert_eq!(confirm(&mut lab, address(0x100)), Status::Success);
    assert_eq!(confirm(&mut lab, "fd00:9::1".parse().unwrap()), Status::NotOnLink);
    lab.planned = Some(Reservation { address: address(0x19), host_name: None });
    assert_eq!(confirm(&mut lab, address(0x100)), Status::NotOnLink);
    assert_eq!(confirm(&mut lab, address(0x19)), Status::Success);
    let nothing = message(1, MessageType::Confirm, &[]);
    assert_eq!(lab.try_ask(&nothing), Err("dhcp6-nothing-to-confirm"));
}

#[test]
fn a_client_with_an_address_of_its_own_is_informed() {
    let mut lab = Lab::new();
    let anonymous = Message::new(MessageType::InformationRequest);
    let reply = lab.ask(&anonymous);
    assert_eq!(reply.msg_type(), MessageType::Reply);
    assert!(reply.opts().get(OptionCode::DomainNameServers).is_some());
    let with_address = message(1, MessageType::InformationRequest, &[]);
    assert_eq!(lab.try_ask(&with_address), Err("dhcp6-not-a-request"));
}

#[test]
fn what_is_not_for_a_server_like_this_is_dropped() {
    let mut lab = Lab::new();
    let other = |kind| {
        let mut message = message(1, kind, &[]);
        message.opts_mut().insert(DhcpOption::ServerId(client(9)));
        message
    };
    for kind in [MessageType::Solicit, MessageType::Confirm, MessageType::Rebind] {
        assert_eq!(lab.try_ask(&other(kind)), Err("dhcp6-server-id"), "{kind:?}");
    }
    for kind in
        [MessageType::Request, MessageType::Renew, MessageType::Release, MessageType::Decline]
    {
        assert_eq!(lab.try_ask(&message(1, kind, &[])), Err("dhcp6-server-id"), "{kind:?}");
        assert_eq!(lab.try_ask(&other(kind)), Ok(None), "{kind:?}");
    }
    for kind in [MessageType::Advertise, MessageType::Reply, MessageType::Reconfigure] {
        let message = message(1, kind, &[]);
        assert_eq!(lab.try_ask(&message), Err("dhcp6-not-a-request"), "{kind:?}");
    }
    let anonymous = Message::new(MessageType::Solicit);
    assert_eq!(lab.try_ask(&anonymous), Err("dhcp6-client-id"));
    let request = Request { message: &[12; 60], mac: None, planned: None, taken: &|_| false };
    assert_eq!(lab.server.handle(lab.now, &request), Err("dhcp6-type"));
}

#[test]
fn leases_outlive_the_server() {
    let wall = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let mut before = Lab::new();
    assert_eq!(before.lease(1), Some(address(0x100)));
    let text = serde_json::to_string(&before.server.leases().save(before.now, wall)).unwrap();
    let mut after = Lab::new();
    after.server.leases_mut().restore(
        after.now,
        wall,
        &serde_json::from_str::<Vec<_>>(&text).unwrap(),
    );
    assert_eq!(after.lease(2), Some(address(0x101)));
    assert_eq!(after.lease(1), Some(address(0x100)));
}
