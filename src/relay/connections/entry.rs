//! Entry: one connection and the relay's data about it.
//!
//! Owns the connection's stage and role. Must not know its protocol (`protocol/connection.rs`
//! does) nor what its slot means (`relay/slots.rs` does).
//!
//! 1. A connection has a role ⇔ it is counted by the caps ⇔ its slot names it. A closing one
//!    has none. (`relay/closing.rs` maintains this.)

use std::net::{IpAddr, Ipv6Addr};

use super::traffic::Traffic;
use crate::protocol::connection::{Connection, ConnectionSummary};
use crate::relay::conn_id::ConnId;
use crate::relay::slots::SlotKey;

/// A connection's role on its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::relay) enum Role {
    /// Waits for the result of a probe of the slot's holder.
    Claimant,
    /// Holds the slot.
    Binary,
    /// Is registered on the slot.
    Phone,
}

/// A connection's stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::relay) enum Stage {
    /// The PROXY header has not arrived.
    Header,
    /// The same, on the port for certificate authorities.
    HeaderOfAuthority,
    /// A request on the port for certificate authorities: for a challenge only.
    Authority,
    /// A load balancer's own request, such as a health check: it has no client.
    Balancer,
    /// A client's request, or the response that ends it.
    Request,
    /// The 101 is queued; the connection has no role yet, or none any more because it is
    /// closing.
    WebSocket,
    /// A WebSocket with a role.
    Member(Role),
}

impl Stage {
    /// Whether the 101 was sent.
    pub(super) const fn is_websocket(self) -> bool {
        matches!(self, Self::WebSocket | Self::Member(_))
    }
}

/// One connection and the relay's data about it.
#[derive(Debug)]
pub(in crate::relay) struct Entry {
    pub(super) connection: Connection,
    /// The rest of its [`ConnId`] is its index in the slab.
    generation: u32,
    /// The client's address; the peer's until a PROXY header or the request head names
    /// another. An IPv4 address is stored mapped, which takes a byte less than an `IpAddr`.
    client: Ipv6Addr,
    pub(super) stage: Stage,
    pub(super) is_transmit_queued: bool,
    pub(super) is_expiry_queued: bool,
    pub(super) is_continue_queued: bool,
    /// Meaningful with a role.
    pub(super) slot: SlotKey,
    /// Its place in the ranking; meaningful while it holds a byte.
    pub(super) place: u32,
    pub(super) traffic: Traffic,
}

/// The memory of an idle connection here, beside the shell's and the slots'.
const _: () = assert!(size_of::<Entry>() <= 104);

/// Final facts of a connection with a role, returned once, when it ends.
#[derive(Debug)]
#[must_use = "caps and slot still count the connection"]
pub(in crate::relay) struct Ended {
    pub(in crate::relay) role: Role,
    pub(in crate::relay) slot: SlotKey,
    pub(in crate::relay) client: IpAddr,
    pub(in crate::relay) traffic: Traffic,
    /// `None`: it was never open.
    pub(in crate::relay) summary: Option<ConnectionSummary>,
}

impl Entry {
    pub(super) fn new(connection: Connection, generation: u32, peer: IpAddr, stage: Stage) -> Self {
        Self {
            connection,
            generation,
            client: mapped(peer),
            stage,
            is_transmit_queued: false,
            is_expiry_queued: false,
            is_continue_queued: false,
            slot: SlotKey::default(),
            place: 0,
            traffic: Traffic::default(),
        }
    }

    /// The connection, read-only.
    pub(in crate::relay) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Its stage.
    pub(in crate::relay) fn stage(&self) -> Stage {
        self.stage
    }

    /// Its role on its slot; `None`: it has no slot.
    pub(in crate::relay) fn role(&self) -> Option<Role> {
        match self.stage {
            Stage::Member(role) => Some(role),
            _ => None,
        }
    }

    /// Its slot; meaningful with a role.
    pub(in crate::relay) fn slot(&self) -> SlotKey {
        self.slot
    }

    /// The client's address as far as it is known.
    pub(in crate::relay) fn client(&self) -> IpAddr {
        IpAddr::V6(self.client).to_canonical()
    }

    pub(super) fn set_client(&mut self, client: IpAddr) {
        self.client = mapped(client);
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether it is the connection `id`, and not an earlier or later one at the same index.
    pub(super) fn is(&self, id: ConnId) -> bool {
        self.generation == id.generation()
    }
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}
