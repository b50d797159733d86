//! ConnId: the name of one connection.
//!
//! Owns the packing of slab index and generation. Names are unique within a process, so stale
//! readiness, stale timers and stale envelopes are detected by comparison.

use std::fmt;

/// Slab index in the low half, generation in the high half; fits a mio token.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnId(u64);

impl ConnId {
    /// The connection at `index` that is the `generation`th of this process.
    #[must_use]
    pub const fn new(index: u32, generation: u32) -> Self {
        Self((generation as u64) << 32 | index as u64)
    }

    /// Its index in the slab.
    #[must_use]
    pub const fn index(self) -> usize {
        (self.0 & 0xffff_ffff) as usize
    }

    /// Its generation, which tells it from other connections at the same index.
    #[must_use]
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
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
        write!(f, "{}v{}", self.index(), self.generation())
    }
}

/// The conn_id that peers and log lines see: 32 hex digits, made of 64 secret bits and the
/// [`ConnId`]. The second half makes it unique, the first unguessable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicId {
    /// Unpredictable to peers that have not been told it; also the key of the connection's
    /// pings.
    pub key: u64,
    /// The connection.
    pub id: ConnId,
}

impl PublicId {
    /// Length of the text form, in characters.
    pub const LEN: usize = 32;

    /// Parses the text form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != Self::LEN || !text.bytes().all(is_digit) {
            return None;
        }
        let (key, id) = text.split_at(Self::LEN / 2);
        Some(Self {
            key: u64::from_str_radix(key, 16).ok()?,
            id: ConnId(u64::from_str_radix(id, 16).ok()?),
        })
    }
}

impl fmt::Display for PublicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:016x}", self.key, self.id.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_and_unpacks() {
        let id = ConnId::new(7, u32::MAX);
        assert_eq!(id.index(), 7);
        assert_eq!(ConnId::from_bits(id.to_bits()), id);
    }

    #[test]
    fn text_form_round_trips_and_is_strict() {
        let public = PublicId { key: u64::MAX - 1, id: ConnId::new(3, 9) };
        let text = public.to_string();
        assert_eq!(text.len(), PublicId::LEN);
        assert_eq!(PublicId::parse(&text), Some(public));
        for bad in ["", "+1", &text[1..], &text.to_uppercase(), &format!("{text}0")] {
            assert_eq!(PublicId::parse(bad), None, "{bad}");
        }
        let signed = format!("+{}", &text[1..]);
        assert_eq!(PublicId::parse(&signed), None);
        assert_eq!(PublicId::parse("é0000000000000000000000000000000"), None);
    }
}
