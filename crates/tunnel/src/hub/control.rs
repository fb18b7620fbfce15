//! What a hub answers to its control API.

use std::fmt::Display;
use std::path::PathBuf;
use std::rc::Rc;

use serde::Serialize;
use serde_json::Value;
use tokio::sync::mpsc;

use super::Hub;
use super::network::{Door, Network, Place};
use super::reached;
use super::wanted::{MAIN, NetworkOptions, forget, withdraw};
use crate::addresses::Chosen;
use crate::admin::{
    Ask, BackupWanted, HubStatus, NetworkAsk, PeerStatus, ReachedAt, Request, Role, Roles,
    SubnetJudged, TokenCreated, TokenStatus, TokenWanted, metrics,
};
use crate::clock::now_ms;
use crate::error::{Blame, Error, Result};
use crate::identity;
use crate::join::{Join, Secret, TokenId, is_network};
use crate::message::{ByeReason, RejectCode};
use crate::policy::Policy;
use crate::relay::NodeId;
use crate::store::{Holder, Node, NotPinned, Stamp, Terms, Token};

impl Hub {
    /// Answers requests, one after the other.
    pub(super) async fn answer(self: Rc<Self>, mut asks: mpsc::Receiver<Request>) {
        while let Some(Request { ask, by, answer }) = asks.recv().await {
            let allowed = by.check(&self.roles.borrow(), ask.needs());
            let done = match allowed {
                Ok(()) => self.act(ask, Stamp { who: by.to_string(), at_ms: now_ms() }).await,
                Err(error) => Err(error),
            };
            // Whoever asked may be gone.
            _ = answer.send(done);
        }
    }

    async fn act(&self, ask: Ask, by: Stamp) -> Result<Value> {
        match ask {
            Ask::Networks => {
                json(self.networks.all().iter().map(|it| it.status()).collect::<Vec<_>>())
            }
            Ask::AddNetwork(wanted) => json(self.add(wanted, by).await?),
            Ask::RemoveNetwork(name) => json(self.remove(name, by).await?),
            Ask::Metrics => json(self.metrics().await?),
            Ask::Roles => json(&*self.roles.borrow()),
            Ask::SetRole { user, role } => json(self.set_role(user, role, by).await?),
            Ask::Of { network, ask } => {
                let found = self.networks.find(network.as_deref());
                found.ok_or_else(|| no_network(&network.unwrap_or_default()))?.act(ask, by).await
            }
        }
    }

    /// Counters of all networks, for Prometheus.
    async fn metrics(&self) -> Result<String> {
        let mut networks = Vec::new();
        for network in self.networks.all() {
            networks.push((network.status(), network.peers().await?));
        }
        Ok(metrics::text(&networks))
    }

    /// Has one more network, now and after the next start.
    async fn add(&self, wanted: NetworkOptions, by: Stamp) -> Result<HubStatus> {
        let network = wanted.name.clone();
        let folder = self.options.place(&network).state;
        wanted.check_zone()?;
        if self.networks.find(Some(&network)).is_none() && is_network(&network) {
            // What is left of one that was being added or removed when the hub was killed.
            forget(&folder)?;
        }
        let network = self.open(wanted).await?;
        match network.options.keep(&folder) {
            Ok(()) => {
                self.note("add-network", &network.options.name, by).await.map(|()| network.status())
            }
            Err(error) => self.end(&network).await.and(Err(error)),
        }
    }

    /// Ends a network, and forgets what it has known.
    async fn remove(&self, name: String, by: Stamp) -> Result<String> {
        if name == MAIN {
            let wanted = format!("remove the network {name}");
            return Err(Error::new(Blame::Input, wanted, "it is the one that every hub has"));
        }
        let network = self.networks.find(Some(&name)).ok_or_else(|| no_network(&name))?;
        let folder = self.options.place(&name).state;
        withdraw(&folder)?;
        self.end(&network).await?;
        let Place { state, runtime, .. } = self.options.place(&name);
        forget(&state).and(forget(&runtime))?;
        self.note("remove-network", &name, by).await.map(|()| name)
    }

