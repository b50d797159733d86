//! Certificate: a chain with its key, from PEM files to a TLS configuration.
//!
//! Owns which files are accepted, the error texts for the others, and the settings that
//! every handshake shares. Must not know sessions or threads.

use std::fmt::{self, Display};
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::{ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{DateTime, Decode};
use x509_cert::time::Time;

use super::key_file;
use crate::config::PairFiles;
use crate::pem;
use crate::server::messages::Certified;
use crate::server::net::tls::{ACME_TLS, is_served, provider};
use crate::server::net::tls_session::extract::Catcher;

/// A certificate chain, leaf first, its key, and how long the leaf is valid.
#[derive(Clone, Debug)]
pub struct Certificate {
    key: Arc<CertifiedKey>,
    /// When the leaf's validity begins, since 1970.
    pub not_before: Duration,
    /// When the leaf's validity ends, since 1970.
    pub not_after: Duration,
    /// Whether the leaf has a subjectAltName.
    has_name: bool,
}

/// Why a pair of files cannot be used: a text for the operator that names the flag and the
/// file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadPair(String);

impl BadPair {
    pub(super) fn certificate(files: &PairFiles, why: impl Display) -> Self {
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

/// An operator's own pair after it was read.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The content of its files.
    pub certificate: Certificate,
    /// A warning about the permissions of the key file.
    pub warning: Option<String>,
}

/// Reads an operator's own pair.
///
/// # Errors
/// [`BadPair`] if a file cannot be read or parsed, the key does not match the certificate,
/// or the key file is accessible to other users.
pub fn read_pair(files: &PairFiles) -> Result<Pair, BadPair> {
    let key = key_file::read(&files.key, files.credentials.as_deref())
        .map_err(|why| BadPair::key(files, why))?;
    let chain = fs::read(&files.certificate).map_err(|error| BadPair::certificate(files, error))?;
    let certificate = Certificate::from_pem(&chain, &key.content).map_err(|error| match error {
        CertificateError::Certificate(what) => BadPair::certificate(files, what),
        CertificateError::Key(what) => BadPair::key(files, what),
    })?;
    let warning = key.warning.map(|what| BadPair::key(files, what).0);
    Ok(Pair { certificate, warning })
}

/// Why two PEM texts are not a usable pair, by the text at fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateError {
    /// The chain.
    Certificate(String),
    /// The key.
    Key(String),
}

impl Certificate {
    /// Parses the contents of the two files.
    ///
    /// # Errors
    /// Names the file at fault and describes what is wrong with it.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        let chain = pem::certificates(chain).map_err(CertificateError::Certificate)?;
        let key = pem::key(key).map_err(CertificateError::Key)?;
        let leaf = x509_cert::Certificate::from_der(&chain[0].der).map_err(|error| {
            CertificateError::Certificate(format!("not an X.509 certificate: {error}"))
        })?;
        let leaf = leaf.tbs_certificate();
        let [not_before, not_after] =
            [leaf.validity().not_before, leaf.validity().not_after].map(Time::to_unix_duration);
        let has_name = leaf
            .extensions()
            .is_some_and(|all| all.iter().any(|it| it.extn_id == SUBJECT_ALT_NAME));
        let with = |chain| CertifiedKey::from_der(chain, key.clone_key(), &provider());
        match with(chain.iter().map(|it| it.der.clone()).collect()) {
            Ok(key) => Ok(Self { key: Arc::new(key), not_before, not_after, has_name }),
            Err(rustls::Error::InconsistentKeys(_)) => {
                let mut later = chain.iter().enumerate().skip(1);
                match later.find(|(_, it)| with(vec![it.der.clone()]).is_ok()) {
                    None => Err(CertificateError::Key("is not the key of the certificate".into())),
                    Some((index, it)) => Err(CertificateError::Certificate(format!(
                        "the leaf must come first; the key fits the {} certificate (line {})",
                        ordinal(index + 1),
                        it.line
                    ))),
                }
            }
            Err(error) => Err(CertificateError::Key(format!("cannot be used: {error}"))),
        }
    }

    /// The reason why clients reject it at the time `now`; `None`: no known one.
    #[must_use]
    pub fn unacceptable(&self, now: Duration) -> Option<String> {
        if now >= self.not_after {
            Some(format!("the certificate expired on {}", date(self.not_after)))
        } else if now < self.not_before {
            Some(format!("the certificate is not valid before {}", date(self.not_before)))
        } else if !self.has_name {
            Some("the certificate names no host (no subjectAltName), so clients refuse it".into())
        } else {
            None
        }
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

/// RFC 5280 §4.2.1.6. Clients ignore the subject's common name (RFC 9525 §6.3).
const SUBJECT_ALT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");

/// 2nd, 3rd, 4th.
fn ordinal(number: usize) -> String {
    let ending = match (number % 10, number % 100) {
        (1, tens) if tens != 11 => "st",
        (2, tens) if tens != 12 => "nd",
        (3, tens) if tens != 13 => "rd",
        _ => "th",
    };
    format!("{number}{ending}")
}

/// A time in UTC in the format of RFC 3339.
fn date(since_1970: Duration) -> String {
    DateTime::from_unix_duration(since_1970)
        .map_or_else(|_| format!("second {}", since_1970.as_secs()), |it| it.to_string())
}

/// The state that all handshakes share, whatever their certificate, so that session tickets
/// survive a reload.
#[derive(Clone, Debug)]
pub struct Handshakes {
    /// The only name that is served; `None`: any.
    domain: Option<Arc<str>>,
    ticketer: Arc<dyn ProducesTickets>,
}

impl Handshakes {
    /// Handshakes for this server name only, or for any.
    ///
    /// # Errors
    /// If the system provides no randomness for the ticket key.
    pub fn new(domain: Option<&str>) -> Result<Self, rustls::Error> {
        Ok(Self { domain: domain.map(Into::into), ticketer: ring::Ticketer::new()? })
    }

    /// A configuration for TLS 1.2 and 1.3 with `certificate`; without one, every handshake
    /// fails.
    #[must_use]
    pub fn with(&self, certificate: Option<&Certificate>) -> Arc<ServerConfig> {
        self.build(certificate, None)
    }

    /// The configuration with `certificate`, and the validity of that.
    #[must_use]
    pub fn certified(&self, certificate: &Certificate) -> Certified {
        let Certificate { not_before, not_after, .. } = *certificate;
        Certified { config: self.with(Some(certificate)), not_before, not_after }
    }

    /// The same, where handshakes that offer only the challenge's protocol (RFC 8737) get
    /// `challenge` as their certificate.
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
        // Stateless resumption: the peers store the tickets, so no session cache grows here.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Arc::clone(&self.ticketer);
        config.send_tls13_tickets = 1;
        config.alpn_protocols = protocols;
        // A session leaves rustls when its handshake is complete.
        config.enable_secret_extraction = true;
        config.key_log = Arc::new(Catcher);
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
        let is_served = is_served(hello.server_name(), self.domain.as_deref());
        // A validation offers this protocol alone (RFC 8737 §3).
        let is_challenge = hello.alpn().is_some_and(|protocols| protocols.eq([ACME_TLS]));
        let key = if is_challenge { &self.challenge } else { &self.key };
        key.clone().filter(|_| is_served)
    }
}
