//! As whom the outside sees what this machine sends by one card.

use std::net::IpAddr;

use crate::discover::external;
use crate::nat::NatReport;
use crate::nat::live::{self, Options};
use crate::stun::StunProber;
use crate::{Agreement, Card, External, Family, IpRange, Probe, Prober as _, PublicPolicy};

/// Whom to ask, and what is made of the answers.
#[derive(Debug, Clone)]
pub struct Look {
    /// Names or addresses of STUN servers. With none nothing is sent, and nothing known.
    pub servers: Vec<String>,
    /// How many of them have to see the same address.
    pub agree: usize,
    /// Which addresses are public.
    pub public: PublicPolicy,
    /// Ask the gateway too where the NAT is tested; see [`Options::gateway`].
    pub gateway: bool,
}

/// What servers saw.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// The external address, or why it is not known.
    pub external: External,
    /// What the NAT does; `None`: it was not tested, or no server has an address of the family.
    pub nat: Option<NatReport>,
}

impl Look {
    /// Looks from an address of a card, and tests the NAT too if `nat` says so.
    pub async fn from(&self, card: &Card, address: IpAddr, nat: bool) -> Seen {
        let prober = StunProber { servers: self.servers.clone() };
        let probe = Probe { card: card.index, from: address };
        let agreement = prober.probe(probe, Agreement::new(self.agree)).await;
        let external = match external(agreement.verdict(), &self.public) {
            Ok((seen, _)) => External::Known(IpRange::host(seen)),
            Err(why) => External::Unknown(why),
        };
        let options = Options {
            card: Some(card.name.clone()),
            address: Some(address),
            gateway: self.gateway,
            ..Options::new(self.servers.clone(), Family::of(address))
        };
        let nat = if nat { live::test(&options).await.ok() } else { None };
        Seen { external, nat }
    }
}
