//! The relay at one instant, for whoever watches it.
//!
//! Owns what is worth watching. A plain copy of about a kilobyte: to take it costs
//! the same with one connection as with a million.

use super::relay::Relay;
use super::stats::Stats;

/// What the relay has counted, holds, and may hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Everything counted since the start.
    pub stats: Stats,
    /// Binaries that hold a slot.
    pub binaries: usize,
    /// Phones on all slots.
    pub phones: usize,
    /// Live WebSockets as the cap counts them: binaries, phones and claimants.
    pub connections: usize,
    /// How many of them there may be.
    pub connections_max: usize,
    /// Bytes queued on all connections.
    pub buffered: usize,
    /// How many there may be.
    pub buffered_max: usize,
    /// Leaving: upgrades are refused.
    pub is_draining: bool,
}

impl Relay {
    /// The relay as it stands.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let (binaries, phones) = (self.slots.binary_count(), self.slots.phone_count());
        Snapshot {
            stats: self.stats.clone(),
            binaries,
            phones,
            connections: self.gates.caps.live(),
            connections_max: self.gates.caps.total(),
            buffered: self.connections.buffered(),
            buffered_max: self.connections.buffered_max(),
            is_draining: self.slots.is_draining(),
        }
    }
}
