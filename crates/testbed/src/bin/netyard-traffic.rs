//! Checked traffic for tests and measurements: a server, and clients that print one JSON line.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::ExitCode;
use std::thread;
use std::time::UNIX_EPOCH;

use clap::{Parser, Subcommand};
use netyard_testbed::ask::Server;
use netyard_testbed::{dns, traffic};
use serde::Serialize;

#[derive(Parser)]
#[command(about = "Checked traffic for tests and measurements")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Answer every client of this program, HTTP requests, and UDP echo; say `listening` first
    Serve {
        #[arg(required = true)]
        at: Vec<SocketAddr>,
    },
    /// Answer every DNS question with one address of each family; say `listening` first
    Dns {
        at: SocketAddr,
        #[arg(long)]
        answers: Vec<std::net::IpAddr>,
    },
    /// Send bytes that the server checks
    Send {
        server: SocketAddr,
        #[arg(long)]
        bytes: u64,
        #[arg(long, default_value_t = 1)]
        flows: u64,
    },
    /// Receive bytes and check them
    Receive {
        server: SocketAddr,
        #[arg(long)]
        bytes: u64,
        #[arg(long, default_value_t = 1)]
        flows: u64,
    },
    /// Time one-byte requests on one connection
    RoundTrips {
        server: SocketAddr,
        #[arg(long)]
        count: usize,
    },
    /// Time whole connections
    Connections {
        server: SocketAddr,
        #[arg(long)]
        count: usize,
        /// Clients at once, which share them
        #[arg(long, default_value_t = 1)]
        at_once: usize,
    },
    /// Say `trying`, connect as soon as that is possible, and say `connected` and when, nanoseconds of Unix time
    First { server: SocketAddr },
    /// Time datagrams there and back
    Datagrams {
        server: SocketAddr,
        #[arg(long)]
        count: usize,
        #[arg(long, default_value_t = 1000)]
        size: usize,
    },
    /// Ask daemons who they are, each `count` times, and print what each answers; then say `asked`
    Ask {
        #[arg(required = true)]
        servers: Vec<Server>,
        #[arg(long, default_value_t = 1)]
        count: usize,
    },
    /// Open connections, say `holding`, keep them until standard input ends
    Hold {
        server: SocketAddr,
        #[arg(long)]
        count: usize,
    },
    /// Say `idle` and do nothing until standard input ends
    Idle,
}

fn main() -> ExitCode {
    match act(Arguments::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("netyard-traffic: {error}");
            ExitCode::FAILURE
        }
    }
}

fn act(verb: Verb) -> io::Result<()> {
    match verb {
        Verb::Serve { at } => serve(&at),
        Verb::Dns { at, answers } => {
            let (listener, datagrams) = bind(at)?;
            println!("listening {at}");
            dns::serve(&listener, datagrams, answers)
        }
        Verb::Send { server, bytes, flows } => print(&traffic::send(server, bytes, flows)?),
        Verb::Receive { server, bytes, flows } => print(&traffic::receive(server, bytes, flows)?),
        Verb::RoundTrips { server, count } => print(&traffic::round_trips(server, count)?),
        Verb::Connections { server, count, at_once: 1 } => {
            print(&traffic::connections(server, count)?)
        }
        Verb::Connections { server, count, at_once } => {
            print(&traffic::connections_at_once(server, count, at_once)?)
        }
        Verb::First { server } => {
            println!("trying");
            let connected = traffic::first(server);
            let at = connected.duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
            println!("connected {}", at.as_nanos());
            Ok(())
        }
        Verb::Datagrams { server, count, size } => print(&traffic::datagrams(server, count, size)?),
        Verb::Ask { servers, count } => {
            for server in std::iter::repeat_n(servers, count).flatten() {
                println!("{server} {}", server.ask()?.trim());
            }
            println!("asked");
            Ok(())
        }
        Verb::Hold { server, count } => {
            let held = traffic::hold(server, count)?;
            println!("holding {}", held.len());
            until_input_ends()
        }
        Verb::Idle => {
            println!("idle");
            until_input_ends()
        }
    }
}

fn bind(at: SocketAddr) -> io::Result<(TcpListener, UdpSocket)> {
    Ok((TcpListener::bind(at)?, UdpSocket::bind(at)?))
}

fn serve(at: &[SocketAddr]) -> io::Result<()> {
    let bound = at.iter().map(|at| bind(*at)).collect::<io::Result<Vec<_>>>()?;
    println!("listening {at:?}");
    let serving = bound
        .into_iter()
        .map(|(listener, datagrams)| thread::spawn(move || traffic::serve(&listener, datagrams)));
    let serving: Vec<_> = serving.collect();
    for one in serving {
        one.join().map_err(|_| io::Error::other("a server's thread panicked"))??;
    }
    Ok(())
}

fn until_input_ends() -> io::Result<()> {
    io::stdin().read_to_end(&mut Vec::new()).map(|_| ())
}

fn print(figures: &impl Serialize) -> io::Result<()> {
    println!("{}", serde_json::to_string(figures)?);
    Ok(())
}
