//! Who gets which request, and how often.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use common::{Bench, Counts, GET, POST};
use netyard_proxy::Limits;

#[test]
fn requests_of_one_connection_take_turns_over_connections_that_stay_open() {
    let bench = Bench::new();
    bench.well([1, 2, 3]);
    let mut client = bench.client();
    let got: Vec<String> = (0..9).map(|_| client.get()).collect();
    assert_eq!(got, ["1", "2", "3", "1", "2", "3", "1", "2", "3"]);
    for key in [1, 2, 3] {
        assert_eq!(bench.opened(key), 1);
        bench.ring.wait_for(key, Counts { turns: 3, ..Counts::default() });
    }
}

#[test]
fn parallel_clients_share_one_counter() {
    const EACH: usize = 60;
    let bench = Bench::new();
    bench.well([1, 2, 3]);
    let got: Mutex<HashMap<String, usize>> = Mutex::default();
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let mut client = bench.client();
                for _ in 0..EACH {
                    *got.lock().unwrap().entry(client.get()).or_default() += 1;
                }
            });
        }
    });
    let expected = ["1", "2", "3"].map(|key| (key.to_owned(), 16 * EACH / 3));
    assert_eq!(got.into_inner().unwrap(), HashMap::from(expected));
}

#[test]
fn an_instance_that_refuses_costs_its_turn_and_the_next_gets_the_request() {
    let bench = Bench::new();
    bench.well([1]);
    bench.refuses(2);
    bench.well([3]);
    let mut client = bench.client();
    assert_eq!((client.get(), client.get()), ("1".into(), "3".into()));
    assert_eq!(bench.ring.counts(2), Counts { turns: 1, failed: 1, ..Counts::default() });
    // With a body too: nothing of it was sent.
    assert_eq!((client.get(), client.ask(POST).body), ("1".into(), "3".into()));
    assert_eq!(bench.ring.counts(2).failed, 2);
}

#[test]
fn a_connection_that_died_quietly_costs_nothing() {
    let bench = Bench::new();
    for key in [1, 2] {
        bench.instance(key, move |mut peer| {
            peer.request();
            peer.answer(&key.to_string());
            // The next request is read, and the connection closed instead of an answer.
            peer.request();
        });
    }
    let mut client = bench.client();
    let got: Vec<String> = (0..6).map(|_| client.get()).collect();
    assert_eq!(got, ["1", "2", "1", "2", "1", "2"]);
    for key in [1, 2] {
        bench.ring.wait_for(key, Counts { turns: 3, ..Counts::default() });
        assert_eq!(bench.opened(key), 3);
    }
}

