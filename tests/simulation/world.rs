//! World around one relay: a virtual clock, peers and the links to them.
//!
//! Owns the vocabulary of a test: dialling, actions of peers, received frames, and time.
//! Bytes move in [`crate::shell`], calls cross in [`crate::border`]. Time never passes by
//! itself; [`World::pass`] jumps from one event to the next, be it a deadline of the relay or
//! an arrival on a link, and timers fire only when no input waits.
//!
//! At every step of every test it checks the audit of the relay, its budget, a next deadline
//! in the future and a well-formed wire ([`crate::wire`]).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use pyrycode_relay::config::Config;
use pyrycode_relay::relay::{Input, Relay};
use pyrycode_relay::server::turn::Turn;
use pyrycode_relay::time::Instant;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::border::Trace;
use crate::cost::Cost;
use crate::faults::Faults;
use crate::handover::HandOvers;
use crate::link::Pipe;
use crate::oracle::Oracle;
use crate::peer::{self, HOME, Habits, Peer, Seen, Sending};
use crate::proxy;
use crate::tls::Tls;
use crate::wire;

/// The part of a pause that the relay's clock counts, beyond the sleep it had asked for.
const TURN_MAX: Duration = Duration::from_secs(1);

/// Handle of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PeerId(pub(crate) usize);

/// One relay and all its peers.
pub(crate) struct World {
    pub(crate) relay: Relay,
    /// The relay's time, which stops while the relay is paused.
    pub(crate) now: Instant,
    /// The time of the peers and their links.
    pub(crate) wall: Instant,
    pub(crate) config: Config,
    pub(crate) peers: Vec<Peer>,
    pub(crate) by_id: HashMap<u64, usize>,
    pub(crate) turn: Turn<Vec<u8>>,
    /// Events of the next turn: peers whose socket has input, and those whose socket was
    /// written short and has room again.
    pub(crate) readable: Vec<usize>,
    pub(crate) writable: Vec<usize>,
    /// The relay has been told of the time since the last rest.
    pub(crate) has_fired: bool,
    /// The load balancer through which peers dial by default.
    pub(crate) balancer: Option<IpAddr>,
    /// Peers dial over TLS, with keys from here.
    pub(crate) tls_keys: Option<StdRng>,
    /// Peers that have dialled and are not accepted, for lack of descriptors.
    pub(crate) backlog: VecDeque<usize>,
    /// The relay's limit on sockets.
    pub(crate) descriptors: usize,
    /// The times of events on the links of peers; the number orders events of the same
    /// instant.
    pub(crate) events: BinaryHeap<Reverse<(Instant, u64, usize)>>,
    pub(crate) event_count: u64,
    /// The relay is paused: nothing is settled until it continues.
    pub(crate) is_frozen: bool,
    pub(crate) faults: Faults,
    pub(crate) handovers: HandOvers,
    pub(crate) capacity: usize,
    /// The model of the relay, if the test needs it.
    pub(crate) oracle: Option<Box<Oracle>>,
    pub(crate) trace: Trace,
    pub(crate) calls: u64,
    pub(crate) cost: Cost,
    /// The total time for which connections with a slot have been open.
    pub(crate) open_time: Duration,
}

impl World {
    /// A relay without a rate limit and with room for 1,000 WebSockets.
    pub(crate) fn new() -> Self {
        let mut config = Config::default();
        config.limits.rate_per_minute = 0;
        Self::with(config, 1_000, 1)
    }

    pub(crate) fn with(config: Config, capacity: usize, seed: u64) -> Self {
        let bytes = StdRng::seed_from_u64(seed).random();
        // Not at the start, nor on a boundary of ticks.
        let now = Instant::from_micros(1_234_567);
        Self {
            relay: Relay::new(&config, capacity, bytes, now),
            now,
            wall: now,
            config,
            peers: Vec::new(),
            by_id: HashMap::new(),
            turn: Turn::new(Vec::new()),
            readable: Vec::new(),
            writable: Vec::new(),
            has_fired: false,
            balancer: None,
            tls_keys: None,
            backlog: VecDeque::new(),
            descriptors: usize::MAX,
            events: BinaryHeap::new(),
            event_count: 0,
            is_frozen: false,
            faults: Faults::default(),
            handovers: HandOvers::from_environment(seed),
            capacity,
            oracle: None,
            trace: Trace::default(),
            calls: 0,
            cost: Cost::default(),
            open_time: Duration::ZERO,
        }
    }

    // Dialling

