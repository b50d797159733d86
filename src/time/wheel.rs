//! Timer wheel: which key is due when, each operation O(1).
//!
//! Owns one deadline per key. Must not know what a key stands for, nor a clock: `now` is
//! handed in and never runs backwards (an earlier `now` counts as the latest one seen).
//!
//! One level of 1024 slots, one tick each; a slot is a ring of nodes linked by index. The
//! heads of the rings are the first nodes of the same vector, so linking and unlinking have
//! no special cases, and arming allocates only when a key is larger than every key before it.
//!
//! 1. A key fires at the first tick boundary not before its deadline: never
//!    before `at`, always in a call with `now` ≥ `at` + [`TICK`].
//! 2. Two kinds of deadlines have no slot of their own and are moved. A deadline beyond
//!    [`Wheel::HORIZON`] fires early, at the horizon: an entry of the wheel is a candidate,
//!    and the caller checks whether its time has come. A deadline that has passed fires at
//!    the next tick boundary, so arming between two pops never prolongs the round.
//! 3. Keys fire in the order of their ticks, keys of one tick in the order in which they were
//!    armed, so a run replays.
//! 4. A bit of `occupied` is set ⇔ the ring of its slot is not empty.

use std::time::Duration;

use super::Instant;

/// 2^16 µs, so that the tick of an instant is a shift, and timers fire within the 100 ms by
/// which the relay may be late.
const TICK_MICROS: u64 = 1 << 16;
/// Slots of one revolution, 67.1 s: longer than every timeout of the relay.
const SLOTS: u32 = 1024;
const WORDS: usize = SLOTS as usize / 64;
/// Head of the ring of keys that are due and not yet popped.
const DUE: u32 = SLOTS;
/// The node of key 0.
const FIRST_KEY: u32 = DUE + 1;

/// The wheel's resolution, 65.536 ms.
pub const TICK: Duration = Duration::from_micros(TICK_MICROS);

/// A link in a ring. A node linked to itself is an unarmed key or an empty ring.
#[derive(Clone, Copy, Debug)]
struct Node {
    prev: u32,
    next: u32,
    /// The lower bits of the tick at which an armed key fires.
    tick: u32,
}

/// Deadlines of dense keys (slab indices). Memory: 12 bytes for each key up to the largest
/// ever armed, and 12 KiB.
#[derive(Debug)]
pub struct Wheel {
    nodes: Vec<Node>,
    occupied: [u64; WORDS],
    /// The last tick boundary reached. Slots hold the ticks
    /// `now + 1 ..= now + SLOTS`, one each.
    now: u64,
    len: usize,
}

impl Wheel {
    /// Deadlines up to this far ahead fire on time, later ones early, at the horizon.
    pub const HORIZON: Duration = Duration::from_micros((SLOTS as u64 - 1) * TICK_MICROS);

