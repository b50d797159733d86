//! Editor: every change that may be made to one connection.
//!
//! Owns mutable access to a connection for the length of one [`Connections::edit`], and
//! queues the effects (write, read) that a change needs. Decides nothing.
//!
//! [`Connections::edit`]: super::Connections::edit

use std::net::IpAddr;
use std::ops::Deref;

use super::entry::{Ended, Entry, Payer, Queued, Role, Stage};
use super::{Effect, Shared};
use crate::protocol::close::CloseCause;
use crate::protocol::connection::Expiry;
use crate::protocol::heartbeat::{Heartbeat, PongResult};
use crate::protocol::proxy_header::Proxied;
use crate::protocol::transport::TransportBuffered;
use crate::protocol::websocket::{Incoming, Opcode};
use crate::protocol::work::Work;
use crate::relay::admission::{ClientKey, EarlyClose};
use crate::relay::conn_id::{ConnId, PublicId};
use crate::relay::slots::SlotKey;
use crate::time::Instant;

/// Mutable access to one connection.
pub(in crate::relay) struct Editor<'a> {
    id: ConnId,
    now: Instant,
    entry: &'a mut Entry,
    shared: &'a mut Shared,
}

impl Deref for Editor<'_> {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        self.entry
    }
}

impl<'a> Editor<'a> {
    pub(super) fn new(
        id: ConnId,
        now: Instant,
        entry: &'a mut Entry,
        shared: &'a mut Shared,
    ) -> Self {
        Self { id, now, entry, shared }
    }

    // Input

    /// The next message or control frame in `input`; `None`: `input` is consumed, or `work` is
    /// spent.
    pub(in crate::relay) fn next_incoming(
        &mut self,
        input: &mut &[u8],
        work: &mut Work,
    ) -> Result<Option<Incoming>, CloseCause> {
        let Shared { codec, timeouts, .. } = &mut *self.shared;
        self.entry.connection.next_incoming(input, codec, work, self.now, timeouts)
    }

    /// Keeps an unfinished head.
    pub(in crate::relay) fn keep_head(&mut self, bytes: Vec<u8>) {
        self.entry.connection.keep(bytes, self.now);
    }

    /// Keeps input that has to wait, and asks for [`Input::Continue`](crate::relay::Input)
    /// unless reading is stopped.
    pub(in crate::relay) fn keep(&mut self, bytes: Vec<u8>) {
        self.entry.connection.keep(bytes, self.now);
        self.read_on();
    }

    /// Takes the input that was kept.
    pub(in crate::relay) fn take_kept(&mut self) -> Vec<u8> {
        self.entry.connection.take_kept()
    }

    /// The peer has sent its last byte.
    pub(in crate::relay) fn on_end(&mut self) {
        self.entry.connection.on_end();
    }

    /// The result of a pong with this payload; `None`: it matches no unanswered ping.
    pub(in crate::relay) fn on_pong(
        &mut self,
        public_id: PublicId,
        payload: &[u8],
    ) -> Option<PongResult> {
        let sequence = Heartbeat::sequence(public_id.key, payload)?;
        self.entry.connection.on_pong(sequence, self.now)
    }

    /// Pauses reading: backpressure on the peer by TCP flow control.
    pub(in crate::relay) fn pause(&mut self) {
        self.entry.connection.pause(self.now);
    }

    /// Resumes reading, if it is paused.
    pub(in crate::relay) fn resume(&mut self) {
        if self.entry.connection.resume(self.now, &self.shared.timeouts) {
            self.read_on();
        }
    }

    /// Unless reading is stopped, asks for what was kept to be handled, or else for more to be
    /// read.
    pub(in crate::relay) fn read_on(&mut self) {
        if self.entry.connection.is_stopped() {
            return;
        }
        if !self.entry.connection.has_kept() {
            self.shared.effects.push_back(Effect::Resume(self.id));
        } else if self.entry.queued.add(Queued::CONTINUE) {
            self.shared.effects.push_back(Effect::Continue(self.id));
        }
    }

