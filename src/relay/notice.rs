//! The close notice: a binary is told which of its phones has ended, and how.
//!
//! Owns queueing it to the holder of the slot. Which end is told, and with which
//! code, is `protocol/close.rs`'s to say; what a notice looks like, `envelope.rs`'s.
//!
//! 1. A phone departs once, and only then is it told of: one notice or none.
//! 2. Every frame of the phone is in its binary's outbox before it departs, so the
//!    notice is behind the last one.
//! 3. Phones are closed before another binary may send to the slot, so no notice
//!    reaches one that did not hold the slot at the phone's registration.

use super::conn_id::PublicId;
use super::envelope;
use super::relay::Relay;
use super::slots::SlotKey;
use crate::time::Instant;

impl Relay {
    /// Tells the binary of the slot, if there is one and a `code` to tell, that the
    /// phone has ended.
    ///
    /// The phone is gone, so nothing could be paused to hold the notice back: it is
    /// queued whatever else waits for the binary, and charged to the byte budget.
    pub(super) fn notify(
        &mut self,
        slot: SlotKey,
        phone: PublicId,
        code: Option<u16>,
        now: Instant,
    ) {
        let (Some(code), Some(binary)) = (code, self.slots.holder(slot)) else { return };
        let (conn_id, digits) = (phone.to_string(), code.to_string());
        let is_told = self.connections.edit(binary, now, |it| {
            let is_open = it.connection().is_open();
            if is_open {
                it.send_text(&envelope::notice(&conn_id, &digits));
            }
            is_open
        });
        if is_told == Some(true) {
            self.stats.close_notices += 1;
        } else {
            let server_id = self.slots.server_id(slot);
            log::warn!(
                server_id, conn_id:% = phone, close_code = code; "phone_close_notice_send_failed"
            );
        }
    }
}
