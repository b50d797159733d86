//! Connection: one peer's protocol state, from its first byte to its last.
//!
//! Owns the connection's state and deadlines and, while a message is incomplete, the memory
//! for it. Must not know other connections, nor what a request or a message means (`relay/`
//! does).
//!
//! ```text
//! Head ──upgrade──▶ Open ──────────▶ Closing ──▶ gone
//!   │  └──claim──▶ Waiting ──▲ │        ▲
//!   └──────────refuse──────────┴────────┘
//! ```
//!
//! 1. Every state has exactly one deadline ([`Connection::deadline`]).
//! 2. At rest (open, nothing queued, on a frame boundary) a connection owns no memory beyond
//!    itself.
//! 3. The first close wins; nothing is queued after it.

mod closing;
mod deadlines;
mod outcome;
mod state;
mod summary;

use std::mem;
use std::time::Duration;

use self::closing::Closing;
pub use self::outcome::{Expiry, Progress};
pub use self::state::Saved;
pub use self::summary::ConnectionSummary;
use self::summary::hundredths;
use super::close::CloseCause;
use super::heartbeat::{Heartbeat, PongResult};
use super::inbound::Inbound;
use super::outbox::Outbox;
use super::outbox_pool::OutboxPool;
use super::transport::{Slices, TransportBuffered};
use super::websocket::{Codec, Incoming, Opcode, Reassembly};
use super::work::Work;
use crate::config::{DRAIN_MAX, Timeouts};
use crate::time::Instant;

/// One connection.
#[derive(Debug)]
pub struct Connection {
    state: State,
    inbound: Option<Box<Inbound>>,
    outbox: Option<Box<Outbox>>,
}

#[derive(Debug)]
enum State {
    /// The request head is not complete.
    Head { deadline: Instant },
    /// Upgraded, but another binary may hold the server-id: neither read nor pinged until
    /// that is known.
    Waiting { deadline: Instant },
    /// An open WebSocket.
    Open {
        heartbeat: Heartbeat,
        /// Time of opening, by [`hundredths`]; 32 bits fit beside the enum's tag.
        since: u32,
    },
    /// Our last bytes are queued; then half-close, drain, disconnect.
    Closing(Closing),
}

impl Connection {
    /// A connection that was accepted at `now`.
    #[must_use]
    pub fn new(now: Instant, timeouts: &Timeouts) -> Self {
        Self { state: State::Head { deadline: now + timeouts.head }, inbound: None, outbox: None }
    }

    /// The request head is not complete.
    #[must_use]
    pub fn is_head(&self) -> bool {
        matches!(self.state, State::Head { .. })
    }

