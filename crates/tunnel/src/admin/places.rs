//! Connections to a hub's control sockets: who may have how many, and for how long.
//!
//! Root and the hub's own user are not counted. A user with a role may have [`MANY`]. All others, of whom every
//! question is refused, share [`STRANGERS`], of which one may have [`FEW`], for [`STRANGERS_LIFE`]. So they use up neither
//! the hub's descriptors nor the places of those who work at it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

/// Of a user with a role.
const MANY: usize = 16;
/// Of a user without.
const FEW: usize = 4;
/// Of all users without a role.
const STRANGERS: usize = 32;

/// How long the connection of a user without a role may be there.
pub(super) const STRANGERS_LIFE: Duration = Duration::from_secs(5);

/// What a user is to a hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Root, or the hub's own.
    Own,
    /// With a role.
    Known,
    /// Without.
    Stranger,
}

/// The connections that there are.
#[derive(Debug, Clone, Default)]
pub(super) struct Places(Rc<RefCell<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    users: HashMap<u32, usize>,
    strangers: usize,
}

/// A connection's, until it ends.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    user: u32,
    standing: Standing,
}

impl Places {
    /// One more of this user; `None`: there are enough.
    pub(super) fn take(&self, user: u32, standing: Standing) -> Option<Place> {
        let mut taken = self.0.borrow_mut();
        let own = taken.users.get(&user).copied().unwrap_or(0);
        match standing {
            Standing::Own => {}
            Standing::Known if own < MANY => *taken.users.entry(user).or_default() += 1,
            Standing::Stranger if own < FEW && taken.strangers < STRANGERS => {
                *taken.users.entry(user).or_default() += 1;
                taken.strangers += 1;
            }
            Standing::Known | Standing::Stranger => return None,
        }
        Some(Place { places: self.clone(), user, standing })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.borrow_mut();
        if self.standing == Standing::Stranger {
            taken.strangers -= 1;
        }
        if self.standing != Standing::Own
            && let Some(own) = taken.users.get_mut(&self.user)
        {
            *own -= 1;
            if *own == 0 {
                taken.users.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(places: &Places, user: u32, standing: Standing) -> Vec<Place> {
        std::iter::from_fn(|| places.take(user, standing)).take(100).collect()
    }

    #[test]
    fn strangers_use_up_their_own_places_alone() {
        let places = Places::default();
        let each: Vec<_> = (0..20).map(|user| take(&places, user, Standing::Stranger)).collect();
        let counts: Vec<_> = each.iter().map(Vec::len).collect();
        assert_eq!(counts.iter().sum::<usize>(), STRANGERS);
        assert!(counts.iter().all(|count| *count == FEW || *count == 0), "{counts:?}");
        assert_eq!(take(&places, 0, Standing::Known).len(), MANY - FEW, "of the same user");
        let known = take(&places, 30, Standing::Known);
        assert_eq!((known.len(), take(&places, 0, Standing::Own).len()), (MANY, 100));
        drop((each, known));
        assert!(places.0.borrow().users.is_empty());
        assert_eq!(take(&places, 1, Standing::Stranger).len(), FEW);
    }
}