    // Output

    /// Whether the byte budget admits `more` bytes queued to it.
    pub(in crate::relay) fn admits(&self, more: usize) -> bool {
        let connection = &self.entry.connection;
        self.shared.budget.admits(connection.held(), connection.backlog(), more)
    }

    /// Queues one text message made of `parts`, which carries a frame of `len` bytes.
    pub(in crate::relay) fn send_frame(&mut self, parts: &[&[u8]], len: usize) {
        self.entry.traffic.sent.add(len);
        self.send_text(parts);
    }

    /// Queues one text message made of `parts`, which carries no frame.
    pub(in crate::relay) fn send_text(&mut self, parts: &[&[u8]]) {
        let pool = &mut self.shared.pool;
        self.entry.connection.send_message(Opcode::Text, parts, pool, self.now);
        self.transmit();
    }

    /// Queues a ping.
    pub(in crate::relay) fn send_ping(&mut self, public_id: PublicId, sequence: u32) {
        let payload = Heartbeat::payload(public_id.key, sequence);
        self.entry.connection.send_ping(&payload, &mut self.shared.pool, self.now);
        self.transmit();
    }

    /// Queues the ping of a probe; the result of a write says when it has left.
    pub(in crate::relay) fn send_probe(&mut self, public_id: PublicId, sequence: u32) {
        let payload = Heartbeat::payload(public_id.key, sequence);
        self.entry.connection.send_probe(&payload, &mut self.shared.pool, self.now);
        self.transmit();
    }

    /// Queues the pong for a peer's ping.
    pub(in crate::relay) fn send_pong(&mut self, payload: &[u8]) {
        self.entry.connection.send_pong(payload, &mut self.shared.pool, self.now);
        self.transmit();
    }

    /// Queues the 101: from now on it is a WebSocket of `client`. `rest` followed the head.
    /// Where `is_proxy`, that is the address of a proxy which names no client.
    pub(in crate::relay) fn switch_protocols(
        &mut self,
        answer: &[u8],
        (client, is_proxy): (IpAddr, bool),
        rest: &[u8],
    ) {
        self.shared.release_request(self.entry);
        self.entry.is_limited = false;
        self.entry.set_client(client);
        self.entry.payer = if is_proxy { Payer::Proxy } else { Payer::Address };
        self.entry.stage = Stage::WebSocket;
        self.shared.websockets += 1;
        self.entry.connection.send_answer(answer, self.now);
        self.entry.connection.keep(rest.to_vec(), self.now);
        self.transmit();
    }

    /// Queues an HTTP response after which the connection ends.
    pub(in crate::relay) fn refuse(&mut self, answer: &[u8]) {
        self.entry.connection.refuse(answer, self.now, &self.shared.timeouts);
        self.transmit();
    }

    /// The first `count` bytes of what is outgoing were written. Returns whether the ping of a
    /// probe has left.
    pub(in crate::relay) fn on_written(&mut self, count: usize) -> bool {
        let progress = self.entry.connection.on_written(count, &mut self.shared.pool, self.now);
        // A late pong has moved into the free space, or the rest is in further chunks.
        if progress.has_more {
            self.transmit();
        }
        progress.has_sent_probe
    }

    /// The transport buffers this many bytes. Returns whether the ping of a probe has left.
    pub(in crate::relay) fn on_buffered(&mut self, buffered: TransportBuffered) -> bool {
        self.entry.connection.on_transport_buffered(buffered, self.now)
    }

    /// Queues [`Effect::Transmit`], once.
    fn transmit(&mut self) {
        if self.entry.queued.add(Queued::TRANSMIT) {
            self.shared.effects.push_back(Effect::Transmit(self.id));
        }
    }

    // Stage

