//! Close notice: tells a binary which of its phones has ended, and with which code.
//!
//! Owns queueing the notice to the holder of the slot. `protocol/close.rs` decides which end
//! is told and with which code; `envelope.rs` owns the notice's form.
//!
//! 1. A phone is removed from its slot once, and only then is it reported: at most one
//!    notice.
//! 2. Every frame of the phone is in its binary's outbox before the phone is removed, so the
//!    notice follows the last one.
//! 3. Phones are closed before another binary may send to the slot, so no notice reaches a
//!    binary that did not hold the slot when the phone was registered.

use super::conn_id::PublicId;
use super::envelope;
use super::relay::Relay;
use super::slots::SlotKey;
use crate::time::Instant;

impl Relay {
    /// Tells the slot's binary that the phone has ended, if there is a binary and a `code`.
    ///
    /// The phone is gone, so there is no peer to apply backpressure to: the notice is queued
    /// regardless of the binary's backlog, and charged to the byte budget.
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
