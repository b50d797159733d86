//! TLS step: the handshake, and how much of the certificate's lifetime is left.
//!
//! Owns the trusted roots and the handshake. The chain is verified as by a client, so a
//! certificate that phones refuse fails the step.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, Error, RootCertStore,
    StreamOwned,
};
use x509_cert::der::Decode;
use x509_cert::time::Time;

use super::clock;
use super::diagnosis::Diagnosis;
use super::stream::{Stream, Timed};
use crate::pem::{self, NumberedCertificate};

/// Time before expiry at which the step warns: 14 days, or a sixth of the lifetime if that
/// is less. A renewal is due when a third is left (30 days of Let's Encrypt's 90), so by
/// then it has failed for half of that time.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * DAY);
const EXPIRES_SOON_SHARE: u32 = 6;

const HOUR: u64 = 60 * 60;
const DAY: u64 = 24 * HOUR;

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

    /// The name that the handshake asks for (SNI); none for an address (RFC 6066 §3).
    pub(super) fn server_name(&self) -> Option<String> {
        match &self.name {
            // The root's dot is not sent.
            ServerName::DnsName(name) => Some(name.as_ref().trim_end_matches('.').to_owned()),
            _ => None,
        }
    }

    /// Performs the handshake within the socket's deadline.
    pub(super) fn handshake(&self, socket: Timed, timeout: Duration) -> Result<Session, Diagnosis> {
        let connection = ClientConnection::new(Arc::clone(&self.config), self.name.clone())
            .map_err(|error| Diagnosis::new(error.to_string()))?;
        let mut session = StreamOwned::new(connection, socket);
        let result = session.conn.complete_io(&mut session.sock);
        let version = session.conn.protocol_version().and_then(|it| it.as_str());
        let leaf = session.conn.peer_certificates().and_then(|chain| chain.first());
        let lifetime = leaf.and_then(Lifetime::of);
        let mut stream = Stream::Tls(Box::new(session));
        match result {
            Ok(_) => Ok(Session { stream, version: version.unwrap_or("TLS"), lifetime }),
            Err(error) => {
                let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
                Err(tls.map_or_else(
                    || stream.failure(&error, timeout),
                    |error| explained(error, self.server_name()),
                ))
            }
        }
    }
}

/// A TLS session after its handshake.
pub(super) struct Session {
    pub(super) stream: Stream,
    pub(super) version: &'static str,
    /// `None` if the certificate cannot be parsed.
    pub(super) lifetime: Option<Lifetime>,
}

/// The lifetime of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lifetime {
    whole: Duration,
    left: Duration,
}

impl Lifetime {
    fn of(leaf: &CertificateDer<'_>) -> Option<Self> {
        let leaf = x509_cert::Certificate::from_der(leaf).ok()?;
        let validity = leaf.tbs_certificate().validity();
        let [begin, end] = [validity.not_before, validity.not_after].map(Time::to_unix_duration);
        let left = end.saturating_sub(clock::wall_time());
        Some(Self { whole: end.saturating_sub(begin), left })
    }

    fn is_nearly_over(self) -> bool {
        self.left < EXPIRES_SOON.min(self.whole / EXPIRES_SOON_SHARE)
    }
}

impl Session {
    /// Whole days until the certificate expires.
    pub(super) fn expires_in_days(&self) -> Option<u64> {
        self.lifetime.map(|it| it.left.as_secs() / DAY)
    }

    /// The time until the certificate expires, in words.
    pub(super) fn left(&self) -> Option<String> {
        self.lifetime.map(|it| in_words(it.left))
    }

    /// The warning about the certificate's expiry, if it is near.
    pub(super) fn warning(&self) -> Option<String> {
        self.lifetime.filter(|it| it.is_nearly_over()).map(|Lifetime { whole, left }| {
            format!(
                "the certificate, issued for {}, expires in {} and should have been renewed: check \
                 the log of the program that renews it",
                in_words(whole),
                in_words(left)
            )
        })
    }
}

/// Whole days, or hours of what is shorter than three days.
fn in_words(time: Duration) -> String {
    match (time.as_secs() / DAY, time.as_secs() / HOUR) {
        (3.., _) => format!("{} days", time.as_secs() / DAY),
        (_, 1) => "1 hour".into(),
        (_, hours) => format!("{hours} hours"),
    }
}

fn explained(error: &Error, asked: Option<String>) -> Diagnosis {
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
                "the certificate is for another name: connect to that name (if it leads elsewhere, write \
                 it in the URL and this address with --connect), or issue one for this name"
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
        ) => {
            let asked = asked.map_or("none was asked for".into(), |it| format!("not {it}"));
            return trouble.advise(format!(
                "the relay serves another server name (--domain), {asked}: write its name in the \
                 URL, and the address to connect to with --connect"
            ));
        }
        Error::NoApplicationProtocol => {
            "the server does not offer HTTP/1.1, which WebSockets need: enable it there"
        }
        _ => return trouble,
    };
    trouble.advise(advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_due_at_a_sixth_of_the_lifetime_and_at_14_days_at_most() {
        for (whole_days, left_hours, is_nearly_over) in [
            (90, 15 * 24, false),
            (90, 14 * 24 - 1, true),
            (398, 14 * 24, false),
            (45, 15 * 24, false),
            (45, 8 * 24, false),
            (45, 7 * 24, true),
            (6, 6 * 24, false),
            (6, 25, false),
            (6, 23, true),
            (1, 24, false),
            (1, 4, false),
            (1, 3, true),
        ] {
            let whole = Duration::from_secs(whole_days * DAY);
            let left = Duration::from_secs(left_hours * HOUR);
            let lifetime = Lifetime { whole, left };
            assert_eq!(lifetime.is_nearly_over(), is_nearly_over, "{lifetime:?}");
        }
        for (hours, words) in [(72, "3 days"), (71, "71 hours"), (1, "1 hour"), (0, "0 hours")] {
            assert_eq!(in_words(Duration::from_secs(hours * HOUR)), words);
        }
    }
}
