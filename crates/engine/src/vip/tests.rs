use netyard_wire::build::TcpFrame;
use netyard_wire::tcp::TcpOptions;
use netyard_wire::{Checksum, Features, MacAddr, fit};

use super::*;
use crate::control::{ServiceInstance, ServiceSpec, TurnPolicy, TurnState};
use crate::edge::PlugId;
use crate::fake;
use crate::guests::Guests;

const PORT: u16 = 8080;
const CLIENT_SEQ: SeqNumber = SeqNumber(u32::MAX - 1);
const INSTANCE_SEQ: SeqNumber = SeqNumber(7000);

/// Guests 1 to 3 are instances of a service, guest 4 is a client.
struct Bench {
    world: fake::Bench,
    services: Services,
    vip: Vip,
    front4: SocketAddr,
    front6: SocketAddr,
}

/// A segment that came out of a plug, checksums verified.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    plug: PlugId,
    macs: (MacAddr, MacAddr),
    source: SocketAddr,
    destination: SocketAddr,
    flags: Flags,
    seq: SeqNumber,
    ack: SeqNumber,
    options: TcpOptions,
    payload: Vec<u8>,
    hop_limit: u8,
}

fn guest(number: u8) -> Guest {
    Guest {
        plug: PlugId(number.into()),
        mac: MacAddr([2, 0, 0, 0, 0, number]),
        address4: [192, 168, 127, number + 1].into(),
        address6: [0xfd00, 1, 2, 3, 0, 0, 0, u16::from(number) + 1].into(),
        name: format!("web-{number}"),
        aliases: Vec::new(),
    }
}

impl Bench {
    fn new() -> Self {
        let mut world = fake::Bench::new();
        world.guests = Guests::default();
        for number in 1..=4 {
            world.guests.insert(guest(number));
        }
        let spec = ServiceSpec {
            name: "web".into(),
            protocol: Protocol::Tcp,
            port: PORT,
            publish: None,
            delivery: Default::default(),
            policy: TurnPolicy::RoundRobin,
            affinity: None,
            instances: (1..=3)
                .map(|number| ServiceInstance {
                    name: format!("web-{number}"),
                    address4: guest(number).address4,
                    address6: guest(number).address6,
                    weight: 1,
                    eligible: true,
                })
                .collect(),
        };
        let mut services = Services::default();
        let id = services.set("hello", spec, &world.config, |_| false).unwrap();
        let service = services.get(id).unwrap();
        let (front4, front6) = (
            SocketAddr::new(service.address4().into(), PORT),
            SocketAddr::new(service.address6().into(), PORT),
        );
        let vip = Vip::new(world.now);
        Self { world, services, vip, front4, front6 }
    }

    fn client(&self, port: u16) -> SocketAddr {
        SocketAddr::new(guest(4).address4.into(), port)
    }

    fn instance(&self, number: u8) -> SocketAddr {
        SocketAddr::new(guest(number).address4.into(), PORT)
    }

    /// A segment as a guest's kernel writes it: checksum left to others.
    fn segment(
        &self,
        (source, destination): (SocketAddr, SocketAddr),
        flags: Flags,
        (seq, ack): (SeqNumber, SeqNumber),
        payload: &[u8],
    ) -> FrameBuf {
        let options = if flags.contains(Flags::SYN) {
            TcpOptions {
                mss: Some(1440),
                window_scale: Some(7),
                sack_permitted: true,
                timestamps: Some((1, 2)),
                ..TcpOptions::default()
            }
        } else {
            TcpOptions { timestamps: Some((3, 4)), ..TcpOptions::default() }
        };
        let guest = self.world.guests.by_address(source.ip()).expect("a guest");
        let header = TcpFrame {
            source_mac: guest.mac,
            destination_mac: self.world.config.gateway_mac,
            source,
            destination,
            seq,
            ack,
            flags,
            window: 500,
            options,
            hop_limit: 61,
            traffic_class: 0,
            ip_id: 9,
        };
        let mut bytes = vec![0; header.header_len()];
        bytes.extend_from_slice(payload);
        let offload = header.emit(&mut bytes, 1428);
        FrameBuf { bytes, offload }
    }

