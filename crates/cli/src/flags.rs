//! The command line: what can be typed, with help and an example for each verb and flag. Plain
//! data; nothing here acts.
#![allow(rustdoc::broken_intra_doc_links, reason = "help texts for people are no Markdown")]

use std::ffi::OsString;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use netyard_engine::config::Uplink;
use netyard_engine::forward::{Forward, ForwardError, Protocol};
use netyard_engine::policy::rules::Remote;
use netyard_wire::MacAddr;
use netyard_yard::attach::Target;
use netyard_yard::file;
use netyard_yard::model::SocketSpec;

use crate::hub::flags::{Hub, Join, Peers, Token};
use crate::nic::flags::{Ask, Nic};
use crate::traffic::{Capture, Flows};

/// Give any program a network of its own.
///
/// A yard is a private network with programs plugged into it, described by one file. Nothing needs
/// root but networks on bridges of the host.
#[derive(Debug, Parser)]
#[command(name = "netyard", version, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

impl Cli {
    /// What was typed; the program's name is the first word.
    ///
    /// # Errors
    /// That makes no sense, or help was asked for.
    pub(crate) fn read(words: &[OsString]) -> Result<Self, clap::Error> {
        let is_often = |verb: &OsString| ["run", "attach", "exec"].iter().any(|it| verb == *it);
        if words.get(1).is_some_and(is_often)
            && let Ok(Often { global, verb }) = Often::try_parse_from(words)
        {
            let verb = match verb {
                OftenVerb::Run(run) => Verb::Run(run),
                OftenVerb::Attach(attach) => Verb::Attach(attach),
                OftenVerb::Exec(exec) => Verb::Exec(exec),
            };
            return Ok(Self { global, verb });
        }
        Self::try_parse_from(words)
    }
}

/// What programs start often, without the rest: to build the whole command line takes a millisecond. What makes no
/// sense here is judged there.
#[derive(Debug, Parser)]
#[command(name = "netyard")]
struct Often {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: OftenVerb,
}

#[derive(Debug, Subcommand)]
enum OftenVerb {
    Run(Box<Run>),
    Attach(Box<Attach>),
    Exec(Exec),
}

const AFTER_HELP: &str = "\
Exit codes:
  0 fine, 1 failed, 2 usage, 3 not permitted, 4 inconclusive;
  `run` and `exec` end with the code of the program they ran: 127 if there is none,
  126 if it cannot be executed.

Examples:
  netyard up                                     bring up what ./yard.toml describes
  netyard run -p 8080 -- my-server --port 8080   one program, reachable as 127.0.0.1:8080
  netyard ps -y hello --json                     the instances of the yard hello, for programs";

/// Flags that every verb takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// The yard to talk to, or the path of its control socket [default: the one of ./yard.toml, else the only
    /// running one]
    #[arg(short, long, global = true, value_name = "NAME|PATH")]
    pub(crate) yard: Option<String>,
    /// Print JSON for programs instead of text for people; errors too
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Run(Box<Run>),
    Attach(Box<Attach>),
    Up(Up),
    Down(Down),
    Ps(Ps),
    Start(Start),
    Stop(Stop),
    Restart(Restart),
    Logs(Logs),
    Exec(Exec),
    Inspect(Inspect),
    Explain(Explain),
    /// Look at services: one name and address, several instances in turn
    #[command(subcommand)]
    Service(Service),
    /// Look at and change forwards: host ports and Unix sockets that lead into a network
    #[command(subcommand)]
    Forward(ForwardVerb),
    /// Make, look at and remove networks
    #[command(subcommand)]
    Network(Network),
    /// Look at what instances may reach outside
    #[command(subcommand)]
    Policy(Policy),
    Capture(Capture),
    Flows(Flows),
    #[command(subcommand)]
    Nic(Nic),
    Hub(Box<Hub>),
    Join(Box<Join>),
    /// Let machines join a hub, or no more
    #[command(subcommand)]
    Token(Token),
    Peers(Peers),
    Completions(Completions),
}

/// Run one program on a network of its own, in the foreground
///
/// Flags stand on either side of the program's name; its own arguments are given with -a, or all
/// of them behind `--`. The program is looked up in PATH, then beside netyard itself, then in the
/// working folder. It ends with Ctrl-C, and nothing of it stays.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard run -p 8081 -- netyard-whoami -a 0.0.0.0 -p 8081
  netyard run netyard-whoami -a -a -a 0.0.0.0 -p 8080          arguments one by one
  netyard run -p 0.0.0.0:8080:80 -p 5353:53/udp my-server      port, range, address, protocol
  netyard run --network lab --name server hello-server         two terminals, one network ...
  netyard run --network lab hello-client -a server.lab:8081    ... where names are known
  netyard run --ip-address 192.168.127.19 -e LEVEL=info -C /srv my-server
  netyard run --host 127.0.0.1:5432 my-server                  may reach this port as host.NETWORK
  netyard run --uplink none --subnet 10.9.0.0/24 my-server     a closed network, another prefix
  netyard run --udp 5353 my-server                             as -p 5353/udp
  netyard run --mtu 65520 --subnet6 fd00:9::/64 --dns 192.0.2.53 my-server   its packets, prefix, resolver
  netyard run --delay 20ms --loss 0.01 --rate 10mbit --packets 800 my-server    by a slow link
  netyard run -p 5173/loopback npm run dev                     ... which listens on its loopback alone
  netyard run --allow '*.debian.org' --allow 192.0.2.7 my-build    may reach these, nothing else
  netyard run --deny 10.0.0.0/8 --deny 192.168.0.0/16 my-build     ... everything but these
  netyard run --vm -p 8081 -- netyard-whoami -a 0.0.0.0 -p 8081     in a virtual machine
  netyard run --vm --memory 1G --smp 2 --kernel ./vmlinuz my-server a larger one, its kernel named
  netyard run --vm -p 2222:22 --drive disk.qcow2                    what a disk image boots
  netyard run --vm --kernel ./vmlinuz --initrd ./initrd.img         an initrd of one's own
