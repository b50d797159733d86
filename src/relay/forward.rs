//! Forwarding: frames between a phone and its binary, and the backpressure between them.
//!
//! Owns what each message means. A phone that is a slow consumer is closed, because its
//! binary must not wait for it; a slow binary pauses the reading of its phones, because no
//! frame may be lost. Must not know the syntax of envelopes.

use super::closing::FollowUp;
use super::conn_id::{ConnId, PublicId};
use super::connections::{Editor, Role};
use super::envelope::{self, Dropped, Envelope};
use super::push_wake::{DeviceToken, Wake};
use super::relay::Relay;
use super::slots::SlotKey;
use super::warnings::Kind;
use crate::protocol::close::CloseCause;
use crate::protocol::heartbeat::PongResult;
use crate::protocol::transport::TransportBuffered;
use crate::protocol::websocket::{Incoming, Message};
use crate::protocol::work::Work;
use crate::time::Instant;

/// The next item of the input.
enum Next {
    /// The input holds no further one, or it has to wait.
    Nothing,
    Message(Message, Option<Role>, SlotKey),
    Pong(PongResult, Option<Role>, SlotKey),
    Close(CloseCause, Vec<u8>),
}

impl Next {
    fn read(it: &mut Editor<'_>, input: &mut &[u8], public_id: PublicId, work: &mut Work) -> Self {
        // A slow binary stops its phone between two messages.
        if it.connection().is_stopped() {
            return Self::Nothing;
        }
        loop {
            match it.next_incoming(input, work) {
                Ok(None) => return Self::Nothing,
                Ok(Some(Incoming::Message(message))) => {
                    return Self::Message(message, it.role(), it.slot());
                }
                Ok(Some(Incoming::Ping(payload))) => it.send_pong(&payload),
                Ok(Some(Incoming::Pong(payload))) => {
                    if let Some(result) = it.on_pong(public_id, &payload) {
                        return Self::Pong(result, it.role(), it.slot());
                    }
                }
                Ok(Some(Incoming::Close(echo))) => {
                    return Self::Close(CloseCause::PeerClosed, echo);
                }
                Err(cause) => return Self::Close(cause, Vec::new()),
            }
        }
    }
}

impl Relay {
    /// Bytes have arrived on a WebSocket. What would take too long now, or arrives while
    /// reading is stopped, is kept.
    pub(super) fn handle_frames(&mut self, id: ConnId, input: &[u8], now: Instant) {
        self.handle_some_frames(id, input, Work::of_new_input(), now);
    }

    fn handle_some_frames(&mut self, id: ConnId, mut input: &[u8], mut work: Work, now: Instant) {
        let public_id = self.connections.public_id(id);
        while !input.is_empty() {
            let read = |it: &mut Editor<'_>| Next::read(it, &mut input, public_id, &mut work);
            match self.connections.edit(id, now, read) {
                Some(Next::Nothing) => break,
                Some(Next::Message(message, role, slot)) => {
                    match (message.text(), role) {
                        (Err(cause), _) => self.close(id, cause, &[], now),
                        (Ok(text), Some(Role::Phone)) => {
                            self.forward_to_binary(public_id, slot, text, now);
                        }
                        (Ok(text), _) => self.forward_to_phone(public_id, slot, text, now),
                    }
                    self.connections.recycle(message);
                }
                Some(Next::Pong(result, role, slot)) => self.on_pong(result, role, slot),
                Some(Next::Close(cause, echo)) => self.close(id, cause, &echo, now),
                None => return,
            }
        }
        if !input.is_empty() {
            self.connections.edit(id, now, |it| it.keep(input.to_vec()));
        }
    }

    /// It is the connection's turn again: the input that it left over is handled on.
    pub(super) fn handle_kept(&mut self, id: ConnId, now: Instant) {
        let kept = self.connections.edit(id, now, |it| {
            let is_waiting = it.connection().is_stopped() || it.connection().is_head();
            if is_waiting { Vec::new() } else { it.take_kept() }
        });
        let Some(kept) = kept.filter(|kept| !kept.is_empty()) else { return };
        self.handle_some_frames(id, &kept, Work::of_kept_input(), now);
        self.connections.edit(id, now, |it| {
            if !it.connection().has_kept() {
                it.read_on();
            }
        });
    }

    /// Forwards a phone's message to its binary, in an envelope.
    fn forward_to_binary(
        &mut self,
        phone: PublicId,
        slot: SlotKey,
        text: Option<&str>,
        now: Instant,
    ) {
        let Some(frame) = text.and_then(envelope::frame) else {
            let server_id = self.slots.server_id(slot);
            log::warn!(server_id, conn_id:% = phone; "phone_forwarder_marshal_err");
            return self.close(phone.id, CloseCause::NotJson, &[], now);
        };
        let Some(binary) = self.slots.holder(slot) else {
            return self.close(phone.id, CloseCause::BinaryDisconnected, &[], now);
        };
        self.connections.count_received(phone.id, frame.len());
        let backlog = self.connections.edit(binary, now, |it| {
            let mut memory = [0; PublicId::LEN];
            it.send_frame(&envelope::wrap(phone.encode(&mut memory), frame), frame.len());
            it.connection().backlog()
        });
        self.stats.frames_to_binary += 1;
        self.stats.bytes_to_binary += frame.len() as u64;
        if backlog
            .is_some_and(|backlog| self.slots.on_delivered(slot, phone.id, frame.len(), backlog))
        {
            self.connections.edit(phone.id, now, |it| it.pause());
        }
    }