    fn give(&mut self, frame: &FrameBuf) -> bool {
        let (ethernet, payload) = Ethernet::parse(&frame.bytes).unwrap();
        let packet = IpPacket::parse(ethernet.ethertype, payload).unwrap();
        let segment = Segment::parse(&packet, frame.offload.checksum).unwrap();
        let (vip, services) = (&mut self.vip, &mut self.services);
        self.world.with(|cx| vip.handle_frame(cx, services, frame.as_frame(), &packet, &segment))
    }

    /// The next frame that went out, untouched.
    fn frame(&mut self) -> (PlugId, FrameBuf) {
        self.world.edge.frames.pop_front().expect("a frame")
    }

    /// The next segment that went out, as the wire would see it.
    fn seen(&mut self) -> Seen {
        let (plug, frame) = self.frame();
        let mut all = Vec::new();
        fit(frame.as_frame(), Features::NONE, &mut Vec::new(), &mut |frame| {
            all.push(parse(plug, frame));
        })
        .unwrap();
        let mut first = all.remove(0);
        for next in all {
            assert_eq!(next.seq, first.seq + first.payload.len());
            first.payload.extend_from_slice(&next.payload);
        }
        first
    }

    fn nothing(&self) -> bool {
        self.world.edge.frames.is_empty()
    }

    fn advance(&mut self, time: Duration) {
        let until = self.world.now + time;
        while let Some(at) = self.vip.poll_timeout().filter(|at| *at <= until) {
            self.world.now = at;
            let (vip, services) = (&mut self.vip, &mut self.services);
            self.world.with(|cx| vip.handle_timeout(cx, services));
        }
        self.world.now = until;
    }

    fn connect(&mut self, client: SocketAddr, front: SocketAddr) -> Seen {
        let syn = self.segment((client, front), Flags::SYN, (CLIENT_SEQ, SeqNumber(0)), b"");
        assert!(self.give(&syn));
        self.seen()
    }

    /// The instance that a SYN went to answers it.
    fn answer(&mut self, syn: &Seen, flags: Flags) {
        let answer =
            self.segment((syn.destination, syn.source), flags, (INSTANCE_SEQ, syn.seq + 1u32), b"");
        assert!(self.give(&answer));
    }

    /// An open connection: the SYN as the instance saw it.
    fn open(&mut self, client: SocketAddr, front: SocketAddr) -> Seen {
        let syn = self.connect(client, front);
        self.answer(&syn, Flags::SYN | Flags::ACK);
        assert_eq!(self.seen().flags, Flags::SYN | Flags::ACK);
        syn
    }

    /// One segment from the client and one from the instance pass.
    fn pass(
        &mut self,
        pair: (SocketAddr, SocketAddr),
        flags: Flags,
        numbers: (SeqNumber, SeqNumber),
        payload: &[u8],
    ) -> Seen {
        let frame = self.segment(pair, flags, numbers, payload);
        assert!(self.give(&frame));
        self.seen()
    }

    fn states(&self) -> Vec<TurnState> {
        self.services.state().remove(0).instances
    }

    fn dropped(&self, reason: &str) -> u64 {
        self.world.counters.of(reason)
    }
}

fn parse(plug: PlugId, frame: Frame<'_>) -> Seen {
    let (ethernet, payload) = Ethernet::parse(frame.bytes).unwrap();
    let packet = IpPacket::parse(ethernet.ethertype, payload).unwrap();
    let segment = Segment::parse(&packet, Checksum::Present).unwrap();
    Seen {
        plug,
        macs: (ethernet.source, ethernet.destination),
        source: SocketAddr::new(packet.source, segment.source_port),
        destination: SocketAddr::new(packet.destination, segment.destination_port),
        flags: segment.flags,
        seq: segment.seq,
        ack: segment.ack,
        options: segment.options,
        payload: segment.payload.to_vec(),
        hop_limit: packet.hop_limit,
    }
}