    /// A peer dials from `address` and sends `bytes`.
    pub(crate) fn dial_from(&mut self, address: IpAddr, bytes: &[u8]) -> PeerId {
        self.dial_over(Duration::ZERO, address, bytes)
    }

    /// A peer dials over a link that takes `latency` in each direction.
    pub(crate) fn dial_over(&mut self, latency: Duration, address: IpAddr, bytes: &[u8]) -> PeerId {
        let peer = self.come(address);
        self.on_link(peer.0, |pipe, _| {
            pipe.latency = latency;
            None
        });
        if let Some(oracle) = &mut self.oracle {
            oracle.on_dial(address, bytes, self.now);
        }
        self.backlog.push_back(peer.0);
        self.send(peer, bytes);
        peer
    }

    pub(crate) fn dial(&mut self, head: &str) -> PeerId {
        self.dial_from(HOME, head.as_bytes())
    }

    /// A peer dials through a load balancer, whose PROXY header these bytes are; without any
    /// it sends nothing else either.
    pub(crate) fn dial_through(&mut self, balancer: IpAddr, header: &[u8], head: &str) -> PeerId {
        let peer = self.come(HOME);
        self.peer_mut(peer).balancer = Some(balancer);
        self.peer_mut(peer).send_header(header);
        self.backlog.push_back(peer.0);
        let head = if header.is_empty() { "" } else { head };
        self.send(peer, head.as_bytes());
        peer
    }

    fn come(&mut self, address: IpAddr) -> PeerId {
        let mut peer = Peer::new(address);
        peer.tls = self.tls_keys.as_mut().map_or(Tls::default(), Tls::seeded);
        if let Some(balancer) = self.balancer {
            peer.balancer = Some(balancer);
            peer.send_header(&proxy::client(address));
        }
        self.peers.push(peer);
        PeerId(self.peers.len() - 1)
    }

    /// A binary that claims `server_id` and whose handshake succeeds.
    pub(crate) fn binary(&mut self, server_id: &str) -> PeerId {
        let peer = self.dial(&peer::claim(server_id));
        self.expect_upgrade(peer)
    }

    /// A phone that dials in for `server_id` and whose handshake succeeds.
    pub(crate) fn phone(&mut self, server_id: &str) -> PeerId {
        let peer = self.dial(&peer::join(server_id));
        self.expect_upgrade(peer)
    }

    fn expect_upgrade(&mut self, peer: PeerId) -> PeerId {
        assert!(!self.peer(peer).seen.is_empty(), "no answer");
        assert_eq!(self.peer_mut(peer).seen.remove(0), Seen::Answer(101));
        peer
    }

    // Actions of peers

    pub(crate) fn peer(&self, peer: PeerId) -> &Peer {
        &self.peers[peer.0]
    }

    pub(crate) fn peer_mut(&mut self, peer: PeerId) -> &mut Peer {
        &mut self.peers[peer.0]
    }

    pub(crate) fn send(&mut self, peer: PeerId, bytes: &[u8]) {
        self.peer_mut(peer).send(bytes);
        self.touch(peer);
    }

    /// The bytes are on the link, and the relay does nothing about them yet.
    pub(crate) fn send_unsettled(&mut self, peer: PeerId, bytes: &[u8]) {
        self.at_once(|world| world.send(peer, bytes));
    }

    /// No turn is taken before all of it has happened, nor after it.
    pub(crate) fn at_once<T>(&mut self, happens: impl FnOnce(&mut Self) -> T) -> T {
        self.is_frozen = true;
        let happened = happens(self);
        self.is_frozen = false;
        happened
    }

    /// Sends a part of a frame: the peer's automatic answers wait for the rest.
    pub(crate) fn send_part(&mut self, peer: PeerId, bytes: &[u8]) {
        self.peer_mut(peer).send_part(bytes);
        self.touch(peer);
    }

    pub(crate) fn text(&mut self, peer: PeerId, text: &str) {
        self.send(peer, &wire::frame(wire::TEXT, text.as_bytes()));
    }

    /// A binary sends `frame` to a phone.
    pub(crate) fn deliver(&mut self, binary: PeerId, phone: PeerId, frame: &str) {
        let envelope = self.envelope(phone, frame);
        self.text(binary, &envelope);
    }

    /// The peer sends a close frame; code 0: an empty one.
    pub(crate) fn close(&mut self, peer: PeerId, code: u16, reason: &str) {
        self.peer_mut(peer).close(&wire::close_payload(code, reason));
        self.touch(peer);
    }

