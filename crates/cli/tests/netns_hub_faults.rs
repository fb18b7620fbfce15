//! What goes wrong around a hub: its disk, its database, copied keys, slow peers, and what stands between.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod outer;

use std::fs;
use std::path::Path;

use netyard_testbed::{Background, Namespace, http, isolate, output, peer, run, wait_for};
use serde_json::Value;

use crate::outer::{
    HUB, Outer, PATIENCE, Talk, is_reached, joined_peer, json, netyard, peers, ping, start_hub,
    start_peer, token, transfer,
};

/// What the hub answers to a question.
fn asked(path: &str) -> http::Response {
    http::unix(Path::new("/run/netyard/.hub-hub/hub.sock"), "GET", path).unwrap()
}

fn health() -> http::Response {
    asked("/v1/health")
}

fn connected(outer: &Outer, name: &str) -> bool {
    peers(outer).iter().any(|peer| peer["name"] == name && peer["connected"] == true)
}

fn audit(outer: &Outer) -> Vec<Value> {
    let deeds = json(&mut netyard(&outer.hub, &["hub", "audit", "--json"]));
    deeds.as_array().unwrap().clone()
}

/// A hub whose state is on a disk of one MiB, as far as it can be filled.
fn hub_on_a_small_disk(outer: &Outer) -> Background {
    fs::create_dir("/tmp/hub-state").unwrap();
    run(outer.hub.command(peer("mount")).args([
        "-t",
        "tmpfs",
        "-o",
        "size=1m,mode=700",
        "state",
        "/tmp/hub-state",
    ]));
    start_hub(outer, &[])
}

#[test]
fn with_a_full_disk_known_peers_come_back_and_others_wait() {
    isolate(|| {
        let outer = Outer::new(2);
        let _hub = hub_on_a_small_disk(&outer);
        let (first, second) = (token(&outer, &[]), token(&outer, &[]));
        let mut one = start_peer(&outer, 1, &first, &[]);
        one.wait_for_line("joined", PATIENCE);
        assert_eq!(health().status, 200);
        // Until nothing more fits.
        let filler = "/tmp/hub-state/filler";
        assert!(fs::write(filler, vec![1; 2 << 20]).is_err());
        let told = health();
        assert!(told.status == 500 && told.body.contains("full"), "{told:?}");
        let refused = output(&mut netyard(&outer.hub, &["token", "create"]));
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        let mut two = start_peer(&outer, 2, &second, &[]);
        two.wait_for_line("cannot look it up at the moment", PATIENCE);
        ping(&outer.peers[0], "10.1.1.1");
        one.signal("KILL");
        one.wait(PATIENCE);
        let mut one = start_peer(&outer, 1, &first, &[]);
        one.wait_for_line("joined", PATIENCE);
        ping(&outer.peers[0], "10.1.1.1");
        // It mends itself.
        fs::remove_file(filler).unwrap();
        two.wait_for_line("joined", PATIENCE);
        ping(&outer.peers[1], "10.1.1.3");
        assert_eq!(health().status, 200);
    });
}

#[test]
fn a_database_that_is_gone_is_noticed_and_known_peers_go_on() {
    isolate(|| {
        let outer = Outer::new(2);
        let mut hub = start_hub(&outer, &[]);
        let (first, second) = (token(&outer, &[]), token(&outer, &[]));
        let mut one = start_peer(&outer, 1, &first, &[]);
        one.wait_for_line("joined", PATIENCE);
        for file in ["hub.db", "hub.db-wal", "hub.db-shm"] {
            fs::rename(format!("/tmp/hub-state/{file}"), format!("/tmp/{file}")).unwrap();
        }
        let told = health();
        assert!(told.status == 500 && told.body.contains("is not there any more"), "{told:?}");
        let mut two = start_peer(&outer, 2, &second, &[]);
        two.wait_for_line("cannot look it up at the moment", PATIENCE);
        one.signal("KILL");
        one.wait(PATIENCE);
        let mut one = start_peer(&outer, 1, &first, &[]);
        one.wait_for_line("joined", PATIENCE);
        ping(&outer.peers[0], "10.1.1.1");
        // What cannot be written down is done all the same, as long as it cannot.
        let revoke = output(&mut netyard(&outer.hub, &["peers", "revoke", "peer-1"]));
        let said = String::from_utf8_lossy(&revoke.stderr).into_owned();
        assert!(revoke.status.code() == Some(1) && said.contains("is turned out"), "{said}");
        one.wait_for_line("cannot look it up at the moment", PATIENCE);
        // Put back, it goes on where it was.
        for file in ["hub.db", "hub.db-wal", "hub.db-shm"] {
            fs::rename(format!("/tmp/{file}"), format!("/tmp/hub-state/{file}")).unwrap();
        }
        two.wait_for_line("joined", PATIENCE);
        assert_eq!(health().status, 200);
        hub.signal("KILL");
        hub.wait(PATIENCE);
        // One that cannot be written is no start.
        let mount = |words: &[&str]| run(outer.hub.command(peer("mount")).args(words));
        mount(&["--bind", "/tmp/hub-state", "/tmp/hub-state"]);
        mount(&["-o", "remount,bind,ro", "/tmp/hub-state"]);
        let words = ["hub", "--state", "/tmp/hub-state"];
        let refused = output(&mut netyard(&outer.hub, &words));
        let error = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && error.contains("readonly"), "{error}");
    });
}

