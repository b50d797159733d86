//! Invariants: a check that the parts of the relay agree.
//!
//! Owns what connections, slots, caps and push wakes have to agree on, as one check that
//! simulations and fuzzing call between any two calls. It changes nothing, the relay does not
//! rely on it, and it costs nothing unless called.

use super::admission::ClientKey;
use super::conn_id::ConnId;
use super::connections::{Entry, Role, Stage};
use super::push_wake::{IN_FLIGHT_MAX, Wakes};
use super::relay::Relay;
use super::slots::audit::SlotView;
use crate::config::BINARY_LOW_WATER;

impl Relay {
    /// Whether the connection has a role: a binary, a phone, or a claimant that waits to
    /// become a binary.
    #[must_use]
    pub fn has_place(&self, id: ConnId) -> bool {
        self.connections.get(id).is_some_and(|entry| entry.role().is_some())
    }

    /// Bytes that the connection holds.
    #[must_use]
    pub fn held(&self, id: ConnId) -> usize {
        self.connections.get(id).map_or(0, |entry| entry.connection().held())
    }

    /// Bytes of its input that were left over, for [`Input::Continue`](super::Input::Continue).
    #[must_use]
    pub fn kept(&self, id: ConnId) -> usize {
        self.connections.get(id).map_or(0, |entry| entry.connection().kept_len())
    }

    /// The conn_id of the connection.
    #[must_use]
    pub fn conn_id(&self, id: ConnId) -> String {
        self.connections.public_id(id).to_string()
    }

    /// The connection with this conn_id; it may be gone.
    #[must_use]
    pub fn find(&self, conn_id: &str) -> Option<ConnId> {
        self.connections.find(conn_id)
    }

    /// All that is queued to the connection, in the order in which it is written;
    /// [`Relay::outgoing`] returns its first bytes.
    pub fn queued(&self, id: ConnId) -> impl Iterator<Item = &[u8]> {
        self.connections.get(id).into_iter().flat_map(|entry| entry.connection().queued())
    }

    /// Checks every invariant.
    ///
    /// # Panics
    /// Names the first of these that does not hold:
    /// - A1. A connection is in the slab ⇔ it is in the wheel, which fires within a tick of
    ///   its deadline.
    /// - A2. A connection's role fits its state; one that is not upgraded, or closing, has
    ///   none.
    /// - A3. Slots and connections name each other: the holder, the phones and the claimants
    ///   of a slot have the role and the slot, each once, and no other connection has a role.
    /// - A4. A slot is held or its grace is in the wheel; only a held one has
    ///   claimants or is full.
    /// - A5. A phone's reading is stopped ⇔ it delivered into its slot while that was full.
    /// - A6. The caps count the connections with a role, each under its client, and the limits
    ///   before the upgrade those that are subject to them.
    /// - A7. The budget is the sum of the bytes that connections and slots in grace hold, and
    ///   is not exceeded, nor is the part of it for connections that are not upgraded. Each
    ///   holding is recorded for its client, or on the list of changes.
    /// - A8. The count of WebSockets is exact.
    /// - A9. Each kind of effect is queued at most once per connection, and none for a
    ///   removed connection but those up to its disconnect.
    /// - A10. The push wakes in flight, those not yet handed out included, are within their
    ///   limit.
    /// - A11. No follow-up is pending.
    pub fn audit(&self) {
        let mut clients = Vec::new();
        for (id, entry) in self.connections.audit(self.slots.grace_bytes_of_all()) {
            self.audit_entry(id, entry);
            if entry.role().is_some() {
                clients.push(ClientKey::from(entry.client()));
            }
        }
        assert!(self.gates.caps.agrees(&clients), "A6: {:?} of {}", self.gates.caps, clients.len());
        let members = self.audit_slots();
        assert_eq!(members, clients.len(), "A3: members of slots and connections with a role");
        let (in_flight, accepted) = self.wakes.as_ref().map_or((0, 0), Wakes::counts);
        assert!(accepted <= in_flight && in_flight <= IN_FLIGHT_MAX, "A10: {in_flight}");
        assert!(self.follow_ups.is_empty(), "A11: {:?}", self.follow_ups);
    }

    fn audit_entry(&self, id: ConnId, entry: &Entry) {
        let connection = entry.connection();
        let fits = match entry.stage() {
            Stage::WebSocket => connection.is_closing(),
            Stage::Member(Role::Claimant) => connection.is_stopped() && !connection.is_open(),
            Stage::Member(Role::Binary) => !connection.is_stopped() && connection.is_open(),
            Stage::Member(Role::Phone) => connection.is_open(),
            _ => connection.is_head() || connection.is_closing(),
        };
        assert!(fits, "A2: {id:?} {entry:?}");
    }

    /// Returns the number of connections on slots.
    fn audit_slots(&self) -> usize {
        let mut members = 0;
        for SlotView { key, holder, phones, claimants, paused, is_full } in self.slots.audit() {
            let lists = [
                (Role::Binary, holder.as_slice()),
                (Role::Phone, phones),
                (Role::Claimant, claimants),
            ];
            for (role, ids) in lists {
                for (place, id) in ids.iter().enumerate() {
                    let entry = self.connections.get(*id);
                    let fits = entry.map(|entry| (entry.role(), entry.slot()));
                    assert_eq!(fits, Some((Some(role), key)), "A3: {id:?} on {key:?}");
                    assert!(!ids[..place].contains(id), "A3: {id:?} twice on {key:?}");
                }
                members += ids.len();
            }
            if let Some(holder) = holder {
                let entry = self.connections.get(holder);
                let backlog = entry.map_or(0, |entry| entry.connection().backlog());
                assert!(!is_full || backlog > BINARY_LOW_WATER, "A5: {holder:?} is not slow");
            } else {
                assert!(claimants.is_empty() && !is_full, "A4: {key:?} is not held");
            }
            assert!(is_full || paused.is_empty(), "A5: {paused:?} on {key:?}");
            for phone in phones {
                let entry = self.connections.get(*phone);
                let is_stopped = entry.map(|entry| entry.connection().is_stopped());
                assert_eq!(is_stopped, Some(paused.contains(phone)), "A5: {phone:?}");
            }
        }
        let rejected = self.slots.audit_rejected().filter_map(|id| self.connections.get(*id));
        for entry in rejected {
            assert_eq!(entry.role(), Some(Role::Claimant), "A3: a claimant that was refused");
            members += 1;
        }
        members
    }
}
