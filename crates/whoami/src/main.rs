//! `netyard-whoami`: a small HTTP daemon that makes up a UUID at start and answers with it, so
//! that whoever talks to several of them through one address can tell which one answered. With `--udp`
//! it answers datagrams, too.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use rocket::config::LogLevel;
use rocket::error::ErrorKind;
use rocket::fairing::AdHoc;
use rocket::figment::providers::{Env, Format, Serialized, Toml};
use rocket::figment::{Figment, Profile};
use rocket::tokio::net::UdpSocket;
use rocket::{Build, Config, Rocket, State, get, routes, tokio};
use uuid::Uuid;

/// How long requests that are being answered may take to finish once the daemon is told to stop.
const GRACE: Duration = Duration::from_millis(500);

/// A small HTTP daemon that answers with its own UUID.
///
/// GET / answers "My id is UUID", the same one until the daemon ends; GET /users answers a
/// greeting. With --udp each datagram to the same port is answered with the id, too. Flags override Rocket.toml and the ROCKET_* environment variables.
#[derive(Debug, Parser)]
#[command(
    name = "netyard-whoami",
    version,
    after_help = "Example:\n  netyard-whoami -a 0.0.0.0 -p 8081"
)]
struct Args {
    /// The port to listen on [default: 8080]
    ///
    /// Incoming requests are answered on this TCP port, 1 to 65535.
    #[arg(short, long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,

    /// The IP address to listen on [default: 127.0.0.1]
    ///
    /// Inside a container or a network of its own the daemon must listen on all addresses,
    /// 0.0.0.0 or ::, to be reached from outside; 127.0.0.1 is reached from the same host only.
    #[arg(short, long)]
    address: Option<IpAddr>,

    /// Answer datagrams on the UDP port of the same number, too
    #[arg(long)]
    udp: bool,
}

/// What the handlers share.
#[derive(Debug, Clone, Copy)]
struct Identity(Uuid);

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "My id is {}", self.0)
    }
}

#[get("/")]
fn index(identity: &State<Identity>) -> String {
    identity.to_string()
}

#[get("/users")]
fn users() -> &'static str {
    "You're my first user"
}

/// Our defaults, then Rocket's own sources (Rocket.toml, `ROCKET_*`), then the flags.
///
/// The flags go into the global profile, where Rocket puts the environment: values of any other
/// profile would lose against it.
fn settings(args: &Args) -> Figment {
    let defaults = Config {
        address: Ipv4Addr::LOCALHOST.into(),
        port: 8080,
        log_level: LogLevel::Off,
        ..Config::default()
    };
    let mut figment = Figment::from(defaults)
        .merge(Toml::file(Env::var_or("ROCKET_CONFIG", "Rocket.toml")).nested())
        .merge(Env::prefixed("ROCKET_").ignore(&["PROFILE"]).global())
        .select(Profile::from_env_or("ROCKET_PROFILE", Config::DEFAULT_PROFILE));
    if let Some(port) = args.port {
        figment = figment.merge(Serialized::global("port", port));
    }
    if let Some(address) = args.address {
        figment = figment.merge(Serialized::global("address", address));
    }
    figment
}

/// Reads the settings; the error is one sentence for the user.
fn configure(figment: &Figment) -> Result<Config, String> {
    let config = Config::try_from(figment)
        .map_err(|errors| errors.into_iter().map(|e| e.to_string()).collect::<Vec<_>>().join("; "))
        .map_err(|errors| format!("Rocket's configuration is wrong: {errors}"))?;
    if config.port == 0 {
        return Err("port 0 is no port to be found at; give 1 to 65535 with -p".into());
    }
    Ok(config)
}

/// The daemon, ready to be launched.
fn daemon(figment: Figment, identity: Identity) -> Rocket<Build> {
    rocket::custom(figment)
        .mount("/", routes![index, users])
        .manage(identity)
        .attach(AdHoc::on_liftoff("announce", |rocket| Box::pin(async move { announce(rocket) })))
}

/// Says on stdout where the daemon listens and who it is. A closed stdout harms nothing.
fn announce(rocket: &Rocket<rocket::Orbit>) {
    let at = SocketAddr::new(rocket.config().address, rocket.config().port);
    if let Some(Identity(uuid)) = rocket.state() {
        _ = writeln!(std::io::stdout(), "Listening on http://{at}, my id is {uuid}");
    }
}

