//! TLS step: the handshake and the certificate's expiry.
//!
//! Owns the trusted roots and the handshake. The chain is verified as by a client, so a
//! certificate that phones refuse fails the step.

use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, Error, RootCertStore,
    StreamOwned,
};
use x509_cert::der::Decode;

use super::clock;
use super::diagnosis::Diagnosis;
use super::stream::{Stream, Timed};
use crate::pem::{self, NumberedCertificate};

/// Days before expiry at which the step warns. A renewal is due at 30 days (a third of
/// Let's Encrypt's 90), so at 14 it has failed for more than two weeks.
const EXPIRES_SOON: u64 = 14;

const DAY: u64 = 24 * 60 * 60;

/// The trusted roots, and the name to verify.
#[derive(Clone, Debug)]
pub(super) struct Trust {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Trust {
    /// The bundled web roots, or only the roots in `ca`.
    pub(super) fn new(host: &str, ca: Option<&Path>) -> Result<Self, Diagnosis> {
        let mut roots = RootCertStore::empty();
        match ca {
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            Some(path) => {
                let refuse =
                    |why: String| Diagnosis::new(format!("--ca {}: {why}", path.display()));
                let file = std::fs::read(path).map_err(|error| refuse(error.to_string()))?;
                for NumberedCertificate { line, der } in pem::certificates(&file).map_err(refuse)? {
                    roots.add(der).map_err(|error| refuse(format!("line {line}: {error}")))?;
                }
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Diagnosis::new(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        // Without ALPN a proxy may choose HTTP/2, which has no upgrade.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| Diagnosis::new(format!("{host:?} is not a name that TLS can verify")))?;
        Ok(Self { config: Arc::new(config), name })
    }

    /// Performs the handshake before `deadline`.
    pub(super) fn handshake(
        &self,
        socket: TcpStream,
        deadline: Instant,
        timeout: Duration,
    ) -> Result<Session, Diagnosis> {
        let connection = ClientConnection::new(Arc::clone(&self.config), self.name.clone())
            .map_err(|error| Diagnosis::new(error.to_string()))?;
        let mut session = StreamOwned::new(connection, Timed::new(socket, deadline));
        let result = session.conn.complete_io(&mut session.sock);
        let version = session.conn.protocol_version().and_then(|it| it.as_str());
        let leaf = session.conn.peer_certificates().and_then(|chain| chain.first());
        let expires_in = leaf.and_then(days_to_expiry);
        let mut stream = Stream::Tls(Box::new(session));
        match result {
            Ok(_) => Ok(Session { stream, version: version.unwrap_or("TLS"), expires_in }),
            Err(error) => {
                let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
                Err(tls.map_or_else(|| stream.failure(&error, timeout), explained))
            }
        }
    }
}

/// A TLS session after its handshake.
pub(super) struct Session {
    pub(super) stream: Stream,
    pub(super) version: &'static str,
    /// Whole days until the certificate expires; `None` if it cannot be parsed.
    pub(super) expires_in: Option<u64>,
}

impl Session {
    /// The warning about the certificate's expiry, if it is near.
    pub(super) fn warning(&self) -> Option<String> {
        self.expires_in.filter(|days| *days < EXPIRES_SOON).map(|days| {
            format!(
                "the certificate expires in {days} days and should have been renewed: check the \
                 log of the program that renews it"
            )
        })
    }
}

fn days_to_expiry(leaf: &CertificateDer<'_>) -> Option<u64> {
    let leaf = x509_cert::Certificate::from_der(leaf).ok()?;
    let not_after = leaf.tbs_certificate().validity().not_after.to_unix_duration();
    Some(not_after.saturating_sub(clock::wall_time()).as_secs() / DAY)
}

fn explained(error: &Error) -> Diagnosis {
    let trouble = Diagnosis::new(error.to_string());
    let advice = match error {
        Error::InvalidCertificate(why) => match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the certificate has expired: renew it, and reload the server that presents it"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the certificate is not valid yet: check the clocks of server and probe"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the certificate is for another name: connect to that name, or issue one for this name"
            }
            CertificateError::UnknownIssuer => {
                "the issuer of the certificate is unknown: for a private authority give --ca FILE; \
                 otherwise the server omits the intermediate certificates (put the whole chain \
                 into its certificate file)"
            }
            _ => "clients will refuse this certificate: replace it",
        },
        Error::InvalidMessage(_) => "the server does not speak TLS: try http:// or ws://",
        // Older relays send access_denied.
        Error::AlertReceived(
            AlertDescription::UnrecognisedName | AlertDescription::AccessDenied,
        ) => "the relay serves another name (--domain): connect to that name",
        Error::NoApplicationProtocol => {
            "the server does not offer HTTP/1.1, which WebSockets need: enable it there"
        }
        _ => return trouble,
    };
    trouble.advise(advice)
}
