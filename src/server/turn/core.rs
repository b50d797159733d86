//! Core: what the loop drives. Inputs and instants in, effects and bytes out.
//!
//! Owns the border between the shell and everything below it, as a trait, so that the loop
//! can drive something other than a relay: the echo server that the Autobahn suite tests
//! is one. Resolved when compiled: the loop around the relay calls the relay. The contract
//! is that of [`Relay`], and each method means what the relay's of the same name does.

use std::net::IpAddr;

use crate::protocol::transport::Slices;
use crate::relay::push_wake::Wake;
use crate::relay::{ConnId, Effect, Input, ListenerKind, Relay, Snapshot};
use crate::time::Instant;

/// Connections below their sockets.
pub trait Core {
    /// A TCP connection from `peer` was accepted.
    fn handle_accept(&mut self, peer: IpAddr, kind: ListenerKind, now: Instant) -> ConnId;

    /// Something has happened.
    fn handle(&mut self, input: Input<'_>, now: Instant);

    /// The next effect.
    fn poll_effect(&mut self) -> Option<Effect>;

    /// The next push wake to carry out; by default none.
    fn poll_wake(&mut self) -> Option<Wake> {
        None
    }

    /// When [`Input::Timeout`] has to be handed in next; `None`: never.
    fn next_deadline(&self) -> Option<Instant>;

    /// Whether the connection's input is wanted now.
    fn is_reading(&self, id: ConnId) -> bool;

    /// Whether the connection has not been upgraded or refused yet.
    fn is_request(&self, id: ConnId) -> bool;

    /// Whether both close frames of a WebSocket are sent: then its peer sends nothing more.
    fn has_closed(&self, id: ConnId) -> bool;

    /// What to write to the connection next, in this order, in one call.
    fn outgoing(&self, id: ConnId) -> Slices<'_>;

    /// WebSockets, open or lingering: what a shut-down waits for.
    fn websockets(&self) -> usize;

    /// The client's address as far as it is known, for the log.
    fn client(&self, _id: ConnId) -> Option<IpAddr> {
        None
    }

    /// What metrics and status show; by default nothing.
    fn snapshot(&self) -> Snapshot {
        Snapshot::default()
    }
}

impl Core for Relay {
    fn handle_accept(&mut self, peer: IpAddr, kind: ListenerKind, now: Instant) -> ConnId {
        self.handle_accept(peer, kind, now)
    }

    fn handle(&mut self, input: Input<'_>, now: Instant) {
        self.handle(input, now);
    }

    fn poll_effect(&mut self) -> Option<Effect> {
        self.poll_effect()
    }

    fn poll_wake(&mut self) -> Option<Wake> {
        self.poll_wake()
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.next_deadline()
    }

    fn is_reading(&self, id: ConnId) -> bool {
        self.is_reading(id)
    }

    fn is_request(&self, id: ConnId) -> bool {
        self.is_request(id)
    }

    fn has_closed(&self, id: ConnId) -> bool {
        self.has_closed(id)
    }

    fn outgoing(&self, id: ConnId) -> Slices<'_> {
        self.outgoing(id)
    }

    fn websockets(&self) -> usize {
        self.websockets()
    }

    fn client(&self, id: ConnId) -> Option<IpAddr> {
        self.client(id)
    }

    fn snapshot(&self) -> Snapshot {
        self.snapshot()
    }
}
