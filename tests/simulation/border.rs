//! Border between the relay and the simulated world: every call, in one place.
//!
//! Owns the trace, a hash over all that crosses the border in either direction, and the
//! checks that follow each call in every test. Decides nothing.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use pyrycode_relay::protocol::proxy_header::{Malformed, Proxied};
use pyrycode_relay::protocol::transport::{Slices, TransportBuffered};
use pyrycode_relay::relay::{ConnId, Effect, Input, ListenerKind, Relay};
use pyrycode_relay::server::Core;
use pyrycode_relay::time::Instant;

use crate::world::World;

/// A hash of everything that crossed the border.
#[derive(Default)]
pub(crate) struct Trace(DefaultHasher);

impl Trace {
    pub(crate) fn note(&mut self, what: &impl Hash) {
        what.hash(&mut self.0);
    }

    pub(crate) fn hash(&self) -> u64 {
        self.0.finish()
    }
}

impl Core for World {
    fn handle_accept(&mut self, address: IpAddr, kind: ListenerKind, now: Instant) -> ConnId {
        let id = self.relay.handle_accept(address, kind, now);
        self.cost.on_accept();
        self.trace.note(&(now, address, kind, id));
        self.check();
        id
    }

    fn handle(&mut self, input: Input<'_>, now: Instant) {
        assert_eq!(now, self.now, "a turn happens at one instant");
        self.tell(input);
    }

    fn poll_effect(&mut self) -> Option<Effect> {
        let effect = self.relay.poll_effect();
        self.trace.note(&effect);
        effect.into_iter().for_each(|effect| self.cost.on_effect(effect));
        if let Some(Effect::ReadThenExpire(id)) = effect
            && let Some(peer) = self.find(id)
            && self.faults.read_to_end()
        {
            self.break_link(peer);
        }
        effect
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.relay.next_deadline()
    }

    fn is_reading(&self, id: ConnId) -> bool {
        self.relay.is_reading(id)
    }

    fn is_request(&self, id: ConnId) -> bool {
        self.relay.is_request(id)
    }

    fn has_closed(&self, id: ConnId) -> bool {
        self.relay.has_closed(id)
    }

    fn outgoing(&self, id: ConnId) -> Slices<'_> {
        self.relay.outgoing(id)
    }

    fn websockets(&self) -> usize {
        self.relay.websockets()
    }
}

impl World {
    /// Hands in an event.
    pub(crate) fn tell(&mut self, input: Input<'_>) {
        self.trace.note(&(self.now, input));
        let now = self.now;
        self.has_fired |= input == Input::Timeout;
        if let Input::Bytes(id, bytes) = input
            && let Some(peer) = self.find(id)
        {
            let pongs = self.peers[peer].hand_in(bytes.len());
            if let Some(oracle) = &mut self.oracle {
                oracle.on_pongs(peer, &pongs);
            }
        }
        let before = self.oracle.as_ref().map(|oracle| oracle.before(self, input));
        let fired = |relay: &Relay| relay.stats().loop_lag.buckets.iter().sum::<u64>();
        let fired_before = fired(&self.relay);
        self.relay.handle(input, now);
        if self.cost.is_on {
            let kept = match input {
                Input::Bytes(id, _) | Input::Continue(id) => self.relay.kept(id),
                _ => 0,
            };
            self.cost.on_input(input, kept, fired(&self.relay) - fired_before);
        }
        self.check();
        if let Some(mut oracle) = self.oracle.take() {
            oracle.after(self, input, &before.expect("taken above"));
            self.oracle = Some(oracle);
        }
    }

    /// The budget is kept at every step (7); in a crowd, where the audit takes
    /// longer than everything else, it is made now and then (6).
    fn check(&mut self) {
        let (buffered, limit) = (self.relay.buffered(), self.config.limits.buffer_memory);
        assert!(buffered <= limit, "(7) {buffered} bytes buffered, {limit} allowed");
        self.calls += 1;
        if self.calls.is_multiple_of(1 + (self.relay.len() as u64).pow(2) / 5_000) {
            self.relay.audit();
        }
    }

    /// Input for a connection that does not exist changes nothing (9).
    pub(crate) fn tell_stale(&mut self, id: ConnId) {
        let (relay, now) = (&mut self.relay, self.now);
        let look = |relay: &Relay| {
            let numbers = [relay.len(), relay.websockets(), relay.slots(), relay.buffered()];
            (relay.stats().clone(), numbers, relay.live(), relay.next_deadline())
        };
        let before = look(relay);
        for input in [
            Input::Proxied(id, Ok(Proxied::Local)),
            Input::Proxied(id, Err(Malformed)),
            Input::Bytes(id, b"GET / HTTP/1.1\r\n\r\n"),
            Input::Written(id, 0, TransportBuffered::default()),
            Input::Written(id, 7, TransportBuffered { unread: 1, unsent: 2 }),
            Input::Buffered(id, TransportBuffered { unread: 1, unsent: 2 }),
            Input::Hangup(id),
            Input::End(id),
            Input::ReadToEnd(id),
            Input::Disconnected(id),
        ] {
            relay.handle(input, now);
        }
        assert!(!relay.is_reading(id) && !relay.has_place(id), "(9) {id:?} is there");
        assert!(relay.outgoing(id).concat().is_empty(), "(9) {id:?} is written to");
        assert!(before == look(relay), "(9) {id:?} changed something");
        assert_eq!(relay.poll_effect(), None, "(9) of {id:?}");
        relay.audit();
    }
}
