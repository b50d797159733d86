//! Inbound: input of one connection that is not yet a whole head or message.
//!
//! Owns what is buffered between two reads. Must not know the connection's state.

use super::websocket::Reassembly;
use crate::time::Instant;

/// Incomplete input, and since when reading is paused.
#[derive(Debug)]
pub(super) struct Inbound {
    /// An incomplete request head, or input that has to wait.
    pub(super) kept: Vec<u8>,
    pub(super) reassembly: Reassembly,
    /// Bytes that the transport below has received but not yet delivered.
    pub(super) below: usize,
    /// When the first byte of the incomplete message arrived, moved on by the time in which
    /// the relay did not read.
    pub(super) since: Instant,
    /// Since when reading is paused.
    pub(super) paused: Option<Instant>,
}

impl Inbound {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            kept: Vec::new(),
            reassembly: Reassembly::default(),
            below: 0,
            since: now,
            paused: None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
            && self.reassembly.is_empty()
            && self.below == 0
            && self.paused.is_none()
    }

    pub(super) fn held(&self) -> usize {
        self.kept.capacity() + self.reassembly.held() + self.below
    }
}
