//! Connections: every connection, with its timer, budget charge, rank and effects.
//!
//! Owns the slab of connections, their deadline timers, the queue of effects, the byte
//! budget, the ranking by bytes held and the outbox pool; nothing outside this module reaches
//! them. A connection is changed inside [`Connections::edit`] only, which updates the rest
//! when the change ends, so no caller can forget to. Must not know slots, limits on clients
//! or requests.
//!
//! 1. A connection is in the slab ⇔ it has a deadline ⇔ it is in the wheel. An entry of the
//!    wheel is a candidate; the connection's own deadline decides. A deadline that moves back
//!    changes the connection only; the timer fires at its old time and is armed again.
//! 2. Between any two edits the budget is charged with the bytes that each connection holds,
//!    and the ranking contains each connection that holds a byte.
//! 3. Effects name connections and carry no bytes; each kind is queued at most once per
//!    connection, so the queue is bounded.
//! 4. A connection that is done ([`Connection::is_done`]) is removed at the end of the edit
//!    in which that happened, and `Disconnect` is its last effect.
//! 5. A [`ConnId`] is used once. Input for an earlier connection finds no entry.

pub(super) mod audit;
mod editor;
mod entry;
mod ranking;
mod traffic;

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::time::Duration;

use slab::Slab;

pub(super) use self::editor::Editor;
pub(super) use self::entry::{Ended, Entry, Role, Stage};
use self::ranking::Ranking;
use super::admission::Budget;
use super::conn_id::{ConnId, PublicId};
use super::keyed_hash::HashKeys;
use crate::config::{Config, INITIAL_CAPACITY, Timeouts};
use crate::protocol::connection::{Connection, Expiry};
use crate::protocol::outbox_pool::OutboxPool;
use crate::protocol::websocket::Codec;
use crate::time::{Instant, TICK, Wheel};

// Every timeout of the protocol fits the wheel, so that no timer fires early at the horizon.
const _: () = {
    let timeouts = Timeouts::STANDARD;
    let horizon = Wheel::HORIZON.as_secs();
    assert!(horizon > timeouts.ping_interval.as_secs() && horizon > timeouts.pong.as_secs());
    assert!(horizon > timeouts.grace.as_secs() && horizon > timeouts.message.as_secs());
    assert!(horizon > timeouts.close_backlog.as_secs());
};

/// Connections that are compared to find the largest.
const COMPARED_MAX: usize = 64;

/// An action that the shell has to carry out on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Write [`Relay::outgoing`](super::Relay::outgoing).
    Transmit(ConnId),
    /// Resume reading: unread input may be waiting.
    Resume(ConnId),
    /// Input of the connection was left over, so that others are served first. Hand in
    /// [`Input::Continue`](super::Input::Continue) when it is its turn again.
    Continue(ConnId),
    /// Shut down the writing half; continue reading.
    HalfClose(ConnId),
    /// A deadline has passed, but a pong may be unread. Hand in all that the peer has sent,
    /// then [`Input::ReadToEnd`](super::Input::ReadToEnd).
    ReadThenExpire(ConnId),
    /// Drop the socket. The connection is removed.
    Disconnect(ConnId),
}

/// Every connection.
#[derive(Debug)]
pub(super) struct Connections {
    slab: Slab<Entry>,
    shared: Shared,
    /// Connections accepted so far.
    accepted: u32,
    /// Keys for the secret half of every conn_id.
    id_keys: HashKeys,
    /// Number of look-ups in the slab, for the test that bounds it.
    #[cfg(test)]
    pub(super) lookups: std::cell::Cell<usize>,
}

/// State that all connections share.
#[derive(Debug)]
struct Shared {
    timeouts: Timeouts,
    codec: Codec,
    pool: OutboxPool,
    budget: Budget,
    /// Connections that hold a byte, by slab index.
    ranking: Ranking,
    /// Deadlines by slab index.
    timers: Wheel,
    effects: VecDeque<Effect>,
    /// Number of WebSockets, closing ones included.
    websockets: usize,
}

/// A connection whose deadline has come.
#[derive(Debug)]
pub(super) struct Due {
    pub(super) id: ConnId,
    /// The delay since the deadline.
    pub(super) late: Duration,
    pub(super) expiry: Option<Expiry>,
}

