//! Shut-down: which connections are closed when (docs/PROTOCOL.md, "Shut-down").
//!
//! Owns the order of a shut-down: server-ids at random times within the drain, of
//! each its binary first and its phones a moment later, so that they find it at
//! its new home. Knows neither signals nor when the process ends.
//!
//! 1. Until it is told, a tunnel works as ever: frames pass and pings go out.
//! 2. Nobody is admitted any more and claimants are told at once, so no slot
//!    changes hands and no key of one is used anew.

use std::time::Duration;

use rand::RngExt;

use super::conn_id::ConnId;
use super::registry::SlotKey;
use super::relay::{Relay, Role};
use crate::protocol::close::CloseCause;
use crate::time::{Instant, Wheel};

impl Relay {
    /// Closes every WebSocket with 1001, spread over [`Config::drain`], and
    /// refuses new ones.
    ///
    /// [`Config::drain`]: crate::config::Config::drain
    pub fn shut_down(&mut self, now: Instant) {
        if self.is_draining() {
            return;
        }
        self.leaving = Some(Wheel::new(now));
        let entries = self.connections.iter();
        let claimants: Vec<ConnId> = entries
            .filter(|(_, entry)| entry.role == Role::Claimant)
            .map(|(index, entry)| entry.id(index))
            .collect();
        for claimant in claimants {
            self.close(claimant, CloseCause::Shutdown, now);
        }
        for slot in self.registry.keys() {
            let offset = self.rng.random_range(0..=self.drain.as_micros() as u64);
            let at = now + Duration::from_micros(offset);
            if self.registry.holder(slot).is_none() {
                self.leave_at(slot, at + self.timeouts.phones_after);
            } else if self.drain.is_zero() {
                self.dismiss(slot, now);
            } else {
                self.leave_at(slot, at);
            }
        }
        self.shed(now);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.leaving.is_some()
    }

    /// Tells those whose turn it is.
    pub(super) fn handle_leaving(&mut self, now: Instant) {
        while let Some(slot) = self.leaving.as_mut().and_then(|wheel| wheel.pop_expired(now)) {
            self.dismiss(SlotKey(slot), now);
        }
    }

    /// Tells the binary of a slot or, if there is none any more, its phones.
    fn dismiss(&mut self, slot: SlotKey, now: Instant) {
        if let Some(binary) = self.registry.holder(slot) {
            self.close(binary, CloseCause::Shutdown, now);
            return self.leave_at(slot, now + self.timeouts.phones_after);
        }
        for phone in self.registry.phones(slot).to_vec() {
            self.close(phone, CloseCause::Shutdown, now);
        }
    }

    fn leave_at(&mut self, slot: SlotKey, at: Instant) {
        if let Some(wheel) = &mut self.leaving {
            wheel.arm(slot.0, at);
        }
    }
}
