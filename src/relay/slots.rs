//! Slots: which binary holds a server-id, which claimants wait for it, and which phones are
//! on it.
//!
//! Owns claims, grace, takeover and the order of a shut-down, with their timers. Does no IO
//! and closes nothing: each call returns, in a named outcome, the connections that its caller
//! has to close or open. Knows connections by their `ConnId` only.
//!
//! 1. A slot exists exactly while a binary holds it or its grace runs.
//! 2. A slot in grace is in the wheel of graces. As in every wheel, an entry is a candidate:
//!    the slot decides whether its grace is over.
//! 3. Claimants wait only on a slot that is held.
//! 4. A phone is on at most one slot; a slot has at most [`PHONES_PER_SERVER_MAX`] of
//!    them.
//! 5. A call for a connection that is no longer the holder changes nothing.
//! 6. In a shut-down no connection is admitted and no claimant waits, so no slot changes its
//!    holder and no slot key is reused.

pub(super) mod audit;
mod congestion;
mod outcome;
mod state;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::mem;
use std::time::Duration;

use chacha20::ChaCha12Rng;
use hashbrown::HashTable;
use rand::RngExt;

use self::congestion::Congestion;
pub(super) use self::outcome::{Claim, Due, JoinError, Release, Takeover};
use super::conn_id::ConnId;
use super::keyed_hash::HashKeys;
use crate::config::{BINARY_HIGH_WATER, Config, INITIAL_CAPACITY, PHONES_PER_SERVER_MAX, Timeouts};
use crate::time::{Instant, Wheel};

/// Index of a slot; meaningful while the slot exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SlotKey(u32);

impl SlotKey {
    /// The last one of all.
    pub(super) const MAX: Self = Self(u32::MAX);

    /// As a number.
    pub(super) const fn to_bits(self) -> u32 {
        self.0
    }

    /// The inverse of [`Self::to_bits`].
    pub(super) const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    #[cfg(test)]
    pub(super) const fn for_test(index: u32) -> Self {
        Self(index)
    }

    #[cfg(test)]
    pub(super) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Memory of a slot in grace beside its server-id: the slot, its entries in tables and timers,
/// and its record as a holding, rounded up. 100,000 of them with ids of 128 bytes took 255
/// bytes each, before they were recorded as holdings.
const GRACE_BYTES: usize = 256;

/// Every slot.
#[derive(Debug)]
pub(super) struct Slots {
    /// Slot indices by server-id; the id itself is stored once, in the slot.
    by_server_id: HashTable<u32>,
    hash: HashKeys,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Outstanding probes by slot index: too few at a time to reserve memory for one in each
    /// slot.
    probes: HashMap<u32, Probe, HashKeys>,
    /// Slots whose binary has been a slow consumer since its queue was last empty, by index.
    congested: HashMap<u32, Congestion, HashKeys>,
    /// Claimants that were refused and do not know yet.
    rejected: VecDeque<ConnId>,
    /// Slots that are held.
    binaries: usize,
    phones: usize,
    /// Ends of grace, by slot index.
    graces: Wheel,
    /// When the next members of a slot are closed for the shut-down, by slot index; `None`:
    /// there is no shut-down.
    drain: Option<Wheel>,
    /// The time over which a shut-down spreads the closes of binaries.
    drain_time: Duration,
    timeouts: Timeouts,
}

#[derive(Debug, Default)]
struct Slot {
    server_id: Box<str>,
    holder: Holder,
    /// Exactly sized: the first three fit malloc's smallest chunk.
    phones: Box<[ConnId]>,
    /// It is in [`Slots::congested`].
    is_congested: bool,
}

#[derive(Clone, Copy, Debug)]
enum Holder {
    Binary(ConnId),
    /// It has disconnected, and the slot is kept for it until this instant.
    Grace(Instant),
}

impl Default for Holder {
    fn default() -> Self {
        Self::Grace(Instant::START)
    }
}

/// The claimants that wait for the result of a probe of the holder.
#[derive(Debug)]
struct Probe {
    /// In order of arrival.
    claimants: Vec<ConnId>,
    began: Instant,
    /// When its ping left the holder's outbox.
    sent: Option<Instant>,
}

impl Probe {
    /// When it times out if its ping has left by `now`, or leaves now.
    fn until(&self, now: Instant, timeouts: &Timeouts) -> Instant {
        let answer_due = self.sent.unwrap_or(now) + timeouts.probe;
        answer_due.min(self.began + timeouts.probe_max)
    }
}

/// The memory of an idle binary here, beside its server-id and its phones.
const _: () = assert!(size_of::<Slot>() <= 56);

impl Slots {
    pub(super) fn new(config: &Config, hash: HashKeys, now: Instant) -> Self {
        Self {
            by_server_id: HashTable::new(),
            probes: HashMap::with_hasher(hash),
            congested: HashMap::with_hasher(hash),
            rejected: VecDeque::new(),
            hash,
            slots: Vec::with_capacity(INITIAL_CAPACITY),
            free: Vec::new(),
            binaries: 0,
            phones: 0,
            graces: Wheel::with_capacity(INITIAL_CAPACITY, now),
            drain: None,
            drain_time: config.drain,
            timeouts: config.timeouts.clone(),
        }
    }

