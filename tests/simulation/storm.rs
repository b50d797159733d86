//! Everything at random: peers of all kinds, split reads, short writes, stalls,
//! resets and a relay that stands still, against a shadow that knows only who
//! sent what to whom.
//!
//! The shadow checks of every message that it is delivered
//! 1. to the server-id it was meant for and nobody else,
//! 2. byte for byte, in order, at most once and without a gap before it,
//! 3. at all, where both ends are still open when the storm is over;
//!
//! that a peer which reads to the end of a connection finds exactly one close
//! frame there unless it hung up itself, that an honest one is never told that it
//! is dead or slow, and that nothing is left at the end.

mod shadow;

use std::collections::HashMap;
use std::time::Duration;

use pyrycode_relay::config::Config;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::peer::{self, HOME, Sending};
use crate::replay::{Replay, seeds};
use crate::wire;
use crate::world::{PeerId, World, secs};
use shadow::Shadow;

/// What is done at random in one storm.
const STEPS: usize = 400;
/// So few that claims and phones meet.
const SERVER_IDS: usize = 4;

/// One world, and what the shadow knows of everybody in it.
struct Storm {
    world: World,
    rng: StdRng,
    /// By peer.
    shadows: Vec<Shadow>,
    /// Frames made so far: each has its number in it.
    number: usize,
}

impl Storm {
    fn new(seed: u64) -> Self {
        let mut config = Config::default();
        config.limits.rate_per_minute = 0;
        // Every third storm spends its memory.
        if seed.is_multiple_of(3) {
            config.limits.buffer_memory = 512 * 1024;
        }
        let mut world = World::with(config, 60, seed);
        world.splits = Some(StdRng::seed_from_u64(seed ^ 0xdead));
        Self { world, rng: StdRng::seed_from_u64(seed), shadows: Vec::new(), number: 0 }
    }

    fn chance(&mut self, of: f64) -> bool {
        self.rng.random_bool(of)
    }

    /// A peer that may still send.
    fn any(&mut self, is_right: impl Fn(&Shadow) -> bool) -> Option<PeerId> {
        let right: Vec<PeerId> = (0..self.shadows.len())
            .filter(|index| is_right(&self.shadows[*index]))
            .map(PeerId)
            .filter(|peer| {
                let peer = self.world.peer(*peer);
                let is_talking = peer.sending == Sending::Open && !peer.sent_close;
                is_talking && !peer.is_gone && peer.habits.answers_pings
            })
            .collect();
        (!right.is_empty()).then(|| right[self.rng.random_range(0..right.len())])
    }

    fn dial(&mut self) {
        let server_id = self.rng.random_range(0..SERVER_IDS);
        let is_binary = self.chance(0.25);
        let head = if is_binary { peer::claim } else { peer::join };
        self.world.dial_from(HOME, head(&format!("id{server_id}")).as_bytes());
        self.shadows.push(Shadow {
            server_id,
            is_binary,
            sent: Vec::new(),
            sent_to: HashMap::new(),
            delivered: 0,
            delivered_to: None,
            received: 0,
            received_from: None,
            was_bad: false,
            left: false,
            has_closed: false,
        });
    }

