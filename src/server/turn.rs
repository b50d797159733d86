//! Turn: the work between two waits, generic over the transport.
//!
//! Owns the order of that work, the queue of connections to read and the list of connections
//! to read before they expire. Must not know sockets, the clock, nor what a peer may do. The
//! event loop, the simulation, the fuzz targets and the benchmark all drive a core through it,
//! so that what they test is what runs.
//!
//! The steps continue those of the event loop, and each may depend on the ones before. The
//! numbers stand at the branches of [`Turn::run`] as well.
//! 4. Accept up to [`ACCEPTS_PER_TURN`] connections.
//! 5. Read each queued connection once, up to one buffer full. A connection with more input
//!    goes to the back of the queue, so that a busy peer delays the others by one read. Of
//!    connections in a TLS handshake only [`HANDSHAKES_PER_TURN`].
//! 6. Write: everything that the turn queued for a peer in one call; sooner
//!    when [`BYTES_PER_PASS`] were read, so that a pass fits the byte budget.
//! 7. Only then timers: no deadline counts while a pong waits unread.
//! 8. One poll returns a batch only, and a connection is read only so far, so a connection
//!    that a timer would close is read to the end first, and then expires.

mod core;

use std::collections::VecDeque;
use std::net::IpAddr;

pub use self::core::Core;

use crate::config::{BUFFER_MEMORY, READ_SIZE};
use crate::protocol::proxy_header::{Malformed, Proxied};
use crate::protocol::transport::TransportBuffered;
use crate::relay::{ConnId, Effect, Input, ListenerKind};
use crate::time::Instant;

/// Bytes read before the output that they caused is written.
const BYTES_PER_PASS: usize = 1024 * 1024;
/// The maximum of connections accepted in one turn, so that a burst of new connections does
/// not delay the existing ones.
const ACCEPTS_PER_TURN: usize = 256;
/// The maximum of bytes read from a peer before its deadline counts: more than can be queued
/// ahead of a pong, since the kernel's receive buffer is at most 6 MiB by default (tcp(7)).
const READ_TO_END_MAX: usize = 8 * 1024 * 1024;
/// The maximum of connections in a TLS handshake that are read in one turn. With an RSA key of
/// 2048 bits a handshake takes 0.7 ms, and a turn should fit in a tick, when pings are due.
const HANDSHAKES_PER_TURN: usize = 32;

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

    /// Whether the stream holds input that was not read.
    fn has_unread(&mut self, id: ConnId) -> bool;

    /// Reads once, and updates [`Readiness::is_readable`].
    fn read<'b>(
        &mut self,
        id: ConnId,
        buffers: &'b mut Self::Buffers,
        now: Instant,
    ) -> Received<'b>;

    /// Writes what the core has queued for the connection, in one call.
    fn write(&mut self, id: ConnId, buffers: &mut Self::Buffers) -> Written;

    /// Sends FIN after everything written.
    fn half_close(&mut self, id: ConnId, buffers: &mut Self::Buffers);

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
    /// The stream was readable while flow control had stopped reading.
    has_unwanted: bool,
    /// In the queue of connections to read.
    is_queued: bool,
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
    /// Connections with input that no event will announce again.
    ready: VecDeque<ConnId>,
    /// Connections to read to the end before their deadline counts.
    expiring: Vec<ConnId>,
    buffers: B,
}

impl<B> Turn<B> {
    /// No work, and `buffers` for all connections.
    pub fn new(buffers: B) -> Self {
        Self { ready: VecDeque::new(), expiring: Vec::new(), buffers }
    }

    /// Whether there is work to be done without waiting for an event.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Steps 4 to 8, all at the instant `now`.
    pub fn run<T: Transport<Buffers = B>>(&mut self, transport: &mut T, now: Instant) {
        // 4. Accept.
        self.accept(transport, now);
        // 5. Read; 6. within a pass and after it, write.
        self.read(transport, now);
        self.apply_effects(transport, now);
        // 7. Timers, after the bytes that have arrived.
        if transport.core().next_deadline().is_some_and(|deadline| deadline <= now) {
            transport.core().handle(Input::Timeout, now);
            self.apply_effects(transport, now);
            // 8. Connections with a deadline that has passed: their input first.
            while let Some(id) = self.expiring.pop() {
                self.read_then_expire(transport, id, now);
            }
        }
    }