/// What another program sees in the hub's database: who is here, and how often they have logged in, in the order of
/// their names.
fn written(outer: &Outer) -> Vec<(String, bool, u64)> {
    let script = "import json, sqlite3
d = sqlite3.connect('file:/tmp/hub-state/hub.db?mode=ro', uri=True)
found = d.execute('SELECT name, connected, epoch FROM nodes ORDER BY name').fetchall()
print(json.dumps([(name, bool(connected), epoch) for name, connected, epoch in found]))";
    let text = run(outer.hub.command(peer("python3")).args(["-c", script]));
    serde_json::from_str(&text).unwrap()
}

#[test]
fn while_another_program_holds_the_database_known_peers_come_back() {
    isolate(|| {
        let outer = Outer::new(3);
        let _hub = start_hub(&outer, &[]);
        let joins = [1, 2, 3].map(|_| token(&outer, &[]));
        let start = |number: usize| start_peer(&outer, number, &joins[number - 1], &[]);
        let mut here = [1, 2].map(start);
        here.iter_mut().for_each(|it| drop(it.wait_for_line("joined", PATIENCE)));
        let before = wait_for("both to be written", PATIENCE, || {
            let all = written(&outer);
            (all.len() == 2 && all.iter().all(|(_, is_here, _)| *is_here)).then_some(all)
        });
        let script = "import signal, sqlite3
d = sqlite3.connect('/tmp/hub-state/hub.db', isolation_level=None)
d.execute('BEGIN IMMEDIATE')
print('held', flush=True)
signal.pause()";
        let mut other = outer.hub.command(peer("python3"));
        let mut other = Background::start(other.args(["-c", script]));
        other.wait_for_line("held", PATIENCE);
        for it in &mut here {
            it.signal("KILL");
            it.wait(PATIENCE);
        }
        let mut here = [1, 2].map(start);
        here.iter_mut().for_each(|it| drop(it.wait_for_line("joined", PATIENCE)));
        ping(&outer.peers[0], "10.1.1.5");
        let mut new = start(3);
        new.wait_for_line("cannot look it up at the moment", PATIENCE);
        assert_eq!(written(&outer), before, "it is held still");
        drop(other);
        new.wait_for_line("joined", PATIENCE);
        wait_for("all to be written", PATIENCE, || {
            let all = written(&outer);
            let again = before.iter().zip(&all).all(|(before, now)| now.2 > before.2);
            let here = all.iter().filter(|(_, is_here, _)| *is_here).count();
            (again && here == 3).then_some(())
        });
        here[0].signal("TERM");
        here[0].wait(PATIENCE);
        wait_for("a departure to be written", PATIENCE, || {
            let here: Vec<bool> = written(&outer).into_iter().map(|it| it.1).collect();
            (here == [false, true, true]).then_some(())
        });
    });
}

#[test]
fn a_copied_key_is_noticed() {
    isolate(|| {
        let outer = Outer::new(2);
        let _hub = start_hub(&outer, &[]);
        let join = token(&outer, &[]);
        let mut before = start_peer(&outer, 1, &join, &[]);
        before.wait_for_line("joined", PATIENCE);
        run(outer.hub.command(peer("cp")).args(["-a", "/tmp/peer-1-state", "/tmp/peer-2-state"]));
        for number in [2, 1, 2] {
            let mut next = start_peer(&outer, number, &join, &[]);
            next.wait_for_line("joined", PATIENCE);
            assert_eq!(before.wait(PATIENCE).code(), Some(1));
            let told = before.output();
            assert!(told.contains("the same node has logged in from elsewhere"), "{told}");
            before = next;
        }
        wait_for("a word about it", PATIENCE, || {
            let deeds = audit(&outer);
            let told = deeds.iter().find(|it| it["action"] == "duplicate-node")?;
            assert_eq!((&told["who"], &told["subject"]), (&"hub".into(), &"peer-1".into()));
            Some(())
        });
        assert_eq!(peers(&outer).len(), 1);
    });
}

