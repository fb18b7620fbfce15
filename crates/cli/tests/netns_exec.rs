//! `netyard exec`: programs inside an instance, with and without a terminal.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod stage;

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use netyard_sys::pty::{self, Pty, Size};
use netyard_sys::wait;
use netyard_testbed::{Background, User, isolate, isolate_mapped, peer, run, wait_for};

use crate::stage::{SOON, Stage, signal, text};

/// One instance with nothing in it.
const BOX: &str = r#"
[networks.lan]

[instances.box]
run = ["sleep", "infinity"]
restart = "no"
"#;

fn stage(user: User) -> Stage {
    Stage::up(user, "boxes", BOX)
}

/// `netyard exec FLAGS box -- sh -c SCRIPT`.
fn exec(stage: &Stage, flags: &str, script: &str) -> Command {
    let flags = flags.split_whitespace();
    let arguments: Vec<_> =
        ["exec"].into_iter().chain(flags).chain(["box", "--", "sh", "-c", script]).collect();
    stage.netyard(&arguments)
}

/// Runs a command to its end with this standard input.
fn feed(mut command: Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_owned());
    // A program that ends without having read all is no failure.
    let writer = thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    let _ = writer.join().unwrap();
    output
}

/// A user at a terminal of 30 lines with 97 characters, whose session is one command.
struct Desk {
    terminal: Pty,
    /// The terminal's settings before there was a command.
    before: String,
    command: Child,
    shown: String,
}

impl Desk {
    fn sit(command: &Command) -> Self {
        let terminal = Pty::open().unwrap();
        let before = mode(&terminal);
        pty::set_size(terminal.controller.as_fd(), Size { rows: 30, columns: 97 }).unwrap();
        let end = || Stdio::from(terminal.terminal.try_clone().unwrap());
        // It executes the command in its own place, so the process id is the command's.
        let mut session = Command::new(peer("setsid"));
        session.arg("--ctty").arg(command.get_program()).args(command.get_args());
        session.current_dir(command.get_current_dir().unwrap());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => session.env(name, value),
                None => session.env_remove(name),
            };
        }
        let command = session.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        Self { terminal, before, command, shown: String::new() }
    }

    /// Looks at the terminal until `condition` gives a value.
    fn look<T>(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> Option<T>) -> T {
        wait_for(what, SOON, || {
            let value = condition(self);
            let controller = self.terminal.controller.as_fd();
            let mut screen = File::from(controller.try_clone_to_owned().unwrap());
            while wait::readable([controller], Some(Duration::ZERO)).unwrap() == [true] {
                let mut piece = [0; 4096];
                let len = screen.read(&mut piece).unwrap();
                self.shown.push_str(&String::from_utf8_lossy(&piece[..len]));
            }
            value
        })
    }

    fn see(&mut self, text: &str) {
        self.look(&format!("`{text}` on the terminal"), |desk| {
            desk.shown.contains(text).then_some(())
        });
    }

    fn type_in(&self, keys: &[u8]) {
        File::from(self.terminal.controller.try_clone().unwrap()).write_all(keys).unwrap();
    }

    /// The exit code, once everything is shown.
    fn leave(&mut self) -> Option<i32> {
        self.look("the end of exec", |desk| desk.command.try_wait().unwrap()).code()
    }

    /// The host's process id of the program that exec runs.
    fn program(&self) -> u32 {
        let mut find = Command::new(peer("pgrep"));
        run(find.arg("--parent").arg(self.command.id().to_string())).trim().parse().unwrap()
    }
}

/// A terminal's settings, as stty(1) saves them.
fn mode(terminal: &Pty) -> String {
    let terminal = terminal.terminal.try_clone().unwrap();
    let done = Command::new(peer("stty")).arg("-g").stdin(terminal).output().unwrap();
    assert!(done.status.success(), "{}", text(&done));
    text(&done)
}

fn is_alive(pid: u32) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap()
}

/// Says `ready`, and then waits for what its traps say, or for ever.
fn waiting(traps: &str) -> String {
    format!("{traps}; echo ready; while :; do sleep 0.1; done")
}

