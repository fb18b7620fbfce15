//! Names of links that nobody has chosen: short enough for the kernel, and telling.

use netyard_link::rtnetlink::LinkName;

use super::failed;
use netyard_engine::control::ControlError;

/// Letters of a hash that tell names apart which are too long to be told whole.
const HASH: usize = 5;

/// The bridge of a network: its name where that fits.
pub(super) fn bridge(network: &str) -> Result<LinkName, ControlError> {
    let whole =
        if network.starts_with("br") { network.to_owned() } else { format!("br-{network}") };
    if whole.len() <= LinkName::MAX_LEN {
        return parse(whole);
    }
    parse(shorten("br-", network, network))
}

/// The host's end of an instance's link. Instances of several networks may have one name.
pub(super) fn host_end(network: &str, instance: &str) -> Result<LinkName, ControlError> {
    parse(shorten("", instance, &format!("{network}/{instance}")))
}

fn parse(name: String) -> Result<LinkName, ControlError> {
    LinkName::try_from(name).map_err(|error| failed(&error))
}

/// As much of `name` as fits between `before` and a hash of `whole`.
fn shorten(before: &str, name: &str, whole: &str) -> String {
    let room = LinkName::MAX_LEN - before.len() - HASH - 1;
    let part: String = name.chars().filter(char::is_ascii).take(room).collect();
    let part = part.trim_end_matches(['-', '.']);
    format!("{before}{part}-{:0HASH$x}", hash(whole) & 0xf_ffff)
}

/// FNV-1a, both halves.
fn hash(text: &str) -> u64 {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash ^ hash >> 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_tell_whose_they_are() {
        assert_eq!(bridge("lab").unwrap().as_str(), "br-lab");
        assert_eq!(bridge("br0").unwrap().as_str(), "br0");
        let long = bridge("a-yard-with-a-long-name.lan").unwrap();
        assert!(long.as_str().starts_with("br-a-yard"), "{long}");
        let [one, other] = ["hello.lan", "other.lan"].map(|net| host_end(net, "web-1").unwrap());
        assert!(one.as_str().starts_with("web-1-") && one != other, "{one} {other}");
        let [one, other] =
            ["database-primary-1", "database-primary-2"].map(|name| host_end("lan", name).unwrap());
        assert_ne!(one, other);
    }
}
