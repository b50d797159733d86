//! Hand-over at random turns: the relay is saved, and a restored one goes on in its place.
//!
//! Owns when that happens: never, unless `PYRYCODE_SIM_HANDOVERS=n` asks for it in n of 1,000
//! turns of every test, or a test does. Whatever happens around it, peers must not be able to
//! tell, so every expectation of every test stays the same.

use std::time::Duration;

use pyrycode_relay::config::Config;
use pyrycode_relay::relay::{Effect, Input, Relay};
use pyrycode_relay::server::turn::{Readiness, Turn};
use pyrycode_relay::state::{self, Received, v1};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::replay::setting;
use crate::world::World;
use crate::{peer, wire};

/// When to hand over.
pub(crate) struct HandOvers {
    rng: StdRng,
    per_mille: u32,
    pub(crate) count: usize,
}

impl HandOvers {
    pub(crate) fn new(per_mille: u32, seed: u64) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), per_mille, count: 0 }
    }

    /// As the environment asks.
    pub(crate) fn from_environment(seed: u64) -> Self {
        Self::new(setting("PYRYCODE_SIM_HANDOVERS").unwrap_or(0) as u32, seed)
    }

    /// In a crowd, where it takes longer than everything else, more rarely.
    fn is_time(&mut self, crowd: usize) -> bool {
        let rarer = 1 + crowd as u32 / 100;
        self.per_mille > 0 && self.rng.random_range(0..1_000 * rarer) < self.per_mille
    }
}

impl World {
    /// Hands over, if it is time and between two turns.
    pub(crate) fn hand_over(&mut self, turn: &mut Turn<Vec<u8>>) {
        if !self.handovers.is_time(self.relay.len()) {
            return;
        }
        let (Some(relay), Some(waiting)) = (self.relay.save(), turn.save()) else { return };
        let bytes = state::encode("test", &(&relay, &waiting), 0);
        let received: Received<(v1::Relay, v1::Turn)> = state::decode(&bytes).expect("it is one");
        assert_eq!(received.state, (relay.clone(), waiting), "what was encoded");
        let (saved, waiting) = received.state;
        let seed = self.handovers.rng.random();
        let capacity = self.capacity;
        let restored = Relay::restore(&self.config, capacity, saved, seed, self.now);
        let (restored, lost) = restored.expect("a relay can continue its own state");
        assert_eq!(lost, [], "connections that cannot be continued");
        self.relay = restored;
        self.relay.audit();
        assert_eq!(self.relay.save().as_ref(), Some(&relay), "saved again");
        *turn = Turn::restore(waiting, Vec::new());
        for peer in &mut self.peers {
            peer.readiness = Readiness::restore(&peer.readiness.save());
        }
        self.handovers.count += 1;
    }
}

/// A relay with a bit of everything.
fn lively() -> World {
    let mut config = Config::default();
    config.limits.rate_per_minute = 30;
    let mut world = World::with(config, 100, 5);
    for home in ["home", "office", "shed"] {
        let binary = world.binary(home);
        let phone = world.phone(home);
        world.phone(home);
        world.text(phone, "\"hello\"");
        world.deliver(binary, phone, "\"hello\"");
        world.peer_mut(phone).habits.reads = false;
        for _ in 0..12 {
            world.deliver(binary, phone, &format!("\"{}\"", "x".repeat(30_000)));
        }
        world.send_part(phone, &wire::frame(wire::TEXT, &[b'1'; 700])[..99]);
        world.dial(&peer::claim(home));
        if home == "shed" {
            world.hang_up(binary);
        }
    }
    world.dial("GET /half");
    world.pass(Duration::from_secs(8));
    let binary = world.binary("late");
    let phone = world.phone("late");
    world.text(binary, "no envelope");
    world.close(phone, 1000, "bye");
    world
}

/// Whatever a state says, it is refused or the relay goes on: it never panics.
#[test]
fn a_state_with_any_fault_is_refused_or_survived() {
    let mut world = lively();
    let saved = world.relay.save().expect("it is at rest");
    let bytes = postcard::to_allocvec(&saved).expect("every state can be encoded");
    let seed = setting("PYRYCODE_SIM_SEED").unwrap_or(3);
    let count = setting("PYRYCODE_SIM_SEEDS").unwrap_or(10) * 100;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut restored = 0;
    for step in 0..count {
        let mut damaged = bytes.clone();
        for _ in 0..rng.random_range(1..4) {
            // Queued frames are the most of it, and any of their bytes is as good.
            let at = rng.random_range(0..damaged.len());
            damaged[at] = if rng.random_bool(0.5) { rng.random() } else { damaged[at] ^ 1 };
        }
        let replay = format!("seed {seed}, step {step}");
        let Ok(state) = postcard::from_bytes::<v1::Relay>(&damaged) else { continue };
        let seed = rng.random();
        let made = Relay::restore(&world.config, world.capacity, state, seed, world.now);
        let Ok((mut relay, lost)) = made else { continue };
        restored += 1;
        let now = world.now + Duration::from_secs(rng.random_range(0..100));
        lost.iter().for_each(|id| relay.handle(Input::Disconnected(*id), now));
        relay.handle(Input::Timeout, now);
        for peer in &world.peers {
            relay.handle(Input::Bytes(peer.id, b"\x81\x80\0\0\0\0"), now);
        }
        let mut effects = 0;
        while let Some(effect) = relay.poll_effect() {
            effects += 1;
            assert!(effects < 10_000, "{replay}: effects without an end");
            match effect {
                Effect::Transmit(id) => {
                    let count = relay.outgoing(id).iter().map(|slice| slice.len()).sum();
                    relay.handle(Input::Written(id, count), now);
                }
                Effect::ReadThenExpire(id) => relay.handle(Input::ReadToEnd(id), now),
                Effect::Continue(id) => relay.handle(Input::Continue(id), now),
                _ => {}
            }
        }
        relay.handle(Input::ShutDown, now);
        for peer in &world.peers {
            relay.handle(Input::Disconnected(peer.id), now);
        }
    }
    assert!(restored > count as usize / 20, "{restored} of {count} were restored");
}