On a bridge of the host, as root; both are on the network br0, 192.168.42.0/24:
  netyard run server -p 8081 -b -t tap0 --ip-address 192.168.42.19
  netyard run client -a 192.168.42.19:8081 -b -t tap1 --ip-address 192.168.42.20
  netyard run -b --bridgename br1 --bridgeipaddress 10.1.0.66 --netmask 255.255.0.0 my-server
  netyard run -b --ip-address 10.1.0.9 --gateway 10.1.0.1 --ipv6-address fd00:1::9 my-server")]
pub(crate) struct Run {
    /// The program
    #[arg(value_name = "PROGRAM", required_unless_present_any = ["argv", "initrd", "drive"])]
    pub(crate) program: Option<String>,
    /// Forward a host port to the program: [ADDRESS:]PORT[-PORT][:PORT[-PORT]][/tcp|/udp]
    ///
    /// Or a Unix socket, which is made, to a port: unix:PATH:PORT[/mode=OCTAL], with mode=600 unless given.
    /// The address is 127.0.0.1 unless given; the port of the program is the same unless given.
    /// May be repeated, and take several with commas between them. In user mode connections of this machine
    /// itself are spliced: the kernel moves their bytes, and the program sees its own address. `/splice` at the
    /// end has that of all clients, `/no-splice` of none; `/loopback` leads to the program's own 127.0.0.1 or ::1. With `/proxy-v1` or `/proxy-v2`
    /// a header of the PROXY protocol tells the program who each client is.
    #[arg(short, long = "port", value_name = "FORWARD", value_delimiter = ',')]
    pub(crate) ports: Vec<Forward>,
    /// Forward a host port over UDP: as -p, without the protocol
    #[arg(long, value_name = "FORWARD", value_delimiter = ',', value_parser = udp)]
    pub(crate) udp: Vec<Forward>,
    /// An argument of the program; may be repeated
    #[arg(short, long = "args", value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) args: Vec<String>,
    /// A variable of the program's environment; may be repeated
    #[arg(short, long = "env", value_name = "KEY=VALUE", value_parser = variable)]
    pub(crate) env: Vec<(String, String)>,
    /// The program's working folder [default: this one]
    #[arg(short = 'C', long, value_name = "FOLDER")]
    pub(crate) cwd: Option<PathBuf>,
    /// The network to join, made if it is not there [default: a private one; with -b the bridge's]
    #[arg(long, value_name = "NETWORK")]
    pub(crate) network: Option<String>,
    /// The instance's name on the network [default: the program's name]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// The instance's IPv4 address [default: a free one]
    #[arg(long, visible_alias = "address", value_name = "ADDRESS")]
    pub(crate) ip_address: Option<Ipv4Addr>,
    /// The instance's IPv6 address [default: with the number of the IPv4 address]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) ipv6_address: Option<Ipv6Addr>,
    /// Name of the host's end of the instance's link
    #[arg(short, long, value_name = "NAME", requires = "bridged")]
    pub(crate) tapname: Option<String>,
    #[command(flatten)]
    pub(crate) network_flags: NetworkFlags,
    #[command(flatten)]
    pub(crate) link: LinkFlags,
    #[command(flatten)]
    pub(crate) rules: RuleFlags,
    /// Run the program in a virtual machine of its own, with its libraries and nothing else
    #[arg(long)]
    pub(crate) vm: bool,
    /// The machine's memory [default: 512M]
    #[arg(long, value_name = "SIZE", value_parser = memory, requires = "vm")]
    pub(crate) memory: Option<u32>,
    /// The machine's processors [default: 1]
    #[arg(long, visible_alias = "cpus", value_name = "COUNT", requires = "vm")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) smp: Option<u16>,
    /// The machine's kernel, a bzImage with its modules [default: one of the host's]
    #[arg(long, value_name = "FILE", requires = "vm")]
    pub(crate) kernel: Option<PathBuf>,
    /// Boot this first file system instead of running a program; it configures itself by DHCP
    #[arg(long, value_name = "FILE", requires = "vm")]
    pub(crate) initrd: Option<PathBuf>,
    /// Boot this disk image, raw or qcow2, instead of running a program; it is written to
    #[arg(long, value_name = "FILE", requires = "vm")]
    pub(crate) drive: Option<PathBuf>,
    /// The program and its arguments, or the arguments of PROGRAM
    #[arg(last = true, value_name = "ARGV")]
    pub(crate) argv: Vec<String>,
}

