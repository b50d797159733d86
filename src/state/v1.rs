//! Format 1: the state of a relay, part by part.
//!
//! Frozen: a field is never added, removed, moved or given another meaning, because the
//! programs on both sides of a hand-over are of different versions. A change makes a new
//! format. Instants are microseconds on the relay's own time line, and connections are named
//! by the bits of their ids.

#![allow(missing_docs, reason = "a field is named as in the part that saves it")]

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

/// All that is handed over beside descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The time on the relay's own time line.
    pub now: u64,
    pub relay: Relay,
    pub turn: Turn,
    /// In the order of their descriptors.
    pub sockets: Vec<Socket>,
    pub tls: TlsStats,
    /// How long turns took.
    pub turns: Histogram,
}

/// A listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// 0 plain, 1 TLS, 2 challenges.
    pub speaks: u8,
    pub is_proxied: bool,
}

/// The socket of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    pub id: u64,
    pub readiness: Readiness,
    pub owes_header: bool,
    pub tls: Option<Session>,
}

/// A TLS session after its handshake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The last byte of the version's number: 3 TLS 1.2, 4 TLS 1.3.
    pub version: u8,
    pub suite: u8,
    pub has_ended: bool,
    pub has_sent_end: bool,
    pub owes_answer: bool,
    pub key_updates: u8,
    pub warnings: u8,
    pub empty: u8,
    pub renegotiations: u8,
    pub message: [u8; 5],
    pub message_len: u8,
    pub skip: u16,
    /// To send, to receive.
    pub sequences: [u64; 2],
    /// To send, to receive.
    pub material: [serde_bytes::ByteBuf; 2],
    /// An incomplete record as received.
    pub partial: serde_bytes::ByteBuf,
    /// Sealed bytes that are not sent.
    pub unsent: serde_bytes::ByteBuf,
    /// FIN follows them.
    pub is_ending: bool,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.material.iter_mut().for_each(|material| material.zeroize());
    }
}

/// What TLS counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsStats {
    pub reloads: u64,
    pub failed_reloads: u64,
    pub faults: u64,
    pub truncations: u64,
}

/// The relay without its sockets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relay {
    pub connections: Connections,
    pub slots: Slots,
    /// Attempts of clients.
    pub attempts: ClientLimiter,
    /// The response to a certificate authority's challenge: token, response.
    pub challenge: Option<(String, String)>,
    pub date: String,
    /// When the relay was started.
    pub started: u64,
    pub wakes: Option<Wakes>,
    pub stats: Stats,
    pub warnings: Warnings,
    /// The random number generator, as its library serialises it.
    #[serde(with = "serde_bytes")]
    pub rng: Vec<u8>,
}

/// Every connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// In ascending order of their indices.
    pub entries: Vec<Entry>,
    /// Indices that are free, the next one to be used first.
    pub vacant: Vec<u32>,
    /// Number of connections accepted so far.
    pub accepted: u64,
    /// The keys from which conn_ids are made.
    pub id_keys: [u64; 2],
    /// Connections that clients opened.
    pub opened: ClientLimiter,
    /// Slots in grace, in their order.
    pub graces: Vec<Grace>,
    pub pool: Pool,
    pub timers: Wheel,
}

/// Empty outboxes that wait to be used again, and spare pieces of queues. Sizes only: what a
/// connection is charged with depends on them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Of each outbox the room for messages and for control frames, the next one to be used
    /// last.
    pub outboxes: Vec<[u16; 2]>,
    pub pieces: u32,
}

/// One connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub index: u32,
    pub generation: u64,
    pub client: Address,
    /// 0 header, 1 header of an authority, 2 authority, 3 balancer, 4 request, 5 WebSocket,
    /// 6 claimant, 7 binary, 8 phone.
    pub stage: u8,
    /// It counts towards the limits before the upgrade.
    pub is_limited: bool,
    /// It is being read to its end, because its deadline has passed.
    pub is_expiring: bool,
    /// What its bytes are counted for: 0 its address, 1 a proxy's address, 2 its slot.
    pub payer: u8,
    pub slot: u32,
    /// Frames and bytes received and sent, packed.
    pub traffic: [u64; 2],
    pub phase: Phase,
    pub inbound: Option<Inbound>,
    pub outbox: Option<Outbox>,
}

/// The stages of members of slots.
pub const CLAIMANT: u8 = 6;
pub const BINARY: u8 = 7;
pub const PHONE: u8 = 8;

/// An address; an IPv4 address is never mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Address {
    V4([u8; 4]),
    V6([u8; 16]),
}

/// The state of a connection's protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    Head { deadline: u64 },
    Waiting { deadline: u64 },
    Open { since: u32, heartbeat: Heartbeat },
    Closing(Closing),
}

/// The heartbeat of an open connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    pub next_due: u64,
    pub sent_at: u32,
    pub round_trip: u32,
    pub sent: u32,
    pub acknowledged: u32,
    pub probe: u32,
    pub credit: u32,
}

