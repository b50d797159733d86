//! Simulated event loop: what `server/event_loop.rs` does with sockets, on simulated links.
//!
//! Owns the order of a turn: accept dialers, write to peers with room, read input, apply
//! effects, and repeat until no peer has anything to send. Timers belong to
//! [`crate::world`], which calls [`World::settle`] first.

use std::cmp::Reverse;
use std::collections::VecDeque;

use pyrycode_relay::config::READ_SIZE;
use pyrycode_relay::relay::{ConnId, Effect, Input, ListenerKind};
use pyrycode_relay::time::Instant;

use crate::faults::Write;
use crate::link::{End, Pipe};
use crate::peer::{NOT_ACCEPTED, Peer, Sending, Through};
use crate::world::{PeerId, World};

/// More rounds without time passing than any valid exchange needs.
const LIVELOCK: usize = 100_000;

impl World {
    /// The peer has done something.
    pub(crate) fn touch(&mut self, peer: PeerId) {
        self.ship(peer.0);
        self.queue(peer.0);
        self.settle();
    }

    fn queue(&mut self, peer: usize) {
        if !std::mem::replace(&mut self.peers[peer].is_queued, true) {
            self.ready.push_back(peer);
        }
    }

    /// An event is due on the link of this peer, in either direction.
    pub(crate) fn on_event(&mut self, index: usize) {
        self.on_link(index, Pipe::arrive);
        self.react(index);
        self.queue(index);
        self.unblock(index);
    }

    /// Applies a function to both directions of a link.
    pub(crate) fn on_link(
        &mut self,
        index: usize,
        mut act: impl FnMut(&mut Pipe, Instant) -> Option<Instant>,
    ) {
        let Peer { up, down, .. } = &mut self.peers[index];
        for next in [act(up, self.wall), act(down, self.wall)] {
            self.schedule(index, next);
        }
    }

    pub(crate) fn schedule(&mut self, index: usize, at: Option<Instant>) {
        if let Some(at) = at {
            self.event_count += 1;
            self.events.push(Reverse((at, self.event_count, index)));
        }
    }

    /// Moves the peer's sent bytes to the link.
    fn ship(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        let mut next = None;
        if !peer.outgoing.is_empty() {
            next = peer.up.send(std::mem::take(&mut peer.outgoing), self.wall);
        }
        if peer.sending != Sending::Open && !peer.end_sent {
            peer.end_sent = true;
            let end = if peer.sending == Sending::Reset { End::Reset } else { End::Fin };
            next = peer.up.end(end, self.wall);
        }
        self.schedule(index, next);
    }

    /// Lets relay and peers exchange bytes until none has anything to send.
    pub(crate) fn settle(&mut self) {
        if self.is_frozen {
            return;
        }
        for _ in 0..LIVELOCK {
            self.accept();
            for peer in std::mem::take(&mut self.writable) {
                self.write(peer);
            }
            for _ in 0..self.ready.len() {
                let Some(peer) = self.ready.pop_front() else { break };
                self.peers[peer].is_queued = false;
                self.read_socket(peer);
            }
            self.apply_effects();
            if self.ready.is_empty() && self.writable.is_empty() && !self.can_accept() {
                return;
            }
        }
        panic!("(8) relay and peers never come to rest");
    }

    fn can_accept(&self) -> bool {
        !self.backlog.is_empty() && self.by_id.len() < self.descriptors
    }

    fn accept(&mut self) {
        while self.can_accept()
            && let Some(peer) = self.backlog.pop_front()
        {
            let Peer { address, through, .. } = self.peers[peer];
            let id = match through {
                Some(Through { balancer, .. }) => {
                    self.tell_accept(balancer, ListenerKind::ProxiedClients)
                }
                None => self.tell_accept(address, ListenerKind::Clients),
            };
            self.peers[peer].id = id;
            assert_eq!(self.by_id.insert(id.to_bits(), peer), None, "{id:?} is not unique");
            if self.faults.register() {
                self.tell(Input::Disconnected(id));
                continue;
            }
            if let Some(Through { header: Some(header), .. }) = through {
                self.tell(Input::Proxied(id, header));
            }
            self.queue(peer);
        }
    }

