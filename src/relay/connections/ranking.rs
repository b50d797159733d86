//! Ranking: the keys that hold the most bytes, found without a scan of all keys.
//!
//! Owns one bucket of keys for each size class, four classes to an octave, so that the
//! keys of the highest bucket differ by 25 % at most. A change costs O(1): the key moves
//! from one bucket to another, and the last key of the first bucket takes its place there.
//! Must not know what a key stands for.
//!
//! 1. A key is in a bucket ⇔ it holds a byte, and in the bucket of that size.
//! 2. The caller stores each key's place (its index in its bucket), which takes 4 bytes there
//!    and none here; it is told when another key's place changes.
//! 3. A bit of `occupied` is set ⇔ that bucket is not empty.

use std::mem;

/// Number of buckets. They reach 8 GiB; larger sizes are in the last one.
const BUCKETS: usize = 128;
/// A bucket with a larger capacity shrinks when three quarters of it are unused.
const CAPACITY_KEPT: usize = 256;

/// Keys by the bytes that they hold.
#[derive(Debug)]
pub(super) struct Ranking {
    buckets: [Vec<u32>; BUCKETS],
    occupied: u128,
}

impl Default for Ranking {
    fn default() -> Self {
        Self { buckets: [const { Vec::new() }; BUCKETS], occupied: 0 }
    }
}

impl Ranking {
    /// `key`, whose place is `place`, held `old` bytes and holds `new`. Returns another key
    /// whose place has changed, with its new place.
    pub(super) fn change(
        &mut self,
        key: u32,
        old: usize,
        new: usize,
        place: &mut u32,
    ) -> Option<(u32, u32)> {
        let (from, to) = (bucket(old), bucket(new));
        if from == to {
            return None;
        }
        let left = mem::replace(place, if to > 0 { self.push(to, key) } else { 0 });
        if from > 0 { self.take_out(from, left) } else { None }
    }

    /// The keys of the highest bucket; none if no key holds a byte.
    pub(super) fn highest(&self) -> &[u32] {
        let highest = self.occupied.checked_ilog2();
        highest.map_or(&[], |highest| &self.buckets[highest as usize])
    }

    /// Whether `key`, which holds `bytes`, is at `place`.
    pub(super) fn has(&self, key: u32, bytes: usize, place: u32) -> bool {
        self.buckets[bucket(bytes)].get(place as usize) == Some(&key)
    }

    /// Number of keys that hold a byte.
    pub(super) fn len(&self) -> usize {
        self.buckets.iter().map(Vec::len).sum()
    }

    fn push(&mut self, bucket: usize, key: u32) -> u32 {
        self.occupied |= 1 << bucket;
        self.buckets[bucket].push(key);
        (self.buckets[bucket].len() - 1) as u32
    }

    fn take_out(&mut self, bucket: usize, place: u32) -> Option<(u32, u32)> {
        let keys = &mut self.buckets[bucket];
        keys.swap_remove(place as usize);
        let moved = keys.get(place as usize).map(|key| (*key, place));
        if keys.is_empty() {
            self.occupied &= !(1 << bucket);
        }
        if keys.capacity() > CAPACITY_KEPT && keys.len() <= keys.capacity() / 4 {
            keys.shrink_to(keys.capacity() / 2);
        }
        moved
    }
}

/// The bucket for `bytes`: 0 for none, and four to an octave.
pub(super) fn bucket(bytes: usize) -> usize {
    if bytes < 4 {
        return bytes;
    }
    let octave = bytes.ilog2() as usize;
    let quarter = bytes >> (octave - 2) & 3;
    (4 * (octave - 1) + quarter).min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    #[test]
    fn a_bucket_spans_a_quarter_at_most_and_buckets_are_in_order() {
        let mut last = 0;
        for bytes in 1..100_000_usize {
            let this = bucket(bytes);
            assert!(this == last || this == last + 1, "{bytes}");
            last = this;
        }
        for bytes in [4_usize, 1_000, 16 * 1024, 256 * 1024, 1 << 30] {
            assert_ne!(bucket(bytes), bucket(bytes + bytes / 4 + 1), "{bytes}");
        }
        assert_eq!((bucket(0), bucket(usize::MAX)), (0, BUCKETS - 1));
    }

    /// Random changes, compared with a list of the bytes that each key holds.
    #[test]
    fn random_changes_agree_with_a_list() {
        let seed = 0xBEEF;
        let mut rng = StdRng::seed_from_u64(seed);
        let mut ranking = Ranking::default();
        let mut held = [0_usize; 40];
        let mut places = [0_u32; 40];
        for step in 0..20_000 {
            let key = rng.random_range(0..held.len());
            let new = if rng.random_bool(0.4) { 0 } else { 1 << rng.random_range(0..20) };
            let mut place = places[key];
            let moved = ranking.change(key as u32, held[key], new, &mut place);
            (held[key], places[key]) = (new, place);
            if let Some((moved, place)) = moved {
                places[moved as usize] = place;
            }
            let context = format!("seed {seed}, step {step}");
            let most = held.iter().max().copied().unwrap_or_default();
            let count = held.iter().filter(|bytes| **bytes > 0 && bucket(**bytes) == bucket(most));
            assert_eq!(ranking.highest().len(), count.count(), "{context}");
            let is_highest = |key: &u32| bucket(held[*key as usize]) == bucket(most);
            assert!(ranking.highest().iter().all(is_highest), "{context}");
            assert_eq!(ranking.len(), held.iter().filter(|bytes| **bytes > 0).count());
            for (key, bytes) in held.iter().enumerate().filter(|(_, bytes)| **bytes > 0) {
                assert!(ranking.has(key as u32, *bytes, places[key]), "{context}, key {key}");
            }
        }
    }

    #[test]
    fn a_bucket_that_was_large_shrinks() {
        let mut ranking = Ranking::default();
        let mut places = vec![0; 10_000];
        for key in 0..10_000 {
            ranking.change(key, 0, 1_000, &mut places[key as usize]);
        }
        for key in 0..10_000 {
            let mut place = places[key as usize];
            if let Some((moved, place)) = ranking.change(key, 1_000, 0, &mut place) {
                places[moved as usize] = place;
            }
        }
        let capacity: usize = ranking.buckets.iter().map(Vec::capacity).sum();
        assert!(capacity <= CAPACITY_KEPT, "{capacity}");
    }
}