#[test]
fn a_connection_is_led_to_an_instance_and_back() {
    let mut bench = Bench::new();
    let client = bench.client(40_000);
    let (front, gateway_mac) = (bench.front4, bench.world.config.gateway_mac);
    let syn = bench.connect(client, front);
    assert_eq!((syn.plug, syn.destination), (PlugId(1), bench.instance(1)));
    assert_eq!(syn.source.ip(), bench.world.config.gateway4());
    assert_eq!(syn.macs, (gateway_mac, MacAddr([2, 0, 0, 0, 0, 1])));
    assert_eq!((syn.seq, syn.hop_limit), (CLIENT_SEQ, 61));
    assert_eq!(syn.options.timestamps, Some((1, 2)), "options are not touched");
    assert!(bench.nothing(), "the client hears nothing before the instance answers");

    bench.answer(&syn, Flags::SYN | Flags::ACK);
    let answer = bench.seen();
    assert_eq!((answer.plug, answer.source, answer.destination), (PlugId(4), front, client));
    assert_eq!((answer.seq, answer.ack), (INSTANCE_SEQ, CLIENT_SEQ + 1u32));
    assert_eq!(answer.macs, (gateway_mac, MacAddr([2, 0, 0, 0, 0, 4])));

    let numbers = (CLIENT_SEQ + 1u32, INSTANCE_SEQ + 1u32);
    let data = bench.pass((client, front), Flags::ACK | Flags::PSH, numbers, b"GET /");
    assert_eq!((data.source, data.payload.as_slice()), (syn.source, b"GET /".as_slice()));
    assert_eq!((bench.vip.len(), bench.states()[0].open), (1, 1));
}

#[test]
fn complete_checksums_are_adjusted() {
    let mut bench = Bench::new();
    let (client, front) = (bench.client(40_000), bench.front4);
    let syn = bench.open(client, front);
    let frame = bench.segment(
        (syn.destination, syn.source),
        Flags::ACK,
        (INSTANCE_SEQ + 1u32, CLIENT_SEQ + 1u32),
        b"an odd number of bytes.",
    );
    let mut whole = Vec::new();
    fit(frame.as_frame(), Features::NONE, &mut Vec::new(), &mut |frame| {
        whole.push(FrameBuf::from(frame));
    })
    .unwrap();
    assert_ne!(whole[0].offload.checksum, frame.offload.checksum);
    assert!(bench.give(&whole[0]));
    let (_, out) = bench.frame();
    assert_eq!(out.offload, whole[0].offload, "nothing is left to others that was not before");
    assert_eq!(parse(PlugId(4), out.as_frame()).payload, b"an odd number of bytes.");
}

#[test]
fn super_frames_stay_whole() {
    let mut bench = Bench::new();
    let (client, front) = (bench.client(40_000), bench.front4);
    let syn = bench.open(client, front);
    let payload: Vec<u8> = (0..60_000u32).map(|n| (n % 251) as u8).collect();
    let frame = bench.segment(
        (syn.destination, syn.source),
        Flags::ACK,
        (INSTANCE_SEQ + 1u32, CLIENT_SEQ + 1u32),
        &payload,
    );
    assert!(frame.offload.gso.is_some());
    assert!(bench.give(&frame));
    let (plug, out) = bench.frame();
    assert_eq!((plug, out.offload, out.bytes.len()), (PlugId(4), frame.offload, frame.bytes.len()));
    bench.world.edge.frames.push_back((plug, out));
    assert_eq!(bench.seen().payload, payload);
}