    /// The peer sends FIN behind what it has sent.
    pub(crate) fn hang_up(&mut self, peer: PeerId) {
        if self.peer(peer).sending == Sending::Open {
            self.peer_mut(peer).sending = Sending::Ended;
        }
        self.touch(peer);
    }

    /// A record is damaged on its way, the peer's next one or the relay's.
    pub(crate) fn damage(&mut self, peer: PeerId, is_peers: bool, bit: usize) {
        let peer = self.peer_mut(peer);
        peer.is_broken = true;
        peer.tls.damage_next(is_peers, bit);
    }

    /// The peer's stream ends within a record, without close_notify.
    pub(crate) fn cut_off(&mut self, peer: PeerId, left: usize) {
        let ping = wire::frame(wire::PING, b"");
        let peer_mut = self.peer_mut(peer);
        if peer_mut.sending == Sending::Open {
            peer_mut.tls.cut_off(&ping, left, &mut peer_mut.outgoing);
        }
        self.hang_up(peer);
    }

    /// The connection breaks: bytes that have not arrived are lost.
    pub(crate) fn reset(&mut self, peer: PeerId) {
        let peer_mut = self.peer_mut(peer);
        peer_mut.sending = Sending::Reset;
        peer_mut.habits = Habits::VANISHED;
        self.touch(peer);
    }

    /// The peer vanishes, and the relay is not told (a half-open connection).
    pub(crate) fn vanish(&mut self, peer: PeerId) {
        self.peer_mut(peer).habits = Habits::VANISHED;
    }

    /// The link stalls in both directions for a while.
    pub(crate) fn stall(&mut self, peer: PeerId, time: Duration) {
        let until = self.wall + time;
        self.peer_mut(peer).was_late = true;
        self.on_link(peer.0, |pipe, now| pipe.stall(until, now));
    }

    /// A half-open connection: one direction of the link delivers nothing any more.
    pub(crate) fn cut(&mut self, peer: PeerId, from_peer: bool) {
        let peer = self.peer_mut(peer);
        peer.was_late = true;
        let pipe = if from_peer { &mut peer.up } else { &mut peer.down };
        pipe.stall(Instant::NEVER, Instant::START);
    }

    /// Ends latency, stalls and faults, except for half-open peers.
    pub(crate) fn heal(&mut self) {
        self.faults = Faults::default();
        self.descriptors = usize::MAX;
        for peer in 0..self.peers.len() {
            self.on_link(peer, Pipe::heal);
            self.on_event(peer);
        }
        self.settle();
    }

    /// The peer reads nothing from the link, which takes `link` bytes more.
    pub(crate) fn stop_reading(&mut self, peer: PeerId, link: usize) {
        let peer = self.peer_mut(peer);
        peer.habits.reads = false;
        peer.link = link;
    }

    /// The peer reads again.
    pub(crate) fn read_on(&mut self, peer: PeerId) {
        self.peer_mut(peer).habits.reads = true;
        self.read(peer, usize::MAX);
    }

    /// The peer reads `count` bytes.
    pub(crate) fn read(&mut self, peer: PeerId, count: usize) {
        self.peer_mut(peer).read(count);
        self.unblock(peer.0);
        self.touch(peer);
    }

    // Observations

    /// The events that the peer has received since the last call.
    pub(crate) fn heard(&mut self, peer: PeerId) -> Vec<Seen> {
        std::mem::take(&mut self.peer_mut(peer).seen)
    }

