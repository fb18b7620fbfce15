use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::time::Duration;

use netyard_sys::poll::Events;
use netyard_sys::seqpacket::SeqPacket;
use netyard_testbed::wait_for;
use netyard_wire::{Checksum, Features, Gso, GsoKind, MacAddr, Offload, build};

use super::*;
use crate::control::{Link, PlugKind, Shape};

const ID: PlugId = PlugId(3);

/// Far above what a program takes to start.
const SOON: Duration = Duration::from_secs(60);

/// Plugs with one frame socket, and the other end of that.
struct Bench {
    poll: Poll,
    plugs: Plugs,
    peer: SeqPacket,
    buffer: Vec<u8>,
}

impl Bench {
    fn new(link: Link, features: Features) -> Self {
        let mut bench = Self::greeting(link);
        bench.peer.send(&features.bits().to_le_bytes(), &[]).unwrap();
        assert_eq!(bench.receive(), None);
        bench
    }

    /// The peer has not said what it takes.
    fn greeting(link: Link) -> Self {
        let (near, peer) = SeqPacket::pair().unwrap();
        peer.set_nonblocking(true).unwrap();
        let (poll, mut plugs) = (Poll::new().unwrap(), Plugs::new());
        plugs.add(&poll, ID, "yard", near.into(), &request(PlugKind::Socket, link), 1).unwrap();
        let mut word = [0; 8];
        assert_eq!(peer.recv_bytes(&mut word).unwrap(), 4);
        assert_eq!(word[..4], Features::ALL.bits().to_le_bytes());
        Self { poll, plugs, peer, buffer: vec![0; BUFFER_LEN] }
    }

    /// Reads until there is a frame, or nothing more.
    fn receive(&mut self) -> Option<Result<FrameBuf, &'static str>> {
        self.plugs.handle_event(ID, true, false);
        loop {
            match self.plugs.receive(&self.poll, Instant::now(), 0, &mut self.buffer).1 {
                Received::Frame(frame) => return Some(Ok(frame.into())),
                Received::Malformed(reason) => return Some(Err(reason)),
                Received::Taken => {}
                Received::Nothing => return None,
            }
        }
    }

    fn peer_sends(&self, frame: Frame<'_>) {
        let header = frame.offload.encode();
        self.peer.send(&[&header, frame.bytes].concat(), &[]).unwrap();
    }

    /// What the peer has got.
    fn peer_receives(&self) -> Vec<FrameBuf> {
        let mut buffer = vec![0; BUFFER_LEN];
        let messages = std::iter::from_fn(|| {
            let len = self.peer.recv_bytes(&mut buffer).ok()?;
            let (header, bytes) = buffer[..len].split_first_chunk().unwrap();
            let offload = Offload::parse(header, bytes).unwrap();
            Some(FrameBuf { bytes: bytes.to_vec(), offload })
        });
        messages.collect()
    }
}

fn both(shape: Shape) -> Link {
    Link { up: shape, down: shape }
}

fn request(kind: PlugKind, link: Link) -> PlugRequest {
    PlugRequest { features: Features::ALL.bits(), link, ..PlugRequest::new("one", kind) }
}

/// A UDP frame, its checksum left to do; cut into datagrams of `size` bytes if given.
fn frame(payload: usize, size: Option<u16>) -> FrameBuf {
    let (from, to): (SocketAddr, SocketAddr) =
        ("192.0.2.1:1".parse().unwrap(), "192.0.2.2:2".parse().unwrap());
    let mut bytes = Vec::new();
    let mac = MacAddr([2, 0, 0, 0, 0, 1]);
    let mut offload = build::udp_frame(&mut bytes, mac, mac, from, to, 64, &vec![7; payload]);
    assert!(matches!(offload.checksum, Checksum::Partial { .. }));
    let header_len = u16::try_from(bytes.len() - payload).unwrap();
    offload.gso = size.map(|size| Gso { kind: GsoKind::Udp, size, header_len, ecn: false });
    FrameBuf { bytes, offload }
}

