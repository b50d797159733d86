//! Actions of a peer of each kind, on its turn.

use std::net::{IpAddr, Ipv4Addr};

use rand::RngExt;

use super::{Chaos, Shadow};
use crate::peer::{self, Habits, Sending};
use crate::wire;
use crate::world::PeerId;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Sends, answers, and closes with a close frame.
    Honest,
    /// Sends nothing, or only a part of its request.
    Silent,
    /// Reads now and then.
    Slow,
    /// Its kernel acknowledges everything; it answers nothing.
    Frozen,
    /// Violates the protocol.
    Malformed,
    /// Disconnects in every way and dials again, for the same server-id.
    Reconnecting,
    /// A binary for a server-id that may be claimed already.
    Duplicate,
    /// Sends as much as it can.
    Firehose,
}

/// The share of each kind of peer.
const KINDS: [(Kind, u32); 8] = [
    (Kind::Honest, 30),
    (Kind::Silent, 6),
    (Kind::Slow, 14),
    (Kind::Frozen, 8),
    (Kind::Malformed, 8),
    (Kind::Reconnecting, 16),
    (Kind::Duplicate, 10),
    (Kind::Firehose, 8),
];

impl Chaos {
    pub(super) fn kind(&mut self) -> Kind {
        let sum = KINDS.iter().map(|(_, weight)| weight).sum();
        let mut number = self.rng.random_range(0..sum);
        for (kind, weight) in KINDS {
            if number < weight {
                return kind;
            }
            number -= weight;
        }
        unreachable!("less than the sum of the weights")
    }

    pub(super) fn dial(&mut self, kind: Kind) {
        // One of them is popular, so that a slot is filled up.
        let is_popular = self.chance(0.25);
        let server_id = if is_popular { 0 } else { self.rng.random_range(0..self.server_ids) };
        let is_binary = kind == Kind::Duplicate || self.chance(0.2);
        self.dial_for(kind, server_id, is_binary);
    }

    fn dial_for(&mut self, kind: Kind, server_id: usize, is_binary: bool) {
        // More than that at once would only wait in the backlog.
        if self.actors.len() > self.capacity * 5 / 4 {
            return;
        }
        let head = if is_binary { peer::claim } else { peer::join };
        let mut head = head(&format!("id{server_id}")).into_bytes();
        match kind {
            Kind::Silent if self.chance(0.5) => {
                head.truncate(self.rng.random_range(0..head.len()));
            }
            Kind::Malformed if self.chance(0.2) => head.insert(0, b' '),
            _ => {}
        }
        let latency = self.millis(self.latency + 1);
        let address = Ipv4Addr::new(203, 0, 113, self.rng.random_range(0..self.addresses));
        let peer = self.world.dial_over(latency, IpAddr::V4(address), &head);
        self.shadows.push(Shadow::new(kind, server_id, is_binary));
        self.actors.push(peer);
    }

    pub(super) fn behave(&mut self, peer: PeerId, kind: Kind) {
        let talks = self.is_talking(peer);
        match kind {
            Kind::Silent => {}
            Kind::Duplicate if self.chance(0.1) => self.leave(peer),
            Kind::Honest if self.chance(0.05) => self.repeat(peer),
            Kind::Honest | Kind::Duplicate if self.chance(0.97) => self.talk(peer, 6),
            Kind::Honest | Kind::Duplicate => self.leave(peer),
            Kind::Reconnecting if self.chance(0.7) => self.talk(peer, 3),
            Kind::Reconnecting => {
                self.leave(peer);
                self.actors.retain(|other| *other != peer);
                let Shadow { server_id, is_binary, .. } = self.shadows[peer.0];
                self.dial_for(kind, server_id, is_binary);
            }
            Kind::Slow => self.dawdle(peer),
            Kind::Frozen if !talks => self.repeat(peer),
            Kind::Frozen if self.chance(0.2) => {
                let habits = Habits { reads: self.chance(0.5), ..Habits::VANISHED };
                self.world.peer_mut(peer).habits = habits;
            }
            Kind::Frozen => self.talk(peer, 3),
            Kind::Malformed if talks && self.chance(0.3) => self.misbehave(peer),
            Kind::Malformed => self.talk(peer, 3),
            Kind::Firehose => self.talk(peer, 60),
        }
    }

    fn leave(&mut self, peer: PeerId) {
        match self.rng.random_range(0..5) {
            0 | 1 => self.world.close(peer, 1000, "bye"),
            2 => {
                self.world.hang_up(peer);
                self.shadows[peer.0].left = true;
            }
            3 => {
                // In the middle of a frame.
                self.world.peer_mut(peer).was_late = true;
                self.world.send_part(peer, &wire::frame(wire::TEXT, b"[1,2]")[..9]);
                self.world.reset(peer);
                self.shadows[peer.0].left = true;
            }
            _ => self.world.vanish(peer),
        }
    }

    /// Says again what it has said before, which proves nothing.
    fn repeat(&mut self, peer: PeerId) {
        let actor = self.world.peer(peer);
        if !actor.first_pong.is_empty() && !actor.is_midway() {
            let pong = wire::frame(wire::PONG, &actor.first_pong.clone());
            self.world.send(peer, &pong);
        }
    }