impl Connections {
    /// No connections yet. `id_keys` must be unpredictable to peers.
    pub(super) fn new(config: &Config, id_keys: HashKeys, now: Instant) -> Self {
        Self {
            slab: Slab::with_capacity(INITIAL_CAPACITY),
            shared: Shared {
                timeouts: config.timeouts.clone(),
                codec: Codec::new(config.limits.message),
                pool: OutboxPool::default(),
                budget: Budget::new(config.limits.buffer_memory),
                ranking: Ranking::default(),
                timers: Wheel::with_capacity(INITIAL_CAPACITY, now),
                effects: VecDeque::new(),
                websockets: 0,
            },
            accepted: 0,
            id_keys,
            #[cfg(test)]
            lookups: std::cell::Cell::default(),
        }
    }

    // Change

    /// Adds a connection that was accepted from `peer`.
    pub(super) fn insert(&mut self, peer: IpAddr, stage: Stage, now: Instant) -> ConnId {
        let slot = self.slab.vacant_entry();
        let id = ConnId::new(slot.key() as u32, self.accepted);
        self.accepted = self.accepted.wrapping_add(1);
        let connection = Connection::new(now, &self.shared.timeouts);
        let deadline = connection.deadline(&self.shared.timeouts);
        slot.insert(Entry::new(connection, id.generation(), peer, stage));
        self.shared.timers.arm(id.index() as u32, deadline);
        id
    }

    /// Changes a connection, then updates budget, ranking, timer and effects. `None`: there
    /// is no such connection.
    pub(super) fn edit<T>(
        &mut self,
        id: ConnId,
        now: Instant,
        change: impl FnOnce(&mut Editor<'_>) -> T,
    ) -> Option<T> {
        #[cfg(test)]
        self.lookups.set(self.lookups.get() + 1);
        let entry = self.slab.get_mut(id.index()).filter(|entry| entry.is(id))?;
        let held = entry.connection.held();
        let result = change(&mut Editor::new(id, now, entry, &mut self.shared));
        let settled = self.shared.settle(id, entry, held, now);
        if let Some((moved, place)) = settled.moved {
            self.place(moved, place);
        }
        if settled.is_done {
            self.remove(id);
        }
        Some(result)
    }

    /// Disconnects a connection. Returns its final facts, if it had a role.
    pub(super) fn disconnect(&mut self, id: ConnId, now: Instant) -> Option<Ended> {
        let ended = self.edit(id, now, |it| it.end())?;
        self.remove(id);
        ended
    }

    /// Removes an entry without a role; does nothing if it is already removed.
    fn remove(&mut self, id: ConnId) {
        if self.get(id).is_none() {
            return;
        }
        let entry = self.slab.remove(id.index());
        debug_assert_eq!(entry.role(), None, "gives up its place before it is removed");
        if let Some((moved, place)) = self.shared.forget(id, &entry) {
            self.place(moved, place);
        }
    }

    /// Records the place of a connection in the ranking.
    fn place(&mut self, index: u32, place: u32) {
        #[cfg(test)]
        self.lookups.set(self.lookups.get() + 1);
        self.slab[index as usize].place = place;
    }

    /// Counts a frame of `len` bytes that was forwarded from the connection.
    pub(super) fn count_received(&mut self, id: ConnId, len: usize) {
        #[cfg(test)]
        self.lookups.set(self.lookups.get() + 1);
        if let Some(entry) = self.slab.get_mut(id.index()).filter(|entry| entry.is(id)) {
            entry.traffic.received.add(len);
        }
    }

    /// The next connection whose deadline has come, with its expiry. Call until `None`. An
    /// expiry that is not acted upon is due again at the next tick.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Due> {
        let Shared { timers, timeouts, .. } = &mut self.shared;
        while let Some(index) = timers.pop_expired(now) {
            let entry = &mut self.slab[index as usize];
            let deadline = entry.connection.deadline(timeouts);
            let is_due = deadline <= now;
            let expiry = is_due.then(|| entry.connection.handle_timeout(now, timeouts)).flatten();
            timers.arm(index, entry.connection.deadline(timeouts));
            if is_due {
                let id = ConnId::new(index, entry.generation());
                return Some(Due { id, late: now.since(deadline), expiry });
            }
        }
        None
    }

