//! The guest's network: cards, addresses, routes.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use netyard_link as link;
use netyard_link::rtnetlink::{LinkChange, Route, Rtnetlink};
use netyard_vminit::Plug;

use crate::{During, Failure};

/// How long a card may take to appear after its driver was loaded.
const LIMIT: Duration = Duration::from_secs(10);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// Settings that cards have from the moment they appear: addresses and routes are given, never
/// learned, and nobody else can have them.
pub(crate) fn before_cards() {
    for setting in ["all/accept_ra", "default/accept_ra", "all/accept_dad", "default/accept_dad"] {
        // A kernel without IPv6 has no such settings, and needs none.
        let _ = fs::write(Path::new("/proc/sys/net/ipv6/conf").join(setting), "0");
    }
}

/// Sets the loopback interface and every card up.
pub(crate) fn set_up(plugs: &[Plug]) -> Result<(), Failure> {
    let mut kernel = Rtnetlink::open().map_err(refused).during("open rtnetlink")?;
    let lo = kernel.index("lo").and_then(|lo| kernel.change_link(lo, &LinkChange::new().up(true)));
    lo.map_err(refused).during("switch lo on")?;
    for (number, plug) in plugs.iter().enumerate() {
        let name = card(plug.mac).during("find the network card")?;
        card_up(&mut kernel, &name, plug, number == 0)
            .map_err(refused)
            .during(&format!("set the network card {name} up"))?;
    }
    Ok(())
}

fn refused(error: link::Error) -> io::Error {
    io::Error::other(error)
}

fn card_up(kernel: &mut Rtnetlink, name: &str, plug: &Plug, first: bool) -> link::Result<()> {
    let card = kernel.index(name)?;
    kernel.change_link(card, &LinkChange::new().mtu(plug.mtu.into()).up(true))?;
    let ipv6 = Path::new("/proc/sys/net/ipv6").is_dir();
    kernel.add_address(card, plug.address4.into())?;
    if ipv6 {
        kernel.add_address(card, plug.address6.into())?;
    }
    // The first leads out; the others lead to their own segments only.
    if first {
        let (gateway4, gateway6) = plug.gateway;
        kernel.add_route(&Route::default_via(gateway4.into(), card))?;
        if ipv6 {
            kernel.add_route(&Route::default_via(gateway6.into(), card))?;
        }
    }
    Ok(())
}

/// The name of the card with a hardware address, once it is there.
fn card(mac: [u8; 6]) -> io::Result<String> {
    let wanted = mac.map(|byte| format!("{byte:02x}")).join(":");
    let deadline = Instant::now() + LIMIT;
    loop {
        for entry in fs::read_dir("/sys/class/net")?.flatten() {
            let address = fs::read_to_string(entry.path().join("address")).unwrap_or_default();
            if address.trim() == wanted
                && let Ok(name) = entry.file_name().into_string()
            {
                return Ok(name);
            }
        }
        if Instant::now() > deadline {
            let text = format!("there is none with the address {wanted}");
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        thread::sleep(PAUSE);
    }
}