/// Plug in what somebody else starts: a network namespace, or by a TAP on a bridge or a socket
///
/// With the id of a process, or the path of a namespace's file: its network namespace gets a link on a network in
/// user mode, with addresses and routes. That needs no privilege over a namespace of one's own. It ends
/// with the process, with Ctrl-C, and with the other end of --exit-fd.
///
/// Without: another program opens the TAP by its name, or connects to the socket: a virtual machine, an
/// emulator, a program with a stack of its own. It must use the hardware address that is shown; its
/// addresses are reserved, and given to it by DHCP if it asks. Everything stays until Ctrl-C. A TAP
/// needs root or capabilities, a socket nothing.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard attach 4711                                    a way out for process 4711
  netyard attach 4711 -p 8080:80 --network lab --name web --ready-fd 3 3>ready
  netyard attach 4711 --exit-fd 4 4<pipe                 until nobody writes to the pipe any more
  netyard attach 4711 --control ctl.sock                 then: netyard -y ./ctl.sock forward add tap0 8080:80
  netyard attach /run/user/1000/netns/box -t eth0        by the file of a namespace
  netyard attach 4711 --mtu 65520 --subnet6 fd00:9::/64 --dns 192.0.2.53
  netyard attach 4711 --delay 20ms --loss 0.01 --rate 10mbit --packets 800     by a slow link
  netyard attach 4711 --allow '*.example.org' --deny 198.51.100.0/24
  netyard attach -t tap5 --owner alice                   on the bridge br0, for alice's machine
  netyard attach -t tap5 --ip-address 192.168.42.30 --mac 02:00:5e:10:00:05 -p 2222:22
  netyard attach -t tap5 --network lab --name box --ipv6-address fd00:1::9 --udp 5353
  netyard attach -b --bridgename br1 --bridgeipaddress 10.1.0.66 --netmask 255.255.0.0 -t tap5
  netyard attach --socket web.sock --mac 02:00:5e:10:00:05 -p 8080   without root
  netyard attach --vhost-user box.sock --mac 02:00:5e:10:00:05       a machine's memory in place of packets
  netyard attach -t tap5 --subnet 10.9.0.0/24 --gateway 10.9.0.9 --uplink none --host 127.0.0.1:80")]
pub(crate) struct Attach {
    /// The process whose network namespace is plugged in, or the namespace's file
    #[arg(value_name = "PID|FILE", required_unless_present_any = ["tapname", "socket", "vhost_user"])]
    #[arg(conflicts_with_all = ["owner", "bridged", "socket", "vhost_user"])]
    pub(crate) target: Option<Target>,
    /// The TAP's name; in a namespace the name of its link there [default: tap0]
    #[arg(short, long, value_name = "NAME")]
    pub(crate) tapname: Option<String>,
    /// In place of a TAP, a Unix socket at this path, on a network in user mode; frames have their
    /// length before them, as QEMU's -netdev stream has it; with `unixgram:PATH` each is a datagram, as with
    /// -netdev dgram
    #[arg(long, value_name = "PATH", conflicts_with_all = ["tapname", "bridged"])]
    pub(crate) socket: Option<SocketSpec>,
    /// In place of a TAP, a Unix socket at this path, on a network in user mode, for vhost-user: the
    /// fast way for a machine whose memory is shared, as QEMU has it with -netdev vhost-user
    #[arg(long, value_name = "PATH", conflicts_with_all = ["tapname", "bridged", "socket"])]
    pub(crate) vhost_user: Option<PathBuf>,
    /// Write `1` to this descriptor, and close it, when everything is there
    #[arg(long, value_name = "NUMBER", requires = "target")]
    pub(crate) ready_fd: Option<i32>,
    /// Make a socket at this path by which its forwards are changed: `netyard -y PATH forward add`
    #[arg(long, value_name = "PATH", requires = "target")]
    pub(crate) control: Option<PathBuf>,
    /// End when the other end of this pipe or socket is closed
    #[arg(long, value_name = "NUMBER", requires = "target")]
    pub(crate) exit_fd: Option<i32>,
    /// The user who may open it, by name or number; root may in any case [default: you]
    #[arg(long, value_name = "USER", value_parser = user)]
    pub(crate) owner: Option<u32>,
    /// The hardware address that it will use [default: one that follows from its name]
    #[arg(long, value_name = "MAC", value_parser = mac)]
    pub(crate) mac: Option<MacAddr>,
    /// The instance's name on the network [default: that of the TAP, or of the socket]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// The network to join, made if it is not there
    ///
    /// Without it the bridge's; with --socket, and for a namespace, one of its own.
    #[arg(long, value_name = "NETWORK")]
    pub(crate) network: Option<String>,
    /// The instance's IPv4 address [default: a free one]
    #[arg(long, visible_alias = "address", value_name = "ADDRESS")]
    pub(crate) ip_address: Option<Ipv4Addr>,
    /// The instance's IPv6 address [default: with the number of the IPv4 address]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) ipv6_address: Option<Ipv6Addr>,
    /// Forward a host port to it: as for `run`
    #[arg(short, long = "port", value_name = "FORWARD", value_delimiter = ',')]
    pub(crate) ports: Vec<Forward>,
    /// Forward a host port over UDP: as -p, without the protocol
    #[arg(long, value_name = "FORWARD", value_delimiter = ',', value_parser = udp)]
    pub(crate) udp: Vec<Forward>,
    #[command(flatten)]
    pub(crate) network_flags: NetworkFlags,
    #[command(flatten)]
    pub(crate) link: LinkFlags,
    #[command(flatten)]
    pub(crate) rules: RuleFlags,
}

/// What may be reached outside.
#[derive(Debug, Clone, Args)]
pub(crate) struct RuleFlags {
    /// Let it reach this outside, and nothing else: a prefix, an address, a name, `*.NAME`
    ///
    /// A name stands for the addresses that the network's DNS gives for it, and no other name is looked up
    /// then. May be repeated.
    #[arg(long, value_name = "REMOTE", value_parser = outside, conflicts_with = "bridged")]
    pub(crate) allow: Vec<Remote>,
    /// Do not let it reach this outside; may be repeated
    #[arg(long, value_name = "REMOTE", value_parser = outside, conflicts_with = "bridged")]
    pub(crate) deny: Vec<Remote>,
}

