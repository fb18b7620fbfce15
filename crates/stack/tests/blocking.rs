//! Sockets with the manners of `std::net`, between two running hosts.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod hosts;

use std::io::{ErrorKind, IoSlice, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use netyard_stack::Host;
use netyard_stack::blocking::{TcpListener, TcpStream, UdpSocket};

use self::hosts::{Hosts, LONG, at, hosts, pattern};

const LEN: usize = 3_000_000;

/// A connection from the one host to the other.
fn connection(hosts: &Hosts) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind_on(&hosts.other, at("10.0.0.2:80")).unwrap();
    let client = TcpStream::connect_on(&hosts.one, at("10.0.0.2:80")).unwrap();
    let (server, from) = listener.accept().unwrap();
    assert_eq!(from, client.local_addr().unwrap());
    (client, server)
}

#[test]
fn a_stream_goes_both_ways_at_once() {
    let hosts = hosts();
    let (mut client, mut server) = connection(&hosts);
    assert_eq!(client.peer_addr().unwrap(), server.local_addr().unwrap());
    let echo = thread::spawn(move || {
        let mut got = Vec::new();
        server.read_to_end(&mut got).unwrap();
        server.write_all(&got).unwrap();
    });
    let mut writer = client.try_clone().unwrap();
    let data = pattern(LEN);
    let sent = data.clone();
    let writes = thread::spawn(move || {
        let (first, rest) = sent.split_at(1000);
        let count = writer.write_vectored(&[IoSlice::new(first), IoSlice::new(rest)]).unwrap();
        assert!(count > first.len(), "several buffers go at once");
        writer.write_all(&sent[count..]).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
        assert_eq!(writer.write(b"more").unwrap_err().kind(), ErrorKind::BrokenPipe);
    });
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert!(got == data);
    writes.join().unwrap();
    echo.join().unwrap();
}

#[test]
fn a_listener_accepts_one_after_the_other() {
    let hosts = hosts();
    let listener = TcpListener::bind_on(&hosts.other, at("10.0.0.2:0")).unwrap();
    let to = listener.local_addr().unwrap();
    assert_ne!(to.port(), 0);
    let again = TcpListener::bind_on(&hosts.other, to).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AddrInUse);
    let elsewhere = TcpListener::bind_on(&hosts.other, at("10.0.0.1:80")).unwrap_err();
    assert_eq!(elsewhere.kind(), ErrorKind::AddrNotAvailable);
    let one = hosts.one.clone();
    let clients = thread::spawn(move || {
        for number in 0..20u8 {
            TcpStream::connect_on(&one, to).unwrap().write_all(&[number]).unwrap();
        }
    });
    for (number, stream) in (0..20u8).zip(listener.incoming()) {
        let mut got = Vec::new();
        stream.unwrap().read_to_end(&mut got).unwrap();
        assert_eq!(got, [number]);
    }
    clients.join().unwrap();
}

#[test]
fn nobody_listens_and_nobody_is_there() {
    let hosts = hosts();
    let error = TcpStream::connect_on(&hosts.one, at("10.0.0.2:9")).unwrap_err();
    assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::ConnectionRefused, Some(111)));
    let error = TcpStream::connect_on(&hosts.one, at("192.0.2.1:9")).unwrap_err();
    assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::NetworkUnreachable, Some(101)));
    // A neighbour that does not answer.
    let error = TcpStream::connect_on(&hosts.one, at("10.0.0.77:9")).unwrap_err();
    assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::HostUnreachable, Some(113)));
    let limit = Duration::from_millis(1);
    let error = TcpStream::connect_timeout_on(&hosts.one, at("198.51.100.1:9"), limit).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}