    /// A connection has input, or its peer's side has ended.
    pub fn on_readable<T: Transport<Buffers = B>>(
        &mut self,
        transport: &mut T,
        id: ConnId,
        end: PeerEnd,
    ) {
        if let Some(readiness) = transport.readiness(id) {
            readiness.is_readable = true;
            readiness.end = readiness.end.max(end);
            self.queue(transport, id);
        }
    }

    /// A connection has room for output.
    pub fn on_writable<T: Transport<Buffers = B>>(
        &mut self,
        transport: &mut T,
        id: ConnId,
        now: Instant,
    ) {
        while transport.readiness(id).is_some() {
            let before = transport.buffered(id);
            let written = transport.write(id, &mut self.buffers);
            let buffered = transport.buffered(id);
            if buffered != before {
                transport.core().handle(Input::Buffered(id, buffered), now);
            }
            match written {
                Written::Nothing => return,
                // After a short write the stream is full: new room is a new event.
                Written::Bytes(count) => {
                    return transport.core().handle(Input::Written(id, count), now);
                }
                Written::Part(count) => transport.core().handle(Input::Written(id, count), now),
                Written::Broken => return transport.core().handle(Input::Disconnected(id), now),
            }
        }
    }

    fn accept<T: Transport<Buffers = B>>(&mut self, transport: &mut T, now: Instant) {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some((peer, kind)) = transport.accept(now) else { return };
            let id = transport.core().handle_accept(peer, kind, now);
            if !transport.attach(id, now) {
                transport.core().handle(Input::Disconnected(id), now);
            }
        }
    }

    /// Reads once from every connection that was in the queue when the turn began.
    fn read<T: Transport<Buffers = B>>(&mut self, transport: &mut T, now: Instant) {
        let (mut unwritten, mut handshakes) = (0, 0);
        for _ in 0..self.ready.len() {
            if unwritten >= BYTES_PER_PASS {
                unwritten = 0;
                self.apply_effects(transport, now);
            }
            let Some(id) = self.ready.pop_front() else { return };
            if transport.is_handshaking(id) {
                if handshakes == HANDSHAKES_PER_TURN {
                    self.ready.push_back(id);
                    continue;
                }
                handshakes += 1;
            }
            if let Some(readiness) = transport.readiness(id) {
                readiness.is_queued = false;
                unwritten += self.read_once(transport, id, now);
                self.queue(transport, id);
            }
        }
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
            readiness.is_readable = false;
            readiness.has_unwanted = true;
            let end = readiness.end;
            let input = match end {
                PeerEnd::Open => return 0,
                // What the peer sent before a reset is still there to be read.
                PeerEnd::Broken if !transport.has_unread(id) => Input::Disconnected(id),
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

    /// Reads all that a peer has sent, and only then lets its deadline count.
    fn read_then_expire<T: Transport<Buffers = B>>(
        &mut self,
        transport: &mut T,
        id: ConnId,
        now: Instant,
    ) {
        let mut read = 0;
        while let Some(readiness) = transport.readiness(id)
            && read < READ_TO_END_MAX
        {
            // Poll may not have returned the event for this input yet.
            readiness.is_readable = true;
            match self.read_once(transport, id, now) {
                0 => break,
                count => read += count,
            }
            self.apply_effects(transport, now);
        }
        transport.core().handle(Input::ReadToEnd(id), now);
        self.apply_effects(transport, now);
    }

    fn apply_effects<T: Transport<Buffers = B>>(&mut self, transport: &mut T, now: Instant) {
        while let Some(effect) = transport.core().poll_effect() {
            match effect {
                Effect::Transmit(id) => self.on_writable(transport, id, now),
                Effect::Resume(id) => {
                    if let Some(readiness) = transport.readiness(id) {
                        readiness.is_readable |= std::mem::take(&mut readiness.has_unwanted);
                    }
                    self.queue(transport, id);
                }
                Effect::ReadThenExpire(id) => self.expiring.push(id),
                Effect::HalfClose(id) => transport.half_close(id, &mut self.buffers),
                Effect::Disconnect(id) => transport.disconnect(id, &mut self.buffers),
            }
        }
    }

    /// Adds a readable connection to the queue of connections to read.
    fn queue<T: Transport<Buffers = B>>(&mut self, transport: &mut T, id: ConnId) {
        if let Some(readiness) = transport.readiness(id)
            && readiness.is_readable
            && !std::mem::replace(&mut readiness.is_queued, true)
        {
            self.ready.push_back(id);
        }
    }
}
