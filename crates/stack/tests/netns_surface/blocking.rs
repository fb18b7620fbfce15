// What programs use of `std::net`; who includes this says what `net` is.

use std::fmt::Debug;
use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::iter::FusedIterator;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::thread;
use std::time::Duration;

use net::{
    AddrParseError, Incoming, IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, SocketAddrV4,
    SocketAddrV6, TcpListener, TcpStream, ToSocketAddrs, UdpSocket,
};

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const CARD: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const LONG: Duration = Duration::from_secs(60);

fn is_shared<T: Send + Sync + Unpin + UnwindSafe + RefUnwindSafe + Debug>(_: &T) {}

fn is_endless<T: FusedIterator>(_: &T) {}

pub(crate) fn everything() {
    addresses();
    streams();
    listeners();
    ends();
    datagrams();
    groups();
}

fn addresses() {
    fn stands_for(it: impl ToSocketAddrs) -> SocketAddr {
        it.to_socket_addrs().unwrap().next().unwrap()
    }
    let wrong: AddrParseError = "here".parse::<IpAddr>().unwrap_err();
    assert!(!wrong.to_string().is_empty());
    let wanted: SocketAddr = "127.0.0.1:80".parse().unwrap();
    let all = [wanted];
    assert_eq!(stands_for(wanted), wanted);
    assert_eq!(stands_for(SocketAddrV4::new(HERE, 80)), wanted);
    assert!(stands_for(SocketAddrV6::new(Ipv6Addr::LOCALHOST, 80, 0, 0)).is_ipv6());
    assert_eq!(stands_for((HERE, 80)), wanted);
    assert_eq!(stands_for((IpAddr::V4(HERE), 80)), wanted);
    assert!(stands_for((Ipv6Addr::LOCALHOST, 80)).is_ipv6());
    assert_eq!(stands_for("127.0.0.1:80"), wanted);
    assert_eq!(stands_for(String::from("127.0.0.1:80")), wanted);
    assert_eq!(stands_for(("127.0.0.1", 80)), wanted);
    assert_eq!(stands_for((String::from("127.0.0.1"), 80)), wanted);
    assert_eq!(stands_for(&all[..]), wanted);
    let borrowed: &&SocketAddr = &&wanted;
    assert_eq!(stands_for(borrowed), wanted);
    assert!("localhost:80".to_socket_addrs().unwrap().all(|found| found.ip().is_loopback()));
    assert_eq!("no port".to_socket_addrs().unwrap_err().kind(), ErrorKind::InvalidInput);
}

fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((HERE, 0)).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, from) = listener.accept().unwrap();
    assert_eq!(from, client.local_addr().unwrap());
    (client, server)
}

fn streams() {
    let (mut client, mut server) = connection();
    is_shared(&client);
    assert_eq!(client.peer_addr().unwrap(), server.local_addr().unwrap());
    assert!(format!("{client:?}").starts_with("TcpStream"));

    assert_eq!(client.write_vectored(&[IoSlice::new(b"one "), IoSlice::new(b"two")]).unwrap(), 7);
    client.flush().unwrap();
    let mut peeked = [0; 7];
    while server.peek(&mut peeked).unwrap() < 7 {}
    assert_eq!(&peeked, b"one two");
    let (mut first, mut rest) = ([0; 3], [0; 9]);
    let mut parts =
        [IoSliceMut::new(&mut first), IoSliceMut::new(&mut []), IoSliceMut::new(&mut rest)];
    assert_eq!(server.read_vectored(&mut parts).unwrap(), 7);
    assert_eq!((&first, &rest[..4]), (b"one", &b" two"[..]));
    (&server).write_all(b"back").unwrap();
    let mut got = [0; 4];
    (&client).read_exact(&mut got).unwrap();
    assert_eq!(&got, b"back");

    client.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
    assert!(client.read_timeout().unwrap().is_some());
    assert_eq!(client.read(&mut got).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(client.peek(&mut got).unwrap_err().kind(), ErrorKind::WouldBlock);
    client.set_read_timeout(None).unwrap();
    client.set_write_timeout(Some(LONG)).unwrap();
    assert_eq!(client.write_timeout().unwrap(), Some(LONG));
    let no_time = client.set_write_timeout(Some(Duration::ZERO)).unwrap_err();
    assert_eq!(no_time.kind(), ErrorKind::InvalidInput);
    client.set_nonblocking(true).unwrap();
    assert_eq!(client.read(&mut got).unwrap_err().kind(), ErrorKind::WouldBlock);
    client.set_nonblocking(false).unwrap();

    client.set_nodelay(true).unwrap();
    assert!(client.nodelay().unwrap());
    client.set_ttl(9).unwrap();
    assert_eq!(client.ttl().unwrap(), 9);
    assert!(client.take_error().unwrap().is_none());

    let mut clone = client.try_clone().unwrap();
    drop(client);
    clone.write_all(b"last").unwrap();
    clone.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    server.read_to_string(&mut text).unwrap();
    assert_eq!(text, "last");
    server.shutdown(Shutdown::Both).unwrap();
    assert_eq!(clone.read(&mut got).unwrap(), 0);
}

fn listeners() {
    let listener = TcpListener::bind("localhost:0").unwrap();
    is_shared(&listener);
    let at = listener.local_addr().unwrap();
    assert_ne!(at.port(), 0);
    assert!(format!("{listener:?}").starts_with("TcpListener"));
    assert_eq!(TcpListener::bind(at).unwrap_err().kind(), ErrorKind::AddrInUse);
    listener.set_ttl(64).unwrap();
    assert_eq!(listener.ttl().unwrap(), 64);
    assert!(listener.take_error().unwrap().is_none());
    #[allow(deprecated)]
    {
        assert!(listener.set_only_v6(true).is_err());
        let _: std::io::Result<bool> = listener.only_v6();
    }
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    listener.set_nonblocking(false).unwrap();
    let clone = listener.try_clone().unwrap();
    let client = thread::spawn(move || TcpStream::connect_timeout(&at, LONG).unwrap());
    let mut incoming: Incoming<'_> = clone.incoming();
    is_endless(&incoming);
    let server = incoming.next().unwrap().unwrap();
    assert_eq!(server.peer_addr().unwrap(), client.join().unwrap().local_addr().unwrap());
}

fn ends() {
    let nobody = TcpListener::bind((HERE, 0)).unwrap().local_addr().unwrap();
    let error = TcpStream::connect(nobody).unwrap_err();
    assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::ConnectionRefused, Some(111)));
    let foreign = TcpListener::bind("192.0.2.1:0").unwrap_err();
    assert_eq!((foreign.kind(), foreign.raw_os_error()), (ErrorKind::AddrNotAvailable, Some(99)));
    let error = TcpStream::connect("192.0.2.1:9").unwrap_err();
    assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::NetworkUnreachable, Some(101)));
    let error = TcpStream::connect_timeout(&nobody, Duration::ZERO).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    // What was not read is lost to who closes, and the other end hears of it.
    let (mut client, server) = connection();
    client.write_all(b"unread").unwrap();
    while server.peek(&mut [0; 6]).unwrap() < 6 {}
    drop(server);
    let error = client.read(&mut [0; 6]).unwrap_err();
    assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::ConnectionReset, Some(104)));
    let error = client.write(b"more").unwrap_err();
    assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::BrokenPipe, Some(32)));
    let error = client.peer_addr().unwrap_err();
    assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::NotConnected, Some(107)));
    let error = client.shutdown(Shutdown::Both).unwrap_err();
    assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::NotConnected, Some(107)));
}