#[test]
fn calls_wait_as_long_as_they_were_told() {
    let hosts = hosts();
    let (mut client, mut server) = connection(&hosts);
    let no_time = client.set_read_timeout(Some(Duration::ZERO)).unwrap_err();
    assert_eq!(no_time.kind(), ErrorKind::InvalidInput);
    client.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
    assert_eq!(client.read_timeout().unwrap(), Some(Duration::from_millis(5)));
    assert_eq!(client.read(&mut [0; 9]).unwrap_err().kind(), ErrorKind::WouldBlock);
    // A clone is the same socket.
    let clone = client.try_clone().unwrap();
    clone.set_nonblocking(true).unwrap();
    client.set_read_timeout(None).unwrap();
    assert_eq!(client.read(&mut [0; 9]).unwrap_err().kind(), ErrorKind::WouldBlock);
    let mut sent = 0;
    let refused = loop {
        match client.write(&[7; 65_536]) {
            Ok(count) => sent += count,
            Err(error) => break error,
        }
    };
    assert_eq!(refused.kind(), ErrorKind::WouldBlock);
    client.set_nonblocking(false).unwrap();
    client.set_write_timeout(Some(Duration::from_millis(5))).unwrap();
    let filled = loop {
        match client.write(&[7; 65_536]) {
            Ok(count) => sent += count,
            Err(error) => break error,
        }
    };
    assert_eq!(filled.kind(), ErrorKind::WouldBlock);
    drop((client, clone));
    let mut got = Vec::new();
    server.read_to_end(&mut got).unwrap();
    assert_eq!(got.len(), sent, "what was written arrives, though its writer has gone");

    let listener = TcpListener::bind_on(&hosts.other, at("10.0.0.2:81")).unwrap();
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_peek_takes_nothing() {
    let hosts = hosts();
    let (mut client, server) = connection(&hosts);
    client.write_all(b"hello").unwrap();
    let mut got = [0; 5];
    while server.peek(&mut got).unwrap() < 5 {}
    assert_eq!(&got, b"hello");
    got = [0; 5];
    (&server).read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
}

#[test]
fn options_are_told_back() {
    let hosts = hosts();
    let (client, server) = connection(&hosts);
    assert!(!client.nodelay().unwrap());
    client.set_nodelay(true).unwrap();
    assert!(client.nodelay().unwrap());
    assert_eq!(client.ttl().unwrap(), 64);
    client.set_ttl(7).unwrap();
    assert_eq!(client.ttl().unwrap(), 7);
    assert!(client.set_ttl(0).is_err() && client.set_ttl(256).is_err());
    assert!(client.take_error().unwrap().is_none());
    // Closing without time to linger resets.
    client.set_linger(Some(Duration::ZERO)).unwrap();
    assert_eq!(client.linger().unwrap(), Some(Duration::ZERO));
    drop(client);
    let error = (&server).read(&mut [0; 9]).unwrap_err();
    assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::ConnectionReset, Some(104)));
    assert_eq!((&server).write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[test]
fn with_time_to_linger_closing_waits_for_the_other_end() {
    let hosts = hosts();
    let (client, mut server) = connection(&hosts);
    client.set_linger(Some(LONG)).unwrap();
    let data = pattern(LEN);
    let writes = thread::spawn(move || {
        (&client).write_all(&data).unwrap();
        let host_of = client.local_addr().unwrap();
        drop(client);
        host_of
    });
    let mut got = Vec::new();
    server.read_to_end(&mut got).unwrap();
    assert!(got == pattern(LEN));
    drop(server);
    writes.join().unwrap();
}

#[test]
fn who_reads_hears_of_an_end() {
    let hosts = hosts();
    let (client, server) = connection(&hosts);
    let other = client.try_clone().unwrap();
    let reads = thread::spawn(move || (&other).read(&mut [0; 9]).unwrap());
    client.shutdown(Shutdown::Read).unwrap();
    assert_eq!(reads.join().unwrap(), 0);
    // The link goes, and with it everything.
    let reads = thread::spawn(move || (&server).read(&mut [0; 9]));
    let Hosts { one, other } = hosts;
    client.set_linger(Some(Duration::ZERO)).unwrap();
    drop((client, one));
    let error = reads.join().unwrap().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::NetworkDown), "{error}");
    let start = Instant::now();
    let error = loop {
        match TcpListener::bind_on(&other, at("10.0.0.2:82")) {
            Ok(_) => thread::yield_now(),
            Err(error) => break error,
        }
        assert!(start.elapsed() < LONG, "the other host has not noticed");
    };
    assert_eq!(error.kind(), ErrorKind::NetworkDown, "{error}");
}

#[test]
fn a_host_talks_to_itself() {
    let hosts = hosts();
    for address in ["127.0.0.1:80", "10.0.0.1:81", "[::1]:82"] {
        let listener = TcpListener::bind_on(&hosts.one, at(address)).unwrap();
        let mut client = TcpStream::connect_on(&hosts.one, at(address)).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"hello").unwrap();
        drop(client);
        let mut got = String::new();
        server.read_to_string(&mut got).unwrap();
        assert_eq!(got, "hello", "{address}");
    }
}

