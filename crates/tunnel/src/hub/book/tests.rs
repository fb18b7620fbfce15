use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use rusqlite::Connection;
use tokio::task::LocalSet;

use super::*;
use crate::join::{Secret, TokenId};
use crate::message::ByUdp;
use crate::store::{Sqlite, Stamp, Terms, Tokens as _};

const TOKEN: (TokenId, Secret) = (TokenId([1; 6]), Secret([2; 16]));

fn by() -> Stamp {
    Stamp { who: "user 7".into(), at_ms: 5 }
}

fn book(mut store: Sqlite) -> Rc<Book> {
    store.create_token(TOKEN, Terms::default(), &by()).unwrap().unwrap();
    Rc::new(Book::new(store))
}

fn guest(key: u8, exit: Option<&str>) -> Guest {
    Guest {
        key: [key; 32],
        name: format!("node-{key}"),
        token: Some(TOKEN),
        subnets: Vec::new(),
        exit: exit.map(str::to_owned),
        names: false,
        by_udp: ByUdp::Nothing,
        network: None,
        run: 0,
        clock_ms: 0,
    }
}

/// Runs a test's course, which does not wait for ever. Where time is paused, it stands while the database works,
/// however long that takes: no login is late for that.
async fn run(course: impl Future<Output = ()>) {
    let course = time::timeout(Duration::from_secs(60), course);
    LocalSet::new().run_until(course).await.unwrap();
}

/// Has a future go as far as it can without being woken.
async fn begin(future: &mut Pin<Box<impl Future>>) {
    poll_fn(|context| {
        assert!(future.as_mut().poll(context).is_pending());
        Poll::Ready(())
    })
    .await;
}

/// Waits until so many logins are in the database.
async fn logins(book: &Book, wanted: u64) {
    loop {
        let nodes = book.ask(|store| store.nodes()).await.unwrap();
        if nodes.iter().map(|node| node.epoch).sum::<u64>() == wanted {
            return;
        }
        task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_revoked_while_its_login_is_on_the_way_is_not_let_in() {
    let course = async {
        let book = book(Sqlite::in_memory().unwrap());
        let new = guest(1, None);
        for code in [RejectCode::Busy, RejectCode::Revoked] {
            let before = book.ask(|store| store.nodes()).await.unwrap();
            let mut login = Box::pin(book.log_in(&new, 3));
            begin(&mut login).await;
            // The database has let it in, and the hub does not know that yet.
            logins(&book, before.iter().map(|node| node.epoch).sum::<u64>() + 1).await;
            let id = book.ask(|store| store.nodes()).await.unwrap()[0].id;
            if code == RejectCode::Revoked {
                book.ask(|store| store.revoke_node("node-1", &by())).await.unwrap();
            }
            book.oust(id, code);
            assert_eq!(login.await.unwrap_err(), code);
            assert_eq!(book.named("node-1"), None);
        }
        assert_eq!(book.log_in(&new, 3).await.unwrap_err(), RejectCode::Revoked);
    };
    run(course).await;
}

#[tokio::test(start_paused = true)]
async fn a_login_that_comes_to_nothing_leaves_nobody_here() {
    let course = async {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hub.db");
        let book = book(Sqlite::open(&file).unwrap());
        let witness = Connection::open(&file).unwrap();
        let here = || -> i64 {
            witness.query_row("SELECT sum(connected) FROM nodes", [], |row| row.get(0)).unwrap()
        };
        // One whose exit is none, and one that has gone before the answer came.
        let refused = book.log_in(&guest(1, Some("nobody")), 3).await;
        assert_eq!(refused.unwrap_err(), RejectCode::NoExit);
        let gone = guest(2, None);
        let mut login = Box::pin(book.log_in(&gone, 3));
        begin(&mut login).await;
        logins(&book, 2).await;
        drop(login);
        let stays = book.log_in(&guest(3, None), 3).await.unwrap().node.id;
        assert_eq!(here(), 3);
        // When what was let in for nobody is known.
        while book.unwritten.borrow().said(|_| true).0.len() < 2 {
            task::yield_now().await;
        }
        book.note("duplicate-node", "node-3", by());
        assert!(!book.settle(|node| node == stays).await.unwrap());
        assert_eq!(here(), 1);
        let deeds = book.ask(|store| store.audit(1)).await.unwrap();
        assert_eq!((&*deeds[0].who, &*deeds[0].action), ("user 7", "duplicate-node"));
        assert!(book.unwritten.borrow().is_empty());
    };
    run(course).await;
}

#[tokio::test(start_paused = true)]
async fn a_login_of_which_a_part_cannot_be_written_leaves_nobody_here() {
    let course = async {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hub.db");
        let book = book(Sqlite::open(&file).unwrap());
        let witness = Connection::open(&file).unwrap();
        let full =
            "CREATE TRIGGER full BEFORE INSERT ON subnets BEGIN SELECT RAISE(ABORT, 'x'); END";
        witness.execute_batch(full).unwrap();
        let offers = Guest { subnets: vec!["10.9.0.0/16".parse().unwrap()], ..guest(1, None) };
        assert_eq!(book.log_in(&offers, 3).await.unwrap_err(), RejectCode::Busy);
        let here = || -> i64 {
            witness.query_row("SELECT sum(connected) FROM nodes", [], |row| row.get(0)).unwrap()
        };
        assert_eq!(here(), 1);
        book.settle(|_| false).await.unwrap();
        assert_eq!(here(), 0);
    };
    run(course).await;
}

#[tokio::test(start_paused = true)]
async fn while_another_program_holds_the_database_known_nodes_do_not_wait_for_it() {
    let course = async {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hub.db");
        let book = book(Sqlite::open(&file).unwrap());
        let known = [guest(1, None), guest(2, None)];
        for guest in &known {
            book.log_in(guest, 3).await.unwrap();
        }
        let other = Connection::open(&file).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        // What works is waiting for the other program now.
        time::resume();
        let epochs = async |book: &Rc<Book>| {
            let mut epochs = Vec::new();
            for guest in &known {
                epochs.push(book.log_in(guest, 3).await.unwrap().node.epoch);
            }
            epochs
        };
        assert_eq!(epochs(&book).await, [2, 2]);
        assert!(book.is_late());
        assert_eq!(epochs(&book).await, [3, 3]);
        let elsewhere = Guest { exit: Some("node-2".into()), ..guest(1, None) };
        for waits in [guest(3, None), elsewhere] {
            assert_eq!(book.log_in(&waits, 3).await.unwrap_err(), RejectCode::Busy);
        }
        other.execute_batch("COMMIT").unwrap();
        time::pause();
        assert!(book.settle(|_| true).await.unwrap(), "it was late");
        assert!(!book.is_late());
        while !book.unwritten.borrow().is_empty() {
            book.settle(|_| true).await.unwrap();
        }
        let nodes = book.ask(|store| store.nodes()).await.unwrap();
        // Or more: the database may have let in one of those who did not wait for that.
        assert!(nodes.len() >= 2 && nodes[..2].iter().all(|node| node.epoch >= 3), "{nodes:?}");
        book.log_in(&guest(3, None), 3).await.unwrap();
    };
    run(course).await;
}
