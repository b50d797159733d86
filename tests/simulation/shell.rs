//! Simulated transport: links between the relay and its peers, below the turn that the event
//! loop runs as well.
//!
//! Owns what one read, write or end of a connection does to its link. The order of these calls
//! is [`Turn`]'s; turns follow each other until no peer has anything to send.

use std::cmp::Reverse;
use std::net::IpAddr;

use pyrycode_relay::config::{PROXY_HEADER_MAX, READ_SIZE};
use pyrycode_relay::protocol::proxy_header::{self, Header};
use pyrycode_relay::protocol::transport::TransportBuffered;
use pyrycode_relay::relay::{ConnId, ListenerKind};
use pyrycode_relay::server::turn::{PeerEnd, Readiness, Received, Transport, Turn, Written};
use pyrycode_relay::time::Instant;

use crate::faults::Write;
use crate::link::{End, Pipe};
use crate::peer::{Peer, Sending};
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

    /// An event reports input of the peer.
    fn queue(&mut self, peer: usize) {
        self.readable.push(peer);
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
        if peer.sending == Sending::Ended && !peer.end_sent {
            peer.tls.say_end(&mut peer.outgoing);
        }
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

    /// Turns follow each other until neither the relay nor a peer has anything to send.
    pub(crate) fn settle(&mut self) {
        if self.is_frozen {
            return;
        }
        let mut turn = std::mem::replace(&mut self.turn, Turn::new(Vec::new()));
        let mut rounds = 0;
        loop {
            self.hand_over(&mut turn);
            self.take_turn(&mut turn);
            let next = self.relay.next_deadline();
            let is_due = next.is_some_and(|next| next <= self.now);
            let is_at_rest = self.readable.is_empty() && self.writable.is_empty();
            if is_at_rest && !is_due && !turn.has_work() && !self.can_accept() {
                break;
            }
            rounds += 1;
            assert!(rounds < LIVELOCK, "(8) relay and peers never come to rest");
        }
        self.turn = turn;
        if std::mem::take(&mut self.has_fired)
            && let Some(oracle) = &self.oracle
        {
            oracle.nobody_is_overdue(self);
        }
    }

    /// One turn, which takes the time of the cost model.
    pub(crate) fn one_turn(&mut self) {
        let mut turn = std::mem::replace(&mut self.turn, Turn::new(Vec::new()));
        self.take_turn(&mut turn);
        self.turn = turn;
    }

    fn take_turn(&mut self, turn: &mut Turn<Vec<u8>>) {
        for peer in std::mem::take(&mut self.readable) {
            let Peer { id, up, .. } = &self.peers[peer];
            let (id, end) = match up.end {
                None => (*id, PeerEnd::Open),
                Some(End::Fin) => (*id, PeerEnd::Closed),
                Some(End::Reset) => (*id, PeerEnd::Broken),
            };
            if self.relay.is_reading(id) {
                self.cost.on_ready(id);
            }
            turn.on_readable(self, id, end, self.now);
        }
        for peer in std::mem::take(&mut self.writable) {
            turn.on_writable(self, self.peers[peer].id);
        }
        turn.run(self, self.now);
        let spent = self.cost.end_turn();
        if !spent.is_zero() {
            self.go_on(spent, spent);
        }
    }

    fn can_accept(&self) -> bool {
        !self.backlog.is_empty() && self.by_id.len() < self.descriptors
    }

    pub(crate) fn find(&self, id: ConnId) -> Option<usize> {
        self.by_id.get(&id.to_bits()).copied()
    }

    /// The connection of this peer turns out to be broken.
    pub(crate) fn break_link(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        peer.is_broken = true;
        peer.up.end = Some(End::Reset);
        self.queue(index);
    }

    /// Puts bytes on the link to a peer, as far as it takes them; `behind` more wait for them.
    /// Returns how many it took; `None`: the connection is broken.
    fn put(&mut self, index: usize, bytes: &[u8], behind: usize) -> Option<usize> {
        let (peer, wall) = (&mut self.peers[index], self.wall);
        let room = bytes.len().min(peer.room());
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
        let sent = &bytes[..count];
        self.trace.note(&(index, sent, is_broken, again));
        if is_broken {
            self.break_link(index);
            return None;
        }
        let is_short = count < bytes.len() + behind;
        let (on_link, plain) = peer.tls.observe(sent);
        if let Some(oracle) = &mut self.oracle {
            oracle.on_written(index, &plain, count > 0, is_short, self.now);
        }
        peer.is_short = is_short;
        if count < room && peer.refuses_until <= wall {
            self.writable.push(index);
        } else if count < bytes.len() {
            peer.is_blocked = true;
        }
        let next = peer.down.send(on_link.into(), wall);
        self.schedule(index, next);
        self.schedule(index, again);
        self.react(index);
        Some(count)
    }

    /// Puts on the link what TLS has sealed, and FIN behind the last of it; returns whether
    /// that was all; `None`: the connection is broken.
    fn flush(&mut self, index: usize, behind: usize) -> Option<bool> {
        let unsent = self.peers[index].tls.unsent().to_vec();
        if !unsent.is_empty() {
            let count = self.put(index, &unsent, behind)?;
            self.peers[index].tls.on_sent(count);
        }
        if self.peers[index].tls.takes_end() {
            self.end(index);
        }
        Some(self.peers[index].tls.unsent().is_empty())
    }

    /// TLS accepts full records, once those before them are sent.
    fn write_records(&mut self, index: usize, outgoing: &[u8]) -> Option<Written> {
        let is_slow = !self.peers[index].tls.unsent().is_empty();
        if !self.flush(index, outgoing.len())? {
            return Some(Written::Bytes(0));
        }
        if self.peers[index].tls.is_broken() {
            return None;
        }
        let count = self.peers[index].tls.seal(outgoing, is_slow);
        let is_all = self.flush(index, outgoing.len() - count)?;
        let is_part = is_all && count > 0 && count < outgoing.len();
        Some(if is_part { Written::Part(count) } else { Written::Bytes(count) })
    }

    /// FIN is on the link.
    fn end(&mut self, index: usize) {
        let next = self.peers[index].down.end(End::Fin, self.wall);
        self.schedule(index, next);
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

impl Transport for World {
    type Core = Self;
    type Buffers = Vec<u8>;

    fn core(&mut self) -> &mut Self {
        self
    }

    fn accept(&mut self, _now: Instant) -> Option<(IpAddr, ListenerKind)> {
        if !self.can_accept() {
            return None;
        }
        let Peer { address, balancer, .. } = self.peers[*self.backlog.front()?];
        Some(match balancer {
            Some(balancer) => (balancer, ListenerKind::ProxiedClients),
            None => (address, ListenerKind::Clients),
        })
    }

    fn attach(&mut self, id: ConnId, _now: Instant) -> bool {
        let Some(peer) = self.backlog.pop_front() else { return false };
        self.peers[peer].id = id;
        assert_eq!(self.by_id.insert(id.to_bits(), peer), None, "{id:?} is not unique");
        self.queue(peer);
        !self.faults.register()
    }

    fn readiness(&mut self, id: ConnId) -> Option<&mut Readiness> {
        let peer = self.find(id)?;
        Some(&mut self.peers[peer].readiness)
    }

    fn buffered(&mut self, id: ConnId) -> TransportBuffered {
        self.find(id).map_or(TransportBuffered::default(), |peer| self.peers[peer].tls.buffered())
    }

    fn unread(&mut self, id: ConnId) -> usize {
        self.find(id).map_or(0, |peer| self.peers[peer].up.arrived.len())
    }

    fn clock(&mut self) -> Instant {
        self.now + self.cost.spent()
    }

    fn read<'b>(&mut self, id: ConnId, buffer: &'b mut Vec<u8>, _now: Instant) -> Received<'b> {
        let Some(index) = self.find(id) else { return Received::Nothing };
        self.cost.on_read(id);
        let peer = &mut self.peers[index];
        let has_ended = peer.up.end.is_some();
        if peer.owes_header {
            let arrived = peer.up.arrived.make_contiguous();
            let seen = self.faults.read(arrived.len().min(PROXY_HEADER_MAX));
            return match proxy_header::parse(&arrived[..seen]) {
                Ok(Header::Partial) if seen < arrived.len() => {
                    self.queue(index);
                    Received::Nothing
                }
                Ok(Header::Partial) if has_ended => Received::Broken,
                Ok(Header::Partial) => {
                    peer.readiness.is_readable = false;
                    Received::Nothing
                }
                Ok(Header::Complete { proxied, len }) => {
                    peer.take_header(len);
                    Received::Proxied(Ok(proxied))
                }
                Err(malformed) => Received::Proxied(Err(malformed)),
            };
        }
        if peer.tls.is_broken() {
            return Received::Broken;
        }
        if peer.tls.has_ended() {
            peer.readiness.is_readable = false;
            return Received::End;
        }
        if peer.up.arrived.is_empty() {
            peer.readiness.is_readable = false;
            return match peer.up.end {
                Some(End::Reset) => Received::Broken,
                Some(End::Fin) if !std::mem::replace(&mut peer.end_read, true) => Received::End,
                _ => Received::Nothing,
            };
        }
        let count = self.faults.read(peer.up.arrived.as_slices().0.len().min(READ_SIZE));
        buffer.clear();
        buffer.extend(peer.up.arrived.drain(..count));
        peer.readiness.is_readable = has_ended || !peer.up.arrived.is_empty();
        if peer.tls.is_on() {
            peer.tls.open(buffer);
            // The next read returns the end or the fault.
            peer.readiness.is_readable |= peer.tls.has_ended() || peer.tls.is_broken();
            let behind = self.backlog(PeerId(index));
            if self.flush(index, behind).is_none() {
                return Received::Broken;
            }
        }
        Received::Bytes(buffer, count)
    }

    fn write(&mut self, id: ConnId, _buffer: &mut Vec<u8>) -> Written {
        let Some(index) = self.find(id) else { return Written::Nothing };
        let outgoing = self.relay.outgoing(id).concat();
        let tls = &self.peers[index].tls;
        if outgoing.is_empty() && tls.unsent().is_empty() {
            return Written::Nothing;
        }
        let written = match tls.is_on() {
            true => self.write_records(index, &outgoing),
            false => self.put(index, &outgoing, 0).map(Written::Bytes),
        };
        self.cost.on_write(outgoing.len());
        written.unwrap_or(Written::Broken)
    }

    fn half_close(&mut self, id: ConnId, is_over: bool, _buffer: &mut Vec<u8>) -> bool {
        let peer = self.find(id).expect("half-closes a connection that is there");
        assert!(self.peers[peer].tls.unsent().is_empty(), "(4) FIN ahead of what TLS holds");
        self.peers[peer].on_half_close();
        if self.faults.half_close() {
            // The next read reports the cause of an error here.
            self.break_link(peer);
            return false;
        }
        if !self.peers[peer].tls.is_on() {
            self.end(peer);
            return is_over;
        }
        self.peers[peer].tls.seal_end();
        // An error is found by the next read.
        let _ = self.flush(peer, 0);
        false
    }

    fn disconnect(&mut self, id: ConnId, _buffer: &mut Vec<u8>) {
        let peer = self.by_id.remove(&id.to_bits()).expect("(6) disconnects once");
        self.peers[peer].on_disconnect();
        let next = self.peers[peer].down.end(End::Reset, self.wall);
        self.schedule(peer, next);
        self.react(peer);
    }
}
