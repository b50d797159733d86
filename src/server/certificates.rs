//! Certificates: the pair of certificate and key that TLS handshakes use.
//!
//! Owns reading a pair, watching its files and fetching it by ACME. Must not know sockets
//! or sessions.

pub mod acme;
pub mod certificate;
mod file_watcher;
mod key_file;
pub(in crate::server) mod renewer_handle;
pub mod source;

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;

use self::certificate::{Certificate, Handshakes};

/// A TLS configuration for handshakes, and the expiry of its certificate.
#[derive(Clone, Debug)]
pub struct Certified {
    /// The configuration for new sessions.
    pub config: Arc<ServerConfig>,
    /// When the certificate's validity ends, since 1970.
    pub not_after: Duration,
}

impl Certified {
    /// The configuration for handshakes with `certificate`.
    #[must_use]
    pub fn new(handshakes: &Handshakes, certificate: &Certificate) -> Self {
        Self { config: handshakes.with(Some(certificate)), not_after: certificate.not_after }
    }
}
