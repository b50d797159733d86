//! From a request head to a WebSocket with a role, or to a refusal.
//!
//! Owns the order of the gates (docs/PROTOCOL.md, "gates in order"). What a header may look
//! like is `protocol/request.rs`'s to say.

use std::borrow::Cow;

use super::admission::ClientKey;
use super::conn_id::ConnId;
use super::registry::{Claim, JoinError};
use super::relay::{Relay, Role, Stage};
use super::stats::Outcome;
use crate::protocol::client_address::client_address;
use crate::protocol::close::CloseCause;
use crate::protocol::fault::{Cause, Fault};
use crate::protocol::request::{self, Endpoint, Head, Identity, Request};
use crate::protocol::response::{self, Health, Refusal, Status};
use crate::protocol::websocket;
use crate::time::Instant;

impl Relay {
    /// More bytes of a request head have come.
    pub(super) fn handle_head(&mut self, id: ConnId, input: &[u8], now: Instant) {
        let Some(entry) = self.entry_mut(id) else { return };
        let mut head: Cow<'_, [u8]> = Cow::Owned(entry.connection.take_early());
        if head.is_empty() {
            head = Cow::Borrowed(input);
        } else {
            head.to_mut().extend_from_slice(input);
        }
        match request::parse(&head) {
            Ok(Head::Partial) => entry.connection.keep_early(head.into_owned(), now),
            Ok(Head::Complete { request, len }) => {
                let rest = &head[len..];
                let peer = entry.client();
                if let Err(fault) = self.answer(id, &request, rest, now) {
                    let remote = client_address(&self.forwarded, peer, request.forwarded_for());
                    self.refuse_request(id, fault, remote, Some(request.path()), now);
                }
            }
            Err(fault) => {
                let remote = entry.client();
                self.refuse_request(id, fault, remote, request::path_of(&head), now);
            }
        }
    }

    fn answer(
        &mut self,
        id: ConnId,
        request: &Request<'_>,
        rest: &[u8],
        now: Instant,
    ) -> Result<(), Fault> {
        let Some(stage) = self.entry(id).map(|entry| entry.stage) else { return Ok(()) };
        match request.endpoint() {
            Endpoint::Health => {
                request.read_only()?;
                let mut answer = Vec::new();
                response::health(&self.health(now), &self.date, request.is_head(), &mut answer);
                self.refuse(id, &answer, now);
                Ok(())
            }
            Endpoint::Ready => {
                request.read_only()?;
                let is_ready = !self.is_draining() && !self.caps.is_full();
                let mut answer = Vec::new();
                response::ready(is_ready, &self.date, &mut answer);
                self.refuse(id, &answer, now);
                Ok(())
            }
            _ if stage == Stage::Challenge => self.answer_authority(id, request, now),
            _ if stage != Stage::Request => Err(Fault::new(Refusal::Forbidden, Cause::HealthOnly)),
            _ if self.is_draining() => Err(Fault::new(Refusal::Unavailable, Cause::Draining)),
            Endpoint::Other => Err(Fault::new(Refusal::NotFound, Cause::UnknownPath)),
            endpoint @ (Endpoint::Server | Endpoint::Client) => {
                let is_phone = endpoint == Endpoint::Client;
                self.upgrade(id, request, rest, now).map_err(|(outcome, fault)| {
                    self.stats.on_upgrade(is_phone, outcome);
                    fault
                })
            }
        }
    }

