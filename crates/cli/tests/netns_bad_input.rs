//! Wrong input: one clear error with the next step, the right exit code, nothing left behind.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod stage;

use std::fs;
use std::net::TcpListener;
use std::process::Command;

use netyard_testbed::{User, isolate, output, run};

use crate::stage::{HELLO, SOON, Stage, before, text};

/// A yard file, the exit code of `up`, and what the error must say.
struct Case {
    what: &'static str,
    yard: String,
    code: i32,
    says: &'static [&'static str],
}

fn cases() -> Vec<Case> {
    let case = |what, yard: &str, code, says| Case { what, yard: yard.to_owned(), code, says };
    let hello = |from: &str, to: &str| {
        assert!(HELLO.contains(from), "{from} is not in the hello yard");
        HELLO.replace(from, to)
    };
    vec![
        case("no TOML", "[networks.lan\n", 2, &["yard.toml", ":1"]),
        case(
            "unknown key",
            &hello("count = 3", "cuont = 3"),
            2,
            &["cuont", "count", "yard.toml:6"],
        ),
        case("unknown table", "[network.lan]\n", 2, &["network", "networks"]),
        case("reversed range", &hello("count = 3", "forwards = [\"90-80:90-80\"]"), 2, &["90-80"]),
        case("port 70000", &hello("port = 8080", "port = 70000"), 2, &["70000", "port"]),
        case(
            "small subnet",
            &hello("[networks.lan]", "[networks.lan]\nsubnet = \"10.0.0.0/30\""),
            2,
            &["10.0.0.0/30"],
        ),
        case(
            "bad subnet",
            &hello("[networks.lan]", "[networks.lan]\nsubnet = \"10.0.0.0/33\""),
            2,
            &["10.0.0.0/33"],
        ),
        case(
            "overlap",
            &hello(
                "[networks.lan]",
                "[networks.lan]\nsubnet = \"10.0.0.0/16\"\n[networks.dmz]\nsubnet = \"10.0.1.0/24\"",
            ),
            2,
            &["10.0.0.0/16", "10.0.1.0/24"],
        ),
        case(
            "no such instance",
            &hello("instances = \"web\"", "instances = \"wbe\""),
            2,
            &["wbe", "web"],
        ),
        case("missing program", &hello("netyard-whoami", "netyard-whomai"), 1, &["netyard-whomai"]),
    ]
}

#[test]
fn wrong_yard_files_are_refused_whole() {
    isolate(|| {
        for user in User::ALL {
            let before = before(user);
            for case in cases() {
                let stage = Stage::new(user, "wrong", &case.yard);
                let done = output(&mut stage.netyard(&["up"]));
                let said = text(&done);
                assert_eq!(done.status.code(), Some(case.code), "{}: {said}", case.what);
                for word in case.says {
                    assert!(said.contains(word), "{}: no `{word}` in: {said}", case.what);
                }
                assert!(!said.contains("panicked"), "{}: {said}", case.what);
                fs::remove_dir_all(&stage.folder).unwrap();
                before.assert_restored(SOON);
            }
        }
    });
}

#[test]
fn a_taken_port_names_the_program_that_has_it() {
    isolate(|| {
        let _taken = TcpListener::bind("127.0.0.1:8080").unwrap();
        let stage = Stage::new(User::Root, "hello", HELLO);
        let before = before(User::Root);
        let done = output(&mut stage.netyard(&["up"]));
        let said = text(&done);
        assert_eq!(done.status.code(), Some(1), "{said}");
        let us = std::process::id().to_string();
        for word in ["127.0.0.1:8080", &us] {
            assert!(said.contains(word), "no `{word}` in: {said}");
        }
        before.assert_restored(SOON);
    });
}