fn terminal(user: User) {
    let stage = stage(user);
    let mut desk = Desk::sit(&exec(&stage, "-it", "tty; stty size; exit 42"));
    assert_eq!(desk.leave(), Some(42), "{}", desk.shown);
    let shown = &desk.shown;
    assert!(shown.contains("/dev/pts/") && shown.contains("30 97"), "{shown}");
    assert_eq!(mode(&desk.terminal), desk.before);

    // What is typed is echoed by the inner terminal and read by the program.
    let mut desk = Desk::sit(&exec(&stage, "-it", "echo ready; cat; echo bye"));
    desk.see("ready");
    desk.type_in(b"hello\r");
    desk.see("hello\r\nhello\r\n");
    desk.type_in(b"\x04");
    assert_eq!(desk.leave(), Some(0), "{}", desk.shown);
    assert!(desk.shown.contains("bye"));

    // Ctrl-C and a new size are for the program.
    let script = waiting("trap 'echo caught; exit 7' INT; trap 'stty size' WINCH");
    let mut desk = Desk::sit(&exec(&stage, "-it", &script));
    desk.see("ready");
    pty::set_size(desk.terminal.controller.as_fd(), Size { rows: 50, columns: 111 }).unwrap();
    desk.see("50 111");
    assert_ne!(mode(&desk.terminal), desk.before, "raw while the program runs");
    desk.type_in(b"\x03");
    assert_eq!(desk.leave(), Some(7), "{}", desk.shown);
    assert!(desk.shown.contains("caught"));
    assert_eq!(mode(&desk.terminal), desk.before);
}

#[test]
fn a_terminal_is_the_programs_own() {
    isolate(|| terminal(User::Root));
}

#[test]
fn a_terminal_is_the_programs_own_for_an_ordinary_user() {
    isolate(|| terminal(User::Ordinary));
}

#[test]
fn a_terminal_is_the_programs_own_inside_a_user_namespace() {
    isolate_mapped(|| terminal(User::Root));
}

#[test]
fn a_terminal_without_input_still_passes_ctrl_c_on() {
    isolate(|| {
        let stage = stage(User::Root);
        let script = waiting("trap 'echo caught; exit 7' INT");
        let mut desk = Desk::sit(&exec(&stage, "-t", &script));
        desk.see("ready");
        desk.type_in(b"\x03");
        assert_eq!(desk.leave(), Some(7), "{}", desk.shown);
    });
}

#[test]
fn a_terminal_shows_everything_that_was_said_before_the_end() {
    isolate(|| {
        let stage = stage(User::Root);
        let mut desk = Desk::sit(&exec(&stage, "-it", "seq 20000; exit 3"));
        assert_eq!(desk.leave(), Some(3));
        let shown = &desk.shown;
        let numbers = (1..=20000).map(|number| format!("{number}\r\n")).collect::<String>();
        assert!(shown.contains(&numbers), "{} bytes", shown.len());
    });
}

#[test]
fn a_terminal_takes_input_from_a_pipe() {
    isolate(|| {
        for user in User::ALL {
            let stage = Stage::up(user, &format!("boxes-{user:?}").to_lowercase(), BOX);
            // With and without an end of the last line.
            for input in ["one\ntwo\n", "one\ntwo", ""] {
                let done = feed(exec(&stage, "-it", "stty -echo; cat; echo end"), input.as_bytes());
                assert!(done.status.success(), "{input:?}: {}", text(&done));
                let said = text(&done).replace("\r\n", "\n");
                assert!(said.contains(&format!("{input}end\n")), "{input:?}: {said:?}");
            }
            // More than any buffer holds.
            let lines = "a line of forty characters, its end aside\n".repeat(25_000);
            let done = feed(exec(&stage, "-it", "stty -echo; cksum"), lines.as_bytes());
            let wanted = text(&feed(Command::new(peer("cksum")), lines.as_bytes()));
            assert!(text(&done).contains(wanted.trim()), "{wanted} {}", text(&done));
        }
    });
}

