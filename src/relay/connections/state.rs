//! State of all connections, and back.
//!
//! Saved is what nothing else tells. Budget, sums of clients, counts and limits on connections
//! that are not upgraded are made anew from the connections.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use slab::Slab;

use super::clients::Client;
use super::entry::{Entry, Payer, Queued, Role, Stage};
use super::traffic::{Flow, Traffic};
use super::{Connections, Held};
use crate::config::INITIAL_CAPACITY;
use crate::protocol::connection::{Connection, Saved};
use crate::relay::admission::ClientKey;
use crate::relay::conn_id::{ConnId, PublicIds};
use crate::relay::keyed_hash::HashKeys;
use crate::relay::slots::SlotKey;
use crate::state::{Unfit, v1};
use crate::time::{Instant, Wheel};

/// Stages by their number in a state.
const STAGES: [Stage; 9] = [
    Stage::Header,
    Stage::HeaderOfAuthority,
    Stage::Authority,
    Stage::Balancer,
    Stage::Request,
    Stage::WebSocket,
    Stage::Member(Role::Claimant),
    Stage::Member(Role::Binary),
    Stage::Member(Role::Phone),
];
/// Payers by their number in a state.
const PAYERS: [Payer; 3] = [Payer::Address, Payer::Proxy, Payer::Slot];

impl Connections {
    /// As plain values; `None` while effects are queued.
    pub(in crate::relay) fn save(&mut self) -> Option<v1::Connections> {
        if !self.shared.effects.is_empty() {
            return None;
        }
        let vacant = self.vacant();
        let shared = &self.shared;
        let entries = self.slab.iter();
        Some(v1::Connections {
            entries: entries.map(|(index, entry)| entry.save(index as u32)).collect(),
            vacant,
            accepted: self.accepted,
            id_keys: self.public_ids.reveal(),
            opened: shared.request_limits.save(),
            graces: shared.clients.graces().map(|(slot, client)| client.save(slot)).collect(),
            pool: shared.pool.save(),
            timers: shared.timers.save(),
        })
    }

    /// The free indices, the next one to be used first: the slab tells one at a time.
    fn vacant(&mut self) -> Vec<u32> {
        let mut vacant = Vec::new();
        while self.slab.vacant_key() < self.end {
            let entry = self.placeholder();
            vacant.push(self.slab.insert(entry) as u32);
        }
        for index in vacant.iter().rev() {
            self.slab.remove(*index as usize);
        }
        vacant
    }

    /// Continues with what [`Self::save`] returned, under the limits that it was made with;
    /// there must be no connections yet. Returns those that cannot be continued: they have
    /// lost their input and output, and have to be disconnected.
    pub(in crate::relay) fn restore(
        &mut self,
        saved: v1::Connections,
    ) -> Result<Vec<ConnId>, Unfit> {
        let v1::Connections { entries, vacant, accepted, id_keys, opened, graces: _, pool, timers } =
            saved;
        self.public_ids = PublicIds::new(HashKeys::new(id_keys));
        self.accepted = accepted;
        self.end = entries.len() + vacant.len();
        let mut lost = Vec::new();
        let mut slab = Slab::with_capacity(INITIAL_CAPACITY.max(self.end));
        // Each index is used once, so a slab of all of them has no gap.
        let mut all: Vec<Option<Entry>> = (0..self.end).map(|_| None).collect();
        for saved in entries {
            let id = ConnId::new(saved.index.min(ConnId::INDEX_MAX), saved.generation);
            let is_known = saved.generation < accepted && saved.index < ConnId::INDEX_MAX;
            let (entry, is_fit) = self.entry(saved, id)?;
            match all.get_mut(id.index()) {
                Some(place @ None) if is_known => *place = Some(entry),
                _ => return Err(Unfit("names of connections")),
            }
            if !is_fit {
                lost.push(id);
            }
        }
        let mut order = vec![0; self.end];
        for (place, index) in vacant.iter().enumerate() {
            match (all.get(*index as usize), order.get_mut(*index as usize)) {
                (Some(None), Some(order)) if *order == 0 => *order = place + 1,
                _ => return Err(Unfit("free indices")),
            }
        }
        for entry in all {
            slab.insert(entry.unwrap_or_else(|| self.placeholder()));
        }
        for index in vacant.iter().rev() {
            slab.remove(*index as usize);
        }
        self.slab = slab;
        self.shared.timers = Wheel::restore(&timers, self.end, INITIAL_CAPACITY.max(self.end))?;
        self.shared.request_limits.restore(&opened);
        self.shared.pool.restore(&pool);
        self.count()?;
        Ok(lost)
    }

