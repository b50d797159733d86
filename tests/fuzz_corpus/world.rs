//! World: one relay in virtual time, with the event loop around it and its peers.
//!
//! Owns the clock and the movement of bytes, below the turn that the event loop runs as well.
//! Does not know what a target tests.
//!
//! Checked at every step:
//! 1. Queued bytes stay within the budget after each call, and everything that waits for a
//!    peer is counted in it.
//! 2. Whatever fits is written and whatever is wanted is read: no peer is forgotten, and no
//!    phone waits unread unless some peer is slow.
//! 3. After timers and their effects the next deadline lies in the future.
//! 4. The wire is well-formed, with nothing after a close frame ([`wire`]); a peer that reads
//!    everything and does not disconnect receives exactly one.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use pyrycode_relay::config::{Config, PROXY_HEADER_MAX, READ_SIZE};
use pyrycode_relay::protocol::proxy_header::{self, Header};
use pyrycode_relay::protocol::transport::{Slices, TransportBuffered};
use pyrycode_relay::relay::{ConnId, Effect, Input, ListenerKind, Relay};
use pyrycode_relay::server::Core;
use pyrycode_relay::server::turn::{PeerEnd, Readiness, Received, Transport, Turn, Written};
use pyrycode_relay::time::{Instant, TICK};

use super::request;
use super::wire::{self, Decoder, Part};

/// The id of a peer that is not accepted.
const NO_ID: ConnId = ConnId::from_bits(u64::MAX);
/// The capacity of the network for one peer.
const UNREAD_SIZE: usize = 1024 * 1024;

