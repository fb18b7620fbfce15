//! The machine that a contender has for itself: a host with a way out.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use netyard_link::netns::Netns;
use netyard_testbed::peer;

/// Where the outside's namespace is.
const OUTSIDE: &str = "/run/netns/outside";

/// A server's address in the outside.
pub(super) const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// The host's addresses: several, for more connections than one has ports for. The outside speaks to
/// each from another of its own, as clients do: a kernel that translates keeps what has ended for two
/// minutes, and one client's ports lead to the same guest once only in that time.
pub(super) fn hosts() -> impl Iterator<Item = Ipv4Addr> {
    (11..=18).map(|number| Ipv4Addr::new(198, 51, 100, number))
}

/// Makes it for the program in its arguments, inside of new namespaces.
pub(super) const SCRIPT: &str = "
mount -t tmpfs -o mode=755 host /run
mount -t tmpfs -o mode=1777 host /tmp
mkdir -p /run/netns
ip link set lo up
ip netns add outside
ip link add uplink type veth peer name beyond netns outside
ip address add 198.51.100.1/24 dev uplink
for number in 11 12 13 14 15 16 17 18; do
    ip address add 198.51.100.$number/24 dev uplink
done
ip link set uplink up
ip -n outside link set lo up
ip -n outside address add 198.51.100.2/24 dev beyond
ip -n outside link set beyond up
for number in 11 12 13 14 15 16 17 18; do
    ip -n outside address add 198.51.100.1$number/24 dev beyond
    ip -n outside route add 198.51.100.$number/32 dev beyond src 198.51.100.1$number
done
ip -n outside address add 203.0.113.1/32 dev lo
ip route add default via 198.51.100.2
exec \"$@\"
";

/// A command that runs a program in the outside.
pub(super) fn outside(program: &str) -> Command {
    let mut command = Command::new(peer("nsenter"));
    command.arg(format!("--net={OUTSIDE}")).arg("--").arg(peer(program));
    command
}

/// The outside's namespace.
pub(super) fn outside_namespace() -> Netns {
    Netns::open(Path::new(OUTSIDE)).unwrap_or_else(|error| panic!("{error}"))
}