#[test]
fn a_listener_of_both_families_shows_mapped_addresses() {
    let hosts = hosts();
    let listener = TcpListener::bind_on(&hosts.other, at("[::]:80")).unwrap();
    let client = TcpStream::connect_on(&hosts.one, at("10.0.0.2:80")).unwrap();
    let (server, from) = listener.accept().unwrap();
    let mapped = |address: SocketAddr| {
        SocketAddr::new(
            match address.ip() {
                std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped().into(),
                ip => ip,
            },
            address.port(),
        )
    };
    assert_eq!(from, mapped(client.local_addr().unwrap()));
    assert_eq!(server.peer_addr().unwrap(), from);
    assert_eq!(server.local_addr().unwrap(), mapped(client.peer_addr().unwrap()));
}

#[test]
fn datagrams_come_whole_or_cut() {
    let hosts = hosts();
    let server = UdpSocket::bind_on(&hosts.other, at("10.0.0.2:53")).unwrap();
    let client = UdpSocket::bind_on(&hosts.one, at("0.0.0.0:0")).unwrap();
    client.send_to(b"one", at("10.0.0.2:53")).unwrap();
    client.connect(at("10.0.0.2:53")).unwrap();
    assert_eq!(client.peer_addr().unwrap(), at("10.0.0.2:53"));
    client.send(b"another").unwrap();
    let mut got = [0; 5];
    assert_eq!(server.peek_from(&mut got).unwrap(), (3, client.local_addr().unwrap()));
    let (len, from) = server.recv_from(&mut got).unwrap();
    assert_eq!((&got[..len], from), (&b"one"[..], client.local_addr().unwrap()));
    assert_eq!(server.recv(&mut got).unwrap(), 5);
    assert_eq!(&got, b"anoth");
    server.send_to(b"back", from).unwrap();
    assert_eq!(client.peek(&mut got).unwrap(), 4);
    assert_eq!(client.recv(&mut got).unwrap(), 4);
    server.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
    assert_eq!(server.recv(&mut got).unwrap_err().kind(), ErrorKind::WouldBlock);
    // Nobody is there any more: ICMP says so, and the socket tells it once.
    drop(server);
    client.send(b"anybody?").unwrap();
    let error = client.recv(&mut got).unwrap_err();
    assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::ConnectionRefused, Some(111)));
    client.set_nonblocking(true).unwrap();
    assert_eq!(client.recv(&mut got).unwrap_err().kind(), ErrorKind::WouldBlock);
    let long = client.send(&[0; 65_536]).unwrap_err();
    assert_eq!(long.raw_os_error(), Some(90));
}

#[test]
fn a_group_hears_what_is_sent_to_it() {
    let hosts = hosts();
    let group = Ipv4Addr::new(239, 1, 2, 3);
    let member = |host: &Host, port: u16| {
        let socket = UdpSocket::bind_on(host, SocketAddr::new([0, 0, 0, 0].into(), port)).unwrap();
        socket.join_multicast_v4(&group, &Ipv4Addr::UNSPECIFIED).unwrap();
        socket
    };
    let (near, far) = (member(&hosts.one, 5000), member(&hosts.other, 5000));
    near.set_multicast_ttl_v4(3).unwrap();
    assert_eq!(near.multicast_ttl_v4().unwrap(), 3);
    near.send_to(b"all", (group, 5000)).unwrap();
    let mut got = [0; 9];
    assert_eq!(far.recv_from(&mut got).unwrap(), (3, at("10.0.0.1:5000")));
    assert_eq!(near.recv_from(&mut got).unwrap(), (3, at("10.0.0.1:5000")));
    near.set_multicast_loop_v4(false).unwrap();
    near.send_to(b"others", (group, 5000)).unwrap();
    assert_eq!(far.recv(&mut got).unwrap(), 6);
    near.set_nonblocking(true).unwrap();
    assert_eq!(near.recv(&mut got).unwrap_err().kind(), ErrorKind::WouldBlock);
    far.leave_multicast_v4(&group, &Ipv4Addr::UNSPECIFIED).unwrap();
    let error = far.leave_multicast_v4(&group, &Ipv4Addr::UNSPECIFIED).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
    let nobody = near.join_multicast_v4(&group, &Ipv4Addr::new(10, 0, 0, 9)).unwrap_err();
    assert_eq!(nobody.raw_os_error(), Some(19), "ENODEV");
}