#[test]
fn clients_and_families_share_the_turns() {
    let mut bench = Bench::new();
    let clients = [
        SocketAddr::new(guest(4).address4.into(), 40_000),
        SocketAddr::new(guest(2).address4.into(), 40_000),
        SocketAddr::new(guest(4).address6.into(), 40_000),
        SocketAddr::new(guest(4).address4.into(), 40_001),
    ];
    let plugs = clients.map(|client| {
        let front = if client.is_ipv4() { bench.front4 } else { bench.front6 };
        bench.open(client, front).plug.0
    });
    assert_eq!(plugs, [1, 2, 3, 1]);
}

#[test]
fn a_client_may_be_its_own_instance() {
    let mut bench = Bench::new();
    let (client, front) = (SocketAddr::new(guest(1).address4.into(), 40_000), bench.front4);
    let syn = bench.open(client, front);
    assert_eq!(syn.plug, PlugId(1));
    assert_eq!(syn.source.ip(), bench.world.config.gateway4());
    let numbers = (INSTANCE_SEQ + 1u32, CLIENT_SEQ + 1u32);
    let back = bench.pass((syn.destination, syn.source), Flags::ACK, numbers, b"hello");
    assert_eq!((back.plug, back.source, back.destination), (PlugId(1), front, client));
}

#[test]
fn a_refusing_instance_costs_its_turn_and_the_client_notices_nothing() {
    let mut bench = Bench::new();
    let (client, front) = (bench.client(40_000), bench.front4);
    let first = bench.connect(client, front);
    bench.answer(&first, Flags::RST | Flags::ACK);
    let second = bench.seen();
    assert_eq!((second.plug, second.seq, second.flags), (PlugId(2), CLIENT_SEQ, Flags::SYN));
    bench.answer(&second, Flags::SYN | Flags::ACK);
    assert_eq!(bench.seen().flags, Flags::SYN | Flags::ACK);
    let states = bench.states();
    assert_eq!((states[0].turns, states[0].failed, states[0].open), (1, 1, 0));
    assert_eq!((states[1].turns, states[1].failed, states[1].open), (1, 0, 1));
    assert_eq!(bench.connect(bench.client(40_001), front).plug, PlugId(3));
}

#[test]
fn a_reset_that_answers_nothing_is_ignored() {
    let mut bench = Bench::new();
    let (client, front) = (bench.client(40_000), bench.front4);
    let syn = bench.connect(client, front);
    for ack in [CLIENT_SEQ, CLIENT_SEQ + 2u32] {
        let forged = bench.segment(
            (syn.destination, syn.source),
            Flags::RST | Flags::ACK,
            (SeqNumber(0), ack),
            b"",
        );
        assert!(bench.give(&forged));
    }
    assert!(bench.nothing());
    assert_eq!(bench.dropped("vip-not-open"), 2);
}

#[test]
fn a_silent_instance_is_asked_again_and_then_the_next_one() {
    let mut bench = Bench::new();
    let (client, front) = (bench.client(40_000), bench.front4);
    let first = bench.connect(client, front);
    bench.advance(Duration::from_millis(999));
    let mut again = Vec::new();
    while !bench.nothing() {
        again.push(bench.seen());
    }
    assert_eq!(again, [first.clone(), first.clone()], "250 and 750 ms later");
    bench.advance(Duration::from_millis(1));
    let second = bench.seen();
    assert_eq!(second.plug, PlugId(2));
    // The first one's answer comes too late: it is nobody's, and the stack will reset it.
    let late = bench.segment(
        (first.destination, first.source),
        Flags::SYN | Flags::ACK,
        (INSTANCE_SEQ, CLIENT_SEQ + 1u32),
        b"",
    );
    assert!(!bench.give(&late));
    bench.answer(&second, Flags::SYN | Flags::ACK);
    assert_eq!(bench.seen().destination, client);
}

