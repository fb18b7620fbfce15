//! What the command says about itself; nothing here touches the host.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::process::{Command, Output};

fn netyard(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_netyard")).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

const VERBS: [&str; 19] = [
    "run",
    "up",
    "down",
    "ps",
    "start",
    "stop",
    "restart",
    "logs",
    "exec",
    "inspect",
    "service",
    "forward",
    "network",
    "nic",
    "hub",
    "join",
    "token",
    "peers",
    "completions",
];

#[test]
fn help_lists_the_verbs_and_the_exit_codes() {
    let help = said(&netyard(&["--help"]));
    for word in VERBS.iter().chain(&["Exit codes", "--yard", "--json"]) {
        assert!(help.contains(word), "{word} is not in:\n{help}");
    }
    for hidden in ["network-process", "instance-init"] {
        assert!(!help.contains(hidden), "{hidden} is in:\n{help}");
    }
}

#[test]
fn each_verb_has_help() {
    for verb in VERBS {
        let help = said(&netyard(&[verb, "--help"]));
        assert!(help.contains("Usage: netyard"), "{verb}: {help}");
    }
}

#[test]
fn completions_know_verbs_and_flags() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = said(&netyard(&["completions", shell]));
        for word in VERBS.iter().chain(&["uplink", "detach"]) {
            assert!(script.contains(word), "{shell}: {word} is missing");
        }
    }
}

#[test]
fn wrong_lines_are_usage_errors_that_name_what_is_wrong() {
    for (line, word) in [
        ("frobnicate", "frobnicate"),
        ("ps --frobnicate", "--frobnicate"),
        ("logs", "<NAME>"),
        ("run -p 9-8 x", "9-8"),
        ("nic map 8080 --lifetime 500ms", "a second or more"),
        ("nic show --no-gateway", "--nat"),
        ("completions tcsh", "tcsh"),
    ] {
        let output = netyard(&line.split(' ').collect::<Vec<_>>());
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{line}: {error}");
        assert!(error.contains(word), "{line}: {error}");
    }
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let script = format!("{} completions bash | true", env!("CARGO_BIN_EXE_netyard"));
    let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
    assert!(output.stderr.is_empty(), "{output:?}");
}