#[test]
fn frames_pass_both_ways_whole_and_are_counted() {
    let mut bench = Bench::new(Link::default(), Features::ALL);
    let sent = frame(5_000, Some(1_000));
    assert!(bench.plugs.transmit(Instant::now(), ID, sent.as_frame()));
    assert_eq!(bench.peer_receives(), std::slice::from_ref(&sent));
    bench.peer_sends(sent.as_frame());
    assert_eq!(bench.receive(), Some(Ok(sent.clone())));
    assert_eq!(bench.receive(), None);
    let once = Traffic { frames: 1, bytes: u64::try_from(sent.bytes.len()).unwrap() };
    let expected = Counts { guest_to_host: once, host_to_guest: once, dropped: 0, supplied: false };
    assert_eq!(bench.plugs.counts(ID), Some(expected));
}

#[test]
fn a_peer_gets_no_more_than_it_takes() {
    for features in [Features::NONE, Features::CSUM] {
        let mut bench = Bench::new(Link::default(), features);
        bench.plugs.transmit(Instant::now(), ID, frame(5_000, Some(1_000)).as_frame());
        let got = bench.peer_receives();
        assert_eq!(got.len(), 5);
        let partial = |frame: &FrameBuf| {
            frame.offload.gso.is_none()
                && matches!(frame.offload.checksum, Checksum::Partial { .. })
        };
        assert_eq!(got.iter().all(partial), features == Features::CSUM);
    }
}

#[test]
fn a_peer_that_has_not_spoken_takes_nothing_special() {
    let mut bench = Bench::greeting(Link::default());
    bench.plugs.transmit(Instant::now(), ID, frame(100, None).as_frame());
    assert_eq!(bench.peer_receives()[0].offload, Offload::default());
    bench.peer_sends(frame(100, None).as_frame());
    assert_eq!(bench.receive(), Some(Err("ungreeted")), "a frame is no greeting");
    assert!(bench.plugs.take_dead().is_empty());
}

#[test]
fn what_is_no_frame_is_told_and_harms_nothing() {
    let mut bench = Bench::new(Link::default(), Features::ALL);
    bench.peer.send(b"short", &[]).unwrap();
    assert_eq!(bench.receive(), Some(Err("truncated")));
    let mut lie = frame(100, None);
    lie.offload.checksum = Checksum::Partial { start: 9_000, offset: 6 };
    bench.peer_sends(lie.as_frame());
    assert!(matches!(bench.receive(), Some(Err(_))));
    bench.peer.send(&vec![0; BUFFER_LEN + 1], &[]).unwrap();
    assert_eq!(bench.receive(), Some(Err("oversized")));
    bench.peer_sends(frame(100, None).as_frame());
    assert_eq!(bench.receive(), Some(Ok(frame(100, None))));
    assert!(bench.plugs.take_dead().is_empty());
}

#[test]
fn a_slow_peer_has_a_bounded_queue_that_goes_out_later() {
    let mut bench = Bench::new(Link::default(), Features::ALL);
    let big = frame(60_000, None);
    let now = Instant::now();
    let taken = (0..1_000).take_while(|_| bench.plugs.transmit(now, ID, big.as_frame())).count();
    let counts = bench.plugs.counts(ID).unwrap();
    assert_eq!(counts.dropped, 1);
    let queued = &bench.plugs.list[0].queue;
    assert!(queued.bytes <= queue::MAX_BYTES && queued.bytes > queue::MAX_BYTES - 70_000);
    let mut got = bench.peer_receives().len();
    while got < taken {
        bench.plugs.handle_event(ID, false, true);
        let more = bench.peer_receives().len();
        assert!(more > 0);
        got += more;
    }
    let sent = bench.plugs.counts(ID).unwrap().host_to_guest.frames;
    assert_eq!(sent, u64::try_from(taken).unwrap());
    assert_eq!(bench.plugs.list[0].queue.frames.capacity(), 0, "the memory is given back");
    assert!(bench.plugs.transmit(now, ID, big.as_frame()));
}

