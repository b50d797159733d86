//! Relay: the state machine of all connections, and its interface to the shell.
//!
//! Owns the parts and dispatches each input to the one that handles it; decides nothing
//! itself. The files that implement `Relay` depend on each other in one direction: closing,
//! forward, follow_ups, proxied, gates, deadlines, relay. `tests/architecture.rs` checks that.

use std::collections::VecDeque;
use std::net::IpAddr;

use chacha20::ChaCha12Rng;
use rand::{Rng, SeedableRng};

use super::closing::FollowUp;
use super::conn_id::ConnId;
use super::connections::{Connections, Effect, Role};
use super::gates::{Gates, ListenerKind};
use super::keyed_hash::HashKeys;
use super::push_wake::{Wake, Wakes};
use super::slots::Slots;
use super::stats::{Stats, WakeOutcome};
use super::warnings::Warnings;
use crate::config::Config;
use crate::protocol::close::CloseCause;
use crate::protocol::proxy_header::{Malformed, Proxied};
use crate::protocol::response::Date;
use crate::protocol::transport::{Slices, TransportBuffered};
use crate::time::Instant;

/// An event that the shell hands to the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Input<'a> {
    /// A PROXY header has arrived, valid or malformed.
    Proxied(ConnId, Result<Proxied, Malformed>),
    /// Bytes have arrived, at least one.
    Bytes(ConnId, &'a [u8]),
    /// It is the turn of a connection that [`Effect::Continue`] named: the input that it left
    /// over is handled on.
    Continue(ConnId),
    /// The peer has sent its last byte (FIN); everything before it was handed in.
    End(ConnId),
    /// The peer has hung up, noticed although the connection is not read. A claimant is
    /// removed; for others the input before the hang-up is handled first.
    Hangup(ConnId),
    /// The same, and the socket has failed and holds no input: what was handed in before is
    /// handled first, if any of it was left over.
    Reset(ConnId),
    /// The socket has failed: nothing more can be read or written.
    Disconnected(ConnId),
    /// This many bytes of [`Relay::outgoing`] were written, and this many does the transport
    /// below the relay (TLS) buffer now. In one input, as nothing may be queued or shed between
    /// the two: what was written would be counted twice, or be another thing.
    Written(ConnId, usize, TransportBuffered),
    /// The number of bytes that the transport below the relay (TLS) buffers for the
    /// connection has changed. They count as queued.
    Buffered(ConnId, TransportBuffered),
    /// All that the peer had sent was handed in, as [`Effect::ReadThenExpire`] asked.
    ReadToEnd(ConnId),
    /// [`Relay::next_deadline`] has come.
    Timeout,
    /// Every WebSocket is closed with 1001, spread over [`Config::drain`], and new ones
    /// are refused.
    ShutDown,
    /// The response to a certificate authority's challenge (RFC 8555 §8.3): the token in the
    /// request, and the response. It replaces the previous one.
    Challenge(Option<(&'a str, &'a str)>),
    /// A push wake that was handed out has ended.
    WakeDone(WakeOutcome),
    /// The `Date` of HTTP responses from now on.
    Date(Date),
}

/// The relay without sockets: all connections, and the slots that relate them.
///
/// A pure state machine: it reads no clock, owns no socket and starts no thread. Its driver
/// does all of that, by these steps:
///
/// 1. Create it with [`Relay::new`], from a seed that peers cannot guess.
/// 2. For each TCP connection call [`Relay::handle_accept`] once. The [`ConnId`] that it
///    returns names the connection until its [`Effect::Disconnect`], which is the only effect
///    where the client has too many connections. Input for a connection that is gone is
///    allowed and changes nothing.
/// 3. Hand in events with [`Relay::handle`]; bytes only while [`Relay::is_reading`] is true.
///    Input that is not read stays in the kernel, which is the backpressure on the peer.
/// 4. After any number of inputs call [`Relay::poll_effect`] until it returns `None`, and
///    carry each effect out. For [`Effect::Transmit`] write [`Relay::outgoing`] in one call
///    and report it as [`Input::Written`]. That may be the first part of what is queued: if all
///    of it was written, another effect follows for the rest. After a short write, repeat this
///    when the socket is writable, without a further effect.
/// 5. When [`Relay::next_deadline`] has come, hand in [`Input::Timeout`] after the bytes that
///    have arrived, because no deadline counts against a peer whose input is unread. For the
///    same reason [`Effect::ReadThenExpire`] requires reading the socket to its end, effects
///    included, before [`Input::ReadToEnd`].
/// 6. Carry out push wakes from [`Relay::poll_wake`] elsewhere, and report each once as
///    [`Input::WakeDone`].
///
/// Instants never run backwards. Whatever peers do, memory is bounded by the number of
/// connections and [`Limits::buffer_memory`](crate::config::Limits), and the time of a call
/// by its input and the members of one slot.
#[derive(Debug)]
pub struct Relay {
    pub(super) connections: Connections,
    pub(super) slots: Slots,
    pub(super) gates: Gates,
    /// `None`: push wake is off.
    pub(super) wakes: Option<Wakes>,
    pub(super) stats: Stats,
    pub(super) warnings: Warnings,
    pub(super) rng: ChaCha12Rng,
    /// Pending consequences of changes for other connections. Empty between two calls.
    pub(super) follow_ups: VecDeque<FollowUp>,
}

