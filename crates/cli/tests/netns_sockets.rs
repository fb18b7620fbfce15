//! Forwards that begin at Unix sockets of the host.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod stage;

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::thread;

use netyard_testbed::{Background, User, isolate, output, run, runtime_root, wait_for};

use crate::stage::{SOON, Stage, number, signal, text};

/// Says all that it hears, and at the end who has said it. One port is open to its own loopback alone.
const ECHO: &str = r#"
import socket, threading

def answer(connection, client):
    try:
        while part := connection.recv(65536):
            connection.sendall(part)
        connection.sendall(client[0].encode())
    except OSError:
        pass
    connection.close()

def serve(listener):
    while True:
        threading.Thread(target=answer, args=listener.accept()).start()

# Who is answered by one finds both.
for listener in [socket.create_server((address, 7000 + number)) for number, address in enumerate(["0.0.0.0", "127.0.0.1"])]:
    threading.Thread(target=serve, args=[listener]).start()
"#;

/// A yard with one instance that echoes, and these lines of its own.
fn yard(lines: &str) -> String {
    format!(
        "[networks.lan]\nsubnet = \"192.168.77.0/24\"\n[instances.web]\n\
         run = [\"python3\", \"-u\", \"echo.py\"]\naddress = \"192.168.77.10\"\nrestart = \"no\"\n{lines}\n"
    )
}

fn stage(user: User, name: &str, yard: &str) -> Stage {
    let stage = Stage::new(user, name, yard);
    fs::write(stage.folder.join("echo.py"), ECHO).unwrap();
    stage
}

/// Sends something by a socket, and takes it and what else is said until the end.
fn said(path: &Path, content: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(SOON))?;
    let mut sending = stream.try_clone()?;
    let mut heard = Vec::new();
    thread::scope(|scope| {
        let sender = scope.spawn(move || {
            sending.write_all(content)?;
            sending.shutdown(Shutdown::Write)
        });
        stream.read_to_end(&mut heard)?;
        sender.join().unwrap()
    })?;
    Ok(heard)
}

