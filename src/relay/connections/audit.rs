//! Audit of [`Connections`]: its invariants, as a check.
//!
//! Owns the comparison of slab, wheel, budget, clients and effects. The relay does not rely
//! on it.

use super::clients::Holding;
use super::entry::Queued;
use super::{CHANGED_MAX, Connections, Effect, Entry};
use crate::relay::admission::{ClientKey, is_holder};
use crate::relay::conn_id::ConnId;
use crate::time::TICK;

impl Connections {
    /// Every connection, after a check of A1, A7, A8 and A9
    /// ([`Relay::audit`](crate::relay::Relay::audit)). Slots in grace hold `graces` bytes.
    pub(in crate::relay) fn audit(&self, graces: usize) -> Vec<(ConnId, &Entry)> {
        let entries: Vec<(ConnId, &Entry)> =
            self.slab.iter().map(|(index, entry)| (entry.id(index as u32), entry)).collect();
        let shared = &self.shared;
        let (mut charged, mut requests, mut holders, mut websockets) = (graces, 0, 0, 0);
        let mut limited = Vec::new();
        for (id, entry) in &entries {
            self.audit_entry(*id, entry);
            let held = entry.connection.held();
            charged += held;
            if entry.stage.is_websocket() {
                websockets += 1;
                holders += usize::from(is_holder(held));
            } else {
                requests += held;
            }
            if entry.is_limited {
                limited.push(ClientKey::from(entry.client()));
            }
        }
        assert_eq!(shared.timers.len(), self.slab.len(), "A1: wheel and slab");
        assert_eq!(shared.budget.used(), charged, "A7: the sum of what is held");
        assert_eq!(shared.budget.requests(), requests, "A7: what is held before upgrades");
        assert!(!shared.budget.is_exceeded(), "A7: {charged} bytes");
        assert!(!shared.budget.is_requests_exceeded(), "A7: {requests} bytes before upgrades");
        assert_eq!(shared.budget.holders(), holders, "A7: connections that share the budget");
        assert!(shared.changed.len() < CHANGED_MAX, "A7: {} changes", shared.changed.len());
        assert!(shared.request_limits.agrees(&limited), "A6: {} before upgrades", limited.len());
        assert_eq!(shared.websockets, websockets, "A8");
        shared.clients.audit();
        shared.requests.audit();
        self.audit_effects(&entries);
        entries
    }

    fn audit_entry(&self, id: ConnId, entry: &Entry) {
        let (shared, key) = (&self.shared, id.index() as u32);
        // A deadline that has passed fires at the next tick.
        let due = entry.connection.deadline(&shared.timeouts).max(shared.timers.reached());
        let armed = shared.timers.armed(key);
        assert!(armed.is_some_and(|at| at <= due + TICK), "A1: {id:?} at {armed:?} for {due:?}");
        if entry.is_changed {
            return assert!(shared.changed.contains(&key), "A7: {id:?} has changed");
        }
        let (held, holding) = (entry.connection.held(), Holding::Connection(key));
        let (own, other) = match entry.stage.is_websocket() {
            true => (&shared.clients, &shared.requests),
            false => (&shared.requests, &shared.clients),
        };
        assert_eq!((own.bytes(holding), other.bytes(holding)), (held, 0), "A7: {id:?}");
        let client = own.client(holding);
        assert!(client.is_none_or(|it| it == entry.payer()), "A7: {id:?} of {client:?}");
    }

    fn audit_effects(&self, entries: &[(ConnId, &Entry)]) {
        let parts = |effect: &Effect| match *effect {
            Effect::Transmit(id) => (id, 0),
            Effect::Resume(id) => (id, 1),
            Effect::HalfClose(id) => (id, 2),
            Effect::ReadThenExpire(id) => (id, 3),
            Effect::Continue(id) => (id, 4),
            Effect::Disconnect(id) => (id, 5),
        };
        // Sorted by connection, kind and position in the queue.
        let queued = self.shared.effects.iter().enumerate();
        let mut effects: Vec<_> =
            queued.map(|(at, effect)| (parts(effect).0.to_bits(), parts(effect).1, at)).collect();
        effects.sort_unstable();
        for two in effects.windows(2) {
            assert_ne!((two[0].0, two[0].1), (two[1].0, two[1].1), "A9: {two:?} are the same");
        }
        for of_one in effects.chunk_by(|one, other| one.0 == other.0) {
            let id = ConnId::from_bits(of_one[0].0);
            let (_, kind, at) = of_one[of_one.len() - 1];
            let is_going = kind == 5 && of_one.iter().all(|(_, _, other)| *other <= at);
            assert_eq!(self.get(id).is_none(), is_going, "A9: {id:?} {of_one:?}");
        }
        for (id, entry) in entries {
            let is_queued = effects.binary_search_by_key(&(id.to_bits(), 0), |e| (e.0, e.1));
            assert_eq!(
                entry.queued.contains(Queued::TRANSMIT),
                is_queued.is_ok(),
                "A9: transmit of {id:?}"
            );
            let is_queued = effects.binary_search_by_key(&(id.to_bits(), 4), |e| (e.0, e.1));
            assert_eq!(
                entry.queued.contains(Queued::CONTINUE),
                is_queued.is_ok(),
                "A9: input of {id:?}"
            );
        }
    }
}
