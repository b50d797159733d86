//! World: one relay in virtual time, with the event loop around it and its peers.
//!
//! Owns the clock and the movement of bytes, and acts as the event loop does: writes once for
//! each [`Effect::Transmit`], reads only what is wanted, and reads all input before a deadline
//! counts. Does not know what a target tests.
//!
//! Checked at every step:
//! 1. Queued bytes stay within the budget after each call, and everything that waits for a
//!    peer is counted in it.
//! 2. Whatever fits is written and whatever is wanted is read: no peer is forgotten, and no
//!    phone waits unread unless some peer is slow.
//! 3. After timers and their effects the next deadline lies in the future.
//! 4. The wire is well-formed, with nothing after a close frame ([`wire`]); a peer that reads
//!    everything and does not disconnect receives exactly one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use pyrycode_relay::config::{Config, READ_SIZE};
use pyrycode_relay::protocol::proxy_header::{Malformed, Proxied};
use pyrycode_relay::protocol::transport::TransportBuffered;
use pyrycode_relay::relay::{ConnId, Effect, Input, ListenerKind, Relay};
use pyrycode_relay::time::{Instant, TICK};

use super::request;
use super::wire::{self, Decoder, Part};

/// The capacity of the network for one peer.
const UNREAD_SIZE: usize = 1024 * 1024;

/// One peer's end of a connection.
pub(crate) struct Peer {
    pub(crate) id: ConnId,
    is_phone: bool,
    /// Sent by the peer and not read by the relay.
    unread: Vec<u8>,
    /// What waits was not wanted: only an effect or more of it has it read.
    is_asleep: bool,
    /// The most bytes that one read gives.
    pub(crate) piece: usize,
    /// Bytes that its socket takes before it is full.
    room: usize,
    /// Its FIN stands behind `unread`.
    pub(crate) has_ended: bool,
    is_end_told: bool,
    is_half_closed: bool,
    /// Its socket is gone, whichever end closed first.
    pub(crate) is_gone: bool,
    /// TLS kept bytes of it at some time.
    has_buffered: bool,
    decoder: Decoder,
    pub(crate) answers_pings: bool,
    /// None of its actions can be too slow or violate the protocol.
    pub(crate) is_honest: bool,
    /// Received pings that the test has not taken yet.
    pub(crate) pings: Vec<Vec<u8>>,
    pub(crate) status: Option<u16>,
    pub(crate) conn_id: String,
    /// Text messages that it got.
    pub(crate) texts: usize,
    /// Code of the close frame that it got; 0: an empty one.
    pub(crate) close: Option<u16>,
    /// If it is silent from then on, it must be closed 60 s later.
    silent_since: Instant,
}

/// The relay and all its peers.
pub(crate) struct World {
    pub(crate) relay: Relay,
    pub(crate) now: Instant,
    pub(crate) peers: Vec<Peer>,
    /// Peers whose socket is there.
    by_id: HashMap<u64, usize>,
    budget: usize,
    capacity: usize,
    is_draining: bool,
    /// A silent peer has this long.
    patience: Duration,
}

impl World {
    pub(crate) fn new(config: &Config, capacity: usize) -> Self {
        // Neither at the start nor on a boundary of ticks.
        let now = Instant::from_micros(1_234_567);
        let timeouts = &config.timeouts;
        Self {
            relay: Relay::new(config, capacity, [7; 32], now),
            now,
            peers: Vec::new(),
            by_id: HashMap::new(),
            budget: config.limits.buffer_memory,
            capacity,
            is_draining: false,
            patience: timeouts.ping_interval + timeouts.pong + 2 * TICK,
        }
    }

    // Actions of peers

    /// A peer connects and sends `bytes`; returns its index.
    pub(crate) fn dial(&mut self, bytes: &[u8]) -> usize {
        let index = self.accept(ListenerKind::Clients, bytes);
        self.settle();
        index
    }

