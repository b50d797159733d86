//! TLS of the event loop: the configuration for new sessions, what is counted, and the log
//! lines for failed handshakes and sessions.
//!
//! Owns the lines and their rate of warnings. A client whose handshake fails appears in no
//! other line, because it made no request.

use std::fmt::Display;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::ServerConfig;

use crate::server::certificates::renewer_handle::RenewerHandle;
use crate::server::messages::Certified;
use crate::server::messages::tls_stats::Stats;
use crate::server::net::socket::TlsFailure;
use crate::server::os::clock::wall_time;
use crate::time::{Instant, Throttle};

/// TLS, for listeners whose protocol it is.
#[derive(Debug, Default)]
pub(super) struct Tls {
    /// For new sessions; `None`: there is no TLS.
    pub(super) config: Option<Arc<ServerConfig>>,
    /// The only server name that is served; `None`: any.
    pub(super) domain: Option<Arc<str>>,
    pub(super) renewer: Option<RenewerHandle>,
    pub(super) stats: Stats,
    failures: Throttle,
}

impl Tls {
    /// What a new session needs.
    pub(super) fn session_config(&self) -> Option<(Arc<ServerConfig>, Option<Arc<str>>)> {
        Some((Arc::clone(self.config.as_ref()?), self.domain.clone()))
    }

    /// Uses a certificate from now on.
    pub(super) fn serve(&mut self, certified: Certified) {
        self.stats.not_before = Some(certified.not_before);
        self.stats.not_after = Some(certified.not_after);
        log::info!(expires_in_days = self.stats.days_left(wall_time()); "certificate_served");
        self.config = Some(certified.config);
    }

    /// A stream has ended without close_notify, in the handshake or after it.
    pub(super) fn on_cut(
        &mut self,
        client: Option<IpAddr>,
        failure: Option<&TlsFailure>,
        now: Instant,
    ) {
        self.stats.truncations += 1;
        if let Some(failure) = failure {
            return self.log(client, failure, now);
        }
        let remote = client.map(|client| client.to_string());
        log::debug!(remote, cause = "truncated"; "tls_cut");
    }

    /// A handshake has failed, or a session after its handshake.
    pub(super) fn on_failure(
        &mut self,
        client: Option<IpAddr>,
        failure: &TlsFailure,
        now: Instant,
    ) {
        self.stats.faults += 1;
        self.log(client, failure, now);
    }

    /// Logs a failed handshake, as a warning at most once a minute and else at debug, or a
    /// failed session after its handshake, at debug.
    fn log(&mut self, client: Option<IpAddr>, failure: &TlsFailure, now: Instant) {
        let TlsFailure { server_name, error, in_handshake } = failure;
        let admitted = if *in_handshake { self.failures.admit(now) } else { None };
        let level = if admitted.is_some() { log::Level::Warn } else { log::Level::Debug };
        let dropped = admitted.filter(|dropped| *dropped > 0);
        let remote = client.map(|client| client.to_string());
        let (server_name, err): (_, &dyn Display) = (server_name.as_deref(), error);
        log::log!(level, remote, server_name, err:% = err, dropped; "tls_failed");
    }
}
