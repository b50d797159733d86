//! What the loop drives: bytes and instants in, effects and bytes out.
//!
//! Owns the border between the shell and everything below it, as a trait, so
//! that the loop says in one place what it relies on, and can carry something
//! other than a relay. Resolved when compiled: the loop around the relay calls
//! the relay. Each method means what the relay's of the same name does.

use std::net::IpAddr;

use crate::protocol::proxy_header::{Malformed, Proxied};
use crate::protocol::response::Date;
use crate::relay::stats::WakeOutcome;
use crate::relay::wake::Wake;
use crate::relay::{ConnId, Effect, Relay, Snapshot};
use crate::time::Instant;

/// Connections below their sockets.
///
/// An id that [`Self::handle_accept`] gave is valid until its
/// [`Effect::Disconnect`]; after that it is stale and means nothing.
pub trait Core {
    /// A TCP connection from `peer` was accepted.
    fn handle_accept(&mut self, peer: IpAddr, now: Instant) -> ConnId;

    /// The connection may ask for the answer to a challenge only. To be called before its
    /// first input.
    fn confine_to_challenges(&mut self, id: ConnId);

    /// What to answer a certificate authority: the token that it asks for, and the answer.
    fn answer_challenge(&mut self, challenge: Option<(String, String)>);

    /// A PROXY header is to come first; nothing is handed in before
    /// [`Self::handle_proxied`].
    fn expect_proxied(&mut self, id: ConnId, now: Instant);

    /// The PROXY header has come, or what is none.
    fn handle_proxied(&mut self, id: ConnId, header: Result<Proxied, Malformed>, now: Instant);

    /// Bytes have come.
    fn handle_input(&mut self, id: ConnId, input: &[u8], now: Instant);

    /// The peer has sent its last byte (FIN), all before it was handed in.
    fn handle_end(&mut self, id: ConnId, now: Instant);

    /// The socket is broken: nothing more goes in or out.
    fn handle_disconnected(&mut self, id: ConnId, now: Instant);

    /// The peer has hung up, seen although the connection is not read.
    fn handle_hangup(&mut self, id: ConnId, now: Instant);

    /// `count` bytes of what [`Self::outgoing`] gave were written.
    fn handle_written(&mut self, id: ConnId, count: usize, now: Instant);

    /// The shell keeps so many bytes of the connection below it: `unread` on their
    /// way in, and `unsent` of those that were written on their way out.
    fn handle_kept(&mut self, id: ConnId, unread: usize, unsent: usize, now: Instant);

    /// [`Self::next_deadline`] has come.
    fn handle_timeout(&mut self, now: Instant);

    /// All that the connection has sent by `now` was handed in, as
    /// [`Effect::Judge`] asked.
    fn judge(&mut self, id: ConnId, now: Instant);

    /// Closes every WebSocket and refuses new ones.
    fn shut_down(&mut self, now: Instant);

    /// The next effect.
    fn poll_effect(&mut self) -> Option<Effect>;

    /// When [`Self::handle_timeout`] is to be called next; `None`: never.
    fn next_deadline(&self) -> Option<Instant>;

    /// Whether the connection's input is wanted now.
    fn is_reading(&self, id: ConnId) -> bool;

    /// What to write to the connection next, in this order, in one call.
    fn outgoing(&self, id: ConnId) -> [&[u8]; 3];

    /// WebSockets, open or lingering: what a shut-down waits for.
    fn websockets(&self) -> usize;

    /// What whoever watches it may see; by default nothing.
    fn snapshot(&self) -> Snapshot {
        Snapshot::default()
    }

    /// The time of day has moved on: what HTTP answers carry from now on.
    fn set_date(&mut self, _date: Date) {}

    /// Whose connection it is, as far as that is known; for the log.
    fn client(&self, _id: ConnId) -> Option<IpAddr> {
        None
    }

    /// The next push wake to carry out.
    fn poll_wake(&mut self) -> Option<Wake>;

    /// A push wake that was handed out has come to its end.
    fn handle_wake_done(&mut self, outcome: WakeOutcome);
}

impl Core for Relay {
    fn handle_accept(&mut self, peer: IpAddr, now: Instant) -> ConnId {
        self.handle_accept(peer, now)
    }

    fn confine_to_challenges(&mut self, id: ConnId) {
        self.confine_to_challenges(id);
    }

    fn answer_challenge(&mut self, challenge: Option<(String, String)>) {
        self.answer_challenge(challenge);
    }

    fn expect_proxied(&mut self, id: ConnId, now: Instant) {
        self.expect_proxied(id, now);
    }

    fn handle_proxied(&mut self, id: ConnId, header: Result<Proxied, Malformed>, now: Instant) {
        self.handle_proxied(id, header, now);
    }

    fn handle_input(&mut self, id: ConnId, input: &[u8], now: Instant) {
        self.handle_input(id, input, now);
    }

    fn handle_end(&mut self, id: ConnId, now: Instant) {
        self.handle_end(id, now);
    }

    fn handle_disconnected(&mut self, id: ConnId, now: Instant) {
        self.handle_disconnected(id, now);
    }

    fn handle_hangup(&mut self, id: ConnId, now: Instant) {
        self.handle_hangup(id, now);
    }

    fn handle_written(&mut self, id: ConnId, count: usize, now: Instant) {
        self.handle_written(id, count, now);
    }

    fn handle_kept(&mut self, id: ConnId, unread: usize, unsent: usize, now: Instant) {
        self.handle_kept(id, unread, unsent, now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.handle_timeout(now);
    }

    fn judge(&mut self, id: ConnId, now: Instant) {
        self.judge(id, now);
    }

    fn shut_down(&mut self, now: Instant) {
        self.shut_down(now);
    }

    fn poll_effect(&mut self) -> Option<Effect> {
        self.poll_effect()
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.next_deadline()
    }

    fn is_reading(&self, id: ConnId) -> bool {
        self.is_reading(id)
    }

    fn outgoing(&self, id: ConnId) -> [&[u8]; 3] {
        self.outgoing(id)
    }

    fn websockets(&self) -> usize {
        self.websockets()
    }

    fn snapshot(&self) -> Snapshot {
        self.snapshot()
    }

    fn set_date(&mut self, date: Date) {
        self.set_date(date);
    }

    fn client(&self, id: ConnId) -> Option<IpAddr> {
        self.client(id)
    }

    fn poll_wake(&mut self) -> Option<Wake> {
        self.poll_wake()
    }

    fn handle_wake_done(&mut self, outcome: WakeOutcome) {
        self.handle_wake_done(outcome);
    }
}