#[test]
fn a_peer_that_has_gone_is_told_once_and_not_read_again() {
    let mut bench = Bench::new(Link::default(), Features::ALL);
    bench.peer = SeqPacket::pair().unwrap().0;
    // A program that another test starts has a copy of the old one until it runs.
    wait_for("its end", SOON, || {
        assert_eq!(bench.receive(), None);
        (!bench.plugs.dead.is_empty()).then_some(())
    });
    assert!(!bench.plugs.any_readable());
    assert!(!bench.plugs.transmit(Instant::now(), ID, frame(100, None).as_frame()));
    assert_eq!(bench.plugs.take_dead(), [(ID, "yard".to_owned())]);
    bench.plugs.remove(&bench.poll, ID);
    assert_eq!((bench.plugs.len(), bench.plugs.counts(ID)), (0, None));
    assert!(!bench.plugs.transmit(Instant::now(), ID, frame(100, None).as_frame()));
}

#[test]
fn a_shaped_link_delays_single_packets_both_ways() {
    let delay = Duration::from_secs(1);
    let mut bench = Bench::new(both(Shape { delay, ..Shape::default() }), Features::ALL);
    let sent = frame(2_000, Some(1_000));
    let now = Instant::now();
    assert!(bench.plugs.transmit(now, ID, sent.as_frame()));
    bench.peer_sends(sent.as_frame());
    assert_eq!(bench.receive(), None);
    assert!(bench.peer_receives().is_empty());
    assert_eq!(bench.plugs.poll_timeout(), Some(now + delay));
    bench.plugs.handle_timeout(now + delay);
    assert_eq!(bench.peer_receives().len(), 2);
    let later = now + 10 * delay;
    let arrived = std::iter::from_fn(|| bench.plugs.next_arrival(later)).count();
    assert_eq!((arrived, bench.plugs.poll_timeout()), (2, None));
}

#[test]
fn a_lossy_link_counts_what_it_loses() {
    let mut bench = Bench::new(both(Shape { loss: 1.0, ..Shape::default() }), Features::ALL);
    let sent = bench.plugs.transmit(Instant::now(), ID, frame(100, None).as_frame());
    assert!(sent, "no sender knows what a link loses");
    bench.peer_sends(frame(100, None).as_frame());
    assert_eq!(bench.receive(), None);
    assert_eq!(bench.plugs.counts(ID).unwrap().dropped, 2);
}

#[test]
fn a_tap_drops_while_it_is_down_and_is_told_when_it_goes() {
    netyard_testbed::isolate(|| {
        let tap = netyard_sys::tap::Tap::create("tap0").unwrap();
        let (poll, mut plugs) = (Poll::new().unwrap(), Plugs::new());
        let request = request(PlugKind::Tap, Link::default());
        plugs.add(&poll, ID, "yard", tap.fd, &request, 1).unwrap();
        // The kernel refuses frames to a guest whose interface is down.
        assert!(!plugs.transmit(Instant::now(), ID, frame(100, None).as_frame()));
        assert_eq!(plugs.counts(ID).unwrap().dropped, 1);

        let ip = |arguments: &str| {
            let arguments = arguments.split(' ');
            netyard_testbed::run(std::process::Command::new("ip").args(arguments));
        };
        ip("link set tap0 up");
        assert!(plugs.transmit(Instant::now(), ID, frame(5_000, Some(1_000)).as_frame()));
        // The guest's kernel asks for routers and groups by itself.
        let mut buffer = vec![0; BUFFER_LEN];
        wait_for("a frame of the guest", Duration::from_secs(10), || {
            plugs.handle_event(ID, true, false);
            let (_, received) = plugs.receive(&poll, Instant::now(), 0, &mut buffer);
            matches!(received, Received::Frame(_)).then_some(())
        });

        let mut events = Events::new();
        poll.wait(&mut events, Some(Duration::ZERO)).unwrap();
        ip("link delete tap0");
        poll.wait(&mut events, Some(Duration::from_secs(10))).unwrap();
        assert!(events.iter().next().unwrap().error);
        plugs.handle_event(ID, true, false);
        while plugs.any_readable() {
            plugs.receive(&poll, Instant::now(), 0, &mut buffer);
        }
        assert_eq!(plugs.take_dead().len(), 1);
        plugs.remove(&poll, ID);
    });
}

