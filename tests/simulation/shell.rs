//! What `server/event_loop.rs` does with sockets, with the links of this world.
//!
//! Owns the order of a turn: room is used, input read, effects applied, and again
//! until nobody has anything to say. Timers are [`crate::world`]'s, which calls
//! [`World::settle`] first. Checks invariants 1, 3 and 4 of the world.

use pyrycode_relay::relay::{ConnId, Effect};
use rand::RngExt;
use rand::rngs::StdRng;

use crate::peer::Sending;
use crate::world::{PeerId, World};

/// Bytes that one read hands in at most, as in the event loop.
const READ: usize = 64 * 1024;
/// Rounds without time passing that no honest exchange needs.
const LIVELOCK: usize = 100_000;

impl World {
    pub(crate) fn touch(&mut self, peer: PeerId) {
        self.queue(peer.0);
        self.settle();
    }

    fn queue(&mut self, peer: usize) {
        if !std::mem::replace(&mut self.peers[peer].is_queued, true) {
            self.ready.push_back(peer);
        }
    }

    /// Lets relay and peers exchange bytes until nobody has anything to say.
    pub(crate) fn settle(&mut self) {
        if self.is_frozen {
            return;
        }
        for _ in 0..LIVELOCK {
            for peer in std::mem::take(&mut self.writable) {
                self.write(peer);
            }
            for _ in 0..self.ready.len() {
                let Some(peer) = self.ready.pop_front() else { break };
                self.peers[peer].is_queued = false;
                self.read_socket(peer);
            }
            self.apply_effects();
            if self.ready.is_empty() && self.writable.is_empty() {
                return;
            }
        }
        panic!("relay and peers never come to rest");
    }

    fn read_socket(&mut self, index: usize) {
        let (id, now) = (self.peers[index].id, self.now);
        if self.peers[index].is_gone {
            return;
        }
        let sending = self.peers[index].sending;
        if sending == Sending::Reset {
            self.relay.handle_disconnected(id, now);
            return self.check();
        }
        if !self.relay.is_reading(id) {
            if sending == Sending::Ended {
                self.relay.handle_hangup(id, now);
                self.check();
            }
            return;
        }
        let peer = &mut self.peers[index];
        if peer.outgoing.is_empty() {
            if sending == Sending::Ended {
                peer.sending = Sending::EndRead;
                self.relay.handle_end(id, now);
                self.check();
            }
            return;
        }
        let (input, _) = peer.outgoing.as_slices();
        let most = input.len().min(READ);
        let count = self.splits.as_mut().map_or(most, |rng| split(rng, most));
        self.relay.handle_input(id, &input[..count], now);
        peer.outgoing.drain(..count);
        self.check();
        if !self.peers[index].outgoing.is_empty() || sending == Sending::Ended {
            self.queue(index);
        }
    }

    fn apply_effects(&mut self) {
        loop {
            let queued: Vec<Effect> = std::iter::from_fn(|| self.relay.poll_effect()).collect();
            if queued.is_empty() {
                return;
            }
            self.check_effects(&queued);
            for effect in queued {
                self.apply(effect);
            }
        }
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Transmit(id) => {
                if let Some(peer) = self.find(id) {
                    self.write(peer);
                }
            }
            Effect::Resume(id) => {
                if let Some(peer) = self.find(id) {
                    self.queue(peer);
                }
            }
            Effect::HalfClose(id) => {
                let peer = self.find(id).expect("half-closes a connection that is there");
                self.peers[peer].on_half_close();
                self.react(peer);
            }
            Effect::Judge(id) => {
                while let Some(peer) = self.find(id)
                    && self.relay.is_reading(id)
                    && !self.peers[peer].outgoing.is_empty()
                {
                    self.read_socket(peer);
                }
                self.relay.judge(id, self.now);
                self.check();
            }
            Effect::Disconnect(id) => {
                let peer = self.by_id.remove(&id.to_bits()).expect("disconnects once");
                self.peers[peer].on_disconnect();
            }
        }
    }

    fn check_effects(&self, queued: &[Effect]) {
        // Comparing each with each is for small crowds.
        let queued = &queued[..queued.len().min(64)];
        let mut gone: Vec<ConnId> = Vec::new();
        for (index, effect) in queued.iter().enumerate() {
            let (Effect::Transmit(id)
            | Effect::Resume(id)
            | Effect::HalfClose(id)
            | Effect::Judge(id)
            | Effect::Disconnect(id)) = effect;
            assert!(!gone.contains(id), "{effect:?} after its disconnect");
            if matches!(effect, Effect::Disconnect(_)) {
                gone.push(*id);
            }
            assert!(!queued[..index].contains(effect), "{effect:?} twice");
        }
    }

    fn find(&self, id: ConnId) -> Option<usize> {
        self.by_id.get(&id.to_bits()).copied()
    }

    /// Writes what waits for a peer, as far as its link takes it.
    fn write(&mut self, index: usize) {
        let id = self.peers[index].id;
        let outgoing = self.relay.outgoing(id);
        let waiting: usize = outgoing.iter().map(|slice| slice.len()).sum();
        if waiting == 0 || self.peers[index].is_gone {
            return;
        }
        let most = waiting.min(self.peers[index].room());
        let count = self.splits.as_mut().map_or(most, |rng| split(rng, most));
        let mut rest = count;
        for slice in outgoing {
            let taken = slice.len().min(rest);
            self.peers[index].arrive(&slice[..taken]);
            rest -= taken;
        }
        self.relay.handle_written(id, count, self.now);
        self.check();
        if count < most {
            self.writable.push(index);
        } else if count < waiting {
            self.peers[index].is_blocked = true;
        }
        self.react(index);
    }

    /// The peer reads and answers, if those are its habits.
    fn react(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        if peer.habits.reads {
            peer.read(usize::MAX);
            if !peer.outgoing.is_empty() || peer.sending != Sending::Open {
                self.queue(index);
            }
        }
    }

    pub(crate) fn check(&self) {
        let (buffered, limit) = (self.relay.buffered(), self.config.limits.buffer_memory);
        assert!(buffered <= limit, "{buffered} bytes buffered, {limit} allowed");
        if self.peers.len() < 200 {
            self.relay.audit();
        }
    }
}

/// At least one byte, if there is one, and often not all.
fn split(rng: &mut StdRng, most: usize) -> usize {
    match most {
        0 | 1 => most,
        _ if rng.random_bool(0.5) => most,
        _ if rng.random_bool(0.5) => rng.random_range(1..=most.min(20)),
        _ => rng.random_range(1..=most),
    }
}
