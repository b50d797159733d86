//! Who is calling when a load balancer stands in front.
//!
//! Owns what a PROXY header, or its absence, does to a connection. What a header
//! looks like is `protocol/proxy_header.rs`'s to say, and who may send one
//! `protocol/client_address.rs`'s.
//!
//! Until the header has come the connection is nobody's: it is answered nothing,
//! not even a refusal, and nothing is counted against the balancer's address.

use super::conn_id::ConnId;
use super::relay::{Relay, Stage};
use super::stats::ProxyRefusal;
use crate::protocol::client_address::may_send_proxy_header;
use crate::protocol::proxy_header::{Malformed, Proxied};
use crate::time::Instant;

impl Relay {
    /// A PROXY header is to come before anything else on this connection, which
    /// was just accepted; nothing is handed in before [`Self::handle_proxied`].
    /// Who may not send one is disconnected.
    pub fn expect_proxied(&mut self, id: ConnId, now: Instant) {
        let Some(entry) = self.entry_mut(id) else { return };
        entry.stage = Stage::Header;
        let peer = entry.client();
        if !may_send_proxy_header(&self.forwarded, peer) {
            self.refuse_proxied(id, ProxyRefusal::Untrusted, now);
        }
    }

    /// The PROXY header has come, or what is none.
    pub fn handle_proxied(&mut self, id: ConnId, header: Result<Proxied, Malformed>, now: Instant) {
        let Some(entry) = self.entry_mut(id) else { return };
        match header {
            Ok(Proxied::Client(address)) => {
                entry.stage = Stage::Request;
                entry.set_client(address);
            }
            Ok(Proxied::Local) => entry.stage = Stage::Balancer,
            Err(Malformed) => self.refuse_proxied(id, ProxyRefusal::Malformed, now),
        }
    }

    /// Disconnects without a byte, for nobody knows who would read it.
    pub(super) fn refuse_proxied(&mut self, id: ConnId, cause: ProxyRefusal, now: Instant) {
        let Some(entry) = self.entry(id) else { return };
        let remote = entry.client();
        // A balancer that is set up wrongly fails with every client, and so does a stranger
        // at its port.
        let admitted = self.proxy_refusals.admit(now);
        let level = if admitted.is_some() { log::Level::Warn } else { log::Level::Debug };
        let dropped = admitted.filter(|dropped| *dropped > 0);
        log::log!(
            level, remote:% = remote, cause = cause.label(), dropped; "proxy_header_refused"
        );
        self.stats.proxy_refusals[cause as usize] += 1;
        self.remove(id);
    }
}
