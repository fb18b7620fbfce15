//! Sockets with the manners of `tokio::net`, between two running hosts.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod hosts;

use std::future::Future;
use std::io::ErrorKind;

use netyard_stack::asynchronous::{TcpListener, TcpStream, UdpSocket};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};

use self::hosts::{Hosts, LONG, at, hosts, pattern};

const LEN: usize = 3_000_000;

fn run(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(LONG, future).await.unwrap() });
}

async fn connection(hosts: &Hosts) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind_on(&hosts.other, at("10.0.0.2:80")).unwrap();
    let to = listener.local_addr().unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect_on(&hosts.one, to), listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}

#[test]
fn halves_go_to_different_tasks() {
    run(async {
        let hosts = hosts();
        let (client, mut server) = connection(&hosts).await;
        let echo = tokio::spawn(async move {
            let (mut reader, mut writer) = server.split();
            let copied = tokio::io::copy(&mut reader, &mut writer).await.unwrap();
            writer.shutdown().await.unwrap();
            copied
        });
        let (mut reader, mut writer) = client.into_split();
        let data = pattern(LEN);
        let sent = data.clone();
        let writes = tokio::spawn(async move {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
            writer
        });
        let mut got = Vec::new();
        reader.read_to_end(&mut got).await.unwrap();
        assert!(got == data);
        assert_eq!(echo.await.unwrap(), u64::try_from(LEN).unwrap());
        let whole = reader.reunite(writes.await.unwrap()).unwrap();
        assert_eq!(whole.peer_addr().unwrap_or(at("10.0.0.2:80")), at("10.0.0.2:80"));
    });
}

#[test]
fn a_writer_that_goes_ends_the_stream_and_a_forgotten_one_does_not() {
    run(async {
        let hosts = hosts();
        let (client, mut server) = connection(&hosts).await;
        let (reader, writer) = client.into_split();
        writer.forget();
        server.set_nodelay(true).unwrap();
        server.write_all(b"still here").await.unwrap();
        reader.readable().await.unwrap();
        assert_eq!(server.try_read(&mut [0; 9]).unwrap_err().kind(), ErrorKind::WouldBlock);
        drop(reader);
        drop(server);
        let (client, mut server) = connection(&hosts).await;
        let (_reader, writer) = client.into_split();
        drop(writer);
        assert_eq!(server.read(&mut [0; 9]).await.unwrap(), 0);
    });
}

#[test]
fn readiness_is_what_the_next_call_finds() {
    run(async {
        let hosts = hosts();
        let (client, server) = connection(&hosts).await;
        let both = client.ready(Interest::READABLE | Interest::WRITABLE).await.unwrap();
        assert!(both.is_writable() && !both.is_readable());
        let mut sent = 0;
        let full = loop {
            match client.try_write(&[7; 65_536]) {
                Ok(count) => sent += count,
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
        let mut got = 0;
        let reads = async {
            let mut buffer = vec![0; 65_536];
            while got < sent {
                server.readable().await.unwrap();
                match server.try_read(&mut buffer) {
                    Ok(count) => got += count,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
        };
        let (room, ()) = tokio::join!(client.writable(), reads);
        room.unwrap();
        assert!(client.try_write(b"more").unwrap() > 0);
        let mut peeked = [0; 4];
        while server.peek(&mut peeked).await.unwrap() < 4 {}
        assert_eq!(&peeked, b"more");
        // The end of what the other one writes is told beside what can still be read.
        assert!(!server.ready(Interest::READABLE).await.unwrap().is_read_closed());
        drop(client);
        while !server.ready(Interest::READABLE).await.unwrap().is_read_closed() {
            tokio::task::yield_now().await;
        }
        assert_eq!(server.try_read(&mut peeked).unwrap(), 4);
        assert_eq!(server.try_read(&mut peeked).unwrap(), 0);
    });
}

#[test]
fn a_call_that_is_given_up_harms_nothing() {
    run(async {
        let hosts = hosts();
        let (mut client, mut server) = connection(&hosts).await;
        let mut buffer = [0; 16];
        tokio::select! {
            biased;
            got = server.read(&mut buffer) => panic!("{got:?}"),
            () = tokio::task::yield_now() => {}
        }
        client.write_all(b"hello").await.unwrap();
        drop(client);
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"hello");
    });
}

#[test]
fn refusals_have_the_kernels_numbers() {
    run(async {
        let hosts = hosts();
        let error = TcpStream::connect_on(&hosts.one, at("10.0.0.2:9")).await.unwrap_err();
        assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::ConnectionRefused, Some(111)));
        let socket = UdpSocket::bind_on(&hosts.one, at("0.0.0.0:0")).unwrap();
        socket.connect(at("10.0.0.2:9")).await.unwrap();
        socket.send(b"anybody?").await.unwrap();
        let error = socket.recv(&mut [0; 9]).await.unwrap_err();
        assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::ConnectionRefused, Some(111)));
    });
}

#[test]
fn datagrams_are_waited_for() {
    run(async {
        let hosts = hosts();
        let server = UdpSocket::bind_on(&hosts.other, at("10.0.0.2:53")).unwrap();
        let client = UdpSocket::bind_on(&hosts.one, at("10.0.0.1:0")).unwrap();
        let mut buffer = [0; 2000];
        assert_eq!(server.try_recv(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
        // Longer than the MTU.
        let data = pattern(1900);
        let (got, sent) =
            tokio::join!(server.recv_from(&mut buffer), client.send_to(&data, "10.0.0.2:53"));
        assert_eq!(sent.unwrap(), 1900);
        assert_eq!(got.unwrap(), (1900, client.local_addr().unwrap()));
        assert!(buffer[..1900] == data);
    });
}
