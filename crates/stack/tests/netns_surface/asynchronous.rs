// What programs use of `tokio::net`; who includes this says what `net` is, and `blocking::net` beside it.

use std::error::Error;
use std::fmt::Debug;
use std::future::poll_fn;
use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::task::Poll;
use std::time::Duration;

use net::tcp::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, ReuniteError, WriteHalf};
use net::{TcpListener, TcpSocket, TcpStream, ToSocketAddrs, UdpSocket, lookup_host};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, Interest, ReadBuf, Ready,
};

use super::blocking::net as std_net;

const HERE: std::net::Ipv4Addr = std::net::Ipv4Addr::LOCALHOST;

fn is_shared<T: Send + Sync + Unpin + Debug>(_: &T) {}

fn is_stream<T: AsyncRead + AsyncWrite + Send + Sync + Unpin + Debug + AsRef<T>>(_: &T) {}

pub(crate) async fn everything() {
    addresses().await;
    streams().await;
    streams_that_are_tried().await;
    halves().await;
    owned_halves().await;
    sockets().await;
    from_and_to_std().await;
    datagrams().await;
    datagrams_that_are_polled().await;
    options().await;
}

async fn addresses() {
    async fn stands_for(it: impl ToSocketAddrs) -> std::net::SocketAddr {
        lookup_host(it).await.unwrap().next().unwrap()
    }
    let wanted: std::net::SocketAddr = "127.0.0.1:80".parse().unwrap();
    assert_eq!(stands_for(wanted).await, wanted);
    assert_eq!(stands_for(&wanted).await, wanted);
    assert_eq!(stands_for((HERE, 80)).await, wanted);
    assert_eq!(stands_for((std::net::IpAddr::V4(HERE), 80)).await, wanted);
    assert_eq!(stands_for(std::net::SocketAddrV4::new(HERE, 80)).await, wanted);
    assert_eq!(stands_for("127.0.0.1:80").await, wanted);
    assert_eq!(stands_for(String::from("127.0.0.1:80")).await, wanted);
    assert_eq!(stands_for(("127.0.0.1", 80)).await, wanted);
    assert_eq!(stands_for((String::from("127.0.0.1"), 80)).await, wanted);
    assert_eq!(stands_for(&[wanted][..]).await, wanted);
    let six = std::net::Ipv6Addr::LOCALHOST;
    assert!(stands_for((six, 80)).await.is_ipv6());
    assert!(stands_for(std::net::SocketAddrV6::new(six, 80, 0, 0)).await.is_ipv6());
    assert!(lookup_host("localhost:80").await.unwrap().all(|found| found.ip().is_loopback()));
}

async fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((HERE, 0)).await.unwrap();
    is_shared(&listener);
    assert!(format!("{listener:?}").contains("TcpListener"));
    listener.set_ttl(64).unwrap();
    assert_eq!(listener.ttl().unwrap(), 64);
    let to = listener.local_addr().unwrap();
    let accepts = poll_fn(|context| listener.poll_accept(context));
    let (client, accepted) = tokio::join!(TcpStream::connect(to), accepts);
    let (client, (server, from)) = (client.unwrap(), accepted.unwrap());
    assert_eq!((from, to), (client.local_addr().unwrap(), client.peer_addr().unwrap()));
    (client, server)
}

async fn streams() {
    let (mut client, mut server) = connection().await;
    is_stream(&client);
    assert!(format!("{client:?}").contains("TcpStream"));
    assert!(client.is_write_vectored());
    let parts = [IoSlice::new(b"one "), IoSlice::new(b"two")];
    assert_eq!(client.write_vectored(&parts).await.unwrap(), 7);
    client.flush().await.unwrap();
    let mut got = [0; 7];
    while server.peek(&mut got).await.unwrap() < 7 {}
    let mut buffer = ReadBuf::new(&mut got);
    let peeked = poll_fn(|context| server.poll_peek(context, &mut buffer)).await.unwrap();
    assert_eq!((peeked, buffer.filled()), (7, &b"one two"[..]));
    server.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"one two");
    let mut text = Vec::new();
    client.write_all(b"more").await.unwrap();
    while text.len() < 4 {
        server.read_buf(&mut text).await.unwrap();
    }
    assert_eq!(text, b"more");

    assert!(client.quickack().unwrap());
    client.set_quickack(true).unwrap();
    client.set_nodelay(true).unwrap();
    assert!(client.nodelay().unwrap());
    client.set_ttl(9).unwrap();
    assert_eq!(client.ttl().unwrap(), 9);
    assert_eq!(client.linger().unwrap(), None);
    #[allow(deprecated)]
    client.set_linger(Some(Duration::ZERO)).unwrap();
    assert_eq!(client.linger().unwrap(), Some(Duration::ZERO));
    client.set_zero_linger().unwrap();
    assert!(client.take_error().unwrap().is_none());
    drop(client);
    let error = server.read(&mut got).await.unwrap_err();
    assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::ConnectionReset, Some(104)));
}

