//! PROXY headers: which client a load balancer speaks for.
//!
//! Owns what a PROXY header, or its absence, does to a connection. What a header looks
//! like is `protocol/proxy_header.rs`'s to say, and which peer may send one
//! `protocol/client_address.rs`'s.
//!
//! Until the header has come the client is unknown: the connection is answered nothing,
//! not even a refusal, and nothing is counted against the balancer's address.

use std::time::Duration;

use super::conn_id::ConnId;
use super::connections::Stage;
use super::relay::Relay;
use super::stats::ProxyRefusal;
use crate::protocol::close::CloseCause;
use crate::protocol::proxy_header::{Malformed, Proxied};
use crate::time::Instant;

/// A balancer that is set up wrongly fails with every client, and so does a
/// stranger at its port: one warning in this time, the others at `debug`.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

impl Relay {
    /// The PROXY header has come, or something that is no valid one.
    pub(super) fn handle_proxied(
        &mut self,
        id: ConnId,
        header: Result<Proxied, Malformed>,
        now: Instant,
    ) {
        match header {
            Ok(proxied) => {
                self.connections.edit(id, now, |it| it.on_proxied(proxied));
            }
            Err(Malformed) => self.refuse_proxied(id, ProxyRefusal::Malformed, now),
        }
    }

    /// Disconnects without a byte: it is unknown which protocol the peer speaks.
    pub(super) fn refuse_proxied(&mut self, id: ConnId, cause: ProxyRefusal, now: Instant) {
        let Some(entry) = self.connections.get(id) else { return };
        debug_assert!(matches!(entry.stage(), Stage::Header | Stage::HeaderOfAuthority));
        let is_news = now >= self.gates.proxy_warn_at;
        let level = if is_news { log::Level::Warn } else { log::Level::Debug };
        log::log!(level, remote:% = entry.client(), cause = cause.label(); "proxy_header_refused");
        if is_news {
            self.gates.proxy_warn_at = now + WARN_INTERVAL;
        }
        self.stats.proxy_refusals[cause as usize] += 1;
        self.disconnect(id, CloseCause::Disconnected, now);
    }
}