#[test]
fn input_that_nobody_reads_holds_no_output_up() {
    isolate(|| {
        let stage = stage(User::Root);
        let input = "a line that nobody reads\n".repeat(100_000);
        let script = "stty -echo; seq 100000; exit 5";
        let done = feed(exec(&stage, "-it", script), input.as_bytes());
        assert_eq!(done.status.code(), Some(5), "{}", String::from_utf8_lossy(&done.stderr));
        assert!(text(&done).trim_end().ends_with("100000"));
    });
}

fn assert_gone(pid: u32) {
    wait_for("the program's end", SOON, || (!is_alive(pid)).then_some(()));
}

#[test]
fn a_program_ends_with_the_terminal_that_it_is_shown_on() {
    isolate(|| {
        for user in User::ALL {
            let stage = Stage::up(user, &format!("boxes-{user:?}").to_lowercase(), BOX);
            for flags in ["-it", "-t"] {
                // One that goes by itself, and one that has to be made to.
                for (traps, code) in [("trap 'exit 4' HUP", 4), ("trap '' HUP TERM", 128 + 9)] {
                    let mut desk = Desk::sit(&exec(&stage, flags, &waiting(traps)));
                    desk.see("ready");
                    let program = desk.program();
                    let Desk { terminal, mut command, .. } = desk;
                    drop(terminal);
                    let status = wait_for("the end of exec", SOON, || command.try_wait().unwrap());
                    assert_eq!(status.code(), Some(code), "{flags} {traps}");
                    assert_gone(program);
                }
            }
            // Killed, exec cannot do anything more.
            let mut desk = Desk::sit(&exec(&stage, "-it", &waiting("trap '' HUP TERM")));
            desk.see("ready");
            let program = desk.program();
            desk.command.kill().unwrap();
            desk.command.wait().unwrap();
            assert_gone(program);
        }
    });
}

#[test]
fn a_program_ends_when_nobody_reads_what_its_terminal_shows() {
    isolate(|| {
        let stage = stage(User::Root);
        let mut command = exec(&stage, "-t", "while :; do echo more; done");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut first = [0; 4];
        child.stdout.take().unwrap().read_exact(&mut first).unwrap();
        let status = wait_for("the end of exec", SOON, || child.try_wait().unwrap());
        assert_eq!((&first, status.code()), (b"more", Some(128 + 1)));
    });
}

#[test]
fn a_signal_to_exec_is_for_the_program() {
    isolate(|| {
        for user in User::ALL {
            let stage = Stage::up(user, &format!("boxes-{user:?}").to_lowercase(), BOX);
            for flags in ["", "-i", "-t"] {
                let traps = "trap 'exit 10' TERM; trap 'exit 11' INT; trap 'exit 12' HUP";
                for (name, code) in [("TERM", 10), ("INT", 11), ("HUP", 12)] {
                    let mut command = Background::start(&mut exec(&stage, flags, &waiting(traps)));
                    command.wait_for_line("ready", SOON);
                    command.signal(name);
                    let status = command.wait(SOON);
                    assert_eq!(status.code(), Some(code), "{flags} {name}");
                }
            }
            for flags in ["", "-t"] {
                let done = feed(exec(&stage, flags, "kill -TERM $$"), b"");
                assert_eq!(done.status.code(), Some(128 + 15), "{}", text(&done));
            }
        }
    });
}

#[test]
fn an_interrupt_reaches_the_program_once_whoever_sends_it() {
    isolate(|| {
        let stage = stage(User::Root);
        let script = waiting("trap 'echo caught' INT; trap 'exit 8' QUIT");
        // Whatever the standard input is, the terminal's keys are for the program too.
        for flags in ["", "-i"] {
            let inner = exec(&stage, flags, &script);
            let mut command = Command::new("sh");
            command.args(["-c", "exec \"$@\" </dev/null", "sh"]).arg(inner.get_program());
            command
                .args(inner.get_args())
                .envs(inner.get_envs().filter_map(|(k, v)| Some((k, v?))));
            command.current_dir(&stage.folder);
            let mut desk = Desk::sit(&command);
            desk.see("ready");
            desk.type_in(b"\x03");
            desk.see("caught");
            desk.type_in(b"\x1c");
            assert_eq!(desk.leave(), Some(8), "{}", desk.shown);
            assert_eq!(desk.shown.matches("caught").count(), 1, "{}", desk.shown);
        }
        // In the foreground of a terminal, but from elsewhere.
        let mut desk = Desk::sit(&exec(&stage, "-i", &script));
        desk.see("ready");
        signal(desk.command.id(), "INT");
        desk.see("caught");
        signal(desk.command.id(), "QUIT");
        assert_eq!(desk.leave(), Some(8), "{}", desk.shown);
    });
}

