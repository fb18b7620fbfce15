//! What a hub answers to its control API.

use std::path::PathBuf;
use std::rc::Rc;

use tokio::sync::mpsc;

use super::Hub;
use crate::admin::{Ask, BackupWanted, HubStatus, PeerStatus, SubnetJudged, TokenCreated};
use crate::clock::now_ms;
use crate::error::{Blame, Error, Result};
use crate::identity;
use crate::join::{Join, Secret, TokenId};
use crate::policy::Policy;
use crate::store::Node;

impl Hub {
    pub(super) async fn answer(self: Rc<Self>, mut asks: mpsc::Receiver<Ask>) {
        while let Some(ask) = asks.recv().await {
            // Whoever asked may be gone.
            match ask {
                Ask::Hub(answer) => drop(answer.send(Ok(self.status()))),
                Ask::Peers(answer) => drop(answer.send(self.peers().await)),
                Ask::RevokePeer { name, answer } => drop(answer.send(self.revoke(name).await)),
                Ask::Tokens(answer) => {
                    drop(answer.send(self.with_store(|store| store.tokens()).await));
                }
                Ask::CreateToken { wanted, answer } => {
                    let created = self.create_token(wanted.life_ms, wanted.uses).await;
                    drop(answer.send(created));
                }
                Ask::RevokeToken { id, answer } => {
                    drop(answer.send(self.revoke_token(id).await));
                }
                Ask::JudgeSubnet { name, judged, answer } => {
                    drop(answer.send(self.judge_subnet(name, judged).await));
                }
                Ask::SetPolicy { policy, answer } => {
                    drop(answer.send(self.set_policy(policy).await));
                }
                Ask::Audit { most, answer } => {
                    drop(answer.send(self.with_store(move |store| store.audit(most)).await));
                }
                Ask::BackUp { wanted, answer } => {
                    drop(answer.send(self.back_up(wanted).await));
                }
            }
        }
    }

    pub(super) fn status(&self) -> HubStatus {
        let plan = &self.options.plan;
        HubStatus {
            name: self.options.name.clone(),
            listen: self.options.listen,
            udp: self.udp.is_some(),
            reached_as: self.endpoint.to_string(),
            pin: self.pin.to_string(),
            network: plan.network(),
            network6: plan.network6(),
            addressing: plan.addressing(),
            address: plan.hub().address,
            address6: plan.hub().address6,
            device: self.device.name().to_owned(),
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

    async fn peers(&self) -> Result<Vec<PeerStatus>> {
        let known = self.with_store(|store| Ok((store.nodes()?, store.subnets()?)));
        let (nodes, subnets) = known.await?;
        let behind = |id| subnets.iter().filter(move |(node, _)| *node == id);
        let status = |node: Node| {
            let subnets = behind(node.id).map(|(_, subnet)| *subnet).collect();
            PeerStatus { subnets, ..self.sessions.peer_status(node, &self.options.plan) }
        };
        Ok(nodes.into_iter().map(status).collect())
    }

    async fn revoke(&self, name: String) -> Result<String> {
        let revoked = {
            let name = name.clone();
            self.with_store(move |store| store.revoke_node(&name, now_ms())).await?
        };
        match revoked {
            Some(node) => {
                self.sessions.revoke(node);
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

    async fn create_token(&self, life_ms: Option<i64>, uses: Option<u32>) -> Result<TokenCreated> {
        let (id, secret) = (TokenId(identity::random()?), Secret(identity::random()?));
        let now = now_ms();
        let expires_ms = life_ms.map(|life| now.saturating_add(life));
        self.with_store(move |store| store.create_token((id, secret), expires_ms, uses, now))
            .await?;
        let join = Join { token: id, secret, hub: self.endpoint.clone(), pin: self.pin };
        Ok(TokenCreated { id: id.to_string(), join: join.to_string(), expires_ms, uses })
    }

    async fn revoke_token(&self, id: String) -> Result<String> {
        let unknown = || {
            Error::new(
                Blame::Unknown,
                format!("revoke the token {id}"),
                "there is none of that name",
            )
            .next("see `netyard token ls`")
        };
        let token: TokenId = id.parse().map_err(|_| unknown())?;
        match self.with_store(move |store| store.revoke_token(token, now_ms())).await? {
            true => Ok(id),
            false => Err(unknown()),
        }
    }

    async fn judge_subnet(&self, name: String, judged: SubnetJudged) -> Result<SubnetJudged> {
        let SubnetJudged { prefix, accepted } = judged;
        let prefix = prefix.trunc();
        self.with_store(move |store| store.judge_subnet(&name, prefix, accepted, now_ms())).await?;
        self.refresh().await?;
        Ok(SubnetJudged { prefix, accepted })
    }

    async fn set_policy(&self, policy: Option<Policy>) -> Result<Option<Policy>> {
        if let Some(policy) = &policy {
            policy.check().map_err(|found| Error::new(Blame::Input, "set the policy", found))?;
        }
        let written = policy.clone();
        self.with_store(move |store| store.set_policy(written.as_ref(), now_ms())).await?;
        self.refresh().await?;
        Ok(policy)
    }

    async fn back_up(&self, wanted: BackupWanted) -> Result<BackupWanted> {
        if !wanted.file.is_absolute() {
            let wanted = format!("back the hub's database up to {}", wanted.file.display());
            return Err(Error::new(Blame::Input, wanted, "that is no absolute path"));
        }
        let file: PathBuf = wanted.file.clone();
        self.with_store(move |store| store.back_up(&file)).await?;
        Ok(wanted)
    }
}
