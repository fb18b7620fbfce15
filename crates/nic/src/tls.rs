//! Who is trusted over TLS, and as whom a server shows itself.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// What a server shows: its certificates and its key.
pub type Identity = Arc<ServerConfig>;

/// The authorities that the system trusts; those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name, if they name any.
pub fn system_trust() -> RootCertStore {
    let mut trust = RootCertStore::empty();
    // One that cannot be read is one less to trust.
    trust.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    trust
}

/// The same, read by a thread that may wait for files. Nobody is trusted if that fails.
pub async fn load_system_trust() -> RootCertStore {
    tokio::task::spawn_blocking(system_trust).await.unwrap_or_else(|_| RootCertStore::empty())
}

/// The authorities in a file (PEM), and no others.
///
/// # Errors
/// It cannot be read, or holds no certificate.
pub fn trust_in(file: &Path) -> io::Result<RootCertStore> {
    let mut trust = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(bad)? {
        trust.add(certificate.map_err(bad)?).map_err(io::Error::other)?;
    }
    if trust.is_empty() {
        let empty = format!("{} holds no certificate", file.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, empty));
    }
    Ok(trust)
}

/// Reads a certificate with its chain, and its key (PEM).
///
/// # Errors
/// A file cannot be read, or the two do not belong together.
pub fn identity(certificate: &Path, key: &Path) -> io::Result<Identity> {
    let chain = CertificateDer::pem_file_iter(certificate)
        .map_err(bad)?
        .collect::<Result<Vec<_>, _>>()
        .map_err(bad)?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(bad)?;
    ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map(Arc::new)
        .map_err(io::Error::other)
}

fn bad(error: pem::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}
