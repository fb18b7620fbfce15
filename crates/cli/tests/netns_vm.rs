//! Virtual machines: `netyard run --vm` and `kind = "vm"`, with a real QEMU and a kernel of the
//! machine that the tests run on. Without KVM that is slow, so each machine is asked many things.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
#![allow(clippy::print_stdout, reason = "how long a machine takes to answer is of interest")]

mod stage;
#[path = "stage/vm.rs"]
mod vm;

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Instant;

use netyard_testbed::{Background, User, http, isolate, output, peer, run, wait_for};

use crate::stage::{SOON, Stage, before, number, signal, text, who};
use crate::vm::{BOOTED, initrd, needs_qemu, qemus};

const FORWARDED: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8081);

fn answers_over_its_forward(user: User) {
    needs_qemu();
    let before = before(user);
    let mut command = user.command("netyard");
    command.args(["run", "--vm", "-p", "8081", "--"]);
    command.args(["netyard-whoami", "-a", "0.0.0.0", "-p", "8081"]);
    let started = Instant::now();
    let mut instance = Background::start(&mut command);
    wait_for("an answer from the machine", BOOTED, || who(FORWARDED).ok());
    println!("first answer after {:.1?}", started.elapsed());
    assert_eq!(http::get(FORWARDED, "/users").unwrap().body.trim(), "You're my first user");
    instance.wait_for_line("Listening on http://0.0.0.0:8081", SOON);

    let ps = output(user.command("netyard").args(["ps", "--json"]));
    let ps: serde_json::Value = serde_json::from_slice(&ps.stdout).unwrap();
    let vm = &ps[0]["vm"];
    assert_eq!((number(&vm["memory"]), number(&vm["cpus"])), (512, 1), "{ps}");
    assert_eq!(vm["state"], "running", "{ps}");
    let slow = ps[0]["warnings"].to_string().contains("without KVM");
    assert_eq!(vm["accelerator"] == "tcg", slow, "{ps}");

    let exec = output(user.command("netyard").args(["exec", "netyard-whoami", "--", "true"]));
    assert_eq!(exec.status.code(), Some(2), "{}", text(&exec));
    assert!(text(&exec).contains("is a virtual machine"), "{}", text(&exec));

    // The program gets the signal, and ends as it likes.
    instance.signal("INT");
    assert_eq!(instance.wait(SOON).code(), Some(0), "{}", instance.output());
    before.assert_restored(SOON);
}

#[test]
fn a_program_in_a_machine_answers_over_its_forward() {
    isolate(|| answers_over_its_forward(User::Root));
}

#[test]
fn a_program_in_a_machine_answers_for_an_ordinary_user() {
    isolate(|| answers_over_its_forward(User::Ordinary));
}

#[test]
fn the_programs_exit_code_and_both_outputs_come_back() {
    isolate(|| {
        needs_qemu();
        let before = before(User::Root);
        let script = "echo out; echo err >&2; echo $NAME $PWD; read x || echo no input; exit 42";
        let done = output(User::Root.command("netyard").args([
            "run",
            "--vm",
            "-C",
            "/usr/share",
            "-e",
            "NAME=value",
            "--",
            "sh",
            "-c",
            script,
        ]));
        assert_eq!(done.status.code(), Some(42), "{}", text(&done));
        assert_eq!(
            String::from_utf8_lossy(&done.stdout),
            "out\nvalue /usr/share\nno input\n",
            "{}",
            text(&done)
        );
        assert!(String::from_utf8_lossy(&done.stderr).contains("err\n"), "{}", text(&done));
        before.assert_restored(SOON);
    });
}

const MIXED: &str = r#"
[instances.server]
run = ["netyard-traffic", "serve", "0.0.0.0:7000", "[::]:7001"]

[instances.web]
kind = "vm"
memory = "384M"
run = ["netyard-whoami", "-a", "0.0.0.0", "-p", "8080"]
restart = "always"

