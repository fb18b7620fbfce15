//! Ports of a service: how they close, and what is said of them.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use netyard_proxy::{Limits, Proxy, Turn, Turns, Way};
use netyard_testbed::isolate;

const LONG: Duration = Duration::from_secs(30);

/// The answer is everything until the end.
const GET: &str = "GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";

/// Turns that come when the test says so; the proxy's thread waits for them.
#[derive(Debug)]
struct Late {
    asked: mpsc::Sender<()>,
    go: Mutex<mpsc::Receiver<()>>,
}

impl Turns for Late {
    fn next(&self, _: IpAddr, _: &[u64]) -> Option<Turn> {
        self.asked.send(()).unwrap();
        // The test has gone on, or has failed.
        let _ = self.go.lock().unwrap().recv_timeout(LONG);
        None
    }

    fn opened(&self, _: u64) {}

    fn closed(&self, _: u64) {}

    fn failed(&self, _: u64) {}

    fn abandoned(&self, _: u64) {}
}

fn get(at: SocketAddr) -> TcpStream {
    let mut client = TcpStream::connect(at).unwrap();
    client.set_read_timeout(Some(LONG)).unwrap();
    client.write_all(GET.as_bytes()).unwrap();
    client
}

#[test]
fn a_port_closes_while_the_proxy_is_busy() {
    isolate(|| {
        let (asked, came) = mpsc::channel();
        let (go, gone) = mpsc::channel();
        let turns: Arc<dyn Turns> = Arc::new(Late { asked, go: Mutex::new(gone) });
        let proxy = Proxy::start(Limits::of(1_024)).unwrap();
        let service = proxy.serve("web", turns, Way::Host);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let door = service.listen(listener).unwrap();
        let client = get(at);
        came.recv_timeout(LONG).unwrap();

        drop(door);
        let refused = TcpStream::connect(at).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        // It can be opened again, and the first one's end does not close it.
        let _door = service.listen(TcpListener::bind(at).unwrap()).unwrap();
        let second = get(at);
        go.send(()).unwrap();
        go.send(()).unwrap();
        for answer in [client, second] {
            assert!(io::read_to_string(answer).unwrap().starts_with("HTTP/1.1 503 "));
        }
    });
}