    /// An open WebSocket, subject to the heartbeat.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// The last bytes to the peer are queued or sent.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        matches!(self.state, State::Closing(_))
    }

    /// Whether to read its input now: no flow control stops it, and none is left to handle.
    #[must_use]
    pub fn is_reading(&self) -> bool {
        !self.is_stopped() && (self.is_head() || !self.has_kept())
    }

    /// Whether it may not be read: by flow control, or because it waits.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        let is_paused = self.inbound.as_ref().is_some_and(|inbound| inbound.paused.is_some());
        is_paused || matches!(self.state, State::Waiting { .. })
    }

    /// Whether input was kept for later.
    #[must_use]
    pub fn has_kept(&self) -> bool {
        self.kept_len() > 0
    }

    /// Bytes of input that were kept for later.
    #[must_use]
    pub fn kept_len(&self) -> usize {
        self.inbound.as_ref().map_or(0, |inbound| inbound.kept.len())
    }

    /// Bytes of memory that its queues and its unfinished input hold.
    #[must_use]
    pub fn held(&self) -> usize {
        let outbox = self.outbox.as_ref().map_or(0, |outbox| outbox.held());
        self.inbound.as_ref().map_or(0, |inbound| inbound.held()) + outbox
    }

    /// Bytes queued to the peer.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.outbox.as_ref().map_or(0, |outbox| outbox.len())
    }

    // Input

    /// Keeps input for later: an unfinished head, or what has to wait.
    pub fn keep(&mut self, bytes: Vec<u8>, now: Instant) {
        if !bytes.is_empty() {
            self.inbound(now).kept = bytes;
        }
    }

    /// Takes what [`Self::keep`] kept.
    pub fn take_kept(&mut self) -> Vec<u8> {
        let kept =
            self.inbound.as_mut().map(|inbound| mem::take(&mut inbound.kept)).unwrap_or_default();
        self.settle();
        kept
    }

    /// The next item in `input`, which is advanced past it; `None`: consumed, or `work` is spent.
    ///
    /// # Errors
    /// The cause to close with.
    pub fn next_incoming(
        &mut self,
        input: &mut &[u8],
        codec: &mut Codec,
        work: &mut Work,
        now: Instant,
        timeouts: &Timeouts,
    ) -> Result<Option<Incoming>, CloseCause> {
        if self.is_closing() {
            self.drain(input, codec, work, now, timeouts);
            return Ok(None);
        }
        let mut at_rest = Reassembly::default();
        let reassembly = match &mut self.inbound {
            Some(inbound) => &mut inbound.reassembly,
            None => &mut at_rest,
        };
        let between = reassembly.is_empty();
        let incoming = codec.next(reassembly, input, work)?;
        if !at_rest.is_empty() {
            self.inbound(now).reassembly = at_rest;
        } else if let Some(inbound) = &mut self.inbound
            && between
        {
            inbound.since = now;
        }
        self.settle();
        Ok(incoming)
    }

    /// Input after our close frame: everything but the peer's own close frame is discarded.
    fn drain(
        &mut self,
        input: &mut &[u8],
        codec: &mut Codec,
        work: &mut Work,
        now: Instant,
        timeouts: &Timeouts,
    ) {
        let mut inbound = self.inbound.take().unwrap_or_else(|| Box::new(Inbound::new(now)));
        let State::Closing(closing) = &mut self.state else { return };
        closing.discard(&mut inbound.reassembly, input, codec, work);
        closing.hasten(now, timeouts);
        if closing.awaits_answer() && !inbound.is_empty() {
            self.inbound = Some(inbound);
        }
    }

    /// The peer has sent its last byte.
    pub fn on_end(&mut self) {
        if let State::Closing(closing) = &mut self.state {
            closing.peer_ended = true;
        }
    }

    /// Whether both close frames are sent.
    #[must_use]
    pub fn has_closed(&self) -> bool {
        matches!(&self.state, State::Closing(Closing { answered: true, half_closed: true, .. }))
    }

    /// Whether the socket may be dropped: both directions have ended, or the peer has sent
    /// more than [`DRAIN_MAX`] bytes after the close.
    #[must_use]
    pub fn is_done(&self) -> bool {
        let State::Closing(closing) = &self.state else { return false };
        closing.half_closed && closing.peer_ended || closing.drained as usize > DRAIN_MAX
    }

    /// Stops reading: backpressure on the peer by TCP flow control.
    pub fn pause(&mut self, now: Instant) {
        if !self.is_closing() {
            self.inbound(now).paused.get_or_insert(now);
        }
    }

    /// Resumes reading. The time of the pause counts towards no deadline of the peer. Returns
    /// whether reading was paused.
    pub fn resume(&mut self, now: Instant, timeouts: &Timeouts) -> bool {
        let Some(since) = self.inbound.as_mut().and_then(|inbound| inbound.paused.take()) else {
            return false;
        };
        if let Some(inbound) = &mut self.inbound {
            inbound.since += now.since(since);
        }
        if let State::Open { heartbeat, .. } = &mut self.state {
            heartbeat.on_unread(since, now, timeouts);
        }
        self.settle();
        true
    }

    /// A pong with this sequence number has arrived.
    pub fn on_pong(&mut self, sequence: u32, now: Instant) -> Option<PongResult> {
        match &mut self.state {
            State::Open { heartbeat, .. } => heartbeat.on_pong(sequence, now),
            _ => None,
        }
    }

    // Output

    /// The handshake is complete: an open WebSocket from `now` on, whose first ping is due at
    /// `first_ping`.
    pub fn open(&mut self, first_ping: Instant, now: Instant) {
        self.state = State::Open { heartbeat: Heartbeat::new(first_ping), since: hundredths(now) };
    }

    /// Time since opening and the last round-trip time; `None` unless it is open.
    #[must_use]
    pub fn summary(&self, now: Instant) -> Option<ConnectionSummary> {
        let State::Open { heartbeat, since } = &self.state else { return None };
        let age = Duration::from_millis(10 * u64::from(hundredths(now).wrapping_sub(*since)));
        Some(ConnectionSummary { age, round_trip: heartbeat.round_trip() })
    }

    /// The handshake is complete, but another binary holds the slot.
    pub fn wait(&mut self, deadline: Instant) {
        self.state = State::Waiting { deadline };
    }

    /// Queues one message made of `parts`, text or binary.
    pub fn send_message(
        &mut self,
        opcode: Opcode,
        parts: &[&[u8]],
        pool: &mut OutboxPool,
        now: Instant,
    ) {
        if !self.is_closing() {
            self.pooled_outbox(pool, now).push_message(opcode, parts, &mut pool.spare);
        }
    }

    /// Queues a ping.
    pub fn send_ping(&mut self, payload: &[u8], pool: &mut OutboxPool, now: Instant) {
        if !self.is_closing() {
            self.pooled_outbox(pool, now).push_ping(payload);
        }
    }

    /// Queues the ping of a probe; a write reports when it has left.
    pub fn send_probe(&mut self, payload: &[u8], pool: &mut OutboxPool, now: Instant) {
        if !self.is_closing() {
            self.pooled_outbox(pool, now).push_probe(payload);
        }
    }

    /// Queues the pong for a peer's ping.
    pub fn send_pong(&mut self, payload: &[u8], pool: &mut OutboxPool, now: Instant) {
        if !self.is_closing() {
            self.pooled_outbox(pool, now).push_pong(payload);
        }
    }

    /// Queues bytes of an HTTP response.
    pub fn send_answer(&mut self, answer: &[u8], now: Instant) {
        self.outbox(now).push_answer(answer);
    }

    /// Sends an extra ping now; returns its sequence number, or `None` unless open.
    pub fn probe(&mut self, now: Instant) -> Option<u32> {
        match &mut self.state {
            State::Open { heartbeat, .. } => Some(heartbeat.probe(now)),
            _ => None,
        }
    }

    /// Queues the close frame for `cause`; `echo` is the payload of the peer's own close
    /// frame.
    pub fn close(&mut self, cause: CloseCause, echo: &[u8], now: Instant, timeouts: &Timeouts) {
        if self.is_closing() {
            return;
        }
        let payload = if cause.frame().is_some() { cause.payload() } else { echo.to_vec() };
        let waits = cause.delivers_backlog() && self.backlog() > 0;
        let outbox = self.outbox(now);
        outbox.push_close(&payload, waits);
        // A slow consumer still gets the full linger time for the close frame.
        outbox.restart(now);
        let allowed = if waits { timeouts.close_backlog } else { timeouts.linger };
        self.state = State::Closing(Closing {
            answered: cause == CloseCause::PeerClosed,
            is_framed: !cause.loses_framing(),
            ..Closing::until(now + allowed)
        });
        if let Some(inbound) = &mut self.inbound {
            inbound.paused = None;
        }
        if cause.loses_framing() {
            self.inbound = None;
        }
        self.settle();
    }

    /// Frees memory of a closing connection: first the unfinished input, which no longer
    /// counts, else the messages ahead of the close frame and that frame, which a close frame
    /// with [`CloseCause::OutOfBufferMemory`] replaces. `false`: there was nothing to free.
    pub fn shed(&mut self, now: Instant, timeouts: &Timeouts) -> bool {
        let State::Closing(closing) = &mut self.state else { return false };
        if self.inbound.take().is_some() {
            closing.is_framed = false;
            return true;
        }
        let Some(outbox) = self.outbox.as_mut().filter(|outbox| outbox.has_unbegun()) else {
            return false;
        };
        outbox.push_close(&CloseCause::OutOfBufferMemory.payload(), false);
        closing.deadline = closing.deadline.min(now + timeouts.linger);
        true
    }

    /// Queues an HTTP response after which the connection ends.
    pub fn refuse(&mut self, answer: &[u8], now: Instant, timeouts: &Timeouts) {
        self.outbox(now).push_answer(answer);
        self.inbound = None;
        self.state = State::Closing(Closing::until(now + timeouts.linger));
    }

    /// What to write next, in this order, in one call; where much is queued, its first bytes.
    #[must_use]
    pub fn outgoing(&self) -> Slices<'_> {
        self.outbox.as_ref().map_or_else(Slices::default, |outbox| outbox.slices())
    }

    /// All that is queued, in the order in which it is written.
    pub fn queued(&self) -> impl Iterator<Item = &[u8]> {
        self.outbox.iter().flat_map(|outbox| outbox.queued())
    }

    /// The first `count` bytes of [`Self::outgoing`] were written.
    pub fn on_written(&mut self, count: usize, pool: &mut OutboxPool, now: Instant) -> Progress {
        let (mut is_all, mut has_sent_probe) = (false, false);
        if let Some(outbox) = &mut self.outbox {
            is_all = outbox.slices().iter().map(|slice| slice.len()).sum::<usize>() == count;
            has_sent_probe = outbox.on_written(count, now, &mut pool.spare);
        }
        if let Some(drained) = self.outbox.take_if(|outbox| outbox.is_empty()) {
            pool.put(drained);
        }
        Progress { has_more: is_all && self.queued().next().is_some(), has_sent_probe }
    }

    /// The transport buffers this many bytes, as queued. Returns whether a probe's ping has left.
    pub fn on_transport_buffered(&mut self, buffered: TransportBuffered, now: Instant) -> bool {
        let mut has_sent_probe = false;
        let TransportBuffered { unread, unsent } = buffered;
        if unread > 0 {
            self.inbound(now).below = unread;
        } else if let Some(inbound) = &mut self.inbound {
            inbound.below = 0;
        }
        if unsent > 0 {
            has_sent_probe = self.outbox(now).keep_below(unsent, now);
        } else if let Some(outbox) = &mut self.outbox {
            has_sent_probe = outbox.keep_below(0, now);
        }
        self.settle();
        has_sent_probe
    }

    /// Whether to shut down the writing half: true once, when the last bytes are written.
    pub fn half_close(&mut self, now: Instant, timeouts: &Timeouts) -> bool {
        let written = self.backlog() == 0;
        let State::Closing(closing) = &mut self.state else { return false };
        if !written || mem::replace(&mut closing.half_closed, true) {
            return false;
        }
        closing.deadline = closing.deadline.min(now + timeouts.linger);
        closing.hasten(now, timeouts);
        true
    }

    // Memory

    fn inbound(&mut self, now: Instant) -> &mut Inbound {
        self.inbound.get_or_insert_with(|| Box::new(Inbound::new(now)))
    }

    fn pooled_outbox(&mut self, pool: &mut OutboxPool, now: Instant) -> &mut Outbox {
        self.outbox.get_or_insert_with(|| pool.get(now))
    }

    /// Outside the pool, for sends that happen once per connection.
    fn outbox(&mut self, now: Instant) -> &mut Outbox {
        self.outbox.get_or_insert_with(|| Box::new(Outbox::new(now)))
    }

    /// Frees empty buffers.
    fn settle(&mut self) {
        if self.inbound.as_ref().is_some_and(|inbound| inbound.is_empty()) {
            self.inbound = None;
        }
        if self.outbox.as_ref().is_some_and(|outbox| outbox.is_empty()) {
            self.outbox = None;
        }
    }
}

#[cfg(test)]
mod tests;
