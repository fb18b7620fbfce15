//! A store in memory, without SQL: what any store must do, in the plainest words. Tests do the same to it and to
//! [`Sqlite`](super::Sqlite), and see the same.

use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};

use super::{
    Audit, Deed, Holder, Login, Node, Nodes, NotPinned, Presence, RECLAIM_MS, Settings, Stamp,
    Subnet, Subnets, Terms, Token, Tokens,
};
use crate::admin::{Role, Roles};
use crate::error::{Blame, Error, Result};
use crate::join::{Secret, TokenId};
use crate::message::RejectCode;
use crate::policy::Policy;
use crate::relay::NodeId;

#[derive(Debug, Clone)]
struct Known {
    key: [u8; 32],
    node: Node,
    is_here: bool,
    is_revoked: bool,
}

/// The store.
#[derive(Debug, Default)]
pub(super) struct Memory {
    nodes: Vec<Known>,
    /// Slots up to this one were begun.
    begun: u32,
    given_back: BTreeSet<u32>,
    tokens: Vec<(TokenId, [u8; 16], Token)>,
    subnets: BTreeMap<(NodeId, String), Subnet>,
    policy: Option<Policy>,
    roles: Roles,
    deeds: Vec<Deed>,
}

impl Memory {
    fn write(&mut self, action: &str, subject: &str, by: &Stamp) {
        let Stamp { who, at_ms } = by.clone();
        let (action, subject) = (action.to_owned(), subject.to_owned());
        self.deeds.push(Deed { at_ms, who, action, subject });
    }

    fn holder(&self, slot: u32) -> Option<Holder> {
        let node = self.nodes.iter().find(|known| known.node.slot == Some(slot));
        let token = || self.tokens.iter().find(|(_, _, token)| token.slot == Some(slot));
        node.map(|known| Holder::Node(known.node.name.clone()))
            .or_else(|| token().map(|(id, ..)| Holder::Token(*id)))
    }

    fn give_back(&mut self, slot: Option<u32>) {
        self.given_back.extend(slot.filter(|slot| *slot <= self.begun));
    }

    fn sweep(&mut self, now_ms: i64) {
        let is_over = |token: &Token| token.expires_ms.is_some_and(|end| end <= now_ms);
        let over = self.tokens.iter_mut().filter(|(_, _, token)| is_over(token));
        for slot in over.map(|(_, _, token)| token.slot.take()).collect::<Vec<_>>() {
            self.give_back(slot);
        }
    }

    fn take_slot(&mut self, login: &Login<'_>) -> Option<u32> {
        self.sweep(login.now_ms);
        let lowest = self.given_back.first().copied().filter(|slot| *slot <= login.capacity);
        if lowest.is_some() {
            return self.given_back.pop_first();
        }
        while self.begun < login.capacity {
            self.begun += 1;
            if self.holder(self.begun).is_none() {
                return Some(self.begun);
            }
        }
        let long_ago = login.now_ms - RECLAIM_MS;
        let idle = self.nodes.iter_mut().filter(|known| {
            let is_idle = !known.is_here && known.node.seen_ms < long_ago;
            is_idle && known.node.slot.is_some() && !known.node.pinned
        });
        let known = idle.min_by_key(|known| known.node.seen_ms)?;
        let (slot, name) = (known.node.slot.take(), known.node.name.clone());
        self.write("reclaim-address", &name, &Stamp { who: "hub".into(), at_ms: login.now_ms });
        self.give_back(slot);
        self.take_slot(login)
    }

    fn check_token(&self, login: &Login<'_>) -> Result<usize, RejectCode> {
        let (id, secret) = login.token.ok_or(RejectCode::Unknown)?;
        let at =
            self.tokens.iter().position(|(known, hidden, _)| (*known, *hidden) == (id, secret.0));
        let token = at.map(|at| (at, &self.tokens[at].2)).ok_or(RejectCode::BadToken)?;
        match token {
            (_, Token { revoked_ms: Some(_), .. }) => Err(RejectCode::Revoked),
            (_, Token { expires_ms: Some(end), .. }) if login.now_ms >= *end => {
                Err(RejectCode::Expired)
            }
            (_, Token { uses_left: Some(0), .. }) => Err(RejectCode::Used),
            (at, _) => Ok(at),
        }
    }

    fn free_name(&self, wanted: &str) -> String {
        let names = || self.nodes.iter().map(|known| known.node.name.as_str()).chain(["hub"]);
        let dotted = |name: &str| format!(".{}", name.to_ascii_lowercase());
        let is_at = |one: &str, other: &str| dotted(one).ends_with(&dotted(other));
        let is_free =
            |name: &String| !names().any(|known| is_at(name, known) || is_at(known, name));
        let numbered = (2..).map(|number| format!("{wanted}-{number}"));
        std::iter::once(wanted.to_owned()).chain(numbered).find(is_free).unwrap()
    }

