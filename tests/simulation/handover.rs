//! Hand-over at random turns: the relay is saved, and a restored one goes on in its place.
//!
//! Owns when that happens: never, unless `PYRYCODE_SIM_HANDOVERS=n` asks for it in n of 1,000
//! turns of every test, or a test does. Whatever happens around it, peers must not be able to
//! tell, so every expectation of every test stays the same.

use std::time::Duration;

use pyrycode_relay::config::Config;
use pyrycode_relay::relay::{ConnId, Relay};
use pyrycode_relay::server::turn::{Readiness, Turn};
use pyrycode_relay::state::v1;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::replay::setting;
use crate::survive::survive;
use crate::world::World;
use crate::{peer, wire};

/// When to hand over.
pub(crate) struct HandOvers {
    rng: StdRng,
    per_mille: u64,
    pub(crate) count: usize,
}

impl HandOvers {
    pub(crate) fn new(per_mille: u64, seed: u64) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), per_mille, count: 0 }
    }

    /// As the environment asks.
    pub(crate) fn from_environment(seed: u64) -> Self {
        Self::new(setting("PYRYCODE_SIM_HANDOVERS").unwrap_or(0), seed)
    }

    /// In a crowd, where it takes longer than everything else, more rarely.
    fn is_time(&mut self, crowd: usize) -> bool {
        let rarer = 1 + (crowd as u64 / 100).pow(2);
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
        let bytes = postcard::to_allocvec(&(&relay, &waiting)).expect("it can be encoded");
        let decoded: (v1::Relay, v1::Turn) = postcard::from_bytes(&bytes).expect("it is one");
        assert_eq!(decoded, (relay.clone(), waiting), "what was encoded");
        let (saved, waiting) = decoded;
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
fn lively(messages: usize) -> World {
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
        for _ in 0..messages {
            world.deliver(binary, phone, &format!("\"{}\"", "x".repeat(30_000)));
        }
        world.send_part(phone, &wire::frame(wire::TEXT, &[b'1'; 700])[..99]);
        world.dial(&peer::claim(home));
        if home == "shed" {
            world.hang_up(binary);
        }
    }
    // A slow binary, whose phones are paused.
    let (slow, phones) = (world.binary("slow"), [world.phone("slow"), world.phone("slow")]);
    world.stop_reading(slow, 0);
    for _ in 0..messages {
        for phone in phones {
            world.text(phone, &format!("\"{}\"", "x".repeat(30_000)));
        }
    }
    world.dial("GET /half");
    world.pass(Duration::from_secs(8));
    let binary = world.binary("late");
    let phone = world.phone("late");
    world.text(binary, "no envelope");
    world.close(phone, 1000, "bye");
    // The slow one is probed.
    world.dial(&peer::claim("slow"));
    world
}

/// Whatever a state says, it is refused or the relay goes on: it never panics.
#[test]
fn a_state_with_any_fault_is_refused_or_survived() {
    let mut world = lively(12);
    let saved = world.relay.save().expect("it is at rest");
    let bytes = postcard::to_allocvec(&saved).expect("every state can be encoded");
    assert!(
        saved.slots.congested.iter().any(|slot| slot.is_full) && !saved.slots.probes.is_empty()
    );
    // Queued frames are the most of it, and any of their bytes is as good.
    let places: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != b'x').collect();
    let seed = setting("PYRYCODE_SIM_SEED").unwrap_or(3);
    let count = (10 * setting("PYRYCODE_SIM_SEEDS").unwrap_or(100)).min(5_000);
    let mut rng = StdRng::seed_from_u64(seed);
    let ids: Vec<ConnId> = world.peers.iter().map(|peer| peer.id).collect();
    let mut restored = 0;
    for step in 0..count {
        let mut damaged = bytes.clone();
        for _ in 0..rng.random_range(1..4) {
            let at = places[rng.random_range(0..places.len())];
            damaged[at] = if rng.random_bool(0.5) { rng.random() } else { damaged[at] ^ 1 };
        }
        let replay = format!("seed {seed}, step {step}");
        let Ok(state) = postcard::from_bytes::<v1::Relay>(&damaged) else { continue };
        let seed = rng.random();
        let made = Relay::restore(&world.config, world.capacity, state, seed, world.now);
        let Ok((mut relay, lost)) = made else { continue };
        restored += 1;
        let now = world.now + Duration::from_secs(rng.random_range(0..100));
        println!("{replay}");
        survive(&mut relay, &lost, &ids, now);
    }
    assert!(restored > count as usize / 20, "{restored} of {count} were restored");
}

/// `PYRYCODE_SIM_WRITE_STATE=1` writes an input for the fuzz target that restores states.
#[test]
fn a_state_for_the_fuzzer_is_written_on_demand() {
    let mut world = lively(1);
    let saved = world.relay.save().expect("it is at rest");
    let bytes = postcard::to_allocvec(&saved).expect("every state can be encoded");
    assert!(bytes.len() < 200_000, "{} bytes", bytes.len());
    if setting("PYRYCODE_SIM_WRITE_STATE").is_some() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/state");
        std::fs::create_dir_all(&folder).expect("a folder can be made");
        std::fs::write(folder.join("lively"), bytes).expect("a file can be written");
    }
}

/// A phone that is not read, or a slow binary that nothing waits for, is so for ever.
#[test]
fn backpressure_that_would_never_end_is_refused() {
    let mut world = lively(12);
    let saved = world.relay.save().expect("it is at rest");
    let refused = |damage: fn(&mut v1::Relay)| {
        let mut saved = saved.clone();
        damage(&mut saved);
        let restored = Relay::restore(&world.config, world.capacity, saved, [0; 32], world.now);
        restored.map(|(_, lost)| lost).unwrap_err()
    };
    let damages: [fn(&mut v1::Relay); 3] = [
        |saved| saved.slots.congested.iter_mut().for_each(|slot| slot.phones[0].2 = false),
        |saved| {
            let entries = saved.connections.entries.iter_mut();
            entries.flat_map(|entry| &mut entry.inbound).for_each(|inbound| inbound.paused = None);
        },
        |saved| {
            // Its queue is gone.
            let slow = saved.slots.congested.iter().find(|slot| slot.is_full).expect("one is");
            let v1::Holder::Binary(id) = saved.slots.slots[slow.slot as usize].holder else {
                panic!("it is held");
            };
            let entries = &mut saved.connections.entries;
            let entry =
                entries.iter_mut().find(|it| it.index == ConnId::from_bits(id).index() as u32);
            entry.expect("it is there").outbox = None;
        },
    ];
    for (number, damage) in damages.into_iter().enumerate() {
        assert_eq!(refused(damage).0, "phones that wait", "damage {number}");
    }
}
