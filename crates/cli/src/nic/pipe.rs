//! `nic pipe`.

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::pin::pin;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use netyard_nic::pipe::{ClientTls, Message, Pipe, PipeBuilder, PipeError, Stats, Target, relay};
use netyard_nic::{Bind, Family, tls};
use netyard_yard::error::{ErrorKind, YardError};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::by::{broken, endpoint};
use super::flags::{On, Pipe as Flags};
use crate::output::{self, Output};

/// How much is read from stdin at once, most: what a datagram takes, bytes.
const CHUNK: usize = netyard_nic::pipe::max_datagram(Family::Ip4);
/// Pieces on their way from stdin, and to stdout.
const PIECES: usize = 16;
/// How long datagrams are waited for behind the end of stdin.
const AFTERWARDS: Duration = Duration::from_secs(1);

type Pieces = mpsc::Receiver<Vec<u8>>;

pub(super) fn perform(flags: &Flags, out: Output) -> Result<ExitCode, YardError> {
    super::run(async {
        if flags.listen { listen(flags, out).await } else { connect(flags, out).await }
    })??;
    Ok(ExitCode::SUCCESS)
}

/// What goes on, on stderr. Nothing can be done where that is closed.
fn tell(out: Output, event: &str, pipe: &Pipe) {
    let card = pipe.bound().card().map(|card| card.name.to_string());
    let line = if out.is_json() {
        let (proto, local, peer) = (pipe.proto(), pipe.local(), pipe.peer());
        let pinned = pipe.is_pinned();
        json!({ "event": event, "proto": proto, "local": local, "peer": peer, "card": card,
                "pinned": pinned })
        .to_string()
    } else {
        let by = match (&card, pipe.is_pinned()) {
            (Some(card), true) => format!(", by {card} only"),
            (Some(card), false) => format!(", not held to {card}"),
            (None, _) => String::new(),
        };
        let peer = pipe.peer().map(|peer| format!("{peer} from ")).unwrap_or_default();
        format!("netyard: {event} {peer}{}{by}", pipe.local())
    };
    _ = writeln!(io::stderr(), "{line}");
}

fn tell_end(out: Output, stats: Stats) {
    if out.is_json() {
        _ = writeln!(io::stderr(), "{}", json!({ "event": "closed", "stats": stats }));
    }
}

fn builder(flags: &Flags, binds: impl IntoIterator<Item = Bind>) -> PipeBuilder {
    let pipe = if flags.udp { Pipe::udp() } else { Pipe::tcp() };
    pipe.among(binds)
}

/// A pipe to there, as the flags say.
fn towards(flags: &Flags, to: &(String, u16)) -> Result<PipeBuilder, YardError> {
    Ok(builder(flags, flags.by.binds(Target::from(to.clone()).family())?))
}

async fn connect(flags: &Flags, out: Output) -> Result<(), YardError> {
    let to = endpoint(&flags.endpoint)?;
    let wanted = format!("talk to {}", flags.endpoint);
    let builder = towards(flags, &to)?;
    let opened = if flags.tls {
        let trust = match &flags.ca {
            None => tls::system_trust(),
            Some(file) => tls::trust_in(file).map_err(|error| YardError::io(&wanted, &error))?,
        };
        builder.connect_tls(to, ClientTls { trust, name: flags.name.clone() }).await
    } else {
        builder.connect(to).await
    };
    let pipe = opened.map_err(|error| broken(&wanted, error))?;
    tell(out, "connected to", &pipe);
    let mut desk = Desk::new(flags);
    desk.join(&pipe, None).await.map_err(|error| broken(&wanted, error))?;
    tell_end(out, pipe.close().await);
    Ok(())
}

async fn listen(flags: &Flags, out: Output) -> Result<(), YardError> {
    let wanted = format!("listen on {}", flags.endpoint);
    let port = flags.endpoint.parse::<u16>().map_err(|_| {
        YardError::new(ErrorKind::Input, &wanted, "that is no port")
            .next("give the port alone, and say where with --on or --card")
    })?;
    let named = flags.by.binds(None)?.into_iter().next();
    let place = match flags.on {
        Some(place) => place,
        None if flags.relay.is_none() && named.as_ref().is_some_and(|it| it.card().is_some()) => {
            On::Route
        }
        None => On::Loopback,
    };
    let bind = match (place, named) {
        (On::Route, Some(bind)) if bind.card().is_some() => bind,
        (On::Route, _) => {
            return Err(YardError::new(ErrorKind::Input, &wanted, "no card is named")
                .next("name it with --card or --route"));
        }
        (On::Loopback, named) => every(named).loopback(),
        (On::All, named) => every(named).any(),
    };
    let builder = builder(flags, [bind.port(port)]);
    let opened = match (&flags.tls_cert, &flags.tls_key) {
        (Some(certificate), Some(key)) => {
            let identity = tls::identity(certificate, key)
                .map_err(|error| YardError::io(format!("use {}", certificate.display()), &error))?;
            builder.listen_tls(identity).await
        }
        _ => builder.listen().await,
    };
    let server = opened.map_err(|error| broken(&wanted, error))?;
    tell(out, "listening on", &server);
    match &flags.relay {
        Some(to) => pass_on(flags, server, endpoint(to)?, out).await,
        None if flags.udp => {
            let mut desk = Desk::new(flags);
            // Nobody can be answered before somebody has been heard.
            let first = server.next().await.map_err(|error| broken(&wanted, error))?;
            desk.join(&server, first).await.map_err(|error| broken(&wanted, error))?;
            tell_end(out, server.close().await);
            Ok(())
        }
        None => {
            let mut desk = Desk::new(flags);
            loop {
                let client = server.accept().await.map_err(|error| broken(&wanted, error))?;
                tell(out, "talking to", &client);
                let done = desk.join(&client, None).await;
                tell_end(out, client.close().await);
                match done {
                    // A client that breaks off is its own matter.
                    Ok(()) | Err(_) if flags.keep => {}
                    result => return result.map_err(|error| broken(&wanted, error)),
                }
            }
        }
    }
}

