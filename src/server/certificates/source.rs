//! Source: where the certificate comes from, files or ACME.
//!
//! Owns the checks before anything is served, and starts the thread that renews or reloads
//! the certificate. Must not know sockets.

use std::fmt::{self, Display};
use std::io;
use std::sync::Arc;

use rustls::ServerConfig;

use crate::config::{Acme, PairFiles, Serving};
use crate::server::certificates::acme::cache::Cache;
use crate::server::certificates::acme::client::Caller;
use crate::server::certificates::acme::{Binding, Fetcher};
use crate::server::certificates::certificate::{Certificate, Handshakes, Pair, read_pair};
use crate::server::certificates::file_watcher::{self, Stamps};
use crate::server::certificates::renewer_handle::RenewerHandle;
use crate::server::fitting::Warning;
use crate::server::messages::{Certified, LoopHandle};
use crate::server::os::clock::wall_time;

/// Why TLS cannot work as configured: a few lines for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable(String);

impl Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unusable {}

/// Where the certificate comes from.
#[derive(Debug)]
pub struct Source {
    kind: Kind,
    warnings: Vec<Warning>,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one for the whole process")]
enum Kind {
    Own {
        handshakes: Handshakes,
        certificate: Certificate,
        files: PairFiles,
        /// The files' metadata before they were read.
        seen: Stamps,
    },
    Automatic(Fetcher),
}

impl Source {
    /// Checks everything that can be checked before anything is served; `None`: TLS is not
    /// configured.
    ///
    /// # Errors
    /// Describes what is wrong with the operator's files or directory, and the remedy.
    pub fn new(serving: &Serving) -> Result<Option<Self>, Unusable> {
        match serving {
            Serving::Plain(_) => Ok(None),
            Serving::Own { pair, .. } => Self::own(pair).map(Some),
            Serving::Automatic { acme, .. } => Self::automatic(acme).map(Some),
        }
    }

    fn own(pair: &PairFiles) -> Result<Self, Unusable> {
        let seen = Stamps::of(pair);
        let Pair { certificate, warning } =
            read_pair(pair).map_err(|bad| Unusable(bad.to_string()))?;
        let mut warnings = Vec::new();
        if let Some(text) = warning {
            warnings.push(Warning { event: "key_too_open", text });
        }
        // Only a warning: an error would keep the relay from starting on a machine whose
        // clock is wrong at boot.
        if let Some(why) = certificate.unacceptable(wall_time()) {
            let text = format!("--tls-cert {}: {why}", pair.certificate.display());
            warnings.push(Warning { event: "certificate_unacceptable", text });
        }
        let handshakes = handshakes(None)?;
        let kind = Kind::Own { handshakes, certificate, files: pair.clone(), seen };
        Ok(Self { kind, warnings })
    }

    fn automatic(acme: &Acme) -> Result<Self, Unusable> {
        let caller =
            Caller::new(acme.ca.as_deref()).map_err(|why| Unusable(format!("--acme-ca: {why}")))?;
        let cache = Cache::new(acme);
        let unusable = |why| Unusable(format!("--cert-cache: {why}"));
        cache.check().map_err(unusable)?;
        let certificate =
            cache.certificate(wall_time()).map_err(|error| unusable(error.to_string()))?;
        let mut warnings = Vec::new();
        let binding = acme.account.as_ref().map(Binding::read).transpose();
        let binding = binding.map_err(|why| Unusable(format!("--acme-eab-hmac-file: {why}")))?;
        let binding = binding.map(|(binding, warning)| {
            let text = warning.map(|what| format!("--acme-eab-hmac-file: {what}"));
            warnings.extend(text.map(|text| Warning { event: "key_too_open", text }));
            binding
        });
        if let Err(why) = cache.check_writable() {
            let refused = unusable(why);
            // An issued certificate could not be stored.
            if certificate.is_none() {
                return Err(refused);
            }
            warnings.push(Warning { event: "cert_cache_not_writable", text: refused.0 });
        }
        let kind = Kind::Automatic(Fetcher {
            binding,
            acme: acme.clone(),
            cache,
            caller,
            handshakes: handshakes(Some(&acme.domain))?,
            certificate,
        });
        Ok(Self { kind, warnings })
    }

    /// Problems that do not keep the relay from serving.
    #[must_use]
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// The configuration without a certificate, with which every handshake fails with an
    /// alert, and the one with the certificate, if there is one already.
    pub(in crate::server) fn first(&self) -> (Arc<ServerConfig>, Option<Certified>) {
        let (handshakes, certificate) = match &self.kind {
            Kind::Own { handshakes, certificate, .. } => (handshakes, Some(certificate)),
            Kind::Automatic(fetcher) => (&fetcher.handshakes, fetcher.certificate.as_ref()),
        };
        let certified = certificate.map(|certificate| handshakes.certified(certificate));
        (handshakes.with(None), certified)
    }

    /// The only name that is served; `None`: any.
    pub(in crate::server) fn domain(&self) -> Option<Arc<str>> {
        match &self.kind {
            Kind::Own { .. } => None,
            Kind::Automatic(fetcher) => Some(fetcher.acme.domain.as_str().into()),
        }
    }

    /// Starts the thread that sends later certificates to the event loop.
    pub(in crate::server) fn start(self, to_loop: LoopHandle) -> io::Result<RenewerHandle> {
        match self.kind {
            Kind::Own { handshakes, files, seen, .. } => {
                file_watcher::start(files, seen, handshakes, to_loop)
            }
            Kind::Automatic(fetcher) => fetcher.start(to_loop),
        }
    }
}

fn handshakes(domain: Option<&str>) -> Result<Handshakes, Unusable> {
    Handshakes::new(domain)
        .map_err(|error| Unusable(format!("cannot create the session ticket key: {error}")))
}
