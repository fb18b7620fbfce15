use netyard_wire::VNET_HEADER_LEN;
use netyard_wire::ip::UDP;

use super::*;

/// Counts what comes, whatever it is.
struct Count<'a>(&'a Cell<usize>);

impl Receive for Count<'_> {
    fn packet(&mut self, _: &Record<'_>, _: &Offload, _: &IpPacket<'_>) {
        self.bad_packet();
    }

    fn bad_packet(&mut self) {
        self.0.set(self.0.get() + 1);
    }

    fn message(&mut self, _: Message) {}
}

fn outbox() -> Outbox {
    Outbox::new(Rc::new(RefCell::new(Pool::default())), 1)
}

/// Has a packet of this length wait.
fn push(outbox: &Outbox, len: usize) {
    let packet = IpPacket {
        source: [10, 0, 0, 1].into(),
        destination: [10, 0, 0, 2].into(),
        hop_limit: 64,
        traffic_class: 0,
        protocol: UDP,
        fragment: None,
        header: &[],
        payload: &[],
    };
    let parts = (&[0; VNET_HEADER_LEN][..], &vec![0; len][..]);
    outbox.push(Instant::now(), parts, (&Offload::default(), &packet));
}

/// A message of a peer with one packet, as it is sent.
fn one_packet() -> Vec<u8> {
    let (mut message, mut bytes) = (Vec::new(), Vec::new());
    frame::begin(&mut message);
    frame::put(&mut message, &[0; VNET_HEADER_LEN + 20]);
    websocket::put(&mut bytes, Opcode::Binary, &message, Side::Peer);
    bytes
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_is_cut_takes_nothing_more_and_does_not_wait_for_an_end_that_does_not_read() {
    let (hub, mut peer) = tokio::io::duplex(4096);
    let outbox = outbox();
    let lane = outbox.attach(Instant::now());
    (0..8).for_each(|_| push(&outbox, 1400));
    let taken = Cell::new(0);
    let (mut inbox, mut receive) = (Inbox::new(&[], Side::Peer), Count(&taken));
    let sends = async {
        peer.write_all(&one_packet()).await.unwrap();
        while taken.get() == 0 {
            task::yield_now().await;
        }
        outbox.cut(ByeReason::Revoked);
        peer.write_all(&one_packet()).await.unwrap();
        time::Instant::now()
    };
    let (ended, cut) = tokio::join!(
        run((hub, Rc::default()), &mut inbox, (&outbox, lane), 0, &mut receive),
        sends
    );
    assert!(matches!(ended, Ended::Left), "{ended}");
    assert_eq!((taken.get(), cut.elapsed()), (1, GOODBYE));
}

#[tokio::test(start_paused = true)]
async fn an_end_that_listens_hears_why_its_lane_is_cut() {
    let (hub, mut peer) = tokio::io::duplex(4096);
    let outbox = outbox();
    let lane = outbox.attach(Instant::now());
    outbox.cut(ByeReason::Revoked);
    let taken = Cell::new(0);
    let (mut inbox, mut receive) = (Inbox::new(&[], Side::Peer), Count(&taken));
    run((hub, Rc::default()), &mut inbox, (&outbox, lane), 0, &mut receive).await;
    let mut heard = Inbox::new(&[], Side::Hub);
    let (_, said) = heard.next(&mut peer).await.unwrap();
    let Ok(Message::Bye(bye)) = Message::parse(said).unwrap() else { panic!("no goodbye") };
    assert_eq!(bye.reason, ByeReason::Revoked);
}

#[tokio::test(start_paused = true)]
async fn who_doubts_that_the_other_end_lives_has_it_asked_at_once() {
    let (hub, mut peer) = tokio::io::duplex(4096);
    let outbox = outbox();
    // Nobody answers whom a lane before this one asked.
    outbox.ask();
    let lane = outbox.attach(Instant::now());
    let taken = Cell::new(0);
    let (mut inbox, mut receive) = (Inbox::new(&[], Side::Peer), Count(&taken));
    let asks = async {
        task::yield_now().await;
        outbox.ask();
        let mut heard = Inbox::new(&[], Side::Hub);
        assert_eq!(heard.next(&mut peer).await.unwrap().0, Opcode::Ping);
        outbox.end(ByeReason::Stop);
        assert_eq!(heard.next(&mut peer).await.unwrap().0, Opcode::Text);
    };
    let run = run((hub, Rc::default()), &mut inbox, (&outbox, lane), 0, &mut receive);
    let (ended, ()) = tokio::join!(run, asks);
    assert!(matches!(ended, Ended::Left), "{ended}");
}

/// Counts packets that are what they say, and those that are not.
struct Sorted<'a> {
    good: &'a Cell<usize>,
    bad: &'a Cell<usize>,
}

