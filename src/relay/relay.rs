//! The relay below its sockets: `handle_*` in, `poll_*` out.
//!
//! Owns every connection, the timers and the queue of effects, and sees that a
//! connection which ends is forgotten everywhere at once. Knows no socket, no
//! clock and no thread: bytes and instants are handed in, effects taken out.
//!
//! 1. A connection is in the slab ⇔ it has a deadline ⇔ it is in the wheel.
//! 2. The wheel holds candidates, the connection the truth: a later deadline
//!    moves a field only; the entry fires at its old time, asks, and is armed
//!    again.
//! 3. A connection has a role ⇔ it is counted by the caps ⇔ the registry knows
//!    it. A closing one has none.
//! 4. Effects name connections and carry no bytes; of each kind there is at
//!    most one per connection in the queue.
//! 5. Which connection holds how many queued bytes is charged to one budget.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use slab::Slab;

use super::admission::{Budget, ConnectionCaps, RateLimiter};
use super::conn_id::{ConnId, PublicId};
use super::hash::HashKeys;
use super::registry::{Registry, SlotKey};
use super::stats::{Outcome, Stats};
use super::traffic::Traffic;
use super::wake::Wakes;
use super::warnings::Warnings;
use crate::config::{Config, Forwarded, ROOM, Timeouts};
use crate::protocol::close::CloseCause;
use crate::protocol::connection::Connection;
use crate::protocol::outbox_pool::OutboxPool;
use crate::protocol::websocket::{Codec, Incoming};
use crate::time::{Instant, TICK, Wheel};

// Every timeout of the protocol fits the wheel, so that none fires early only to
// be armed anew.
const _: () = {
    let timeouts = Timeouts::STANDARD;
    let horizon = Wheel::HORIZON.as_secs();
    assert!(horizon > timeouts.ping_interval.as_secs() && horizon > timeouts.pong.as_secs());
    assert!(horizon > timeouts.grace.as_secs() && horizon > timeouts.message.as_secs());
    assert!(horizon > timeouts.close_backlog.as_secs());
};

/// What the shell is to do with a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Write what [`Relay::outgoing`] gives.
    Transmit(ConnId),
    /// Read again: input may wait that was not wanted before.
    Resume(ConnId),
    /// Shut down the writing half; go on reading.
    HalfClose(ConnId),
    /// Time seems to be up for it: hand in all that it has sent, then call
    /// [`Relay::judge`]. A pong that waits unread must not be a dead peer's.
    Judge(ConnId),
    /// Drop the socket. The connection is gone.
    Disconnect(ConnId),
}

/// What a connection is to the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Not upgraded, or closing.
    None,
    /// Waits on the probe of a slot's holder.
    Claimant,
    /// Holds a slot.
    Binary,
    /// Is on a slot.
    Phone,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// A certificate authority's request, or whoever else came to its port.
    Challenge,
    /// The PROXY header that tells whose it is has not come.
    Header,
    /// A load balancer's own request, on nobody's behalf.
    Balancer,
    /// A client's request, or the answer that ends it.
    Request,
    /// The 101 was sent.
    WebSocket,
}

/// One connection and what the relay knows of it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) connection: Connection,
    /// The rest of its [`ConnId`] is where it lives.
    generation: u32,
    /// The client's address; the peer's until a PROXY header or the request head
    /// names another. An IPv4
    /// address is kept mapped, which takes a byte less than an `IpAddr`.
    client: Ipv6Addr,
    pub(super) role: Role,
    pub(super) stage: Stage,
    pub(super) is_transmit_queued: bool,
    pub(super) is_judge_queued: bool,
    /// Meaningful with a role.
    pub(super) slot: SlotKey,
    /// Bytes charged to the budget for it.
    pub(super) charged: u32,
    pub(super) traffic: Traffic,
}

impl Entry {
    pub(super) fn id(&self, index: usize) -> ConnId {
        ConnId::new(index as u32, self.generation)
    }

    pub(super) fn client(&self) -> IpAddr {
        IpAddr::V6(self.client).to_canonical()
    }

