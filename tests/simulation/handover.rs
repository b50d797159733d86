//! Hand-over at random turns: the relay is saved, and a restored one goes on in its place.
//!
//! Owns when that happens: never, unless `PYRYCODE_SIM_HANDOVERS=n` asks for it in n of 1,000
//! turns of every test, or a test does. Whatever happens around it, peers must not be able to
//! tell, so every expectation of every test stays the same.

use pyrycode_relay::relay::Relay;
use pyrycode_relay::server::turn::{Readiness, Turn};
use pyrycode_relay::state::{self, Received, v1};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::replay::setting;
use crate::world::World;

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
