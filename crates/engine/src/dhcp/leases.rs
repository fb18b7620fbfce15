//! Addresses of a pool, lent to clients for a time.
//!
//! A client gets the address again that it had before, as long as nobody else needed it; else the
//! one it asks for, the lowest that nobody has had yet, or the one whose lease ended first. The
//! table has at most [`MAX_LEASES`] entries; when it is full, only addresses of ended leases are
//! given out.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Leases at most, in one table: some hundred bytes each.
pub const MAX_LEASES: usize = 4_096;

/// How long an address is held for a client that it was offered to: some tries of its request
/// (RFC 2131 section 4.1).
const OFFER: Duration = Duration::from_secs(60);

/// How long an address rests after a client has found somebody else there. RFC 2131 section 4.3.3
/// names no time; other servers take ten minutes to a day.
const QUARANTINE: Duration = Duration::from_secs(600);

/// What a client is known by: its identifier, as the protocol says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Client(pub Vec<u8>);

/// Hexadecimal digits.
impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Text that is not pairs of hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a client's identifier is written as pairs of hexadecimal digits")]
pub struct ClientError;

impl FromStr for Client {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self, ClientError> {
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|it| u8::try_from(it).ok());
        let (pairs, rest) = text.as_bytes().as_chunks();
        let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
        match bytes.collect() {
            Some(bytes) if rest.is_empty() => Ok(Self(bytes)),
            _ => Err(ClientError),
        }
    }
}

/// Addresses that can be lent.
pub trait Address: Copy + Ord + fmt::Debug {
    /// The next one; `None` behind the last of all.
    fn successor(self) -> Option<Self>;
}

impl Address for Ipv4Addr {
    fn successor(self) -> Option<Self> {
        self.to_bits().checked_add(1).map(Self::from_bits)
    }
}

impl Address for Ipv6Addr {
    fn successor(self) -> Option<Self> {
        self.to_bits().checked_add(1).map(Self::from_bits)
    }
}

/// Who has which address of a pool, and until when.
#[derive(Debug)]
pub struct Leases<A> {
    pool: Option<RangeInclusive<A>>,
    by_address: BTreeMap<A, Lease>,
    /// The one address of each client in `by_address`, quarantined ones aside.
    by_client: HashMap<Client, A>,
    changed: bool,
}

#[derive(Debug)]
struct Lease {
    state: State,
    /// When somebody else may have the address.
    until: Instant,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Offered(Client),
    Bound(Client),
    Declined,
}

impl State {
    fn client(&self) -> Option<&Client> {
        match self {
            Self::Offered(client) | Self::Bound(client) => Some(client),
            Self::Declined => None,
        }
    }
}

impl<A: Address> Leases<A> {
    /// No leases yet of the addresses of `pool`.
    #[must_use]
    pub fn new(pool: Option<RangeInclusive<A>>) -> Self {
        Self { pool, by_address: BTreeMap::new(), by_client: HashMap::new(), changed: false }
    }

    /// Finds an address for a client and holds it for a while; `None` if there is none.
    pub(super) fn offer(
        &mut self,
        now: Instant,
        client: &Client,
        wanted: Option<A>,
        taken: &dyn Fn(A) -> bool,
    ) -> Option<A> {
        let own = self.by_client.get(client).copied();
        let address = [own, wanted]
            .into_iter()
            .flatten()
            .find(|address| self.may_have(now, client, *address, taken))
            .or_else(|| self.unused(taken))
            .or_else(|| self.ended(now, taken))?;
        let bound = self
            .by_address
            .get(&address)
            .is_some_and(|lease| lease.until > now && lease.state == State::Bound(client.clone()));
        if !bound {
            self.insert(client, address, State::Offered(client.clone()), now + OFFER);
        }
        Some(address)
    }

