//! Deadlines: the effects of time on connections and slots.
//!
//! Owns the consequence of each expiry. Each connection and each slot decides itself when it
//! is due.
//!
//! No deadline counts against a peer whose input is unread: the connection is first read to
//! the end ([`Effect::ReadThenExpire`](super::Effect)), then its deadline is checked again.

use super::conn_id::ConnId;
use super::connections::{Due, Role};
use super::relay::Relay;
use super::slots;
use crate::config::PHONES_PER_SERVER_MAX;
use crate::protocol::close::CloseCause;
use crate::protocol::connection::Expiry;
use crate::time::Instant;

/// Connections that one call handles, so that a turn stays short.
const DUE_PER_CALL: usize = 256;

/// Whether all that the peer has sent was handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    /// Some may be unread.
    Unread,
    /// All of it was handed in.
    Read,
}

impl Relay {
    /// Handles what is due, at most [`DUE_PER_CALL`] connections and slots: the rest is due
    /// still.
    pub(super) fn on_time(&mut self, now: Instant) {
        for _ in 0..DUE_PER_CALL {
            let Some(Due { id, late, expiry }) = self.connections.pop_due(now) else { break };
            self.stats.loop_lag.observe(late);
            if let Some(expiry) = expiry {
                self.expire(id, expiry, Input::Unread, now);
            }
        }
        for _ in 0..DUE_PER_CALL / PHONES_PER_SERVER_MAX {
            let Some(due) = self.slots.pop_due(now) else { break };
            match due {
                slots::Due::ShutDown(ids) => {
                    for id in ids {
                        self.close(id, CloseCause::Shutdown, &[], now);
                    }
                }
                slots::Due::GraceOver(slot, phones) => self.free_slot(slot, phones, now),
            }
        }
    }

    /// All that the peer has sent by `now` was handed in: if the deadline has still passed,
    /// the connection ends.
    pub(super) fn expire_after_read(&mut self, id: ConnId, now: Instant) {
        let Some(entry) = self.connections.get(id) else { return };
        let (role, slot) = (entry.role(), entry.slot());
        let takeover = (role == Some(Role::Binary)).then(|| self.slots.take_over(slot, now));
        let expiry = self.connections.edit(id, now, |it| it.expire_after_read()).flatten();
        if let Some(takeover) = takeover.flatten() {
            self.stats.takeovers += 1;
            self.close(id, CloseCause::HeartbeatTimeout, &[], now);
            self.on_takeover(slot, takeover);
        } else if let Some(expiry) = expiry {
            self.expire(id, expiry, Input::Read, now);
        }
    }

    /// Handles the expiry of a connection.
    fn expire(&mut self, id: ConnId, expiry: Expiry, input: Input, now: Instant) {
        match (expiry, input) {
            (Expiry::Ping(sequence), _) => {
                let public_id = self.connections.public_id(id);
                self.connections.edit(id, now, |it| it.send_ping(public_id, sequence));
                self.stats.pings += 1;
            }
            // A closing connection: its close frame is queued or sent, and its role is given
            // up.
            (Expiry::Disconnect, _) => self.disconnect(id, CloseCause::Disconnected, now),
            (Expiry::Claim, _) => {
                let Some(slot) = self.connections.get(id).map(|entry| entry.slot()) else { return };
                // The probe's ping has left later than it might have.
                if let Some(until) = self.slots.probe_end(slot, now).filter(|until| now < *until) {
                    self.connections.edit(id, now, |it| it.wait(slot, until));
                } else if let Some(holder) = self.slots.holder(slot) {
                    self.connections.edit(holder, now, |it| it.read_then_expire());
                }
            }
            (Expiry::Head | Expiry::Close(_), Input::Unread) => {
                self.connections.edit(id, now, |it| it.read_then_expire());
            }
            (Expiry::Head, Input::Read) => self.refuse_late(id, now),
            (Expiry::Close(cause), Input::Read) => self.close(id, cause, &[], now),
        }
    }
}