    /// An empty wheel at `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self::with_capacity(0, now)
    }

    /// An empty wheel with memory for `keys` keys.
    #[must_use]
    pub fn with_capacity(keys: usize, now: Instant) -> Self {
        let mut nodes = Vec::with_capacity(FIRST_KEY as usize + keys);
        nodes.extend((0..FIRST_KEY).map(Node::alone));
        Self { nodes, occupied: [0; WORDS], now: now.as_micros() / TICK_MICROS, len: 0 }
    }

    /// Arms `key` to fire at `at`; a key that is armed already moves.
    ///
    /// "Passed" and "beyond the horizon" refer to the latest instant that the wheel has been
    /// told ([`advance`](Self::advance)). Keys are at most `u32::MAX` − 1025; memory grows
    /// with the largest.
    pub fn arm(&mut self, key: u32, at: Instant) {
        self.disarm(key);
        let boundary = at.as_micros().div_ceil(TICK_MICROS);
        let tick = boundary.clamp(self.now + 1, self.now + u64::from(SLOTS));
        let slot = (tick % u64::from(SLOTS)) as u32;
        self.link(key, slot, tick);
        self.occupied[slot as usize / 64] |= 1 << (slot % 64);
    }

    /// Arms `key` to fire at `at`, unless it is armed and fires a tick later at most, or at the
    /// next one.
    pub fn arm_by(&mut self, key: u32, at: Instant) {
        let latest = (at + TICK).max(instant(self.now + 1));
        if self.armed(key).is_none_or(|armed| armed > latest) {
            self.arm(key, at);
        }
    }

    /// Disarms `key`; nothing happens if it is not armed.
    pub fn disarm(&mut self, key: u32) {
        if self.is_armed(key) {
            self.unlink(FIRST_KEY + key);
        }
    }

    /// The instant at which `key` will fire, so that a caller may leave it armed
    /// when its deadline has only moved back. For a key that is due and not yet
    /// popped, an instant that has been reached.
    #[must_use]
    pub fn armed(&self, key: u32) -> Option<Instant> {
        if !self.is_armed(key) {
            return None;
        }
        let tick = self.nodes[(FIRST_KEY + key) as usize].tick;
        // A due key's tick lies behind `now`, which wraps to far ahead in 32 bits, unless the
        // key was left unpopped for 8.9 years.
        let ahead = tick.wrapping_sub(self.now as u32);
        Some(instant(self.now + u64::from(if ahead <= SLOTS { ahead } else { 0 })))
    }

    /// The earliest instant at which a key fires: [`pop_expired`](Self::pop_expired) at it
    /// yields a key. `None` if no key is armed. Reads at most 17 words.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Instant> {
        if self.nodes[DUE as usize].next != DUE {
            return Some(instant(self.now));
        }
        self.first_occupied().map(|ahead| instant(self.now + ahead))
    }

    /// A key that is due, disarmed. Call until `None`; keys may be armed and disarmed in
    /// between.
    pub fn pop_expired(&mut self, now: Instant) -> Option<u32> {
        self.advance(now);
        let first = self.nodes[DUE as usize].next;
        if first == DUE {
            return None;
        }
        self.unlink(first);
        Some(first - FIRST_KEY)
    }

    /// Advances the wheel to `now` without popping, so that deadlines armed next are compared
    /// with `now`. A jump of any size costs at most one revolution of work, a step within a
    /// tick none.
    pub fn advance(&mut self, now: Instant) {
        let tick = now.as_micros() / TICK_MICROS;
        if tick <= self.now {
            return;
        }
        // Expired slots are emptied as a whole, popped or not: after a jump the same slots
        // are needed for the ticks ahead of `now`.
        while let Some(ahead) = self.first_occupied().filter(|ahead| self.now + ahead <= tick) {
            self.splice_due(((self.now + ahead) % u64::from(SLOTS)) as u32);
        }
        self.now = tick;
    }

    /// The last tick boundary reached.
    #[must_use]
    pub fn reached(&self) -> Instant {
        instant(self.now)
    }

    /// Keys that are armed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no key is armed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn is_armed(&self, key: u32) -> bool {
        let node = FIRST_KEY + key;
        self.nodes.get(node as usize).is_some_and(|it| it.next != node)
    }

    /// Adds a key that is not armed to the end of a ring.
    fn link(&mut self, key: u32, ring: u32, tick: u64) {
        let node = FIRST_KEY + key;
        let known = self.nodes.len() as u32;
        self.nodes.extend((known..=node).map(Node::alone));
        let last = self.nodes[ring as usize].prev;
        self.nodes[node as usize] = Node { prev: last, next: ring, tick: tick as u32 };
        self.nodes[last as usize].next = node;
        self.nodes[ring as usize].prev = node;
        self.len += 1;
    }

    fn unlink(&mut self, node: u32) {
        let Node { prev, next, .. } = self.nodes[node as usize];
        self.nodes[prev as usize].next = next;
        self.nodes[next as usize].prev = prev;
        self.nodes[node as usize] = Node::alone(node);
        self.len -= 1;
        // Only the head of a ring that is now empty is both neighbours of the removed key.
        if prev == next && prev < SLOTS {
            self.occupied[prev as usize / 64] &= !(1 << (prev % 64));
        }
    }

    /// Moves the ring of an occupied slot to the end of the due ring.
    fn splice_due(&mut self, slot: u32) {
        let Node { prev: last, next: first, .. } = self.nodes[slot as usize];
        let before = self.nodes[DUE as usize].prev;
        self.nodes[before as usize].next = first;
        self.nodes[first as usize].prev = before;
        self.nodes[last as usize].next = DUE;
        self.nodes[DUE as usize].prev = last;
        self.nodes[slot as usize] = Node::alone(slot);
        self.occupied[slot as usize / 64] &= !(1 << (slot % 64));
    }

    /// Ticks from `now` to the first slot with a key in it, 1 to [`SLOTS`].
    fn first_occupied(&self) -> Option<u64> {
        let start = ((self.now + 1) % u64::from(SLOTS)) as usize;
        // The first word is read twice: from `start` up, and, one revolution later, whole,
        // when only bits below `start` can be set.
        let mut from_start = u64::MAX << (start % 64);
        for step in 0..=WORDS {
            let word = (start / 64 + step) % WORDS;
            let bits = self.occupied[word] & from_start;
            if bits != 0 {
                let slot = word * 64 + bits.trailing_zeros() as usize;
                return Some(1 + (slot.wrapping_sub(start) % SLOTS as usize) as u64);
            }
            from_start = u64::MAX;
        }
        None
    }
}

impl Node {
    const fn alone(index: u32) -> Self {
        Self { prev: index, next: index, tick: 0 }
    }
}

const fn instant(tick: u64) -> Instant {
    Instant::from_micros(tick.saturating_mul(TICK_MICROS))
}

mod state;
#[cfg(test)]
mod tests;