    pub(super) fn set_client(&mut self, client: IpAddr) {
        self.client = mapped(client);
    }
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// What an idle connection costs here; the shell and the registry add theirs.
const _: () = assert!(size_of::<Entry>() <= 104);

/// The relay below its sockets.
#[derive(Debug)]
pub struct Relay {
    pub(super) timeouts: Timeouts,
    pub(super) forwarded: Forwarded,
    /// The only host name that is served.
    pub(super) domain: Option<String>,
    /// The token that a certificate authority asks for, and the answer.
    pub(super) challenge: Option<(String, String)>,
    pub(super) registry: Registry,
    pub(super) caps: ConnectionCaps,
    pub(super) rate: RateLimiter,
    pub(super) stats: Stats,
    pub(super) warnings: Warnings,
    /// When a refused PROXY header is worth a warning again.
    pub(super) proxy_warn_at: Instant,
    pub(super) started: Instant,
    pub(super) connections: Slab<Entry>,
    /// WebSockets, lingering ones included.
    pub(super) websockets: usize,
    /// Connections accepted so far.
    accepted: u32,
    codec: Codec,
    pub(super) pool: OutboxPool,
    pub(super) rng: StdRng,
    /// Makes the secret half of every conn_id.
    id_keys: HashKeys,
    pub(super) budget: Budget,
    /// Connection deadlines by slab index.
    pub(super) timers: Wheel,
    /// Ends of grace by slot index.
    pub(super) graces: Wheel,
    pub(super) effects: VecDeque<Effect>,
    /// How long it takes to tell everybody of a shut-down, but for the moment by
    /// which phones come after their binary.
    pub(super) drain: Duration,
    /// Who is to be told next, by slot index; `None`: there is no shut-down.
    pub(super) leaving: Option<Wheel>,
    /// `None`: push wake is off.
    pub(super) wakes: Option<Wakes>,
}

impl Relay {
    /// A relay that starts at `now` and admits `capacity` WebSockets. All its
    /// randomness comes from `seed`.
    #[must_use]
    pub fn new(config: &Config, capacity: usize, seed: [u8; 32], now: Instant) -> Self {
        let mut rng = StdRng::from_seed(seed);
        let mut hash_keys = || [rng.next_u64(), rng.next_u64()];
        let limits = &config.limits;
        Self {
            timeouts: config.timeouts.clone(),
            forwarded: config.forwarded.clone(),
            domain: config.serving.domain().map(str::to_owned),
            challenge: None,
            registry: Registry::new(HashKeys::new(hash_keys())),
            caps: ConnectionCaps::new(capacity, limits.connections_per_ip, hash_keys()),
            rate: RateLimiter::new(limits.rate_per_minute, limits.rate_burst, hash_keys()),
            stats: Stats::default(),
            warnings: Warnings::default(),
            proxy_warn_at: now,
            started: now,
            connections: Slab::with_capacity(ROOM),
            websockets: 0,
            accepted: 0,
            codec: Codec::new(limits.message),
            pool: OutboxPool::default(),
            id_keys: HashKeys::new(hash_keys()),
            wakes: config.push_wake.as_ref().map(|_| Wakes::new(hash_keys())),
            rng,
            budget: Budget::new(limits.buffer_memory),
            timers: Wheel::with_room(ROOM, now),
            graces: Wheel::with_room(ROOM, now),
            effects: VecDeque::new(),
            drain: config.drain,
            leaving: None,
        }
    }

    // What the shell tells

    /// A TCP connection from `peer` was accepted.
    pub fn handle_accept(&mut self, peer: IpAddr, now: Instant) -> ConnId {
        let slot = self.connections.vacant_entry();
        let id = ConnId::new(slot.key() as u32, self.accepted);
        self.accepted = self.accepted.wrapping_add(1);
        slot.insert(Entry {
            connection: Connection::new(now, &self.timeouts),
            generation: id.generation(),
            client: mapped(peer),
            role: Role::None,
            stage: Stage::Request,
            is_transmit_queued: false,
            is_judge_queued: false,
            slot: SlotKey(0),
            charged: 0,
            traffic: Traffic::default(),
        });
        self.settle(id);
        id
    }

    /// Bytes have come.
    pub fn handle_input(&mut self, id: ConnId, input: &[u8], now: Instant) {
        let Some(entry) = self.entry(id) else { return };
        if entry.connection.is_head() {
            self.handle_head(id, input, now);
        } else {
            self.handle_frames(id, input, now);
        }
        self.settle(id);
        self.shed(now);
    }

    /// The peer has sent its last byte (FIN), all before it was handed in.
    pub fn handle_end(&mut self, id: ConnId, now: Instant) {
        let Some(entry) = self.entry_mut(id) else { return };
        if entry.connection.is_closing() {
            entry.connection.on_end();
            self.remove_if_done(id);
        } else {
            self.handle_disconnected(id, now);
        }
    }

    /// The socket is broken: nothing more goes in or out.
    pub fn handle_disconnected(&mut self, id: ConnId, now: Instant) {
        let summary = self.entry(id).and_then(|entry| entry.connection.summary(now));
        self.depart(id, CloseCause::Disconnected, None, summary, now);
        self.remove(id);
        self.shed(now);
    }

    /// The peer has hung up, seen although the connection is not read. A
    /// claimant is forgotten; for others the input before it counts first.
    pub fn handle_hangup(&mut self, id: ConnId, now: Instant) {
        if self.entry(id).is_some_and(|entry| entry.role == Role::Claimant) {
            self.handle_disconnected(id, now);
        }
    }

    // What the shell asks

    /// The next effect.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        let effect = self.effects.pop_front()?;
        if let Effect::Transmit(id) = effect
            && let Some(entry) = self.entry_mut(id)
        {
            entry.is_transmit_queued = false;
        }
        Some(effect)
    }

    /// Whether the connection's input is wanted now.
    #[must_use]
    pub fn is_reading(&self, id: ConnId) -> bool {
        self.entry(id).is_some_and(|entry| entry.connection.is_reading())
    }