/// A connection whose last bytes are queued or sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closing {
    pub deadline: u64,
    pub drained: u32,
    pub half_closed: bool,
    pub peer_ended: bool,
    pub answered: bool,
    pub is_framed: bool,
}

/// Bytes, and the room for more behind them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffer {
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
    pub room: u32,
}

/// Input that is not handled yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inbound {
    pub kept: Buffer,
    /// An incomplete frame as received.
    pub frame: Buffer,
    pub fragments: Option<Fragments>,
    /// Bytes in the transport.
    pub below: u64,
    pub since: u64,
    pub paused: Option<u64>,
}

/// The fragments of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fragments {
    pub is_text: bool,
    pub payload: Buffer,
    /// The length of the part that is known to be UTF-8.
    pub checked: u64,
}

/// Output that is not written yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outbox {
    /// Frames; no frame header is in two pieces.
    pub pieces: Vec<Piece>,
    /// Bytes of the first piece that were in front of these and are written.
    pub sent: u16,
    /// Remaining bytes of the frame that was cut.
    pub begun: u64,
    pub control: Buffer,
    pub late_pong: Option<Buffer>,
    /// Bytes of `control` up to the end of a probe's ping that is on its way.
    pub probe_end: Option<u32>,
    /// Bytes in the transport.
    pub below: u64,
    pub progress: u64,
}

/// A piece of a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    pub buffer: Buffer,
    /// It has pages of its own.
    pub is_whole: bool,
}

/// For which client a slot in grace holds memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grace {
    pub slot: u32,
    pub client: Client,
}

/// A client, for the sharing of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Client {
    V4([u8; 4]),
    V6([u8; 8]),
    Slot(u32),
}

/// A client, for limits on attempts: an IPv4 address, or an IPv6 /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ClientKey {
    V4([u8; 4]),
    V6([u8; 8]),
}

/// Attempts of clients and of their IPv6 /48.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientLimiter {
    pub clients: RateLimiter<ClientKey>,
    pub prefixes: RateLimiter<[u8; 6]>,
}

/// When each client's bucket is full again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimiter<K> {
    /// Sorted.
    pub current: Vec<(K, u64)>,
    /// Sorted.
    pub previous: Vec<(K, u64)>,
    pub turned: u64,
}

/// A timer wheel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wheel {
    /// The last tick reached.
    pub now: u64,
    /// Keys that are due and not popped.
    pub due: Vec<u32>,
    /// Keys by the number of ticks ahead, each in its order.
    pub ahead: Vec<(u16, Vec<u32>)>,
}

/// Every slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slots {
    /// By index; a free one has no server-id.
    pub slots: Vec<Slot>,
    /// Indices that are free, the next one to be used last.
    pub free: Vec<u32>,
    /// Sorted by slot.
    pub probes: Vec<Probe>,
    /// Sorted by slot.
    pub congested: Vec<Congestion>,
    pub rejected: Vec<u64>,
    pub graces: Wheel,
    pub drain: Option<Wheel>,
}

/// One slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    pub server_id: String,
    pub holder: Holder,
    pub phones: Vec<u64>,
}

/// What holds a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Holder {
    Binary(u64),
    Grace(u64),
}

/// A probe of a slot's holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    pub slot: u32,
    pub claimants: Vec<u64>,
    pub began: u64,
    /// When its ping left the outbox.
    pub sent: Option<u64>,
}

/// The backpressure on the phones of a slow binary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Congestion {
    pub slot: u32,
    pub is_full: bool,
    /// Phone, bytes delivered, whether it is paused.
    pub phones: Vec<(u64, u64, bool)>,
}

/// Push wakes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wakes {
    pub rate: RateLimiter<u64>,
    pub keys: [u64; 2],
    pub in_flight: u32,
    /// Device token and server-id of each wake that is not handed out.
    pub accepted: Vec<(String, String)>,
}

/// Counters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// By name: one format for all programs, whichever counters they have.
    pub counts: Vec<(String, u64)>,
    /// By name.
    pub histograms: Vec<(String, Histogram)>,
}

/// A histogram: the count of each bucket, and the sum in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    pub buckets: Vec<u64>,
    pub sum: u64,
}

/// Of each kind of warning the time of the last one, and how many were suppressed since.
pub type Given = Vec<Option<(u64, u32)>>;

/// Warnings about envelopes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warnings {
    /// By connection.
    pub given: Vec<(u64, Given)>,
    pub sweep_at: u64,
    pub began: u64,
    pub together: u32,
}

/// What waits to be served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// Light connections, busy ones, handshakes.
    pub queues: [Vec<u64>; 3],
    /// Connections that are read to their end, and the bytes left.
    pub expiring: Vec<(u64, u64)>,
}

/// What is known of a stream between two reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    pub is_readable: bool,
    /// Of the peer's side: 0 it is open, 1 it has ended, 2 the stream has failed.
    pub end: u8,
    pub has_unwanted: bool,
    pub has_kept: bool,
    pub is_queued: bool,
    /// The time used lately: units, epoch.
    pub usage: [u8; 2],
}