#[test]
fn a_peer_that_stands_still_loses_its_own_packets_alone() {
    isolate(|| {
        let outer = Outer::new(3);
        // What the kernels hold of a stream is soon full, also where little is sent until the hub gives the peer up.
        for (namespace, setting) in [(&outer.hub, "tcp_wmem"), (&outer.peers[1], "tcp_rmem")] {
            let setting = format!("net.ipv4.{setting}=4096 65536 131072");
            run(namespace.command(peer("sysctl")).args(["-q", "-w", &setting]));
        }
        let hub = start_hub(&outer, &["--no-udp"]);
        let _one = joined_peer(&outer, 1, &[]);
        let two = joined_peer(&outer, 2, &[]);
        let _three = joined_peer(&outer, 3, &[]);
        let memory = || {
            let status = fs::read_to_string(format!("/proc/{}/status", hub.id())).unwrap();
            let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
        };
        let before = memory();
        // More than a queue holds, until it drops, and not so much that others get no processor. After eight seconds
        // the hub gives the silent one up.
        let script = "import signal, socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print('ready', flush=True)
signal.sigwait([signal.SIGUSR1])
while True:
    for _ in range(20): s.sendto(bytes(1300), ('10.1.1.5', 9))
    time.sleep(0.005)";
        let mut flood = outer.peers[0].command(peer("python3"));
        let mut flood = Background::start(flood.args(["-c", script]));
        flood.wait_for_line("ready", PATIENCE);
        two.signal("STOP");
        flood.signal("USR1");
        wait_for("losses of the one that stands still", PATIENCE, || {
            let two: Value = asked("/v1/peers/peer-2").body.parse().unwrap();
            let losses = &two["losses"];
            let lost = losses["queue_full"].as_u64()? + losses["codel"].as_u64()?;
            (lost > 100).then_some(())
        });
        transfer(&outer.peers[2], &outer.hub, "10.1.1.1", 3_000_000);
        let listed = peers(&outer);
        let other = listed.iter().find(|it| it["name"] == "peer-3").unwrap();
        assert_eq!(other["losses"]["queue_full"], 0, "{other}");
        let after = memory();
        assert!(after < before + 16 * 1024, "from {before} to {after} KiB");
        drop(flood);
        two.signal("CONT");
        is_reached(&outer.peers[0], "10.1.1.5");
    });
}

/// What ends TLS before the hub, on port 443 of the router's address on its way.
fn nginx(router: &Namespace, certificate: &str, key: &str) -> Background {
    let folder = Path::new("/tmp").join(format!("nginx-{}", key.len()));
    fs::create_dir(&folder).unwrap();
    let at = folder.display();
    let text = format!(
        "user root; daemon off; master_process off; pid {at}/pid; error_log stderr notice;
events {{}}
http {{
    access_log off;
    client_body_temp_path {at}; proxy_temp_path {at}; fastcgi_temp_path {at};
    uwsgi_temp_path {at}; scgi_temp_path {at};
    server {{
        listen 192.0.2.1:6441 ssl; ssl_protocols TLSv1.3; proxy_ssl_protocols TLSv1.3;
        ssl_certificate {certificate}; ssl_certificate_key {key};
        location / {{
            proxy_pass https://{HUB}:6441; proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;
        }}
    }}
}}
"
    );
    fs::write(folder.join("nginx.conf"), text).unwrap();
    let mut command = router.command(peer("nginx"));
    let conf = folder.join("nginx.conf");
    let server = Background::start(command.arg("-e").arg("stderr").arg("-c").arg(conf));
    wait_for("nginx", PATIENCE, || {
        let mut ask = router.command(peer("python3"));
        ask.args(["-c", "import socket; socket.create_connection(('192.0.2.1', 6441))"]);
        output(&mut ask).status.success().then_some(())
    });
    server
}

#[test]
fn what_ends_tls_before_the_hub_is_found_out() {
    isolate(|| {
        let outer = Outer::new(1);
        let _hub = start_hub(&outer, &[]);
        let join = token(&outer, &[]).replace(HUB, "192.0.2.1");
        let refused = |words: &str| {
            let mut one = start_peer(&outer, 1, &join, &[]);
            assert_eq!(one.wait(PATIENCE).code(), Some(1), "{}", one.output());
            assert!(one.output().contains(words), "{}", one.output());
        };
        // With a certificate of its own.
        let (certificate, key) = ("/tmp/other.pem", "/tmp/other-key.pem");
        run(outer.hub.command(peer("openssl")).args(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 9 -subj /CN=hub"
                .split(' '),
        ).args(["-keyout", key, "-out", certificate]));
        let server = nginx(&outer.router, certificate, key);
        refused("another than the one that the join string names");
        drop(server);
        // And with the hub's, which its operator has given it.
        let _server = nginx(&outer.router, "/tmp/hub-state/hub.pem", "/tmp/hub-state/hub-key.pem");
        refused("something between here and the hub ends TLS");
        assert!(peers(&outer).is_empty());
    });
}