    fn read_socket(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        let id = peer.id;
        if peer.is_gone || id == NOT_ACCEPTED {
            return;
        }
        if peer.up.end == Some(End::Reset) {
            return self.tell(Input::Disconnected(id));
        }
        let has_ended = peer.up.end == Some(End::Fin);
        if !self.relay.is_reading(id) {
            if has_ended {
                self.tell(Input::Hangup(id));
            }
            return;
        }
        if peer.up.arrived.is_empty() {
            if has_ended && !std::mem::replace(&mut peer.end_read, true) {
                self.tell(Input::End(id));
            }
            return;
        }
        let mut arrived: VecDeque<u8> = std::mem::take(&mut peer.up.arrived);
        let (input, _) = arrived.as_slices();
        let count = self.faults.read(input.len().min(READ_SIZE));
        let pongs = peer.hand_in(count);
        if let Some(oracle) = &mut self.oracle {
            oracle.on_pongs(index, &pongs);
        }
        self.tell(Input::Bytes(id, &input[..count]));
        arrived.drain(..count);
        let is_more = !arrived.is_empty() || has_ended;
        self.peers[index].up.arrived = arrived;
        if is_more {
            self.queue(index);
        }
    }

    fn apply_effects(&mut self) {
        while let Some(effect) = self.next_effect() {
            self.apply(effect);
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
                if self.faults.half_close() {
                    // The next read reports the cause of an error here.
                    return self.break_link(peer);
                }
                let next = self.peers[peer].down.end(End::Fin, self.wall);
                self.schedule(peer, next);
                self.react(peer);
            }
            Effect::ReadThenExpire(id) => self.read_then_expire(id),
            Effect::Disconnect(id) => {
                let peer = self.by_id.remove(&id.to_bits()).expect("(6) disconnects once");
                self.peers[peer].on_disconnect();
                let next = self.peers[peer].down.end(End::Reset, self.wall);
                self.schedule(peer, next);
                self.react(peer);
            }
        }
    }

    /// Reads a peer to the end before its deadline counts.
    fn read_then_expire(&mut self, id: ConnId) {
        if let Some(peer) = self.find(id)
            && self.faults.read_to_end()
        {
            self.break_link(peer);
            self.read_socket(peer);
        }
        while let Some(peer) = self.find(id)
            && self.relay.is_reading(id)
            && !self.peers[peer].up.arrived.is_empty()
        {
            self.read_socket(peer);
        }
        self.tell(Input::ReadToEnd(id));
    }

    pub(crate) fn find(&self, id: ConnId) -> Option<usize> {
        self.by_id.get(&id.to_bits()).copied()
    }

    /// The connection of this peer turns out to be broken.
    fn break_link(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        peer.is_broken = true;
        peer.up.end = Some(End::Reset);
        self.queue(index);
    }

    /// Writes the bytes queued to a peer, as far as its link takes them.
    fn write(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        let (id, wall) = (peer.id, self.wall);
        if peer.is_gone || id == NOT_ACCEPTED {
            return;
        }
        let outgoing = self.relay.outgoing(id);
        let waiting: usize = outgoing.iter().map(|slice| slice.len()).sum();
        if waiting == 0 {
            return;
        }
        let room = waiting.min(peer.room());
        let (mut count, mut is_broken, mut again) = (0, false, None);
        if peer.refuses_until <= wall {
            match self.faults.write(room) {
                Write::Takes(some) => count = some,
                Write::WouldBlock(time) => {
                    peer.refuses_until = wall + time;
                    again = Some(peer.refuses_until);
                }
                Write::Broken => is_broken = true,
            }
        }
        let mut bytes: VecDeque<u8> = VecDeque::with_capacity(count);
        for slice in outgoing {
            bytes.extend(&slice[..slice.len().min(count - bytes.len())]);
        }
        self.trace.note(&(index, &bytes, is_broken, again));
        if is_broken {
            self.break_link(index);
            return self.tell(Input::Disconnected(id));
        }
        if let Some(oracle) = &mut self.oracle {
            oracle.on_written(index, bytes.make_contiguous(), count < waiting, self.now);
        }
        peer.is_short = count < waiting;
        if count < room && peer.refuses_until <= wall {
            self.writable.push(index);
        } else if count < waiting {
            peer.is_blocked = true;
        }
        let next = peer.down.send(bytes, wall);
        self.schedule(index, next);
        self.schedule(index, again);
        self.tell(Input::Written(id, count));
        self.react(index);
    }

    /// The peer reads and answers, if those are its habits.
    fn react(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        if peer.habits.reads {
            peer.read(usize::MAX);
            self.unblock(index);
            let peer = &self.peers[index];
            if !peer.outgoing.is_empty() || peer.sending != Sending::Open {
                self.ship(index);
                self.queue(index);
            }
        }
    }

    /// If the socket of the peer takes bytes again, it is written to.
    pub(crate) fn unblock(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        if peer.is_blocked && peer.refuses_until <= self.wall && peer.room() > 0 {
            peer.is_blocked = false;
            self.writable.push(index);
        }
    }
}
