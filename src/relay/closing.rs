//! Closing: the end of a connection, and its consequences for slot and caps.
//!
//! Owns the accounting of a connection's end: log line, metrics, caps and slot. A connection
//! gives up its role before its close frame is written, whatever its socket still does.
//! Consequences for other connections are queued as follow-ups, in order, for
//! [`Relay::carry_out`](super::Relay) to apply: nothing here closes a second connection, so
//! there is no recursion.

use std::net::IpAddr;

use super::admission::{ClientKey, EarlyClose};
use super::conn_id::ConnId;
use super::connections::{Ended, Role};
use super::relay::Relay;
use super::slots::{Release, SlotKey, Takeover};
use super::stats::Outcome;
use crate::protocol::close::CloseCause;
use crate::time::Instant;

/// The consequence of a slot's change for one of its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FollowUp {
    /// Close it.
    Close(ConnId, CloseCause),
    /// Open it: the claimant has become the holder of the slot.
    Open(ConnId, SlotKey),
    /// Probe it: a claimant waits for its slot.
    Probe(ConnId),
    /// Resume reading it: its binary is no longer slow, or has ended.
    Resume(ConnId),
}

impl Relay {
    /// Closes a WebSocket. Its slot and its count in the caps are released at once; the first
    /// cause wins. `echo` is the payload of the peer's own close frame.
    pub(super) fn close(&mut self, id: ConnId, cause: CloseCause, echo: &[u8], now: Instant) {
        let ended = self.connections.edit(id, now, |it| it.close(cause, echo)).flatten();
        let Some(ended) = ended else { return };
        let peers_code = echo.first_chunk().map(|code| u16::from_be_bytes(*code));
        let code = cause.frame().map(|(code, _)| code).or(peers_code);
        self.on_ended(id, &ended, cause, code, now);
    }

    /// Disconnects a connection on which nothing more can be read or written.
    pub(super) fn disconnect(&mut self, id: ConnId, cause: CloseCause, now: Instant) {
        if let Some(ended) = self.connections.disconnect(id, now) {
            self.on_ended(id, &ended, cause, None, now);
        }
    }

    /// Disconnects a connection that is not upgraded, without an answer: more work and memory
    /// for its client is what has to be avoided.
    pub(super) fn close_early(&mut self, id: ConnId, cause: EarlyClose, now: Instant) {
        let remote = self.connections.get(id).map(|entry| entry.client());
        self.disconnect(id, CloseCause::Disconnected, now);
        if let Some(remote) = remote {
            self.on_early_close(remote, cause, now);
        }
    }

    /// Counts a connection that was closed before its upgrade.
    pub(super) fn on_early_close(&mut self, remote: IpAddr, cause: EarlyClose, now: Instant) {
        self.stats.early_closes.add(cause);
        // No line for each: an attacker would fill the log.
        if let Some(dropped) = self.gates.early_closes.admit(now) {
            let dropped = Some(dropped).filter(|dropped| *dropped > 0);
            log::warn!(remote:% = remote, cause = cause.label(), dropped; "connection_refused");
        }
    }

    /// Sends an HTTP response other than the 101, after which the connection ends.
    pub(super) fn refuse(&mut self, id: ConnId, answer: &[u8], now: Instant) {
        self.connections.edit(id, now, |it| it.refuse(answer));
    }

    /// Removes a connection that has ended from the caps and from its slot.
    fn on_ended(
        &mut self,
        id: ConnId,
        ended: &Ended,
        cause: CloseCause,
        code: Option<u16>,
        now: Instant,
    ) {
        let Ended { role, slot, client, payer, .. } = *ended;
        self.gates.caps.release(ClientKey::from(client));
        let dropped = self.warnings.forget(id);
        self.stats.on_close(role == Role::Phone, cause);
        self.log_end(id, ended, cause, code, dropped);
        match role {
            Role::Claimant => {
                self.stats.on_upgrade(false, Outcome::Reject409);
                self.slots.remove_claimant(slot, id);
            }
            Role::Phone => {
                self.slots.remove_phone(slot, id);
                let public_id = self.connections.public_id(id);
                self.notify(slot, public_id, cause.notice(code), now);
            }
            Role::Binary => match self.slots.release(slot, id, now) {
                Release::NotHolder => {}
                Release::Grace { resumed } => {
                    let bytes = self.slots.grace_bytes(slot);
                    self.connections.charge_grace(slot, payer, bytes);
                    self.follow_ups.extend(resumed.into_iter().map(FollowUp::Resume));
                }
                Release::TakenOver(takeover) => self.on_takeover(slot, takeover),
            },
        }
    }

    fn log_end(
        &self,
        id: ConnId,
        ended: &Ended,
        cause: CloseCause,
        code: Option<u16>,
        dropped: u32,
    ) {
        let dropped = Some(dropped).filter(|count| *count > 0);
        let Ended { role, slot, client, traffic, summary, .. } = ended;
        let (server_id, public_id) = (self.slots.server_id(*slot), self.connections.public_id(id));
        let (cause, close_code) = (cause.label(), code.unwrap_or(1006));
        let age_ms = summary.map(|summary| summary.age.as_millis() as u64);
        let round_trip = summary.and_then(|summary| summary.round_trip);
        let rtt_ms = round_trip.map(|round_trip| round_trip.as_millis() as u64);
        let (received, sent) = (traffic.received, traffic.sent);
        match role {
            Role::Claimant => log::info!(
                server_id, binary_conn_id:% = public_id, remote:% = client, cause;
                "server_id_conflict"
            ),
            Role::Phone => log::info!(
                server_id, conn_id:% = public_id, cause, close_code, role = "phone", age_ms, rtt_ms,
                frames_in = received.frames(), bytes_in = received.bytes(),
                frames_out = sent.frames(), bytes_out = sent.bytes();
                "phone_unregistered"
            ),
            Role::Binary => log::info!(
                server_id, binary_conn_id:% = public_id, cause, close_code, role = "binary",
                age_ms, rtt_ms, frames_in = received.frames(), bytes_in = received.bytes(),
                frames_out = sent.frames(), bytes_out = sent.bytes(), dropped;
                "server_released"
            ),
        }
    }

    /// A claimant has taken the slot over.
    pub(super) fn on_takeover(&mut self, slot: SlotKey, takeover: Takeover) {
        let Takeover { holder, phones } = takeover;
        if let Some(entry) = self.connections.get(holder) {
            log::info!(
                server_id = self.slots.server_id(slot), remote:% = entry.client();
                "server_id_takeover"
            );
        }
        self.close_later(phones, CloseCause::BinaryReclaimed);
        self.follow_ups.push_back(FollowUp::Open(holder, slot));
    }

    /// Queues a close of each of these.
    pub(super) fn close_later(&mut self, ids: impl IntoIterator<Item = ConnId>, cause: CloseCause) {
        self.follow_ups.extend(ids.into_iter().map(|id| FollowUp::Close(id, cause)));
    }
}
