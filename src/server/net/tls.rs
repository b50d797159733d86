//! TLS: what sessions, certificates and outbound calls share.
//!
//! Owns the provider of cryptography and which server names are served. Must not know keys
//! or bytes.

use rustls::crypto::{CryptoProvider, ring};

use crate::protocol::request::is_same_host;

/// The ALPN protocol of the challenge tls-alpn-01 (RFC 8737 §6.2); it carries no data.
pub(in crate::server) const ACME_TLS: &[u8] = b"acme-tls/1";

/// The one provider of cryptography, passed explicitly everywhere: by itself rustls would
/// choose, and fail if a library enables a second provider.
pub(in crate::server) fn provider() -> CryptoProvider {
    ring::default_provider()
}

/// Whether a handshake with the server name `asked` gets the certificate for `served`. One
/// without a name does: a health check by address cannot send one (RFC 6066 §3).
pub(in crate::server) fn is_served(asked: Option<&str>, served: Option<&str>) -> bool {
    match (asked, served) {
        (Some(asked), Some(served)) => is_same_host(asked, served),
        _ => true,
    }
}