    pub(crate) fn envelope(&self, phone: PeerId, frame: &str) -> String {
        format!(r#"{{"conn_id":"{}","frame":{frame}}}"#, self.peer(phone).conn_id())
    }

    /// The notice to the binary about the end of the phone.
    pub(crate) fn notice(&self, phone: PeerId, code: u16) -> Seen {
        let conn_id = self.peer(phone).conn_id();
        text(&format!(r#"{{"conn_id":"{conn_id}","close_code":{code}}}"#))
    }

    /// Checks that the peer received only this close, and that its connection has ended.
    pub(crate) fn assert_closed(&mut self, peer: PeerId, (code, reason): (u16, &str)) {
        assert_eq!(self.heard(peer), closed(code, reason));
        assert!(self.is_gone(peer) || !self.peer(peer).habits.hangs_up, "nothing to wait for");
    }

    /// Whether `binary` holds the slot of `phone`.
    pub(crate) fn is_holder(&mut self, binary: PeerId, phone: PeerId) -> bool {
        self.text(phone, "1");
        let envelope = self.envelope(phone, "1");
        self.heard(binary).contains(&text(&envelope))
    }

    pub(crate) fn is_gone(&self, peer: PeerId) -> bool {
        self.peer(peer).is_gone
    }

    pub(crate) fn is_reading(&self, peer: PeerId) -> bool {
        self.relay.is_reading(self.peer(peer).id)
    }

    /// The number of bytes queued to the peer.
    pub(crate) fn backlog(&self, peer: PeerId) -> usize {
        self.relay.queued(self.peer(peer).id).map(<[u8]>::len).sum()
    }

    // Time

    /// Time passes, from deadline to deadline.
    pub(crate) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until) {}
    }

    /// Advances to the next event, or to `until` if that is earlier, and then returns false.
    pub(crate) fn step(&mut self, until: Instant) -> bool {
        self.settle();
        let arrival = self.events.peek().map(|Reverse((at, ..))| self.now + at.since(self.wall));
        let deadline = self.relay.next_deadline();
        let next = arrival.into_iter().chain(deadline).min().filter(|next| *next <= until);
        let time = next.unwrap_or(until).since(self.now);
        self.go_on(time, time);
        if next.is_none() {
            return false;
        }
        self.settle();
        true
    }

    /// What should come within `time` has come; for the relay it was `counted`.
    pub(crate) fn go_on(&mut self, time: Duration, counted: Duration) {
        let (binaries, phones) = self.relay.live();
        self.open_time += time * (binaries + phones) as u32;
        let then = self.wall + time;
        while let Some(Reverse((at, _, peer))) = self.events.peek().copied()
            && at <= then
        {
            self.events.pop();
            self.wall = self.wall.max(at);
            self.on_event(peer);
        }
        self.wall = then;
        self.now += counted;
    }

    /// Passes time until `is_so`, and returns how much.
    ///
    /// # Panics
    /// If it takes longer than `limit`.
    pub(crate) fn pass_until(
        &mut self,
        limit: Duration,
        mut is_so: impl FnMut(&mut Self) -> bool,
    ) -> Duration {
        let start = self.now;
        self.settle();
        while !is_so(self) {
            assert!(self.step(start + limit), "not within {limit:?}");
        }
        self.now.since(start)
    }

    /// Pauses the whole relay for `time`, while peers do `meanwhile`. The relay notices only
    /// by its timers; it reads all input before it handles them.
    pub(crate) fn freeze(&mut self, time: Duration, meanwhile: impl FnOnce(&mut Self)) {
        self.stand_still(time, time, meanwhile);
    }

    /// The same with the clock of `server/clock.rs`, which counts hardly any of a pause.
    pub(crate) fn stop(&mut self, time: Duration, meanwhile: impl FnOnce(&mut Self)) {
        let asked = self.relay.next_deadline().map_or(time, |due| due.since(self.now));
        let counted = time.min(asked + TURN_MAX);
        if let Some(oracle) = &mut self.oracle {
            oracle.on_late(counted.saturating_sub(asked), self.now + counted);
        }
        self.stand_still(time, counted, meanwhile);
    }

    fn stand_still(
        &mut self,
        time: Duration,
        counted: Duration,
        meanwhile: impl FnOnce(&mut Self),
    ) {
        self.settle();
        self.is_frozen = true;
        meanwhile(self);
        self.go_on(time, counted);
        self.is_frozen = false;
        self.settle();
    }

    pub(crate) fn shut_down(&mut self) {
        self.tell(Input::ShutDown);
        self.settle();
    }

    /// Disconnects all peers, lets time pass, and checks that the relay is empty again.
    pub(crate) fn finish(mut self) {
        for peer in 0..self.peers.len() {
            self.hang_up(PeerId(peer));
        }
        self.pass(Duration::from_secs(61));
        let relay = &self.relay;
        assert_eq!((relay.len(), relay.live(), relay.slots()), (0, (0, 0), 0), "(10)");
        assert_eq!((relay.websockets(), relay.buffered()), (0, 0), "(10)");
        assert_eq!(relay.next_deadline(), None, "(10)");
        assert!(relay.is_empty(), "(10)");
        assert!(self.by_id.is_empty(), "(10) the relay forgot sockets");
        relay.audit();
    }
}

/// A close frame and the FIN behind it.
pub(crate) fn closed(code: u16, reason: &str) -> Vec<Seen> {
    vec![Seen::Close(code, reason.to_owned()), Seen::End]
}

pub(crate) fn text(text: &str) -> Seen {
    Seen::Text(text.to_owned())
}

pub(crate) const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
