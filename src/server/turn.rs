//! Turn: the work between two waits, generic over the transport.
//!
//! Owns the order of that work, the queue of connections to read and the list of connections
//! to read before they expire. Must not know sockets, the clock, nor what a peer may do. The
//! event loop, the simulation, the fuzz targets and the benchmark all drive a core through it,
//! so that what they test is what runs.
//!
//! A turn is bounded in time, whatever peers send: each queue gets its share and keeps the
//! rest, and one connection gets a slice of at most some 0.3 ms of work (`protocol/work.rs`)
//! before others are served. The longest step that cannot be divided is one TLS handshake:
//! 0.2 ms with ECDSA P-256, 0.7 ms with RSA-2048, 7 ms with RSA-4096.
//!
//! Connections that used little time lately come first, and do not wait for others whose
//! sockets have room again.
//!
//! The steps continue those of the event loop, and each may depend on the ones before. The
//! numbers stand at the branches of [`Turn::run`] as well. After each step its effects are
//! carried out (`output.rs`).
//! 4. Carry out the effects that the last turn left over. If some remain, the next steps up to
//!    timers are left out: more input would only make it longer.
//! 5. Accept, at most for [`ACCEPT_TIME`].
//! 6. Serve light connections with input, one slice each; then, after step 7, handshakes. Each
//!    queue in order of arrival, at least one connection, and at most for its time
//!    ([`Class::time`]). A connection with more input goes to the back.
//! 7. Write to connections whose sockets have room again and, once all of them are written,
//!    serve busy ones with input, for [`Class::time`] each; everything that was caused for a
//!    peer is written in one call, at the latest when [`BYTES_PER_PASS`] were read, so that a
//!    pass fits the byte budget.
//! 8. Only then timers: no deadline counts while a pong waits unread. One poll returns a batch
//!    only, and a connection is read only so far, so a connection that a timer would close is
//!    first read as far as it had sent then, and expires after that.

mod class;
mod core;
mod output;
mod state;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use bitflags::bitflags;

use self::class::{Class, SERVE_TIME, Usage};
pub use self::core::Core;

use crate::config::{BUFFER_MEMORY, READ_SIZE};
use crate::protocol::proxy_header::{Malformed, Proxied};
use crate::protocol::transport::TransportBuffered;
use crate::relay::{ConnId, Input, ListenerKind};
use crate::time::Instant;

/// Bytes read before the output that they caused is written. As long as both are in a core's
/// own cache, of 512 KiB or more today, the kernel copies them from there: messages of 16 KiB
/// cost a tenth less than with 1 MiB.
const BYTES_PER_PASS: usize = 256 * 1024;
/// The time for accepting in one turn.
const ACCEPT_TIME: Duration = Duration::from_millis(1);
/// The most that a byte of input may cost; what took longer, the kernel took for other
/// processes. The dearest bytes are those of bad envelopes, six of which cost 1.15 µs.
const TIME_PER_BYTE: Duration = Duration::from_nanos(200);

// The most that a pass queues: the envelope around a one-byte frame is eight times as long
// as the frame on the wire.
const _: () = assert!(8 * (BYTES_PER_PASS + READ_SIZE) < BUFFER_MEMORY);

/// What moves the bytes of a core's connections: TCP sockets, or a model of them.
///
/// Every call that names a connection without a stream does nothing.
pub trait Transport {
    /// The core whose connections these are.
    type Core: Core;
    /// Memory that all connections share; none keeps it for longer than a call.
    type Buffers;

    /// The core.
    fn core(&mut self) -> &mut Self::Core;

    /// Takes the next connection that waits to be accepted, if there is one; where it comes
    /// from and through which listener.
    fn accept(&mut self, now: Instant) -> Option<(IpAddr, ListenerKind)>;

    /// Names the connection that [`Self::accept`] took. Returns false if it has failed.
    fn attach(&mut self, id: ConnId, now: Instant) -> bool;

    /// The readiness of a connection's stream; `None`: there is no stream.
    fn readiness(&mut self, id: ConnId) -> Option<&mut Readiness>;

