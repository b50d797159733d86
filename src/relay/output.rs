//! What a connection has to say, and how much of it is out.
//!
//! Owns asking the shell to write and hearing what came of it. What is in an outbox, and
//! in which order it goes, is `protocol/outbox.rs`'s to say.

use super::conn_id::ConnId;
use super::relay::{Effect, Relay};
use crate::time::Instant;

impl Relay {
    /// What to write to the connection next, in this order, in one call.
    #[must_use]
    pub fn outgoing(&self, id: ConnId) -> [&[u8]; 3] {
        self.entry(id).map_or([&[]; 3], |entry| entry.connection.outgoing())
    }

    /// `count` bytes of what [`Self::outgoing`] gave were written.
    pub fn handle_written(&mut self, id: ConnId, count: usize, now: Instant) {
        let Some(index) = self.index(id) else { return };
        let entry = &mut self.connections[index];
        let is_all = entry.connection.backlog() == count;
        entry.connection.on_written(count, &mut self.pool, now);
        // A pong had waited for room. The socket took everything, so no event
        // will tell that it takes more.
        let has_more = is_all && entry.connection.backlog() > 0;
        if has_more {
            self.transmit(id);
        }
        self.after_write(id, now);
    }

    /// The shell keeps so many bytes of the connection below it: `unread` on their
    /// way in, and `unsent` of those that were written on their way out. They count
    /// as queued. To be called whenever it changes, before [`Self::handle_written`]
    /// of the write that changed it.
    pub fn handle_kept(&mut self, id: ConnId, unread: usize, unsent: usize, now: Instant) {
        let Some(entry) = self.entry_mut(id) else { return };
        entry.connection.on_kept(unread, unsent, now);
        self.after_write(id, now);
        self.shed(now);
    }

    fn after_write(&mut self, id: ConnId, now: Instant) {
        let Some(index) = self.index(id) else { return };
        if self.connections[index].connection.half_close(now, &self.timeouts) {
            self.effects.push_back(Effect::HalfClose(id));
        }
        self.on_drained(id, now);
        self.settle(id);
        self.remove_if_done(id);
    }

    /// Asks the shell to write.
    pub(super) fn transmit(&mut self, id: ConnId) {
        if let Some(entry) = self.entry_mut(id)
            && !std::mem::replace(&mut entry.is_transmit_queued, true)
        {
            self.effects.push_back(Effect::Transmit(id));
        }
    }
}
