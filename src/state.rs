//! State: what a relay hands over to the program that takes its place, as bytes.
//!
//! Owns the envelope around a state: magic, format number, program version, checksum. Must not
//! know what a value means: each part of the relay saves and restores its own.
//!
//! ```text
//! magic (8) │ format (4, little-endian) │ SipHash of the rest (8) │ program, state (postcard)
//! ```
//!
//! 1. The structs of a format are frozen: they hold no type of the program, so that a change
//!    of the program cannot change a format.
//! 2. A program writes its own format, and reads it and the one before ([`State::Before`]). A
//!    state of another format is refused, and names it.
//! 3. A state holds keys and the frames of users. The bytes are overwritten when they are
//!    dropped.

pub mod v1;

use std::fmt::{self, Display};
use std::hash::Hasher;

use serde::Serialize;
use serde::de::DeserializeOwned;
use siphasher::sip::SipHasher13;
use zeroize::Zeroizing;

/// The number of the format that this program writes.
pub const FORMAT: u32 = v1::State::FORMAT;

const MAGIC: [u8; 8] = *b"pyrelay\n";
const HEADER: usize = MAGIC.len() + 4 + 8;

/// All of a state, in one format.
pub trait State: Serialize + DeserializeOwned {
    /// The number of the format.
    const FORMAT: u32;
    /// The same in the format before, which is read as well. The first format names itself.
    type Before: State + Into<Self>;
}

impl State for v1::State {
    const FORMAT: u32 = 1;
    type Before = Self;
}

/// A state that was read.
#[derive(Debug)]
pub struct Received<T> {
    /// The version of the program that wrote it.
    pub program: String,
    /// The number of the format in which it was written.
    pub format: u32,
    /// The state.
    pub state: T,
}

/// Why bytes are no state that this program can take over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// They are not a state.
    Foreign,
    /// They are a state of this format.
    Format(u32),
    /// They are damaged, or incomplete.
    Damaged,
}

impl Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign => f.write_str("not the state of a relay"),
            Self::Format(format) => {
                write!(f, "state format {format}; this program reads format {}", formats_read())
            }
            Self::Damaged => f.write_str("the state is damaged or incomplete"),
        }
    }
}

impl std::error::Error for Unreadable {}

/// A state that was read but is not one of a relay: the part that contradicts another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfit(pub &'static str);

impl Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the state contradicts itself: {}", self.0)
    }
}

impl std::error::Error for Unfit {}

impl v1::Buffer {
    /// `bytes`, with the room that they have.
    #[must_use]
    pub fn save(bytes: &[u8], capacity: usize) -> Self {
        let room = u32::try_from(capacity - bytes.len()).unwrap_or(u32::MAX);
        Self { bytes: bytes.to_vec(), room }
    }

    /// The bytes with that room, at most `max` in all.
    #[must_use]
    pub fn restore(self, max: usize) -> Vec<u8> {
        let Self { mut bytes, room } = self;
        bytes.reserve_exact((room as usize).min(max.saturating_sub(bytes.len())));
        bytes
    }
}

impl From<&Vec<u8>> for v1::Buffer {
    fn from(bytes: &Vec<u8>) -> Self {
        Self::save(bytes, bytes.capacity())
    }
}

/// The numbers of the formats that this program reads, its own first.
#[must_use]
pub fn formats_read() -> String {
    let before = <v1::State as State>::Before::FORMAT;
    if before == FORMAT { FORMAT.to_string() } else { format!("{FORMAT} {before}") }
}