    /// The gates in their order; behind the last one stands a WebSocket.
    fn upgrade(
        &mut self,
        id: ConnId,
        request: &Request<'_>,
        rest: &[u8],
        now: Instant,
    ) -> Result<(), (Outcome, Fault)> {
        if self.domain.as_ref().is_some_and(|domain| !request.is_for(domain)) {
            let fault = Fault::of(Refusal::Misdirected, Cause::WrongHost, "host");
            return Err((Outcome::RejectHeaders, fault));
        }
        let Some(entry) = self.entry(id) else { return Ok(()) };
        let client = client_address(&self.forwarded, entry.client(), request.forwarded_for());
        let key = ClientKey::from(client);
        if let Err(wait) = self.rate.attempt(key, now) {
            // Rounded up: an attempt a moment too early would be refused again.
            let retry_after = wait.as_micros().div_ceil(1_000_000).max(1) as u32;
            let refusal = Refusal::TooManyRequests { retry_after };
            return Err((Outcome::RejectRateLimit, Fault::new(refusal, Cause::RateLimit)));
        }
        if self.caps.admit(key).is_err() {
            let fault = Fault::new(Refusal::Unavailable, Cause::Cap);
            return Err((Outcome::RejectCap, fault));
        }
        let judged = request.identity().map_err(|fault| (Outcome::RejectHeaders, fault)).and_then(
            |identity| {
                let key = request.upgrade().map_err(|fault| (Outcome::RejectHandshake, fault))?;
                Ok((identity, websocket::accept_key(key)))
            },
        );
        let (identity, accept) = match judged {
            Ok(judged) => judged,
            Err(refused) => {
                self.caps.release(key);
                return Err(refused);
            }
        };
        let (request_id, date) = (self.public_id(id).to_string(), self.date);
        if let Some(entry) = self.entry_mut(id) {
            entry.set_client(client);
            entry.stage = Stage::WebSocket;
            let mut answer = Vec::new();
            response::switching_protocols(&accept, &request_id, &date, &mut answer);
            entry.connection.send_answer(&answer, now);
            if !rest.is_empty() {
                entry.connection.keep_early(rest.to_vec(), now);
            }
        }
        self.websockets += 1;
        self.transmit(id);
        match identity {
            Identity::Binary { server_id, version } => self.claim(id, server_id, &version, now),
            Identity::Phone { server_id, device_name } => {
                self.join(id, server_id, device_name.as_deref(), now);
            }
        }
        Ok(())
    }

    fn claim(&mut self, id: ConnId, server_id: &str, version: &str, now: Instant) {
        let probe_until = now + self.timeouts.probe;
        match self.registry.claim(server_id, id, probe_until) {
            Claim::Granted(slot) => self.become_binary(id, slot, Some(version), now),
            Claim::Reclaimed(slot, phones) => {
                for phone in phones {
                    self.close(phone, CloseCause::BinaryReclaimed, now);
                }
                self.become_binary(id, slot, Some(version), now);
            }
            Claim::Waits { slot, holder, until, is_first } => {
                if let Some(entry) = self.entry_mut(id) {
                    entry.role = Role::Claimant;
                    entry.slot = slot;
                    entry.connection.wait(until);
                }
                if is_first {
                    self.probe(holder, now);
                }
            }
        }
    }

    fn join(&mut self, id: ConnId, server_id: &str, device_name: Option<&str>, now: Instant) {
        let joined = self.registry.join(server_id, id);
        let public_id = self.public_id(id);
        let Some(entry) = self.entry_mut(id) else { return };
        let remote = entry.client();
        let slot = match joined {
            Ok(slot) => slot,
            Err(error) => {
                let (cause, outcome, event) = match error {
                    JoinError::NoServer => {
                        (CloseCause::NoSuchServer, Outcome::Reject404, "phone_register_no_server")
                    }
                    JoinError::AtCap => {
                        (CloseCause::TooManyPhones, Outcome::Reject429, "phone_register_at_cap")
                    }
                };
                log::info!(server_id, conn_id:% = public_id, remote:% = remote; "{event}");
                self.caps.release(ClientKey::from(remote));
                self.stats.on_upgrade(true, outcome);
                self.stats.on_close(true, cause);
                self.close(id, cause, now);
                return;
            }
        };
        entry.role = Role::Phone;
        entry.slot = slot;
        let early = entry.connection.take_early();
        log::info!(
            server_id, conn_id:% = public_id, remote:% = remote, device_name;
            "phone_registered"
        );
        self.stats.on_upgrade(true, Outcome::Accept);
        self.open(id, now);
        self.handle_frames(id, &early, now);
        if self.registry.is_paused(slot) {
            self.pause(id, now);
        }
    }

    fn health(&self, now: Instant) -> Health {
        let (binaries, phones) = self.live();
        Health {
            status: if self.is_draining() { Status::Draining } else { Status::Ok },
            version: env!("CARGO_PKG_VERSION"),
            connected_binaries: binaries as u64,
            connected_phones: phones as u64,
            uptime_seconds: now.since(self.started).as_secs(),
        }
    }
}