fn every(named: Option<Bind>) -> Bind {
    Bind::every(named.map_or(Family::Ip4, |bind| bind.family()))
}

/// Joins every client with the other end, until the first one is done if no others are wanted.
async fn pass_on(
    flags: &Flags,
    mut server: Pipe,
    to: (String, u16),
    out: Output,
) -> Result<(), YardError> {
    let wanted = format!("relay to {}:{}", to.0, to.1);
    let onward = towards(flags, &to)?;
    if flags.udp {
        let opened = onward.connect(to).await;
        let mut other = opened.map_err(|error| broken(&wanted, error))?;
        tell(out, "relaying to", &other);
        let [mut there, mut back] = relay(&mut server, &mut other);
        let ended = tokio::try_join!(there.finished(), back.finished());
        return ended.map(drop).map_err(|error| broken(&wanted, error));
    }
    let mut clients = JoinSet::new();
    loop {
        while clients.try_join_next().is_some() {}
        let client = server.accept().await.map_err(|error| broken(&wanted, error))?;
        let joining = join(client, onward.clone(), to.clone(), out);
        if !flags.keep {
            return joining.await.map_err(|error| broken(&wanted, error));
        }
        let wanted = wanted.clone();
        clients.spawn(async move {
            if let Err(error) = joining.await {
                output::complain(&broken(wanted, error), out.is_json());
            }
        });
    }
}

/// One client and its own way to the other end.
async fn join(
    mut client: Pipe,
    onward: PipeBuilder,
    to: (String, u16),
    out: Output,
) -> Result<(), PipeError> {
    let mut other = onward.connect(to).await?;
    tell(out, "relaying to", &other);
    let [mut there, mut back] = relay(&mut client, &mut other);
    let ended = tokio::try_join!(there.finished(), back.finished());
    tell_end(out, other.close().await);
    client.close().await;
    ended.map(drop)
}

/// Where stdin and stdout are. Threads read and write them, as they block.
struct Desk {
    stdin: Pieces,
    stdout: mpsc::Sender<Vec<u8>>,
    written: mpsc::Receiver<()>,
    wait: Option<Duration>,
}

impl Desk {
    fn new(flags: &Flags) -> Self {
        let (from, stdin) = mpsc::channel(PIECES);
        let (stdout, mut to) = mpsc::channel::<Vec<u8>>(PIECES);
        let (done, written) = mpsc::channel(1);
        thread::spawn(move || {
            let mut buffer = vec![0; CHUNK];
            // An error is an end.
            while let Ok(length @ 1..) = io::stdin().lock().read(&mut buffer) {
                let piece = buffer.get(..length).unwrap_or_default().to_vec();
                if from.blocking_send(piece).is_err() {
                    return;
                }
            }
        });
        thread::spawn(move || {
            while let Some(piece) = to.blocking_recv() {
                // Whoever does not read any more ends the command, as it does others.
                if piece.is_empty() {
                    _ = done.blocking_send(());
                } else if output::write(&piece).is_err() {
                    return;
                }
            }
        });
        let wait = flags.wait.or(flags.udp.then_some(AFTERWARDS));
        Self { stdin, stdout, written, wait }
    }

    /// Joins a pipe with stdin and stdout, until both are done, or the other end is silent where that is
    /// enough. Both ways at the same time: neither waits for the other. Whoever sits at a terminal is not
    /// waited for.
    async fn join(&mut self, pipe: &Pipe, first: Option<Message>) -> Result<(), PipeError> {
        let Self { stdin, stdout, written, wait } = self;
        let (ended, is_ended) = watch::channel(false);
        let sending = async {
            while let Some(piece) = stdin.recv().await {
                pipe.reply(piece).await?;
            }
            pipe.finish().await?;
            ended.send_replace(true);
            Ok::<_, PipeError>(())
        };
        let receiving = async {
            let mut came = first;
            loop {
                // An empty piece would ask for an answer.
                if let Some(message) = came.take().filter(|message| !message.bytes.is_empty())
                    && stdout.send(message.bytes.to_vec()).await.is_err()
                {
                    return Ok(Over::Both);
                }
                tokio::select! {
                    message = pipe.next() => match message? {
                        Some(message) => came = Some(message),
                        None => return Ok::<_, PipeError>(Over::Other),
                    },
                    () = silence(is_ended.clone(), *wait) => return Ok(Over::Both),
                }
            }
        };
        let (mut sending, mut receiving) = (pin!(sending), pin!(receiving));
        tokio::select! {
            sent = &mut sending => {
                sent?;
                receiving.await?;
            }
            over = &mut receiving => {
                if over? == Over::Other && !io::stdin().is_terminal() {
                    sending.await?;
                }
            }
        }
        // All that came is written before the command ends.
        if stdout.send(Vec::new()).await.is_ok() {
            written.recv().await;
        }
        Ok(())
    }
}

/// What has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    /// The other end has nothing more to say.
    Other,
    /// Nothing more is wanted.
    Both,
}

/// This time behind the end of stdin.
async fn silence(mut ended: watch::Receiver<bool>, wait: Option<Duration>) {
    let Some(wait) = wait else { return std::future::pending().await };
    // Where nobody will say that it has ended, it has not.
    if ended.wait_for(|ended| *ended).await.is_err() {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(wait).await;
}
