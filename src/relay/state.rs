//! State of the relay, for a hand-over, and back.
//!
//! Owns which parts are saved, and the check that connections and slots of a state name each
//! other. What one part can tell from another, and what the configuration says, is not saved.
//! Neither are log throttles: a kind of warning may be logged once more.

use chacha20::{ChaCha12Rng, SerializedRngState};

use super::conn_id::ConnId;
use super::connections::Client;
use super::push_wake::Wakes;
use super::relay::Relay;
use super::slots::SlotKey;
use super::warnings::Warnings;
use crate::config::{BINARY_LOW_WATER, Config};
use crate::protocol::response::Date;
use crate::state::v1::{CLAIMANT, PHONE};
use crate::state::{Unfit, v1};
use crate::time::Instant;

impl Relay {
    /// The state of the relay; `None` while effects are queued. The relay is as it was.
    #[must_use]
    pub fn save(&mut self) -> Option<v1::Relay> {
        let connections = self.connections.save()?;
        let (attempts, challenge, started) = self.gates.save();
        Some(v1::Relay {
            connections,
            slots: self.slots.save(),
            attempts,
            challenge,
            date: self.gates.date.as_str().to_owned(),
            started,
            wakes: self.wakes.as_ref().map(Wakes::save),
            stats: self.stats.save(),
            warnings: self.warnings.save(),
            rng: self.rng.serialize_state().to_vec(),
        })
    }

    /// Continues, at `now`, with the state that [`Self::save`] returned, under this
    /// configuration. `seed` makes the keys of tables anew. Returns as well the connections
    /// that cannot be continued: their input and output is lost, and they have to be
    /// [disconnected](super::Input::Disconnected).
    ///
    /// # Errors
    /// The part of the state that contradicts another.
    pub fn restore(
        config: &Config,
        capacity: usize,
        saved: v1::Relay,
        seed: [u8; 32],
        now: Instant,
    ) -> Result<(Self, Vec<ConnId>), Unfit> {
        let v1::Relay {
            connections,
            slots,
            attempts,
            challenge,
            date,
            started,
            wakes,
            stats,
            warnings,
            rng,
        } = saved;
        let mut relay = Self::new(config, capacity, seed, now);
        let graces = connections.graces.clone();
        let lost = relay.connections.restore(connections)?;
        relay.slots.restore(slots)?;
        if !graces.iter().map(|grace| grace.slot).eq(relay.slots.in_grace()) {
            return Err(Unfit("slots in grace"));
        }
        for v1::Grace { slot, client } in graces {
            let (slot, client) = (SlotKey::from_bits(slot), Client::restore(&client));
            let bytes = relay.slots.grace_bytes(slot);
            relay.connections.charge_grace(slot, client, bytes);
        }
        relay.gates.restore(&attempts, challenge, started);
        if let Some(date) = Date::new(&date) {
            relay.gates.date = date;
        }
        if let (Some(wakes), Some(own)) = (wakes, &mut relay.wakes) {
            *own = Wakes::restore(wakes)?;
        }
        relay.stats.restore(&stats);
        relay.warnings = Warnings::restore(warnings);
        let rng: SerializedRngState = rng.try_into().map_err(|_| Unfit("random numbers"))?;
        relay.rng = ChaCha12Rng::deserialize_state(&rng);
        relay.count_members()?;
        relay.check_backpressure(&lost)?;
        Ok((relay, lost))
    }

    /// Counts connections with a role, which must be the members of the slots.
    fn count_members(&mut self) -> Result<(), Unfit> {
        let mut members = self.slots.members();
        // A claimant that was refused keeps its role until it is told.
        let rejected = self.slots.rejected();
        let rejected = rejected.filter_map(|id| Some((id, self.connections.get(id)?.slot())));
        members.extend(rejected.map(|(id, slot)| (id.to_bits(), slot.to_bits(), CLAIMANT)));
        members.sort_unstable();
        let mut own = Vec::with_capacity(members.len());
        for (id, client, slot, role) in self.connections.members() {
            own.push((id.to_bits(), slot, role));
            self.gates.caps.count(client);
        }
        own.sort_unstable();
        if own == members { Ok(()) } else { Err(Unfit("members of slots")) }
    }

    /// Checks that the phones that are not read are those that wait for a slow binary: another
    /// one would wait for ever.
    fn check_backpressure(&self, lost: &[ConnId]) -> Result<(), Unfit> {
        let phones = self.connections.members().filter(|(.., role)| *role == PHONE);
        let is_stopped = |id: &ConnId| {
            self.connections.get(*id).is_some_and(|entry| entry.connection().is_stopped())
        };
        let mut stopped: Vec<ConnId> = phones.map(|(id, ..)| id).filter(is_stopped).collect();
        stopped.sort_unstable_by_key(|id| id.to_bits());
        let mut paused = self.slots.paused();
        paused.retain(|id| !lost.contains(id));
        let is_slow = |id: ConnId| {
            let entry = self.connections.get(id);
            let backlog = entry.map_or(0, |entry| entry.connection().backlog());
            backlog > BINARY_LOW_WATER || lost.contains(&id)
        };
        let is_fit = stopped == paused && self.slots.slow().all(is_slow);
        if is_fit { Ok(()) } else { Err(Unfit("phones that wait")) }
    }
}
