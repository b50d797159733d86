//! Transport: the layer between a connection and its socket (TLS, where it is used).
//!
//! Owns the one fact that a connection needs from it, how many bytes it buffers, and the form
//! in which a connection hands it bytes.

/// Bytes to write in one call, in order. Eight chunks hold the longest message that clients
/// send, 87.5 KB.
pub type Slices<'a> = [&'a [u8]; 8];

/// The only slice that is not empty; `None` if there are more.
#[must_use]
pub fn only<'a>(slices: &Slices<'a>) -> Option<&'a [u8]> {
    let mut filled = slices.iter().filter(|slice| !slice.is_empty());
    let first = filled.next().copied().unwrap_or_default();
    filled.next().is_none().then_some(first)
}

/// Bytes of a connection that the transport below it (TLS) buffers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TransportBuffered {
    /// Received but not yet delivered as input: part of a TLS record.
    pub unread: usize,
    /// Written by the connection but not yet sent.
    pub unsent: usize,
}