[instances.caller]
kind = "vm"
run = ["curl", "-sS", "--fail", "-4", "http://server.lan:7000/",
    "--next", "-sS", "--fail", "-6", "http://server.lan:7001/"]
needs = ["server"]
restart = "no"

[services.web]
instances = "web"
port = 8080
publish = "127.0.0.1:8080"
check = { http = "/", every = "1s", timeout = "5s" }
"#;

#[test]
fn machines_and_processes_of_a_yard_reach_each_other_by_name() {
    isolate(|| {
        needs_qemu();
        drop(peer("curl"));
        let user = User::Root;
        let stage = Stage::new(user, "mixed", MIXED);
        let up = output(&mut stage.netyard(&["up", "--wait", "--timeout", "3m"]));
        assert!(
            up.status.success(),
            "{}\n{}",
            text(&up),
            text(&output(&mut stage.netyard(&["logs"])))
        );

        // From a machine to a process.
        wait_for("the caller's end", BOOTED, || {
            stage.instance("caller")["exit"].as_str().map(drop)
        });
        let log = stage.say(&["logs", "caller"]);
        assert_eq!(log.matches("hello from outside").count(), 2, "{log}");
        assert_eq!(stage.instance("caller")["exit"], "code 0");
        // From a process to a machine, by its own name and as a service; and from the host.
        for name in ["http://web.lan:8080/", "http://192.168.127.253:8080/"] {
            let done = stage.inside(
                "server",
                &["curl", "-sS", "--fail", "--retry", "5", "--retry-all-errors", name],
            );
            assert!(text(&done).contains("My id is"), "{name}: {}", text(&done));
        }
        let first = wait_for("web", BOOTED, || who(stage::PUBLISHED).ok());
        assert_eq!(qemus().len(), 1);
        let inspected = stage.say(&["inspect", "web"]);
        assert!(inspected.contains("384 MiB, 1 cpu"), "{inspected}");

        // It starts again when its program ends, with the same address and another program.
        let was = stage.instance("web")["addresses"].clone();
        signal(stage.pid("web"), "TERM");
        wait_for("another program in the machine", BOOTED, || {
            who(stage::PUBLISHED).ok().filter(|id| *id != first)
        });
        let web = stage.instance("web");
        assert_eq!(web["addresses"], was, "{web}");
        assert!(number(&web["restarts"]) >= 1, "{web}");

        // A network process that dies is replaced under the running machine.
        let second = wait_for("web", BOOTED, || who(stage::PUBLISHED).ok());
        signal(stage.network_pid(), "KILL");
        wait_for("the same program through a new network", BOOTED, || {
            who(stage::PUBLISHED).ok().filter(|id| *id == second)
        });

        // Nothing outlives the keeper.
        signal(stage.keeper_pid(), "KILL");
        wait_for("no QEMU", SOON, || qemus().is_empty().then_some(()));
    });
}

/// A sector that says "booted by itself" on the first serial line and stops there.
fn boot_sector() -> Vec<u8> {
    // cld; mov si, text; again: cs lodsb; test al, al; jz stop; mov dx, 0x3f8; out dx, al;
    // jmp again; stop: hlt; jmp stop.
    let mut sector = vec![
        0xfc, 0xbe, 0x13, 0x7c, 0x2e, 0xac, 0x84, 0xc0, 0x74, 0x06, 0xba, 0xf8, 0x03, 0xee, 0xeb,
        0xf4, 0xf4, 0xeb, 0xfd,
    ];
    sector.extend(b"booted by itself\n\0");
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    // A disk, as the firmware sees it, has more than one.
    sector.resize(1 << 20, 0);
    sector
}