#[test]
fn a_stream_carries_single_checksummed_packets() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plug");
    let listener = UnixListener::bind(&path).unwrap();
    let mut far = UnixStream::connect(&path).unwrap();
    let (poll, mut plugs) = (Poll::new().unwrap(), Plugs::new());
    let request = request(PlugKind::Listener, Link::default());
    plugs.add(&poll, ID, "yard", listener.into(), &request, 1).unwrap();
    let mut buffer = vec![0; BUFFER_LEN];
    plugs.handle_event(ID, true, false);
    assert_eq!(plugs.receive(&poll, Instant::now(), 0, &mut buffer).1, Received::Nothing);
    assert!(plugs.transmit(Instant::now(), ID, frame(5_000, Some(1_000)).as_frame()));
    plugs.send_batches(&poll, Instant::now());
    let mut got = vec![0; 65_536];
    let len = far.read(&mut got).unwrap();
    let mut rest = &got[..len];
    let mut count = 0;
    while let Some((len, bytes)) = rest.split_first_chunk() {
        let len = usize::try_from(u32::from_be_bytes(*len)).unwrap();
        assert_eq!(len, 1_000 + 14 + 20 + 8);
        (_, rest) = bytes.split_at(len);
        count += 1;
    }
    assert_eq!(count, 5);

    // What the guest sends back arrives as it is; nothing in it is left undone.
    far.write_all(&got[..len]).unwrap();
    far.write_all(&[0xff; 8]).unwrap();
    plugs.handle_event(ID, true, false);
    for _ in 0..5 {
        let (_, received) = plugs.receive(&poll, Instant::now(), 0, &mut buffer);
        let Received::Frame(frame) = received else { panic!("{received:?}") };
        assert_eq!((frame.bytes.len(), frame.offload), (1_042, Offload::default()));
    }
    let (_, received) = plugs.receive(&poll, Instant::now(), 0, &mut buffer);
    assert_eq!(received, Received::Malformed("oversized"), "a lie is counted");
    assert_eq!(plugs.receive(&poll, Instant::now(), 0, &mut buffer).1, Received::Nothing);
    assert_eq!(far.read(&mut got).unwrap(), 0, "and ends the connection");
    assert_eq!(plugs.take_dead(), [], "but not the plug");
}

#[test]
fn one_guest_after_the_other_comes_by_a_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plug");
    let listener = UnixListener::bind(&path).unwrap();
    let (poll, mut plugs) = (Poll::new().unwrap(), Plugs::new());
    let (mut events, mut buffer) = (Events::new(), vec![0; BUFFER_LEN]);
    let request = request(PlugKind::Listener, Link::default());
    plugs.add(&poll, ID, "yard", listener.into(), &request, 1).unwrap();
    let mut receive = |plugs: &mut Plugs| loop {
        match plugs.receive(&poll, Instant::now(), 0, &mut buffer).1 {
            Received::Frame(frame) => return frame.bytes.to_vec(),
            Received::Nothing => {
                poll.wait(&mut events, Some(Duration::from_secs(20))).unwrap();
                assert!(events.iter().any(|event| event.token == Token::Plug(ID).encode()));
                plugs.handle_event(ID, true, true);
            }
            received => panic!("{received:?}"),
        }
    };
    let bare = frame(500, None);
    assert!(!plugs.transmit(Instant::now(), ID, bare.as_frame()), "nobody is there");
    for round in 0..3_u8 {
        let mut guest = UnixStream::connect(&path).unwrap();
        let mut other = UnixStream::connect(&path).unwrap();
        guest.write_all(&[&[0, 0, 0, 60][..], &[round; 60]].concat()).unwrap();
        assert_eq!(receive(&mut plugs), [round; 60]);
        assert!(plugs.transmit(Instant::now(), ID, bare.as_frame()));
        plugs.send_batches(&poll, Instant::now());
        let mut got = vec![0; 4 + bare.bytes.len()];
        guest.read_exact(&mut got).unwrap();
        // Its checksum was completed; the payload lies behind it.
        assert_eq!(got[46..], bare.bytes[42..]);
        // One that has broken off in the midst of a frame makes room for the next one.
        guest.write_all(&[0, 0, 0, 60, 1, 2]).unwrap();
        drop(guest);
        other.write_all(&[&[0, 0, 0, 61][..], &[round; 61]].concat()).unwrap();
        assert_eq!(receive(&mut plugs), [round; 61]);
    }
    assert_eq!(plugs.take_dead(), [], "the plug stays");
}

