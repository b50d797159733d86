//! State of all slots, and back.
//!
//! Saved is what nothing else tells. The table by server-id and the counts are made anew.

use std::hash::BuildHasher;

use super::congestion::Congestion;
use super::{Holder, Probe, Slot, SlotKey, Slots};
use crate::config::{INITIAL_CAPACITY, PHONES_PER_SERVER_MAX};
use crate::relay::conn_id::ConnId;
use crate::state::{Unfit, v1};
use crate::time::{Instant, Wheel};

const MALFORMED: Unfit = Unfit("slots");

impl Slots {
    /// As plain values.
    pub(in crate::relay) fn save(&self) -> v1::Slots {
        let probes = self.probes.iter().map(|(slot, probe)| v1::Probe {
            slot: *slot,
            claimants: bits(&probe.claimants),
            began: probe.began.as_micros(),
            sent: probe.sent.map(Instant::as_micros),
        });
        let mut probes: Vec<v1::Probe> = probes.collect();
        probes.sort_unstable_by_key(|probe| probe.slot);
        let congested = self.congested.iter().map(|(slot, congestion)| congestion.save(*slot));
        let mut congested: Vec<v1::Congestion> = congested.collect();
        congested.sort_unstable_by_key(|congestion| congestion.slot);
        v1::Slots {
            slots: self.slots.iter().map(Slot::save).collect(),
            free: self.free.clone(),
            probes,
            congested,
            rejected: self.rejected.iter().map(|id| id.to_bits()).collect(),
            graces: self.graces.save(),
            drain: self.drain.as_ref().map(Wheel::save),
        }
    }

    /// Continues with what [`Self::save`] returned, with the times that it was made with;
    /// there must be no slots yet.
    pub(in crate::relay) fn restore(&mut self, saved: v1::Slots) -> Result<(), Unfit> {
        let v1::Slots { slots, free, probes, congested, rejected, graces, drain } = saved;
        let count = slots.len();
        for saved in slots {
            let slot = Slot::restore(saved)?;
            if let Holder::Binary(_) = slot.holder {
                self.binaries += 1;
            }
            self.phones += slot.phones.len();
            self.slots.push(slot);
        }
        for index in 0..count as u32 {
            self.add_to_table(index)?;
        }
        let is_free = |index: &u32| {
            self.slots.get(*index as usize).is_some_and(|slot| slot.server_id.is_empty())
        };
        if self.by_server_id.len() + free.len() != count || !free.iter().all(is_free) {
            return Err(MALFORMED);
        }
        self.free = free;
        for v1::Probe { slot, claimants, began, sent } in probes {
            let claimants: Vec<ConnId> = claimants.into_iter().map(ConnId::from_bits).collect();
            let is_held = (slot as usize) < count && self.holder(SlotKey(slot)).is_some();
            if !is_held || claimants.is_empty() {
                return Err(MALFORMED);
            }
            let (began, sent) = (Instant::from_micros(began), sent.map(Instant::from_micros));
            self.probes.insert(slot, Probe { claimants, began, sent });
        }
        for saved in congested {
            let slot = self.slots.get_mut(saved.slot as usize).ok_or(MALFORMED)?;
            let congestion = Congestion::restore(&saved);
            if matches!(slot.holder, Holder::Grace(_)) || !congestion.is_of(&slot.phones) {
                return Err(MALFORMED);
            }
            slot.is_congested = true;
            self.congested.insert(saved.slot, congestion);
        }
        self.rejected = rejected.into_iter().map(ConnId::from_bits).collect();
        self.graces = Wheel::restore(&graces, count, INITIAL_CAPACITY.max(count))?;
        self.arm_graces();
        self.drain = drain.map(|drain| Wheel::restore(&drain, count, 0)).transpose()?;
        Ok(())
    }

    fn add_to_table(&mut self, index: u32) -> Result<(), Unfit> {
        let (slots, hash) = (&self.slots, &self.hash);
        let server_id = |index: &u32| &*slots[*index as usize].server_id;
        let own = server_id(&index);
        if own.is_empty() {
            return Ok(());
        }
        let hashed = hash.hash_one(own);
        if self.by_server_id.find(hashed, |other| server_id(other) == own).is_some() {
            return Err(MALFORMED);
        }
        self.by_server_id.insert_unique(hashed, index, |index| hash.hash_one(server_id(index)));
        Ok(())
    }

    /// The indices of slots in grace, in ascending order.
    pub(in crate::relay) fn in_grace(&self) -> impl Iterator<Item = u32> {
        let slots = (0..).zip(&self.slots).filter(|(_, slot)| !slot.server_id.is_empty());
        slots.filter(|(_, slot)| matches!(slot.holder, Holder::Grace(_))).map(|(index, _)| index)
    }

    /// Arms the end of each grace that is not.
    fn arm_graces(&mut self) {
        for (index, slot) in (0..).zip(&self.slots) {
            if let Holder::Grace(until) = slot.holder
                && !slot.server_id.is_empty()
            {
                self.graces.arm_by(index, until);
            }
        }
    }

    /// The phones that are paused, in the order of their bits.
    pub(in crate::relay) fn paused(&self) -> Vec<ConnId> {
        let mut paused: Vec<ConnId> =
            self.congested.values().flat_map(|congestion| congestion.paused()).collect();
        paused.sort_unstable_by_key(|id| id.to_bits());
        paused
    }

    /// The binaries of slots that are full.
    pub(in crate::relay) fn slow(&self) -> impl Iterator<Item = ConnId> {
        let full = self.congested.iter().filter(|(_, congestion)| congestion.is_full());
        full.filter_map(|(slot, _)| self.holder(SlotKey(*slot)))
    }

    /// The claimants that were refused and are not told yet.
    pub(in crate::relay) fn rejected(&self) -> impl Iterator<Item = ConnId> {
        self.rejected.iter().copied()
    }

    /// Every member of a slot, with the number of its stage.
    pub(in crate::relay) fn members(&self) -> Vec<(u64, u32, u8)> {
        let mut members = Vec::new();
        for (index, slot) in (0..).zip(&self.slots) {
            if let Holder::Binary(binary) = slot.holder {
                members.push((binary.to_bits(), index, v1::BINARY));
            }
            members.extend(slot.phones.iter().map(|phone| (phone.to_bits(), index, v1::PHONE)));
        }
        for (index, probe) in &self.probes {
            members.extend(probe.claimants.iter().map(|id| (id.to_bits(), *index, v1::CLAIMANT)));
        }
        members
    }
}

impl Slot {
    fn save(&self) -> v1::Slot {
        v1::Slot {
            server_id: (*self.server_id).to_owned(),
            holder: match self.holder {
                Holder::Binary(binary) => v1::Holder::Binary(binary.to_bits()),
                Holder::Grace(until) => v1::Holder::Grace(until.as_micros()),
            },
            phones: bits(&self.phones),
        }
    }

    fn restore(saved: v1::Slot) -> Result<Self, Unfit> {
        if saved.phones.len() > PHONES_PER_SERVER_MAX {
            return Err(MALFORMED);
        }
        Ok(Self {
            server_id: saved.server_id.into_boxed_str(),
            holder: match saved.holder {
                v1::Holder::Binary(binary) => Holder::Binary(ConnId::from_bits(binary)),
                v1::Holder::Grace(until) => Holder::Grace(Instant::from_micros(until)),
            },
            phones: saved.phones.into_iter().map(ConnId::from_bits).collect(),
            is_congested: false,
        })
    }
}

fn bits(ids: &[ConnId]) -> Vec<u64> {
    ids.iter().map(|id| id.to_bits()).collect()
}
