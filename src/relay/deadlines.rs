//! Deadlines: what the passing of time does to connections and slots.
//!
//! Owns what each expiry means. When something is due is each connection's and each
//! slot's own to say.
//!
//! No deadline counts against a peer whose input is unread: the connection is read to the
//! end first ([`Effect::ReadThenExpire`](super::Effect)), and its deadline is asked for again then.

use super::conn_id::ConnId;
use super::connections::{Due, Role};
use super::relay::Relay;
use super::slots;
use crate::protocol::close::CloseCause;
use crate::protocol::connection::Expiry;
use crate::time::Instant;

/// Whether all that the peer has sent was handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    /// Some may wait.
    Unread,
    /// It was.
    Read,
}

impl Relay {
    /// Time has passed.
    pub(super) fn on_time(&mut self, now: Instant) {
        while let Some(Due { id, late, expiry }) = self.connections.pop_due(now) {
            self.stats.loop_lag.observe(late);
            if let Some(expiry) = expiry {
                self.expire(id, expiry, Input::Unread, now);
            }
        }
        while let Some(due) = self.slots.pop_due(now) {
            match due {
                slots::Due::ShutDown(ids) => {
                    for id in ids {
                        self.close(id, CloseCause::Shutdown, &[], now);
                    }
                }
                slots::Due::GraceOver(slot, phones) => {
                    self.stats.grace_expiries += 1;
                    for phone in phones {
                        self.close(phone, CloseCause::GraceExpired, &[], now);
                    }
                    self.slots.free(slot);
                }
            }
        }
    }

    /// All that the connection has sent by `now` was handed in: if its time is still up,
    /// it ends.
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

    /// What becomes of a connection whose deadline has come.
    fn expire(&mut self, id: ConnId, expiry: Expiry, input: Input, now: Instant) {
        match (expiry, input) {
            (Expiry::Ping(sequence), _) => {
                let public_id = self.connections.public_id(id);
                self.connections.edit(id, now, |it| it.send_ping(public_id, sequence));
                self.stats.pings += 1;
            }
            // A closing connection: it was told, and its place is given up.
            (Expiry::Disconnect, _) => self.disconnect(id, CloseCause::Disconnected, now),
            (Expiry::Claim, _) => {
                let slot = self.connections.get(id).map(|entry| entry.slot());
                if let Some(holder) = slot.and_then(|slot| self.slots.holder(slot)) {
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
