//! The DHCPv4 server and clients whose messages somebody else's code writes and reads.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant, UNIX_EPOCH};

use dhcproto::v4::{DhcpOption, Message, MessageType, OptionCode};
use dhcproto::{Decodable as _, Decoder, Encodable as _, Encoder};
use netyard_engine::dhcp::v4::{Reply, Route, Server, Settings};
use netyard_engine::dhcp::{Request, Reservation};
use netyard_wire::MacAddr;

const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 42, 1);
const HOUR: u32 = 3_600;

fn settings() -> Settings {
    Settings {
        server: SERVER,
        subnet: "192.168.42.0/24".parse().unwrap(),
        router: Some(SERVER),
        dns: vec![SERVER],
        ntp: vec![Ipv4Addr::new(192, 168, 42, 5)],
        domain: Some("lab.lan".parse().unwrap()),
        search: vec!["corp.example".parse().unwrap()],
        mtu: Some(1400),
        routes: Vec::new(),
        pool: Some(Ipv4Addr::new(192, 168, 42, 100)..=Ipv4Addr::new(192, 168, 42, 102)),
        reservations: [(
            MacAddr([2, 0, 0, 0, 0, 0x77]),
            Reservation { address: address(77), host_name: Some("printer".into()) },
        )]
        .into(),
        lease: Duration::from_secs(u64::from(12 * HOUR)),
    }
}

fn address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 42, n)
}

fn mac(n: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, n]
}

/// A server, its time, and what surrounds it.
struct Lab {
    server: Server,
    now: Instant,
    planned: Option<Reservation<Ipv4Addr>>,
    taken: Vec<Ipv4Addr>,
}

impl Lab {
    fn new() -> Self {
        Self::with(settings())
    }

    fn with(settings: Settings) -> Self {
        let server = Server::new(settings);
        Self { server, now: Instant::now(), planned: None, taken: Vec::new() }
    }

    fn try_ask(&mut self, message: &Message) -> Result<Option<Reply>, &'static str> {
        let mut bytes = Vec::new();
        message.encode(&mut Encoder::new(&mut bytes)).unwrap();
        let mac = message.chaddr().try_into().ok().map(MacAddr);
        let taken = &|address| self.taken.contains(&address);
        let planned = self.planned.clone();
        self.server.handle(self.now, &Request { message: &bytes, mac, planned, taken })
    }

    /// Sends a message that is answered.
    fn ask(&mut self, message: &Message) -> Seen {
        let reply = self.try_ask(message).unwrap().unwrap();
        let seen = Message::decode(&mut Decoder::new(&reply.message)).unwrap();
        assert_eq!(seen.xid(), message.xid());
        assert_eq!(seen.chaddr(), message.chaddr());
        let server = seen.opts().get(OptionCode::ServerIdentifier);
        assert_eq!(server, Some(&DhcpOption::ServerIdentifier(SERVER)));
        Seen { message: seen, to: reply.to, mac: reply.mac, len: reply.message.len() }
    }

    /// Goes through the four messages; returns the address.
    fn lease(&mut self, client: u8) -> Option<Ipv4Addr> {
        let discover = message(client, MessageType::Discover);
        let offer = self.try_ask(&discover).ok()??;
        let offer = Message::decode(&mut Decoder::new(&offer.message)).unwrap();
        let ack = self.ask(&selecting(client, offer.yiaddr()));
        assert_eq!(ack.kind(), MessageType::Ack);
        assert_eq!(ack.message.yiaddr(), offer.yiaddr());
        Some(offer.yiaddr())
    }
}

/// An answer, and where it went.
#[derive(Debug)]
struct Seen {
    message: Message,
    to: SocketAddrV4,
    mac: MacAddr,
    len: usize,
}

impl Seen {
    fn kind(&self) -> MessageType {
        self.message.opts().msg_type().unwrap()
    }

    fn option(&self, code: OptionCode) -> Option<&DhcpOption> {
        self.message.opts().get(code)
    }
}

fn message(client: u8, kind: MessageType) -> Message {
    let mut message = Message::default();
    message.set_chaddr(&mac(client));
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    message
}

fn with(mut message: Message, option: DhcpOption) -> Message {
    message.opts_mut().insert(option);
    message
}