#[test]
fn standard_streams_are_the_programs_own_without_a_terminal() {
    isolate(|| {
        for user in User::ALL {
            let stage = Stage::up(user, &format!("boxes-{user:?}").to_lowercase(), BOX);
            let done = feed(exec(&stage, "-i", "cat; echo oops >&2; exit 6"), b"one\ntwo");
            assert_eq!(done.status.code(), Some(6), "{}", text(&done));
            assert_eq!((&*done.stdout, &*done.stderr), (&b"one\ntwo"[..], &b"oops\n"[..]));
            let done = feed(exec(&stage, "", "cat"), b"not for the program");
            assert!(done.status.success() && done.stdout.is_empty(), "{}", text(&done));
        }
    });
}

#[test]
fn a_program_that_cannot_start_is_named_and_ends_as_in_a_shell() {
    isolate(|| {
        for user in User::ALL {
            let stage = Stage::up(user, &format!("boxes-{user:?}").to_lowercase(), BOX);
            for (name, mode, content) in
                [("text", 0o644, "no program"), ("lost", 0o755, "#!/no/interpreter\n")]
            {
                let path = stage.folder.join(name);
                fs::write(&path, content).unwrap();
                fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            }
            for (program, code, why) in [
                ("no-such-program", 127, "run no-such-program: no such program in"),
                ("./none", 127, "there is no file"),
                ("./lost", 127, "or the interpreter that it names, is not there"),
                ("./text", 126, "is not executable\nnext: chmod +x"),
                ("/etc", 126, "/etc is a folder"),
            ] {
                for flags in [&["exec"][..], &["exec", "-it"]] {
                    let arguments = [flags, &["box", "--", program]].concat();
                    let done = feed(stage.netyard(&arguments), b"");
                    let said = text(&done);
                    assert_eq!(done.status.code(), Some(code), "{user:?} {flags:?} {said}");
                    assert!(said.contains(why), "{user:?} {flags:?} {said}");
                }
                let done = feed(stage.netyard(&["run", "--", program]), b"");
                let said = text(&done);
                assert_eq!(done.status.code(), Some(code), "{user:?} run {said}");
                assert!(said.contains(why), "{user:?} run {said}");
            }
            // What is wrong with the instance is nothing of the program's.
            let done = feed(stage.netyard(&["exec", "nobody", "--", "true"]), b"");
            assert_eq!(done.status.code(), Some(1), "{}", text(&done));
        }
    });
}

#[test]
fn an_instance_whose_program_has_gone_says_so() {
    isolate(|| {
        let stage = Stage::new(User::Root, "boxes", BOX);
        let program = stage.folder.join("program");
        fs::copy(peer("sleep"), &program).unwrap();
        stage.write(&BOX.replace("\"sleep\"", "\"./program\""));
        run(&mut stage.netyard(&["up", "-d"]));
        run(&mut stage.netyard(&["stop", "box"]));
        fs::remove_file(&program).unwrap();
        let done = feed(stage.netyard(&["start", "box"]), b"");
        assert_eq!(done.status.code(), Some(1), "{}", text(&done));
        let status = stage.instance("box");
        assert_eq!(status["state"], "failed", "{status}");
        let why = status["exit"].as_str().unwrap();
        assert!(why.contains("there is no file") && why.contains("program"), "{status}");
        assert!(run(&mut stage.netyard(&["ps"])).contains(why));
    });
}
