//! What is measured of a contender.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use super::client;
use super::contender::{ADDRESS4, ADDRESS6, Contender};
use super::report::Row;
use super::stage::{Far, Running};
use crate::link::Impairment;
use crate::process::{processor_time, resident};
use crate::processors::Processors;

/// Round trips on one connection.
const ROUND_TRIPS: usize = 20_000;
/// Connections that ask for pages at the same time.
const CLIENTS: usize = 64;
/// Connections that are open and still, few and many.
const FEW: usize = 100;
const MANY: usize = 10_000;

pub(super) type Figures = BTreeMap<Row, f64>;

/// One stream each way, for each family: Gbit/s, and what it costs.
pub(super) fn bulk(contender: Contender, seconds: u32) -> io::Result<Figures> {
    let running = Running::start(contender)?;
    let mut figures = Figures::new();
    let addresses: [(IpAddr, _, _); 2] = [
        (ADDRESS4.into(), (Row::From4, Row::CostFrom4), (Row::To4, Row::CostTo4)),
        (ADDRESS6.into(), (Row::From6, Row::CostFrom6), (Row::To6, Row::CostTo6)),
    ];
    for (address, from, to) in addresses {
        for ((rate, cost), receives) in [(from, true), (to, false)] {
            let mut before = 0.0;
            let started = || before = processor_time(running.id());
            let carried = match receives {
                true => client::receive(address, seconds, started)?,
                false => client::send(address, seconds, started)?,
            };
            let used = processor_time(running.id()) - before;
            figures.insert(rate, carried.rate() / 1e9);
            // What a kernel does is nobody's process.
            if contender != Contender::Kernel {
                figures.insert(cost, used / (carried.bytes / 1e9));
            }
        }
    }
    Ok(figures)
}

/// One byte there and back, everything on one processor.
pub(super) fn round_trip(contender: Contender) -> io::Result<Figures> {
    let running = Running::start(contender)?;
    Processors::One.use_for(&running.ids());
    let p50 = client::round_trip(ADDRESS4.into(), ROUND_TRIPS);
    Processors::All.use_for(&[]);
    Ok(Figures::from([(Row::RoundTrip, p50?)]))
}

/// Pages, beside few and many connections that are still; then all of them ask now and then.
pub(super) fn many(contender: Contender, seconds: u32) -> io::Result<Figures> {
    let running = Running::start(contender)?;
    let to = IpAddr::from(ADDRESS4);
    client::run(async {
        let mut figures = Figures::new();
        let mut still = client::open(to, FEW).await?;
        let clients = client::open(to, CLIENTS).await?;
        let beside_few = client::requests(clients, seconds).await?;
        figures.insert(Row::PagesFew, beside_few);
        let before = resident(running.id());
        still.extend(client::open(to, MANY - FEW).await?);
        if let (Some(before), Some(after)) = (before, resident(running.id()))
            && contender != Contender::Kernel
        {
            figures.insert(Row::Memory, (after - before) / (MANY - FEW) as f64);
        }
        let clients = client::open(to, CLIENTS).await?;
        let beside_many = client::requests(clients, seconds).await?;
        figures.insert(Row::PagesMany, beside_many);
        figures.insert(Row::PagesKept, 100.0 * beside_many / beside_few);
        let before = processor_time(running.id());
        let answered = client::each_second(still, 2 * seconds).await?;
        let used = processor_time(running.id()) - before;
        figures.insert(Row::Answered, 100.0 * f64::from(answered.soon) / answered.wanted);
        if contender != Contender::Kernel {
            figures.insert(Row::CostMany, 1e6 * used / f64::from(answered.all));
        }
        Ok(figures)
    })
}

/// 100 Mbit/s, 50 ms round trip, 1 % lost each way.
pub(super) fn lossy(contender: Contender, seconds: u32) -> io::Result<Figures> {
    let running = Running::start(contender)?;
    let delay = Duration::from_millis(25);
    let far = Far::new(Impairment { rate: 100_000_000, delay, loss: 10 })?;
    let rate = far.fetch(4 * seconds)?;
    drop(running);
    Ok(Figures::from([(Row::Lossy, rate / 1e6)]))
}
