//! State of an outbox: its bytes as they are queued, and back.

use super::chunks::Chunks;
use super::{CONTROL_MAX, Outbox};
use crate::protocol::websocket;
use crate::state::{Unfit, v1};
use crate::time::Instant;

const MALFORMED: Unfit = Unfit("queued output");

/// What control frames have room for at most.
const CONTROL_ROOM: usize = 4 * CONTROL_MAX;

impl Outbox {
    /// As plain values.
    #[must_use]
    pub fn save(&self) -> v1::Outbox {
        let (pieces, sent) = self.queue.save();
        v1::Outbox {
            pieces,
            sent,
            begun: self.begun as u64,
            control: v1::Buffer::from(&self.control),
            late_pong: self.late_pong.as_ref().map(v1::Buffer::from),
            probe_end: self.probe_end.map(|end| end as u32),
            below: self.below as u64,
            progress: self.progress.as_micros(),
        }
    }

    /// The outbox of which [`Self::save`] returned `saved`.
    ///
    /// # Errors
    /// If it does not hold frames.
    pub fn restore(saved: v1::Outbox) -> Result<Self, Unfit> {
        let v1::Outbox { pieces, sent, begun, control, late_pong, probe_end, below, progress } =
            saved;
        let size = |size| usize::try_from(size).map_err(|_| MALFORMED);
        let (begun, below) = (size(begun)?, size(below)?);
        let queue = Chunks::restore(pieces, sent).ok_or(MALFORMED)?;
        if begun > queue.len() || !websocket::are_frames(queue.slices(), begun) {
            return Err(MALFORMED);
        }
        Ok(Self {
            queue,
            begun,
            control: control.restore(CONTROL_ROOM),
            late_pong: late_pong.map(|pong| pong.restore(CONTROL_ROOM)),
            probe_end: probe_end.map(|end| end as usize),
            below,
            progress: Instant::from_micros(progress),
        })
    }
}

impl Outbox {
    /// The room of an empty one, for messages and for control frames.
    #[must_use]
    pub fn room(&self) -> [u16; 2] {
        [self.queue.held(), self.control.capacity()].map(|room| room as u16)
    }

    /// An empty one with this room.
    #[must_use]
    pub fn with_room([queue, control]: [u16; 2]) -> Self {
        Self {
            queue: Chunks::with_room(queue),
            control: Vec::with_capacity(control.into()),
            ..Self::new(Instant::START)
        }
    }
}