fn selecting(client: u8, address: Ipv4Addr) -> Message {
    let request =
        with(message(client, MessageType::Request), DhcpOption::RequestedIpAddress(address));
    with(request, DhcpOption::ServerIdentifier(SERVER))
}

fn rebooting(client: u8, address: Ipv4Addr) -> Message {
    with(message(client, MessageType::Request), DhcpOption::RequestedIpAddress(address))
}

fn renewing(client: u8, address: Ipv4Addr) -> Message {
    let mut message = message(client, MessageType::Request);
    message.set_ciaddr(address);
    message
}

#[test]
fn a_client_gets_an_address_and_all_that_it_asks_for() {
    let mut lab = Lab::new();
    let all = with(
        message(1, MessageType::Discover),
        DhcpOption::ParameterRequestList(
            [1, 3, 6, 12, 15, 26, 28, 42, 119, 121].map(OptionCode::from).to_vec(),
        ),
    );
    let offer = lab.ask(&all);
    assert_eq!(offer.kind(), MessageType::Offer);
    assert_eq!(offer.message.yiaddr(), address(100));
    assert_eq!((offer.to, offer.mac), (SocketAddrV4::new(address(100), 68), MacAddr(mac(1))));
    assert!(offer.len >= 300);
    let wanted = [
        DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)),
        DhcpOption::Router(vec![SERVER]),
        DhcpOption::DomainNameServer(vec![SERVER]),
        DhcpOption::DomainName("lab.lan".into()),
        DhcpOption::InterfaceMtu(1400),
        DhcpOption::BroadcastAddr(address(255)),
        DhcpOption::NtpServers(vec![address(5)]),
        DhcpOption::AddressLeaseTime(12 * HOUR),
        DhcpOption::Renewal(6 * HOUR),
        DhcpOption::Rebinding(12 * HOUR / 8 * 7),
    ];
    for option in &wanted {
        assert_eq!(offer.option(option.into()), Some(option));
    }
    let Some(DhcpOption::DomainSearch(search)) = offer.option(OptionCode::DomainSearch) else {
        panic!("{offer:?}");
    };
    assert_eq!(
        search.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["lab.lan.", "corp.example."]
    );
    assert_eq!(offer.option(OptionCode::ClasslessStaticRoute), None, "there are none");
    assert_eq!(offer.option(OptionCode::Hostname), None, "it has none");
    let ack = lab.ask(&selecting(1, address(100)));
    assert_eq!((ack.kind(), ack.message.yiaddr()), (MessageType::Ack, address(100)));
    assert_eq!(lab.server.leases().iter(lab.now).count(), 1);
}

#[test]
fn a_client_gets_no_more_than_it_asks_for() {
    let mut lab = Lab::new();
    let few = with(
        message(1, MessageType::Discover),
        DhcpOption::ParameterRequestList(vec![OptionCode::SubnetMask]),
    );
    let offer = lab.ask(&few);
    let codes: Vec<u8> = offer.message.opts().iter().map(|(code, _)| u8::from(*code)).collect();
    assert_eq!(codes, [1, 51, 53, 54, 58, 59]);
}

#[test]
fn routes_come_with_the_default_one() {
    let (destination, router) = (Ipv4Addr::new(10, 1, 0, 0), address(9));
    let routes = vec![Route { destination, prefix_len: 16, router }];
    let mut lab = Lab::with(Settings { routes, ..settings() });
    let offer = lab.ask(&message(1, MessageType::Discover));
    let wanted = DhcpOption::ClasslessStaticRoute(vec![
        ("10.1.0.0/16".parse().unwrap(), router),
        ("0.0.0.0/0".parse().unwrap(), SERVER),
    ]);
    assert_eq!(offer.option(OptionCode::ClasslessStaticRoute), Some(&wanted));
}

