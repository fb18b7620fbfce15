//! The server of the hello demo: `/hello` answers `hello test 2`, `/headers` lists the request's
//! headers, on port 8081 of every address.
//!
//! `netyard run -p 8081 hello-server`, then `curl 127.0.0.1:8081/hello`.

use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::process::ExitCode;

use tiny_http::{Request, Response, Server};

const PORT: u16 = 8081;

/// The text that answers a request, or `None` where there is nothing.
fn answer(request: &Request) -> Option<String> {
    match request.url().split('?').next() {
        Some("/hello") => Some("hello test 2\n".into()),
        Some("/headers") => {
            let lines = request.headers().iter().map(|h| format!("{}: {}\n", h.field, h.value));
            Some(lines.collect())
        }
        _ => None,
    }
}

/// Answers requests until the listener fails.
fn serve(server: &Server) {
    for request in server.incoming_requests() {
        let response = match answer(&request) {
            Some(text) => Response::from_string(text),
            None => Response::from_string("404 page not found\n").with_status_code(404),
        };
        // A client that left before its answer is no concern of ours.
        _ = request.respond(response);
    }
}

/// Listens on every address: both families where the host has IPv6, else IPv4.
fn listen() -> std::io::Result<TcpListener> {
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).or_else(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => Err(error),
        _ => TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)),
    })
}

fn main() -> ExitCode {
    let started = listen().map_err(Into::into).and_then(|on| Server::from_listener(on, None));
    match started {
        Ok(server) => {
            serve(&server);
            ExitCode::SUCCESS
        }
        Err(error) => {
            _ = writeln!(std::io::stderr(), "hello-server: cannot listen on port {PORT}: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{SocketAddr, TcpStream};
    use std::sync::Arc;

    use super::*;

    /// A server on a free loopback port; ends with its test.
    struct Running(Arc<Server>);

    impl Running {
        fn start() -> Running {
            let server = Arc::new(Server::http((Ipv4Addr::LOCALHOST, 0)).unwrap());
            let serving = server.clone();
            std::thread::spawn(move || serve(&serving));
            Running(server)
        }

        fn address(&self) -> SocketAddr {
            self.0.server_addr().to_ip().unwrap()
        }

        /// Everything that comes back for a request with one header of its own.
        fn get(&self, path: &str) -> String {
            let mut stream = TcpStream::connect(self.address()).unwrap();
            let request = format!(
                "GET {path} HTTP/1.1\r\nHost: demo\r\nX-Colour: blue\r\nConnection: close\r\n\r\n"
            );
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            self.0.unblock();
        }
    }

    #[test]
    fn hello_answers_with_its_line() {
        let answer = Running::start().get("/hello");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\nhello test 2\n"), "{answer}");
    }

    #[test]
    fn headers_lists_each_header() {
        let answer = Running::start().get("/headers?all");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, "Host: demo\nX-Colour: blue\nConnection: close\n");
    }

    #[test]
    fn other_paths_are_not_found() {
        assert!(Running::start().get("/").starts_with("HTTP/1.1 404 "));
    }
}