    fn enrol(&mut self, login: &Login<'_>) -> Result<usize, RejectCode> {
        let at = self.check_token(login)?;
        let reserved = self.tokens[at].2.slot;
        let slot = match reserved {
            Some(slot) => Some(slot).filter(|slot| *slot <= login.capacity),
            None => self.take_slot(login),
        };
        let slot = slot.ok_or(RejectCode::NoAddress)?;
        let pinned = reserved.is_some();
        let token = &mut self.tokens[at].2;
        token.slot = None;
        token.uses_left = token.uses_left.map(|uses| uses - 1);
        let who = format!("token {}", token.id);
        let name = self.free_name(login.name);
        self.write("join", &name, &Stamp { who, at_ms: login.now_ms });
        let id = NodeId::try_from(self.nodes.len()).unwrap() + 1;
        let (created_ms, seen_ms) = (login.now_ms, login.now_ms);
        let node = Node { id, name, slot: Some(slot), pinned, epoch: 0, created_ms, seen_ms };
        self.nodes.push(Known { key: *login.key, node, is_here: false, is_revoked: false });
        Ok(self.nodes.len() - 1)
    }
}

impl Nodes for Memory {
    fn login(&mut self, login: &Login<'_>) -> Result<Result<Node, RejectCode>> {
        let found = self.nodes.iter().position(|known| known.key == *login.key);
        let at = match found {
            Some(at) if self.nodes[at].is_revoked => return Ok(Err(RejectCode::Revoked)),
            Some(at) => at,
            None => match self.enrol(login) {
                Ok(at) => at,
                Err(code) => return Ok(Err(code)),
            },
        };
        if self.nodes[at].node.slot.is_none() {
            let Some(slot) = self.take_slot(login) else { return Ok(Err(RejectCode::NoAddress)) };
            self.nodes[at].node.slot = Some(slot);
        }
        let known = &mut self.nodes[at];
        known.node.epoch = known.node.epoch.max(login.epoch) + 1;
        known.node.seen_ms = login.now_ms;
        known.is_here = true;
        Ok(Ok(known.node.clone()))
    }

    fn keep_up(&mut self, presences: &[Presence], deeds: &[Deed]) -> Result<()> {
        for Presence { node, epoch, is_here, seen_ms } in presences {
            let is_it = |known: &&mut Known| {
                known.node.id == *node && known.node.epoch <= *epoch && !known.is_revoked
            };
            if let Some(known) = self.nodes.iter_mut().find(is_it) {
                known.node.epoch = *epoch;
                known.is_here = *is_here;
                known.node.seen_ms = known.node.seen_ms.max(*seen_ms);
            }
        }
        self.deeds.extend_from_slice(deeds);
        Ok(())
    }

    fn revoke_node(&mut self, name: &str, by: &Stamp) -> Result<Option<NodeId>> {
        let is_it = |known: &&mut Known| known.node.name == name && !known.is_revoked;
        let Some(known) = self.nodes.iter_mut().find(is_it) else { return Ok(None) };
        let id = known.node.id;
        known.is_revoked = true;
        known.is_here = false;
        known.node.name = format!("{name}#{id}");
        let slot = known.node.slot.take();
        self.give_back(slot);
        self.subnets.retain(|(node, _), _| *node != id);
        self.write("revoke-node", name, by);
        Ok(Some(id))
    }

    fn pin(
        &mut self,
        name: &str,
        (slot, place): (u32, &str),
        by: &Stamp,
    ) -> Result<Result<(NodeId, bool), NotPinned>> {
        let is_it = |known: &Known| known.node.name == name && !known.is_revoked;
        let Some(at) = self.nodes.iter().position(is_it) else {
            return Ok(Err(NotPinned::Unknown));
        };
        let moves = self.nodes[at].node.slot != Some(slot);
        if moves {
            self.sweep(by.at_ms);
            if let Some(holder) = self.holder(slot) {
                return Ok(Err(NotPinned::Taken(holder)));
            }
            let before = self.nodes[at].node.slot.replace(slot);
            self.give_back(before);
            self.given_back.remove(&slot);
        }
        self.nodes[at].node.pinned = true;
        self.write("pin-address", &format!("{name} {place}"), by);
        Ok(Ok((self.nodes[at].node.id, moves)))
    }

    fn unpin(&mut self, name: &str, by: &Stamp) -> Result<bool> {
        let is_it = |known: &&mut Known| known.node.name == name && !known.is_revoked;
        let Some(known) = self.nodes.iter_mut().find(is_it) else { return Ok(false) };
        known.node.pinned = false;
        self.write("unpin-address", name, by);
        Ok(true)
    }

    fn nodes(&self) -> Result<Vec<Node>> {
        let here = self.nodes.iter().filter(|known| !known.is_revoked);
        Ok(here.map(|known| known.node.clone()).collect())
    }
}

