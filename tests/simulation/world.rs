//! The world around one relay: a virtual clock, peers and the links to them.
//!
//! Owns what a test says and asks: who dials, who does what, what was seen, how
//! much time passes. Bytes move in [`crate::shell`]. Time never passes by itself;
//! [`World::pass`] jumps from one deadline to the next, and timers fire only when
//! no input waits.
//!
//! Checked at every step, whatever the test is about:
//! 1. Queued bytes stay within the budget after each call.
//! 2. After timers the next deadline lies in the future, so nothing spins.
//! 3. Of each kind there is one effect per connection at most in the queue, and
//!    none for a connection that is gone.
//! 4. Input is handed in only where it is wanted; the wire is well-formed
//!    ([`crate::wire`]), so there is one close frame at most and nothing after it.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use pyrycode_relay::config::Config;
use pyrycode_relay::relay::Relay;
use pyrycode_relay::time::Instant;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::peer::{self, HOME, Habits, Peer, Seen, Sending};
use crate::wire;

/// Handle of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PeerId(pub(crate) usize);

/// One relay and everybody around it.
pub(crate) struct World {
    pub(crate) relay: Relay,
    pub(crate) now: Instant,
    pub(crate) config: Config,
    pub(crate) peers: Vec<Peer>,
    pub(crate) by_id: HashMap<u64, usize>,
    /// Peers whose socket may be readable.
    pub(crate) ready: VecDeque<usize>,
    /// Peers whose socket was written short and has room again.
    pub(crate) writable: Vec<usize>,
    /// The relay does not run: nothing is settled until it does again.
    pub(crate) is_frozen: bool,
    /// Splits reads and writes at random.
    pub(crate) splits: Option<StdRng>,
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
            config,
            peers: Vec::new(),
            by_id: HashMap::new(),
            ready: VecDeque::new(),
            writable: Vec::new(),
            is_frozen: false,
            splits: None,
        }
    }

    // Peers come

    /// Accepts a connection from `address` whose peer sends `bytes`.
    pub(crate) fn dial_from(&mut self, address: IpAddr, bytes: &[u8]) -> PeerId {
        assert!(!self.is_frozen, "nobody accepts");
        let id = self.relay.handle_accept(address, self.now);
        self.check();
        let peer = PeerId(self.peers.len());
        self.peers.push(Peer::new(id));
        assert_eq!(self.by_id.insert(id.to_bits(), peer.0), None, "{id:?} is not unique");
        self.send(peer, bytes);
        peer
    }

    pub(crate) fn dial(&mut self, head: &str) -> PeerId {
        self.dial_from(HOME, head.as_bytes())
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

    // Peers act

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

    /// Sends a part of a frame: what the peer answers by itself waits for the rest.
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

    /// The connection breaks: what was not read yet is lost.
    pub(crate) fn reset(&mut self, peer: PeerId) {
        let peer_mut = self.peer_mut(peer);
        peer_mut.sending = Sending::Reset;
        peer_mut.habits = Habits::VANISHED;
        peer_mut.outgoing.clear();
        self.touch(peer);
    }

    /// The peer is gone and nobody tells the relay.
    pub(crate) fn vanish(&mut self, peer: PeerId) {
        self.peer_mut(peer).habits = Habits::VANISHED;
    }

    /// The peer takes nothing off the link, which holds `link` bytes more.
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
        if std::mem::take(&mut self.peer_mut(peer).is_blocked) {
            self.writable.push(peer.0);
        }
        self.touch(peer);
    }

    // What peers saw

    /// What the peer saw since the last call.
    pub(crate) fn heard(&mut self, peer: PeerId) -> Vec<Seen> {
        std::mem::take(&mut self.peer_mut(peer).seen)
    }

    pub(crate) fn envelope(&self, phone: PeerId, frame: &str) -> String {
        format!(r#"{{"conn_id":"{}","frame":{frame}}}"#, self.peer(phone).conn_id())
    }

    /// The peer saw this close and nothing else, and its connection has ended.
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

    // Time

    /// Time passes, from deadline to deadline.
    pub(crate) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until) {}
    }

    /// Goes on to the next deadline, or to `until` if that is earlier; then false.
    pub(crate) fn step(&mut self, until: Instant) -> bool {
        self.settle();
        let Some(deadline) = self.relay.next_deadline().filter(|deadline| *deadline <= until)
        else {
            self.now = until;
            return false;
        };
        self.now = self.now.max(deadline);
        self.fire();
        true
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

    /// The whole relay stands still for `time`, while peers do `meanwhile`. When
    /// it wakes it reads what has come before it looks at its timers.
    pub(crate) fn freeze(&mut self, time: Duration, meanwhile: impl FnOnce(&mut Self)) {
        self.settle();
        self.is_frozen = true;
        meanwhile(self);
        self.is_frozen = false;
        self.now += time;
        self.settle();
        if self.relay.next_deadline().is_some_and(|deadline| deadline <= self.now) {
            self.fire();
        }
    }

    fn fire(&mut self) {
        self.relay.handle_timeout(self.now);
        self.check();
        let next = self.relay.next_deadline();
        assert!(next.is_none_or(|next| next > self.now), "due again at once");
        self.settle();
    }

    pub(crate) fn shut_down(&mut self) {
        self.relay.shut_down(self.now);
        self.check();
        self.settle();
    }

    /// Everybody hangs up, time passes, and the relay is as empty as at first.
    pub(crate) fn finish(mut self) {
        for peer in 0..self.peers.len() {
            self.hang_up(PeerId(peer));
        }
        self.pass(Duration::from_secs(61));
        let relay = &self.relay;
        assert_eq!((relay.len(), relay.live(), relay.slots()), (0, (0, 0), 0));
        assert_eq!((relay.buffered(), relay.next_deadline()), (0, None));
        assert!(relay.is_empty());
        assert!(self.by_id.is_empty(), "the relay forgot sockets");
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
