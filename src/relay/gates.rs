//! Gates: from an accepted connection to a WebSocket with a role, or to a refusal.
//!
//! Owns the order of the gates (docs/PROTOCOL.md, "gates in order"), and what requests are
//! compared with: host name, trusted proxies, challenge, rate limit, caps. Must not know the
//! syntax of headers (`protocol/request.rs` does).

use std::borrow::Cow;
use std::net::IpAddr;

use super::admission::{ClientKey, ClientLimiter, ConnectionCaps};
use super::closing::FollowUp;
use super::conn_id::ConnId;
use super::connections::{Role, Stage};
use super::refusals::Refusals;
use super::relay::Relay;
use super::slots::{Claim, JoinError};
use super::stats::{Outcome, ProxyRefusal};
use crate::config::{Config, Forwarded};
use crate::protocol::client_address::{client_address, is_proxy, may_send_proxy_header};
use crate::protocol::close::CloseCause;
use crate::protocol::fault::{Cause, Fault};
use crate::protocol::request::{self, Endpoint, Head, Identity, Request};
use crate::protocol::response::{self, Date, Health, Refusal, Status};
use crate::protocol::websocket;
use crate::state::v1;
use crate::time::{Instant, Throttle};

/// Kind of a listener's connections, as far as the relay has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ListenerKind {
    /// Clients.
    Clients,
    /// Clients behind a load balancer that sends a PROXY header first.
    ProxiedClients,
    /// Certificate authorities, which may request the response to a challenge (RFC 8555 §8.3)
    /// and the health endpoints.
    Authorities,
    /// The same, behind a load balancer that sends a PROXY header first.
    ProxiedAuthorities,
}

/// What requests are compared with.
#[derive(Debug)]
pub(super) struct Gates {
    pub(super) forwarded: Forwarded,
    /// The only host name that is served.
    domain: Option<String>,
    /// The token in a certificate authority's request, and the response to it.
    challenge: Option<(String, String)>,
    rate: ClientLimiter,
    pub(super) caps: ConnectionCaps,
    pub(super) proxy_refusals: Throttle,
    pub(super) early_closes: Throttle,
    refusals: Refusals,
    /// The `Date` of every response that is made now.
    pub(super) date: Date,
    started: Instant,
}

impl Gates {
    /// Admits `capacity` WebSockets. `hash_keys` must return keys that peers cannot predict.
    pub(super) fn new(
        config: &Config,
        capacity: usize,
        mut hash_keys: impl FnMut() -> [u64; 2],
        now: Instant,
    ) -> Self {
        let limits = &config.limits;
        Self {
            forwarded: config.forwarded.clone(),
            domain: config.serving.domain().map(str::to_owned),
            challenge: None,
            caps: ConnectionCaps::new(capacity, limits.connections_per_ip, hash_keys()),
            rate: ClientLimiter::new(limits.rate_per_minute, limits.rate_burst, hash_keys),
            proxy_refusals: Throttle::default(),
            early_closes: Throttle::default(),
            refusals: Refusals::default(),
            date: Date::default(),
            started: now,
        }
    }

    /// The attempts of clients, the challenge, and when the relay was started.
    pub(super) fn save(&self) -> (v1::ClientLimiter, Option<(String, String)>, u64) {
        (self.rate.save(), self.challenge.clone(), self.started.as_micros())
    }

    /// Continues with what [`Self::save`] returned.
    pub(super) fn restore(
        &mut self,
        attempts: &v1::ClientLimiter,
        challenge: Option<(String, String)>,
        started: u64,
    ) {
        self.rate.restore(attempts);
        self.challenge = challenge;
        self.started = Instant::from_micros(started);
    }

    /// Sets the response to a certificate authority's challenge (RFC 8555 §8.3): the token in
    /// the request, and the response. It replaces the previous one.
    pub(super) fn set_challenge(&mut self, challenge: Option<(&str, &str)>) {
        self.challenge = challenge.map(|(token, answer)| (token.into(), answer.into()));
    }
}

impl Relay {
    /// A connection from `peer` was accepted.
    pub(super) fn enter(&mut self, peer: IpAddr, kind: ListenerKind, now: Instant) -> ConnId {
        let stage = match kind {
            ListenerKind::Clients => Stage::Request,
            ListenerKind::ProxiedClients => Stage::Header,
            ListenerKind::Authorities => Stage::Authority,
            ListenerKind::ProxiedAuthorities => Stage::HeaderOfAuthority,
        };
        let owes_header =
            matches!(kind, ListenerKind::ProxiedClients | ListenerKind::ProxiedAuthorities);
        // The limits are for clients: one behind a proxy is known later, if at all.
        let is_limited = !owes_header && !is_proxy(&self.gates.forwarded, peer);
        let (id, admitted) = self.connections.insert(peer, stage, is_limited, now);
        if let Err(cause) = admitted {
            self.on_early_close(peer, cause, now);
            return id;
        }
        // Closed at once: an untrusted peer's header would not count.
        if owes_header && !may_send_proxy_header(&self.gates.forwarded, peer) {
            self.refuse_proxied(id, ProxyRefusal::Untrusted, now);
        }
        id
    }

