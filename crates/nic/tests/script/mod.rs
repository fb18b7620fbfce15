//! Servers that say what a test wants them to, and cards made of text.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use netyard_nic::{Agreement, Answer, Card, CardAddress, Probe, ProbeError, Prober};

/// What the servers say about each source address, one word for each server; `None` is silence. About
/// addresses that are not named they are silent.
#[derive(Debug, Default)]
pub(crate) struct Script {
    lines: BTreeMap<IpAddr, Vec<Option<IpAddr>>>,
    pub(crate) asked: Mutex<Vec<IpAddr>>,
}

impl Script {
    /// Three servers see `from` as `seen`.
    pub(crate) fn sees(self, from: &str, seen: &str) -> Self {
        self.say(from, &[Some(seen); 3])
    }

    pub(crate) fn say(mut self, from: &str, seen: &[Option<&str>]) -> Self {
        let seen = seen.iter().map(|seen| seen.map(|seen| seen.parse().unwrap())).collect();
        self.lines.insert(from.parse().unwrap(), seen);
        self
    }

    /// The addresses that were asked for, in order.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(ToString::to_string).collect()
    }
}

impl Prober for Script {
    fn probe(
        &self,
        probe: Probe,
        mut agreement: Agreement,
    ) -> impl Future<Output = Agreement> + Send {
        self.asked.lock().unwrap().push(probe.from);
        let words = self.lines.get(&probe.from).cloned().unwrap_or_else(|| vec![None; 3]);
        for (number, seen) in words.into_iter().enumerate() {
            agreement.handle_answer(Answer {
                server: format!("server-{number}:3478"),
                seen: seen.map(|seen| SocketAddr::new(seen, 50_000)).ok_or(ProbeError::NoAnswer),
                took: Duration::from_millis(20),
            });
        }
        std::future::ready(agreement)
    }
}

/// The value of a future that never has to wait.
pub(crate) fn now<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a scripted answer is there at once"),
    }
}

/// A card with these addresses and blocks.
pub(crate) fn card(name: &str, addresses: &[&str]) -> Card {
    let addresses = addresses.iter().map(|text| CardAddress::new(text.parse().unwrap())).collect();
    Card { index: Some(2), up: true, carrier: true, addresses, ..Card::named(name) }
}