impl Tokens for Memory {
    fn create_token(
        &mut self,
        (id, secret): (TokenId, Secret),
        Terms { expires_ms, uses, slot }: Terms,
        by: &Stamp,
    ) -> Result<Result<(), Holder>> {
        self.sweep(by.at_ms);
        if let Some(slot) = slot {
            if let Some(holder) = self.holder(slot) {
                return Ok(Err(holder));
            }
            self.given_back.remove(&slot);
        }
        let token = Token {
            id: id.to_string(),
            created_ms: by.at_ms,
            expires_ms,
            uses_left: uses,
            revoked_ms: None,
            slot,
        };
        self.write("create-token", &token.id, by);
        self.tokens.push((id, secret.0, token));
        Ok(Ok(()))
    }

    fn revoke_token(&mut self, id: TokenId, by: &Stamp) -> Result<bool> {
        let found = self.tokens.iter_mut().find(|(known, ..)| *known == id);
        let Some((_, _, token)) = found else { return Ok(false) };
        token.revoked_ms.get_or_insert(by.at_ms);
        let slot = token.slot.take();
        self.give_back(slot);
        self.write("revoke-token", &id.to_string(), by);
        Ok(true)
    }

    fn tokens(&self) -> Result<Vec<Token>> {
        let mut tokens: Vec<_> = self.tokens.iter().map(|(_, _, token)| token.clone()).collect();
        tokens.sort_by_key(|token| token.created_ms);
        Ok(tokens)
    }
}

impl Subnets for Memory {
    fn offer(&mut self, node: NodeId, subnets: &[IpNet]) -> Result<()> {
        for ((of, _), subnet) in &mut self.subnets {
            subnet.offered &= *of != node;
        }
        for prefix in subnets {
            let fresh = Subnet { prefix: *prefix, offered: true, accepted: false };
            self.subnets.entry((node, prefix.to_string())).or_insert(fresh).offered = true;
        }
        self.subnets.retain(|_, subnet| subnet.offered || subnet.accepted);
        Ok(())
    }

    fn subnets(&self) -> Result<Vec<(NodeId, Subnet)>> {
        Ok(self.subnets.iter().map(|((node, _), subnet)| (*node, *subnet)).collect())
    }

    fn judge_subnet(&mut self, name: &str, prefix: IpNet, accept: bool, by: &Stamp) -> Result<()> {
        let error = |blame| Err(Error::new(blame, "judge a subnet", "it cannot be"));
        let is_it = |known: &&Known| known.node.name == name && !known.is_revoked;
        let node = self.nodes.iter().find(is_it).map(|known| known.node.id);
        let key = (node.unwrap_or_default(), prefix.to_string());
        if !self.subnets.contains_key(&key) {
            return error(Blame::Unknown);
        }
        let mut others = self.subnets.iter().filter(|((of, _), _)| *of != key.0);
        let is_taken = others.any(|(_, it)| it.prefix == prefix && it.accepted);
        if accept && prefix.prefix_len() > 0 && is_taken {
            return error(Blame::Conflict);
        }
        self.subnets.entry(key).and_modify(|subnet| subnet.accepted = accept);
        self.subnets.retain(|_, subnet| subnet.offered || subnet.accepted);
        let action = if accept { "accept-subnet" } else { "refuse-subnet" };
        self.write(action, &format!("{name} {prefix}"), by);
        Ok(())
    }

    fn exit(&self, name: &str) -> Result<Option<NodeId>> {
        let nodes = self.nodes()?;
        let node = nodes.iter().find(|node| node.name == name).map(|node| node.id);
        let leads = |(of, subnet): &(NodeId, Subnet)| {
            Some(*of) == node && subnet.accepted && subnet.prefix.prefix_len() == 0
        };
        Ok(self.subnets()?.into_iter().find(leads).map(|(of, _)| of))
    }
}

impl Settings for Memory {
    fn policy(&self) -> Result<Option<Policy>> {
        Ok(self.policy.clone())
    }

    fn set_policy(&mut self, policy: Option<&Policy>, by: &Stamp) -> Result<()> {
        self.policy = policy.cloned();
        self.write(if policy.is_some() { "set-policy" } else { "remove-policy" }, "", by);
        Ok(())
    }

    fn roles(&self) -> Result<Roles> {
        Ok(self.roles.clone())
    }

    fn set_role(&mut self, user: u32, role: Option<Role>, by: &Stamp) -> Result<Roles> {
        match role {
            Some(role) => {
                self.roles.insert(user, role);
                self.write("grant-role", &format!("user {user} {role}"), by);
            }
            None => {
                self.roles.remove(&user);
                self.write("revoke-role", &format!("user {user}"), by);
            }
        }
        Ok(self.roles.clone())
    }
}

impl Audit for Memory {
    fn note(&mut self, action: &str, subject: &str, by: &Stamp) -> Result<()> {
        self.write(action, subject, by);
        Ok(())
    }

    fn audit(&self, most: u32) -> Result<Vec<Deed>> {
        Ok(self.deeds.iter().rev().take(most as usize).cloned().collect())
    }
}
