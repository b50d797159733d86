//! PROXY headers: the client behind a load balancer.
//!
//! Owns the effect of a PROXY header, or of its absence, on a connection. Must not know the
//! header's syntax (`protocol/proxy_header.rs` does) nor which peer may send one
//! (`protocol/client_address.rs` does).
//!
//! Until the header has arrived the client is unknown: the connection is sent no response,
//! not even a refusal, and nothing counts towards the balancer's address.

use super::conn_id::ConnId;
use super::connections::Stage;
use super::relay::Relay;
use super::stats::ProxyRefusal;
use crate::protocol::client_address::is_proxy;
use crate::protocol::close::CloseCause;
use crate::protocol::proxy_header::{Malformed, Proxied};
use crate::time::Instant;

impl Relay {
    /// A PROXY header has arrived, valid or malformed.
    pub(super) fn handle_proxied(
        &mut self,
        id: ConnId,
        header: Result<Proxied, Malformed>,
        now: Instant,
    ) {
        match header {
            Ok(proxied) => {
                let forwarded = &self.gates.forwarded;
                let limits = |client| !is_proxy(forwarded, client);
                let is_limited = matches!(proxied, Proxied::Client(client) if limits(client));
                let admitted = self.connections.edit(id, now, |it| {
                    it.on_proxied(proxied);
                    if is_limited { it.limit() } else { Ok(()) }
                });
                if let Some(Err(cause)) = admitted {
                    self.close_early(id, cause, now);
                }
            }
            Err(Malformed) => self.refuse_proxied(id, ProxyRefusal::Malformed, now),
        }
    }

    /// Disconnects without a response: it is unknown which protocol the peer speaks.
    pub(super) fn refuse_proxied(&mut self, id: ConnId, cause: ProxyRefusal, now: Instant) {
        let Some(entry) = self.connections.get(id) else { return };
        debug_assert!(matches!(entry.stage(), Stage::Header | Stage::HeaderOfAuthority));
        let remote = entry.client();
        // Throttled: a misconfigured balancer fails for every client, and strangers may
        // connect to its port repeatedly.
        let admitted = self.gates.proxy_refusals.admit(now);
        let level = if admitted.is_some() { log::Level::Warn } else { log::Level::Debug };
        let dropped = admitted.filter(|dropped| *dropped > 0);
        log::log!(
            level, remote:% = remote, cause = cause.label(), dropped; "proxy_header_refused"
        );
        self.stats.proxy_refusals.add(cause);
        self.disconnect(id, CloseCause::Disconnected, now);
    }
}
