//! Transport: what lies between a connection and its socket (TLS, where that is spoken).
//!
//! Owns what a connection has to know of it, which is how many bytes it keeps.

/// Bytes of a connection that the transport below it (TLS) keeps, because they can go
/// nowhere yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TransportBuffered {
    /// Received, and no input yet: a part of a TLS record.
    pub unread: usize,
    /// Written, and not sent.
    pub unsent: usize,
}
