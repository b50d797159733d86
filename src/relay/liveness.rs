//! What is due: who is pinged, who is judged, whose grace is over.
//!
//! Owns what the passing of time does to connections and slots. When something
//! is due is each connection's own to say.
//!
//! Nobody is judged on unread input: whose time seems to be up is read to the
//! end first ([`Effect::Judge`]), and only then closed.

use std::time::Duration;

use rand::RngExt;

use super::conn_id::ConnId;
use super::registry::SlotKey;
use super::relay::{Effect, Entry, Relay, Role, Stage};
use super::stats::ProxyRefusal;
use crate::protocol::close::CloseCause;
use crate::protocol::connection::Expiry;
use crate::protocol::heartbeat::Heartbeat;
use crate::protocol::response::Refusal;
use crate::time::{Instant, Wheel};

impl Relay {
    /// When [`Self::handle_timeout`] is to be called next; `None`: never.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let leaving = self.leaving.as_ref().and_then(Wheel::next_expiry);
        let next = [self.timers.next_expiry(), self.graces.next_expiry(), leaving];
        next.into_iter().flatten().min()
    }

    /// Time has passed: pings go out, what was closed goes, and whose time seems
    /// to be up is to be judged.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(index) = self.timers.pop_expired(now) {
            let entry = &self.connections[index as usize];
            let (id, deadline) =
                (entry.id(index as usize), entry.connection.deadline(&self.timeouts));
            if deadline <= now {
                self.stats.loop_lag.observe(now.since(deadline));
                self.expire(id, now);
            }
            self.settle(id);
        }
        self.handle_leaving(now);
        while let Some(index) = self.graces.pop_expired(now) {
            self.end_grace(SlotKey(index), now);
        }
        self.shed(now);
    }

    /// All that the connection has sent by `now` was handed in: if its time is
    /// still up, it ends.
    pub fn judge(&mut self, id: ConnId, now: Instant) {
        let Some(index) = self.index(id) else { return };
        let Entry { role, stage, slot, connection, is_judge_queued, .. } =
            &mut self.connections[index];
        *is_judge_queued = false;
        let slot = *slot;
        if *role == Role::Binary
            && let Some(succession) = self.registry.depose(slot, now)
        {
            self.stats.takeovers += 1;
            self.close(id, CloseCause::HeartbeatTimeout, now);
            self.on_succession(slot, succession, now);
            return self.shed(now);
        }
        match connection.handle_timeout(now, &self.timeouts) {
            Some(Expiry::Head) if *stage == Stage::Header => {
                self.refuse_proxied(id, ProxyRefusal::Late, now);
            }
            Some(Expiry::Head) => self.refuse(id, Refusal::RequestTimeout.bytes(), now),
            Some(Expiry::Close(cause)) => self.close(id, cause, now),
            Some(Expiry::Ping(sequence)) => self.send_ping(id, sequence, now),
            Some(Expiry::Claim | Expiry::Disconnect) | None => {}
        }
        self.settle(id);
        self.shed(now);
    }

    pub(super) fn on_pong(&mut self, id: ConnId, payload: &[u8], now: Instant) {
        let key = self.public_id(id).key;
        let Some(entry) = self.entry_mut(id) else { return };
        let Some(sequence) = Heartbeat::sequence(key, payload) else { return };
        let Some(answer) = entry.connection.on_pong(sequence, now) else { return };
        let (role, slot) = (entry.role, entry.slot);
        self.stats.pongs += 1;
        if let Some(round_trip) = answer.round_trip {
            self.stats.round_trips.observe(round_trip);
        }
        if answer.answers_probe && role == Role::Binary {
            for claimant in self.registry.reject_claimants(slot) {
                self.close(claimant, CloseCause::ServerIdClaimed, now);
            }
        }
    }

    fn expire(&mut self, id: ConnId, now: Instant) {
        let Some(index) = self.index(id) else { return };
        let entry = &mut self.connections[index];
        match entry.connection.handle_timeout(now, &self.timeouts) {
            None => {}
            Some(Expiry::Ping(sequence)) => self.send_ping(id, sequence, now),
            Some(Expiry::Disconnect) => self.remove(id),
            Some(Expiry::Head | Expiry::Close(_)) => self.suspect(id),
            Some(Expiry::Claim) => {
                if let Some(holder) = self.registry.holder(entry.slot) {
                    self.suspect(holder);
                }
            }
        }
    }

    /// Has a connection read to the end and judged.
    fn suspect(&mut self, id: ConnId) {
        if let Some(entry) = self.entry_mut(id)
            && !std::mem::replace(&mut entry.is_judge_queued, true)
        {
            self.effects.push_back(Effect::Judge(id));
        }
    }

    /// Pings the holder of a slot because somebody else claims it.
    pub(super) fn probe(&mut self, holder: ConnId, now: Instant) {
        if let Some(sequence) = self.entry_mut(holder).and_then(|entry| entry.connection.probe(now))
        {
            self.send_ping(holder, sequence, now);
            self.settle(holder);
        }
    }

    fn send_ping(&mut self, id: ConnId, sequence: u32, now: Instant) {
        let payload = Heartbeat::payload(self.public_id(id).key, sequence);
        let Some(index) = self.index(id) else { return };
        self.connections[index].connection.send_ping(&payload, &mut self.pool, now);
        self.stats.pings += 1;
        self.transmit(id);
    }

    pub(super) fn open(&mut self, id: ConnId, now: Instant) {
        let interval = self.timeouts.ping_interval.as_micros() as u64;
        let phase = Duration::from_micros(self.rng.random_range(1..=interval));
        if let Some(entry) = self.entry_mut(id) {
            entry.connection.open(now + phase, now);
        }
    }
}
