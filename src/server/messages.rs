//! Messages: what helper threads tell the event loop, and its answers.
//!
//! Owns the closed list of messages, what they carry, and the mailbox in which they travel.
//! Must not know their senders.

pub mod handover_stats;
pub(in crate::server) mod mailbox;
pub mod tls_stats;

use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use rustls::ServerConfig;

use self::mailbox::Handle;
use crate::relay::Snapshot;
use crate::relay::stats::{Histogram, WakeOutcome};

/// Sends messages to the event loop.
pub type LoopHandle = Handle<LoopMessage>;

/// The state of the relay and its transport at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoopSnapshot {
    /// The core.
    pub relay: Snapshot,
    /// TLS.
    pub tls: tls_stats::Stats,
    /// How long turns of the loop took, from the end of the sleep to the next.
    pub turns: Histogram,
    /// Hand-overs.
    pub handover: handover_stats::HandoverStats,
}

/// A TLS configuration for handshakes, and the validity of its certificate.
#[derive(Clone, Debug)]
pub struct Certified {
    /// The configuration for new sessions.
    pub config: Arc<ServerConfig>,
    /// When the certificate's validity begins, since 1970.
    pub not_before: Duration,
    /// When the certificate's validity ends, since 1970.
    pub not_after: Duration,
}

/// A message to the event loop.
#[derive(Debug)]
pub enum LoopMessage {
    /// Send what is counted and held now. The receiver needs a deadline: a loop that has
    /// ended does not answer.
    Snapshot(SyncSender<LoopSnapshot>),
    /// Answer when the next connection is accepted. It replaces an earlier request.
    NextArrival(SyncSender<()>),
    /// The rehearsal of a hand-over has ended.
    Rehearsed,
    /// A push wake has ended.
    WakeDone(WakeOutcome),
    /// The certificate for handshakes from now on; `None`: a renewal or reload failed, and
    /// the previous certificate stays in use.
    Certificate(Option<Certified>),
    /// The challenge to answer the certificate authority from now on.
    Challenge {
        /// The answer, or none any more.
        challenge: Challenge,
        /// Told when it is in force.
        taken: SyncSender<()>,
    },
}

/// An answer to a certificate authority's challenge.
#[derive(Debug)]
pub enum Challenge {
    /// None any more; handshakes use this configuration.
    None(Arc<ServerConfig>),
    /// A token and its key authorization, for http-01 (RFC 8555 section 8.3).
    Http(String, String),
    /// A configuration that answers tls-alpn-01 (RFC 8737) beside ordinary handshakes.
    Tls(Arc<ServerConfig>),
}
