//! The client of the hello demo: asks `http://ADDRESS/hello` every 5 seconds and prints the body
//! of the answer, or why there was none.
//!
//! `netyard run --network lab hello-client -a server.lan:8081` beside a `hello-server` named
//! `server` on the same network.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ureq::Agent;

/// From the start of one question to the start of the next.
const PERIOD: Duration = Duration::from_secs(5);

/// How long one question may take, from the connection to the last byte.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A client that makes a new connection for each question, so that each answer says whether the
/// server can be reached now.
fn client(timeout: Duration) -> Agent {
    Agent::config_builder()
        .timeout_global(Some(timeout))
        .max_idle_connections(0)
        .http_status_as_error(false)
        .build()
        .into()
}

/// The body of the answer, whatever its status.
fn ask(client: &Agent, url: &str) -> Result<String, ureq::Error> {
    client.get(url).call()?.body_mut().read_to_string()
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), None) = (arguments.next(), arguments.next()) else {
        _ = writeln!(std::io::stderr(), "Usage: hello-client ADDRESS[:PORT]");
        return ExitCode::from(2);
    };
    let url = format!("http://{address}/hello");
    let client = client(TIMEOUT);
    let mut next = Instant::now();
    loop {
        let written = match ask(&client, &url) {
            Ok(body) => write!(std::io::stdout(), "{body}"),
            Err(error) => writeln!(std::io::stdout(), "{error}"),
        };
        if written.and_then(|()| std::io::stdout().flush()).is_err() {
            return ExitCode::SUCCESS; // nobody reads on
        }
        next += PERIOD;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::{Ipv4Addr, SocketAddr, TcpListener};
    use std::thread::JoinHandle;

    use super::*;

    /// Listens on a free loopback port, takes one connection and gives `answer` for a whole
    /// request; the thread returns the request line.
    fn server(answer: &'static str) -> (SocketAddr, JoinHandle<String>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let lines = BufReader::new(&stream).lines().map(Result::unwrap);
            let request: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            (&stream).write_all(answer.as_bytes()).unwrap();
            request.into_iter().next().unwrap()
        });
        (address, thread)
    }

    #[test]
    fn the_body_comes_back_as_it_is() {
        let (address, thread) =
            server("HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nhello test 2\n");
        let body = ask(&client(TIMEOUT), &format!("http://{address}/hello")).unwrap();
        assert_eq!(body, "hello test 2\n");
        assert_eq!(thread.join().unwrap(), "GET /hello HTTP/1.1");
    }

    #[test]
    fn a_status_is_no_error() {
        let (address, _) = server("HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nnone\n");
        let body = ask(&client(TIMEOUT), &format!("http://{address}/hello")).unwrap();
        assert_eq!(body, "none\n");
    }

    #[test]
    fn a_closed_port_is_an_error() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert!(ask(&client(TIMEOUT), &format!("http://{address}/hello")).is_err());
    }

    #[test]
    fn a_silent_server_is_an_error_in_time() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let url = format!("http://{}/hello", listener.local_addr().unwrap());
        let timeout = Duration::from_millis(50);
        let error = ask(&client(timeout), &url).unwrap_err();
        assert!(matches!(error, ureq::Error::Timeout(_)), "{error}");
    }
}