fn datagrams() {
    let server = UdpSocket::bind((HERE, 0)).unwrap();
    let client = UdpSocket::bind((HERE, 0)).unwrap();
    is_shared(&server);
    assert!(format!("{server:?}").starts_with("UdpSocket"));
    let (to, from) = (server.local_addr().unwrap(), client.local_addr().unwrap());
    let mut got = [0; 4];

    assert_eq!(client.send_to(b"first", to).unwrap(), 5);
    assert_eq!(server.peek_from(&mut got).unwrap(), (4, from));
    assert_eq!(server.peek(&mut got).unwrap(), 4);
    assert_eq!(server.recv_from(&mut got).unwrap(), (4, from));
    let error = client.send(b"whom").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(89), "EDESTADDRREQ");
    let error = client.peer_addr().unwrap_err();
    assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::NotConnected, Some(107)));
    client.connect(to).unwrap();
    assert_eq!(client.peer_addr().unwrap(), to);
    assert_eq!(client.send(b"next").unwrap(), 4);
    assert_eq!(server.recv(&mut got).unwrap(), 4);
    let error = client.send(&[0; 65_536]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(90), "EMSGSIZE");

    let clone = server.try_clone().unwrap();
    clone.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
    assert!(server.read_timeout().unwrap().is_some());
    assert_eq!(server.recv(&mut got).unwrap_err().kind(), ErrorKind::WouldBlock);
    clone.set_write_timeout(Some(LONG)).unwrap();
    assert_eq!(server.write_timeout().unwrap(), Some(LONG));
    server.set_nonblocking(true).unwrap();
    assert_eq!(server.recv_from(&mut got).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert!(server.take_error().unwrap().is_none());

    // Nobody is there any more, and the socket hears of it.
    drop((server, clone));
    client.send(b"gone").unwrap();
    client.set_read_timeout(Some(LONG)).unwrap();
    let error = client.recv(&mut got).unwrap_err();
    assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::ConnectionRefused, Some(111)));
}

fn groups() {
    let group = Ipv4Addr::new(239, 1, 2, 3);
    let group6: Ipv6Addr = "ff12::1".parse().unwrap();
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    assert!(!socket.broadcast().unwrap());
    socket.set_broadcast(true).unwrap();
    assert!(socket.broadcast().unwrap());
    assert!(socket.multicast_loop_v4().unwrap());
    socket.set_multicast_loop_v4(false).unwrap();
    assert!(!socket.multicast_loop_v4().unwrap());
    assert_eq!(socket.multicast_ttl_v4().unwrap(), 1);
    socket.set_multicast_ttl_v4(3).unwrap();
    assert_eq!(socket.multicast_ttl_v4().unwrap(), 3);
    assert_eq!(socket.ttl().unwrap(), 64);
    socket.set_ttl(9).unwrap();
    assert_eq!(socket.ttl().unwrap(), 9);
    socket.join_multicast_v4(&group, &CARD).unwrap();
    let again = socket.join_multicast_v4(&group, &CARD).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AddrInUse);
    socket.leave_multicast_v4(&group, &CARD).unwrap();
    let again = socket.leave_multicast_v4(&group, &CARD).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AddrNotAvailable);
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
    socket.set_multicast_loop_v6(false).unwrap();
    assert!(!socket.multicast_loop_v6().unwrap());
    socket.join_multicast_v6(&group6, 1).unwrap();
    socket.leave_multicast_v6(&group6, 1).unwrap();
}
