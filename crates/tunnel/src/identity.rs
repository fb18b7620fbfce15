//! Who is who: the keys of nodes, and the authority of a hub.
//!
//! A node has an Ed25519 key that is made on it and never leaves it. It proves it by signing what only this
//! TLS connection has (RFC 8446 section 7.5, RFC 9266), so that a signature is worth nothing on any other.
//!
//! A hub has an authority of its own, whose certificate's hash is in its join strings. Nobody else's word
//! counts, and no name: who was given the join string knows the hub.

use std::fmt;

use aws_lc_rs::constant_time;
use aws_lc_rs::digest::{self, SHA256};
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use crate::error::{Blame, Error, Result};
use crate::text;

/// The name in every hub's certificate. Hubs are known by their authority, not by where they are.
pub const HUB_NAME: &str = "hub.netyard.internal";

/// What is signed begins so: a signature for anything else does not fit.
const PROOF_CONTEXT: &[u8] = b"netyard login v1\0";

/// The label of the keying material that is signed (RFC 5705 section 4: experimental).
pub(crate) const EXPORTER_LABEL: &[u8] = b"EXPORTER-netyard-login-v1";

/// The SHA-256 of the certificate of a hub's authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pin(pub [u8; 32]);

impl Pin {
    /// Of a certificate (DER).
    #[must_use]
    pub fn of(certificate: &[u8]) -> Self {
        Self(sha256(certificate))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text::encode(&self.0))
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    // SHA-256 has 32 bytes.
    if let Some(bytes) = digest::digest(&SHA256, bytes).as_ref().first_chunk() {
        hash = *bytes;
    }
    hash
}

/// Whether two secrets are the same, in a time that tells nothing.
pub(crate) fn same(one: &[u8], other: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(one, other).is_ok()
}

/// Bytes that nobody can guess.
///
/// # Errors
/// The system gives none.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let none = |_| Error::new(Blame::System, "make a key", "the system gives no randomness");
    SystemRandom::new().fill(&mut bytes).map_err(none)?;
    Ok(bytes)
}

/// A node's key.
pub struct NodeKey {
    seed: [u8; 32],
    pair: Ed25519KeyPair,
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({}, ..)", text::encode(&self.public()))
    }
}

impl NodeKey {
    /// A new one.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn generate() -> Result<Self> {
        Self::from_seed(random()?)
    }

    /// The key that [`NodeKey::seed`] was of.
    ///
    /// # Errors
    /// No seed of a key.
    pub fn from_seed(seed: [u8; 32]) -> Result<Self> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed)
            .map_err(|error| Error::new(Blame::Input, "read a node's key", error))?;
        Ok(Self { seed, pair })
    }

    /// What is to be kept, and shown to nobody.
    #[must_use]
    pub const fn seed(&self) -> &[u8; 32] {
        &self.seed
    }

    /// The public key.
    #[must_use]
    pub fn public(&self) -> [u8; 32] {
        // Ed25519 keys have 32 bytes.
        self.pair.public_key().as_ref().first_chunk().copied().unwrap_or_default()
    }

    /// Signs the keying material of a connection.
    #[must_use]
    pub fn prove(&self, exported: &[u8; 32]) -> [u8; 64] {
        let signature = self.pair.sign(&[PROOF_CONTEXT, exported].concat());
        // Ed25519 signatures have 64 bytes.
        signature.as_ref().first_chunk().copied().unwrap_or([0; 64])
    }
}

/// Whether the owner of a public key signed the keying material of this connection.
#[must_use]
pub fn is_proved(public: &[u8; 32], exported: &[u8; 32], proof: &[u8; 64]) -> bool {
    let key = UnparsedPublicKey::new(&ED25519, public);
    key.verify(&[PROOF_CONTEXT, exported].concat(), proof).is_ok()
}

/// A hub's certificates and the key of the second, as PEM. They are made once.
#[derive(Clone)]
pub struct HubCertificates {
    /// The hub's certificate, then its authority's.
    pub chain: String,
    /// The key of the hub's certificate.
    pub key: String,
    /// The key of the authority, for the hub's next certificate.
    pub authority_key: String,
}

impl fmt::Debug for HubCertificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubCertificates").field("chain", &self.chain).finish_non_exhaustive()
    }
}

impl HubCertificates {
    /// New ones. They do not end: what revokes a hub's authority is new join strings.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn generate() -> Result<Self> {
        Self::make().map_err(|error| Error::new(Blame::System, "make a hub's certificates", error))
    }

    fn make() -> Result<Self, rcgen::Error> {
        let mut authority = CertificateParams::default();
        authority.distinguished_name.push(DnType::CommonName, "netyard hub authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority_key = KeyPair::generate()?;
        let authority_key_pem = authority_key.serialize_pem();
        let authority_certificate = authority.self_signed(&authority_key)?;
        let mut hub = CertificateParams::new(vec![HUB_NAME.to_owned()])?;
        hub.distinguished_name.push(DnType::CommonName, HUB_NAME);
        let key = KeyPair::generate()?;
        let certificate = hub.signed_by(&key, &Issuer::new(authority, authority_key))?;
        Ok(Self {
            chain: [certificate.pem(), authority_certificate.pem()].concat(),
            key: key.serialize_pem(),
            authority_key: authority_key_pem,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_of_one_key_and_one_connection() {
        let key = NodeKey::generate().unwrap();
        let same = NodeKey::from_seed(*key.seed()).unwrap();
        assert_eq!(key.public(), same.public());
        let proof = same.prove(&[7; 32]);
        assert!(is_proved(&key.public(), &[7; 32], &proof));
        assert!(!is_proved(&key.public(), &[8; 32], &proof), "another connection");
        let other = NodeKey::generate().unwrap();
        assert!(!is_proved(&other.public(), &[7; 32], &proof), "another node");
        assert!(!is_proved(&[0; 32], &[7; 32], &[0; 64]), "nonsense");
    }

    #[test]
    fn keys_are_not_printed() {
        let key = NodeKey::from_seed([9; 32]).unwrap();
        assert!(!format!("{key:?}").contains(&text::encode(&[9; 32])));
        let hub = HubCertificates::generate().unwrap();
        assert!(!format!("{hub:?}").contains("PRIVATE"));
    }
}