/// A proxy that cuts all connections when it gets SIGUSR1.
const CUTTER: &str = "import signal, socket, sys, threading
s = socket.create_server((sys.argv[1], 3128))
led = []
def cut(*_):
    while led:
        try: led.pop().shutdown(2)
        except OSError: pass
signal.signal(signal.SIGUSR1, cut)
print('listening', flush=True)
def carry(a, b):
    try:
        while data := a.recv(1 << 16): b.sendall(data)
    except OSError: pass
    for end in (a, b):
        try: end.shutdown(2)
        except OSError: pass
def serve(c):
    head = b''
    while b'\\r\\n\\r\\n' not in head: head += c.recv(4096)
    host, port = head.split()[1].decode().rsplit(':', 1)
    hub = socket.create_connection((host, int(port)))
    c.sendall(b'HTTP/1.1 200 Connection established\\r\\n\\r\\n')
    led.append(hub)
    threading.Thread(target=carry, args=(c, hub)).start()
    carry(hub, c)
while True: threading.Thread(target=serve, args=(s.accept()[0],)).start()";

#[test]
fn a_proxy_that_cuts_connections_costs_no_session() {
    isolate(|| {
        let outer = Outer::new(1);
        let _hub = start_hub(&outer, &[]);
        let mut proxy = outer.router.command(peer("python3"));
        let mut proxy = Background::start(proxy.args(["-c", CUTTER, "198.51.1.1"]));
        proxy.wait_for_line("listening", PATIENCE);
        let _one = joined_peer(&outer, 1, &["--proxy", "http://198.51.1.1:3128"]);
        // A connection within the tunnel lives on.
        let talk = Talk::start(&outer.peers[0], &outer.hub, "10.1.1.1");
        let logins = |one: &Value| one["logins"].as_u64().unwrap();
        for _ in 0..2 {
            let before = logins(&peers(&outer)[0]);
            proxy.signal("USR1");
            wait_for("another login", PATIENCE, || {
                let listed = peers(&outer);
                (logins(&listed[0]) > before && listed[0]["connected"] == true).then_some(())
            });
            talk.goes_on();
        }
        assert_eq!(peers(&outer)[0]["address"], "10.1.1.3");
    });
}

#[test]
fn when_all_addresses_are_taken_the_next_peer_waits_for_one() {
    isolate(|| {
        let outer = Outer::new(2);
        let _hub = start_hub(&outer, &["--network", "10.1.1.0/30", "--addressing", "single"]);
        let join = token(&outer, &["--reusable"]);
        let mut one = start_peer(&outer, 1, &join, &[]);
        one.wait_for_line("joined", PATIENCE);
        let mut two = start_peer(&outer, 2, &join, &[]);
        two.wait_for_line("every address of the network is in use", PATIENCE);
        run(&mut netyard(&outer.hub, &["peers", "revoke", "peer-1"]));
        two.wait_for_line("joined", PATIENCE);
        ping(&outer.peers[1], "10.1.1.1");
        assert_eq!(peers(&outer)[0]["address"], "10.1.1.2");
    });
}

#[test]
fn a_connection_that_goes_silent_is_noticed_at_both_ends() {
    isolate(|| {
        let outer = Outer::new(1);
        let _hub = start_hub(&outer, &[]);
        let one = joined_peer(&outer, 1, &[]);
        let mut pings = outer.hub.command(peer("ping"));
        let _pings = Background::start(pings.args(["-i", "0.5", "10.1.1.3"]));
        // Neither end hears of it: packets vanish.
        let nft = |rules: &str| run(outer.router.command(peer("nft")).arg(rules));
        nft("add table inet wall
add chain inet wall passing { type filter hook forward priority 0; policy drop; }");
        wait_for("the hub to notice", PATIENCE, || (!connected(&outer, "peer-1")).then_some(()));
        wait_for("the peer to notice", PATIENCE, || {
            one.output().contains("the lane to the hub has ended").then_some(())
        });
        nft("delete table inet wall");
        is_reached(&outer.peers[0], "10.1.1.1");
    });
}
