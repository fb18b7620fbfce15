//! A file of names like `/etc/hosts` (hosts(5)).

use std::collections::HashMap;
use std::net::IpAddr;

/// Names, in lower case, with their addresses.
#[derive(Debug, Default)]
pub(crate) struct Hosts(HashMap<String, Vec<IpAddr>>);

impl Hosts {
    /// Reads the text of such a file. Lines that make no sense are left out, as everywhere.
    pub(crate) fn parse(text: &str) -> Self {
        let mut names: HashMap<String, Vec<IpAddr>> = HashMap::new();
        for line in text.lines() {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let Some(ip) = words.next().and_then(|word| word.parse().ok()) else { continue };
            for name in words {
                names.entry(name.to_ascii_lowercase()).or_default().push(ip);
            }
        }
        Self(names)
    }

    /// The addresses of a name, which is in lower case.
    pub(crate) fn get(&self, name: &str) -> Option<&[IpAddr]> {
        self.0.get(name).map(Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_an_address_and_its_names() {
        let hosts =
            Hosts::parse("127.0.0.1 localhost # me\n\n fd00::1\tDB db.lan\nx y\n10.0.0.1 db\n");
        assert_eq!(hosts.get("localhost").unwrap(), ["127.0.0.1".parse::<IpAddr>().unwrap()]);
        let both: [IpAddr; 2] = ["fd00::1".parse().unwrap(), "10.0.0.1".parse().unwrap()];
        assert_eq!(hosts.get("db").unwrap(), both);
        assert!(hosts.get("y").is_none() && hosts.get("me").is_none());
    }
}