    async fn set_role(&self, user: u32, role: Option<Role>, by: Stamp) -> Result<Roles> {
        // Every hub has its main network.
        let Some(main) = self.networks.find(None) else { return Ok(Roles::new()) };
        let roles = main.with_store(move |store| store.set_role(user, role, &by)).await?;
        self.roles.replace(roles.clone());
        Ok(roles)
    }

    /// Writes down what was done to networks: with the main one, which stays.
    async fn note(&self, action: &'static str, name: &str, by: Stamp) -> Result<()> {
        let Some(main) = self.networks.find(None) else { return Ok(()) };
        let name = name.to_owned();
        main.with_store(move |store| store.note(action, &name, &by)).await
    }

    async fn end(&self, network: &Network) -> Result<()> {
        let closed = network.close().await;
        closed.and(self.networks.remove(&network.options.name))
    }
}

fn no_network(name: &str) -> Error {
    let wanted = format!("find the network {name}");
    Error::new(Blame::Unknown, wanted, "the hub has none of that name")
        .next("see `netyard hub network ls`")
}

/// Whose an address is that somebody else shall have.
fn taken(address: Option<Chosen>, holder: &Holder) -> String {
    let address = address.map_or(String::new(), |address| address.to_string());
    match holder {
        Holder::Node(name) => format!("{address} is the address of {name}"),
        Holder::Token(id) => format!("{address} is kept for whoever joins with the token {id}"),
    }
}

/// An answer as it is sent.
fn json(answer: impl Serialize) -> Result<Value> {
    let failed = |error| Error::new(Blame::System, "answer a request", error);
    serde_json::to_value(answer).map_err(failed)
}

impl Network {
    async fn act(&self, ask: NetworkAsk, by: Stamp) -> Result<Value> {
        match ask {
            NetworkAsk::Status => json(self.status()),
            NetworkAsk::Health => json(self.with_store(|store| store.check()).await?),
            NetworkAsk::Peers => json(self.peers().await?),
            NetworkAsk::Peer(name) => json(self.peer(&name).await?),
            NetworkAsk::RevokePeer(name) => json(self.revoke(name, by).await?),
            NetworkAsk::Pin { name, address } => json(self.pin(name, address, by).await?),
            NetworkAsk::JudgeSubnet { name, judged } => {
                json(self.judge_subnet(name, judged, by).await?)
            }
            NetworkAsk::Tokens => json(self.tokens().await?),
            NetworkAsk::CreateToken(wanted) => json(self.create_token(wanted, by).await?),
            NetworkAsk::RevokeToken(id) => json(self.revoke_token(id, by).await?),
            NetworkAsk::Policy => json(&self.knowledge.borrow().policy),
            NetworkAsk::SetPolicy(policy) => json(self.set_policy(policy, by).await?),
            NetworkAsk::Audit { most } => {
                json(self.with_store(move |store| store.audit(most)).await?)
            }
            NetworkAsk::BackUp(wanted) => json(self.back_up(wanted, by).await?),
        }
    }

    async fn peer(&self, name: &str) -> Result<PeerStatus> {
        let found = self.peers().await?.into_iter().find(|peer| peer.name == name);
        found.ok_or_else(|| {
            let wanted = format!("look at the peer {name}");
            Error::new(Blame::Unknown, wanted, "no peer has that name")
        })
    }

    pub(super) fn status(&self) -> HubStatus {
        let plan = &self.plan;
        HubStatus {
            name: self.door.hub.clone(),
            network_name: self.options.name.clone(),
            listen: self.door.listen,
            udp: self.door.udp.is_some(),
            reached_as: self.door.endpoint.to_string(),
            reached_at: self.reached_at(),
            descriptors: self.door.descriptors,
            pin: self.door.pin.to_string(),
            network: plan.network(),
            network6: plan.network6(),
            addressing: plan.addressing(),
            address: plan.hub().address,
            address6: plan.hub().address6,
            device: self.device().name().to_owned(),
            mtu: self.options.mtu,
            exit: self.options.exit,
            zone: self.options.zone.clone(),
            dns: self.dns().is_some(),
            policy: self.knowledge.borrow().policy.clone(),
            connected: self.sessions.count(),
            capacity: plan.capacity(),
            drops: self.relay.borrow().drops(),
            device_refused: self.device_refused.get(),
        }
    }

