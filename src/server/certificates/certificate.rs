//! A certificate with its key, from PEM files to what a handshake is done with.
//!
//! Owns which files are accepted and why others are not, and the settings that every
//! handshake shares. Knows no session and no thread.

use std::fmt::{self, Display};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use x509_cert::der::Decode;
use x509_cert::time::Time;

use crate::config::PairFiles;

/// The protocol of the challenge tls-alpn-01 (RFC 8737 §6.2): nothing is spoken in it.
pub(in crate::server) const ACME_TLS: &[u8] = b"acme-tls/1";

/// A certificate chain, leaf first, its key, and how long the leaf is valid.
#[derive(Clone, Debug)]
pub struct Certificate {
    key: Arc<CertifiedKey>,
    /// When the leaf's validity begins, since 1970.
    pub not_before: Duration,
    /// When it ends.
    pub not_after: Duration,
}

/// Why a pair of files is of no use: a line for the operator that names the flag and the
/// file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadPair(String);

impl BadPair {
    fn certificate(files: &PairFiles, why: impl Display) -> Self {
        Self(format!("--tls-cert {}: {why}", files.certificate.display()))
    }

    fn key(files: &PairFiles, why: impl Display) -> Self {
        Self(format!("--tls-key {}: {why}", files.key.display()))
    }
}

impl Display for BadPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadPair {}

/// Reads an operator's own pair.
///
/// # Errors
/// [`BadPair`] if a file cannot be read or parsed, the key is not this
/// certificate's, or others than its owner may use it.
pub fn read_pair(files: &PairFiles) -> Result<Certificate, BadPair> {
    refuse_readable_by_others(files)?;
    let chain = fs::read(&files.certificate).map_err(|error| BadPair::certificate(files, error))?;
    let key = fs::read(&files.key).map_err(|error| BadPair::key(files, error))?;
    Certificate::from_pem(&chain, &key).map_err(|flaw| match flaw {
        Flaw::Certificate(what) => BadPair::certificate(files, what),
        Flaw::Key(what) => BadPair::key(files, what),
    })
}

/// Whose fault it is that PEM is no pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// The chain's.
    Certificate(String),
    /// The key's.
    Key(String),
}

impl Certificate {
    /// From the two files' contents.
    ///
    /// # Errors
    /// What is wrong with which.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, Flaw> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|error| Flaw::Certificate(error.to_string()))?;
        let Some(leaf) = chain.first() else {
            return Err(Flaw::Certificate("no PEM block with a CERTIFICATE in it".into()));
        };
        let parsed = x509_cert::Certificate::from_der(leaf)
            .map_err(|error| Flaw::Certificate(format!("no X.509 certificate: {error}")))?;
        let validity = parsed.tbs_certificate().validity();
        let [not_before, not_after] =
            [validity.not_before, validity.not_after].map(Time::to_unix_duration);
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
            Flaw::Key("no PEM block with a PRIVATE KEY in it that needs no passphrase".into())
        })?;
        let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                Flaw::Key("is not the key of the certificate".into())
            }
            error => Flaw::Key(format!("of no use: {error}")),
        })?;
        Ok(Self { key: Arc::new(key), not_before, not_after })
    }

    /// The leaf, DER.
    pub(in crate::server) fn leaf(&self) -> &[u8] {
        self.key.cert.first().map_or(&[], |leaf| leaf)
    }

    /// Whether a client that dialled `name` would accept it.
    #[must_use]
    pub fn is_for(&self, name: &str) -> bool {
        let Ok(name) = rustls::pki_types::ServerName::try_from(name) else { return false };
        self.key.end_entity_cert().is_ok_and(|leaf| {
            rustls::server::ParsedCertificate::try_from(leaf)
                .is_ok_and(|leaf| rustls::client::verify_server_name(&leaf, &name).is_ok())
        })
    }
}

/// Whoever reads the key is the relay to every client.
fn refuse_readable_by_others(files: &PairFiles) -> Result<(), BadPair> {
    let metadata = fs::metadata(&files.key).map_err(|error| BadPair::key(files, error))?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let path = files.key.display();
    let why = format!("others than its owner may use this key (mode {mode:04o}); chmod 600 {path}");
    Err(BadPair::key(files, why))
}

/// The one provider of cryptography, named wherever one is asked for: rustls would
/// otherwise choose, and fail when a library brings a second one.
pub(in crate::server) fn provider() -> CryptoProvider {
    ring::default_provider()
}

/// What every handshake shares, whichever certificate it is done with: session tickets
/// outlive a reload.
#[derive(Clone, Debug)]
pub struct Handshakes {
    /// The only name that is served; `None`: any.
    domain: Option<Arc<str>>,
    ticketer: Arc<dyn ProducesTickets>,
}

impl Handshakes {
    /// For this server name only, or for any.
    ///
    /// # Errors
    /// If there is no randomness for the key of the tickets.
    pub fn new(domain: Option<&str>) -> Result<Self, rustls::Error> {
        Ok(Self { domain: domain.map(Into::into), ticketer: ring::Ticketer::new()? })
    }

    /// TLS 1.2 and 1.3 with `certificate`; while there is none, no handshake succeeds.
    #[must_use]
    pub fn with(&self, certificate: Option<&Certificate>) -> Arc<ServerConfig> {
        self.build(certificate, None)
    }

    /// The same, and handshakes for the protocol of a challenge alone (RFC 8737) are done
    /// with `challenge`.
    #[must_use]
    pub fn with_challenge(
        &self,
        certificate: Option<&Certificate>,
        challenge: Arc<CertifiedKey>,
    ) -> Arc<ServerConfig> {
        self.build(certificate, Some(challenge))
    }

    fn build(
        &self,
        certificate: Option<&Certificate>,
        challenge: Option<Arc<CertifiedKey>>,
    ) -> Arc<ServerConfig> {
        let mut protocols = vec![b"http/1.1".to_vec()];
        protocols.extend(challenge.is_some().then(|| ACME_TLS.to_vec()));
        let resolver = Resolver {
            domain: self.domain.clone(),
            key: certificate.map(|certificate| Arc::clone(&certificate.key)),
            challenge,
        };
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has suites for both versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        // Resumed sessions are the peers' to remember, in tickets: nothing here grows.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Arc::clone(&self.ticketer);
        config.send_tls13_tickets = 1;
        config.alpn_protocols = protocols;
        Arc::new(config)
    }
}

#[derive(Debug)]
struct Resolver {
    domain: Option<Arc<str>>,
    key: Option<Arc<CertifiedKey>>,
    challenge: Option<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let is_served = self.domain.as_ref().is_none_or(|domain| {
            hello.server_name().is_some_and(|name| name.eq_ignore_ascii_case(domain))
        });
        // RFC 8737 §3: no other protocol is offered beside it.
        let is_challenge = hello.alpn().is_some_and(|protocols| protocols.eq([ACME_TLS]));
        let key = if is_challenge { &self.challenge } else { &self.key };
        key.clone().filter(|_| is_served)
    }
}