    /// The same behind a load balancer, whose PROXY header is `header`, if it comes.
    /// Before the header no byte is read.
    pub(crate) fn dial_through(
        &mut self,
        kind: ListenerKind,
        header: Option<Result<Proxied, Malformed>>,
        bytes: &[u8],
    ) -> usize {
        let index = self.accept(kind, if header.is_some() { bytes } else { b"" });
        if let Some(header) = header {
            self.relay.handle(Input::Proxied(self.peers[index].id, header), self.now);
            self.check();
        }
        self.settle();
        index
    }

    fn accept(&mut self, kind: ListenerKind, bytes: &[u8]) -> usize {
        let id = self.relay.handle_accept(IpAddr::from([192, 0, 2, 1]), kind, self.now);
        let index = self.peers.len();
        self.by_id.insert(id.to_bits(), index);
        self.peers.push(Peer {
            id,
            is_phone: bytes.starts_with(b"GET /v1/client "),
            unread: bytes.to_vec(),
            is_asleep: false,
            piece: READ_SIZE,
            room: usize::MAX,
            has_ended: false,
            is_end_told: false,
            is_half_closed: false,
            is_gone: false,
            decoder: Decoder::default(),
            answers_pings: false,
            is_honest: true,
            pings: Vec::new(),
            status: None,
            conn_id: String::new(),
            texts: 0,
            close: None,
            has_buffered: false,
            silent_since: self.now,
        });
        self.check();
        index
    }

    /// Sets how many received and unsent bytes TLS buffers.
    pub(crate) fn buffer(&mut self, index: usize, unread: usize, unsent: usize) {
        let peer = &mut self.peers[index];
        if !peer.is_gone {
            peer.is_honest &= unread + unsent == 0;
            peer.has_buffered |= unread + unsent > 0;
            let buffered = TransportBuffered { unread, unsent };
            self.relay.handle(Input::Buffered(peer.id, buffered), self.now);
            self.check();
        }
        self.settle();
    }

    /// The peer sends; nothing, if it has hung up or too much waits already.
    pub(crate) fn send(&mut self, index: usize, bytes: &[u8]) {
        let peer = &mut self.peers[index];
        if !peer.has_ended && !peer.is_gone && peer.unread.len() < UNREAD_SIZE {
            peer.unread.extend_from_slice(bytes);
            peer.is_asleep = false;
        }
        self.settle();
    }

    /// The peer answers all pings that it got.
    pub(crate) fn pong(&mut self, index: usize) {
        self.peers[index].silent_since = self.now;
        for ping in std::mem::take(&mut self.peers[index].pings) {
            self.send(index, &wire::frame(wire::PONG, &ping));
        }
    }

    /// The peer sends its FIN.
    pub(crate) fn end(&mut self, index: usize) {
        self.peers[index].has_ended = true;
        self.peers[index].is_asleep = false;
        self.settle();
    }

    /// The connection breaks.
    pub(crate) fn reset(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        if !peer.is_gone {
            peer.has_ended = true;
            self.relay.handle(Input::Disconnected(peer.id), self.now);
            self.check();
        }
        self.settle();
    }

    /// The peer's socket takes this many more bytes and then none.
    pub(crate) fn make_room(&mut self, index: usize, room: usize) {
        self.peers[index].room = room;
        self.peers[index].is_honest &= room == usize::MAX;
        self.write(index);
        self.settle();
    }

    /// The relay is told to end.
    pub(crate) fn shut_down(&mut self) {
        self.is_draining = true;
        self.relay.handle(Input::ShutDown, self.now);
        self.check();
        self.settle();
    }

    // Time