    /// Connections of any kind, lingering ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// No connection at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// WebSockets, open or lingering.
    #[must_use]
    pub fn websockets(&self) -> usize {
        self.websockets
    }

    /// Open WebSockets: binaries and phones.
    #[must_use]
    pub fn live(&self) -> (usize, usize) {
        (self.registry.binary_count(), self.registry.phone_count())
    }

    /// Server-ids that are held or in grace.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.registry.len()
    }

    /// Bytes queued on all connections.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.budget.used()
    }

    /// What was counted so far.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    // What happens to a connection

    /// The conn_id that peers see. Its secret half, which also keys the pings, is
    /// not kept but made anew, by SipHash under a key that nobody outside knows:
    /// 15 ns instead of 8 bytes in every [`Entry`].
    pub(super) fn public_id(&self, id: ConnId) -> PublicId {
        PublicId { key: self.id_keys.hash_one(id.to_bits()), id }
    }

    pub(super) fn handle_frames(&mut self, id: ConnId, mut input: &[u8], now: Instant) {
        while let Some(index) = self.index(id) {
            let connection = &mut self.connections[index].connection;
            match connection.next_incoming(&mut input, &mut self.codec, now, &self.timeouts) {
                Ok(Some(incoming)) => self.on_incoming(id, incoming, now),
                Ok(None) => return self.remove_if_done(id),
                Err(cause) => self.close(id, cause, now),
            }
        }
    }

    fn on_incoming(&mut self, id: ConnId, incoming: Incoming, now: Instant) {
        let Some(index) = self.index(id) else { return };
        let entry = &mut self.connections[index];
        match incoming {
            Incoming::Message(message) if entry.role == Role::Phone => {
                self.forward_to_binary(id, &message, now);
            }
            Incoming::Message(message) => self.forward_to_phone(id, &message, now),
            Incoming::Ping(payload) => {
                entry.connection.send_pong(&payload, &mut self.pool, now);
                self.transmit(id);
            }
            Incoming::Pong(payload) => self.on_pong(id, &payload, now),
            Incoming::Close(echo) => self.close_with(id, CloseCause::PeerClosed, &echo, now),
        }
    }

    /// The connection gets the slot: it is read and pinged from now on, first at
    /// a random time within one interval.
    pub(super) fn become_binary(
        &mut self,
        id: ConnId,
        slot: SlotKey,
        binary_version: Option<&str>,
        now: Instant,
    ) {
        let Some(entry) = self.entry_mut(id) else { return };
        let waited = entry.role == Role::Claimant;
        let early = entry.connection.take_early();
        entry.role = Role::Binary;
        entry.slot = slot;
        let remote = entry.client();
        log::info!(
            server_id = self.registry.server_id(slot), binary_conn_id:% = self.public_id(id),
            remote:% = remote, binary_version;
            "server_claimed"
        );
        self.stats.on_upgrade(false, Outcome::Accept);
        self.open(id, now);
        self.handle_frames(id, &early, now);
        if waited {
            self.effects.push_back(Effect::Resume(id));
        }
        self.settle(id);
    }

    // Bookkeeping

    /// Asks the shell to read again.
    pub(super) fn resume(&mut self, id: ConnId, now: Instant) {
        let Some(index) = self.index(id) else { return };
        if self.connections[index].connection.resume(now, &self.timeouts) {
            self.effects.push_back(Effect::Resume(id));
            self.settle(id);
        }
    }

    /// Brings budget and timer in line with the connection.
    pub(super) fn settle(&mut self, id: ConnId) {
        let Some(index) = self.index(id) else { return };
        let entry = &mut self.connections[index];
        let held = entry.connection.held();
        self.budget.charge(entry.charged as usize, held);
        entry.charged = held as u32;
        let deadline = entry.connection.deadline(&self.timeouts);
        // Within a tick of the deadline is exact enough; later than that is a bug.
        if self.timers.armed(index as u32).is_none_or(|armed| armed > deadline + TICK) {
            self.timers.arm(index as u32, deadline);
        }
    }

    pub(super) fn remove_if_done(&mut self, id: ConnId) {
        if self.entry(id).is_some_and(|entry| entry.connection.is_done()) {
            self.remove(id);
        }
    }

    pub(super) fn remove(&mut self, id: ConnId) {
        let Some(index) = self.index(id) else { return };
        let entry = self.connections.remove(index);
        debug_assert_eq!(entry.role, Role::None, "departs before it is removed");
        self.websockets -= usize::from(entry.stage == Stage::WebSocket);
        self.budget.charge(entry.charged as usize, 0);
        self.timers.disarm(index as u32);
        self.effects.push_back(Effect::Disconnect(id));
    }

    pub(super) fn index(&self, id: ConnId) -> Option<usize> {
        let entry = self.connections.get(id.index())?;
        (entry.generation == id.generation()).then_some(id.index())
    }

    pub(super) fn entry(&self, id: ConnId) -> Option<&Entry> {
        self.index(id).map(|index| &self.connections[index])
    }

    pub(super) fn entry_mut(&mut self, id: ConnId) -> Option<&mut Entry> {
        self.index(id).map(|index| &mut self.connections[index])
    }
}
