//! Whether everything the relay knows twice, it knows alike.
//!
//! Owns the invariants of the slab, the wheels, the registry, the caps, the
//! budget and the queue of effects as one check, for simulations and fuzzing to
//! call between any two calls. Changes nothing; nothing in the relay relies on
//! it, and what is not called costs nothing.

use super::admission::{ClientKey, is_holder};
use super::conn_id::ConnId;
use super::registry::audit::SlotView;
use super::relay::{Effect, Entry, Relay, Role, Stage};
use super::wake::{IN_FLIGHT_MAX, Wakes};
use crate::config::BINARY_LOW_WATER;
use crate::time::TICK;

impl Relay {
    /// Whether the connection has a place: a binary, a phone, or a claimant that
    /// waits to become a binary.
    #[must_use]
    pub fn has_place(&self, id: ConnId) -> bool {
        self.entry(id).is_some_and(|entry| entry.role != Role::None)
    }

    /// Checks every invariant.
    ///
    /// # Panics
    /// Names the first of these that does not hold:
    /// - A1. A connection is in the slab ⇔ it is in the wheel, which fires within
    ///   a tick of its deadline.
    /// - A2. What a connection is to the registry fits the state it is in; one
    ///   that is not upgraded, or closing, is nothing.
    /// - A3. Registry and connections name each other: the holder, the phones and
    ///   the claimants of a slot have the role and the slot, each once, and
    ///   nobody else has one.
    /// - A4. A slot is held or its grace is in the wheel; only a held one has
    ///   claimants or is paused.
    /// - A5. The phones of a slot are not read ⇔ its binary is slow.
    /// - A6. The caps count the connections with a role, each under its client.
    /// - A7. Each connection is charged what it holds; the budget is the sum, and
    ///   is kept.
    /// - A8. WebSockets are counted.
    /// - A9. Of each kind there is one effect per connection at most, and none for
    ///   one that is gone but on the way to its disconnect.
    /// - A10. No more push wakes are in flight than may be, those not yet handed out
    ///   among them.
    pub fn audit(&self) {
        let (mut charged, mut holders, mut websockets, mut clients) = (0, 0, 0, Vec::new());
        for (index, entry) in &self.connections {
            self.audit_entry(entry.id(index), entry);
            charged += entry.charged as usize;
            holders += usize::from(is_holder(entry.charged as usize));
            websockets += usize::from(entry.stage == Stage::WebSocket);
            if entry.role != Role::None {
                clients.push(ClientKey::from(entry.client()));
            }
        }
        assert_eq!(self.timers.len(), self.connections.len(), "A1: wheel and slab");
        assert!(self.caps.agrees(&clients), "A6: {:?} of {}", self.caps, clients.len());
        assert_eq!(self.budget.used(), charged, "A7: the sum of what is charged");
        assert_eq!(self.budget.holders(), holders, "A7: connections that share it");
        assert!(!self.budget.is_exceeded(), "A7: {charged} bytes");
        assert_eq!(self.websockets, websockets, "A8");
        let members = self.audit_registry();
        assert_eq!(members, clients.len(), "A3: members of slots and connections with a role");
        self.audit_effects();
        let (in_flight, accepted) = self.wakes.as_ref().map_or((0, 0), Wakes::counts);
        assert!(accepted <= in_flight && in_flight <= IN_FLIGHT_MAX, "A10: {in_flight}");
    }

    fn audit_entry(&self, id: ConnId, entry: &Entry) {
        let Entry { connection, role, slot, .. } = entry;
        // Of a deadline that has passed the next tick is soon enough.
        let due = connection.deadline(&self.timeouts).max(self.timers.reached());
        let armed = self.timers.armed(id.index() as u32);
        assert!(armed.is_some_and(|at| at <= due + TICK), "A1: {id:?} at {armed:?} for {due:?}");
        let is_reading = connection.is_reading();
        let fits = match role {
            Role::None => connection.is_head() || connection.is_closing(),
            // Neither read nor open: it waits.
            Role::Claimant => !is_reading && !connection.is_open(),
            Role::Binary => is_reading && connection.is_open(),
            Role::Phone => connection.is_open(),
        };
        assert!(fits, "A2: {id:?} {role:?} {connection:?}");
        assert!(entry.stage == Stage::WebSocket || *role == Role::None, "A2: {id:?} without a 101");
        if *role == Role::Phone {
            assert_eq!(is_reading, !self.registry.is_paused(*slot), "A5: {id:?}");
        }
        assert_eq!(entry.charged as usize, connection.held(), "A7: {id:?}");
    }

    /// Returns how many connections are on slots.
    fn audit_registry(&self) -> usize {
        let mut members = 0;
        for SlotView { key, holder, phones, claimants, until } in self.registry.audit() {
            let lists = [
                (Role::Binary, holder.as_slice()),
                (Role::Phone, phones),
                (Role::Claimant, claimants),
            ];
            for (role, ids) in lists {
                for (place, id) in ids.iter().enumerate() {
                    let fits = self.entry(*id).map(|entry| (entry.role, entry.slot));
                    assert_eq!(fits, Some((role, key)), "A3: {id:?} on {key:?}");
                    assert!(!ids[..place].contains(id), "A3: {id:?} twice on {key:?}");
                }
                members += ids.len();
            }
            let is_paused = self.registry.is_paused(key);
            if let Some(holder) = holder {
                let backlog = self.entry(holder).map_or(0, |entry| entry.connection.backlog());
                assert!(!is_paused || backlog > BINARY_LOW_WATER, "A5: {holder:?} is not slow");
            } else {
                let (due, armed) = (until.max(self.graces.reached()), self.graces.armed(key.0));
                assert!(armed.is_some_and(|at| at <= due + TICK), "A4: grace of {key:?}");
                assert!(claimants.is_empty() && !is_paused, "A4: {key:?} is not held");
            }
        }
        members
    }

    fn audit_effects(&self) {
        let parts = |effect: &Effect| match *effect {
            Effect::Transmit(id) => (id, 0),
            Effect::Resume(id) => (id, 1),
            Effect::HalfClose(id) => (id, 2),
            Effect::Judge(id) => (id, 3),
            Effect::Disconnect(id) => (id, 4),
        };
        // By connection and kind, and in the order of the queue.
        let queued = self.effects.iter().enumerate();
        let mut effects: Vec<_> =
            queued.map(|(at, effect)| (parts(effect).0.to_bits(), parts(effect).1, at)).collect();
        effects.sort_unstable();
        for two in effects.windows(2) {
            assert_ne!((two[0].0, two[0].1), (two[1].0, two[1].1), "A9: {two:?} are the same");
        }
        for of_one in effects.chunk_by(|one, other| one.0 == other.0) {
            let id = ConnId::from_bits(of_one[0].0);
            let (_, kind, at) = of_one[of_one.len() - 1];
            let is_going = kind == 4 && of_one.iter().all(|(_, _, other)| *other <= at);
            assert_eq!(self.entry(id).is_none(), is_going, "A9: {id:?} {of_one:?}");
        }
        for (index, entry) in &self.connections {
            let id = entry.id(index);
            let is_queued = effects.binary_search_by_key(&(id.to_bits(), 0), |e| (e.0, e.1));
            assert_eq!(entry.is_transmit_queued, is_queued.is_ok(), "A9: transmit of {id:?}");
        }
    }
}
