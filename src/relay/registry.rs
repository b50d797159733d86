//! Server-id → slot: who holds it, who waits for it, which phones are on it.
//!
//! Owns claims, grace and takeover as bookkeeping. Does no IO, reads no time
//! and closes nothing: each call returns the connections that its caller has to
//! tell.
//!
//! 1. A slot exists exactly while a binary holds it or its grace runs.
//! 2. Claimants wait only on a slot that is held.
//! 3. A phone is on at most one slot; a slot has at most
//!    [`PHONES_PER_SERVER_MAX`] of them.
//! 4. What a connection that is no longer the holder does changes nothing.

pub(super) mod audit;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::BuildHasher;
use std::mem;

use hashbrown::HashTable;

use super::conn_id::ConnId;
use super::hash::HashKeys;
use crate::config::{PHONES_PER_SERVER_MAX, ROOM};
use crate::time::Instant;

/// Index of a slot; meaningful while the slot exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotKey(pub(super) u32);

/// Every slot.
#[derive(Debug)]
pub(super) struct Registry {
    /// Slot indices by server-id; the id itself is stored once, in the slot.
    by_server_id: HashTable<u32>,
    hash: HashKeys,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Probes that are out by slot index: so few at a time that room for one in
    /// each slot would be wasted.
    probes: HashMap<u32, Probe, HashKeys>,
    /// Slots that are held.
    binaries: usize,
    phones: usize,
}

#[derive(Debug, Default)]
struct Slot {
    server_id: Box<str>,
    holder: Holder,
    /// No larger than it must be: the first three fit the smallest piece that malloc
    /// gives out.
    phones: Box<[ConnId]>,
    /// The holder's backlog is high: its phones are not read.
    paused: bool,
}

#[derive(Clone, Copy, Debug)]
enum Holder {
    Binary(ConnId),
    /// It has left, and the slot is kept for it until then.
    Grace(Instant),
}

impl Default for Holder {
    fn default() -> Self {
        Self::Grace(Instant::START)
    }
}

/// Who waits for the holder of a slot to answer.
#[derive(Debug)]
struct Probe {
    /// In order of arrival.
    claimants: Vec<ConnId>,
    until: Instant,
}

/// What an idle binary costs here, beside its server-id and its phones.
const _: () = assert!(size_of::<Slot>() <= 56);

/// What a claim found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// The server-id was free.
    Granted(SlotKey),
    /// It was in grace; these phones have to dial again.
    Reclaimed(SlotKey, Vec<ConnId>),
    /// It is held: the holder is to be probed, unless a probe is out already.
    Waits { slot: SlotKey, holder: ConnId, until: Instant, is_first: bool },
}

/// A claimant has become the holder.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Succession {
    /// The new holder.
    pub(super) holder: ConnId,
    /// Claimants that came too late.
    pub(super) rejected: Vec<ConnId>,
    /// Phones that have to dial again.
    pub(super) phones: Vec<ConnId>,
}

/// What a holder leaves behind.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Departure {
    /// It was not the holder.
    NotHolder,
    /// The slot is kept for it for a while.
    Grace,
    /// A claimant was waiting.
    Succeeded(Succession),
}

/// Why a phone cannot join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JoinError {
    /// No slot with that server-id.
    NoServer,
    /// The slot is full.
    AtCap,
}

impl Registry {
    pub(super) fn new(hash: HashKeys) -> Self {
        Self {
            by_server_id: HashTable::new(),
            probes: HashMap::with_hasher(hash),
            hash,
            slots: Vec::with_capacity(ROOM),
            free: Vec::new(),
            binaries: 0,
            phones: 0,
        }
    }

    /// A binary claims `server_id`; a probe that this starts ends at `probe_until`.
    pub(super) fn claim(&mut self, server_id: &str, binary: ConnId, probe_until: Instant) -> Claim {
        let Some(key) = self.find(server_id) else {
            self.binaries += 1;
            return Claim::Granted(self.insert(server_id, binary));
        };
        let slot = self.slot_mut(key);
        let Holder::Binary(holder) = slot.holder else {
            slot.holder = Holder::Binary(binary);
            self.binaries += 1;
            return Claim::Reclaimed(key, self.take_phones(key));
        };
        let unprobed = || Probe { claimants: Vec::new(), until: probe_until };
        let probe = self.probes.entry(key.0).or_insert_with(unprobed);
        let is_first = probe.claimants.is_empty();
        probe.claimants.push(binary);
        Claim::Waits { slot: key, holder, until: probe.until, is_first }
    }

    /// A binary has left; if it held the slot, the slot is in grace until
    /// `grace_until` or goes to the first claimant.
    pub(super) fn leave(
        &mut self,
        key: SlotKey,
        binary: ConnId,
        grace_until: Instant,
    ) -> Departure {
        if self.holder(key) != Some(binary) {
            return Departure::NotHolder;
        }
        self.slot_mut(key).paused = false;
        match self.succeed(key) {
            Some(succession) => Departure::Succeeded(succession),
            None => {
                self.slot_mut(key).holder = Holder::Grace(grace_until);
                self.binaries -= 1;
                Departure::Grace
            }
        }
    }

    /// If a probe of the holder has run out by `now`, the first claimant takes
    /// its place.
    pub(super) fn depose(&mut self, key: SlotKey, now: Instant) -> Option<Succession> {
        if self.probes.get(&key.0).is_none_or(|probe| now < probe.until) {
            return None;
        }
        self.slot_mut(key).paused = false;
        self.succeed(key)
    }

    /// The holder answered the probe: these claimants are refused.
    pub(super) fn reject_claimants(&mut self, key: SlotKey) -> Vec<ConnId> {
        self.probes.remove(&key.0).map(|probe| probe.claimants).unwrap_or_default()
    }

