//! Keyed hash: for tables whose keys peers choose.
//!
//! Peers choose server-ids and, with enough addresses, client keys; a peer that can predict
//! the hash can make all keys collide and each look-up a scan of the table. std's
//! `RandomState` is keyed too, but seeds itself, which the core may not do: here the keys
//! come from the run's seed, so a run replays.

use std::fmt;
use std::hash::BuildHasher;

use siphasher::sip::SipHasher13;

/// Builds SipHash-1-3 hashers (std's choice as well) from a fixed pair of keys.
#[derive(Clone, Copy)]
pub(super) struct HashKeys([u64; 2]);

impl HashKeys {
    /// `keys` must be unpredictable to peers.
    #[must_use]
    pub(super) const fn new(keys: [u64; 2]) -> Self {
        Self(keys)
    }

    /// The keys, which are secret.
    pub(super) const fn reveal(self) -> [u64; 2] {
        self.0
    }
}

impl BuildHasher for HashKeys {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0[0], self.0[1])
    }
}

/// The keys are secret and not printed.
impl fmt::Debug for HashKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKeys(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_depends_on_both_keys_and_nothing_else() {
        let hash = |keys| HashKeys::new(keys).hash_one("server-id");
        assert_eq!(hash([1, 2]), hash([1, 2]));
        assert_ne!(hash([1, 2]), hash([2, 2]));
        assert_ne!(hash([1, 2]), hash([1, 1]));
    }

    #[test]
    fn the_keys_are_not_shown() {
        assert_eq!(format!("{:?}", HashKeys::new([12345, 67890])), "HashKeys(..)");
    }
}
