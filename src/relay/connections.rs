//! Connections: every connection, with its timer, budget charge, client and effects.
//!
//! Owns the slab of connections, their deadline timers, the queue of effects, the byte
//! budget, the bytes of each client, the limits before the upgrade and the outbox pool; nothing outside this module reaches
//! them. A connection is changed inside [`Connections::edit`] only, which updates the rest
//! when the change ends, so no caller can forget to. Must not know slots, limits on clients
//! or requests.
//!
//! 1. A connection is in the slab ⇔ it has a deadline ⇔ it is in the wheel. An entry of the
//!    wheel is a candidate; the connection's own deadline decides. A deadline that moves back
//!    changes the connection only; the timer fires at its old time and is armed again.
//! 2. Between any two edits the budget is charged with the bytes that each connection holds.
//!    The sums of clients lag behind: a connection whose bytes have changed is put on a list,
//!    which is worked off when it is long, and before a sum is asked for. Most connections hold
//!    nothing again by then, so that a message costs a clear flag and no search.
//! 3. Effects name connections and carry no bytes; each kind is queued at most once per
//!    connection, so the queue is bounded.
//! 4. A connection that is done ([`Connection::is_done`]) is removed at the end of the edit
//!    in which that happened, and `Disconnect` is its last effect.
//! 5. A [`ConnId`] is used once. Input for an earlier connection finds no entry.

pub(super) mod audit;
mod clients;
mod editor;
mod entry;
mod ranking;
mod state;
mod traffic;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use slab::Slab;

pub(super) use self::clients::Client;
use self::clients::{Clients, Holding, Order};
pub(super) use self::editor::Editor;
use self::entry::{Payer, Queued};

pub(super) use self::entry::{Ended, Entry, Role, Stage};
use super::admission::{Budget, ClientKey, EarlyClose, RequestLimits};
use super::conn_id::{ConnId, PublicId, PublicIds};
use super::keyed_hash::HashKeys;
use super::slots::SlotKey;
use crate::config::{Config, INITIAL_CAPACITY, Timeouts};
use crate::protocol::connection::{Connection, Expiry};
use crate::protocol::outbox_pool::OutboxPool;
use crate::protocol::websocket::{Codec, Message};
use crate::time::{Instant, Wheel};

// Every timeout of the protocol fits the wheel, so that no timer fires early at the horizon.
const _: () = {
    let timeouts = Timeouts::STANDARD;
    let horizon = Wheel::HORIZON.as_secs();
    assert!(horizon > timeouts.ping_interval.as_secs() && horizon > timeouts.pong.as_secs());
    assert!(horizon > timeouts.grace.as_secs() && horizon > timeouts.message.as_secs());
    assert!(horizon > timeouts.close_backlog.as_secs());
};

/// Maximum length of the list of connections whose bytes have changed; 4 KB.
const CHANGED_MAX: usize = 1024;

/// The part of the byte budget up to which outboxes and chunks are pooled; at most 1 MiB.
const POOL_PART: usize = 64;

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
    /// One more than the largest index that was ever used.
    end: usize,
    /// Connections accepted so far.
    accepted: u64,
    public_ids: PublicIds,
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
    /// What each client holds by its WebSockets and slots in grace.
    clients: Clients,
    /// What each client holds by connections that are not upgraded.
    requests: Clients,
    request_limits: RequestLimits,
    /// Indices of connections whose bytes have changed since they were recorded for a client.
    changed: Vec<u32>,
    /// Deadlines by slab index.
    timers: Wheel,
    effects: VecDeque<Effect>,
    /// Number of WebSockets, closing ones included.
    websockets: usize,
}

