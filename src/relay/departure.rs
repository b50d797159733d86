//! How a connection ends, and what its end means to others.
//!
//! Owns closing, leaving the registry and the caps, handing a slot on, the end
//! of grace, and shedding when memory is spent. Knows close causes, not how they
//! look on the wire.
//!
//! A connection departs before its close frame is written: its slot and its
//! place are free at once, whatever its socket still does.

use super::admission::ClientKey;
use super::conn_id::ConnId;
use super::registry::{Departure, SlotKey, Succession};
use super::relay::{Effect, Relay, Role};
use super::stats::Outcome;
use super::traffic::Traffic;
use crate::protocol::close::CloseCause;
use crate::protocol::connection::ConnectionSummary;
use crate::time::Instant;

impl Relay {
    /// Closes a WebSocket. Its slot and its place are free at once; the first
    /// cause wins.
    pub(super) fn close(&mut self, id: ConnId, cause: CloseCause, now: Instant) {
        self.close_with(id, cause, &[], now);
    }

    pub(super) fn close_with(&mut self, id: ConnId, cause: CloseCause, echo: &[u8], now: Instant) {
        let Some(index) = self.index(id) else { return };
        let connection = &mut self.connections[index].connection;
        if connection.is_closing() {
            return;
        }
        let (was_reading, summary) = (connection.is_reading(), connection.summary(now));
        let early = connection.take_early();
        connection.close(cause, echo, now, &self.timeouts);
        let peers_code = echo.first_chunk().map(|code| u16::from_be_bytes(*code));
        let code = cause.frame().map(|(code, _)| code).or(peers_code);
        self.depart(id, cause, code, summary, now);
        self.handle_frames(id, &early, now);
        if !was_reading {
            self.effects.push_back(Effect::Resume(id));
        }
        self.transmit(id);
        self.settle(id);
    }

    /// Answers a request with something other than a WebSocket.
    pub(super) fn refuse(&mut self, id: ConnId, answer: &[u8], now: Instant) {
        let Some(index) = self.index(id) else { return };
        self.connections[index].connection.refuse(answer, now, &self.timeouts);
        self.transmit(id);
    }

    /// Takes a connection out of the registry and the caps.
    pub(super) fn depart(
        &mut self,
        id: ConnId,
        cause: CloseCause,
        code: Option<u16>,
        summary: Option<ConnectionSummary>,
        now: Instant,
    ) {
        let Some(entry) = self.entry_mut(id) else { return };
        let role = std::mem::replace(&mut entry.role, Role::None);
        let (slot, client) = (entry.slot, entry.client());
        let Traffic { received, sent } = entry.traffic;
        let public_id = self.public_id(id);
        if role == Role::None {
            return;
        }
        self.caps.release(ClientKey::from(client));
        self.warnings.forget(id);
        self.stats.on_close(role == Role::Phone, cause);
        let server_id = self.registry.server_id(slot);
        let (label, close_code) = (cause.label(), code.unwrap_or(1006));
        let age_ms = summary.map(|summary| summary.age.as_millis() as u64);
        let rtt_ms =
            summary.and_then(|summary| summary.round_trip).map(|trip| trip.as_millis() as u64);
        match role {
            Role::None => {}
            Role::Claimant => {
                log::info!(
                    server_id, binary_conn_id:% = public_id, remote:% = client, cause = label;
                    "server_id_conflict"
                );
                self.stats.on_upgrade(false, Outcome::Reject409);
                self.registry.withdraw(slot, id);
            }
            Role::Phone => {
                log::info!(
                    server_id, conn_id:% = public_id, cause = label, close_code, role = "phone",
                    age_ms, rtt_ms, frames_in = received.frames(), bytes_in = received.bytes(),
                    frames_out = sent.frames(), bytes_out = sent.bytes();
                    "phone_unregistered"
                );
                self.registry.part(slot, id);
                self.notify(slot, public_id, cause.notice(code), now);
            }
            Role::Binary => {
                log::info!(
                    server_id, binary_conn_id:% = public_id, cause = label, close_code,
                    role = "binary", age_ms, rtt_ms, frames_in = received.frames(),
                    bytes_in = received.bytes(), frames_out = sent.frames(),
                    bytes_out = sent.bytes();
                    "server_released"
                );
                let grace_until = now + self.timeouts.grace;
                match self.registry.leave(slot, id, grace_until) {
                    Departure::NotHolder => {}
                    Departure::Grace => {
                        self.graces.arm(slot.0, grace_until);
                        self.resume_phones(slot, now);
                    }
                    Departure::Succeeded(succession) => self.on_succession(slot, succession, now),
                }
            }
        }
    }

    pub(super) fn on_succession(&mut self, slot: SlotKey, succession: Succession, now: Instant) {
        if let Some(heir) = self.entry(succession.holder) {
            log::info!(
                server_id = self.registry.server_id(slot), remote:% = heir.client();
                "server_id_takeover"
            );
        }
        for phone in succession.phones {
            self.close(phone, CloseCause::BinaryReclaimed, now);
        }
        // Its version was seen when it asked, and is not kept for the wait.
        self.become_binary(succession.holder, slot, None, now);
        for claimant in succession.rejected {
            self.close(claimant, CloseCause::ServerIdClaimed, now);
        }
    }

    pub(super) fn end_grace(&mut self, slot: SlotKey, now: Instant) {
        match self.registry.end_grace(slot, now) {
            Ok(phones) => {
                self.stats.grace_expiries += 1;
                for phone in phones {
                    self.close(phone, CloseCause::GraceExpired, now);
                }
                self.registry.free(slot);
            }
            Err(Some(until)) => self.graces.arm(slot.0, until),
            Err(None) => {}
        }
    }

    /// While the budget is exceeded, sheds the connection that holds most: an open
    /// one is closed, a closing one loses the messages ahead of its close, and one
    /// that can be told nothing, or nothing more, its socket.
    pub(super) fn shed(&mut self, now: Instant) {
        while self.budget.is_exceeded() {
            let entries = self.connections.iter_mut();
            let largest = entries.max_by_key(|(_, entry)| entry.charged);
            let Some((index, largest)) = largest else { return };
            let id = largest.id(index);
            if largest.role != Role::None {
                self.close(id, CloseCause::OutOfBufferMemory, now);
            } else if largest.connection.shed(now, &self.timeouts) {
                self.transmit(id);
                self.settle(id);
            } else {
                self.remove(id);
            }
        }
    }
}