    /// Makes anew what is counted.
    fn count(&mut self) -> Result<(), Unfit> {
        if self.shared.timers.len() != self.slab.len() {
            return Err(Unfit("timers of connections"));
        }
        let shared = &mut self.shared;
        for (index, entry) in &self.slab {
            let key = index as u32;
            let held = Held::of(entry);
            shared.charge(Held { bytes: 0, ..held }, held);
            shared.record(key, entry);
            shared.websockets += usize::from(held.is_websocket);
            if entry.is_limited {
                shared.request_limits.count(ClientKey::from(entry.client()));
            }
            let deadline = entry.connection.deadline(&shared.timeouts);
            if shared.timers.armed(key).is_none() {
                return Err(Unfit("timers of connections"));
            }
            shared.timers.arm_by(key, deadline);
        }
        Ok(())
    }

    /// Every connection with a role: its client, slot and role, as numbers of a state.
    pub(in crate::relay) fn members(&self) -> impl Iterator<Item = (ConnId, ClientKey, u32, u8)> {
        self.slab.iter().filter(|(_, entry)| entry.role().is_some()).map(|(index, entry)| {
            let client = ClientKey::from(entry.client());
            (entry.id(index as u32), client, entry.slot.to_bits(), entry.stage_number())
        })
    }

    fn placeholder(&self) -> Entry {
        let connection = Connection::new(Instant::START, &self.shared.timeouts);
        let peer = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Entry::new(connection, ConnId::new(0, 0), peer, Stage::Request)
    }

    /// An entry, and whether it can be continued.
    fn entry(&self, saved: v1::Entry, id: ConnId) -> Result<(Entry, bool), Unfit> {
        let stage = *STAGES.get(usize::from(saved.stage)).ok_or(Unfit("stage"))?;
        let payer = *PAYERS.get(usize::from(saved.payer)).ok_or(Unfit("payer"))?;
        let client = match saved.client {
            v1::Address::V4(octets) => IpAddr::V4(Ipv4Addr::from(octets)),
            v1::Address::V6(octets) => IpAddr::V6(Ipv6Addr::from(octets)),
        };
        let (phase, inbound, outbox) = (saved.phase, saved.inbound, saved.outbox);
        let bare = Saved { phase: phase.clone(), inbound: None, outbox: None };
        let codec = &self.shared.codec;
        let (connection, is_fit) =
            match Connection::restore(Saved { phase, inbound, outbox }, codec) {
                Ok(connection) => (connection, true),
                Err(unfit) => {
                    log::debug!(err:% = unfit; "connection_not_restored");
                    (Connection::restore(bare, codec)?, false)
                }
            };
        let is_phase_of_stage = match stage {
            Stage::WebSocket => connection.is_closing(),
            Stage::Member(Role::Claimant) => !connection.is_open() && connection.is_stopped(),
            Stage::Member(_) => connection.is_open(),
            _ => connection.is_head() || connection.is_closing(),
        };
        if !is_phase_of_stage {
            return Err(Unfit("role"));
        }
        let mut entry = Entry::new(connection, id, client, stage);
        entry.is_limited = saved.is_limited;
        entry.payer = payer;
        entry.slot = SlotKey::from_bits(saved.slot);
        if saved.is_expiring {
            entry.queued.add(Queued::EXPIRY);
        }
        let [received, sent] = saved.traffic.map(Flow::from_bits);
        entry.traffic = Traffic { received, sent };
        Ok((entry, is_fit))
    }
}

impl Entry {
    fn stage_number(&self) -> u8 {
        STAGES.iter().position(|stage| *stage == self.stage).unwrap_or_default() as u8
    }

    fn save(&self, index: u32) -> v1::Entry {
        let Saved { phase, inbound, outbox } = self.connection.save();
        let payer = PAYERS.iter().position(|payer| *payer == self.payer);
        v1::Entry {
            index,
            generation: self.id(index).age(),
            client: match self.client() {
                IpAddr::V4(address) => v1::Address::V4(address.octets()),
                IpAddr::V6(address) => v1::Address::V6(address.octets()),
            },
            stage: self.stage_number(),
            is_limited: self.is_limited,
            is_expiring: self.queued.contains(Queued::EXPIRY),
            payer: payer.unwrap_or_default() as u8,
            slot: self.slot.to_bits(),
            traffic: [self.traffic.received.to_bits(), self.traffic.sent.to_bits()],
            phase,
            inbound,
            outbox,
        }
    }
}

impl Client {
    /// The client of a slot in grace.
    fn save(self, slot: SlotKey) -> v1::Grace {
        let client = match self {
            Self::Address(ClientKey::V4(octets)) => v1::Client::V4(octets),
            Self::Address(ClientKey::V6(octets)) => v1::Client::V6(octets),
            Self::Slot(slot) => v1::Client::Slot(slot.to_bits()),
        };
        v1::Grace { slot: slot.to_bits(), client }
    }

    pub(in crate::relay) fn restore(saved: &v1::Client) -> Self {
        match *saved {
            v1::Client::V4(octets) => Self::Address(ClientKey::V4(octets)),
            v1::Client::V6(octets) => Self::Address(ClientKey::V6(octets)),
            v1::Client::Slot(slot) => Self::Slot(SlotKey::from_bits(slot)),
        }
    }
}