/// Serves until SIGINT or SIGTERM, then at most [`GRACE`] longer: requests that are being answered
/// may finish, clients that keep idle connections open do not hold up the end.
async fn serve(figment: Figment, datagrams: Option<UdpSocket>) -> Result<(), rocket::Error> {
    let identity = Identity(Uuid::new_v4());
    let rocket = daemon(figment, identity).ignite().await?;
    if let Some(socket) = datagrams {
        tokio::spawn(answer_datagrams(socket, identity));
    }
    let shutdown = rocket.shutdown();
    let patience = async {
        shutdown.await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::pin!(patience);
    tokio::select! {
        ended = rocket.launch() => match ended {
            // Told to stop, Rocket may give up at once because of open connections.
            Err(error) if matches!(error.kind(), ErrorKind::Shutdown(_, None)) => patience.await,
            ended => drop(ended?),
        },
        () = &mut patience => {}
    }
    Ok(())
}

/// Answers each datagram with who this is, for ever.
async fn answer_datagrams(socket: UdpSocket, identity: Identity) {
    let answer = identity.to_string();
    // What a client says does not matter.
    let mut nothing = [0; 1];
    loop {
        // An error is an ICMP message about an earlier answer.
        if let Ok((_, client)) = socket.recv_from(&mut nothing).await {
            _ = socket.send_to(answer.as_bytes(), client).await;
        }
    }
}

/// One sentence that says what failed and what to do.
fn explain(error: &rocket::Error, config: &Config) -> String {
    let at = SocketAddr::new(config.address, config.port);
    match error.kind() {
        ErrorKind::Bind(cause) => cannot_listen(at, cause),
        _ => format!("cannot serve on {at}: {error}"),
    }
}

fn cannot_listen(at: SocketAddr, cause: &std::io::Error) -> String {
    let advice = match cause.kind() {
        std::io::ErrorKind::AddrInUse => "choose another port with -p",
        std::io::ErrorKind::PermissionDenied => "choose a port from 1024 on with -p",
        std::io::ErrorKind::AddrNotAvailable => "choose an address of this machine with -a",
        _ => "choose another address or port with -a and -p",
    };
    format!("cannot listen on {at}: {cause}; {advice}")
}

fn fail(message: &str) -> ExitCode {
    _ = writeln!(std::io::stderr(), "netyard-whoami: {message}");
    ExitCode::FAILURE
}

/// Everything; the error is one sentence for the user.
async fn run(figment: Figment, config: &Config, udp: bool) -> Result<(), String> {
    let at = SocketAddr::new(config.address, config.port);
    let datagrams = match udp {
        true => Some(
            UdpSocket::bind(at)
                .await
                .map_err(|cause| format!("datagrams: {}", cannot_listen(at, &cause)))?,
        ),
        false => None,
    };
    serve(figment, datagrams).await.map_err(|error| explain(&error, config))
}

fn main() -> ExitCode {
    let args = Args::parse();
    let figment = settings(&args);
    let done =
        configure(&figment).and_then(|config| rocket::execute(run(figment, &config, args.udp)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => fail(&message),
    }
}

#[cfg(test)]
#[expect(clippy::result_large_err, reason = "the jail's closures return figment's error")]
mod tests {
    use figment::Jail;
    use rocket::http::Status;
    use rocket::local::blocking::Client;

    use super::*;

    fn args(line: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from([&["netyard-whoami"], line].concat())
    }

    fn client() -> Client {
        let settings = settings(&args(&[]).unwrap());
        Client::untracked(daemon(settings, Identity(Uuid::new_v4()))).unwrap()
    }

    #[test]
    fn the_index_answers_with_the_same_uuid_each_time() {
        let client = client();
        let first = client.get("/").dispatch().into_string().unwrap();
        let uuid = first.strip_prefix("My id is ").unwrap();
        assert_eq!(uuid.parse::<Uuid>().unwrap().get_version_num(), 4);
        assert_eq!(client.get("/").dispatch().into_string().unwrap(), first);
    }

    #[test]
    fn each_daemon_has_its_own_uuid() {
        let ask = |client: Client| client.get("/").dispatch().into_string().unwrap();
        assert_ne!(ask(client()), ask(client()));
    }

    #[test]
    fn users_are_greeted_and_other_paths_are_not_found() {
        let client = client();
        let greeting = client.get("/users").dispatch().into_string().unwrap();
        assert_eq!(greeting, "You're my first user");
        assert_eq!(client.get("/nothing").dispatch().status(), Status::NotFound);
    }

    #[test]
    fn the_defaults_are_loopback_8080_and_a_quiet_log() {
        Jail::expect_with(|_| {
            let config = configure(&settings(&args(&[]).unwrap())).unwrap();
            assert_eq!(config.address, Ipv4Addr::LOCALHOST);
            assert_eq!(config.port, 8080);
            assert_eq!(config.log_level, LogLevel::Off);
            Ok(())
        });
    }

    #[test]
    fn flags_override_the_environment_and_the_file() {
        Jail::expect_with(|jail| {
            jail.create_file(
                "Rocket.toml",
                "[default]\nport = 7001\n[debug]\nport = 7002\n[release]\nport = 7003\n",
            )?;
            let port = |line: &[&str]| configure(&settings(&args(line).unwrap())).unwrap().port;
            assert!([7002, 7003].contains(&port(&[])));
            assert_eq!(port(&["-p", "8081"]), 8081);
            jail.set_env("ROCKET_PORT", "7004");
            jail.set_env("ROCKET_ADDRESS", "127.0.0.9");
            assert_eq!(port(&[]), 7004);
            let config = configure(&settings(&args(&["-p", "8081", "-a", "::"]).unwrap())).unwrap();
            assert_eq!((config.address, config.port), ("::".parse().unwrap(), 8081));
            Ok(())
        });
    }

    #[test]
    fn port_zero_is_refused_wherever_it_comes_from() {
        assert!(args(&["-p", "0"]).is_err());
        Jail::expect_with(|jail| {
            jail.set_env("ROCKET_PORT", "0");
            let message = configure(&settings(&args(&[]).unwrap())).unwrap_err();
            assert!(message.contains("port 0"), "{message}");
            Ok(())
        });
    }

    #[test]
    fn values_that_are_no_port_or_address_are_refused() {
        for line in [["-p", "70000"], ["-p", "-1"], ["-p", "http"], ["-a", "localhost"]] {
            assert!(args(&line).is_err(), "{line:?}");
        }
    }
}