    fn dawdle(&mut self, peer: PeerId) {
        let habits = self.world.peer(peer).habits;
        match self.rng.random_range(0..6) {
            0 if !habits.reads => self.world.read_on(peer),
            1 | 2 if !habits.reads => {
                let count = self.rng.random_range(0..50_000);
                self.world.read(peer, count);
            }
            0..3 => {
                let link = self.rng.random_range(0..100_000);
                self.world.stop_reading(peer, link);
            }
            _ => self.talk(peer, 3),
        }
    }

    fn misbehave(&mut self, peer: PeerId) {
        self.world.peer_mut(peer).was_bad = true;
        let garbage = [
            wire::frame(wire::TEXT, b"{"),
            wire::frame(wire::BINARY, b"\xff"),
            wire::frame(wire::TEXT, b"\xff"),
            wire::frame(wire::TEXT, b"[1,2]"),
            wire::frame(wire::CLOSE, b"x"),
            wire::raw_frame(0xff, b""),
            wire::frame(wire::PONG, b"12345678"),
            wire::frame(wire::TEXT, &vec![b'1'; 300_000]),
        ];
        let choice = self.rng.random_range(0..=garbage.len());
        let Some(bytes) = garbage.get(choice) else {
            // A message that is never finished, and no pong behind it.
            self.world.peer_mut(peer).was_late = true;
            return self.world.send_part(peer, &wire::frame(wire::TEXT, b"[1,2]")[..9]);
        };
        // A phone's "[1,2]" is a frame: the shadow has to know.
        if choice == 3 && !self.shadows[peer.0].is_binary {
            self.shadows[peer.0].sent.push("[1,2]".to_owned());
        }
        self.world.send(peer, bytes);
    }

    /// Whether what it sends may be heard.
    pub(super) fn is_talking(&self, peer: PeerId) -> bool {
        let peer = self.world.peer(peer);
        let is_open = peer.sending == Sending::Open && !peer.sent_close && !peer.is_midway();
        is_open && !peer.is_gone && peer.habits.answers_pings
    }

    fn talk(&mut self, peer: PeerId, most: usize) {
        for _ in 0..self.rng.random_range(1..most) {
            if !self.is_talking(peer) {
                return;
            }
            if self.shadows[peer.0].is_binary {
                self.binary_talks(peer, most);
            } else if self.world.peer(peer).is_upgraded() || self.chance(0.1) {
                let frame = self.frame(most);
                let bytes = self.encode(&frame);
                self.shadows[peer.0].sent.push(frame);
                self.world.send(peer, &bytes);
            }
        }
    }

    fn binary_talks(&mut self, binary: PeerId, most: usize) {
        let server_id = self.shadows[binary.0].server_id;
        // Mostly a phone of its own server-id, now and then another's.
        let is_own = self.chance(0.9);
        let phones: Vec<PeerId> = self
            .actors
            .iter()
            .copied()
            .filter(|phone| {
                let shadow = &self.shadows[phone.0];
                !shadow.is_binary && (shadow.server_id == server_id) == is_own
            })
            .filter(|phone| self.world.peer(*phone).is_upgraded())
            .collect();
        if phones.is_empty() {
            return;
        }
        let phone = phones[self.rng.random_range(0..phones.len())];
        let frame = self.frame(most);
        self.deliver(binary, phone, frame);
        // More than the relay queues for a slow peer.
        if !self.world.peer(phone).habits.reads && self.chance(0.03) {
            for _ in 0..20 {
                let frame = self.frame_of(250_000);
                self.deliver(binary, phone, frame);
            }
        }
    }

    fn deliver(&mut self, binary: PeerId, phone: PeerId, frame: String) {
        let mut envelope = self.world.envelope(phone, &frame);
        if self.chance(0.02) {
            // The frame and then the end.
            envelope = envelope.replacen('{', "{\"close_code\":4321,", 1);
        }
        let bytes = self.encode(&envelope);
        self.shadows[binary.0].sent_to.entry(phone).or_default().push(frame);
        self.world.send(binary, &bytes);
    }

    /// A frame that there is only once; of any size, unless there are many.
    fn frame(&mut self, count: usize) -> String {
        let most = match self.rng.random_range(0..20) {
            0 if count < 10 => 200_000,
            0..5 => 20_000,
            _ => 100,
        };
        let len = self.rng.random_range(0..most);
        self.frame_of(len)
    }

    fn frame_of(&mut self, len: usize) -> String {
        self.number += 1;
        format!("[{} , \"{}\"]", self.number, "ü".repeat(len / 2))
    }

    /// A message as one frame or as fragments with a ping between.
    fn encode(&mut self, text: &str) -> Vec<u8> {
        let bytes = text.as_bytes();
        if self.chance(0.8) {
            let opcode = if self.chance(0.5) { wire::TEXT } else { wire::BINARY };
            return wire::frame(opcode, bytes);
        }
        let middle = self.rng.random_range(0..=bytes.len());
        let (begin, end) = bytes.split_at(middle);
        [
            wire::raw_frame(wire::BINARY, begin),
            wire::frame(wire::PING, b""),
            wire::raw_frame(wire::FIN, end),
        ]
        .concat()
    }
}