/// The bytes of a state, written by the program with this version.
///
/// # Panics
/// Never: every struct of a format can be encoded.
pub fn encode<S: State>(program: &str, state: &S, capacity: usize) -> Zeroizing<Vec<u8>> {
    let mut bytes = Vec::with_capacity(capacity + HEADER + program.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&S::FORMAT.to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    let bytes = postcard::to_extend(&(program, state), bytes).expect("a Vec takes every byte");
    let mut bytes = Zeroizing::new(bytes);
    let sum = checksum(&bytes[HEADER..]).to_le_bytes();
    bytes[HEADER - sum.len()..HEADER].copy_from_slice(&sum);
    bytes
}

/// Reads what [`encode`] wrote, in this format or the one before.
///
/// # Errors
/// Why it cannot be taken over.
pub fn decode<S: State>(bytes: &[u8]) -> Result<Received<S>, Unreadable> {
    let rest = bytes.strip_prefix(&MAGIC).ok_or(Unreadable::Foreign)?;
    let (format, rest) = rest.split_first_chunk().ok_or(Unreadable::Damaged)?;
    let format = u32::from_le_bytes(*format);
    let read = match format {
        own if own == S::FORMAT => read::<S, S>,
        before if before == S::Before::FORMAT => read::<S::Before, S>,
        other => return Err(Unreadable::Format(other)),
    };
    let (sum, body) = rest.split_first_chunk().ok_or(Unreadable::Damaged)?;
    if u64::from_le_bytes(*sum) != checksum(body) {
        return Err(Unreadable::Damaged);
    }
    let (program, state) = read(body).ok_or(Unreadable::Damaged)?;
    Ok(Received { program, format, state })
}

/// Reads a state of one format as one of another.
fn read<Written: State + Into<S>, S>(body: &[u8]) -> Option<(String, S)> {
    let ((program, state), rest): ((_, Written), _) = postcard::take_from_bytes(body).ok()?;
    rest.is_empty().then(|| (program, state.into()))
}

/// Against accidents only, so its key may be known.
fn checksum(bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(bytes);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    /// A format before the one of [`New`].
    #[derive(Debug, Serialize, Deserialize)]
    struct Old(u32);

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct New {
        number: u32,
        name: String,
    }

    impl State for Old {
        const FORMAT: u32 = 6;
        type Before = Self;
    }

    impl State for New {
        const FORMAT: u32 = 7;
        type Before = Old;
    }

    impl From<Old> for New {
        fn from(Old(number): Old) -> Self {
            Self { number, name: "none".into() }
        }
    }

    fn new(name: &str) -> New {
        New { number: 5, name: name.into() }
    }

    #[test]
    fn a_state_is_read_back_with_the_version_of_its_program() {
        let received: Received<New> = decode(&encode("1.2.3", &new("x"), 0)).unwrap();
        assert_eq!((received.program.as_str(), received.format), ("1.2.3", 7));
        assert_eq!(received.state, new("x"));
    }

    #[test]
    fn the_format_before_is_read_and_no_other() {
        let bytes = encode("1.2.2", &Old(5), 0);
        let received: Received<New> = decode(&bytes).unwrap();
        assert_eq!((received.program.as_str(), received.format), ("1.2.2", 6));
        assert_eq!(received.state, new("none"));
        let refused = decode::<Old>(&encode("1.2.3", &new("x"), 0)).unwrap_err();
        assert_eq!(refused, Unreadable::Format(7), "the format after");
        assert!(decode::<v1::State>(&bytes).unwrap_err().to_string().contains("reads format 1"));
    }

    #[test]
    fn any_changed_or_missing_byte_is_refused() {
        let bytes = encode("1.2.3", &new(&"x".repeat(30)), 0);
        let read = |bytes: &[u8]| decode::<New>(bytes).map(|received| received.state);
        assert!(read(&bytes).is_ok());
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            for bit in 0..8 {
                changed[at] ^= 1 << bit;
                let refused = read(&changed).unwrap_err();
                let format = u32::from_le_bytes(changed[8..12].try_into().unwrap());
                let expected = match at {
                    0..8 => Unreadable::Foreign,
                    8..12 if format != Old::FORMAT => Unreadable::Format(format),
                    _ => Unreadable::Damaged,
                };
                assert_eq!(refused, expected, "bit {bit} of byte {at}");
                changed[at] ^= 1 << bit;
            }
            assert!(read(&bytes[..at]).is_err(), "{at} bytes");
        }
        assert_eq!(read(&[&bytes[..], &[0]].concat()), Err(Unreadable::Damaged));
    }
}