/// Shaping of a link in user mode, each direction alike.
#[derive(Debug, Clone, Args)]
pub(crate) struct LinkFlags {
    /// Time that its link adds to each packet, in user mode
    #[arg(long, value_name = "TIME", value_parser = delay)]
    pub(crate) delay: Option<Duration>,
    /// Share of packets that its link loses, from 0 to 1, in user mode
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub(crate) loss: Option<f64>,
    /// What its link carries in a second each way, like 10mbit, in user mode [default: without a limit]
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub(crate) rate: Option<u64>,
    /// Packets that its link carries in a second each way, in user mode [default: without a limit]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) packets: Option<u32>,
}

/// What is said of a network, if this makes it.
#[derive(Debug, Clone, Args)]
pub(crate) struct NetworkFlags {
    /// The network's IPv4 prefix, if this makes it [default: 192.168.127.0/24]
    ///
    /// On a bridge it may be the bridge's own address with the length of its prefix; without it,
    /// the prefix is that around the instance's address.
    #[arg(long, value_name = "PREFIX")]
    pub(crate) subnet: Option<ipnet::Ipv4Net>,
    /// The network's IPv6 prefix, a /64, if this makes it [default: a unique local one]
    #[arg(long, value_name = "PREFIX", value_parser = subnet6)]
    pub(crate) subnet6: Option<ipnet::Ipv6Net>,
    /// Largest IP packet of the network, bytes, if this makes it [default: 1500; on a bridge what its uplink takes]
    #[arg(long, value_name = "BYTES", value_parser = mtu)]
    pub(crate) mtu: Option<u16>,
    /// Who is asked for names outside the network, if this makes it; up to four [default: the host's resolvers]
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = resolver)]
    pub(crate) dns: Vec<std::net::SocketAddr>,
    /// The gateway's IPv4 address, if this makes the network [default: the prefix's first]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) gateway: Option<Ipv4Addr>,
    /// A service of the host that the network may reach, if this makes it; may be repeated
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) host: Vec<std::net::SocketAddr>,
    /// Where traffic that leaves the network goes, if this makes it
    ///
    /// `nat`: to where the host can reach, with its addresses. `none`: nowhere. On a bridge also
    /// `routed`: as it is, and `card:NAME`: through this card, which joins the bridge.
    #[arg(long, value_name = "UPLINK", default_value = "nat", value_parser = uplink)]
    pub(crate) uplink: Uplink,
    /// The kernel moves the packets, on a bridge; needs root or capabilities
    #[arg(short, long)]
    pub(crate) bridged: bool,
    /// The bridge, joined if it is there, else made [default: br0]
    #[arg(long, value_name = "NAME", requires = "bridged")]
    pub(crate) bridgename: Option<String>,
    /// The bridge's own address: the gateway's
    #[arg(long, value_name = "ADDRESS", requires = "bridged", conflicts_with = "gateway")]
    pub(crate) bridgeipaddress: Option<Ipv4Addr>,
    /// Mask of the prefix around the address that is given [default: 255.255.255.0]
    #[arg(long, value_name = "MASK", value_parser = mask, conflicts_with = "subnet")]
    pub(crate) netmask: Option<u8>,
}

/// Bring up what a yard file describes, or apply what changed in it
///
/// Stays in the foreground and shows how the instances are; Ctrl-C stops everything. Where the
/// yard is up already, the difference is applied, what is stopped or has failed is started, and the
/// command returns.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard up                          ./yard.toml, in the foreground
  netyard up -d --wait lab/yard.toml  in the background; returns when all is healthy
  netyard up --wait --timeout 5m      ... or after five minutes with code 4")]
pub(crate) struct Up {
    /// Return once the yard is up and leave it running
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Return when every instance is healthy, or fail when one cannot become so; implies -d
    #[arg(long)]
    pub(crate) wait: bool,
    /// How long --wait waits
    #[arg(long, value_name = "TIME", default_value = "1m", requires = "wait")]
    #[arg(value_parser = humantime::parse_duration)]
    pub(crate) timeout: Duration,
    /// The yard file, or a folder with a yard.toml in it
    #[arg(value_name = "FILE", default_value = "yard.toml")]
    pub(crate) file: PathBuf,
}

/// Stop a yard: its instances, forwards and networks
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  netyard down -y hello")]
pub(crate) struct Down {}

/// List the instances of a yard
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  netyard ps")]
pub(crate) struct Ps {}

/// Start instances that are stopped or have ended
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  netyard start web-1 web-2")]
pub(crate) struct Start {
    /// The instances
    #[arg(value_name = "NAME", required = true)]
    pub(crate) names: Vec<String>,
}

/// Stop instances; they stay stopped until they are started
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  netyard stop web-2")]
pub(crate) struct Stop {
    /// The instances
    #[arg(value_name = "NAME", required = true)]
    pub(crate) names: Vec<String>,
}

/// Stop instances and start them again, one after the other
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  netyard restart web-1")]
pub(crate) struct Restart {
    /// The instances
    #[arg(value_name = "NAME", required = true)]
    pub(crate) names: Vec<String>,
}

/// Show what an instance has written to stdout and stderr
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard logs web-2          everything that is kept
  netyard logs -f -n 10 web-2 the last ten lines, then what comes")]