    /// Whether the next input may cost public-key cryptography.
    fn is_handshaking(&mut self, _id: ConnId) -> bool {
        false
    }

    /// The bytes that the transport buffers.
    fn buffered(&mut self, _id: ConnId) -> TransportBuffered {
        TransportBuffered::default()
    }

    /// The bytes of input that the stream holds.
    fn unread(&mut self, id: ConnId) -> usize;

    /// The time now. Only the difference of two readings matters here.
    fn clock(&mut self) -> Instant;

    /// Reads once, and updates [`Readiness::is_readable`].
    fn read<'b>(
        &mut self,
        id: ConnId,
        buffers: &'b mut Self::Buffers,
        now: Instant,
    ) -> Received<'b>;

    /// Writes what the core has queued for the connection, in one call.
    fn write(&mut self, id: ConnId, buffers: &mut Self::Buffers) -> Written;

    /// Sends FIN after everything written. If the peer sends nothing more (`is_over`), this may
    /// be left to [`Self::disconnect`]; returns whether it is.
    fn half_close(&mut self, id: ConnId, is_over: bool, buffers: &mut Self::Buffers) -> bool;

    /// Closes the stream and forgets it.
    fn disconnect(&mut self, id: ConnId, buffers: &mut Self::Buffers);
}

/// What is known of a stream between two reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Input may be waiting that no event will announce again.
    pub is_readable: bool,
    /// How the peer's side has ended, as far as events tell.
    pub end: PeerEnd,
    flags: Flags,
    usage: Usage,
}

bitflags! {
    /// What else is known of a stream.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    struct Flags: u8 {
        /// The stream was readable while flow control had stopped reading.
        const UNWANTED = 1;
        /// The core has input left over from an earlier slice.
        const KEPT = 2;
        /// In a queue of connections to serve.
        const QUEUED = 4;
        /// In the queue of connections to write on.
        const UNWRITTEN = 8;
    }
}

impl Readiness {
    /// Whether the flag is set; it is not any more.
    fn take(&mut self, flag: Flags) -> bool {
        let is_set = self.flags.contains(flag);
        self.flags.remove(flag);
        is_set
    }
}

/// How the peer's side of a stream has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerEnd {
    /// It has not.
    #[default]
    Open,
    /// The peer has sent its last byte: the stream is read to its end even after a short read.
    Closed,
    /// The connection has failed (a reset).
    Broken,
}

/// The result of a read.
#[derive(Debug)]
pub enum Received<'b> {
    /// A PROXY header, valid or malformed; the client's bytes follow.
    Proxied(Result<Proxied, Malformed>),
    /// The peer's next bytes, possibly none yet, and the number of bytes read for them.
    Bytes(&'b [u8], usize),
    /// No input now.
    Nothing,
    /// The peer has sent its last byte.
    End,
    /// The stream has failed.
    Broken,
}

/// The result of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// There was nothing to write.
    Nothing,
    /// This many bytes were accepted: all, or as many as there was room for.
    Bytes(usize),
    /// This many bytes were accepted, and there may be room for more.
    Part(usize),
    /// The stream has failed.
    Broken,
}

/// The connections that have work waiting, and the memory for it.
#[derive(Debug)]
pub struct Turn<B> {
    /// Connections to serve, by [`Class`].
    queues: [VecDeque<ConnId>; 3],
    /// Connections whose deadline has passed, each with the bytes to read before it counts.
    expiring: VecDeque<(ConnId, usize)>,
    /// Connections to write on.
    unwritten: VecDeque<ConnId>,
    /// Effects were left over.
    is_behind: bool,
    buffers: B,
}

impl<B> Turn<B> {
    /// No work, and `buffers` for all connections.
    pub fn new(buffers: B) -> Self {
        Self {
            queues: Default::default(),
            expiring: VecDeque::new(),
            unwritten: VecDeque::new(),
            is_behind: false,
            buffers,
        }
    }