    /// Lends an address; false if the client cannot have it.
    pub(super) fn bind(
        &mut self,
        now: Instant,
        client: &Client,
        address: A,
        time: Duration,
        taken: &dyn Fn(A) -> bool,
    ) -> bool {
        let has = self.may_have(now, client, address, taken);
        if has {
            self.insert(client, address, State::Bound(client.clone()), now + time);
            self.changed = true;
        }
        has
    }

    /// Takes an address back from its client, which gets it again if it asks soon. False if it is
    /// not the client's.
    pub(super) fn release(&mut self, now: Instant, client: &Client, address: A) -> bool {
        let lease = self.by_address.get_mut(&address);
        let Some(lease) = lease.filter(|lease| lease.state.client() == Some(client)) else {
            return false;
        };
        lease.until = now;
        self.changed = true;
        true
    }

    /// Lets an address rest that its client has found in use. False if it is not the client's.
    pub(super) fn decline(&mut self, now: Instant, client: &Client, address: A) -> bool {
        let lease = self.by_address.get_mut(&address);
        let Some(lease) = lease.filter(|lease| lease.state.client() == Some(client)) else {
            return false;
        };
        *lease = Lease { state: State::Declined, until: now + QUARANTINE };
        self.by_client.remove(client);
        self.changed = true;
        true
    }

    /// Forgets what was offered to a client and not taken.
    pub(super) fn withdraw(&mut self, client: &Client) {
        let Some(address) = self.by_client.get(client).copied() else { return };
        let offered = |lease: &Lease| matches!(lease.state, State::Offered(_));
        if self.by_address.get(&address).is_some_and(offered) {
            self.by_address.remove(&address);
            self.by_client.remove(client);
        }
    }

    /// Leases that have not ended.
    pub fn iter(&self, now: Instant) -> impl Iterator<Item = (A, &Client)> {
        self.by_address.iter().filter(move |(_, lease)| lease.until > now).filter_map(
            |(address, lease)| match &lease.state {
                State::Bound(client) => Some((*address, client)),
                State::Offered(_) | State::Declined => None,
            },
        )
    }

    /// Whether there is something new to save since the last call.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// What has to outlive the process. `wall` is the time of day at `now`.
    #[must_use]
    pub fn save(&self, now: Instant, wall: SystemTime) -> Vec<SavedLease<A>> {
        let live = self.by_address.iter().filter(|(_, lease)| lease.until > now);
        live.filter_map(|(address, lease)| {
            let client = match &lease.state {
                State::Bound(client) => Some(client.to_string()),
                State::Declined => None,
                State::Offered(_) => return None,
            };
            let until = wall.checked_add(lease.until.duration_since(now))?;
            let until = until.duration_since(UNIX_EPOCH).ok()?.as_secs();
            Some(SavedLease { address: *address, client, until })
        })
        .collect()
    }

    /// Takes up what was saved. What has ended, lies outside of the pool or is malformed is left
    /// out.
    pub fn restore(&mut self, now: Instant, wall: SystemTime, saved: &[SavedLease<A>]) {
        for lease in saved {
            let until = UNIX_EPOCH.checked_add(Duration::from_secs(lease.until));
            let Some(left) = until.and_then(|until| until.duration_since(wall).ok()) else {
                continue;
            };
            let Some(until) = now.checked_add(left) else { continue };
            let fits =
                self.by_address.len() < MAX_LEASES && !self.by_address.contains_key(&lease.address);
            if left.is_zero() || !fits || !self.is_in_pool(lease.address) {
                continue;
            }
            match lease.client.as_deref().map(str::parse::<Client>) {
                Some(Ok(client)) => {
                    let state = State::Bound(client.clone());
                    self.insert(&client, lease.address, state, until);
                }
                Some(Err(_)) => {}
                None => {
                    let rests = Lease { state: State::Declined, until };
                    self.by_address.insert(lease.address, rests);
                }
            }
        }
    }

