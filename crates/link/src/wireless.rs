//! Which links are wireless: nl80211 over generic netlink.

use netyard_sys::netlink::Protocol;

use crate::attribute::{Answer, Message};
use crate::connection::Connection;
use crate::error::Result;
use crate::rtnetlink::LinkIndex;

// linux/genetlink.h
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
// linux/nl80211.h
const NL80211_CMD_GET_INTERFACE: u8 = 5;
const NL80211_ATTR_IFINDEX: u16 = 3;

/// The wireless links of the calling thread's network namespace; none on a kernel without wireless
/// networking.
///
/// # Errors
/// What the kernel said.
pub fn links() -> Result<Vec<LinkIndex>> {
    let operation = || "list the wireless links".to_owned();
    let mut kernel = Connection::open(Protocol::Generic, None)?;
    let Some(family) = family(&mut kernel)? else { return Ok(Vec::new()) };
    kernel.dump(&request(family, NL80211_CMD_GET_INTERFACE), operation, |answer| {
        let (_, attributes) = answer.split::<4>()?;
        attributes.find(NL80211_ATTR_IFINDEX)?.u32().map(LinkIndex)
    })
}

/// The number under which this kernel knows nl80211.
fn family(kernel: &mut Connection) -> Result<Option<u16>> {
    let mut message = request(GENL_ID_CTRL, CTRL_CMD_GETFAMILY);
    message.put_text(CTRL_ATTR_FAMILY_NAME, "nl80211");
    let read = |answer: &Answer<'_>| {
        let (_, attributes) = answer.split::<4>()?;
        let [a, b, ..] = *attributes.find(CTRL_ATTR_FAMILY_ID)?.0 else { return None };
        Some(u16::from_ne_bytes([a, b]))
    };
    match kernel.get(message, || "look for nl80211".to_owned(), read) {
        Err(error) if error.is_gone() => Ok(None),
        found => found,
    }
}

/// `struct genlmsghdr`: command, version, reserved.
fn request(family: u16, command: u8) -> Message {
    Message::new(family, 0).fixed(&[command, 1, 0, 0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_not_wireless() {
        assert!(!links().unwrap().contains(&LinkIndex(1)));
    }
}