    /// Whether there is work to be done without waiting for an event.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.is_behind
            || !self.unwritten.is_empty()
            || !self.expiring.is_empty()
            || self.queues.iter().any(|queue| !queue.is_empty())
    }

    /// Steps 4 to 8, all at the instant `now`.
    pub fn run<T: Transport<Buffers = B>>(&mut self, transport: &mut T, now: Instant) {
        // 4. What was left over.
        if self.apply_effects(transport, now) {
            // 5. Accept.
            self.accept(transport, now);
            // 6. Serve those that need little; 7. write on, and serve the busy ones.
            self.serve(transport, Class::Light, now);
            if self.flush(transport, now) {
                self.serve(transport, Class::Busy, now);
                self.flush(transport, now);
            }
            self.serve(transport, Class::Handshake, now);
            self.apply_effects(transport, now);
        }
        // 8. Timers, after the bytes that have arrived.
        if transport.core().next_deadline().is_some_and(|deadline| deadline <= now) {
            transport.core().handle(Input::Timeout, now);
            self.apply_effects(transport, now);
        }
        self.expire(transport, now);
        // What timers caused leaves in their turn.
        self.flush(transport, now);
    }

    /// A connection has input, or its peer's side has ended.
    pub fn on_readable<T: Transport<Buffers = B>>(
        &mut self,
        transport: &mut T,
        id: ConnId,
        end: PeerEnd,
        now: Instant,
    ) {
        if let Some(readiness) = transport.readiness(id) {
            readiness.is_readable = true;
            readiness.end = readiness.end.max(end);
            self.queue(transport, id, now);
        }
    }

    fn accept<T: Transport<Buffers = B>>(&mut self, transport: &mut T, now: Instant) {
        let begun = transport.clock();
        while let Some((peer, kind)) = transport.accept(now) {
            let id = transport.core().handle_accept(peer, kind, now);
            if !transport.attach(id, now) {
                transport.core().handle(Input::Disconnected(id), now);
            }
            // TLS holds memory before the first byte.
            let buffered = transport.buffered(id);
            if buffered != TransportBuffered::default() {
                transport.core().handle(Input::Buffered(id, buffered), now);
            }
            if transport.clock().since(begun) >= ACCEPT_TIME {
                return;
            }
        }
    }

    /// Serves each connection that was queued when the turn began, as far as the time goes.
    fn serve<T: Transport<Buffers = B>>(&mut self, transport: &mut T, class: Class, now: Instant) {
        if self.queues[class as usize].is_empty() {
            return;
        }
        let begun = transport.clock();
        let (mut last, mut unsent) = (begun, 0);
        for _ in 0..self.queues[class as usize].len() {
            if unsent >= BYTES_PER_PASS {
                unsent = 0;
                if !self.flush(transport, now) {
                    return;
                }
                last = transport.clock();
            }
            let Some(id) = self.queues[class as usize].pop_front() else { break };
            let Some(readiness) = transport.readiness(id) else { continue };
            readiness.flags.remove(Flags::QUEUED);
            let is_read = !readiness.flags.contains(Flags::KEPT);
            // Requests and handshakes have limits of their own, and say nothing of what follows.
            let is_counted = !transport.core().is_request(id);
            let count = self.slice(transport, id, now);
            unsent += count;
            let clock = transport.clock();
            if is_counted && let Some(readiness) = transport.readiness(id) {
                let most = if is_read { TIME_PER_BYTE * count as u32 } else { Duration::MAX };
                readiness.usage.add(clock.since(last).min(most), clock, now);
                if readiness.is_readable {
                    readiness.usage.add_rest(now);
                }
            }
            self.queue(transport, id, now);
            last = clock;
            if clock.since(begun) >= class.time() {
                break;
            }
        }
    }

    /// Handles what the core left over of a connection's input, or else reads once. Returns the
    /// number of bytes read.
    fn slice<T: Transport<Buffers = B>>(
        &mut self,
        transport: &mut T,
        id: ConnId,
        now: Instant,
    ) -> usize {
        let Some(readiness) = transport.readiness(id) else { return 0 };
        if !readiness.take(Flags::KEPT) {
            return self.read_once(transport, id, now);
        }
        transport.core().handle(Input::Continue(id), now);
        0
    }

    /// Reads up to one buffer, passes it to the core and returns the number of bytes.
    fn read_once<T: Transport<Buffers = B>>(
        &mut self,
        transport: &mut T,
        id: ConnId,
        now: Instant,
    ) -> usize {
        let is_reading = transport.core().is_reading(id);
        let Some(readiness) = transport.readiness(id) else { return 0 };
        if !is_reading {
            // Backpressure: the input stays in the kernel until Effect::Resume.
            let is_readable = std::mem::take(&mut readiness.is_readable);
            readiness.flags |= if is_readable { Flags::UNWANTED } else { Flags::empty() };
            let end = readiness.end;
            let input = match end {
                PeerEnd::Open => return 0,
                // What the peer sent before a reset is still there to be read.
                PeerEnd::Broken if transport.unread(id) == 0 => Input::Reset(id),
                PeerEnd::Closed | PeerEnd::Broken => Input::Hangup(id),
            };
            transport.core().handle(input, now);
            return 0;
        }
        let before = transport.buffered(id);
        let mut received = transport.read(id, &mut self.buffers, now);
        if let Received::Proxied(header) = received {
            transport.core().handle(Input::Proxied(id, header), now);
            if header.is_err() {
                return 0;
            }
            received = transport.read(id, &mut self.buffers, now);
        }
        let (input, count) = match received {
            Received::Bytes([], count) => (None, count),
            Received::Bytes(bytes, count) => (Some(Input::Bytes(id, bytes)), count),
            // A transport removes at most one header.
            Received::Nothing | Received::Proxied(_) => (None, 0),
            Received::End => (Some(Input::End(id)), 0),
            Received::Broken => (Some(Input::Disconnected(id)), 0),
        };
        if let Some(input) = input {
            transport.core().handle(input, now);
        }
        let buffered = transport.buffered(id);
        if buffered != before {
            transport.core().handle(Input::Buffered(id, buffered), now);
        }
        count
    }

    /// Serves connections whose deadline has passed until the input of that moment is handled,
    /// and only then lets the deadline count.
    fn expire<T: Transport<Buffers = B>>(&mut self, transport: &mut T, now: Instant) {
        let begun = transport.clock();
        for _ in 0..self.expiring.len() {
            // An effect that was left over may say that there is more input.
            if self.is_behind || transport.clock().since(begun) >= SERVE_TIME {
                return;
            }
            let Some((id, unread)) = self.expiring.pop_front() else { return };
            let is_reading = transport.core().is_reading(id);
            let Some(readiness) = transport.readiness(id) else { continue };
            let is_kept = readiness.flags.contains(Flags::KEPT);
            let is_more = is_kept || unread > 0 && is_reading;
            if is_more {
                // Poll may not have returned the event for this input yet.
                readiness.is_readable = true;
                let count = self.slice(transport, id, now);
                let left = if count == 0 && is_reading { 0 } else { unread.saturating_sub(count) };
                self.expiring.push_back((id, left));
            } else {
                transport.core().handle(Input::ReadToEnd(id), now);
            }
            // What was read must not pile up for a peer that is not slow.
            if !self.flush(transport, now) {
                return;
            }
        }
    }

    /// Adds a connection that has input to the queue of its class.
    fn queue<T: Transport<Buffers = B>>(&mut self, transport: &mut T, id: ConnId, now: Instant) {
        let is_handshaking = transport.is_handshaking(id);
        let Some(readiness) = transport.readiness(id) else { return };
        let has_input = readiness.is_readable || readiness.flags.contains(Flags::KEPT);
        if has_input && !readiness.flags.contains(Flags::QUEUED) {
            readiness.flags.insert(Flags::QUEUED);
            let class = match (is_handshaking, readiness.usage.is_light(now)) {
                (true, _) => Class::Handshake,
                (false, true) => Class::Light,
                (false, false) => Class::Busy,
            };
            self.queues[class as usize].push_back(id);
        }
    }
}