    /// Where its machine has addresses that it listens at.
    fn reached_at(&self) -> Vec<ReachedAt> {
        let networks = self.others.upgrade().map(|others| others.all()).unwrap_or_default();
        let own: Vec<_> = networks.iter().map(|network| network.device().index()).collect();
        let found = reached::at_cards(self.door.listen, &own);
        let told = found.inspect_err(|error| tracing::warn!(%error, "addresses are not known"));
        told.unwrap_or_default()
    }

    async fn peers(&self) -> Result<Vec<PeerStatus>> {
        let known = self.with_store(|store| Ok((store.nodes()?, store.subnets()?)));
        let (nodes, subnets) = known.await?;
        let behind = |id| subnets.iter().filter(move |(node, _)| *node == id);
        let status = |node: Node| {
            let subnets = behind(node.id).map(|(_, subnet)| *subnet).collect();
            PeerStatus { subnets, ..self.sessions.peer_status(node, &self.plan) }
        };
        Ok(nodes.into_iter().map(status).collect())
    }

    /// A node is here no more from now on, whether it listens or not, and does not come back while the database cannot
    /// be used.
    fn turn_out(&self, node: NodeId) {
        self.relay.borrow_mut().remove(node);
        self.book.oust(node, RejectCode::Revoked);
        if let Some(outbox) = self.sessions.cut(node, ByeReason::Revoked) {
            self.door.close_udp(&outbox);
        }
        self.stale.notify_one();
    }

    async fn revoke(&self, name: String, by: Stamp) -> Result<String> {
        let revoked = {
            let name = name.clone();
            self.with_store(move |store| store.revoke_node(&name, &by)).await
        };
        let known = self.book.named(&name);
        let revoked = revoked.map_err(|error| match known {
            // It cannot be written down, and it can be done.
            Some(node) => {
                self.turn_out(node);
                error.next(format!(
                    "{name} is turned out as long as the database cannot be used: revoke it again then"
                ))
            }
            None => error,
        })?;
        match revoked {
            Some(node) => {
                self.turn_out(node);
                self.refresh().await?;
                Ok(name)
            }
            None => Err(Error::new(
                Blame::Unknown,
                format!("revoke the peer {name}"),
                "no peer has that name",
            )
            .next("see `netyard peers`")),
        }
    }

    /// Gives a peer an address for good, or has it keep its own as others do.
    async fn pin(&self, name: String, address: Option<Chosen>, by: Stamp) -> Result<PeerStatus> {
        let failed = |blame, found: &dyn Display| {
            let wanted = match address {
                Some(address) => format!("give the peer {name} the address {address}"),
                None => format!("unpin the peer {name}"),
            };
            Error::new(blame, wanted, found)
        };
        let unknown =
            || failed(Blame::Unknown, &"no peer has that name").next("see `netyard peers`");
        let slot = address.map(|address| self.plan.chosen(address)).transpose();
        let slot = slot.map_err(|found| failed(Blame::Input, &found))?;
        let (peer, place) = (name.clone(), address.map(|address| address.to_string()));
        let done = self.with_store(move |store| match (slot, &place) {
            (Some(slot), Some(place)) => store.pin(&peer, (slot, place), &by),
            _ => Ok(store.unpin(&peer, &by)?.then_some((0, false)).ok_or(NotPinned::Unknown)),
        });
        match done.await? {
            Ok((node, true)) => {
                self.readdress(node);
                self.refresh().await?;
            }
            Ok((_, false)) => {}
            Err(NotPinned::Unknown) => return Err(unknown()),
            Err(NotPinned::Taken(holder)) => {
                return Err(failed(Blame::Conflict, &taken(address, &holder))
                    .next("choose another one, or see who has it by `netyard peers` and `netyard token ls`"));
            }
        }
        self.peer(&name).await
    }