    /// Handles a binary's envelope: delivers its frame, or closes its phone, or both.
    fn forward_to_phone(
        &mut self,
        binary: PublicId,
        slot: SlotKey,
        text: Option<&str>,
        now: Instant,
    ) {
        if let Err(cause) = self.deliver(binary, slot, text, now) {
            self.stats.on_dropped(cause);
            self.warn(binary, slot, cause, now);
        }
    }

    /// Logs an envelope that was dropped: at `warn` at most once a minute, else at `debug`.
    fn warn(&mut self, binary: PublicId, slot: SlotKey, cause: Dropped, now: Instant) {
        let kind = Kind::from(cause);
        let left_out = self.warnings.warn(binary.id, kind, now);
        let level = if left_out.is_some() { log::Level::Warn } else { log::Level::Debug };
        log::log!(
            level, server_id = self.slots.server_id(slot), binary_conn_id:% = binary,
            cause = cause.label(), dropped = left_out.filter(|count| *count > 0);
            "{}", kind.event()
        );
    }

    fn deliver(
        &mut self,
        binary: PublicId,
        slot: SlotKey,
        text: Option<&str>,
        now: Instant,
    ) -> Result<(), Dropped> {
        let text = text.ok_or(Dropped::NotUtf8)?;
        let (conn_id, frame, close_code) = match envelope::unwrap(text)? {
            Envelope::Deliver { conn_id, frame, close_code } => (conn_id, frame, close_code),
            Envelope::PushWake { token } => return self.accept_wake(slot, &token, now),
        };
        let phone = self.connections.find(&conn_id).ok_or(Dropped::UnknownPhone)?;
        let is_delivered = self
            .connections
            .edit(phone, now, |it| {
                if it.role() != Some(Role::Phone) || it.slot() != slot {
                    return Err(Dropped::UnknownPhone);
                }
                let Some(frame) = frame else { return Ok(true) };
                if !it.admits(frame.len()) {
                    return Ok(false);
                }
                it.send_frame(&[frame.as_bytes()], frame.len());
                Ok(true)
            })
            .ok_or(Dropped::UnknownPhone)??;
        if !is_delivered {
            self.close(phone, CloseCause::BacklogFull, &[], now);
            return Ok(());
        }
        if let Some(frame) = frame {
            self.connections.count_received(binary.id, frame.len());
            self.stats.frames_to_phone += 1;
            self.stats.bytes_to_phone += frame.len() as u64;
        }
        if let Some(code) = close_code {
            self.close(phone, CloseCause::BinaryRequest(code), &[], now);
        }
        Ok(())
    }

    /// Accepts a binary's request for a push wake, within the limits.
    fn accept_wake(&mut self, slot: SlotKey, token: &str, now: Instant) -> Result<(), Dropped> {
        let Some(wakes) = &mut self.wakes else { return Err(Dropped::PushWakeOff) };
        let server_id = self.slots.server_id(slot);
        let wake = || Wake { device: DeviceToken::new(token), server_id: server_id.into() };
        wakes.accept(server_id, wake, now)
    }

    /// Handles a pong that acknowledged a ping.
    fn on_pong(&mut self, result: PongResult, role: Option<Role>, slot: SlotKey) {
        self.stats.pongs += 1;
        if let Some(round_trip) = result.round_trip {
            self.stats.round_trips.observe(round_trip);
        }
        if result.answers_probe && role == Some(Role::Binary) {
            self.slots.reject_claimants(slot);
        }
    }

    /// The first `count` bytes of what is outgoing were written, of which the transport buffers
    /// as many as `buffered` says. If that brings a slow binary
    /// down to the low watermark, its phones are read again.
    pub(super) fn handle_written(
        &mut self,
        id: ConnId,
        count: usize,
        buffered: TransportBuffered,
        now: Instant,
    ) {
        // First what is below: a ping that was written may be there.
        self.drain(id, now, |it| it.on_buffered(buffered) | it.on_written(count));
    }

    /// The transport buffers this many bytes of the connection.
    pub(super) fn handle_buffered(
        &mut self,
        id: ConnId,
        buffered: TransportBuffered,
        now: Instant,
    ) {
        self.drain(id, now, |it| it.on_buffered(buffered));
    }

    /// `change` returns whether the ping of a probe has left.
    fn drain(&mut self, id: ConnId, now: Instant, change: impl FnOnce(&mut Editor<'_>) -> bool) {
        let drained = self.connections.edit(id, now, |it| {
            let has_sent_probe = change(it);
            (it.role(), it.slot(), it.connection().backlog(), has_sent_probe)
        });
        if let Some((Some(Role::Binary), slot, backlog, has_sent_probe)) = drained {
            if has_sent_probe {
                self.slots.on_probe_sent(slot, id, now);
            }
            let resumed = self.slots.on_drained(slot, backlog);
            self.follow_ups.extend(resumed.into_iter().map(FollowUp::Resume));
        }
    }
}