/// One peer's end of a connection.
pub(crate) struct Peer {
    pub(crate) id: ConnId,
    kind: ListenerKind,
    is_phone: bool,
    /// Sent by the peer and not read by the relay.
    unread: Vec<u8>,
    readiness: Readiness,
    /// Its PROXY header stands ahead of `unread`.
    owes_header: bool,
    /// The most bytes that one read gives.
    pub(crate) piece: usize,
    /// Bytes that its socket takes before it is full.
    room: usize,
    /// Its FIN stands behind `unread`.
    pub(crate) has_ended: bool,
    is_end_told: bool,
    /// Its connection broke.
    is_broken: bool,
    is_half_closed: bool,
    /// Its socket is gone, whichever end closed first.
    pub(crate) is_gone: bool,
    /// What TLS keeps of it, and whether it ever kept any.
    buffered: TransportBuffered,
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
    turn: Turn<Vec<u8>>,
    /// Peers to accept.
    backlog: VecDeque<usize>,
    /// Peers with an event for the next turn.
    readable: Vec<usize>,
    writable: Vec<usize>,
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
            turn: Turn::new(Vec::new()),
            backlog: VecDeque::new(),
            readable: Vec::new(),
            writable: Vec::new(),
            budget: config.limits.buffer_memory,
            capacity,
            is_draining: false,
            patience: timeouts.ping_interval + timeouts.pong + 2 * TICK,
        }
    }

    // Actions of peers

    /// A peer connects and sends `bytes`; returns its index.
    pub(crate) fn dial(&mut self, bytes: &[u8]) -> usize {
        self.connect(ListenerKind::Clients, false, bytes, bytes)
    }

    /// The same behind a load balancer, whose PROXY header stands ahead of them.
    pub(crate) fn dial_through(
        &mut self,
        kind: ListenerKind,
        header: &[u8],
        bytes: &[u8],
    ) -> usize {
        self.connect(kind, true, &[header, bytes].concat(), bytes)
    }

    fn connect(
        &mut self,
        kind: ListenerKind,
        owes_header: bool,
        unread: &[u8],
        head: &[u8],
    ) -> usize {
        let index = self.peers.len();
        self.peers.push(Peer {
            id: NO_ID,
            kind,
            is_phone: head.starts_with(b"GET /v1/client "),
            unread: unread.to_vec(),
            readiness: Readiness::default(),
            owes_header,
            piece: READ_SIZE,
            room: usize::MAX,
            has_ended: false,
            is_end_told: false,
            is_broken: false,
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
            buffered: TransportBuffered::default(),
            has_buffered: false,
            silent_since: self.now,
        });
        self.backlog.push_back(index);
        self.settle();
        index
    }

    /// Sets how many received and unsent bytes TLS buffers.
    pub(crate) fn buffer(&mut self, index: usize, unread: usize, unsent: usize) {
        let peer = &mut self.peers[index];
        if !peer.is_gone {
            peer.is_honest &= unread + unsent == 0;
            peer.has_buffered |= unread + unsent > 0;
            peer.buffered = TransportBuffered { unread, unsent };
            let input = Input::Buffered(peer.id, peer.buffered);
            self.handle(input, self.now);
        }
        self.settle();
    }

    /// The peer sends; nothing, if it has hung up or too much waits already.
    pub(crate) fn send(&mut self, index: usize, bytes: &[u8]) {
        let peer = &mut self.peers[index];
        if !peer.has_ended && !peer.is_gone && peer.unread.len() < UNREAD_SIZE {
            peer.unread.extend_from_slice(bytes);
            self.readable.push(index);
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
        self.readable.push(index);
        self.settle();
    }

    /// The connection breaks.
    pub(crate) fn reset(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        if !peer.is_gone {
            (peer.has_ended, peer.is_broken) = (true, true);
            self.readable.push(index);
        }
        self.settle();
    }

    /// The peer's socket takes this many more bytes and then none.
    pub(crate) fn make_room(&mut self, index: usize, room: usize) {
        self.peers[index].room = room;
        self.peers[index].is_honest &= room == usize::MAX;
        self.writable.push(index);
        self.settle();
    }

    /// The relay is told to end.
    pub(crate) fn shut_down(&mut self) {
        self.is_draining = true;
        self.handle(Input::ShutDown, self.now);
        self.settle();
    }

    // Time

    /// Time passes, and timers fire when they should.
    pub(crate) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        let mut turns = time.div_duration_f64(TICK) as usize + 2;
        while let Some(deadline) = self.relay.next_deadline().filter(|at| *at <= until) {
            self.now = self.now.max(deadline);
            self.settle();
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
    }

    // The transport

    /// Turns follow each other until there is nothing to do.
    pub(crate) fn settle(&mut self) {
        let mut turn = std::mem::replace(&mut self.turn, Turn::new(Vec::new()));
        loop {
            for index in std::mem::take(&mut self.readable) {
                let peer = &self.peers[index];
                let end = match (peer.is_broken, peer.has_ended) {
                    (true, _) => PeerEnd::Broken,
                    (false, true) => PeerEnd::Closed,
                    (false, false) => PeerEnd::Open,
                };
                turn.on_readable(self, self.peers[index].id, end, self.now);
            }
            for index in std::mem::take(&mut self.writable) {
                turn.on_writable(self, self.peers[index].id);
            }
            turn.run(self, self.now);
            let next = self.relay.next_deadline();
            let is_due = next.is_some_and(|next| next <= self.now);
            let is_at_rest = self.readable.is_empty() && self.writable.is_empty();
            if is_at_rest && !is_due && self.backlog.is_empty() && !turn.has_work() {
                break;
            }
        }
        self.turn = turn;
        let mut waiting = 0;
        let is_anybody_slow = self.peers.iter().any(|peer| peer.room < usize::MAX);
        for peer in self.peers.iter_mut().filter(|peer| !peer.is_gone) {
            let backlog: usize = self.relay.outgoing(peer.id).iter().map(|part| part.len()).sum();
            assert!(peer.room == 0 || backlog == 0, "{:?} waits for nothing", peer.id);
            let is_read = self.relay.is_reading(peer.id);
            assert!(is_read || is_anybody_slow || !peer.is_phone, "{:?} is not read", peer.id);
            // A part of a PROXY header stays in the kernel.
            let has_bytes = !peer.unread.is_empty() && !peer.owes_header;
            let has_input = has_bytes || peer.has_ended && !peer.is_end_told;
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

    fn find(&self, id: ConnId) -> Option<usize> {
        self.by_id.get(&id.to_bits()).copied()
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

impl Core for World {
    fn handle_accept(&mut self, peer: IpAddr, kind: ListenerKind, now: Instant) -> ConnId {
        let id = self.relay.handle_accept(peer, kind, now);
        self.check();
        id
    }

    fn handle(&mut self, input: Input<'_>, now: Instant) {
        self.relay.handle(input, now);
        self.check();
    }

    fn poll_effect(&mut self) -> Option<Effect> {
        let effect = self.relay.poll_effect();
        if let Some(Effect::Resume(id)) = effect
            && let Some(index) = self.find(id)
        {
            self.peers[index].silent_since = self.now;
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

impl Transport for World {
    type Core = Self;
    type Buffers = Vec<u8>;

    fn core(&mut self) -> &mut Self {
        self
    }

    fn accept(&mut self, _now: Instant) -> Option<(IpAddr, ListenerKind)> {
        let index = *self.backlog.front()?;
        Some((IpAddr::from([192, 0, 2, 1]), self.peers[index].kind))
    }

    fn attach(&mut self, id: ConnId, _now: Instant) -> bool {
        let index = self.backlog.pop_front().expect("accepted");
        self.peers[index].id = id;
        self.by_id.insert(id.to_bits(), index);
        self.readable.push(index);
        true
    }

    fn readiness(&mut self, id: ConnId) -> Option<&mut Readiness> {
        let index = self.find(id)?;
        Some(&mut self.peers[index].readiness)
    }

    fn buffered(&mut self, id: ConnId) -> TransportBuffered {
        self.find(id).map_or(TransportBuffered::default(), |index| self.peers[index].buffered)
    }

    fn unread(&mut self, id: ConnId) -> usize {
        self.find(id).map_or(0, |index| self.peers[index].unread.len())
    }

    fn clock(&mut self) -> Instant {
        self.now
    }

    fn read<'b>(&mut self, id: ConnId, buffer: &'b mut Vec<u8>, _now: Instant) -> Received<'b> {
        let Some(index) = self.find(id) else { return Received::Nothing };
        let peer = &mut self.peers[index];
        if peer.is_broken {
            return Received::Broken;
        }
        if peer.owes_header {
            let seen = peer.unread.len().min(PROXY_HEADER_MAX);
            return match proxy_header::parse(&peer.unread[..seen]) {
                Ok(Header::Partial) if peer.has_ended => Received::Broken,
                Ok(Header::Partial) => {
                    peer.readiness.is_readable = false;
                    Received::Nothing
                }
                Ok(Header::Complete { proxied, len }) => {
                    peer.owes_header = false;
                    peer.unread.drain(..len);
                    Received::Proxied(Ok(proxied))
                }
                Err(malformed) => Received::Proxied(Err(malformed)),
            };
        }
        if peer.unread.is_empty() {
            peer.readiness.is_readable = false;
            let is_end = peer.has_ended && !std::mem::replace(&mut peer.is_end_told, true);
            return if is_end { Received::End } else { Received::Nothing };
        }
        // Many single bytes would show no more than a few.
        let count = peer.piece.max(peer.unread.len() / 256).min(peer.unread.len());
        buffer.clear();
        buffer.extend(peer.unread.drain(..count));
        peer.readiness.is_readable = peer.has_ended || !peer.unread.is_empty();
        Received::Bytes(buffer, count)
    }

    /// One write, as far as there is room.
    fn write(&mut self, id: ConnId, _buffer: &mut Vec<u8>) -> Written {
        let Some(index) = self.find(id) else { return Written::Nothing };
        let bytes = self.relay.outgoing(id).concat();
        if bytes.is_empty() {
            return Written::Nothing;
        }
        let peer = &mut self.peers[index];
        let count = bytes.len().min(peer.room);
        if peer.room < usize::MAX {
            peer.room -= count;
        }
        peer.decoder.feed(&bytes[..count]);
        while let Some(part) = peer.decoder.next() {
            if on_part(peer, part, self.now) {
                self.readable.push(index);
            }
        }
        Written::Bytes(count)
    }

    fn half_close(&mut self, id: ConnId, is_over: bool, _buffer: &mut Vec<u8>) -> bool {
        if let Some(index) = self.find(id) {
            let peer = &mut self.peers[index];
            assert!(!peer.is_half_closed, "half-closed twice");
            assert!(!peer.decoder.is_midway(), "half-closed midway");
            peer.is_half_closed = true;
            assert_eq!(peer.status == Some(101), peer.close.is_some());
        }
        is_over
    }

    fn disconnect(&mut self, id: ConnId, _buffer: &mut Vec<u8>) {
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

/// The peer receives something; returns whether it answers.
fn on_part(peer: &mut Peer, part: Part, now: Instant) -> bool {
    match part {
        Part::Answer { status, text } => {
            peer.status = Some(status);
            peer.conn_id = wire::field(&text, "x-request-id").unwrap_or_default().to_owned();
        }
        Part::Ping(payload) if peer.answers_pings && !peer.has_ended => {
            peer.unread.extend(wire::frame(wire::PONG, &payload));
            peer.silent_since = now;
            return true;
        }
        Part::Ping(payload) => peer.pings.push(payload),
        Part::Close(code, reason) => {
            assert!(!(peer.is_honest && peer.answers_pings && reason == "heartbeat timeout"));
            peer.close = Some(code);
        }
        Part::Text(_) => peer.texts += 1,
        Part::Pong(_) => {}
    }
    false
}

/// The request of a binary that claims `server_id`.
pub(crate) fn claim(server_id: &str) -> Vec<u8> {
    request::binary(server_id).into_bytes()
}

/// The request of a phone that dials in for `server_id`.
pub(crate) fn join(server_id: &str) -> Vec<u8> {
    request::phone(server_id).into_bytes()
}