    /// Time passes, and timers fire when they should.
    pub(crate) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        let mut turns = time.div_duration_f64(TICK) as usize + 2;
        while let Some(deadline) = self.relay.next_deadline().filter(|at| *at <= until) {
            self.now = self.now.max(deadline);
            self.fire();
            assert!(turns > 0, "more turns than ticks");
            turns -= 1;
        }
        self.now = until;
        for peer in &self.peers {
            let is_open = peer.status == Some(101) && peer.close.is_none() && !peer.is_gone;
            let is_silent = self.now.since(peer.silent_since) > self.patience;
            assert!(!(is_open && is_silent), "{:?} is dead and kept", peer.id);
        }
    }

    /// Pauses the relay for a time; then it handles everything at once.
    pub(crate) fn stall(&mut self, time: Duration) {
        self.now += time;
        for peer in &mut self.peers {
            peer.silent_since = self.now;
        }
        self.settle();
        self.fire();
    }

    fn fire(&mut self) {
        self.relay.handle(Input::Timeout, self.now);
        self.check();
        self.settle();
        let next = self.relay.next_deadline();
        assert!(next.is_none_or(|next| next > self.now), "a deadline that has passed is left");
    }

    // The event loop

    /// Effects and input, until there is neither.
    pub(crate) fn settle(&mut self) {
        loop {
            while let Some(effect) = self.relay.poll_effect() {
                self.apply(effect);
            }
            // One read each, so that no peer is read to its end before the others.
            if !(0..self.peers.len()).fold(false, |moved, index| moved | self.read(index)) {
                break;
            }
        }
        let mut waiting = 0;
        let is_anybody_slow = self.peers.iter().any(|peer| peer.room < usize::MAX);
        for peer in self.peers.iter_mut().filter(|peer| !peer.is_gone) {
            let backlog: usize = self.relay.outgoing(peer.id).iter().map(|part| part.len()).sum();
            assert!(peer.room == 0 || backlog == 0, "{:?} waits for nothing", peer.id);
            let is_read = self.relay.is_reading(peer.id);
            assert!(is_read || is_anybody_slow || !peer.is_phone, "{:?} is not read", peer.id);
            let has_input = !peer.unread.is_empty() || peer.has_ended && !peer.is_end_told;
            assert!(!(is_read && has_input), "{:?} has input that is never read", peer.id);
            waiting += backlog;
            if !is_read || peer.room < usize::MAX {
                peer.silent_since = self.now;
            }
        }
        assert!(waiting <= self.relay.buffered(), "{waiting} bytes wait");
        let (binaries, phones) = self.relay.live();
        assert_eq!(self.relay.len(), self.by_id.len());
        assert!(binaries + phones <= self.relay.websockets());
        assert!(self.relay.websockets() <= self.relay.len());
        assert!(binaries <= self.relay.slots());
        assert!(self.relay.is_empty() || self.relay.next_deadline().is_some());
    }

    fn apply(&mut self, effect: Effect) {
        let find = |id: ConnId| self.by_id.get(&id.to_bits()).copied();
        match effect {
            Effect::Transmit(id) => {
                if let Some(index) = find(id) {
                    self.write(index);
                }
            }
            Effect::Resume(id) => {
                if let Some(index) = find(id) {
                    self.peers[index].silent_since = self.now;
                    self.peers[index].is_asleep = false;
                }
            }
            Effect::HalfClose(id) => {
                if let Some(index) = find(id) {
                    let peer = &mut self.peers[index];
                    assert!(!peer.is_half_closed, "half-closed twice");
                    assert!(!peer.decoder.is_midway(), "half-closed midway");
                    peer.is_half_closed = true;
                    assert_eq!(peer.status == Some(101), peer.close.is_some());
                }
            }
            Effect::ReadThenExpire(id) => {
                if let Some(index) = find(id) {
                    self.peers[index].is_asleep = false;
                }
                while let Some(index) = self.by_id.get(&id.to_bits()).copied()
                    && self.read(index)
                {}
                self.relay.handle(Input::ReadToEnd(id), self.now);
                self.check();
            }
            Effect::Disconnect(id) => {
                let index = self.by_id.remove(&id.to_bits()).expect("dropped once");
                let peer = &mut self.peers[index];
                peer.is_gone = true;
                // Bytes that TLS keeps cannot be shed but with the connection, and then
                // there is no time for a close frame.
                let is_told = !peer.has_ended && peer.room == usize::MAX && !peer.has_buffered;
                if peer.status == Some(101) && is_told {
                    assert!(peer.close.is_some(), "dropped without a close frame");
                }
            }
        }
    }

    /// Hands in what one read gives; returns whether that was anything.
    fn read(&mut self, index: usize) -> bool {
        let peer = &mut self.peers[index];
        if peer.is_gone || peer.is_end_told || peer.is_asleep {
            return false;
        }
        if !self.relay.is_reading(peer.id) {
            peer.is_asleep = true;
            let before = self.relay.len();
            if peer.has_ended {
                self.relay.handle(Input::Hangup(peer.id), self.now);
            }
            return self.relay.len() < before;
        } else if !peer.unread.is_empty() {
            // Many single bytes would show no more than a few.
            let count = peer.piece.max(peer.unread.len() / 256).min(peer.unread.len());
            let piece: Vec<u8> = peer.unread.drain(..count).collect();
            self.relay.handle(Input::Bytes(peer.id, &piece), self.now);
            self.check();
            return true;
        } else if peer.has_ended {
            peer.is_end_told = true;
            self.relay.handle(Input::End(peer.id), self.now);
            return true;
        }
        false
    }

    /// One write, as far as there is room.
    fn write(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        let bytes = self.relay.outgoing(peer.id).concat();
        let count = bytes.len().min(peer.room);
        if peer.is_gone || count == 0 {
            return;
        }
        if peer.room < usize::MAX {
            peer.room -= count;
        }
        peer.decoder.feed(&bytes[..count]);
        while let Some(part) = peer.decoder.next() {
            hear(peer, part, self.now);
        }
        let id = peer.id;
        self.relay.handle(Input::Written(id, count), self.now);
        self.check();
    }

    /// Checks the properties that hold after every call.
    fn check(&self) {
        let buffered = self.relay.buffered();
        assert!(buffered <= self.budget, "{buffered} of {} bytes", self.budget);
        self.relay.audit();
    }

    /// All peers read everything and disconnect; then no state may be left, and all slots
    /// are free again.
    pub(crate) fn finish(mut self) {
        self.leave();
        if !self.is_draining {
            self.peers.clear();
            for number in 0..self.capacity {
                self.dial(&claim(&number.to_string()));
            }
            assert!(self.peers.iter().all(|peer| peer.status == Some(101)), "a place is lost");
            self.leave();
        }
    }

    fn leave(&mut self) {
        for index in 0..self.peers.len() {
            self.buffer(index, 0, 0);
            self.make_room(index, usize::MAX);
            self.end(index);
        }
        // Nothing is kept longer than a slot in grace, but for what was claimed last.
        self.pass(Duration::from_secs(70));
        assert!(self.peers.iter().all(|peer| peer.is_gone), "a socket is left");
        assert_eq!((self.relay.len(), self.relay.websockets()), (0, 0));
        assert_eq!((self.relay.live(), self.relay.slots()), ((0, 0), 0));
        assert_eq!(self.relay.buffered(), 0);
        assert_eq!(self.relay.next_deadline(), None);
    }
}

fn hear(peer: &mut Peer, part: Part, now: Instant) {
    match part {
        Part::Answer { status, text } => {
            peer.status = Some(status);
            peer.conn_id = wire::field(&text, "x-request-id").unwrap_or_default().to_owned();
        }
        Part::Ping(payload) if peer.answers_pings && !peer.has_ended => {
            peer.unread.extend(wire::frame(wire::PONG, &payload));
            peer.is_asleep = false;
            peer.silent_since = now;
        }
        Part::Ping(payload) => peer.pings.push(payload),
        Part::Close(code, reason) => {
            assert!(!(peer.is_honest && peer.answers_pings && reason == "heartbeat timeout"));
            peer.close = Some(code);
        }
        Part::Text(_) => peer.texts += 1,
        Part::Pong(_) => {}
    }
}

/// The request of a binary that claims `server_id`.
pub(crate) fn claim(server_id: &str) -> Vec<u8> {
    request::binary(server_id).into_bytes()
}

/// The request of a phone that dials in for `server_id`.
pub(crate) fn join(server_id: &str) -> Vec<u8> {
    request::phone(server_id).into_bytes()
}
