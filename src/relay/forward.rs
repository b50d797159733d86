//! Frames between a phone and its binary.
//!
//! Owns the two directions and the backpressure between them: a slow phone is
//! closed, for its binary must not wait for it; a slow binary stops the reading
//! of its phones, for nothing may be lost. Knows envelopes, not their syntax.

use super::conn_id::{ConnId, PublicId};
use super::envelope::{self, Dropped, Envelope};
use super::registry::SlotKey;
use super::relay::{Relay, Role};
use super::warnings::Kind;
use crate::config::{BINARY_HIGH_WATER, BINARY_LOW_WATER};
use crate::protocol::close::CloseCause;
use crate::protocol::websocket::{Message, Opcode};
use crate::time::Instant;

impl Relay {
    /// A phone's message goes to its binary, in an envelope.
    pub(super) fn forward_to_binary(&mut self, phone: ConnId, message: &Message, now: Instant) {
        let Some(entry) = self.entry(phone) else { return };
        let (slot, public_id) = (entry.slot, self.public_id(phone));
        let Some(frame) = message.text().and_then(envelope::frame) else {
            let server_id = self.registry.server_id(slot);
            log::warn!(server_id, conn_id:% = public_id; "phone_forwarder_marshal_err");
            return self.close(phone, CloseCause::NotJson, now);
        };
        let Some(binary) = self.registry.holder(slot) else {
            return self.close(phone, CloseCause::BinaryDisconnected, now);
        };
        if let Some(entry) = self.entry_mut(phone) {
            entry.traffic.received.add(frame.len());
        }
        let Some(index) = self.index(binary) else { return };
        let entry = &mut self.connections[index];
        entry.traffic.sent.add(frame.len());
        let conn_id = public_id.to_string();
        let parts = envelope::wrap(&conn_id, frame);
        entry.connection.send_message(Opcode::Text, &parts, &mut self.pool, now);
        let is_high = entry.connection.backlog() > BINARY_HIGH_WATER;
        self.stats.frames_to_binary += 1;
        self.stats.bytes_to_binary += frame.len() as u64;
        self.transmit(binary);
        self.settle(binary);
        if is_high && self.registry.pause(slot, true) {
            for phone in self.registry.phones(slot).to_vec() {
                self.pause(phone, now);
            }
        }
    }

    /// A binary's envelope is opened, its frame delivered, its phone perhaps closed.
    pub(super) fn forward_to_phone(&mut self, binary: ConnId, message: &Message, now: Instant) {
        if let Err(cause) = self.deliver(binary, message, now) {
            self.stats.on_dropped(cause);
            self.warn(binary, cause, now);
        }
    }

    /// Logs an envelope that was dropped: as a warning now and then, else at `debug`.
    fn warn(&mut self, binary: ConnId, cause: Dropped, now: Instant) {
        let Some(slot) = self.entry(binary).map(|entry| entry.slot) else { return };
        let kind = Kind::from(cause);
        let left_out = self.warnings.warn(binary, kind, now);
        let level = if left_out.is_some() { log::Level::Warn } else { log::Level::Debug };
        log::log!(
            level, server_id = self.registry.server_id(slot),
            binary_conn_id:% = self.public_id(binary), cause = cause.label(),
            dropped = left_out.filter(|count| *count > 0);
            "{}", kind.event()
        );
    }

    fn deliver(&mut self, binary: ConnId, message: &Message, now: Instant) -> Result<(), Dropped> {
        let Some(slot) = self.entry(binary).map(|entry| entry.slot) else { return Ok(()) };
        // While its parts came in it was charged to the binary.
        self.settle(binary);
        let text = message.text().ok_or(Dropped::NotUtf8)?;
        let (conn_id, frame, close_code) = match envelope::unwrap(text)? {
            Envelope::Deliver { conn_id, frame, close_code } => (conn_id, frame, close_code),
            Envelope::PushWake { token } => return self.on_push_wake(binary, &token, now),
        };
        let phone = PublicId::parse(&conn_id)
            .filter(|public_id| *public_id == self.public_id(public_id.id))
            .ok_or(Dropped::UnknownPhone)?
            .id;
        let entry = self
            .index(phone)
            .map(|index| &mut self.connections[index])
            .filter(|entry| entry.role == Role::Phone && entry.slot == slot)
            .ok_or(Dropped::UnknownPhone)?;
        if let Some(frame) = frame {
            let (charged, backlog) = (entry.charged as usize, entry.connection.backlog());
            if !self.budget.admits(charged, backlog, frame.len()) {
                self.close(phone, CloseCause::BacklogFull, now);
                return Ok(());
            }
            entry.traffic.sent.add(frame.len());
            let parts = [frame.as_bytes()];
            entry.connection.send_message(Opcode::Text, &parts, &mut self.pool, now);
            if let Some(entry) = self.entry_mut(binary) {
                entry.traffic.received.add(frame.len());
            }
            self.stats.frames_to_phone += 1;
            self.stats.bytes_to_phone += frame.len() as u64;
            self.transmit(phone);
            self.settle(phone);
        }
        if let Some(code) = close_code {
            self.close(phone, CloseCause::BinaryRequest(code), now);
        }
        Ok(())
    }

    /// Bytes to the connection have drained: if it is a binary that was slow,
    /// its phones may be read again.
    pub(super) fn on_drained(&mut self, id: ConnId, now: Instant) {
        let Some(entry) = self.entry(id) else { return };
        let slot = entry.slot;
        if entry.role == Role::Binary
            && self.registry.is_paused(slot)
            && entry.connection.backlog() <= BINARY_LOW_WATER
        {
            self.registry.pause(slot, false);
            self.resume_phones(slot, now);
        }
    }

    /// Reads a phone no more until its binary has caught up.
    pub(super) fn pause(&mut self, phone: ConnId, now: Instant) {
        if let Some(entry) = self.entry_mut(phone) {
            entry.connection.pause(now);
            self.settle(phone);
        }
    }

    /// Reads the phones of the slot again.
    pub(super) fn resume_phones(&mut self, slot: SlotKey, now: Instant) {
        for phone in self.registry.phones(slot).to_vec() {
            self.resume(phone, now);
        }
    }
}