pub(crate) struct Logs {
    /// Stay and show what comes
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only the last LINES of what is there
    #[arg(short = 'n', long, value_name = "LINES")]
    pub(crate) tail: Option<usize>,
    /// The instance
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

/// Run a command inside an instance: on its network, with its files
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard exec web-1 -- ip addr
  netyard exec -it web-1 -- sh            a shell with a terminal
  echo hello | netyard exec -i web-1 -- nc web-2 9000")]
pub(crate) struct Exec {
    /// Connect the command's stdin to this one
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// The instance
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// The command and its arguments
    #[arg(
        value_name = "ARGV",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) argv: Vec<String>,
}

/// Show everything about a yard, or about one instance, service or network of it
///
/// Of networks it tells by which card of this machine they leave. With --external, or servers that are
/// named, STUN servers are asked as whom they see what leaves, and what the NAT in front of it does, and
/// of IPv4 the gateway for its external address; without, nothing is sent.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard inspect             the whole yard
  netyard inspect web-1       one instance
  netyard inspect lan --json  one network, with each counter
  netyard inspect lan --external                   ... as whom servers of NETYARD_STUN see it
  netyard inspect lan --config servers.toml        ... servers that a file names
  netyard inspect lan --external --no-gateway      ... and the gateway hears nothing
  netyard inspect --server 198.18.0.1 --agree 1 --treat-as-public 198.18.0.0/15    in a laboratory")]
pub(crate) struct Inspect {
    /// An instance, service or network
    #[arg(value_name = "NAME")]
    pub(crate) name: Option<String>,
    #[command(flatten, next_help_heading = "External addresses")]
    pub(crate) ask: Ask,
    /// Do not ask the gateway for its external address (PCP, NAT-PMP, and UPnP by multicast)
    #[arg(long, help_heading = "External addresses")]
    pub(crate) no_gateway: bool,
}

/// Explain how things hang together, and which way a packet takes
///
/// With one name: which link is paired with which card in which namespace, what the gateway is and
/// why, which addresses, routes and rules there are. With two: the way of a packet from one end to
/// the other and back, hop by hop, with the rule that lets it pass, rewrites or refuses it. Without
/// any: every network of the yard.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard explain red                 an instance; so services, networks and bridges
  netyard explain red blue            a ping from one instance to another
  netyard explain red blue:8080       a connection; blue:53/udp for UDP
  netyard explain red outside         a connection to somewhere, and its answer
  netyard explain host 127.0.0.1:8080 by a published port
  netyard explain -6 red web          to a service, by IPv6 (--ipv6)
  netyard explain --svg yard.svg      a drawing of the yard")]
pub(crate) struct Explain {
    /// An instance, service, network or bridge; with TO who sends: an instance, `host`, `outside`
    /// or an address
    #[arg(value_name = "FROM")]
    pub(crate) what: Option<String>,
    /// Who gets it: an instance, service, `host`, `outside` or an address, with :PORT[/tcp|/udp]
    #[arg(value_name = "TO", requires = "what")]
    pub(crate) to: Option<String>,
    /// By IPv6
    #[arg(short = '6', long, requires = "to")]
    pub(crate) ipv6: bool,
    /// Draw the yard as SVG into FILE, else to stdout
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    #[arg(conflicts_with_all = ["what", "to"])]
    pub(crate) svg: Option<PathBuf>,
}

/// Verbs of `service`.
#[derive(Debug, Subcommand)]
pub(crate) enum Service {
    /// List services with their instances, health, turns and connections
    #[command(visible_alias = "list", after_help = "Example:\n  netyard service ls")]
    Ls,
}

/// Verbs of `forward`.
#[derive(Debug, Subcommand)]
pub(crate) enum ForwardVerb {
    Ls(ForwardLs),
    Add(ForwardAdd),
    Rm(ForwardRm),
}

/// Open a forward to an instance while everything runs
///
/// Nothing else is touched. It stays as long as the instance does, also when another `netyard up` applies
/// the yard file, unless the file wants its host ports. One that is there already is left as it is.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard forward add web 8081:80                    127.0.0.1:8081 of this machine to port 80 of web
  netyard forward add web 0.0.0.0:5353:53/udp        port 53 over UDP, for other machines too
  netyard forward add web 5173/loopback --json       to what listens on its loopback alone
  netyard forward add web unix:web.sock:80/mode=660  from a Unix socket, which is made
  netyard -y attach-4711 forward add tap0 8081:80    to the namespace that `netyard attach` (process 4711) serves")]
pub(crate) struct ForwardAdd {
    /// The instance
    #[arg(value_name = "INSTANCE")]
    pub(crate) instance: String,
    /// From and to: [ADDRESS:]PORTS[:PORTS][/tcp|/udp][/splice|/no-splice][/loopback][/proxy-v1|/proxy-v2], or
    /// unix:PATH:PORT[/mode=OCTAL][/splice|/no-splice][/loopback]
    #[arg(value_name = "FORWARD")]
    pub(crate) forward: Forward,
}

/// Close a forward to an instance while everything runs
///
/// Nothing else is touched; connections that are open stay. One that the yard file names comes back with the
/// next `netyard up`. What is not there is no error.
#[derive(Debug, Args)]
#[command(
    visible_alias = "delete",
    after_help = "Example:\n  netyard forward rm web 8081:80      as it was added, or as the yard file has it"
)]
pub(crate) struct ForwardRm {
    /// The instance
    #[arg(value_name = "INSTANCE")]
    pub(crate) instance: String,
    /// As it was given
    #[arg(value_name = "FORWARD")]
    pub(crate) forward: Forward,
}

