//! Network transport: listeners, sockets and TLS sessions.
//!
//! Owns the descriptors and the TLS state of each connection. Must not know what the
//! bytes mean.

pub mod listener;
pub(in crate::server) mod socket;
pub(in crate::server) mod tls;
pub(in crate::server) mod tls_session;