#[test]
fn a_yard_of_the_same_name_is_refused() {
    isolate(|| {
        let stage = Stage::up(User::Root, "hello", HELLO);
        fs::create_dir("/tmp/elsewhere").unwrap();
        let other = Stage { user: User::Root, folder: "/tmp/elsewhere/hello".into() };
        fs::create_dir(&other.folder).unwrap();
        other.write(HELLO);
        let done = output(&mut other.netyard(&["up", "-d"]));
        let said = text(&done);
        assert_eq!(done.status.code(), Some(1), "{said}");
        assert!(said.contains("hello"), "{said}");
        // The first is as it was.
        assert_eq!(stage.json(&["ps"]).as_array().unwrap().len(), 3);
    });
}

#[test]
fn a_missing_yard_file_is_named() {
    isolate(|| {
        let done = output(User::Root.command("netyard").args(["up", "/tmp/none/yard.toml"]));
        assert_eq!(done.status.code(), Some(1), "{}", text(&done));
        assert!(text(&done).contains("/tmp/none/yard.toml"), "{}", text(&done));
    });
}

#[test]
fn wrong_flags_are_usage_errors() {
    isolate(|| {
        let before = before(User::Root);
        for arguments in [
            &["run", "-p", "70000", "--", "true"][..],
            &["run", "-p", "9-8", "--", "true"],
            &["run", "-p", "0", "--", "true"],
            &["run"],
            &["no-such-verb"],
        ] {
            let done = output(User::Root.command("netyard").args(arguments));
            assert_eq!(done.status.code(), Some(2), "{arguments:?}: {}", text(&done));
            before.assert_restored(SOON);
        }
    });
}

#[test]
fn a_missing_tun_device_is_named() {
    isolate(|| {
        run(Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/dev/net"]));
        let before = before(User::Root);
        let done = output(User::Root.command("netyard").args(["run", "--", "true"]));
        assert!(!done.status.success());
        assert!(text(&done).contains("/dev/net/tun"), "{}", text(&done));
        before.assert_restored(SOON);
    });
}

#[test]
fn a_closed_tun_device_is_named_to_an_ordinary_user() {
    isolate(|| {
        // In its place a file that is closed to ordinary users on every machine, and whose owner
        // is not one of theirs in their user namespaces.
        run(Command::new("mount").args(["--bind", "/etc/shadow", "/dev/net/tun"]));
        let before = before(User::Ordinary);
        let done = output(User::Ordinary.command("netyard").args(["run", "--", "true"]));
        let said = text(&done);
        assert!(!done.status.success());
        assert!(said.contains("/dev/net/tun") && said.contains("make deps"), "{said}");
        before.assert_restored(SOON);
    });
}

#[test]
fn a_host_without_user_namespaces_says_which_setting() {
    isolate(|| {
        let limit = "/proc/sys/user/max_user_namespaces";
        // Only the limit of the user namespace that the test is in changes; without one of its
        // own, the test must not touch it.
        run(Command::new("unshare").args(["--user", "--map-root-user", "sh", "-c"]).arg(format!(
            "echo 0 > {limit} && if /run/testbed/bin/netyard run -- true 2>/run/testbed/said; \
             then exit 1; fi"
        )));
        let said = fs::read_to_string("/run/testbed/said").unwrap();
        assert!(said.contains("max_user_namespaces"), "{said}");
    });
}

#[test]
fn without_a_runtime_folder_an_own_one_is_made() {
    use std::os::unix::fs::PermissionsExt;

    isolate(|| {
        let mut command = User::Ordinary.command("netyard");
        command.env_remove("XDG_RUNTIME_DIR").args(["run", "--", "ls", "/tmp/netyard-1000"]);
        assert_eq!(run(&mut command), "", "its sockets are hidden from the program");
        let mode = fs::metadata("/tmp/netyard-1000").unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        // Somebody else's folder is not used.
        fs::remove_dir_all("/tmp/netyard-1000").unwrap();
        fs::create_dir("/tmp/netyard-1000").unwrap();
        fs::set_permissions("/tmp/netyard-1000", fs::Permissions::from_mode(0o777)).unwrap();
        let done = output(&mut command);
        assert!(
            !done.status.success() && text(&done).contains("/tmp/netyard-1000"),
            "{}",
            text(&done)
        );
    });
}