/// List forwards, with the addresses of this machine that lead to them
///
/// With --external, or servers that are named, STUN servers are asked under which addresses the outside
/// knows this machine; without, nothing is sent. Where a NAT has the address, it must be told to let
/// others in.
#[derive(Debug, Args)]
#[command(
    visible_alias = "list",
    after_help = "\
Examples:
  netyard forward ls
  netyard forward ls --external                    also external addresses, by NETYARD_STUN's servers
  netyard forward ls --config servers.toml         ... by servers that a file names
  netyard forward ls --server 198.18.0.1 --agree 1 --treat-as-public 198.18.0.0/15  in a laboratory"
)]
pub(crate) struct ForwardLs {
    #[command(flatten)]
    pub(crate) ask: Ask,
}

/// Verbs of `network`.
#[derive(Debug, Subcommand)]
pub(crate) enum Network {
    /// List the networks that run, or those of a yard, with their prefixes, plugs and flows
    #[command(visible_alias = "list", after_help = "Example:\n  netyard network ls")]
    Ls,
    Create(NetworkCreate),
    /// Show everything about a network
    #[command(after_help = "\
Examples:
  netyard network inspect lab
  netyard network inspect lab --json          with every counter
  netyard network inspect lab --prometheus    the counters as Prometheus reads them")]
    Inspect {
        /// The network
        #[arg(value_name = "NETWORK")]
        name: String,
        /// Print the counters, as text for Prometheus
        #[arg(long)]
        prometheus: bool,
    },
    /// Remove a network that was made to stay
    #[command(visible_alias = "delete", after_help = "Example:\n  netyard network rm lab")]
    Rm {
        /// The network
        #[arg(value_name = "NETWORK")]
        name: String,
    },
}

/// Make a network that stays until it is removed
///
/// Without a name it is on a bridge, and has the bridge's name.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard network create lab                                      in user mode
  netyard network create lab --mtu 65520 --subnet6 fd00:9::/64 --dns 192.0.2.53
  netyard network create --bridgename br1 -b --subnet 192.168.33.1/24
  netyard network create lab -b --bridgeipaddress 10.1.0.66 --netmask 255.255.0.0
  netyard network create lab -b --open --gateway 10.1.0.1         other networks may reach it
  netyard network create lab -b --uplink routed --host 10.1.0.1:5432")]
pub(crate) struct NetworkCreate {
    /// The network's name
    #[arg(value_name = "NETWORK")]
    pub(crate) name: Option<String>,
    /// Other networks that are open too may reach this one
    #[arg(long, requires = "bridged")]
    pub(crate) open: bool,
    #[command(flatten)]
    pub(crate) flags: NetworkFlags,
}

/// Verbs of `policy`.
#[derive(Debug, Subcommand)]
pub(crate) enum Policy {
    /// List the rules of a yard's networks, or of one network, with how often each decided
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  netyard policy ls\n  netyard policy ls --network lab"
    )]
    Ls {
        /// A network that runs, by the name that `netyard network ls` has
        #[arg(long, value_name = "NETWORK")]
        network: Option<String>,
    },
    Test(PolicyTest),
}

/// Ask what the rules say of a connection, and which one
///
/// From an instance to somewhere outside or to another instance, or from a client outside to an instance. Of an
/// address outside the network itself is asked, which knows by which names the instance knows it; of a name outside
/// its rules. Instances and services have their names with the network's zone or without. Of a service each instance is
/// asked about, at the service's own port: it is reached if one may be.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard policy test web-1 203.0.113.7:443
  netyard policy test web-1 www.example.org:53/udp
  netyard policy test web-1 2001:db8::7                  whether it may ping it
  netyard policy test web-1 db:5432                      from one instance to another
  netyard policy test web-1 api.lan                      to a service, by its whole name
  netyard policy test 198.51.100.9 web-1:8080            a client of a forward or service
  netyard policy test --network lab server 203.0.113.7:80")]
pub(crate) struct PolicyTest {
    /// Who would open it: an instance, or the address of a client outside
    #[arg(value_name = "FROM")]
    pub(crate) from: String,
    /// Where it would go: an address, a name, an instance or a service, with the port there but for pings and services
    #[arg(value_name = "TO[:PORT[/udp]]")]
    pub(crate) to: String,
    /// A network that runs, by the name that `netyard network ls` has [default: the yard's]
    #[arg(long, value_name = "NETWORK")]
    pub(crate) network: Option<String>,
}

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  netyard completions bash > ~/.local/share/bash-completion/completions/netyard")]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(crate) shell: Shell,
}

/// Parses what may be reached outside.
fn outside(text: &str) -> Result<Remote, String> {
    match text.parse()? {
        Remote::Instance(_) => Err("rules about other instances stand in a yard file".to_owned()),
        remote => Ok(remote),
    }
}

/// Parses an amount of memory, MiB.
fn memory(text: &str) -> Result<u32, String> {
    let expected = "an amount of memory is like 512M or 2G, from 64M to 1024G";
    file::memory(text).ok_or_else(|| expected.into())
}

/// Parses the largest IP packet of a network.
fn mtu(text: &str) -> Result<u16, String> {
    let good = text.parse().ok().filter(|mtu| (file::MIN_MTU..=file::MAX_MTU).contains(mtu));
    good.ok_or_else(|| format!("expected bytes, from {} to {}", file::MIN_MTU, file::MAX_MTU))
}