    /// The next effect.
    pub(super) fn poll_effect(&mut self) -> Option<Effect> {
        let effect = self.shared.effects.pop_front()?;
        if let Effect::Transmit(id) | Effect::Continue(id) = effect {
            #[cfg(test)]
            self.lookups.set(self.lookups.get() + 1);
            if let Some(entry) = self.slab.get_mut(id.index()).filter(|entry| entry.is(id)) {
                match effect {
                    Effect::Transmit(_) => entry.is_transmit_queued = false,
                    _ => entry.is_continue_queued = false,
                }
            }
        }
        Some(effect)
    }

    // Queries

    /// The connection, read-only.
    pub(super) fn get(&self, id: ConnId) -> Option<&Entry> {
        #[cfg(test)]
        self.lookups.set(self.lookups.get() + 1);
        self.slab.get(id.index()).filter(|entry| entry.is(id))
    }

    /// The conn_id that peers see. Its secret half, which also keys the pings, is not stored
    /// but derived by SipHash under a key that is never disclosed: 15 ns instead of 8 bytes
    /// in every [`Entry`].
    pub(super) fn public_id(&self, id: ConnId) -> PublicId {
        PublicId { key: self.id_keys.hash_one(id.to_bits()), id }
    }

    /// If the budget is exceeded, the connection that holds the most bytes. At most
    /// [`COMPARED_MAX`] connections of the highest size class are compared, the newest of
    /// them first, so where more hold about as much the result is within 25 % of the largest.
    pub(super) fn largest_if_over_budget(&self) -> Option<ConnId> {
        if !self.shared.budget.is_exceeded() {
            return None;
        }
        let newest = self.shared.ranking.highest().iter().rev().take(COMPARED_MAX);
        let entries = newest.map(|index| (*index, &self.slab[*index as usize]));
        let (index, largest) = entries.max_by_key(|(_, entry)| entry.connection.held())?;
        Some(ConnId::new(index, largest.generation()))
    }

    /// When [`Self::pop_due`] has to be called next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.shared.timers.next_expiry()
    }

    /// The timeouts of every connection.
    pub(super) fn timeouts(&self) -> &Timeouts {
        &self.shared.timeouts
    }

    /// Number of connections of any kind, closing ones included.
    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    /// Number of WebSockets, closing ones included.
    pub(super) fn websockets(&self) -> usize {
        self.shared.websockets
    }

    /// Bytes that all connections hold.
    pub(super) fn buffered(&self) -> usize {
        self.shared.budget.used()
    }

    /// The limit on [`Self::buffered`].
    pub(super) fn buffered_max(&self) -> usize {
        self.shared.budget.limit()
    }
}

/// Work on other entries of the slab that an edit leaves behind.
struct Settled {
    /// Another connection's index and its new place in the ranking.
    moved: Option<(u32, u32)>,
    /// The edited connection has to be removed.
    is_done: bool,
}

impl Shared {
    /// Updates everything for a connection that held `held` bytes before the edit.
    fn settle(&mut self, id: ConnId, entry: &mut Entry, held: usize, now: Instant) -> Settled {
        let key = id.index() as u32;
        if entry.connection.half_close(now, &self.timeouts) {
            self.effects.push_back(Effect::HalfClose(id));
        }
        let holds = entry.connection.held();
        let mut moved = None;
        if holds != held {
            self.budget.charge(held, holds);
            moved = self.ranking.change(key, held, holds, &mut entry.place);
        }
        let deadline = entry.connection.deadline(&self.timeouts);
        // A timer within one tick of the deadline is exact enough; an earlier one is armed
        // again.
        if self.timers.armed(key).is_none_or(|armed| armed > deadline + TICK) {
            self.timers.arm(key, deadline);
        }
        Settled { moved, is_done: entry.connection.is_done() }
    }

    /// Removes everything about a connection that is no longer in the slab. Returns another
    /// connection's index and its new place in the ranking, if that has changed.
    fn forget(&mut self, id: ConnId, entry: &Entry) -> Option<(u32, u32)> {
        let key = id.index() as u32;
        let held = entry.connection.held();
        self.websockets -= usize::from(entry.stage.is_websocket());
        self.budget.charge(held, 0);
        self.timers.disarm(key);
        self.effects.push_back(Effect::Disconnect(id));
        let mut place = entry.place;
        self.ranking.change(key, held, 0, &mut place)
    }
}