#[test]
fn what_does_not_fit_the_clients_buffer_is_left_out() {
    let label = "a".repeat(60);
    let domain = format!("{label}.{label}.{label}.{label}").parse().unwrap();
    let mut lab = Lab::with(Settings { domain: Some(domain), search: Vec::new(), ..settings() });
    let discover = message(1, MessageType::Discover);
    let offer = lab.ask(&discover);
    assert!(offer.len <= 548, "{}", offer.len);
    assert!(offer.option(OptionCode::Router).is_some());
    assert!(offer.option(OptionCode::DomainSearch).is_none());
    // Smaller than allowed counts as the smallest that is.
    let offer = lab.ask(&with(discover.clone(), DhcpOption::MaxMessageSize(1)));
    assert!(offer.option(OptionCode::Router).is_some());
    let offer = lab.ask(&with(discover, DhcpOption::MaxMessageSize(1500)));
    assert!(offer.len > 548);
    assert!(offer.option(OptionCode::DomainName).is_some());
    assert!(offer.option(OptionCode::DomainSearch).is_some());
}

#[test]
fn answers_go_where_the_client_can_hear_them() {
    let mut lab = Lab::new();
    let broadcast = SocketAddrV4::new(Ipv4Addr::BROADCAST, 68);
    let mut deaf = message(1, MessageType::Discover);
    deaf.set_flags(dhcproto::v4::Flags::default().set_broadcast());
    let offer = lab.ask(&deaf);
    assert_eq!((offer.to, offer.mac), (broadcast, MacAddr::BROADCAST));
    assert!(offer.message.flags().broadcast());
    lab.ask(&selecting(1, address(100)));
    let ack = lab.ask(&renewing(1, address(100)));
    assert_eq!((ack.to, ack.mac), (SocketAddrV4::new(address(100), 68), MacAddr(mac(1))));
    assert_eq!(ack.message.ciaddr(), address(100));
    let nak = lab.ask(&renewing(1, Ipv4Addr::new(10, 0, 0, 1)));
    assert_eq!((nak.kind(), nak.to, nak.mac), (MessageType::Nak, broadcast, MacAddr::BROADCAST));
    assert_eq!(nak.message.yiaddr(), Ipv4Addr::UNSPECIFIED);
    assert!(nak.option(OptionCode::AddressLeaseTime).is_none());
    assert!(nak.option(OptionCode::Message).is_some());
}

#[test]
fn addresses_that_are_not_the_clients_are_refused() {
    let mut lab = Lab::new();
    assert_eq!(lab.lease(1), Some(address(100)));
    for foreign in [
        selecting(2, address(100)),
        rebooting(2, address(100)),
        renewing(2, address(100)),
        rebooting(2, Ipv4Addr::new(10, 0, 0, 1)),
        rebooting(2, SERVER),
        rebooting(2, address(77)),
        selecting(2, address(103)),
    ] {
        assert_eq!(lab.ask(&foreign).kind(), MessageType::Nak, "{foreign:?}");
    }
    for own in [rebooting(1, address(100)), renewing(1, address(100))] {
        assert_eq!(lab.ask(&own).kind(), MessageType::Ack, "{own:?}");
    }
    // The server forgot, the client did not, and nobody else has it.
    let mut lab = Lab::new();
    assert_eq!(lab.ask(&rebooting(1, address(101))).kind(), MessageType::Ack);
    assert_eq!(lab.lease(2), Some(address(100)));
    assert_eq!(lab.lease(3), Some(address(102)));
}

#[test]
fn a_client_that_chose_another_server_gives_its_offer_back() {
    let mut lab = Lab::new();
    lab.ask(&message(1, MessageType::Discover));
    let mut other = selecting(1, address(9));
    other.opts_mut().insert(DhcpOption::ServerIdentifier(address(2)));
    assert_eq!(lab.try_ask(&other), Ok(None));
    assert_eq!(lab.lease(2), Some(address(100)));
}

#[test]
fn the_identifier_counts_and_not_the_hardware_address() {
    let mut lab = Lab::new();
    let named = |client: u8, name: &[u8]| {
        with(message(client, MessageType::Discover), DhcpOption::ClientIdentifier(name.to_vec()))
    };
    let offer = lab.ask(&named(1, b"\0one"));
    assert_eq!(offer.message.yiaddr(), address(100));
    let echo = DhcpOption::ClientIdentifier(b"\0one".to_vec());
    assert_eq!(offer.option(OptionCode::ClientIdentifier), Some(&echo));
    assert_eq!(lab.ask(&named(2, b"\0one")).message.yiaddr(), address(100));
    assert_eq!(lab.ask(&named(1, b"\0two")).message.yiaddr(), address(101));
    // Without one it is the hardware address, also when that is spelt out.
    assert_eq!(lab.ask(&message(3, MessageType::Discover)).message.yiaddr(), address(102));
    let spelt = [&[1], &mac(3)[..]].concat();
    assert_eq!(lab.ask(&named(3, &spelt)).message.yiaddr(), address(102));
}