/// Parses an IPv6 prefix that a network can have.
fn subnet6(text: &str) -> Result<ipnet::Ipv6Net, String> {
    let net = text.parse().map_err(|_| "expected a prefix like fd12:3456:789a:1::/64")?;
    file::prefix6(net)
}

/// Parses a resolver.
fn resolver(text: &str) -> Result<std::net::SocketAddr, String> {
    file::resolver(text)
        .ok_or_else(|| "expected an address like 10.0.0.53 or [fd00::53]:5353".to_owned())
}

/// Parses how long a link delays packets.
fn delay(text: &str) -> Result<Duration, String> {
    let good = humantime::parse_duration(text).ok().filter(|delay| *delay <= file::MAX_DELAY);
    good.ok_or_else(|| {
        format!(
            "expected a time like 20ms, {} at most",
            humantime::format_duration(file::MAX_DELAY)
        )
    })
}

/// Parses a share of packets.
fn share(text: &str) -> Result<f64, String> {
    let good = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    good.ok_or_else(|| "expected a share from 0 to 1, like 0.01".to_owned())
}

/// Parses bits per second.
fn rate(text: &str) -> Result<u64, String> {
    let expected = "expected a rate like 10mbit (bit, kbit, mbit or gbit per second)";
    file::rate(text).ok_or_else(|| expected.to_owned())
}

/// Parses the name or number of a user of this machine.
pub(crate) fn user(text: &str) -> Result<u32, String> {
    file::user(text).ok_or_else(|| {
        "expected a user of /etc/passwd; one who is not in it is known by number".into()
    })
}

/// Parses the hardware address of one card.
fn mac(text: &str) -> Result<MacAddr, String> {
    let mac = text.parse::<MacAddr>().ok();
    mac.filter(|mac| !mac.is_multicast() && *mac != MacAddr([0; 6])).ok_or_else(|| {
        "expected the address of one card (second digit even), like 02:00:5e:10:00:01".into()
    })
}

/// Parses a forward without a protocol as one over UDP.
fn udp(text: &str) -> Result<Forward, String> {
    if text.contains('/') {
        return Err("the protocol is UDP already; write it without".into());
    }
    let forward: Forward = text.parse().map_err(|error: ForwardError| error.to_string())?;
    Ok(Forward { protocol: Protocol::Udp, ..forward })
}

/// Parses where traffic goes.
fn uplink(text: &str) -> Result<Uplink, String> {
    match text {
        "nat" => Ok(Uplink::Nat),
        "none" => Ok(Uplink::None),
        "routed" => Ok(Uplink::Routed),
        _ => match text.strip_prefix("card:") {
            Some(card) if !card.is_empty() => Ok(Uplink::Card(card.to_owned())),
            _ => Err("expected nat, none, routed or card:NAME".into()),
        },
    }
}

/// Parses a mask such as `255.255.255.0` as the length of a prefix.
fn mask(text: &str) -> Result<u8, String> {
    let mask: Ipv4Addr = text.parse().map_err(|_| "expected a mask such as 255.255.255.0")?;
    ipnet::ipv4_mask_to_prefix(mask)
        .map_err(|_| "the ones of a mask stand at its beginning, as in 255.255.255.0".into())
}

/// Parses `KEY=VALUE`.
fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some(("", _)) => Err("the name before = is empty".into()),
        Some((key, value)) => Ok((key.into(), value.into())),
        None => Err("there is no =; a variable is given as KEY=VALUE".into()),
    }
}