    /// A frame that there is only once, of any size.
    fn frame(&mut self) -> String {
        let most = match self.rng.random_range(0..20) {
            0 => 200_000,
            1..5 => 20_000,
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

    fn phone_talks(&mut self) {
        let Some(phone) = self.any(|shadow| !shadow.is_binary) else { return };
        for _ in 0..self.rng.random_range(1..6) {
            let frame = self.frame();
            let bytes = self.encode(&frame);
            self.shadows[phone.0].sent.push(frame);
            self.world.send(phone, &bytes);
        }
    }

    fn binary_talks(&mut self) {
        let Some(binary) = self.any(|shadow| shadow.is_binary) else { return };
        let server_id = self.shadows[binary.0].server_id;
        for _ in 0..self.rng.random_range(1..6) {
            // Mostly a phone of its own server-id, now and then somebody else's.
            let is_own = self.chance(0.9);
            let phone =
                self.any(|shadow| !shadow.is_binary && (shadow.server_id == server_id) == is_own);
            let Some(phone) = phone else { continue };
            if wire::field(&self.world.peer(phone).answer, "x-request-id").is_none() {
                continue;
            }
            let frame = self.frame();
            self.deliver(binary, phone, frame);
            // More than is kept for anybody, if it is slow.
            if !self.world.peer(phone).habits.reads && self.chance(0.1) {
                for _ in 0..20 {
                    let frame = self.frame_of(250_000);
                    self.deliver(binary, phone, frame);
                }
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
        self.world.send(binary, &bytes);
        self.shadows[binary.0].sent_to.entry(phone).or_default().push(frame);
    }

    fn misbehave(&mut self) {
        let Some(peer) = self.any(|_| true) else { return };
        self.shadows[peer.0].was_bad = true;
        let garbage = [
            wire::frame(wire::TEXT, b"{"),
            wire::frame(wire::BINARY, b"\xff"),
            wire::frame(wire::TEXT, b"\xff"),
            wire::frame(wire::TEXT, b"[1,2]"),
            wire::frame(wire::CLOSE, b"x"),
            wire::raw_frame(0xff, b""),
            wire::frame(wire::PONG, b"12345678"),
        ];
        match self.rng.random_range(0..9) {
            0 | 1 => {
                self.world.hang_up(peer);
                self.shadows[peer.0].left = true;
            }
            2 => {
                self.world.reset(peer);
                self.shadows[peer.0].left = true;
            }
            3 => self.world.vanish(peer),
            4 | 5 => {
                let link = self.rng.random_range(0..100_000);
                self.world.stop_reading(peer, link);
            }
            6 => self.world.close(peer, 1000, "bye"),
            7 => {
                // A message that is never finished.
                self.world.send_part(peer, &wire::frame(wire::TEXT, b"[1,2]")[..9]);
                self.world.peer_mut(peer).habits.answers_pings = false;
            }
            _ => {
                // A phone's "[1,2]" is a frame: the shadow has to know.
                let choice = self.rng.random_range(0..garbage.len());
                if choice == 3 && !self.shadows[peer.0].is_binary {
                    self.shadows[peer.0].sent.push("[1,2]".to_owned());
                }
                self.world.send(peer, &garbage[choice]);
            }
        }
    }

    fn slow_ones_read(&mut self) {
        for index in 0..self.shadows.len() {
            let peer = PeerId(index);
            // The vanished stay so: only they answer no pings.
            let habits = self.world.peer(peer).habits;
            if !habits.reads && habits.answers_pings {
                match self.rng.random_range(0..4) {
                    0 => self.world.read_on(peer),
                    1 | 2 => {
                        let count = self.rng.random_range(0..50_000);
                        self.world.read(peer, count);
                    }
                    _ => {}
                }
            }
        }
    }

    fn act(&mut self) {
        match self.rng.random_range(0..20) {
            0..3 => self.dial(),
            3..8 => self.phone_talks(),
            8..13 => self.binary_talks(),
            13 => self.misbehave(),
            14..16 => self.slow_ones_read(),
            16..18 => {
                let millis = self.rng.random_range(0..2_000);
                self.world.pass(Duration::from_millis(millis));
            }
            18 => {
                let time = self.rng.random_range(0..20);
                self.world.pass(secs(time));
            }
            _ => self.stand_still(),
        }
        self.listen();
    }

    /// Nothing is read for a while, and then everything.
    fn stand_still(&mut self) {
        let time = Duration::from_millis(match self.rng.random_range(0..3) {
            0 => self.rng.random_range(0..1_000),
            1 => self.rng.random_range(0..40_000),
            _ => self.rng.random_range(0..200_000),
        });
        self.world.settle();
        self.world.is_frozen = true;
        for _ in 0..self.rng.random_range(0..5) {
            match self.rng.random_range(0..4) {
                0 | 1 => self.phone_talks(),
                2 => self.binary_talks(),
                _ => self.slow_ones_read(),
            }
        }
        self.world.is_frozen = false;
        self.world.freeze(time, |_| {});
    }
}

#[test]
fn what_is_accepted_is_delivered_or_closed_whatever_happens() {
    let (mut delivered, mut received) = (0, 0);
    let seeds = seeds(40);
    for seed in seeds.clone() {
        let _replay = Replay(seed);
        let mut storm = Storm::new(seed);
        for _ in 0..STEPS {
            storm.act();
        }
        storm.calm_down();
        delivered += storm.shadows.iter().map(|shadow| shadow.delivered).sum::<usize>();
        received += storm.shadows.iter().map(|shadow| shadow.received).sum::<usize>();
        storm.world.splits = None;
        storm.world.finish();
    }
    // That storms are not all noise; a single one may be.
    let count = seeds.count();
    let is_lively = delivered > 50 * count && received > 20 * count;
    assert!(is_lively || count == 1, "{delivered} and {received} frames");
}