#[test]
fn the_pool_ends_and_comes_back() {
    let mut lab = Lab::new();
    assert_eq!(
        [1, 2, 3, 4].map(|client| lab.lease(client)),
        [Some(address(100)), Some(address(101)), Some(address(102)), None]
    );
    assert_eq!(lab.try_ask(&message(4, MessageType::Discover)), Err("dhcp-pool-empty"));
    let mut release = message(2, MessageType::Release);
    release.set_ciaddr(address(101));
    assert_eq!(lab.try_ask(&release), Ok(None));
    assert_eq!(lab.lease(4), Some(address(101)));
    // That was not its own any more.
    assert_eq!(lab.try_ask(&release), Err("dhcp-no-lease"));
    lab.now += Duration::from_secs(u64::from(12 * HOUR));
    assert!(lab.lease(5).is_some());
}

#[test]
fn what_others_have_is_not_given_out() {
    let mut lab = Lab::new();
    lab.taken = vec![address(100)];
    assert_eq!(lab.lease(1), Some(address(101)));
    assert_eq!(lab.ask(&rebooting(2, address(100))).kind(), MessageType::Nak);
    // An instance with the client's address was planned in the meantime.
    lab.taken.push(address(101));
    assert_eq!(lab.ask(&renewing(1, address(101))).kind(), MessageType::Nak);
    assert_eq!(lab.lease(1), Some(address(102)));
}

#[test]
fn a_declined_address_rests() {
    let mut lab = Lab::new();
    assert_eq!(lab.lease(1), Some(address(100)));
    let mut decline = selecting(1, address(100));
    decline.opts_mut().insert(DhcpOption::MessageType(MessageType::Decline));
    assert_eq!(lab.try_ask(&decline), Ok(None));
    assert_eq!(lab.lease(1), Some(address(101)));
    assert_eq!(lab.ask(&rebooting(2, address(100))).kind(), MessageType::Nak);
    assert_eq!(lab.try_ask(&decline), Err("dhcp-no-lease"));
}

#[test]
fn reservations_hold_by_plug_and_by_hardware_address() {
    let mut lab = Lab::new();
    let offer = lab.ask(&message(0x77, MessageType::Discover));
    assert_eq!(offer.message.yiaddr(), address(77));
    let name = DhcpOption::Hostname("printer".into());
    assert_eq!(offer.option(OptionCode::Hostname), Some(&name));
    assert_eq!(lab.ask(&selecting(0x77, address(100))).kind(), MessageType::Nak);
    assert_eq!(lab.lease(0x77), Some(address(77)));

    lab.planned = Some(Reservation { address: address(19), host_name: Some("web-1".into()) });
    for client in [1, 2, 0x77] {
        let discover = message(client, MessageType::Discover);
        let wish = with(discover, DhcpOption::RequestedIpAddress(address(100)));
        assert_eq!(lab.ask(&wish).message.yiaddr(), address(19));
        assert_eq!(lab.ask(&rebooting(client, address(100))).kind(), MessageType::Nak);
        let ack = lab.ask(&rebooting(client, address(19)));
        assert_eq!(ack.kind(), MessageType::Ack);
        let name = DhcpOption::Hostname("web-1".into());
        assert_eq!(ack.option(OptionCode::Hostname), Some(&name));
        let mut decline = selecting(client, address(19));
        decline.opts_mut().insert(DhcpOption::MessageType(MessageType::Decline));
        assert_eq!(lab.try_ask(&decline), Ok(None));
    }
    assert_eq!(lab.server.leases().iter(lab.now).count(), 0, "no state is kept about them");
}