    fn is_in_pool(&self, address: A) -> bool {
        self.pool.as_ref().is_some_and(|pool| pool.contains(&address))
    }

    /// True if a client can have an address now.
    fn may_have(
        &self,
        now: Instant,
        client: &Client,
        address: A,
        taken: &dyn Fn(A) -> bool,
    ) -> bool {
        let free = match self.by_address.get(&address) {
            Some(lease) => lease.until <= now || lease.state.client() == Some(client),
            None => self.by_address.len() < MAX_LEASES,
        };
        free && self.is_in_pool(address) && !taken(address)
    }

    /// The lowest address that nobody has had.
    fn unused(&self, taken: &dyn Fn(A) -> bool) -> Option<A> {
        if self.by_address.len() >= MAX_LEASES {
            return None;
        }
        let pool = self.pool.as_ref()?;
        let mut had = self.by_address.range(pool.clone()).map(|(address, _)| *address).peekable();
        let all = std::iter::successors(Some(*pool.start()), |address| address.successor());
        // Addresses that are taken but not ours are few: those of plugs and services.
        all.take_while(|address| address <= pool.end())
            .take(MAX_LEASES.saturating_mul(2))
            .find(|address| had.next_if_eq(address).is_none() && !taken(*address))
    }

    /// The address whose lease ended first.
    fn ended(&self, now: Instant, taken: &dyn Fn(A) -> bool) -> Option<A> {
        let ended = self.by_address.iter().filter(|(_, lease)| lease.until <= now);
        let free = ended.filter(|(address, _)| self.is_in_pool(**address) && !taken(**address));
        free.min_by_key(|(_, lease)| lease.until).map(|(address, _)| *address)
    }

    /// Makes an address the client's only one.
    fn insert(&mut self, client: &Client, address: A, state: State, until: Instant) {
        if let Some(old) = self.by_client.insert(client.clone(), address)
            && old != address
        {
            self.by_address.remove(&old);
        }
        let before = self.by_address.insert(address, Lease { state, until });
        if let Some(other) = before.as_ref().and_then(|lease| lease.state.client())
            && other != client
        {
            self.by_client.remove(other);
        }
    }
}