/// Whom the instance sees.
fn client(path: &Path) -> Option<String> {
    said(path, b"").ok().and_then(|heard| String::from_utf8(heard).ok()).filter(|it| !it.is_empty())
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

#[test]
fn clients_of_a_socket_reach_an_instance_spliced_and_by_frames() {
    isolate(|| {
        for user in User::ALL {
            let lines = r#"forwards = ["unix:web.sock:7000", "unix:framed.sock:7000/mode=666/no-splice", "unix:own.sock:7001/loopback"]"#;
            let stage = stage(user, "sockets", &yard(lines));
            run(&mut stage.netyard(&["up", "-d", "--wait"]));
            let at = |name: &str| stage.folder.join(name);
            let mode = |name: &str| fs::metadata(at(name)).unwrap().permissions().mode() & 0o777;
            assert_eq!((mode("web.sock"), mode("framed.sock")), (0o600, 0o666));
            let owner = |name: &str| fs::metadata(at(name)).unwrap().uid();
            assert_eq!(owner("web.sock"), owner("framed.sock"));

            let sees = [
                ("web.sock", "192.168.77.10"),
                ("framed.sock", "192.168.77.1"),
                ("own.sock", "127.0.0.1"),
            ];
            let content: Vec<u8> = (0..8_000_003_u32).map(|at| (at % 251) as u8).collect();
            for (name, who) in sees {
                // The first may go by frames: sockets inside are on their way.
                wait_for(name, SOON, || client(&at(name)).filter(|it| it == who));
                let heard = said(&at(name), &content).unwrap();
                assert!(heard.len() > content.len(), "{name}: {}", heard.len());
                let (back, seen) = heard.split_at(content.len());
                assert!(back == content, "{name}: what comes back is something else");
                assert_eq!(seen, who.as_bytes(), "{name}");
            }
            let forwards = stage.json(&["forward", "ls"]);
            let place = at("web.sock");
            let mut all = forwards.as_array().unwrap().iter();
            let web = all.find(|it| it["forward"]["socket"]["path"] == place.to_str().unwrap());
            let web = web.unwrap_or_else(|| panic!("{forwards}"));
            assert!(number(&web["connections"]) >= 2, "{web}");
            assert_eq!(web["forward"]["socket"]["mode"], 0o600);
            assert_eq!(web["addresses"], serde_json::json!([]));
            let listed = stage.say(&["forward", "ls"]);
            assert!(listed.contains(&format!("unix:{} ", place.display())), "{listed}");
            let explained = stage.say(&["explain"]);
            assert!(explained.contains("own.sock:7001/tcp/loopback"), "{explained}");

            // Another process of the network takes them over as they are.
            let file = fs::metadata(at("web.sock")).unwrap().ino();
            stage.kill_network();
            wait_for("the network to be there again", SOON, || client(&at("framed.sock")));
            assert_eq!(fs::metadata(at("web.sock")).unwrap().ino(), file);

            run(&mut stage.netyard(&["down"]));
            for (name, _) in sees {
                assert!(!at(name).exists(), "{name}");
            }
            fs::remove_dir_all(&stage.folder).unwrap();
        }
    });
}

#[test]
fn sockets_come_and_go_while_the_yard_runs_and_harm_no_files() {
    isolate(|| {
        let user = User::Ordinary;
        let stage = stage(user, "come", &yard(""));
        run(&mut stage.netyard(&["up", "-d", "--wait"]));
        let path = stage.folder.join("added.sock");
        let forward = format!("unix:{}:7000", path.display());
        // A path that is not absolute is of the folder where the command runs.
        let mut add = stage.netyard(&["forward", "add", "web", "unix:added.sock:7000"]);
        let told = run(add.current_dir(&stage.folder));
        assert!(told.contains(&format!("forward {forward}/tcp of instance web is open")), "{told}");
        assert!(stage.say(&["forward", "add", "web", &forward]).contains("already"));
        wait_for("the instance", SOON, || client(&path));

        // Whoever has the path keeps it.
        let file = stage.folder.join("file");
        fs::write(&file, "kept").unwrap();
        let theirs = stage.folder.join("theirs.sock");
        let _listener = UnixListener::bind(&theirs).unwrap();
        for (taken, code, why) in [
            (&path, 1, "the forward unix:/tmp/come/added.sock:7000/tcp of instance web is there"),
            (&file, 1, "there is something of that name"),
            (&theirs, 1, "there is something of that name"),
            (&stage.folder.join("nowhere/at.sock"), 1, "No such file or directory"),
            (&stage.folder.join("x".repeat(300)), 2, "the name of the file is too long"),
        ] {
            let wanted = format!("unix:{}:7001", taken.display());
            let done = output(&mut stage.netyard(&["forward", "add", "web", &wanted]));
            assert_eq!(done.status.code(), Some(code));
            assert!(text(&done).contains(why), "{}", text(&done));
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
        assert!(is_socket(&theirs));

        // A path that is longer than an address of a socket is one like any other.
        let deep = stage.folder.join("d".repeat(120));
        run(user.peer("mkdir").arg(&deep));
        let long = deep.join("long.sock");
        let forward_long = format!("unix:{}:7000", long.display());
        stage.say(&["forward", "add", "web", &forward_long]);
        let through = Path::new("/tmp/come/short");
        std::os::unix::fs::symlink(&deep, through).unwrap();
        wait_for("the long one", SOON, || client(&through.join("long.sock")));
        stage.say(&["forward", "rm", "web", &forward_long]);
        assert!(!long.exists());

        // A keeper that is killed leaves them behind, and the next one takes their place.
        stage.write(&yard("forwards = [\"unix:added.sock:7000\"]"));
        run(&mut stage.netyard(&["up", "-d", "--wait"]));
        let keeper = stage.keeper_pid();
        signal(keeper, "KILL");
        wait_for("nobody to listen", SOON, || UnixStream::connect(&path).is_err().then_some(()));
        assert!(is_socket(&path));
        run(&mut stage.netyard(&["up", "-d", "--wait"]));
        wait_for("the next keeper's", SOON, || client(&path));

        // Who may connect changes with the file.
        for (words, mode) in [("/mode=660", 0o660), ("/mode=604", 0o604), ("", 0o600)] {
            stage.write(&yard(&format!("forwards = [\"unix:added.sock:7000{words}\"]")));
            run(&mut stage.netyard(&["up", "-d", "--wait"]));
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
            wait_for(words, SOON, || client(&path));
        }
        stage.say(&["forward", "rm", "web", &forward]);
        assert!(!path.exists());
        run(&mut stage.netyard(&["down"]));
    });
}

#[test]
fn without_a_network_there_are_no_sockets_and_they_come_again_with_it() {
    isolate(|| {
        for user in User::ALL {
            let lines = "forwards = [\"unix:web.sock:7000\"]\n[services.echo]\ninstances = \"web\"\n\
                 port = 7000\npublish = \"127.0.0.1:7070\"";
            let stage = stage(user, "lost", &yard(lines));
            run(&mut stage.netyard(&["up", "-d", "--wait"]));
            let path = stage.folder.join("web.sock");
            wait_for("the instance", SOON, || client(&path));
            let networks = runtime_root(user).join(".networks");
            let folder = fs::read_dir(&networks).unwrap().next().unwrap().unwrap().path();
            let aside = runtime_root(user).with_file_name("aside");
            // No process of the network can be started while a file is in the place of its folder.
            let block = || {
                fs::rename(&folder, &aside).unwrap();
                fs::write(&folder, "").unwrap();
            };
            let unblock = || {
                fs::remove_file(&folder).unwrap();
                fs::remove_dir_all(&aside).unwrap();
            };

            let process = stage.network_pid();
            block();
            signal(process, "KILL");
            wait_for("the socket to go", SOON, || (!path.exists()).then_some(()));
            unblock();
            wait_for("the network to be there again", SOON, || client(&path));

            block();
            let other = yard(lines).replace("subnet", "mtu = 1400\nsubnet");
            stage.write(&other);
            let done = output(&mut stage.netyard(&["up", "-d", "--wait"]));
            assert!(!done.status.success(), "{}", text(&done));
            assert!(!path.exists());
            unblock();
            // The file as it was, all of which was lost.
            stage.write(&yard(lines));
            run(&mut stage.netyard(&["up", "-d", "--wait"]));
            wait_for("everything to be there again", SOON, || client(&path));
            wait_for("an answer at the published port", SOON, || {
                let mut stream = TcpStream::connect("127.0.0.1:7070").ok()?;
                stream.shutdown(Shutdown::Write).ok()?;
                let mut said = Vec::new();
                stream.read_to_end(&mut said).ok().filter(|len| *len > 0)
            });
            run(&mut stage.netyard(&["down"]));
            assert!(!path.exists());
            fs::remove_dir_all(&stage.folder).unwrap();
        }
    });
}

#[test]
fn a_program_that_is_run_has_one_too() {
    isolate(|| {
        for user in User::ALL {
            let folder = user.folder(&format!("run-{user:?}").to_lowercase());
            fs::write(folder.join("echo.py"), ECHO).unwrap();
            let mut program = user.command("netyard");
            program.args(["run", "-p", "unix:run.sock:7000/mode=660", "--"]);
            program.args(["python3", "-u", "echo.py"]).current_dir(&folder);
            let mut running = Background::start(&mut program);
            let path = folder.join("run.sock");
            wait_for("the program", SOON, || client(&path));
            running.signal("TERM");
            running.wait(SOON);
            assert!(!path.exists());
        }
    });
}

#[test]
fn what_cannot_be_is_said_before_anything_starts() {
    isolate(|| {
        for (forward, why) in [
            ("unix:web.sock", "is not a forward: expected unix:PATH:PORT"),
            ("unix:web.sock:80/udp", "a Unix socket takes connections, and no datagrams"),
            ("unix:web.sock:80/proxy-v2", "have no address to tell of"),
            ("unix:web.sock:80/mode=rw", "are no permissions of a socket"),
        ] {
            let mut command: Command = User::Ordinary.command("netyard");
            let done = output(command.args(["forward", "add", "web", forward]));
            assert!(done.status.code() == Some(2) && text(&done).contains(why), "{}", text(&done));
        }
    });
}
