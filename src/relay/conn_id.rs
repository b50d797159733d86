//! ConnId: the name of one connection.
//!
//! Owns the packing of slab index and generation, and the conn_ids made of them. Names are
//! unique within a process, so stale readiness, stale timers and stale envelopes are detected
//! by comparison.

use std::fmt;
use std::hash::BuildHasher;

use data_encoding::HEXLOWER;

use super::keyed_hash::HashKeys;

/// Slab index in the low 22 bits, generation above; fits a mio token.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnId(u64);

impl ConnId {
    const INDEX_BITS: u32 = 22;
    /// The largest index: 4 million connections, four times what `fs.nr_open` allows a process
    /// by default.
    pub const INDEX_MAX: u32 = (1 << Self::INDEX_BITS) - 1;

    /// The connection at `index`, at most [`Self::INDEX_MAX`], that is the `generation`th of
    /// this process. 42 bits count 10,000 connections a second for 13 years.
    #[must_use]
    pub const fn new(index: u32, generation: u64) -> Self {
        debug_assert!(index <= Self::INDEX_MAX);
        Self(generation << Self::INDEX_BITS | index as u64)
    }

    /// Its index in the slab.
    #[must_use]
    pub const fn index(self) -> usize {
        (self.0 & Self::INDEX_MAX as u64) as usize
    }

    /// The number of connections accepted before it.
    #[must_use]
    pub const fn age(self) -> u64 {
        self.0 >> Self::INDEX_BITS
    }

    /// The low half of its generation. It tells the connection from others at the same index
    /// that were accepted in the same days.
    #[must_use]
    pub const fn generation(self) -> u32 {
        self.age() as u32
    }

    /// As one number, for a poll token.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// The inverse of [`Self::to_bits`].
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

impl fmt::Debug for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}v{}", self.index(), self.age())
    }
}

/// The conn_id that peers and log lines see: 32 hex digits. The first half is unguessable,
/// both together are unique, and neither shows how many connections there were or are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicId {
    /// Unpredictable to peers that have not been told it; also the key of the connection's
    /// pings.
    pub key: u64,
    /// The connection's bits, masked.
    masked: u64,
    /// The connection.
    pub id: ConnId,
}

impl PublicId {
    /// Length of the text form, in characters.
    pub const LEN: usize = 32;

    /// The text form, in `memory`. Each forwarded frame carries it: formatting takes longer.
    pub fn encode(self, memory: &mut [u8; Self::LEN]) -> &str {
        let bits = u128::from(self.key) << 64 | u128::from(self.masked);
        HEXLOWER.encode_mut_str(&bits.to_be_bytes(), memory)
    }
}

/// Makes conn_ids, and finds their connections.
#[derive(Debug)]
pub(super) struct PublicIds(HashKeys);

impl PublicIds {
    /// `keys` must be unpredictable to peers.
    pub(super) fn new(keys: HashKeys) -> Self {
        Self(keys)
    }

    /// The keys, which are secret.
    pub(super) const fn reveal(&self) -> [u64; 2] {
        self.0.reveal()
    }

    /// The conn_id of a connection. It is not stored but derived by two SipHashes under keys
    /// that are never disclosed.
    pub(super) fn of(&self, id: ConnId) -> PublicId {
        let key = self.0.hash_one(id.to_bits());
        PublicId { key, masked: id.to_bits() ^ self.mask(key), id }
    }

    /// The connection with this conn_id, if it was given to one.
    pub(super) fn find(&self, text: &str) -> Option<ConnId> {
        if text.len() != PublicId::LEN {
            return None;
        }
        let mut bits = [0; PublicId::LEN / 2];
        HEXLOWER.decode_mut(text.as_bytes(), &mut bits).ok()?;
        let bits = u128::from_be_bytes(bits);
        let (key, masked) = ((bits >> 64) as u64, bits as u64);
        let id = ConnId(masked ^ self.mask(key));
        (self.0.hash_one(id.to_bits()) == key).then_some(id)
    }

    /// A number for each key, independent of [`Self::of`]: the inputs differ in length.
    fn mask(&self, key: u64) -> u64 {
        self.0.hash_one((key, 0_u8))
    }
}

impl fmt::Display for PublicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.encode(&mut [0; Self::LEN]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public_ids() -> PublicIds {
        PublicIds::new(HashKeys::new([1, 2]))
    }

    #[test]
    fn index_and_generation_are_recovered() {
        let generation = (1 << 42) - 2;
        let id = ConnId::new(ConnId::INDEX_MAX - 1, generation);
        assert_eq!((id.index(), id.age()), (ConnId::INDEX_MAX as usize - 1, generation));
        assert_eq!(id.generation(), u32::MAX - 1);
        assert_eq!(ConnId::from_bits(id.to_bits()), id);
    }

    #[test]
    fn a_public_id_is_found_and_the_parser_is_strict() {
        let id = ConnId::new(3, 9);
        let text = public_ids().of(id).to_string();
        assert_eq!(text.len(), PublicId::LEN);
        assert_eq!(public_ids().find(&text), Some(id));
        let signed = format!("+{}", &text[1..]);
        let accented = format!("é{}", &text[2..]);
        for bad in
            ["", "+1", &text[1..], &text.to_uppercase(), &format!("{text}0"), &signed, &accented]
        {
            assert_eq!(public_ids().find(bad), None, "{bad}");
        }
        for at in 0..PublicId::LEN {
            let other = if &text[at..=at] == "0" { "1" } else { "0" };
            let changed = format!("{}{other}{}", &text[..at], &text[at + 1..]);
            assert_eq!(public_ids().find(&changed), None, "{changed}");
        }
    }

    /// Neither half counts, nor do their differences.
    #[test]
    fn a_public_id_shows_neither_counter_nor_index() {
        let halves = |id| {
            let text = public_ids().of(id).to_string();
            let half = |digits| u64::from_str_radix(digits, 16).expect("hex digits");
            [half(&text[..16]), half(&text[16..])]
        };
        for place in 0..2 {
            let values: Vec<u64> = (0..1_000).map(|n| halves(ConnId::new(5, n))[place]).collect();
            for two in values.windows(2) {
                let differing = (two[0] ^ two[1]).count_ones();
                assert!((8..=56).contains(&differing), "{differing} bits differ");
            }
        }
    }
}