impl Run {
    /// Program and arguments: the program's name or the first word behind `--`, then `-a`, then
    /// the rest behind `--`.
    pub(crate) fn command_line(&self) -> Vec<String> {
        let mut behind = self.argv.iter();
        let program = self.program.as_ref().or_else(|| behind.next());
        program.into_iter().chain(&self.args).chain(behind).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn read(line: &str) -> Result<Cli, clap::Error> {
        Cli::read(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    fn parse(line: &str) -> Result<Verb, clap::Error> {
        read(line).map(|cli| cli.verb)
    }

    fn run(line: &str) -> Run {
        match parse(line) {
            Ok(Verb::Run(run)) => *run,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn run_takes_flags_on_either_side_of_the_program() {
        let one = run("netyard run server -p 8081 --name s -a x");
        let other = run("netyard run -p 8081 --name s -a x server");
        let both = run("netyard run -p 8081 server --name s -a x");
        for run in [one, other, both] {
            assert_eq!(run.command_line(), ["server", "x"]);
            assert_eq!(run.ports, ["8081".parse().unwrap()]);
            assert_eq!(run.name.as_deref(), Some("s"));
        }
    }

    #[test]
    fn run_passes_everything_behind_the_dashes_on() {
        let run = run("netyard run -p 8081 -- whoami -a 0.0.0.0 -p 8082 --json");
        assert_eq!(run.command_line(), ["whoami", "-a", "0.0.0.0", "-p", "8082", "--json"]);
        assert_eq!(run.ports, ["8081".parse().unwrap()]);
    }

    #[test]
    fn run_passes_arguments_on_in_order() {
        let line = "netyard run client -a one -a -two -e K=a=b -- three -- four";
        let run = run(line);
        assert_eq!(run.command_line(), ["client", "one", "-two", "three", "--", "four"]);
        assert_eq!(run.env, [("K".to_owned(), "a=b".to_owned())]);
    }

    #[test]
    fn run_takes_several_ports() {
        let run = run("netyard run -p 80,8000-8002:9000-9002 -p [::1]:53:53/udp x");
        let expected = ["80", "8000-8002:9000-9002", "[::1]:53:53/udp"];
        assert_eq!(run.ports, expected.map(|text| text.parse().unwrap()));
    }

    #[test]
    fn run_takes_the_flags_of_ops() {
        let one = run("netyard run server -p 8081 -b -t tap0 --ip-address 192.168.42.19");
        assert!(one.network_flags.bridged);
        assert_eq!(
            (one.tapname.as_deref(), one.command_line().join(" ")),
            (Some("tap0"), "server".into())
        );
        let line = "netyard run client -a 192.168.42.19:8081 -b -t tap1 --ip-address 192.168.42.20";
        assert_eq!(run(line).command_line(), ["client", "192.168.42.19:8081"]);
        let ports = run("netyard run -p 80-8080,9000 --udp 53,5353 x");
        assert_eq!(ports.ports, ["80-8080", "9000"].map(|text| text.parse().unwrap()));
        assert_eq!(ports.udp, ["53/udp", "5353/udp"].map(|text| text.parse().unwrap()));
        let line =
            "netyard run x -b --bridgename br1 --bridgeipaddress 10.1.0.66 --netmask 255.255.0.0";
        let flags = run(line).network_flags;
        assert_eq!((flags.bridgename.as_deref(), flags.netmask), (Some("br1"), Some(16)));
    }

    #[test]
    fn run_needs_a_program() {
        assert!(parse("netyard run -p 8081").is_err());
        assert!(parse("netyard run").is_err());
        assert!(parse("netyard run --vm").is_err());
    }

    #[test]
    fn run_takes_machines() {
        let one = run("netyard run --vm --memory 2G --smp 4 --kernel k -- server -x");
        assert_eq!((one.memory, one.smp, one.kernel), (Some(2048), Some(4), Some("k".into())));
        let image = run("netyard run --vm --drive disk --initrd i");
        assert!(image.command_line().is_empty() && image.vm);
        for alone in ["--memory 1G", "--smp 2", "--kernel k", "--initrd i", "--drive d"] {
            assert!(parse(&format!("netyard run {alone} server")).is_err(), "{alone} needs --vm");
        }
    }

    #[test]
    fn bad_values_are_refused() {
        for flags in [
            "--vm --memory 1K",
            "--vm --smp 0",
            "-p 0",
            "-p 70000",
            "-p 9-8",
            "-e novalue",
            "-e =x",
            "--ip-address ::1",
            "--udp 53/tcp",
            "-b --netmask 255.0.255.0",
            "--uplink card:",
            "--mtu 1279",
            "--mtu 65521",
            "--subnet6 fd00::/48",
            "--dns 0.0.0.0",
            "--dns fe80::1",
            "--delay 2m",
            "--loss 1.5",
            "--rate 10",
            "--packets 0",
            "-t tap0",
            "--bridgename br1",
        ] {
            let error = parse(&format!("netyard run {flags} x")).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{flags}");
        }
    }

    #[test]
    fn exec_passes_the_command_on() {
        let Ok(Verb::Exec(exec)) = parse("netyard exec -it web-1 -- ls -l --json") else {
            panic!("exec");
        };
        assert!(exec.interactive && exec.tty);
        assert_eq!((exec.name.as_str(), exec.argv.join(" ")), ("web-1", "ls -l --json".into()));
        assert!(parse("netyard exec web-1").is_err());
    }

    #[test]
    fn up_is_about_yard_toml_here() {
        let Ok(Verb::Up(up)) = parse("netyard up") else { panic!("up") };
        assert_eq!((up.detach, up.wait, up.file), (false, false, "yard.toml".into()));
    }

    #[test]
    fn what_is_started_often_is_read_without_the_rest() {
        for line in ["netyard run -p 80 -- sh -c true", "netyard attach 1", "netyard exec web true"]
        {
            let often = Often::try_parse_from(line.split(' '));
            assert!(often.is_ok(), "{line}: {often:?}");
        }
    }

    #[test]
    fn global_flags_stand_anywhere() {
        for line in [
            "netyard -y a --json ps",
            "netyard ps --yard a --json",
            "netyard -y a --json exec web true",
            "netyard exec --json -y a web true",
        ] {
            let global = read(line).unwrap().global;
            assert_eq!((global.yard.as_deref(), global.json), (Some("a"), true));
        }
    }

    /// Every verb that acts has a sentence and an example, every flag and argument a sentence, and
    /// every flag stands in an example (short or long) of its verb.
    #[test]
    fn everything_has_help_and_an_example() {
        fn check(path: &str, command: &clap::Command) {
            assert!(command.get_about().is_some(), "{path} has no help");
            let mut verbs = command.get_subcommands().filter(|v| v.get_name() != "help").peekable();
            let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let acts = verbs.peek().is_none();
            assert!(!acts || examples.contains("Example"), "{path} has no example");
            for arg in command.get_arguments().filter(|arg| !arg.is_global_set()) {
                let id = arg.get_id();
                assert!(arg.get_help().is_some(), "{path} {id} has no help");
                let long = arg.get_long().map(|long| examples.contains(&format!("--{long}")));
                let short = arg.get_short().map(|short| {
                    examples.split([' ', '\n']).any(|word| {
                        word.starts_with('-') && !word.starts_with("--") && word.contains(short)
                    })
                });
                let shown = [long, short].into_iter().flatten().reduce(|a, b| a || b);
                assert_ne!(shown, Some(false), "{path} {id} stands in no example");
            }
            verbs.for_each(|verb| check(&format!("{path} {}", verb.get_name()), verb));
        }
        let command = Cli::command();
        command.clone().debug_assert();
        check("netyard", &command);
    }
}