/// What has to give back its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shed {
    /// A connection that is not upgraded.
    Request(ConnId),
    /// A WebSocket.
    WebSocket(ConnId),
    /// A slot in grace.
    Grace(SlotKey),
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
    /// No connections yet. `hash_keys` must return keys that peers cannot predict.
    pub(super) fn new(
        config: &Config,
        mut hash_keys: impl FnMut() -> [u64; 2],
        now: Instant,
    ) -> Self {
        Self {
            slab: Slab::with_capacity(INITIAL_CAPACITY),
            shared: Shared {
                timeouts: config.timeouts.clone(),
                codec: Codec::new(config.limits.message),
                pool: OutboxPool::new(config.limits.buffer_memory / POOL_PART),
                budget: Budget::new(config.limits.buffer_memory),
                clients: Clients::new(HashKeys::new(hash_keys())),
                requests: Clients::new(HashKeys::new(hash_keys())),
                request_limits: RequestLimits::new(
                    config.limits.rate_per_minute > 0,
                    &mut hash_keys,
                ),
                changed: Vec::new(),
                timers: Wheel::with_capacity(INITIAL_CAPACITY, now),
                effects: VecDeque::new(),
                websockets: 0,
            },
            end: 0,
            accepted: 0,
            public_ids: PublicIds::new(HashKeys::new(hash_keys())),
            #[cfg(test)]
            lookups: std::cell::Cell::default(),
        }
    }

    // Change

    /// Adds a connection that was accepted from `peer`. If `is_limited`, it counts towards the
    /// limits of that client; where one is reached, the connection is gone at once, with a
    /// `Disconnect` as its only effect.
    pub(super) fn insert(
        &mut self,
        peer: IpAddr,
        stage: Stage,
        is_limited: bool,
        now: Instant,
    ) -> (ConnId, Result<(), EarlyClose>) {
        let index = self.slab.vacant_key();
        // The last index is never in use: it names a connection that was not admitted.
        let is_full = index >= ConnId::INDEX_MAX as usize;
        let id = ConnId::new((index as u32).min(ConnId::INDEX_MAX), self.accepted);
        self.accepted += 1;
        let admitted = match () {
            () if is_full => Err(EarlyClose::Connections),
            () if is_limited => self.shared.request_limits.admit(ClientKey::from(peer), now),
            () => Ok(()),
        };
        if admitted.is_err() {
            self.shared.effects.push_back(Effect::Disconnect(id));
            return (id, admitted);
        }
        let connection = Connection::new(now, &self.shared.timeouts);
        let deadline = connection.deadline(&self.shared.timeouts);
        let mut entry = Entry::new(connection, id, peer, stage);
        entry.is_limited = is_limited;
        self.end = self.end.max(self.slab.insert(entry) + 1);
        self.shared.timers.arm(id.index() as u32, deadline);
        (id, Ok(()))
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
        let before = Held::of(entry);
        let result = change(&mut Editor::new(id, now, entry, &mut self.shared));
        self.shared.settle(id, entry, before, now);
        if entry.connection.is_done() {
            self.remove(id);
        }
        if self.shared.changed.len() >= CHANGED_MAX {
            self.record_changed();
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
        self.shared.forget(id, &entry);
    }

    /// Brings the sums of clients up to date.
    fn record_changed(&mut self) {
        for index in std::mem::take(&mut self.shared.changed) {
            // The connection may be gone, and the next one with its index on the list as well.
            let Some(entry) = self.slab.get_mut(index as usize) else { continue };
            entry.is_changed = false;
            self.shared.record(index, entry);
        }
    }

    /// The slot is in grace and holds `bytes` for the client of the binary that left it.
    pub(super) fn charge_grace(&mut self, slot: SlotKey, client: Client, bytes: usize) {
        self.release_grace(slot);
        self.shared.budget.charge(0, bytes);
        self.shared.clients.set(Holding::Grace(slot), client, bytes, Order::Size);
    }

    /// The grace of the slot is over; does nothing if it was not charged.
    pub(super) fn release_grace(&mut self, slot: SlotKey) {
        let bytes = self.shared.clients.bytes(Holding::Grace(slot));
        self.shared.budget.charge(bytes, 0);
        self.shared.clients.remove(Holding::Grace(slot));
    }

    /// Counts a frame of `len` bytes that was forwarded from the connection.
    pub(super) fn count_received(&mut self, id: ConnId, len: usize) {
        #[cfg(test)]
        self.lookups.set(self.lookups.get() + 1);
        if let Some(entry) = self.slab.get_mut(id.index()).filter(|entry| entry.is(id)) {
            entry.traffic.received.add(len);
        }
    }

    /// Takes the memory of a message back, for the next one.
    pub(super) fn recycle(&mut self, message: Message) {
        self.shared.codec.recycle(message);
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
                let id = entry.id(index);
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
                    Effect::Transmit(_) => entry.queued.remove(Queued::TRANSMIT),
                    _ => entry.queued.remove(Queued::CONTINUE),
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

    /// The conn_id that peers see.
    pub(super) fn public_id(&self, id: ConnId) -> PublicId {
        self.public_ids.of(id)
    }

    /// The connection with this conn_id; it may be gone.
    pub(super) fn find(&self, conn_id: &str) -> Option<ConnId> {
        self.public_ids.find(conn_id)
    }

    /// What has to be shed, if memory is spent: the largest holding of the client that holds
    /// most, or of connections that are not upgraded the oldest of the client that holds most
    /// by them. Cheap while the list of changes is empty: a few searches in sorted tables and
    /// comparisons of 64 clients and 64 holdings at most. A full list is worked off
    /// once for all that is shed in a turn.
    pub(super) fn first_to_shed(&mut self) -> Option<Shed> {
        let budget = &self.shared.budget;
        let of_requests = budget.is_requests_exceeded();
        if !of_requests && !budget.is_exceeded() {
            return None;
        }
        self.record_changed();
        let clients = if of_requests { &self.shared.requests } else { &self.shared.clients };
        Some(match clients.first_to_shed()? {
            Holding::Connection(index) => {
                let id = self.slab.get(index as usize)?.id(index);
                if of_requests { Shed::Request(id) } else { Shed::WebSocket(id) }
            }
            Holding::Grace(slot) => Shed::Grace(slot),
        })
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

/// Bytes of a connection, and what they are counted for.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Held {
    bytes: usize,
    is_websocket: bool,
    payer: Payer,
}

impl Held {
    fn of(entry: &Entry) -> Self {
        Self {
            bytes: entry.connection.held(),
            is_websocket: entry.stage.is_websocket(),
            payer: entry.payer,
        }
    }
}

impl Shared {
    /// Updates everything for a connection that held `before` before the edit.
    fn settle(&mut self, id: ConnId, entry: &mut Entry, before: Held, now: Instant) {
        let key = id.index() as u32;
        if entry.connection.half_close(now, &self.timeouts) {
            self.effects.push_back(Effect::HalfClose(id));
        }
        let after = Held::of(entry);
        if after != before {
            self.charge(before, after);
            if !std::mem::replace(&mut entry.is_changed, true) {
                self.changed.push(key);
            }
        }
        let deadline = entry.connection.deadline(&self.timeouts);
        // A timer that is too early is armed again when it fires.
        self.timers.arm_by(key, deadline);
    }

    fn charge(&mut self, before: Held, after: Held) {
        let budget = &mut self.budget;
        match (before.is_websocket, after.is_websocket) {
            (false, false) => budget.charge_request(before.bytes, after.bytes),
            (true, true) => budget.charge(before.bytes, after.bytes),
            (..) => {
                budget.charge_request(before.bytes, 0);
                budget.charge(0, after.bytes);
            }
        }
    }

    /// Records for its client what a connection holds.
    fn record(&mut self, index: u32, entry: &Entry) {
        let holding = Holding::Connection(index);
        let Held { bytes, is_websocket, .. } = Held::of(entry);
        if is_websocket {
            self.requests.remove(holding);
            if bytes == 0 {
                self.clients.remove(holding);
            } else {
                self.clients.set(holding, entry.payer(), bytes, Order::Size);
            }
        } else if bytes == 0 {
            self.requests.remove(holding);
        } else {
            let order = Order::Age(entry.id(index).age());
            self.requests.set(holding, entry.payer(), bytes, order);
        }
    }

    /// The connection is upgraded, or gone.
    fn release_request(&mut self, entry: &Entry) {
        if entry.is_limited {
            self.request_limits.release(ClientKey::from(entry.client()));
        }
    }

    /// Removes everything about a connection that is no longer in the slab.
    fn forget(&mut self, id: ConnId, entry: &Entry) {
        let key = id.index() as u32;
        let held = Held::of(entry);
        self.websockets -= usize::from(held.is_websocket);
        self.charge(held, Held { bytes: 0, ..held });
        self.requests.remove(Holding::Connection(key));
        self.clients.remove(Holding::Connection(key));
        self.release_request(entry);
        self.timers.disarm(key);
        self.effects.push_back(Effect::Disconnect(id));
    }
}
