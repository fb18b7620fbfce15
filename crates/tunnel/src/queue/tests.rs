use netyard_wire::checksum;

use super::*;

const MS: Duration = Duration::from_millis(1);

/// An IPv4 UDP packet of a flow, with `class` as its traffic class and a virtio-net header before it.
fn packet(flow: u8, class: u8, len: usize) -> (Vec<u8>, FlowKey) {
    let mut bytes = vec![0; VNET_HEADER_LEN + len];
    let ip = &mut bytes[VNET_HEADER_LEN..];
    ip[0] = 0x45;
    ip[1] = class;
    ip[2..4].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
    ip[8] = 64;
    ip[9] = ip::UDP;
    ip[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    let sum = checksum::finish(checksum::sum(&ip[..20]));
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    ip[20] = flow;
    let key = FlowKey::of(&IpPacket::parse_bare(ip).unwrap());
    (bytes, key)
}

fn push(queue: &mut Queue, now: Instant, flow: u8, class: u8, len: usize) {
    let (bytes, key) = packet(flow, class, len);
    queue.push(now, bytes, &key);
}

fn flow_of(packet: &[u8]) -> u8 {
    packet[VNET_HEADER_LEN + 20]
}

#[test]
fn one_flow_keeps_its_order() {
    let now = Instant::now();
    let mut queue = Queue::new(1 << 20, 7);
    for len in 100..120 {
        push(&mut queue, now, 1, 0, len);
    }
    for len in 100..120 {
        assert_eq!(queue.pop(now).unwrap().len(), VNET_HEADER_LEN + len);
    }
    assert_eq!(queue.pop(now), None);
    assert!(queue.is_empty());
}

#[test]
fn a_sparse_flow_does_not_wait_behind_a_bulk_flow() {
    let now = Instant::now();
    let mut queue = Queue::new(4 << 20, 7);
    for _ in 0..30 {
        push(&mut queue, now, 1, 0, 60_000);
    }
    queue.pop(now).unwrap();
    push(&mut queue, now, 2, 0, 100);
    assert_eq!(flow_of(&queue.pop(now).unwrap()), 2);
}

#[test]
fn flows_share_by_bytes() {
    let now = Instant::now();
    let mut queue = Queue::new(64 << 20, 7);
    for _ in 0..200 {
        push(&mut queue, now, 1, 0, 60_000);
    }
    for _ in 0..8000 {
        push(&mut queue, now, 2, 0, 1500);
    }
    let mut sent = [0_usize; 3];
    while sent.iter().sum::<usize>() < 4_000_000 {
        let packet = queue.pop(now).unwrap();
        sent[usize::from(flow_of(&packet))] += packet.len();
    }
    assert!(sent[1].abs_diff(sent[2]) < 150_000, "{sent:?}");
}

#[test]
fn memory_is_bounded_and_the_longest_flow_pays() {
    let now = Instant::now();
    let mut queue = Queue::new(1_000_000, 7);
    push(&mut queue, now, 2, 0, 100);
    for _ in 0..100 {
        push(&mut queue, now, 1, 0, 60_000);
        assert!(queue.bytes() <= 1_000_000);
    }
    assert_eq!(queue.losses().queue_full, 100 - 16);
    let mut reclaimed = 0;
    while queue.reclaim().is_some() {
        reclaimed += 1;
    }
    assert_eq!(reclaimed, 84, "their buffers are used again");
    let mut left = Vec::new();
    while let Some(packet) = queue.pop(now) {
        left.push(flow_of(&packet));
    }
    assert!(left.contains(&2), "the short flow lost nothing");
}

/// Sends for four seconds twice what is taken, one packet each millisecond.
fn overload(class: u8) -> Losses {
    let start = Instant::now();
    let mut queue = Queue::new(64 << 20, 7);
    for ms in 0..4000 {
        let now = start + MS * ms;
        push(&mut queue, now, 1, class, 1200);
        push(&mut queue, now, 1, class, 1200);
        queue.pop(now).unwrap();
    }
    queue.losses()
}

#[test]
fn a_standing_queue_is_dropped_from_or_marked() {
    let dropped = overload(0);
    assert!(dropped.codel > 100, "{dropped:?}");
    assert_eq!(dropped.marked, 0);
    let marked = overload(2);
    assert!(marked.marked > 100, "{marked:?}");
    assert_eq!(marked.codel, 0);
}

#[test]
fn a_burst_is_not_dropped_from() {
    let start = Instant::now();
    let mut queue = Queue::new(64 << 20, 7);
    for burst in 0..20 {
        let now = start + MS * 200 * burst;
        for _ in 0..50 {
            push(&mut queue, now, 1, 0, 1200);
        }
        for step in 0..50 {
            queue.pop(now + MS * step).unwrap();
        }
    }
    assert_eq!(queue.losses(), Losses::default());
}

#[test]
fn a_mark_leaves_the_header_right() {
    let (mut bytes, _) = packet(1, 0b1011_1001, 40);
    assert!(mark(&mut bytes));
    let read = IpPacket::parse_bare(&bytes[VNET_HEADER_LEN..]).expect("its checksum is right");
    assert_eq!(read.traffic_class, 0b1011_1011);
    let (mut deaf, _) = packet(1, 0b1011_1000, 40);
    assert!(!mark(&mut deaf));
    let mut six = vec![0; VNET_HEADER_LEN + 40];
    six[VNET_HEADER_LEN] = 0x60;
    six[VNET_HEADER_LEN + 1] = 0x25;
    assert!(mark(&mut six));
    assert_eq!(six[VNET_HEADER_LEN + 1], 0x35);
    assert!(!mark(&mut [0; 4]), "too short to be a packet");
}

#[test]
fn what_is_old_expires() {
    let start = Instant::now();
    let mut queue = Queue::new(1 << 20, 7);
    push(&mut queue, start, 1, 0, 100);
    push(&mut queue, start + MS * 5, 1, 0, 101);
    queue.expire(start + MS);
    assert_eq!(queue.pop(start + MS * 5).unwrap().len(), VNET_HEADER_LEN + 101);
    assert_eq!(queue.losses().codel, 1);
}

#[test]
fn a_smaller_bound_drops_nothing_that_waits() {
    let now = Instant::now();
    let mut queue = Queue::new(100_000, 7);
    queue.set_bounds(MS, 400_000);
    for _ in 0..5 {
        push(&mut queue, now, 1, 0, 60_000);
    }
    queue.set_bounds(MS, 100_000);
    assert_eq!(queue.losses().queue_full, 0);
    // What comes takes the place of what is there, not of more.
    push(&mut queue, now, 2, 0, 1_000);
    assert_eq!(queue.losses().queue_full, 1);
    // Whoever goes on sending as fast as it empties does not keep the room.
    for _ in 0..10 {
        queue.pop(now).unwrap();
        queue.set_bounds(MS, 100_000);
        push(&mut queue, now, 1, 0, 60_000);
    }
    assert!(queue.bytes() <= 200_000, "{}", queue.bytes());
}

#[test]
fn small_packets_in_large_buffers_wait_in_as_much_memory_as_they_are() {
    let now = Instant::now();
    let mut queue = Queue::new(1 << 20, 7);
    let room = |len| {
        let (bytes, key) = packet(1, 0, len);
        let mut buffer = Vec::with_capacity(64 * 1024);
        buffer.extend_from_slice(&bytes);
        (buffer, key)
    };
    for _ in 0..600 {
        let (buffer, key) = room(1_400);
        queue.push(now, buffer, &key);
    }
    assert_eq!(queue.losses().queue_full, 0);
    // All but the first few have given their buffers back, whole.
    let back: Vec<_> = std::iter::from_fn(|| queue.reclaim()).collect();
    assert!(back.len() > 590 && back.iter().all(|buffer| buffer.capacity() >= 64 * 1024));
    for _ in 0..600 {
        assert_eq!(queue.pop(now).unwrap().len(), VNET_HEADER_LEN + 1_400);
    }
    assert!(queue.is_empty());
}

#[test]
fn queues_that_rest_take_packets_again() {
    let now = Instant::now();
    let mut queue = Queue::new(100_000, 1);
    push(&mut queue, now, 1, 0, 100);
    queue.rest();
    assert_eq!(queue.pop(now).map(|packet| flow_of(&packet)), Some(1), "nothing is lost");
    queue.rest();
    assert_eq!(queue.pop(now), None);
    push(&mut queue, now, 2, 0, 100);
    assert_eq!(queue.pop(now).map(|packet| flow_of(&packet)), Some(2));
}