    /// A binary claims `server_id`.
    pub(super) fn claim(&mut self, server_id: &str, binary: ConnId, now: Instant) -> Claim {
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
        let unprobed = || Probe { claimants: Vec::new(), began: now, sent: None };
        let probe = self.probes.entry(key.0).or_insert_with(unprobed);
        let is_first = probe.claimants.is_empty();
        probe.claimants.push(binary);
        let until = probe.until(now, &self.timeouts);
        Claim::Waits { slot: key, holder, until, is_first }
    }

    /// A binary has ended. If it held the slot, the first claimant takes the slot over, or
    /// else the slot is in grace from now on.
    pub(super) fn release(&mut self, key: SlotKey, binary: ConnId, now: Instant) -> Release {
        if self.holder(key) != Some(binary) {
            return Release::NotHolder;
        }
        if let Some(takeover) = self.hand_on(key) {
            return Release::TakenOver(takeover);
        }
        let until = now + self.timeouts.grace;
        self.slot_mut(key).holder = Holder::Grace(until);
        self.binaries -= 1;
        self.graces.arm(key.0, until);
        Release::Grace { resumed: self.relieve(key) }
    }

    /// If a probe of the holder has timed out by `now`, the first claimant takes the slot
    /// over.
    pub(super) fn take_over(&mut self, key: SlotKey, now: Instant) -> Option<Takeover> {
        if self.probe_end(key, now).is_none_or(|until| now < until) {
            return None;
        }
        self.hand_on(key)
    }

    /// When the probe of the holder times out at the earliest; `None`: there is no probe.
    pub(super) fn probe_end(&self, key: SlotKey, now: Instant) -> Option<Instant> {
        self.probes.get(&key.0).map(|probe| probe.until(now, &self.timeouts))
    }

    /// The ping of a probe has left `binary`'s outbox.
    pub(super) fn on_probe_sent(&mut self, key: SlotKey, binary: ConnId, now: Instant) {
        if self.holder(key) == Some(binary)
            && let Some(probe) = self.probes.get_mut(&key.0)
        {
            probe.sent.get_or_insert(now);
        }
    }

    /// The holder answered the probe: its claimants are refused.
    pub(super) fn reject_claimants(&mut self, key: SlotKey) {
        let claimants = self.take_claimants(key);
        self.rejected.extend(claimants);
    }

    /// The next claimant to close because it was refused.
    pub(super) fn pop_rejected(&mut self) -> Option<ConnId> {
        self.rejected.pop_front()
    }

    fn take_claimants(&mut self, key: SlotKey) -> Vec<ConnId> {
        self.probes.remove(&key.0).map(|probe| probe.claimants).unwrap_or_default()
    }

    /// A claimant does not wait any longer.
    pub(super) fn remove_claimant(&mut self, key: SlotKey, claimant: ConnId) {
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
        if let Some(congestion) = self.congested.get_mut(&key.0) {
            congestion.add(phone);
        }
        Ok(key)
    }

    /// A phone has ended.
    pub(super) fn remove_phone(&mut self, key: SlotKey, phone: ConnId) {
        let slot = self.slot_mut(key);
        let mut phones = mem::take(&mut slot.phones).into_vec();
        let before = phones.len();
        phones.retain(|registered| *registered != phone);
        let removed = before - phones.len();
        slot.phones = phones.into_boxed_slice();
        self.phones -= removed;
        if let Some(congestion) = self.congested.get_mut(&key.0) {
            congestion.remove(phone);
        }
    }

    // Backpressure

    /// A phone has delivered `len` bytes to its binary, whose queue is `backlog` now. Returns
    /// whether the phone has to be paused.
    pub(super) fn on_delivered(
        &mut self,
        key: SlotKey,
        phone: ConnId,
        len: usize,
        backlog: usize,
    ) -> bool {
        let slot = self.slot_mut(key);
        if !slot.is_congested && backlog <= BINARY_HIGH_WATER {
            return false;
        }
        slot.is_congested = true;
        let phones = &self.slots[key.0 as usize].phones;
        let congestion = self.congested.entry(key.0).or_insert_with(|| Congestion::new(phones));
        congestion.on_delivered(phone, len, backlog)
    }

    /// The queue of the slot's binary has shrunk to `backlog`. Returns the phones to resume,
    /// in order.
    pub(super) fn on_drained(&mut self, key: SlotKey, backlog: usize) -> Vec<ConnId> {
        if !self.slot(key).is_congested {
            return Vec::new();
        }
        let congestion = self.congested.get_mut(&key.0);
        let resumed = congestion.map(|congestion| congestion.on_drained(backlog));
        if backlog == 0 {
            self.relieve(key);
        }
        resumed.unwrap_or_default()
    }

