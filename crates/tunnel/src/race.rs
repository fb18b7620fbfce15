//! Attempts at the addresses of a hub, side by side: the first that gets through is the one (RFC 8305 section 5).

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{self, Instant};

/// After this time without an outcome the next address is tried beside (RFC 8305 section 8).
const STAGGER: Duration = Duration::from_millis(250);

/// Attempts that bring a `T`, or an `E`. Those that run end with it.
#[derive(Debug)]
pub(crate) struct Race<T, E> {
    waiting: VecDeque<SocketAddr>,
    known: BTreeSet<SocketAddr>,
    running: JoinSet<Result<T, E>>,
    /// When the next one may begin beside those that run.
    due: Instant,
    is_side_by_side: bool,
}

/// What comes next in a race.
#[derive(Debug)]
pub(crate) enum Turn<T, E> {
    /// An attempt at this address is to begin, with [`Race::begin`].
    Next(SocketAddr),
    /// An attempt has ended.
    Done(Result<T, E>),
    /// All have ended.
    Over,
}

impl<T: 'static, E: 'static> Race<T, E> {
    /// At these addresses, in this order; one after the other if they cannot run side by side.
    pub(crate) fn new(addresses: Vec<SocketAddr>, is_side_by_side: bool) -> Self {
        let mut race = Self {
            waiting: VecDeque::new(),
            known: BTreeSet::new(),
            running: JoinSet::new(),
            due: Instant::now(),
            is_side_by_side,
        };
        race.add(addresses);
        race
    }

    /// At these, too; each is tried once.
    pub(crate) fn add(&mut self, addresses: Vec<SocketAddr>) {
        let known = &mut self.known;
        self.waiting.extend(addresses.into_iter().filter(|address| known.insert(*address)));
    }

    /// Begins an attempt.
    pub(crate) fn begin(&mut self, attempt: impl Future<Output = Result<T, E>> + 'static) {
        self.running.spawn_local(attempt);
        self.due = Instant::now() + STAGGER;
    }

    /// What comes next. Nothing is lost when the future is dropped.
    pub(crate) async fn turn(&mut self) -> Turn<T, E> {
        loop {
            if self.running.is_empty() {
                return self.waiting.pop_front().map_or(Turn::Over, Turn::Next);
            }
            let next = self.waiting.front().copied().filter(|_| self.is_side_by_side);
            tokio::select! {
                Some(done) = self.running.join_next() => match done {
                    Ok(done) => return Turn::Done(done),
                    Err(error) => tracing::error!(%error, "an attempt at the hub was given up"),
                },
                () = time::sleep_until(self.due), if next.is_some() => {
                    if let Some(next) = self.waiting.pop_front() {
                        return Turn::Next(next);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::LocalSet;

    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn addresses(hosts: &[u8]) -> Vec<SocketAddr> {
        hosts.iter().map(|host| SocketAddr::from(([192, 0, 2, *host], 6441))).collect()
    }

    /// Which address gets through and after how long, where each takes some time to do so or not; and which were tried.
    async fn run(
        mut race: Race<u8, ()>,
        outcome: impl Fn(u8) -> (Duration, Result<u8, ()>),
    ) -> (Option<u8>, Duration, Vec<u8>) {
        let (began, mut tried) = (Instant::now(), Vec::new());
        let won = loop {
            match race.turn().await {
                Turn::Next(SocketAddr::V4(address)) => {
                    let [.., host] = address.ip().octets();
                    tried.push(host);
                    let (after, result) = outcome(host);
                    race.begin(async move {
                        time::sleep(after).await;
                        result
                    });
                }
                Turn::Done(Ok(won)) => break Some(won),
                Turn::Done(Err(())) => {}
                Turn::Over => break None,
                Turn::Next(other) => panic!("{other}"),
            }
        };
        (won, began.elapsed(), tried)
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_address_costs_a_quarter_of_a_second() {
        let silent = |host| if host == 9 { (ms(20), Ok(9)) } else { (ms(5000), Err(())) };
        let race = Race::new(addresses(&[1, 2, 9, 3]), true);
        let done = LocalSet::new().run_until(run(race, silent)).await;
        assert_eq!(done, (Some(9), ms(520), vec![1, 2, 9]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_address_wins_where_the_next_ones_fail_and_refusals_cost_nothing() {
        let slow = |host| match host {
            1 => (ms(0), Err(())),
            2 => (ms(900), Ok(2)),
            _ => (ms(0), Err(())),
        };
        let race = Race::new(addresses(&[1, 2, 3]), true);
        let done = LocalSet::new().run_until(run(race, slow)).await;
        assert_eq!(done, (Some(2), ms(900), vec![1, 2, 3]));
        let race = Race::new(addresses(&[1, 3, 4, 1]), true);
        let done = LocalSet::new().run_until(run(race, slow)).await;
        assert_eq!(done, (None, ms(0), vec![1, 3, 4]), "each once");
    }

    #[tokio::test(start_paused = true)]
    async fn where_only_one_can_be_tried_at_a_time_the_next_waits() {
        let silent = |host| if host == 9 { (ms(20), Ok(9)) } else { (ms(5000), Err(())) };
        let race = Race::new(addresses(&[1, 9]), false);
        let done = LocalSet::new().run_until(run(race, silent)).await;
        assert_eq!(done, (Some(9), ms(5020), vec![1, 9]));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_found_late_is_tried_beside() {
        let mut race = Race::<u8, ()>::new(addresses(&[1]), true);
        LocalSet::new()
            .run_until(async {
                assert!(matches!(race.turn().await, Turn::Next(_)));
                race.begin(std::future::pending());
                assert!(time::timeout(ms(1000), race.turn()).await.is_err(), "nothing else");
                race.add(addresses(&[1, 2]));
                let Turn::Next(next) = race.turn().await else { panic!("it is tried") };
                assert_eq!(next, addresses(&[2])[0]);
            })
            .await;
    }
}