#[test]
fn when_all_have_failed_the_client_is_refused() {
    let mut bench = Bench::new();
    let (client, front) = (bench.client(40_000), bench.front4);
    let mut syn = bench.connect(client, front);
    for _ in 0..3 {
        bench.answer(&syn, Flags::RST | Flags::ACK);
        syn = bench.seen();
    }
    assert_eq!((syn.plug, syn.source, syn.destination), (PlugId(4), front, client));
    assert_eq!((syn.flags, syn.ack), (Flags::RST | Flags::ACK, CLIENT_SEQ + 1u32));
    assert_eq!(bench.services.state()[0].refused, 1);
    bench.advance(IDLE);
    assert!(bench.vip.len() == 0 && bench.nothing());
}

#[test]
fn without_instances_and_at_other_ports_the_client_is_refused() {
    let mut bench = Bench::new();
    let client = bench.client(40_000);
    let other = SocketAddr::new(bench.front4.ip(), 81);
    let refused = bench.connect(client, other);
    assert_eq!((refused.source, refused.flags), (other, Flags::RST | Flags::ACK));
    for number in 1..=3 {
        bench.services.set_eligible("hello", "web", &format!("web-{number}"), false).unwrap();
    }
    let refused = bench.connect(client, bench.front4);
    assert_eq!((refused.plug, refused.flags), (PlugId(4), Flags::RST | Flags::ACK));
    assert_eq!(refused.ack, CLIENT_SEQ + 1u32);
}

#[test]
fn a_death_moves_waiting_connections_at_once() {
    let mut bench = Bench::new();
    let (front, waiting) = (bench.front4, bench.client(40_000));
    bench.connect(waiting, front);
    let open = bench.open(bench.client(40_001), front);
    assert_eq!(open.plug, PlugId(2));
    for name in ["web-1", "web-2"] {
        let turn = bench.services.set_eligible("hello", "web", name, false).unwrap();
        bench.world.with(|cx| bench.vip.instance_down(cx, &mut bench.services, turn));
    }
    let moved = bench.seen();
    assert_eq!((moved.plug, moved.flags), (PlugId(3), Flags::SYN));
    assert!(bench.nothing(), "what was open stays");
    assert_eq!(bench.states().iter().map(|s| s.failed).collect::<Vec<_>>(), [1, 0, 0]);
}

#[test]
fn an_unplugged_instance_resets_its_clients_and_moves_the_waiting() {
    let mut bench = Bench::new();
    let (front, open, waiting) = (bench.front4, bench.client(40_000), bench.client(40_001));
    let syn = bench.open(open, front);
    let numbers = (INSTANCE_SEQ + 1u32, CLIENT_SEQ + 1u32);
    bench.pass((syn.destination, syn.source), Flags::ACK, numbers, b"12345");
    bench.open(bench.client(50_000), front);
    bench.open(bench.client(50_001), front);
    bench.connect(waiting, front);
    let gone = bench.world.guests.remove(PlugId(1)).unwrap();
    bench.world.with(|cx| bench.vip.remove_guest(cx, &mut bench.services, &gone));
    let mut seen = [bench.seen(), bench.seen()];
    seen.sort_by_key(|seen| seen.plug);
    assert_eq!((seen[0].plug, seen[0].flags), (PlugId(2), Flags::SYN));
    assert_eq!((seen[1].plug, seen[1].destination), (PlugId(4), open));
    assert_eq!((seen[1].flags, seen[1].seq), (Flags::RST | Flags::ACK, INSTANCE_SEQ + 6u32));
    assert_eq!(bench.states()[0].open, 0);
}

#[test]
fn an_unplugged_client_leaves_nothing() {
    let mut bench = Bench::new();
    let front = bench.front4;
    let syn = bench.open(bench.client(40_000), front);
    bench.connect(bench.client(40_001), front);
    let gone = bench.world.guests.remove(PlugId(4)).unwrap();
    bench.world.with(|cx| bench.vip.remove_guest(cx, &mut bench.services, &gone));
    let reset = bench.seen();
    assert_eq!((reset.plug, reset.source, reset.seq), (PlugId(1), syn.source, CLIENT_SEQ + 1u32));
    assert!(bench.nothing());
    bench.advance(IDLE);
    assert!(bench.vip.len() == 0 && bench.nothing());
    assert_eq!(bench.vip.poll_timeout(), None);
    assert!(bench.vip.by_client.is_empty() && bench.vip.by_instance.is_empty());
    assert!(bench.vip.per_client.is_empty());
    assert!(bench.states().iter().all(|state| state.open == 0));
}