    /// More bytes of a request head have arrived.
    pub(super) fn handle_head(&mut self, id: ConnId, input: &[u8], now: Instant) {
        let Some(kept) = self.connections.edit(id, now, |it| it.take_kept()) else { return };
        let mut head: Cow<'_, [u8]> = Cow::Owned(kept);
        if head.is_empty() {
            head = Cow::Borrowed(input);
        } else {
            head.to_mut().extend_from_slice(input);
        }
        match request::parse(&head) {
            Ok(Head::Partial) => {
                self.connections.edit(id, now, |it| it.keep_head(head.into_owned()));
            }
            Ok(Head::Complete { request, len }) => {
                let rest = &head[len..];
                let Some(peer) = self.connections.get(id).map(|entry| entry.client()) else {
                    return;
                };
                if let Err(fault) = self.answer(id, &request, rest, now) {
                    let forwarded = &self.gates.forwarded;
                    let remote = client_address(forwarded, peer, request.forwarded_for());
                    self.refuse_request(id, fault, remote, Some(request.path()), now);
                }
            }
            Err(fault) => {
                let Some(remote) = self.connections.get(id).map(|entry| entry.client()) else {
                    return;
                };
                self.refuse_request(id, fault, remote, request::path_of(&head), now);
            }
        }
    }

    /// Sends a refusal, which closes the connection.
    fn refuse_request(
        &mut self,
        id: ConnId,
        fault: Fault,
        remote: IpAddr,
        path: Option<&str>,
        now: Instant,
    ) {
        self.gates.refusals.log(fault, remote, path, now);
        self.refuse(id, &fault.refusal.bytes(&self.gates.date), now);
    }

    /// The request head, or the PROXY header before it, did not arrive in time.
    pub(super) fn refuse_late(&mut self, id: ConnId, now: Instant) {
        let Some(entry) = self.connections.get(id) else { return };
        if matches!(entry.stage(), Stage::Header | Stage::HeaderOfAuthority) {
            return self.refuse_proxied(id, ProxyRefusal::Late, now);
        }
        let fault = Fault::new(Refusal::RequestTimeout, Cause::Timeout);
        self.refuse_request(id, fault, entry.client(), None, now);
    }

    fn answer(
        &mut self,
        id: ConnId,
        request: &Request<'_>,
        rest: &[u8],
        now: Instant,
    ) -> Result<(), Fault> {
        let Some(entry) = self.connections.get(id) else { return Ok(()) };
        let (stage, peer) = (entry.stage(), entry.client());
        match request.endpoint() {
            Endpoint::Health => {
                request.read_only()?;
                let mut answer = Vec::new();
                response::health(
                    &self.health(now),
                    &self.gates.date,
                    request.is_head(),
                    &mut answer,
                );
                self.refuse(id, &answer, now);
                Ok(())
            }
            Endpoint::Ready => {
                request.read_only()?;
                let is_ready = !self.slots.is_draining() && !self.gates.caps.is_full();
                let mut answer = Vec::new();
                response::ready(is_ready, &self.gates.date, &mut answer);
                self.refuse(id, &answer, now);
                Ok(())
            }
            _ if stage == Stage::Authority => self.answer_authority(id, request, now),
            _ if stage != Stage::Request => Err(Fault::new(Refusal::Forbidden, Cause::HealthOnly)),
            _ if self.slots.is_draining() => Err(Fault::new(Refusal::Unavailable, Cause::Draining)),
            Endpoint::Other => Err(Fault::new(Refusal::NotFound, Cause::UnknownPath)),
            endpoint @ (Endpoint::Server | Endpoint::Client) => {
                let is_phone = endpoint == Endpoint::Client;
                self.upgrade(id, peer, request, rest, now).map_err(|(outcome, fault)| {
                    self.stats.on_upgrade(is_phone, outcome);
                    fault
                })
            }
        }
    }

