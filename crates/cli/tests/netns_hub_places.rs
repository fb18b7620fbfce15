//! Where a hub and peers keep what is theirs: the defaults, as README has them, and several on one machine.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod outer;

use std::process::Command;

use netyard_testbed::{Background, Namespace, isolate, output, peer, run};

use crate::outer::{Outer, PATIENCE, netyard, ping};

const README: &str = include_str!("../../../README.md");

/// The words of the commands that README shows about remote machines, without their program.
fn shown() -> Vec<Vec<&'static str>> {
    let section = README.rsplit("**Remote machines.**").next().unwrap();
    let lines = section.split("\n**").next().unwrap().lines();
    let commands = lines.filter_map(|line| line.strip_prefix("$ netyard "));
    commands.map(|line| line.split('#').next().unwrap().split_whitespace().collect()).collect()
}

/// State folders that are the test's own.
fn own_folders() {
    run(Command::new(peer("mount")).args(["-t", "tmpfs", "state", "/var/lib"]));
}

/// The same command on a machine of its own: it shares no folder with the others.
fn elsewhere(namespace: &Namespace, words: &[&str]) -> Command {
    let script = "mkdir -p -m 700 /run/netyard
mount -t tmpfs -o mode=700 runtime /run/netyard && mount -t tmpfs state /var/lib && exec \"$@\"";
    let plain = netyard(namespace, words);
    let program = plain.get_args().find(|word| word.to_string_lossy().ends_with("/netyard"));
    let mut command = namespace.command(peer("unshare"));
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(program.unwrap()).args(words);
    command
}

#[test]
fn what_readme_says_about_remote_machines_is_so() {
    isolate(|| {
        own_folders();
        let outer = Outer::new(3);
        let [hub, token, join] = &shown()[..] else { panic!("three commands") };
        let mut hub = Background::start(&mut netyard(&outer.hub, hub));
        hub.wait_for_line("reached as", PATIENCE);
        let string = run(&mut netyard(&outer.hub, token)).trim().to_owned();
        let join: Vec<&str> =
            join.iter().map(|word| if word.starts_with('\'') { &string } else { *word }).collect();
        assert!(join.contains(&&*string), "{join:?}");
        let mut one = Background::start(&mut netyard(&outer.peers[0], &join));
        one.wait_for_line("joined", PATIENCE);
        let mut two = Background::start(&mut elsewhere(&outer.peers[1], &join));
        two.wait_for_line("joined", PATIENCE);
        ping(&outer.peers[0], "10.1.1.1");
        ping(&outer.hub, "10.1.1.3");
        ping(&outer.peers[1], "10.1.1.3");
        // Another namespace of the first one's machine: it is told what it needs.
        let done = output(&mut netyard(&outer.peers[2], &join));
        let error = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(!done.status.success(), "{error}");
        for word in ["another process uses it", "a join string of its own", "--state FOLDER"] {
            assert!(error.contains(word), "{error}");
        }
        let string = run(&mut netyard(&outer.hub, &["token", "create"])).trim().to_owned();
        let words = ["join", "--state", "/tmp/third", &string];
        let mut three = Background::start(&mut netyard(&outer.peers[2], &words));
        three.wait_for_line("joined", PATIENCE);
        ping(&outer.peers[2], "10.1.1.3");
        // When the first one has ended, its key is good in the other namespace.
        one.signal("TERM");
        assert!(one.wait(PATIENCE).success(), "{}", one.output());
        three.signal("TERM");
        assert!(three.wait(PATIENCE).success(), "{}", three.output());
        let mut moved = Background::start(&mut netyard(&outer.peers[2], &join));
        let line = moved.wait_for_line("joined", PATIENCE);
        assert!(line.contains(" 10.1.1.3 "), "{line}");
    });
}

#[test]
fn a_second_hub_with_the_name_of_the_first_is_told_what_it_needs() {
    isolate(|| {
        own_folders();
        let outer = Outer::new(1);
        let mut first = Background::start(&mut netyard(&outer.hub, &["hub"]));
        first.wait_for_line("reached as", PATIENCE);
        let done = output(&mut netyard(&outer.peers[0], &["hub"]));
        let error = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(!done.status.success(), "{error}");
        assert!(error.contains("another process uses it") && error.contains("--name"), "{error}");
        let mut second = Background::start(&mut netyard(&outer.peers[0], &["hub", "--name", "b"]));
        second.wait_for_line("reached as", PATIENCE);
    });
}