async fn streams_that_are_tried() {
    let (client, mut server) = connection().await;
    let both = Interest::READABLE | Interest::WRITABLE;
    let ready: Ready = client.ready(both).await.unwrap();
    assert!(ready.is_writable() && !ready.is_readable() && !ready.is_read_closed());
    client.writable().await.unwrap();
    poll_fn(|context| client.poll_write_ready(context)).await.unwrap();
    assert_eq!(client.try_write(b"one ").unwrap(), 4);
    assert_eq!(client.try_write_vectored(&[IoSlice::new(b"tw"), IoSlice::new(b"o")]).unwrap(), 3);
    let mut got = Vec::new();
    while got.len() < 3 {
        server.readable().await.unwrap();
        match server.try_read_buf(&mut got) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    assert!(b"one two".starts_with(&got));
    let mut rest = [0; 8];
    assert_eq!(client.try_read(&mut rest).unwrap_err().kind(), ErrorKind::WouldBlock);
    let parts = &mut [IoSliceMut::new(&mut rest)];
    assert_eq!(client.try_read_vectored(parts).unwrap_err().kind(), ErrorKind::WouldBlock);
    let none = client.try_io(Interest::READABLE, || client.try_read(&mut [0; 8])).unwrap_err();
    assert_eq!(none.kind(), ErrorKind::WouldBlock);

    // Somebody waits for what comes later.
    let (read, written) = tokio::join!(
        client.async_io(Interest::READABLE, || client.try_read(&mut rest)),
        server.write_all(b"later"),
    );
    written.unwrap();
    assert_eq!(&rest[..read.unwrap()], b"later");
    server.shutdown().await.unwrap();
    poll_fn(|context| client.poll_read_ready(context)).await.unwrap();
    loop {
        let _closed: bool = client.ready(Interest::READABLE).await.unwrap().is_read_closed();
        match client.try_read(&mut rest) {
            Ok(len) => break assert_eq!(len, 0),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
}

/// Both kinds of halves have the same calls.
macro_rules! use_halves {
    ($reader:ident, $writer:ident, $server:ident) => {
        let addresses = ($reader.local_addr().unwrap(), $reader.peer_addr().unwrap());
        assert_eq!(addresses, ($writer.local_addr().unwrap(), $writer.peer_addr().unwrap()));
        let _: (&TcpStream, &TcpStream) = ($reader.as_ref(), $writer.as_ref());
        assert!($writer.ready(Interest::WRITABLE).await.unwrap().is_writable());
        $writer.writable().await.unwrap();
        assert!($writer.is_write_vectored());
        assert_eq!($writer.try_write(b"one ").unwrap(), 4);
        assert_eq!($writer.try_write_vectored(&[IoSlice::new(b"two")]).unwrap(), 3);
        let mut got = [0; 7];
        $server.read_exact(&mut got).await.unwrap();
        $server.write_all(&got).await.unwrap();
        assert!($reader.ready(Interest::READABLE).await.unwrap().is_readable());
        $reader.readable().await.unwrap();
        assert!($reader.peek(&mut got).await.unwrap() > 0);
        let mut buffer = ReadBuf::new(&mut got);
        assert!(poll_fn(|context| $reader.poll_peek(context, &mut buffer)).await.unwrap() > 0);
        let (mut first, mut rest) = ([0; 1], Vec::new());
        assert_eq!($reader.try_read(&mut first).unwrap(), 1);
        assert_eq!($reader.try_read_vectored(&mut [IoSliceMut::new(&mut first)]).unwrap(), 1);
        assert_eq!($reader.try_read_buf(&mut rest).unwrap(), 5);
        assert_eq!(rest, b"e two");
    };
}

async fn halves() {
    let (mut client, mut server) = connection().await;
    let (mut reader, mut writer): (ReadHalf<'_>, WriteHalf<'_>) = client.split();
    is_shared(&reader);
    is_shared(&writer);
    use_halves!(reader, writer, server);
    let mut got = [0; 7];
    writer.shutdown().await.unwrap();
    assert_eq!(server.read(&mut got).await.unwrap(), 0);
    drop(server);
    assert_eq!(reader.read(&mut got).await.unwrap(), 0);
}

async fn owned_halves() {
    let (client, mut server) = connection().await;
    let (mut reader, writer): (OwnedReadHalf, OwnedWriteHalf) = client.into_split();
    let (other, _server) = connection().await;
    let (other_reader, other_writer) = other.into_split();
    let wrong: ReuniteError = reader.reunite(other_writer).unwrap_err();
    let _: &dyn Error = &wrong;
    assert!(!wrong.to_string().is_empty());
    let ReuniteError(whole_reader, other_writer) = wrong;
    reader = whole_reader;
    drop(other_writer.reunite(other_reader).unwrap());
    use_halves!(reader, writer, server);
    let whole = reader.reunite(writer).unwrap();
    let (_reader, writer) = whole.into_split();
    writer.forget();
    assert_eq!(server.try_read(&mut [0; 7]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

async fn sockets() {
    let socket = TcpSocket::new_v4().unwrap();
    is_shared(&socket);
    socket.set_reuseaddr(true).unwrap();
    assert!(socket.reuseaddr().unwrap());
    socket.set_reuseport(false).unwrap();
    assert!(!socket.reuseport().unwrap());
    socket.set_nodelay(true).unwrap();
    socket.set_keepalive(true).unwrap();
    socket.set_tos_v4(0x20).unwrap();
    assert!(socket.nodelay().unwrap() && socket.keepalive().unwrap());
    socket.bind((HERE, 0).into()).unwrap();
    assert!(socket.take_error().unwrap().is_none());
    let listener = socket.listen(8).unwrap();
    let to = listener.local_addr().unwrap();

    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(65_536).unwrap();
    assert!(socket.send_buffer_size().unwrap() >= 65_536);
    socket.set_recv_buffer_size(65_536).unwrap();
    assert!(socket.recv_buffer_size().unwrap() >= 65_536);
    assert_eq!(socket.linger().unwrap(), None);
    #[allow(deprecated)]
    socket.set_linger(Some(Duration::from_secs(1))).unwrap();
    assert_eq!(socket.linger().unwrap(), Some(Duration::from_secs(1)));
    socket.set_zero_linger().unwrap();
    socket.set_tos_v4(0x10).unwrap();
    assert_eq!(socket.tos_v4().unwrap(), 0x10);
    #[allow(deprecated)]
    {
        socket.set_tos(0x08).unwrap();
        assert_eq!(socket.tos().unwrap(), 0x08);
    }
    assert_eq!(socket.device().unwrap(), None);
    socket.bind_device(None).unwrap();
    socket.bind((HERE, 0).into()).unwrap();
    assert_eq!(socket.local_addr().unwrap().ip(), HERE);
    let (client, accepted) = tokio::join!(socket.connect(to), listener.accept());
    let (client, (server, from)) = (client.unwrap(), accepted.unwrap());
    assert_eq!(client.local_addr().unwrap(), from);
    assert_eq!(client.linger().unwrap(), Some(Duration::ZERO));
    assert!(server.nodelay().unwrap(), "as its listener had it");

    let socket = TcpSocket::new_v6().unwrap();
    socket.set_tclass_v6(0x20).unwrap();
    assert_eq!(socket.tclass_v6().unwrap(), 0x20);
    socket.bind("[::1]:0".parse().unwrap()).unwrap();
    assert!(socket.listen(8).unwrap().local_addr().unwrap().is_ipv6());
}

async fn from_and_to_std() {
    let listener = std_net::TcpListener::bind((HERE, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    let listener = listener.into_std().unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(TcpListener::try_from(listener).unwrap());

    let client = client.into_std().unwrap();
    let mut got = [0; 4];
    let none = std::io::Read::read(&mut &client, &mut got).unwrap_err();
    assert_eq!(none.kind(), ErrorKind::WouldBlock);
    let clone = client.try_clone().unwrap();
    let mut client = TcpStream::from_std(client).unwrap();
    client.write_all(b"fine").await.unwrap();
    drop(client);
    // The clone keeps it open.
    server.read_exact(&mut got).await.unwrap();
    assert_eq!(server.try_read(&mut got).unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(TcpStream::try_from(clone).unwrap());
    assert_eq!(server.read(&mut got).await.unwrap(), 0);

    let socket = std_net::UdpSocket::bind((HERE, 0)).unwrap();
    socket.set_nonblocking(true).unwrap();
    let socket = UdpSocket::from_std(socket).unwrap();
    socket.send_to(b"self", socket.local_addr().unwrap()).await.unwrap();
    assert_eq!(socket.recv(&mut got).await.unwrap(), 4);
    let socket = UdpSocket::try_from(socket.into_std().unwrap()).unwrap();
    assert_eq!(socket.try_recv(&mut got).unwrap_err().kind(), ErrorKind::WouldBlock);
}

async fn datagrams() {
    let server = UdpSocket::bind((HERE, 0)).await.unwrap();
    let client = UdpSocket::bind("localhost:0").await.unwrap();
    is_shared(&server);
    assert!(format!("{server:?}").contains("UdpSocket"));
    let (to, from) = (server.local_addr().unwrap(), client.local_addr().unwrap());
    let mut got = [0; 4];
    let error = client.peer_addr().unwrap_err();
    assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::NotConnected, Some(107)));
    assert_eq!(client.send_to(b"first", to).await.unwrap(), 5);
    assert_eq!(server.peek_sender().await.unwrap(), from);
    assert_eq!(server.peek_from(&mut got).await.unwrap(), (4, from));
    assert_eq!(server.peek(&mut got).await.unwrap(), 4);
    assert_eq!(server.recv_from(&mut got).await.unwrap(), (4, from));
    client.connect(to).await.unwrap();
    assert_eq!(client.peer_addr().unwrap(), to);
    assert_eq!(client.send(b"next").await.unwrap(), 4);
    assert_eq!(server.recv(&mut got).await.unwrap(), 4);
    let mut buffer = Vec::new();
    client.send(b"datagram").await.unwrap();
    assert_eq!(server.recv_buf(&mut buffer).await.unwrap(), 8);
    client.send(b" by datagram").await.unwrap();
    assert_eq!(server.recv_buf_from(&mut buffer).await.unwrap(), (12, from));
    assert_eq!(buffer, b"datagram by datagram");
    let error = client.send(&[0; 65_536]).await.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(90), "EMSGSIZE");
}

async fn datagrams_that_are_polled() {
    let server = UdpSocket::bind((HERE, 0)).await.unwrap();
    let client = UdpSocket::bind((HERE, 0)).await.unwrap();
    let (to, from) = (server.local_addr().unwrap(), client.local_addr().unwrap());
    let mut got = [0; 4];
    let mut buffer = Vec::new();
    let would_block = |error: std::io::Error| error.kind() == ErrorKind::WouldBlock;
    assert!(would_block(server.try_recv(&mut got).unwrap_err()));
    assert!(would_block(server.try_recv_from(&mut got).unwrap_err()));
    assert!(would_block(server.try_peek(&mut got).unwrap_err()));
    assert!(would_block(server.try_peek_from(&mut got).unwrap_err()));
    assert!(would_block(server.try_peek_sender().unwrap_err()));
    assert!(would_block(server.try_recv_buf(&mut buffer).unwrap_err()));
    assert!(would_block(server.try_recv_buf_from(&mut buffer).unwrap_err()));

    client.writable().await.unwrap();
    assert!(client.ready(Interest::WRITABLE).await.unwrap().is_writable());
    poll_fn(|context| client.poll_send_ready(context)).await.unwrap();
    assert_eq!(client.try_send_to(b"one", to).unwrap(), 3);
    assert_eq!(poll_fn(|context| client.poll_send_to(context, b"two", to)).await.unwrap(), 3);
    client.connect(to).await.unwrap();
    assert_eq!(client.try_send(b"three").unwrap(), 5);
    assert_eq!(poll_fn(|context| client.poll_send(context, b"four")).await.unwrap(), 4);
    assert_eq!(client.try_io(Interest::WRITABLE, || client.try_send(b"five")).unwrap(), 4);

    server.readable().await.unwrap();
    poll_fn(|context| server.poll_recv_ready(context)).await.unwrap();
    assert!(server.ready(Interest::READABLE).await.unwrap().is_readable());
    assert_eq!(poll_fn(|context| server.poll_peek_sender(context)).await.unwrap(), from);
    assert_eq!(server.try_peek_sender().unwrap(), from);
    assert_eq!(server.try_peek(&mut got).unwrap(), 3);
    assert_eq!(server.try_peek_from(&mut got).unwrap(), (3, from));
    let mut room = ReadBuf::new(&mut got);
    poll_fn(|context| server.poll_peek(context, &mut room)).await.unwrap();
    room.clear();
    assert_eq!(poll_fn(|context| server.poll_peek_from(context, &mut room)).await.unwrap(), from);
    room.clear();
    poll_fn(|context| server.poll_recv(context, &mut room)).await.unwrap();
    assert_eq!(room.filled(), b"one");
    room.clear();
    assert_eq!(poll_fn(|context| server.poll_recv_from(context, &mut room)).await.unwrap(), from);
    assert_eq!(room.filled(), b"two");
    assert_eq!(server.try_recv_buf_from(&mut buffer).unwrap(), (5, from));
    assert_eq!(server.try_recv_buf(&mut buffer).unwrap(), 4);
    assert_eq!(buffer, b"threefour");
    let last = server.async_io(Interest::READABLE, || server.try_recv(&mut got)).await.unwrap();
    assert_eq!((last, &got), (4, b"five"));
    let waits = poll_fn(|context| Poll::Ready(server.poll_recv_ready(context).is_pending())).await;
    assert!(waits || would_block(server.try_recv(&mut got).unwrap_err()));
}

async fn options() {
    let group = "239.1.2.3".parse().unwrap();
    let group6 = "ff12::1".parse().unwrap();
    let here = "10.0.0.1".parse().unwrap();
    let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
    socket.set_broadcast(true).unwrap();
    assert!(socket.broadcast().unwrap());
    socket.set_multicast_loop_v4(false).unwrap();
    assert!(!socket.multicast_loop_v4().unwrap());
    socket.set_multicast_ttl_v4(3).unwrap();
    assert_eq!(socket.multicast_ttl_v4().unwrap(), 3);
    socket.set_ttl(9).unwrap();
    assert_eq!(socket.ttl().unwrap(), 9);
    socket.set_tos_v4(0x10).unwrap();
    assert_eq!(socket.tos_v4().unwrap(), 0x10);
    #[allow(deprecated)]
    {
        socket.set_tos(0x08).unwrap();
        assert_eq!(socket.tos().unwrap(), 0x08);
    }
    assert_eq!(socket.device().unwrap(), None);
    socket.bind_device(None).unwrap();
    socket.join_multicast_v4(group, here).unwrap();
    socket.leave_multicast_v4(group, here).unwrap();
    assert!(socket.take_error().unwrap().is_none());
    let socket = UdpSocket::bind("[::]:0").await.unwrap();
    socket.set_multicast_loop_v6(false).unwrap();
    assert!(!socket.multicast_loop_v6().unwrap());
    socket.set_tclass_v6(0x20).unwrap();
    assert_eq!(socket.tclass_v6().unwrap(), 0x20);
    socket.join_multicast_v6(&group6, 1).unwrap();
    socket.leave_multicast_v6(&group6, 1).unwrap();
}