#[test]
fn a_client_in_a_hurry_gets_its_address_at_once() {
    let mut lab = Lab::new();
    let hurry = with(message(1, MessageType::Discover), DhcpOption::RapidCommit);
    let ack = lab.ask(&hurry);
    assert_eq!((ack.kind(), ack.message.yiaddr()), (MessageType::Ack, address(100)));
    assert_eq!(ack.option(OptionCode::RapidCommit), Some(&DhcpOption::RapidCommit));
    assert_eq!(lab.server.leases().iter(lab.now).count(), 1);
}

#[test]
fn a_client_with_an_address_of_its_own_is_informed() {
    let mut lab = Lab::new();
    let mut inform = message(1, MessageType::Inform);
    inform.set_ciaddr(address(50));
    let ack = lab.ask(&inform);
    assert_eq!((ack.kind(), ack.to.ip()), (MessageType::Ack, &address(50)));
    assert_eq!(ack.message.yiaddr(), Ipv4Addr::UNSPECIFIED);
    assert!(ack.option(OptionCode::AddressLeaseTime).is_none());
    assert!(ack.option(OptionCode::DomainNameServer).is_some());
    inform.set_ciaddr(Ipv4Addr::new(10, 0, 0, 1));
    assert_eq!(lab.try_ask(&inform), Err("dhcp-no-address"));
}

#[test]
fn lease_times_are_as_wished_within_bounds() {
    let mut lab = Lab::new();
    for (wish, granted) in [(HOUR, HOUR), (1, 120), (u32::MAX, 12 * HOUR)] {
        let wish = DhcpOption::AddressLeaseTime(wish);
        let offer = lab.ask(&with(message(1, MessageType::Discover), wish));
        let granted = DhcpOption::AddressLeaseTime(granted);
        assert_eq!(offer.option(OptionCode::AddressLeaseTime), Some(&granted));
    }
}

#[test]
fn what_is_not_for_a_server_like_this_is_counted() {
    let mut lab = Lab::new();
    let discover = message(1, MessageType::Discover);
    let mut relayed = discover.clone();
    relayed.set_giaddr(address(9));
    assert_eq!(lab.try_ask(&relayed), Err("dhcp-relayed"));
    let mut reply = discover.clone();
    reply.set_opcode(dhcproto::v4::Opcode::BootReply);
    assert_eq!(lab.try_ask(&reply), Err("dhcp-not-a-request"));
    for kind in [MessageType::Offer, MessageType::Ack, MessageType::Nak] {
        assert_eq!(lab.try_ask(&message(1, kind)), Err("dhcp-not-a-request"));
    }
    let mut untyped = discover.clone();
    untyped.opts_mut().remove(OptionCode::MessageType);
    untyped.opts_mut().insert(DhcpOption::Hostname("x".into()));
    assert_eq!(lab.try_ask(&untyped), Err("dhcp-type"));
    assert_eq!(lab.try_ask(&message(1, MessageType::Request)), Err("dhcp-no-address"));
    let endless = DhcpOption::ClientIdentifier(vec![1; 256]);
    assert_eq!(lab.try_ask(&with(discover.clone(), endless)), Err("dhcp-client-id"));
    let bytes = discover.to_vec().unwrap();
    let mut handle = |message, mac| {
        let request = Request { message, mac, planned: None, taken: &|_| false };
        lab.server.handle(lab.now, &request)
    };
    assert_eq!(handle(&bytes, Some(MacAddr(mac(2)))), Err("dhcp-spoofed-mac"));
    assert_eq!(handle(&bytes[..100], None), Err("dhcp-truncated"));
    assert!(handle(&bytes, None).unwrap().is_some());
}

#[test]
fn leases_outlive_the_server() {
    let wall = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let mut before = Lab::new();
    assert_eq!([1, 2].map(|it| before.lease(it)), [Some(address(100)), Some(address(101))]);
    let text = serde_json::to_string(&before.server.leases().save(before.now, wall)).unwrap();

    let mut after = Lab::new();
    let saved: Vec<_> = serde_json::from_str(&text).unwrap();
    after.server.leases_mut().restore(after.now, wall + Duration::from_secs(60), &saved);
    assert_eq!(after.ask(&rebooting(3, address(100))).kind(), MessageType::Nak);
    assert_eq!(after.lease(3), Some(address(102)));
    assert_eq!(after.lease(2), Some(address(101)));
}
