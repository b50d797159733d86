//! Transport: the layer between a connection and its socket (TLS, where it is used).
//!
//! Owns the one fact that a connection needs from it: how many bytes it buffers.

/// Bytes of a connection that the transport below it (TLS) buffers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TransportBuffered {
    /// Received but not yet delivered as input: part of a TLS record.
    pub unread: usize,
    /// Written by the connection but not yet sent.
    pub unsent: usize,
}