    /// A valid PROXY header has arrived.
    pub(in crate::relay) fn on_proxied(&mut self, proxied: Proxied) {
        self.entry.stage = match (self.entry.stage, proxied) {
            (Stage::HeaderOfAuthority, _) => Stage::Authority,
            (_, Proxied::Client(_)) => Stage::Request,
            (_, Proxied::Local) => Stage::Balancer,
        };
        if let Proxied::Client(client) = proxied {
            self.entry.set_client(client);
        }
    }

    /// Counts it towards the limits of its client before the upgrade.
    pub(in crate::relay) fn limit(&mut self) -> Result<(), EarlyClose> {
        let client = ClientKey::from(self.entry.client());
        self.shared.request_limits.admit(client, self.now)?;
        self.entry.is_limited = true;
        Ok(())
    }

    /// It is a claimant of the slot, at the latest until `until`.
    pub(in crate::relay) fn wait(&mut self, slot: SlotKey, until: Instant) {
        self.entry.stage = Stage::Member(Role::Claimant);
        self.join(slot);
        self.entry.connection.wait(until);
    }

    /// It is a member of the slot from now on, read and pinged, first at `first_ping`.
    pub(in crate::relay) fn open(&mut self, role: Role, slot: SlotKey, first_ping: Instant) {
        let was_reading = self.entry.connection.is_reading();
        self.entry.stage = Stage::Member(role);
        self.join(slot);
        self.entry.connection.open(first_ping, self.now);
        if !was_reading || self.entry.connection.has_kept() {
            self.read_on();
        }
    }

    fn join(&mut self, slot: SlotKey) {
        self.entry.slot = slot;
        if self.entry.payer == Payer::Proxy {
            self.entry.payer = Payer::Slot;
        }
    }

    /// An extra ping now, to learn early whether the peer is alive. Returns its sequence
    /// number; `None` unless the connection is open.
    pub(in crate::relay) fn probe(&mut self) -> Option<u32> {
        self.entry.connection.probe(self.now)
    }

    // End

    /// Closes a WebSocket; the first cause wins. Returns its final facts, if it had a role.
    pub(in crate::relay) fn close(&mut self, cause: CloseCause, echo: &[u8]) -> Option<Ended> {
        if self.entry.connection.is_closing() {
            return None;
        }
        let ended = self.end();
        let connection = &mut self.entry.connection;
        let was_stopped = connection.is_stopped();
        connection.close(cause, echo, self.now, &self.shared.timeouts);
        // Of its input only its own close frame counts now.
        if was_stopped || connection.has_kept() {
            self.read_on();
        }
        self.transmit();
        ended
    }

    /// Takes its role away. Returns its final facts, if it had a role.
    pub(super) fn end(&mut self) -> Option<Ended> {
        let role = self.entry.role()?;
        self.entry.stage = Stage::WebSocket;
        Some(Ended {
            role,
            slot: self.entry.slot,
            client: self.entry.client(),
            payer: self.entry.payer(),
            traffic: self.entry.traffic,
            summary: self.entry.connection.summary(self.now),
        })
    }

    /// Frees bytes of a closing connection. `false`: there were none to free.
    pub(in crate::relay) fn shed(&mut self) -> bool {
        let has_shed = self.entry.connection.shed(self.now, &self.shared.timeouts);
        if has_shed {
            self.transmit();
        }
        has_shed
    }

    /// Queues [`Effect::ReadThenExpire`], once: it is read to the end before its deadline
    /// counts.
    pub(in crate::relay) fn read_then_expire(&mut self) {
        if self.entry.queued.add(Queued::EXPIRY) {
            self.shared.effects.push_back(Effect::ReadThenExpire(self.id));
        }
    }

    /// It was read to the end: the action of its deadline, if that has still passed.
    pub(in crate::relay) fn expire_after_read(&mut self) -> Option<Expiry> {
        self.entry.queued.remove(Queued::EXPIRY);
        self.entry.connection.handle_timeout(self.now, &self.shared.timeouts)
    }
}
