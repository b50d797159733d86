//! Faults: why a session broke, and the alert that says so.
//!
//! Owns the error texts. Must not know records.

use std::fmt::{self, Display};

/// Why a session ended other than by close_notify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A record is not authentic.
    BadRecord,
    /// A record is too long.
    Overflow,
    /// A record or message that is not allowed here.
    Unexpected,
    /// A message is malformed.
    Malformed,
    /// A field has a value that is not allowed.
    Illegal,
    /// Too many records that carry no data.
    TooMany,
    /// The peer has reported an error: the description of its alert.
    Alert(u8),
    /// The keys have protected as many records as they may, and cannot be renewed.
    Exhausted,
    /// Data was to be sent after close_notify, or more than the cipher can protect.
    Internal,
}

impl Fault {
    /// The alert for the peer (§6.2); an error that the peer has reported is not answered.
    pub(super) fn alert(self) -> Option<u8> {
        match self {
            Self::BadRecord => Some(20),
            Self::Overflow => Some(22),
            Self::Unexpected | Self::TooMany => Some(10),
            Self::Malformed => Some(50),
            Self::Illegal => Some(47),
            Self::Alert(_) | Self::Exhausted => None,
            Self::Internal => Some(80),
        }
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadRecord => f.write_str("a record failed to decrypt"),
            Self::Overflow => f.write_str("a record is too long"),
            Self::Unexpected => f.write_str("a TLS message was not expected"),
            Self::Malformed => f.write_str("a TLS message is malformed"),
            Self::Illegal => f.write_str("a TLS message has an illegal value"),
            Self::TooMany => f.write_str("too many records without data"),
            Self::Alert(alert) => write!(f, "the peer sent the alert {alert}"),
            Self::Exhausted => f.write_str("the keys have reached their usage limit"),
            Self::Internal => f.write_str("the record layer was misused"),
        }
    }
}

impl std::error::Error for Fault {}