impl Receive for Sorted<'_> {
    fn packet(&mut self, _: &Record<'_>, _: &Offload, _: &IpPacket<'_>) {
        self.good.set(self.good.get() + 1);
    }

    fn bad_packet(&mut self) {
        self.bad.set(self.bad.get() + 1);
    }

    fn message(&mut self, _: Message) {}
}

/// A datagram of UDP over IPv4 from 10.0.0.1 to 10.0.0.2.
const DATAGRAM: [u8; 28] = [
    0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0x66, 0xcf, 10, 0, 0, 1, 10, 0, 0, 2, 0x10, 0, 0x10, 1, 0,
    8, 0, 0,
];

#[tokio::test(start_paused = true)]
async fn a_packet_that_is_not_what_it_says_is_dropped_and_counted_and_the_lane_lives_on() {
    let (hub, mut peer) = tokio::io::duplex(4096);
    let outbox = outbox();
    let lane = outbox.attach(Instant::now());
    let with = |header: &[(usize, u8)], bytes: &[u8]| {
        let mut whole = [&[0; VNET_HEADER_LEN][..], bytes].concat();
        header.iter().for_each(|(at, byte)| whole[*at] = *byte);
        whole
    };
    // struct virtio_net_hdr_v1: flags, the kind of segmentation, lengths of headers and segments, where a checksum is.
    let lies = [
        with(&[], &[0; 20]),
        with(&[], &DATAGRAM[..20]),
        with(&[(0, 1), (6, 200)], &DATAGRAM),
        with(&[(0, 1), (1, 1), (4, 100), (6, 20), (8, 16)], &DATAGRAM),
        with(&[(1, 77), (4, 100)], &DATAGRAM),
    ];
    let message = |packets: &[Vec<u8>]| {
        let (mut message, mut bytes) = (Vec::new(), Vec::new());
        frame::begin(&mut message);
        packets.iter().for_each(|packet| frame::put(&mut message, packet));
        websocket::put(&mut bytes, Opcode::Binary, &message, Side::Peer);
        bytes
    };
    let (good, bad) = (Cell::new(0), Cell::new(0));
    let (mut inbox, mut receive) = (Inbox::new(&[], Side::Peer), Sorted { good: &good, bad: &bad });
    let sends = async {
        for lie in &lies {
            // Between others, and alone.
            let between = [with(&[], &DATAGRAM), lie.clone(), with(&[], &DATAGRAM)];
            peer.write_all(&message(&between)).await.unwrap();
            peer.write_all(&message(std::slice::from_ref(lie))).await.unwrap();
        }
        while good.get() < 2 * lies.len() || bad.get() < 2 * lies.len() {
            task::yield_now().await;
        }
        outbox.end(ByeReason::Stop);
    };
    let run = run((hub, Rc::default()), &mut inbox, (&outbox, lane), 0, &mut receive);
    let (ended, ()) = tokio::join!(run, sends);
    assert!(matches!(ended, Ended::Left), "{ended}");
    assert_eq!((good.get(), bad.get()), (2 * lies.len(), 2 * lies.len()));
}

#[tokio::test(start_paused = true)]
async fn a_lane_whose_other_end_takes_nothing_any_more_is_closed() {
    let (hub, _peer) = tokio::io::duplex(4096);
    let outbox = outbox();
    let lane = outbox.attach(Instant::now());
    (0..8).for_each(|_| push(&outbox, 1400));
    let taken = Cell::new(0);
    let (mut inbox, mut receive) = (Inbox::new(&[], Side::Peer), Count(&taken));
    let began = time::Instant::now();
    let ended = run((hub, Rc::default()), &mut inbox, (&outbox, lane), 0, &mut receive).await;
    let Ended::Io(error) = &ended else { panic!("{ended}") };
    assert_eq!((error.kind(), began.elapsed()), (io::ErrorKind::TimedOut, WRITE_LIMIT));
}