#[test]
fn an_entry_ends_some_time_after_both_fins() {
    let mut bench = Bench::new();
    let (client, front) = (bench.client(40_000), bench.front4);
    let syn = bench.open(client, front);
    let back = (syn.destination, syn.source);
    let (c, i) = (CLIENT_SEQ + 1u32, INSTANCE_SEQ + 1u32);
    bench.pass((client, front), Flags::FIN | Flags::ACK, (c, i), b"bye");
    // Half-closed: the instance may go on for as long as it likes.
    bench.advance(Duration::from_secs(600));
    bench.pass(back, Flags::ACK, (i, c + 4u32), b"data");
    bench.pass(back, Flags::FIN | Flags::ACK, (i + 4u32, c + 4u32), b"");
    assert_eq!(bench.states()[0].open, 1);
    bench.pass((client, front), Flags::ACK, (c + 4u32, i + 5u32), b"");
    assert_eq!((bench.states()[0].open, bench.vip.len()), (0, 1));
    // The last acknowledgement was lost.
    bench.pass(back, Flags::FIN | Flags::ACK, (i + 4u32, c + 4u32), b"");
    bench.advance(LINGER);
    assert_eq!(bench.vip.len(), 0);
    assert!(bench.services.state()[0].instances.iter().all(|state| state.open == 0));
    // Whoever goes on after that is told.
    let late = bench.segment((client, front), Flags::ACK, (c + 4u32, i + 5u32), b"x");
    assert!(bench.give(&late));
    let reset = bench.seen();
    assert_eq!((reset.plug, reset.flags, reset.seq), (PlugId(4), Flags::RST, i + 5u32));
}

#[test]
fn a_reset_ends_a_connection_and_its_port_can_be_used_again_at_once() {
    let mut bench = Bench::new();
    let (client, front) = (bench.client(40_000), bench.front4);
    let syn = bench.open(client, front);
    let numbers = (INSTANCE_SEQ + 1u32, CLIENT_SEQ + 1u32);
    let reset = bench.pass((syn.destination, syn.source), Flags::RST | Flags::ACK, numbers, b"");
    assert_eq!((reset.plug, reset.source), (PlugId(4), front));
    assert_eq!(bench.states()[0].open, 0);
    let next = bench.connect(client, front);
    assert_eq!(next.plug, PlugId(2));
    assert_eq!(bench.vip.len(), 1);
}

#[test]
fn an_idle_connection_ends_after_two_hours() {
    let mut bench = Bench::new();
    let (client, front) = (bench.client(40_000), bench.front4);
    let syn = bench.open(client, front);
    bench.advance(Duration::from_secs(2 * 60 * 60));
    let numbers = (INSTANCE_SEQ + 1u32, CLIENT_SEQ + 1u32);
    bench.pass((syn.destination, syn.source), Flags::ACK, numbers, b"still here");
    bench.advance(Duration::from_secs(2 * 60 * 60));
    assert_eq!(bench.vip.len(), 1);
    bench.advance(Duration::from_secs(5 * 60));
    assert_eq!((bench.vip.len(), bench.states()[0].open), (0, 0));
}