    /// A node has another address: it must log in again to know.
    pub(super) fn readdress(&self, node: NodeId) {
        self.relay.borrow_mut().remove(node);
        self.book.oust(node, RejectCode::Busy);
        self.sessions.end_lane(node, ByeReason::Readdressed);
    }

    async fn tokens(&self) -> Result<Vec<TokenStatus>> {
        let tokens = self.with_store(|store| store.tokens()).await?;
        let address = |slot| self.plan.slot(slot).map(|slot| slot.address);
        let status = |token: Token| TokenStatus { address: token.slot.and_then(address), token };
        Ok(tokens.into_iter().map(status).collect())
    }

    async fn create_token(&self, wanted: TokenWanted, by: Stamp) -> Result<TokenCreated> {
        let TokenWanted { life_ms, uses, address } = wanted;
        let failed = |blame, found: &dyn Display| Error::new(blame, "make a token", found);
        if address.is_some() && uses != Some(1) {
            let found = "an address is one machine's, and more may join with it";
            return Err(failed(Blame::Input, &found).next("make it for one use"));
        }
        let slot = address.map(|address| self.plan.chosen(address)).transpose();
        let slot = slot.map_err(|found| failed(Blame::Input, &found))?;
        let (id, secret) = (TokenId(identity::random()?), Secret(identity::random()?));
        let expires_ms = life_ms.map(|life| by.at_ms.saturating_add(life));
        let terms = Terms { expires_ms, uses, slot };
        let made = self.with_store(move |store| store.create_token((id, secret), terms, &by));
        made.await?.map_err(|holder| failed(Blame::Conflict, &taken(address, &holder)))?;
        let Door { endpoint, pin, .. } = &*self.door;
        let network = (self.options.name != MAIN).then(|| self.options.name.clone());
        let join = Join { token: id, secret, hub: endpoint.clone(), network, pin: *pin };
        Ok(TokenCreated { id: id.to_string(), join: join.to_string(), expires_ms, uses })
    }

    async fn revoke_token(&self, id: String, by: Stamp) -> Result<String> {
        let unknown = || {
            Error::new(
                Blame::Unknown,
                format!("revoke the token {id}"),
                "there is none of that name",
            )
            .next("see `netyard token ls`")
        };
        let token: TokenId = id.parse().map_err(|_| unknown())?;
        match self.with_store(move |store| store.revoke_token(token, &by)).await? {
            true => Ok(id),
            false => Err(unknown()),
        }
    }

    async fn judge_subnet(
        &self,
        name: String,
        judged: SubnetJudged,
        by: Stamp,
    ) -> Result<SubnetJudged> {
        let SubnetJudged { prefix, accepted } = judged;
        let prefix = prefix.trunc();
        self.with_store(move |store| store.judge_subnet(&name, prefix, accepted, &by)).await?;
        self.refresh().await?;
        Ok(SubnetJudged { prefix, accepted })
    }

    async fn set_policy(&self, policy: Option<Policy>, by: Stamp) -> Result<Option<Policy>> {
        if let Some(policy) = &policy {
            policy.check().map_err(|found| Error::new(Blame::Input, "set the policy", found))?;
        }
        let written = policy.clone();
        self.with_store(move |store| store.set_policy(written.as_ref(), &by)).await?;
        self.refresh().await?;
        Ok(policy)
    }

    async fn back_up(&self, wanted: BackupWanted, by: Stamp) -> Result<BackupWanted> {
        if !wanted.file.is_absolute() {
            let wanted = format!("back the hub's database up to {}", wanted.file.display());
            return Err(Error::new(Blame::Input, wanted, "that is no absolute path"));
        }
        let file: PathBuf = wanted.file.clone();
        self.with_store(move |store| store.back_up(&file)).await?;
        // When that is possible: a copy is wanted most where a disk is full.
        self.book.note("back-up", &wanted.file.display().to_string(), by);
        Ok(wanted)
    }
}
