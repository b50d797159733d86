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