#[test]
fn an_ipv6_client_reaches_an_ipv4_program_within_the_turn() {
    let mut bench = Bench::new();
    let client = SocketAddr::new(guest(4).address6.into(), 40_000);
    let front = bench.front6;
    let syn = bench.connect(client, front);
    assert_eq!(syn.destination.ip(), guest(1).address6);
    assert_eq!(syn.source.ip(), bench.world.config.gateway6());
    bench.answer(&syn, Flags::RST | Flags::ACK);
    let syn = bench.seen();
    assert_eq!((syn.plug, syn.destination), (PlugId(1), bench.instance(1)));
    assert_eq!((syn.source.ip(), syn.hop_limit), (bench.world.config.gateway4().into(), 61));
    bench.answer(&syn, Flags::SYN | Flags::ACK);
    let answer = bench.seen();
    assert_eq!((answer.source, answer.destination), (front, client));
    assert_eq!(bench.states()[0], TurnState { turns: 1, open: 1, ..TurnState::default() });

    let payload = vec![7; 50_000];
    let (c, i) = (CLIENT_SEQ + 1u32, INSTANCE_SEQ + 1u32);
    let out = bench.pass((client, front), Flags::ACK, (c, i), &payload);
    assert_eq!((out.payload.len(), out.destination), (payload.len(), bench.instance(1)));
    let back = bench.pass((syn.destination, syn.source), Flags::ACK, (i, c), &payload);
    assert_eq!((back.payload.len(), back.destination), (payload.len(), client));
}

#[test]
fn an_old_connection_in_the_way_is_ended() {
    let mut bench = Bench::new();
    let (client, front) = (bench.client(40_000), bench.front4);
    let syn = bench.connect(client, front);
    // A challenge acknowledgement of a connection in TIME-WAIT.
    let old = (SeqNumber(555), SeqNumber(444));
    let reset = bench.pass((syn.destination, syn.source), Flags::ACK, old, b"");
    assert_eq!((reset.plug, reset.flags, reset.seq), (PlugId(1), Flags::RST, SeqNumber(444)));
    bench.advance(SYN_RETRY);
    assert_eq!(bench.seen(), syn);
}

#[test]
fn a_retransmitted_syn_takes_no_turn_and_a_new_one_does() {
    let mut bench = Bench::new();
    let (client, front) = (bench.client(40_000), bench.front4);
    bench.connect(client, front);
    let again = bench.segment((client, front), Flags::SYN, (CLIENT_SEQ, SeqNumber(0)), b"");
    assert!(bench.give(&again) && bench.nothing());
    let other = bench.segment((client, front), Flags::SYN, (SeqNumber(5), SeqNumber(0)), b"");
    assert!(bench.give(&other));
    assert_eq!((bench.seen().plug, bench.vip.len()), (PlugId(2), 1));
    assert_eq!(bench.states()[0].failed, 0);
}

#[test]
fn the_table_is_bounded_for_each_client() {
    let mut bench = Bench::new();
    let front = bench.front4;
    for port in 1..=4096 {
        bench.connect(bench.client(port), front);
    }
    let one_more =
        bench.segment((bench.client(5000), front), Flags::SYN, (CLIENT_SEQ, SeqNumber(0)), b"");
    assert!(bench.give(&one_more) && bench.nothing());
    assert_eq!(bench.dropped("vip-full"), 1);
    let other = SocketAddr::new(guest(2).address4.into(), 5000);
    assert_eq!(bench.connect(other, front).flags, Flags::SYN);
}

#[test]
fn frames_that_lie_are_counted_drops() {
    let mut bench = Bench::new();
    let (client, front) = (bench.client(40_000), bench.front4);
    bench.open(client, front);
    let numbers = (CLIENT_SEQ + 1u32, INSTANCE_SEQ + 1u32);
    let mut frame = bench.segment((client, front), Flags::ACK, numbers, b"data");
    frame.offload.checksum = Checksum::Partial { start: 14, offset: 10 };
    assert!(bench.give(&frame) && bench.nothing());
    assert_eq!(bench.dropped("vip-untranslatable"), 1);
    let long =
        bench.segment((bench.client(1), front), Flags::SYN, (CLIENT_SEQ, SeqNumber(0)), &[0; 2000]);
    assert!(bench.give(&long) && bench.nothing());
    assert_eq!(bench.dropped("vip-syn-too-long"), 1);
    let mut stranger = bench.segment((client, front), Flags::RST, numbers, b"");
    stranger = {
        let (ethernet, payload) = Ethernet::parse(&stranger.bytes).unwrap();
        let packet = IpPacket::parse(ethernet.ethertype, payload).unwrap();
        let path = Path {
            source_mac: ethernet.source,
            destination_mac: ethernet.destination,
            source: bench.client(9),
            destination: front,
        };
        let mut bytes = Vec::new();
        let offload = path.rewrite(&mut bytes, stranger.offload, &packet).unwrap();
        FrameBuf { bytes, offload }
    };
    assert!(bench.give(&stranger) && bench.nothing());
    assert_eq!(bench.dropped("vip-unknown-connection"), 1);
}