    /// The port for certificate authorities serves the challenge response beside the health
    /// endpoints: the health check of a hosting service may reach no other port.
    fn answer_authority(
        &mut self,
        id: ConnId,
        request: &Request<'_>,
        now: Instant,
    ) -> Result<(), Fault> {
        let asked = request.path().strip_prefix("/.well-known/acme-challenge/");
        let challenge = self.gates.challenge.as_ref().filter(|(token, _)| asked == Some(token));
        let Some((_, content)) = challenge else {
            return Err(Fault::new(Refusal::NotFound, Cause::UnknownPath));
        };
        request.read_only()?;
        let mut answer = Vec::new();
        response::challenge(content, &self.gates.date, request.is_head(), &mut answer);
        self.refuse(id, &answer, now);
        Ok(())
    }

    /// The gates in their order; a request that passes all of them becomes a WebSocket.
    fn upgrade(
        &mut self,
        id: ConnId,
        peer: IpAddr,
        request: &Request<'_>,
        rest: &[u8],
        now: Instant,
    ) -> Result<(), (Outcome, Fault)> {
        let Gates { domain, forwarded, rate, caps, .. } = &mut self.gates;
        if domain.as_ref().is_some_and(|domain| !request.is_for(domain)) {
            let fault = Fault::of(Refusal::Misdirected, Cause::WrongHost, "host");
            return Err((Outcome::RejectHeaders, fault));
        }
        let client = client_address(forwarded, peer, request.forwarded_for());
        let key = ClientKey::from(client);
        if let Err(wait) = rate.attempt(key, now) {
            // Rounded up: an attempt made too early would be refused again.
            let retry_after = wait.as_micros().div_ceil(1_000_000).max(1) as u32;
            let refusal = Refusal::TooManyRequests { retry_after };
            return Err((Outcome::RejectRateLimit, Fault::new(refusal, Cause::RateLimit)));
        }
        if caps.admit(key).is_err() {
            return Err((Outcome::RejectCap, Fault::new(Refusal::Unavailable, Cause::Cap)));
        }
        let parsed = request.identity().map_err(|fault| (Outcome::RejectHeaders, fault)).and_then(
            |identity| {
                let key = request.upgrade().map_err(|fault| (Outcome::RejectHandshake, fault))?;
                Ok((identity, websocket::accept_key(key)))
            },
        );
        let (identity, accept) = match parsed {
            Ok(parsed) => parsed,
            Err(refused) => {
                self.gates.caps.release(key);
                return Err(refused);
            }
        };
        let request_id = self.connections.public_id(id).to_string();
        let mut answer = Vec::new();
        response::switching_protocols(&accept, &request_id, &self.gates.date, &mut answer);
        let client_of = (client, is_proxy(&self.gates.forwarded, client));
        self.connections.edit(id, now, |it| it.switch_protocols(&answer, client_of, rest));
        match identity {
            Identity::Binary { server_id, version } => self.claim(id, server_id, &version, now),
            Identity::Phone { server_id, device_name } => {
                self.join(id, client, server_id, device_name.as_deref(), now);
            }
        }
        Ok(())
    }

    fn claim(&mut self, id: ConnId, server_id: &str, version: &str, now: Instant) {
        match self.slots.claim(server_id, id, now) {
            Claim::Granted(slot) => self.open_binary(id, slot, Some(version), now),
            Claim::Reclaimed(slot, phones) => {
                self.connections.release_grace(slot);
                for phone in phones {
                    self.close(phone, CloseCause::BinaryReclaimed, &[], now);
                }
                self.open_binary(id, slot, Some(version), now);
            }
            Claim::Waits { slot, holder, until, is_first } => {
                self.connections.edit(id, now, |it| it.wait(slot, until));
                if is_first {
                    self.follow_ups.push_back(FollowUp::Probe(holder));
                }
            }
        }
    }

    fn join(
        &mut self,
        id: ConnId,
        remote: IpAddr,
        server_id: &str,
        device_name: Option<&str>,
        now: Instant,
    ) {
        let public_id = self.connections.public_id(id);
        let slot = match self.slots.join(server_id, id) {
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
                self.gates.caps.release(ClientKey::from(remote));
                self.stats.on_upgrade(true, outcome);
                self.stats.on_close(true, cause);
                return self.close(id, cause, &[], now);
            }
        };
        log::info!(
            server_id, conn_id:% = public_id, remote:% = remote, device_name;
            "phone_registered"
        );
        self.stats.on_upgrade(true, Outcome::Accept);
        let first_ping = self.first_ping(id, now);
        self.connections.edit(id, now, |it| it.open(Role::Phone, slot, first_ping));
    }

    fn health(&self, now: Instant) -> Health {
        Health {
            status: if self.slots.is_draining() { Status::Draining } else { Status::Ok },
            version: env!("CARGO_PKG_VERSION"),
            connected_binaries: self.slots.binary_count() as u64,
            connected_phones: self.slots.phone_count() as u64,
            uptime_seconds: now.since(self.gates.started).as_secs(),
        }
    }
}
