//! Follow-ups: the consequences of a change for other connections, applied one by one.
//!
//! Owns the loop that applies follow-ups and then sheds what exceeds the byte budget. Every
//! call from the shell ends with it. A follow-up may queue further ones, so a chain of closes
//! of any length needs no recursion.

use super::admission::EarlyClose;
use super::closing::FollowUp;
use super::conn_id::ConnId;
use super::connections::{Editor, Role, Shed};
use super::ping_phase;
use super::relay::Relay;
use super::slots::SlotKey;
use super::stats::Outcome;
use crate::protocol::close::CloseCause;
use crate::time::Instant;

/// Claimants of which a call closes no more than these: thousands may wait for one probe, and
/// the others are due at the next [`Input::Timeout`](super::Input::Timeout).
const REJECTIONS: usize = 64;

impl Relay {
    /// Applies all follow-ups, and sheds connections until the buffered bytes fit the budget.
    pub(super) fn carry_out(&mut self, now: Instant) {
        let mut rejections = 0;
        loop {
            while let Some(follow_up) = self.follow_ups.pop_front() {
                match follow_up {
                    FollowUp::Close(id, cause) => self.close(id, cause, &[], now),
                    // The version header was read with the claim and is not stored for the
                    // wait.
                    FollowUp::Open(id, slot) => self.open_binary(id, slot, None, now),
                    FollowUp::Probe(holder) => self.probe(holder, now),
                    FollowUp::Resume(phone) => {
                        self.connections.edit(phone, now, |it| it.resume());
                    }
                }
            }
            if rejections < REJECTIONS
                && let Some(claimant) = self.slots.pop_rejected()
            {
                rejections += 1;
                self.close(claimant, CloseCause::ServerIdClaimed, &[], now);
                continue;
            }
            match self.connections.first_to_shed() {
                None => return,
                Some(Shed::WebSocket(id)) => self.shed(id, now),
                Some(Shed::Request(id)) => self.close_early(id, EarlyClose::Memory, now),
                Some(Shed::Grace(slot)) => self.expire_grace(slot, now),
            }
        }
    }

    /// The grace of a slot ends.
    pub(super) fn expire_grace(&mut self, slot: SlotKey, now: Instant) {
        let phones = self.slots.end_grace(slot);
        self.free_slot(slot, phones, now);
    }

    /// Closes the phones of a slot whose grace is over, and removes it.
    pub(super) fn free_slot(&mut self, slot: SlotKey, phones: Vec<ConnId>, now: Instant) {
        self.stats.grace_expiries += 1;
        for phone in phones {
            self.close(phone, CloseCause::GraceExpired, &[], now);
        }
        self.connections.release_grace(slot);
        self.slots.free(slot);
    }

    /// Frees memory of a connection: an open one is closed, a closing one loses unfinished
    /// input or the messages ahead of its close frame, and one with neither is disconnected.
    fn shed(&mut self, id: ConnId, now: Instant) {
        const CAUSE: CloseCause = CloseCause::OutOfBufferMemory;
        let shed = self.connections.edit(id, now, |it| it.role().is_some() || it.shed());
        match shed {
            Some(true) => self.close(id, CAUSE, &[], now),
            _ => self.disconnect(id, CAUSE, now),
        }
    }

    fn probe(&mut self, holder: ConnId, now: Instant) {
        let public_id = self.connections.public_id(holder);
        let pinged = self
            .connections
            .edit(holder, now, |it| it.probe().map(|sequence| it.send_probe(public_id, sequence)));
        self.stats.pings += u64::from(pinged.flatten().is_some());
    }

    /// The connection becomes the slot's holder: it is read and pinged from now on.
    pub(super) fn open_binary(
        &mut self,
        id: ConnId,
        slot: SlotKey,
        binary_version: Option<&str>,
        now: Instant,
    ) {
        let first_ping = self.first_ping(id, now);
        let open = |it: &mut Editor<'_>| (it.open(Role::Binary, slot, first_ping), it.client());
        let Some(((), remote)) = self.connections.edit(id, now, open) else { return };
        log::info!(
            server_id = self.slots.server_id(slot),
            binary_conn_id:% = self.connections.public_id(id), remote:% = remote, binary_version;
            "server_claimed"
        );
        self.stats.on_upgrade(false, Outcome::Accept);
    }

    /// When the connection is pinged first, if it opens now.
    pub(super) fn first_ping(&self, id: ConnId, now: Instant) -> Instant {
        ping_phase::first_ping(id, self.connections.timeouts().ping_interval, now)
    }
}
