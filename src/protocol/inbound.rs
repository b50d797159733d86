//! Input of one connection that means nothing yet.
//!
//! Owns what is kept of it between two reads. Knows no state of the connection.

use super::websocket::Assembly;
use crate::time::Instant;

/// Input that is not a message yet, and since when it is not read.
#[derive(Debug)]
pub(super) struct Inbound {
    /// An unfinished request head, or what followed a complete one.
    pub(super) early: Vec<u8>,
    pub(super) assembly: Assembly,
    /// Bytes that the layer below keeps of what is not input yet.
    pub(super) below: usize,
    /// When the first byte of the message under way came; moved on by the time
    /// in which the relay did not read.
    pub(super) since: Instant,
    /// Reading stands still since then.
    pub(super) paused: Option<Instant>,
}

impl Inbound {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            early: Vec::new(),
            assembly: Assembly::default(),
            below: 0,
            since: now,
            paused: None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.early.is_empty()
            && self.assembly.is_empty()
            && self.below == 0
            && self.paused.is_none()
    }

    pub(super) fn held(&self) -> usize {
        self.early.len() + self.assembly.held() + self.below
    }
}
