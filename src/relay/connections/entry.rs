//! Entry: one connection and the relay's data about it.
//!
//! Owns the connection's stage and role. Must not know its protocol (`protocol/connection.rs`
//! does) nor what its slot means (`relay/slots.rs` does).
//!
//! 1. A connection has a role ⇔ it is counted by the caps ⇔ its slot names it. A closing one
//!    has none. (`relay/closing.rs` maintains this.)

use std::net::{IpAddr, Ipv6Addr};

use bitflags::bitflags;

use super::clients::Client;
use super::traffic::Traffic;
use crate::protocol::connection::{Connection, ConnectionSummary};
use crate::relay::admission::ClientKey;
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

/// What a connection's bytes are counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Payer {
    /// Its address.
    Address,
    /// Its address, which is that of a proxy that names no client, until it has a slot.
    Proxy,
    /// Its slot.
    Slot,
}

bitflags! {
    /// Kinds of effects that are queued for a connection, each at most once.
    #[derive(Clone, Copy, Debug, Default)]
    pub(super) struct Queued: u8 {
        const TRANSMIT = 1;
        const EXPIRY = 2;
        const CONTINUE = 4;
    }
}

impl Queued {
    /// Adds a kind; returns whether it was missing.
    pub(super) fn add(&mut self, kind: Self) -> bool {
        let is_new = !self.contains(kind);
        self.insert(kind);
        is_new
    }
}

/// One connection and the relay's data about it.
#[derive(Debug)]
pub(in crate::relay) struct Entry {
    pub(super) connection: Connection,
    /// Its generation, in two words: they fit where one of 64 bits would not. The rest of its
    /// [`ConnId`] is its index in the slab.
    generation_low: u32,
    generation_high: u16,
    /// The client's address; the peer's until a PROXY header or the request head names
    /// another. An IPv4 address is stored mapped, which takes a byte less than an `IpAddr`.
    client: Ipv6Addr,
    pub(super) stage: Stage,
    pub(super) queued: Queued,
    /// It is in the list of connections whose bytes have changed.
    pub(super) is_changed: bool,
    /// It counts towards the limits of its client on connections that are not upgraded.
    pub(super) is_limited: bool,
    pub(super) payer: Payer,
    /// Meaningful with a role, and after it.
    pub(super) slot: SlotKey,
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
    /// The client that its bytes were counted for.
    pub(in crate::relay) payer: Client,
    pub(in crate::relay) traffic: Traffic,
    /// `None`: it was never open.
    pub(in crate::relay) summary: Option<ConnectionSummary>,
}

impl Entry {
    pub(super) fn new(connection: Connection, id: ConnId, peer: IpAddr, stage: Stage) -> Self {
        Self {
            connection,
            generation_low: id.age() as u32,
            generation_high: (id.age() >> 32) as u16,
            client: mapped(peer),
            stage,
            queued: Queued::default(),
            is_changed: false,
            is_limited: false,
            payer: Payer::Address,
            slot: SlotKey::default(),
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

    /// The client that its bytes are counted for.
    pub(super) fn payer(&self) -> Client {
        if self.payer == Payer::Slot {
            Client::Slot(self.slot)
        } else {
            Client::Address(ClientKey::from(self.client()))
        }
    }

    /// Its name, at this index.
    pub(super) fn id(&self, index: u32) -> ConnId {
        let generation = u64::from(self.generation_high) << 32 | u64::from(self.generation_low);
        ConnId::new(index, generation)
    }

    /// Whether it is the connection `id`, and not an earlier or later one at the same index.
    pub(super) fn is(&self, id: ConnId) -> bool {
        self.generation_low == id.generation() && self.id(id.index() as u32) == id
    }
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}
