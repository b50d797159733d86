//! What the log tells of handshakes that fail.
//!
//! Owns the lines and how often one of them is a warning. A client that cannot come in is
//! seen here only: no request was made.

use std::fmt::Display;

use super::{Core, Server};
use crate::relay::ConnId;
use crate::server::net::socket::TlsFailure;
use crate::time::Instant;

impl<C: Core> Server<C> {
    /// Leaves a line of a stream that ended without close_notify, in the handshake or after.
    pub(super) fn on_tls_cut(&mut self, id: ConnId, failure: Option<&TlsFailure>, now: Instant) {
        if let Some(failure) = failure {
            return self.on_tls_failure(id, failure, now);
        }
        let remote = self.core.client(id).map(|client| client.to_string());
        log::debug!(remote, cause = "truncated"; "tls_cut");
    }

    /// Leaves a line of a handshake, or of a session after its handshake, that has failed:
    /// a warning once a minute, else at debug.
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
