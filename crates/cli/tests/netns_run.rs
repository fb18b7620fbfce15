//! `netyard run`: one instance in the foreground.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod stage;

use std::net::{Ipv4Addr, SocketAddr};

use netyard_testbed::{Background, User, http, isolate, isolate_mapped, output, run, runtime_root};

use crate::stage::{SOON, before, text, wait_until_answered};

const FORWARDED: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8081);

fn whoami(user: User) {
    let before = before(user);
    let mut command = user.command("netyard");
    command.args(["run", "-p", "8081", "--", "netyard-whoami", "-a", "0.0.0.0", "-p", "8081"]);
    let mut instance = Background::start(&mut command);
    wait_until_answered(FORWARDED);
    let users = http::get(FORWARDED, "/users").unwrap();
    assert_eq!(users.body.trim(), "You're my first user");
    instance.signal("INT");
    instance.wait(SOON);
    before.assert_restored(SOON);
}

#[test]
fn an_interrupt_ends_it_and_leaves_nothing() {
    isolate(|| whoami(User::Root));
}

#[test]
fn an_interrupt_ends_it_for_an_ordinary_user() {
    isolate(|| whoami(User::Ordinary));
}

#[test]
fn an_interrupt_ends_it_inside_a_user_namespace() {
    isolate_mapped(|| whoami(User::Root));
}

/// The exit code and everything that `netyard run -- sh -c SCRIPT` says.
fn script(user: User, script: &str) -> (Option<i32>, String) {
    let done = output(user.command("netyard").args(["run", "--", "sh", "-c", script]));
    (done.status.code(), text(&done))
}

#[test]
fn the_programs_exit_code_comes_back() {
    isolate(|| {
        for user in User::ALL {
            assert_eq!(script(user, "exit 0").0, Some(0));
            assert_eq!(script(user, "exit 42").0, Some(42));
            assert_eq!(script(user, "kill -TERM $$").0, Some(128 + 15));
        }
    });
}

#[test]
fn descriptors_of_the_caller_stay_with_the_caller() {
    isolate(|| {
        for user in User::ALL {
            let mut shell = user.peer("sh");
            shell.arg("-c");
            shell.arg("exec 7</etc/passwd; exec netyard run -- sh -c 'echo /proc/self/fd/*'");
            let seen = run(&mut shell);
            assert!(!seen.contains("/7"), "{seen}");
        }
    });
}

#[test]
fn sockets_of_the_keeper_and_the_machines_settings_are_out_of_reach() {
    isolate(|| {
        for user in User::ALL {
            let root = runtime_root(user);
            let (code, said) = script(user, &format!("ls -A {}", root.display()));
            assert_eq!((code, said.as_str()), (Some(0), ""));
            for path in ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger"] {
                let (code, said) = script(user, &format!("echo h >{path}"));
                assert_ne!(code, Some(0), "{path}: {said}");
            }
        }
    });
}

#[test]
fn what_a_killed_run_left_goes_with_the_next_start() {
    isolate(|| {
        for user in User::ALL {
            let before = before(user);
            let mut command = user.command("netyard");
            command.args(["run", "--", "sh", "-c", "echo up; sleep 1000"]);
            let mut killed = Background::start(&mut command);
            killed.wait_for_line("up", SOON);
            killed.signal("KILL");
            killed.wait(SOON);
            assert_eq!(script(user, "true").0, Some(0));
            before.assert_restored(SOON);
        }
    });
}

#[test]
fn output_is_passed_on() {
    isolate(|| {
        let (_, said) = script(User::Root, "echo out; echo err >&2");
        assert!(said.contains("out\n") && said.contains("err\n"), "{said}");
    });
}

#[test]
fn the_gateway_answers_ping() {
    isolate(|| {
        for user in User::ALL {
            let addresses = "ip -o route get 192.0.2.1 | grep -o 'via [0-9.]*' | cut -d' ' -f2; \
                             ip -6 -o route get 2001:db8::1 | grep -o 'via [0-9a-f:]*' | cut -d' ' -f2";
            let pings = format!("for a in $({addresses}); do ping -c1 -W5 $a || exit 1; done");
            let (code, said) = script(user, &pings);
            assert_eq!(code, Some(0), "{said}");
            assert_eq!(said.matches("1 received").count(), 2, "{said}");
        }
    });
}

#[test]
fn the_program_has_no_capabilities() {
    isolate(|| {
        for user in User::ALL {
            let (_, said) = script(user, "grep Cap /proc/self/status");
            for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
                assert!(said.contains(&format!("{set}:\t0000000000000000")), "{said}");
            }
            // What programs like ping may take from their file: binding low ports, raw sockets.
            assert!(said.contains("CapBnd:\t0000000000002400"), "{said}");
        }
    });
}

#[test]
fn two_runs_share_a_network_and_find_each_other_by_name() {
    isolate(|| {
        for user in User::ALL {
            let before = before(user);
            let mut server = user.command("netyard");
            server.args(["run", "--network", "lab", "--name", "server", "--"]);
            server.args(["netyard-traffic", "serve", "0.0.0.0:7000", "[::]:7001"]);
            let mut server = Background::start(&mut server);
            server.wait_for_line("listening", SOON);
            let mut client = user.command("netyard");
            client.args(["run", "--network", "lab", "--name", "client", "--", "sh", "-c"]);
            client.arg(
                "curl -sS --fail -4 http://server.lab:7000/ && \
                 curl -sS --fail -6 http://server.lab:7001/ && \
                 ping -c1 -W5 server.lab",
            );
            let said = run(&mut client);
            assert_eq!(said.matches("hello from outside").count(), 2, "{said}");
            assert!(said.contains("1 received"), "{said}");
            server.signal("TERM");
            server.wait(SOON);
            before.assert_restored(SOON);
        }
    });
}

#[test]
fn a_missing_program_is_one_clear_error() {
    isolate(|| {
        for user in User::ALL {
            let before = before(user);
            let done = output(user.command("netyard").args(["run", "--", "no-such-program"]));
            assert_eq!(done.status.code(), Some(127), "{}", text(&done));
            assert!(text(&done).contains("no-such-program"), "{}", text(&done));
            before.assert_restored(SOON);
        }
    });
}
