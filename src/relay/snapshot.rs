//! Snapshot: counters and gauges of the relay at one instant, for metrics.
//!
//! Owns the choice of values. A plain copy of about a kilobyte: its cost does not depend on
//! the number of connections.

use super::relay::Relay;
use super::stats::Stats;

/// Counters, gauges and limits.
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
    /// Their limit.
    pub connections_max: usize,
    /// Bytes buffered on all connections.
    pub buffered: usize,
    /// Their limit.
    pub buffered_max: usize,
    /// Draining: upgrades are refused.
    pub is_draining: bool,
}

impl Relay {
    /// A snapshot of the relay.
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