#[test]
fn what_may_have_been_carried_out_is_not_sent_again() {
    let bench = Bench::new();
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    bench.instance(1, move |mut peer| {
        if peer.request().is_some_and(|request| request.body == "hello") {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    bench.well([2]);
    let mut client = bench.client();
    let answer = client.ask(POST);
    assert_eq!(answer.status(), 502);
    assert!(answer.body.contains("not sent to another"), "{answer:?}");
    assert_eq!(seen.load(Ordering::SeqCst), 1);
    assert_eq!(bench.ring.counts(2).turns, 0);
    bench.ring.wait_for(1, Counts { turns: 1, failed: 1, ..Counts::default() });
    assert_eq!(client.get(), "2", "the connection goes on");
}

#[test]
fn an_instance_that_dies_before_it_answers_is_replaced_if_that_is_safe() {
    for (method, answered) in [("GET", true), ("DELETE", true), ("PATCH", false)] {
        let bench = Bench::new();
        bench.instance(1, |mut peer| {
            peer.request();
        });
        bench.well([2]);
        let answer = bench.client().ask(&GET.replacen("GET", method, 1));
        assert_eq!(answer.status(), if answered { 200 } else { 502 }, "{method}");
        assert_eq!(bench.ring.counts(1).failed, 1);
    }
}

#[test]
fn a_request_that_ends_instances_does_not_end_all_of_them() {
    for kept in [false, true] {
        let bench = Bench::new();
        for key in [1, 2, 3, 4] {
            bench.instance(key, move |mut peer| {
                while peer.request().is_some_and(|request| !request.head.contains("/poison")) {
                    peer.answer(&key.to_string());
                }
            });
        }
        let mut client = bench.client();
        if kept {
            assert_eq!([(); 4].map(|()| client.get()), ["1", "2", "3", "4"]);
        }
        // The first cannot be reached, which is not the request's fault.
        bench.refuses(1);
        bench.service.as_ref().unwrap().keep(&[2, 3, 4]);
        let answer = client.ask(&GET.replacen('/', "/poison", 1));
        assert_eq!(answer.status(), 502);
        assert!(answer.body.contains("not sent to a third"), "{answer:?}");
        assert_eq!([1, 2, 3, 4].map(|key| bench.ring.counts(key).failed), [1, 1, 1, 0]);
        assert_eq!(client.get(), "4", "the connection goes on");
    }
}

#[test]
fn an_instance_that_is_gone_behind_a_kept_connection_had_the_request() {
    let bench = Bench::new();
    for key in [1, 2, 3] {
        bench.instance(key, move |mut peer| {
            peer.request();
            peer.answer(&key.to_string());
            // The next one is read, and the program ends.
            peer.request();
        });
    }
    let mut client = bench.client();
    assert_eq!([(); 3].map(|()| client.get()), ["1", "2", "3"]);
    for key in [1, 2] {
        bench.refuses(key);
    }
    assert_eq!(client.ask(GET).status(), 502);
    assert_eq!([1, 2, 3].map(|key| bench.ring.counts(key).failed), [1, 1, 0]);
}

#[test]
fn without_instances_the_answer_comes_at_once() {
    let bench = Bench::new();
    let mut client = bench.client();
    let answer = client.ask(GET);
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.body, "no instance of web can be asked now\n");
    assert_eq!(answer.field("content-type"), Some("text/plain; charset=utf-8"));
    bench.well([1]);
    assert_eq!(client.get(), "1", "the connection goes on");
}

#[test]
fn when_nobody_answers_each_was_tried_once() {
    let bench = Bench::new();
    bench.refuses(1);
    bench.refuses(2);
    let answer = bench.client().ask(GET);
    assert_eq!(answer.status(), 502);
    assert!(answer.body.contains("tried: 2"), "{answer:?}");
    for key in [1, 2] {
        assert_eq!(bench.ring.counts(key), Counts { turns: 1, failed: 1, ..Counts::default() });
    }
}

#[test]
fn a_client_that_goes_away_abandons_its_turn() {
    let bench = Bench::new();
    let (asked, came) = std::sync::mpsc::channel();
    bench.instance(1, move |mut peer| {
        peer.request();
        asked.send(()).unwrap();
        assert_eq!(peer.rest(), "", "the connection ends with the client's");
        asked.send(()).unwrap();
    });
    let mut client = bench.client();
    client.send(GET);
    came.recv().unwrap();
    drop(client);
    came.recv().unwrap();
    bench.ring.wait_for(1, Counts { turns: 1, abandoned: 1, ..Counts::default() });
}

#[test]
fn instances_that_are_gone_lose_their_connections() {
    let bench = Bench::new();
    let (ended, end) = std::sync::mpsc::channel();
    bench.instance(1, move |mut peer| {
        while peer.request().is_some() {
            peer.answer("1");
        }
        ended.send(()).unwrap();
    });
    bench.well([2]);
    let mut client = bench.client();
    assert_eq!((client.get(), client.get()), ("1".into(), "2".into()));
    bench.ring.wait_for(1, Counts { turns: 1, ..Counts::default() });
    bench.ring.set([2]);
    bench.service.as_ref().unwrap().keep(&[2]);
    end.recv().unwrap();
    assert_eq!(client.get(), "2");
    assert_eq!(bench.opened(2), 1);
}

#[test]
fn who_has_too_many_connections_is_refused() {
    let bench = Bench::with(Limits { connections: 4, ..Limits::of(0) });
    bench.well([1]);
    let mut own: Vec<_> = (0..2).map(|_| bench.client()).collect();
    for client in &mut own {
        assert_eq!(client.get(), "1");
    }
    assert_eq!(bench.client().rest(), "", "a third one of the same client");
    let mut other = bench.client_of("192.0.2.8:1234");
    assert_eq!(other.get(), "1");
    assert_eq!((bench.proxy.connections(), bench.proxy.refused()), (3, 1));
}