    /// A claimant does not wait any longer.
    pub(super) fn withdraw(&mut self, key: SlotKey, claimant: ConnId) {
        if let Entry::Occupied(mut probe) = self.probes.entry(key.0) {
            probe.get_mut().claimants.retain(|waiting| *waiting != claimant);
            if probe.get().claimants.is_empty() {
                probe.remove();
            }
        }
    }

    /// A phone joins `server_id`.
    pub(super) fn join(&mut self, server_id: &str, phone: ConnId) -> Result<SlotKey, JoinError> {
        let key = self.find(server_id).ok_or(JoinError::NoServer)?;
        let slot = self.slot_mut(key);
        if slot.phones.len() >= PHONES_PER_SERVER_MAX {
            return Err(JoinError::AtCap);
        }
        let mut phones = mem::take(&mut slot.phones).into_vec();
        phones.reserve_exact(1);
        phones.push(phone);
        slot.phones = phones.into_boxed_slice();
        self.phones += 1;
        Ok(key)
    }

    /// A phone has left.
    pub(super) fn part(&mut self, key: SlotKey, phone: ConnId) {
        let slot = self.slot_mut(key);
        let mut phones = mem::take(&mut slot.phones).into_vec();
        let before = phones.len();
        phones.retain(|registered| *registered != phone);
        let parted = before - phones.len();
        slot.phones = phones.into_boxed_slice();
        self.phones -= parted;
    }

    /// If the slot is in grace and that ends at or before `now`, gives the
    /// phones to close, after which the caller frees it. `Err`: when to ask
    /// again, or `None` if the slot is not in grace.
    pub(super) fn end_grace(
        &mut self,
        key: SlotKey,
        now: Instant,
    ) -> Result<Vec<ConnId>, Option<Instant>> {
        let slot = self.slot(key);
        match slot.holder {
            Holder::Grace(until) if !slot.server_id.is_empty() => {
                if until > now {
                    Err(Some(until))
                } else {
                    Ok(self.take_phones(key))
                }
            }
            _ => Err(None),
        }
    }

    /// Forgets a slot that nobody is on any more.
    pub(super) fn free(&mut self, key: SlotKey) {
        let slot = mem::take(self.slot_mut(key));
        debug_assert!(matches!(slot.holder, Holder::Grace(_)) && slot.phones.is_empty());
        let hash = self.hash.hash_one(&*slot.server_id);
        if let Ok(entry) = self.by_server_id.find_entry(hash, |index| *index == key.0) {
            entry.remove();
            self.free.push(key.0);
        }
    }

    /// Who holds the slot; `None` in grace.
    pub(super) fn holder(&self, key: SlotKey) -> Option<ConnId> {
        match self.slot(key).holder {
            Holder::Binary(holder) => Some(holder),
            Holder::Grace(_) => None,
        }
    }

    /// The phones on the slot.
    pub(super) fn phones(&self, key: SlotKey) -> &[ConnId] {
        &self.slot(key).phones
    }

    /// Whether phones of the slot are not read because its binary is slow.
    pub(super) fn is_paused(&self, key: SlotKey) -> bool {
        self.slot(key).paused
    }

    /// Notes whether phones of the slot are read; returns whether that is new.
    pub(super) fn pause(&mut self, key: SlotKey, paused: bool) -> bool {
        mem::replace(&mut self.slot_mut(key).paused, paused) != paused
    }

    /// Every slot, held or in grace.
    pub(super) fn keys(&self) -> Vec<SlotKey> {
        self.by_server_id.iter().map(|index| SlotKey(*index)).collect()
    }

    /// The slot's name.
    pub(super) fn server_id(&self, key: SlotKey) -> &str {
        &self.slot(key).server_id
    }

    /// Slots, held or in grace.
    pub(super) fn len(&self) -> usize {
        self.by_server_id.len()
    }

    /// Slots that are held.
    pub(super) fn binary_count(&self) -> usize {
        self.binaries
    }

    /// Phones on all slots.
    pub(super) fn phone_count(&self) -> usize {
        self.phones
    }

    fn find(&self, server_id: &str) -> Option<SlotKey> {
        let hash = self.hash.hash_one(server_id);
        let is_same = |index: &u32| *self.slots[*index as usize].server_id == *server_id;
        self.by_server_id.find(hash, is_same).map(|index| SlotKey(*index))
    }

    fn insert(&mut self, server_id: &str, holder: ConnId) -> SlotKey {
        let holder = Holder::Binary(holder);
        let slot = Slot { server_id: server_id.into(), holder, ..Slot::default() };
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        self.slots[index as usize] = slot;
        let (slots, hash) = (&self.slots, &self.hash);
        let rehash = |index: &u32| hash.hash_one(&*slots[*index as usize].server_id);
        self.by_server_id.insert_unique(hash.hash_one(server_id), index, rehash);
        SlotKey(index)
    }

    /// The first claimant, if any, becomes the holder.
    fn succeed(&mut self, key: SlotKey) -> Option<Succession> {
        let mut claimants = self.reject_claimants(key).into_iter();
        let holder = claimants.next()?;
        self.slot_mut(key).holder = Holder::Binary(holder);
        let phones = self.take_phones(key);
        Some(Succession { holder, rejected: claimants.collect(), phones })
    }

    fn take_phones(&mut self, key: SlotKey) -> Vec<ConnId> {
        let phones = mem::take(&mut self.slot_mut(key).phones);
        self.phones -= phones.len();
        phones.into_vec()
    }

    fn slot(&self, key: SlotKey) -> &Slot {
        &self.slots[key.0 as usize]
    }

    fn slot_mut(&mut self, key: SlotKey) -> &mut Slot {
        &mut self.slots[key.0 as usize]
    }
}

#[cfg(test)]
mod tests;