#[test]
fn datagrams_wait_for_room_of_which_nobody_tells() {
    let folder = tempfile::tempdir().unwrap();
    let [ours, theirs] = ["ours", "theirs"].map(|name| folder.path().join(name));
    let (poll, mut plugs) = (Poll::new().unwrap(), Plugs::new());
    let socket = UnixDatagram::bind(&ours).unwrap();
    let request = request(PlugKind::Datagrams, Link::default());
    plugs.add(&poll, ID, "yard", socket.into(), &request, 1).unwrap();
    let (mut now, mut buffer, small) = (Instant::now(), vec![0; BUFFER_LEN], frame(50, None));
    assert!(!plugs.transmit(now, ID, small.as_frame()), "nobody is there");
    let guest = UnixDatagram::bind(&theirs).unwrap();
    guest.set_nonblocking(true).unwrap();
    guest.send_to(&[7; 60], &ours).unwrap();
    plugs.handle_event(ID, true, false);
    let (_, received) = plugs.receive(&poll, now, 0, &mut buffer);
    let Received::Frame(got) = received else { panic!("{received:?}") };
    assert_eq!(got.bytes, [7; 60]);

    // More than any socket takes (net.unix.max_dgram_qlen), and less than what may wait beside.
    let count = 1_000;
    for _ in 0..count {
        assert!(plugs.transmit(now, ID, small.as_frame()));
    }
    let mut got = 0;
    let longest = Duration::from_millis(64);
    for _ in 0..count {
        plugs.send_batches(&poll, now);
        while let Ok(len) = guest.recv(&mut buffer) {
            assert_eq!(len, small.bytes.len());
            got += 1;
        }
        let Some(due) = plugs.poll_timeout() else { break };
        assert!(due > now && due <= now + longest, "it is tried again soon, and not at once");
        now = due;
    }
    assert_eq!((got, plugs.poll_timeout()), (count, None));
    // What waits for somebody who has gone goes, too.
    while plugs.transmit(now, ID, small.as_frame()) {}
    drop(guest);
    // A program that another test starts has a copy of it until it runs: nobody takes anything, but it is there.
    wait_for("nobody to be there", SOON, || {
        plugs.send_batches(&poll, now);
        now = plugs.poll_timeout().unwrap_or(now);
        plugs.poll_timeout().is_none().then_some(())
    });
    assert_eq!(plugs.take_dead(), [], "the plug stays");
    assert!(plugs.counts(ID).unwrap().dropped >= 1_024);
}

#[test]
fn a_descriptor_of_another_kind_is_refused() {
    let (poll, mut plugs) = (Poll::new().unwrap(), Plugs::new());
    use PlugKind::{Datagrams, Listener, Socket, Tap, VhostUser};
    for kind in [Tap, Socket, Listener, VhostUser, Datagrams] {
        let fd = OwnedFd::from(File::open("/proc/self/status").unwrap());
        assert!(plugs.add(&poll, ID, "yard", fd, &request(kind, Link::default()), 1).is_err());
    }
    // A device that cannot be waited for.
    let fd = OwnedFd::from(File::open("/dev/zero").unwrap());
    assert!(plugs.add(&poll, ID, "yard", fd, &request(Tap, Link::default()), 1).is_err());
    assert_eq!(plugs.len(), 0);
}
