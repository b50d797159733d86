//! Audit of slots, for [`Relay::audit`](crate::relay::Relay::audit).
//!
//! Owns the check that counts, tables and timers agree with the slots, and a view of each
//! slot to compare with connections.

use std::hash::BuildHasher;

use super::congestion::Congestion;
use super::{Holder, SlotKey, Slots};
use crate::config::PHONES_PER_SERVER_MAX;
use crate::relay::conn_id::ConnId;
use crate::time::TICK;

/// One slot that exists.
pub(in crate::relay) struct SlotView<'a> {
    pub(in crate::relay) key: SlotKey,
    pub(in crate::relay) holder: Option<ConnId>,
    pub(in crate::relay) phones: &'a [ConnId],
    pub(in crate::relay) claimants: &'a [ConnId],
    /// The phones that are not read because its binary is a slow consumer.
    pub(in crate::relay) paused: Vec<ConnId>,
    pub(in crate::relay) is_full: bool,
}

impl Slots {
    /// Bytes of all slots in grace.
    pub(in crate::relay) fn grace_bytes_of_all(&self) -> usize {
        let keys = self.by_server_id.iter().map(|index| SlotKey(*index));
        let graces = keys.filter(|key| self.holder(*key).is_none());
        graces.map(|key| self.grace_bytes(key)).sum()
    }

    /// Every slot, after a check of their own consistency.
    pub(in crate::relay) fn audit(&self) -> Vec<SlotView<'_>> {
        let views: Vec<SlotView<'_>> = self
            .by_server_id
            .iter()
            .map(|index| {
                let (slot, probe) = (&self.slots[*index as usize], self.probes.get(index));
                let congestion = self.congested.get(index);
                assert_eq!(slot.is_congested, congestion.is_some(), "A5: congestion of {index}");
                let holder = match slot.holder {
                    Holder::Binary(holder) => Some(holder),
                    Holder::Grace(until) => {
                        let (due, armed) =
                            (until.max(self.graces.reached()), self.graces.armed(*index));
                        assert!(armed.is_some_and(|at| at <= due + TICK), "A4: grace of {index}");
                        None
                    }
                };
                SlotView {
                    key: SlotKey(*index),
                    holder,
                    phones: &slot.phones,
                    claimants: probe.map_or(&[], |probe| &probe.claimants),
                    paused: congestion.map_or_else(Vec::new, |it| it.paused().collect()),
                    is_full: congestion.is_some_and(Congestion::is_full),
                }
            })
            .collect();
        let held = views.iter().filter(|view| view.holder.is_some()).count();
        let phones: usize = views.iter().map(|view| view.phones.len()).sum();
        assert_eq!((self.binaries, self.phones), (held, phones), "A3: counts of the slots");
        assert_eq!(self.slots.len(), views.len() + self.free.len(), "A4: a slot is lost");
        let probed = views.iter().filter(|view| !view.claimants.is_empty()).count();
        assert_eq!(self.probes.len(), probed, "A4: claimants wait on slots that exist");
        for view in &views {
            let server_id = &*self.slots[view.key.0 as usize].server_id;
            let found = self.by_server_id.find(self.hash.hash_one(server_id), |index| {
                *self.slots[*index as usize].server_id == *server_id
            });
            assert_eq!(found, Some(&view.key.0), "A4: {server_id} is found");
            assert!(!self.free.contains(&view.key.0), "A4: {server_id} is free and used");
            assert!(view.phones.len() <= PHONES_PER_SERVER_MAX, "A3: phones of {server_id}");
        }
        assert!(
            self.congested.len() <= views.len(),
            "A5: congestion of a slot that does not exist"
        );
        views
    }

    /// The claimants that were refused and are not closed yet.
    pub(in crate::relay) fn audit_rejected(&self) -> impl Iterator<Item = &ConnId> {
        self.rejected.iter()
    }
}