impl Relay {
    /// A relay that starts at `now` and admits `capacity` WebSockets. All its randomness
    /// comes from `seed`.
    #[must_use]
    pub fn new(config: &Config, capacity: usize, seed: [u8; 32], now: Instant) -> Self {
        let mut rng = ChaCha12Rng::from_seed(seed);
        let mut hash_keys = || [rng.next_u64(), rng.next_u64()];
        Self {
            slots: Slots::new(config, HashKeys::new(hash_keys()), now),
            gates: Gates::new(config, capacity, &mut hash_keys, now),
            connections: Connections::new(config, &mut hash_keys, now),
            wakes: config.push_wake.as_ref().map(|_| Wakes::new(hash_keys())),
            stats: Stats::default(),
            warnings: Warnings::default(),
            follow_ups: VecDeque::new(),
            rng,
        }
    }

    /// A TCP connection from `peer` was accepted.
    pub fn handle_accept(&mut self, peer: IpAddr, kind: ListenerKind, now: Instant) -> ConnId {
        self.enter(peer, kind, now)
    }

    /// Handles one event.
    pub fn handle(&mut self, input: Input<'_>, now: Instant) {
        match input {
            Input::Proxied(id, header) => self.handle_proxied(id, header, now),
            Input::Bytes(id, bytes) => {
                let entry = self.connections.get(id);
                match entry.is_some_and(|entry| entry.connection().is_head()) {
                    true => self.handle_head(id, bytes, now),
                    false => self.handle_frames(id, bytes, now),
                }
            }
            Input::Continue(id) => self.handle_kept(id, now),
            Input::End(id) => self.handle_end(id, now),
            Input::Hangup(id) | Input::Reset(id) => {
                let is_reset = matches!(input, Input::Reset(_));
                if self.connections.get(id).is_some_and(|entry| {
                    let is_over = is_reset && !entry.connection().has_kept();
                    is_over || entry.role() == Some(Role::Claimant)
                }) {
                    self.disconnect(id, CloseCause::Disconnected, now);
                }
            }
            Input::Disconnected(id) => self.disconnect(id, CloseCause::Disconnected, now),
            Input::Written(id, count, buffered) => self.handle_written(id, count, buffered, now),
            Input::Buffered(id, buffered) => self.handle_buffered(id, buffered, now),
            Input::ReadToEnd(id) => self.expire_after_read(id, now),
            Input::Timeout => self.on_time(now),
            Input::ShutDown if self.slots.is_draining() => {}
            Input::ShutDown => {
                let told = self.slots.start_drain(&mut self.rng, now);
                self.close_later(told, CloseCause::Shutdown);
            }
            Input::Challenge(challenge) => self.gates.set_challenge(challenge),
            Input::Date(date) => self.gates.date = date,
            Input::WakeDone(outcome) => {
                self.stats.on_wake(outcome);
                if let Some(wakes) = &mut self.wakes {
                    wakes.on_done();
                }
            }
        }
        self.carry_out(now);
    }

    fn handle_end(&mut self, id: ConnId, now: Instant) {
        let is_closing = self.connections.edit(id, now, |it| {
            it.on_end();
            it.connection().is_closing()
        });
        if is_closing == Some(false) {
            self.disconnect(id, CloseCause::Disconnected, now);
        }
    }

    /// The next effect.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.connections.poll_effect()
    }

    /// The next wake to carry out; report its outcome once as [`Input::WakeDone`].
    pub fn poll_wake(&mut self) -> Option<Wake> {
        self.wakes.as_mut()?.next()
    }

    /// When [`Input::Timeout`] has to be handed in next; `None`: never.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let slots = self.slots.next_deadline();
        self.connections.next_deadline().into_iter().chain(slots).min()
    }

    /// Whether to read the connection's input now.
    #[must_use]
    pub fn is_reading(&self, id: ConnId) -> bool {
        self.connections.get(id).is_some_and(|entry| entry.connection().is_reading())
    }

    /// Whether the connection has not been upgraded or refused yet.
    #[must_use]
    pub fn is_request(&self, id: ConnId) -> bool {
        self.connections.get(id).is_some_and(|entry| entry.connection().is_head())
    }

    /// Whether both close frames of a WebSocket are sent: then its peer sends nothing more
    /// (RFC 6455 §5.5.1).
    #[must_use]
    pub fn has_closed(&self, id: ConnId) -> bool {
        self.connections.get(id).is_some_and(|entry| entry.connection().has_closed())
    }

    /// What to write to the connection next, in this order, in one call; where much is queued,
    /// its first bytes.
    #[must_use]
    pub fn outgoing(&self, id: ConnId) -> Slices<'_> {
        self.connections.get(id).map_or_else(Slices::default, |entry| entry.connection().outgoing())
    }

    /// The client's address as far as it is known: the peer's until a PROXY header or a
    /// request head names another.
    #[must_use]
    pub fn client(&self, id: ConnId) -> Option<IpAddr> {
        self.connections.get(id).map(|entry| entry.client())
    }

    /// Number of connections of any kind, closing ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether there is no connection.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of WebSockets, open or closing: a shut-down waits until it is zero.
    #[must_use]
    pub fn websockets(&self) -> usize {
        self.connections.websockets()
    }

    /// Number of binaries and of phones.
    #[must_use]
    pub fn live(&self) -> (usize, usize) {
        (self.slots.binary_count(), self.slots.phone_count())
    }

    /// Number of server-ids held or in grace.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Bytes buffered on all connections.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.connections.buffered()
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }
}

#[cfg(test)]
mod tests;
