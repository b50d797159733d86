//! TLS failures: the log lines for failed handshakes and sessions.
//!
//! Owns the lines and their rate of warnings. A client whose handshake fails appears in no
//! other line, because it made no request.

use std::fmt::Display;

use super::{Core, Server};
use crate::relay::ConnId;
use crate::server::net::socket::TlsFailure;
use crate::time::Instant;

impl<C: Core> Server<C> {
    /// Logs a stream that ended without close_notify, in the handshake or after it.
    pub(super) fn on_tls_cut(&mut self, id: ConnId, failure: Option<&TlsFailure>, now: Instant) {
        if let Some(failure) = failure {
            return self.on_tls_failure(id, failure, now);
        }
        let remote = self.core.client(id).map(|client| client.to_string());
        log::debug!(remote, cause = "truncated"; "tls_cut");
    }

    /// Logs a failed handshake, as a warning at most once a minute and else at debug, or a
    /// failed session after its handshake, at debug.
    pub(super) fn on_tls_failure(&mut self, id: ConnId, failure: &TlsFailure, now: Instant) {
        let TlsFailure { server_name, error, in_handshake } = failure;
        let admitted = if *in_handshake { self.tls_failures.admit(now) } else { None };
        let level = if admitted.is_some() { log::Level::Warn } else { log::Level::Debug };
        let dropped = admitted.filter(|dropped| *dropped > 0);
        let remote = self.core.client(id).map(|client| client.to_string());
        let (server_name, err): (_, &dyn Display) = (server_name.as_deref(), error);
        log::log!(level, remote, server_name, err:% = err, dropped; "tls_failed");
    }
}
