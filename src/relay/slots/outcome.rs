//! Outcomes: what a call of [`Slots`](super::Slots) asks its caller to do.
//!
//! Owns their names. Must not know how they come about.

use super::SlotKey;
use crate::relay::conn_id::ConnId;
use crate::time::Instant;

/// Outcome of a claim.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::relay) enum Claim {
    /// The server-id was free.
    Granted(SlotKey),
    /// It was in grace; these phones have to reconnect.
    Reclaimed(SlotKey, Vec<ConnId>),
    /// It is held; the holder has to be probed if this claim is the first. The probe does not
    /// time out before `until`.
    Waits { slot: SlotKey, holder: ConnId, until: Instant, is_first: bool },
}

/// Takeover: a claimant has become the holder.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::relay) struct Takeover {
    /// The new holder.
    pub(in crate::relay) holder: ConnId,
    /// Phones that have to reconnect.
    pub(in crate::relay) phones: Vec<ConnId>,
}

/// Outcome of a binary's release.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::relay) enum Release {
    /// The binary was not the holder.
    NotHolder,
    /// The slot is in grace; these phones are read again.
    Grace { resumed: Vec<ConnId> },
    /// The first claimant has taken the slot over.
    TakenOver(Takeover),
}

/// Why a phone cannot join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::relay) enum JoinError {
    /// No slot with that server-id.
    NoServer,
    /// The slot is full.
    AtCap,
}

/// The action that is due for a slot.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::relay) enum Due {
    /// Its grace is over. These phones have to be closed, then the slot has to be
    /// [freed](super::Slots::free).
    GraceOver(SlotKey, Vec<ConnId>),
    /// These have to be closed for the shut-down.
    ShutDown(Vec<ConnId>),
}