/// A lease as it is saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedLease<A> {
    /// The address.
    pub address: A,
    /// The client, see [`Client`]; absent for an address that rests because somebody uses it.
    pub client: Option<String>,
    /// When it ends, seconds since 1970.
    pub until: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn address(n: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, n)
    }

    fn client(n: u8) -> Client {
        Client(vec![n])
    }

    fn leases(first: u8, last: u8) -> Leases<Ipv4Addr> {
        Leases::new(Some(address(first)..=address(last)))
    }

    fn nobody(_: Ipv4Addr) -> bool {
        false
    }

    #[test]
    fn clients_get_what_they_had_what_they_want_or_the_lowest() {
        let now = Instant::now();
        let mut leases = leases(10, 20);
        assert_eq!(leases.offer(now, &client(1), None, &nobody), Some(address(10)));
        assert_eq!(leases.offer(now, &client(2), Some(address(15)), &nobody), Some(address(15)));
        assert_eq!(leases.offer(now, &client(3), Some(address(15)), &nobody), Some(address(11)));
        assert_eq!(leases.offer(now, &client(4), Some(address(9)), &nobody), Some(address(12)));
        assert!(leases.bind(now, &client(1), address(10), HOUR, &nobody));
        assert!(leases.release(now, &client(1), address(10)));
        // Released, and yet kept for it.
        assert_eq!(leases.offer(now, &client(5), None, &nobody), Some(address(13)));
        assert_eq!(leases.offer(now, &client(1), None, &nobody), Some(address(10)));
        let planned = |at| at == address(14);
        assert_eq!(leases.offer(now, &client(6), Some(address(14)), &planned), Some(address(16)));
    }

    #[test]
    fn an_offer_that_is_not_taken_ends() {
        let now = Instant::now();
        let mut leases = leases(10, 10);
        assert_eq!(leases.offer(now, &client(1), None, &nobody), Some(address(10)));
        assert_eq!(leases.offer(now, &client(2), None, &nobody), None);
        let later = now + OFFER;
        assert_eq!(leases.offer(later, &client(2), None, &nobody), Some(address(10)));
        assert!(!leases.bind(later, &client(1), address(10), HOUR, &nobody));
        leases.withdraw(&client(2));
        assert!(leases.bind(later, &client(1), address(10), HOUR, &nobody));
    }

    #[test]
    fn when_all_are_used_the_first_that_ended_is_next() {
        let start = Instant::now();
        let mut leases = leases(10, 11);
        assert!(leases.bind(start, &client(1), address(10), 2 * HOUR, &nobody));
        assert!(leases.bind(start, &client(2), address(11), HOUR, &nobody));
        assert_eq!(leases.offer(start, &client(3), None, &nobody), None);
        assert_eq!(leases.iter(start).count(), 2);
        let end = start + 3 * HOUR;
        assert_eq!(leases.iter(end).count(), 0);
        assert_eq!(leases.offer(end, &client(3), None, &nobody), Some(address(11)));
    }

    #[test]
    fn a_declined_address_rests() {
        let now = Instant::now();
        let mut leases = leases(10, 11);
        assert!(leases.bind(now, &client(1), address(10), HOUR, &nobody));
        assert!(!leases.decline(now, &client(2), address(10)), "not its own");
        assert!(leases.decline(now, &client(1), address(10)));
        assert_eq!(leases.offer(now, &client(1), Some(address(10)), &nobody), Some(address(11)));
        assert!(!leases.bind(now, &client(2), address(10), HOUR, &nobody));
        let rested = now + QUARANTINE;
        assert!(leases.bind(rested, &client(2), address(10), HOUR, &nobody));
    }

    #[test]
    fn the_table_is_bounded() {
        let now = Instant::now();
        let first = Ipv4Addr::new(10, 0, 0, 0);
        let mut leases = Leases::new(Some(first..=Ipv4Addr::new(10, 255, 255, 255)));
        for n in 0..MAX_LEASES {
            let client = Client(n.to_be_bytes().to_vec());
            assert!(leases.offer(now, &client, None, &nobody).is_some());
        }
        let one_more = Client(vec![1]);
        assert_eq!(leases.offer(now, &one_more, None, &nobody), None);
        assert!(!leases.bind(now, &one_more, Ipv4Addr::new(10, 200, 0, 0), HOUR, &nobody));
        assert_eq!(leases.offer(now + OFFER, &one_more, None, &nobody), Some(first));
        assert_eq!(leases.by_address.len(), MAX_LEASES);
    }

    #[test]
    fn what_is_saved_comes_back_with_the_time_that_is_left() {
        let now = Instant::now();
        let wall = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let mut before = leases(10, 20);
        assert!(!before.take_changed());
        for n in [1, 2, 3] {
            assert!(before.bind(now, &client(n), address(10 + n), u32::from(n) * HOUR, &nobody));
        }
        assert!(before.decline(now, &client(3), address(13)));
        before.offer(now, &client(4), None, &nobody);
        assert!(before.take_changed());
        let saved = before.save(now, wall);
        let text = serde_json::to_string(&saved).unwrap();
        assert_eq!(
            text,
            r#"[{"address":"10.0.0.11","client":"01","until":1003600},{"address":"10.0.0.12","client":"02","until":1007200},{"address":"10.0.0.13","client":null,"until":1000600}]"#
        );
        let saved: Vec<SavedLease<Ipv4Addr>> = serde_json::from_str(&text).unwrap();

        // An hour passes while nobody runs.
        let mut after = leases(10, 20);
        after.restore(now, wall + HOUR, &saved);
        assert_eq!(after.iter(now).collect::<Vec<_>>(), [(address(12), &client(2))]);
        assert_eq!(after.iter(now + HOUR).count(), 0);
        let mut at_once = leases(10, 20);
        at_once.restore(now, wall, &saved);
        assert_eq!(at_once.save(now, wall), saved);
        let mut smaller = leases(12, 20);
        smaller.restore(now, wall, &saved);
        assert_eq!(smaller.iter(now).count(), 1);
        let bad = SavedLease { address: address(14), client: Some("xy".into()), until: 2_000_000 };
        smaller.restore(now, wall, &[bad]);
        assert_eq!(smaller.iter(now).count(), 1);
    }

    #[test]
    fn identifiers_are_written_in_hexadecimal() {
        let client = Client(vec![0, 0xff, 0x1a]);
        assert_eq!(client.to_string(), "00ff1a");
        assert_eq!("00FF1a".parse(), Ok(client));
        for text in ["0", "0g", "+1", "é"] {
            assert_eq!(text.parse::<Client>(), Err(ClientError), "{text}");
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Offer(u8, Option<u8>),
        Bind(u8, u8),
        Release(u8, u8),
        Decline(u8, u8),
        Withdraw(u8),
        Pass(u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        let (who, what) = (0..6u8, 8..18u8);
        prop_oneof![
            (who.clone(), prop::option::of(what.clone())).prop_map(|(a, b)| Step::Offer(a, b)),
            (who.clone(), what.clone()).prop_map(|(a, b)| Step::Bind(a, b)),
            (who.clone(), what.clone()).prop_map(|(a, b)| Step::Release(a, b)),
            (who.clone(), what).prop_map(|(a, b)| Step::Decline(a, b)),
            who.prop_map(Step::Withdraw),
            (0..2_000u16).prop_map(Step::Pass),
        ]
    }

    proptest! {
        /// No address is ever two clients', and nobody has one outside of the pool.
        #[test]
        fn an_address_is_one_clients(steps in prop::collection::vec(step(), 1..80)) {
            let mut now = Instant::now();
            let mut leases = leases(10, 14);
            let taken = |at| at == address(12);
            // Who may use an address until when, by what it was told.
            let mut told: HashMap<Ipv4Addr, (u8, Instant)> = HashMap::new();
            for step in steps {
                match step {
                    Step::Offer(who, wanted) => {
                        let offer = leases.offer(now, &client(who), wanted.map(address), &taken);
                        if let Some(at) = offer {
                            let other = told.get(&at);
                            prop_assert!(other.is_none_or(|(it, end)| *it == who || *end <= now));
                        }
                    }
                    Step::Bind(who, at) => {
                        let at = address(at);
                        if leases.bind(now, &client(who), at, HOUR, &taken) {
                            prop_assert!(at >= address(10) && at <= address(14) && !taken(at));
                            let other = told.get(&at);
                            prop_assert!(other.is_none_or(|(it, end)| *it == who || *end <= now));
                            told.retain(|_, (it, _)| *it != who);
                            told.insert(at, (who, now + HOUR));
                        }
                    }
                    Step::Release(who, at) => {
                        if leases.release(now, &client(who), address(at)) {
                            told.retain(|it, _| *it != address(at));
                        }
                    }
                    Step::Decline(who, at) => {
                        if leases.decline(now, &client(who), address(at)) {
                            told.retain(|it, _| *it != address(at));
                        }
                    }
                    Step::Withdraw(who) => leases.withdraw(&client(who)),
                    Step::Pass(seconds) => now += Duration::from_secs(seconds.into()),
                }
                for (who, at) in &leases.by_client {
                    let lease = leases.by_address.get(at);
                    prop_assert_eq!(lease.and_then(|lease| lease.state.client()), Some(who));
                }
                let clients = leases.by_address.values().filter(|it| it.state.client().is_some());
                prop_assert_eq!(clients.count(), leases.by_client.len());
            }
        }
    }
}