#[test]
fn other_traffic_is_not_taken() {
    let mut bench = Bench::new();
    let outside = "203.0.113.1:80".parse().unwrap();
    let gateway = SocketAddr::new(bench.world.config.gateway4().into(), 2000);
    for to in [outside, gateway, bench.instance(2)] {
        let syn =
            bench.segment((bench.client(40_000), to), Flags::SYN, (CLIENT_SEQ, SeqNumber(0)), b"");
        assert!(!bench.give(&syn), "{to}");
    }
}

#[test]
fn whatever_guests_send_the_tables_agree_and_all_ends() {
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;
    let kinds = [
        Flags::SYN,
        Flags::SYN | Flags::ACK,
        Flags::ACK,
        Flags::FIN | Flags::ACK,
        Flags::RST,
        Flags::RST | Flags::ACK,
        Flags::NONE,
    ];
    for seed in 0..20 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut bench = Bench::new();
        let mut heard: Vec<Seen> = Vec::new();
        for _ in 0..400 {
            while !bench.nothing() {
                heard.push(bench.seen());
            }
            let flags = kinds[rng.random_range(0..kinds.len())];
            let near = |n: SeqNumber, rng: &mut SmallRng| n + rng.random_range(0..4u32);
            match rng.random_range(0..20) {
                0 => bench.advance(Duration::from_millis(rng.random_range(0..3000))),
                1 => {
                    let name = format!("web-{}", rng.random_range(1..=3));
                    let eligible = rng.random_bool(0.7);
                    let turn =
                        bench.services.set_eligible("hello", "web", &name, eligible).unwrap();
                    if !eligible {
                        bench
                            .world
                            .with(|cx| bench.vip.instance_down(cx, &mut bench.services, turn));
                    }
                }
                2..10 if !heard.is_empty() => {
                    let seen = heard.swap_remove(rng.random_range(0..heard.len()));
                    let numbers = (near(INSTANCE_SEQ, &mut rng), near(seen.seq, &mut rng));
                    let pair = (seen.destination, seen.source);
                    let frame = bench.segment(pair, flags, numbers, b"");
                    bench.give(&frame);
                }
                _ => {
                    let client = SocketAddr::new(
                        guest(rng.random_range(1..=4)).address4.into(),
                        rng.random_range(1..5),
                    );
                    let numbers = (near(CLIENT_SEQ, &mut rng), near(INSTANCE_SEQ, &mut rng));
                    let frame = bench.segment((client, bench.front4), flags, numbers, b"");
                    assert!(bench.give(&frame));
                }
            }
            let open = bench
                .vip
                .entries
                .iter()
                .filter(|(_, entry)| matches!(entry.phase, Phase::Open(_)))
                .count();
            let counted: u64 = bench.states().iter().map(|state| state.open).sum();
            assert_eq!((open as u64, bench.vip.by_client.len()), (counted, bench.vip.len()));
            assert_eq!(bench.vip.by_instance.len(), bench.vip.len());
        }
        bench.advance(IDLE);
        bench.advance(IDLE);
        assert!(bench.vip.len() == 0 && bench.vip.per_client.is_empty());
    }
}