#[test]
fn an_image_boots_by_itself_and_is_switched_off() {
    isolate(|| {
        needs_qemu();
        let user = User::Root;
        let before = before(user);
        let folder = user.folder("image");
        std::fs::write(folder.join("disk"), boot_sector()).unwrap();
        let mut command = user.command("netyard");
        command.args(["run", "--vm", "--memory", "64M", "--drive", "disk"]).current_dir(&folder);
        let mut machine = Background::start(&mut command);
        machine.wait_for_line("booted by itself", BOOTED);
        // It does not listen to the button that is pressed; the second signal cuts the power.
        machine.signal("INT");
        machine.signal("TERM");
        assert_eq!(machine.wait(SOON).code(), Some(128 + 9), "{}", machine.output());
        std::fs::remove_dir_all(folder).unwrap();
        before.assert_restored(SOON);
    });
}

#[test]
fn an_image_gets_its_addresses_and_names_from_the_gateway() {
    isolate(|| {
        needs_qemu();
        let user = User::Root;
        let before = before(user);
        let folder = user.folder("image");
        let (kernel, initrd) = initrd(&folder);
        let mut server = user.command("netyard");
        server.args(["run", "--network", "lab", "--name", "server", "--"]);
        server.args(["netyard-traffic", "serve", "0.0.0.0:7000"]);
        let mut server = Background::start(&mut server);
        server.wait_for_line("listening", SOON);
        let mut machine = user.command("netyard");
        machine.args(["run", "--vm", "--network", "lab", "--ip-address", "192.168.127.77"]);
        machine.arg("--kernel").arg(kernel).arg("--initrd").arg(initrd);
        let mut machine = Background::start(&mut machine);
        machine.wait_for_line("the address is 192.168.127.77/24", BOOTED);
        machine.wait_for_line("hello from outside", BOOTED);
        assert_eq!(machine.wait(BOOTED).code(), Some(0), "{}", machine.output());
        server.signal("TERM");
        server.wait(SOON);
        std::fs::remove_dir_all(folder).unwrap();
        before.assert_restored(SOON);
    });
}

/// What `netyard run` says to arguments that cannot be.
fn refused(arguments: &[&str], change: impl FnOnce(&mut Command)) -> (Option<i32>, String) {
    let mut command = User::Root.command("netyard");
    command.arg("run").args(arguments);
    change(&mut command);
    let done = output(&mut command);
    (done.status.code(), text(&done))
}

#[test]
fn what_is_missing_is_one_clear_error() {
    isolate(|| {
        needs_qemu();
        let before = before(User::Root);
        let folder = User::Root.folder("missing");
        let file = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let (code, said) = refused(&["--vm", "--kernel", "/no/vmlinuz", "--", "sh"], |_| {});
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("/no/vmlinuz") && said.contains("next: "), "{said}");

        let text = file("text", "no kernel");
        let (code, said) = refused(&["--vm", "--kernel", &text, "--", "sh"], |_| {});
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("bzImage"), "{said}");

        let (code, said) = refused(&["--vm", "--drive", "/no/disk"], |_| {});
        assert_eq!(code, Some(1), "{said}");
        let (code, said) = refused(&["--vm", "--drive", &text, "--", "sh"], |_| {});
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("runs what is in it"), "{said}");

        let script = file("script", "#!/bin/sh\n");
        run(Command::new("chmod").args(["+x", &script]));
        let (code, said) = refused(&["--vm", "--", &script], |_| {});
        assert_eq!(code, Some(126), "{said}");
        assert!(said.contains("is a script"), "{said}");
        let (code, said) = refused(&["--vm", "--", "/no/program"], |_| {});
        assert_eq!(code, Some(127), "{said}");
        assert!(said.contains("there is no file /no/program"), "{said}");
        let (code, said) = refused(&["--vm", "--", &text], |_| {});
        assert_eq!(code, Some(126), "{said}");
        assert!(said.contains("is not executable"), "{said}");

        let (code, said) = refused(&["--vm", "--", "/bin/sh"], |command| {
            command.env("PATH", "/nowhere");
        });
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("apt install qemu-system-x86"), "{said}");
        std::fs::remove_dir_all(folder).unwrap();
        before.assert_restored(SOON);
    });
}