    /// Ends the congestion of a slot; returns the phones that it paused.
    fn relieve(&mut self, key: SlotKey) -> Vec<ConnId> {
        self.slot_mut(key).is_congested = false;
        let congestion = self.congested.remove(&key.0);
        congestion.map(|congestion| congestion.paused().collect()).unwrap_or_default()
    }

    // Time

    /// When [`Self::pop_due`] has to be called next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        if !self.rejected.is_empty() {
            return Some(Instant::START);
        }
        let drain = self.drain.as_ref().and_then(Wheel::next_expiry);
        self.graces.next_expiry().into_iter().chain(drain).min()
    }

    /// What is due by `now`, one slot per call. Call until `None`.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Due> {
        if let Some(key) = self.drain.as_mut().and_then(|drain| drain.pop_expired(now)) {
            return Some(Due::ShutDown(self.shut_down(SlotKey(key), now)));
        }
        while let Some(key) = self.graces.pop_expired(now).map(SlotKey) {
            let Holder::Grace(until) = self.slot(key).holder else { continue };
            // The entry is of an earlier grace, or the slot is free by now.
            if self.slot(key).server_id.is_empty() {
                continue;
            }
            if until <= now {
                return Some(Due::GraceOver(key, self.take_phones(key)));
            }
            self.graces.arm(key.0, until);
        }
        None
    }

    /// Begins a shut-down: binaries are closed at random times within the drain time, their
    /// phones [`Timeouts::phones_after`] later, so that the phones find the binary at another
    /// relay. Returns the connections to close at once.
    pub(super) fn start_drain(&mut self, rng: &mut ChaCha12Rng, now: Instant) -> Vec<ConnId> {
        self.drain = Some(Wheel::new(now));
        // Both in the order of slots: that of a table is not the same after a hand-over.
        let mut probes: Vec<(u32, Probe)> = self.probes.drain().collect();
        probes.sort_unstable_by_key(|(slot, _)| *slot);
        let mut told: Vec<ConnId> =
            probes.into_iter().flat_map(|(_, probe)| probe.claimants).collect();
        for key in (0..self.slots.len() as u32).map(SlotKey) {
            if self.slot(key).server_id.is_empty() {
                continue;
            }
            let offset = rng.random_range(0..=self.drain_time.as_micros() as u64);
            let at = now + Duration::from_micros(offset);
            if self.holder(key).is_none() {
                self.tell_at(key, at + self.timeouts.phones_after);
            } else if self.drain_time.is_zero() {
                told.append(&mut self.shut_down(key, now));
            } else {
                self.tell_at(key, at);
            }
        }
        told
    }

    /// Whether a shut-down has begun.
    pub(super) fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    /// The connections of the slot to close now for the shut-down: its binary, or if that has
    /// disconnected, its phones.
    fn shut_down(&mut self, key: SlotKey, now: Instant) -> Vec<ConnId> {
        let Some(binary) = self.holder(key) else { return self.phones(key).to_vec() };
        self.tell_at(key, now + self.timeouts.phones_after);
        vec![binary]
    }

    fn tell_at(&mut self, key: SlotKey, at: Instant) {
        if let Some(drain) = &mut self.drain {
            drain.arm(key.0, at);
        }
    }

    /// Removes a slot whose grace is over and whose phones are closed.
    pub(super) fn free(&mut self, key: SlotKey) {
        let slot = mem::take(self.slot_mut(key));
        debug_assert!(matches!(slot.holder, Holder::Grace(_)) && slot.phones.is_empty());
        let hash = self.hash.hash_one(&*slot.server_id);
        if let Ok(entry) = self.by_server_id.find_entry(hash, |index| *index == key.0) {
            entry.remove();
            self.free.push(key.0);
        }
    }

    /// The binary that holds the slot; `None` in grace.
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

    /// Bytes of memory that the slot holds in grace.
    pub(super) fn grace_bytes(&self, key: SlotKey) -> usize {
        GRACE_BYTES + self.slot(key).server_id.len()
    }

    /// Ends the grace of a slot. Returns its phones; the slot has to be [freed](Self::free)
    /// when they are closed.
    pub(super) fn end_grace(&mut self, key: SlotKey) -> Vec<ConnId> {
        debug_assert!(self.holder(key).is_none());
        self.take_phones(key)
    }

    /// The slot's server-id.
    pub(super) fn server_id(&self, key: SlotKey) -> &str {
        &self.slot(key).server_id
    }

    /// Number of slots, held or in grace.
    pub(super) fn len(&self) -> usize {
        self.by_server_id.len()
    }

    /// Number of slots that are held.
    pub(super) fn binary_count(&self) -> usize {
        self.binaries
    }

    /// Number of phones on all slots.
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
    fn hand_on(&mut self, key: SlotKey) -> Option<Takeover> {
        let mut claimants = self.take_claimants(key).into_iter();
        let holder = claimants.next()?;
        self.rejected.extend(claimants);
        self.slot_mut(key).holder = Holder::Binary(holder);
        Some(Takeover { holder, phones: self.take_phones(key) })
    }

    fn take_phones(&mut self, key: SlotKey) -> Vec<ConnId> {
        self.relieve(key);
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
