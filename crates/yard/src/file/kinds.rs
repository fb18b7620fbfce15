//! What runs in the instances of a group: `kind`, and the keys that belong to one kind only.

use std::fs;
use std::path::{Path, PathBuf};

use netyard_sys::process;
use netyard_sys::seqpacket::MAX_DESCRIPTORS;

use super::instances::Group;
use super::networks::Network;
use super::reader::{Report, Section};
use crate::model::{DEFAULT_MEMORY, ExternalSpec, Kind, VmSpec};

/// Keys that only a virtual machine has.
const MACHINE_KEYS: [&str; 5] = ["memory", "cpus", "kernel", "initrd", "drive"];

/// Keys of what netyard starts.
const PROGRAM_KEYS: [&str; 4] = ["run", "env", "cwd", "restart"];

/// Keys that only something external has.
const EXTERNAL_KEYS: [&str; 1] = ["owner"];

const EXTERNAL_ONLY: &str =
    "belongs to what somebody else starts: write kind = \"external\" beside it";

/// Memory of a virtual machine, MiB: what a kernel starts in, and what no machine has.
const MEMORY: std::ops::RangeInclusive<u32> = 64..=1 << 20;

/// Most processors of a virtual machine.
const MAX_CPUS: u16 = 64;

pub(super) fn kind(section: &Section<'_>, folder: &Path, report: &mut Report<'_>) -> Kind {
    let built = ["process", "stack", "vm", "external"].map(|word| (word, word));
    let word = match section.field("kind") {
        None => "process",
        Some(_) => match section.choice("kind", &built, report) {
            Some(word) => word,
            // That has been reported; what the right one would have had is not.
            None => return Kind::Process,
        },
    };
    let mut refuse = |keys: &[&str], why: &str| {
        for field in keys.iter().filter_map(|key| section.field(key)) {
            report.add(&field.place, why);
        }
    };
    if word != "vm" {
        refuse(&MACHINE_KEYS, "belongs to a virtual machine: write kind = \"vm\" beside it");
    }
    if word == "external" {
        refuse(&PROGRAM_KEYS, "belongs to what netyard starts; somebody else starts this");
    } else {
        refuse(&EXTERNAL_KEYS, EXTERNAL_ONLY);
    }
    match word {
        "stack" => Kind::Stack,
        "vm" => Kind::Vm(machine(section, folder, report)),
        "external" => Kind::External(external(section, report)),
        _ => Kind::Process,
    }
}

/// What is external is plugged in by TAPs, which only bridges have as ports, and in user mode by sockets.
pub(super) fn external_plugs(group: &Group, networks: &[Network], report: &mut Report<'_>) {
    let in_user_mode =
        |name: &str| networks.iter().any(|it| it.spec.name == name && !it.spec.is_bridge());
    let plugs = group.plugs.iter().filter(|plug| plug.socket.is_none());
    for plug in plugs.filter(|plug| in_user_mode(&plug.network)) {
        let network = &plug.network;
        report.add(
            &group.place,
            format!(
                "is external, and network {network} has no TAPs that others can open: write where \
                 they connect to, socket = \"PATH\" or vhost-user = \"PATH\", or give it mode = \"bridge\""
            ),
        );
    }
}

/// What netyard starts needs no socket to connect to.
pub(super) fn no_sockets(group: &Group, report: &mut Report<'_>) {
    for socket in group.plugs.iter().filter_map(|plug| plug.socket.as_ref()) {
        report.add(&socket.place, EXTERNAL_ONLY);
    }
}

/// Descriptors come in one message, with those of standard input, output and error.
pub(super) fn few_plugs(group: &Group, report: &mut Report<'_>) {
    const MOST: usize = MAX_DESCRIPTORS - 3;
    if group.plugs.len() > MOST {
        report.add(
            &group.place,
            format!("a program with a stack of its own has at most {MOST} plugs"),
        );
    }
}

fn external(section: &Section<'_>, report: &mut Report<'_>) -> ExternalSpec {
    let ours = ExternalSpec { owner: process::effective_user() };
    let Some(field) = section.field("owner") else { return ours };
    if field.is_integer() {
        let number = field.number(0..=u32::MAX - 1, report);
        return number.map_or(ours, |number| ExternalSpec { owner: number.value });
    }
    let expected = "the name or the number of a user of this machine";
    let owner = field
        .string(expected, report)
        .and_then(|name| user(name.value).or_else(|| field.wrong(expected, report)));
    owner.map_or(ours, |owner| ExternalSpec { owner })
}

/// The number of a user of this machine, by number or by name in `/etc/passwd`.
#[must_use]
pub fn user(text: &str) -> Option<u32> {
    if let Ok(number) = text.parse() {
        return Some(number).filter(|number| *number != u32::MAX);
    }
    // passwd(5): name, password, number.
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut users = users.lines().map(|line| line.split(':'));
    let mut found = users.find_map(|mut words| (words.next() == Some(text)).then_some(words))?;
    found.nth(1)?.parse().ok()
}

fn machine(section: &Section<'_>, folder: &Path, report: &mut Report<'_>) -> VmSpec {
    let memory = section.field("memory").and_then(|field| {
        let expected = "an amount of memory like \"512M\" or \"2G\", from 64M to 1024G";
        let text = field.string(expected, report)?;
        memory(text.value).or_else(|| field.wrong(expected, report))
    });
    let mut file = |key: &str| {
        let name = section.string(key, report)?;
        let path: PathBuf = folder.join(name.value).components().collect();
        if !path.is_file() {
            report
                .add(&name.place, format!("expected a file; there is none at {}", path.display()));
        }
        Some(path)
    };
    VmSpec {
        kernel: file("kernel"),
        initrd: file("initrd"),
        drive: file("drive"),
        memory: memory.unwrap_or(DEFAULT_MEMORY),
        cpus: section.number("cpus", 1..=MAX_CPUS, report).map_or(1, |cpus| cpus.value),
    }
}

/// MiB of `512M`, `512MiB`, `2G` or `2GiB`, if a machine may have so much.
#[must_use]
pub fn memory(text: &str) -> Option<u32> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(digits)?;
    let scale = match unit {
        "M" | "MiB" => 1,
        "G" | "GiB" => 1024,
        _ => return None,
    };
    number.parse::<u32>().ok()?.checked_mul(scale).filter(|memory| MEMORY.contains(memory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_known_by_number_and_by_name() {
        assert_eq!(user("1000"), Some(1000));
        assert_eq!(user("root"), Some(0));
        for nobody in ["", "no-such-user", "-1", "4294967295"] {
            assert_eq!(user(nobody), None, "{nobody}");
        }
    }

    #[test]
    fn memory_is_in_mebibytes() {
        for (text, expected) in [
            ("64M", Some(64)),
            ("512MiB", Some(512)),
            ("2G", Some(2048)),
            ("1024GiB", Some(1 << 20)),
            ("1025G", None),
            ("63M", None),
            ("512", None),
            ("M", None),
            ("1.5G", None),
            ("-1G", None),
            ("512K", None),
            ("99999999999G", None),
        ] {
            assert_eq!(memory(text), expected, "{text}");
        }
    }
}
