//! Output: carries out effects and writes to connections.
//!
//! Owns the queue of connections to write on: those whose socket was full and has room again,
//! or took only a part. Must not know what is written.
//!
//! 1. A connection that is in the queue is written before a deadline of its peer counts.
//! 2. A connection is in the queue once at most ([`Flags::UNWRITTEN`]).

use std::time::Duration;

use super::class::BUSY_TIME;
use super::{Core, Flags, Transport, Turn, Written};
use crate::relay::{ConnId, Effect, Input};
use crate::time::Instant;

/// The time for effects at once. What is left over is done first in the next turn, before more
/// is read.
const EFFECT_TIME: Duration = Duration::from_millis(2);
/// Effects between two readings of the clock, which takes as long as a tenth of a write.
const EFFECTS_PER_READING: usize = 8;
/// The most that one connection is written in one call, in records of TLS: some 0.1 ms.
const RECORDS_PER_WRITE: usize = 4;
/// The maximum of bytes read from a peer before its deadline counts. The listeners bound the
/// kernel's receive buffer far below it.
const READ_TO_END_MAX: usize = 8 * 1024 * 1024;

impl<B> Turn<B> {
    /// A connection has an event for room. Most have it with every input, and wait for none.
    pub fn on_writable<T: Transport<Buffers = B>>(&mut self, transport: &mut T, id: ConnId) {
        let is_waiting = transport.core().outgoing(id).iter().any(|slice| !slice.is_empty());
        if is_waiting || transport.buffered(id).unsent > 0 {
            self.write_later(transport, id);
        }
    }

    /// Carries out effects and all writes; returns whether those were all.
    pub(super) fn flush<T: Transport<Buffers = B>>(
        &mut self,
        transport: &mut T,
        now: Instant,
    ) -> bool {
        self.apply_effects(transport, now) && self.write_busy(transport, now)
    }

    /// Writes to those in the queue, however long it takes, so that nothing is half done; what
    /// is written once is not written again.
    pub fn write_all<T: Transport<Buffers = B>>(&mut self, transport: &mut T, now: Instant) {
        for _ in 0..self.unwritten.len() {
            self.write_busy(transport, now);
        }
    }

    /// Writes to those in the queue for at most [`BUSY_TIME`], but to one at least; returns whether
    /// those were all.
    fn write_busy<T: Transport<Buffers = B>>(&mut self, transport: &mut T, now: Instant) -> bool {
        if self.unwritten.is_empty() {
            return true;
        }
        let begun = transport.clock();
        while let Some(id) = self.unwritten.pop_front() {
            let Some(readiness) = transport.readiness(id) else { continue };
            if readiness.flags.contains(Flags::UNWRITTEN) {
                self.write(transport, id, now);
                if transport.clock().since(begun) >= BUSY_TIME {
                    break;
                }
            }
            // What is in further chunks follows at once, so that no timer comes before it.
            if self.unwritten.is_empty() && !self.apply_effects(transport, now) {
                return false;
            }
        }
        self.apply_effects(transport, now) && self.unwritten.is_empty()
    }

    /// Carries out effects; returns whether those were all.
    pub(super) fn apply_effects<T: Transport<Buffers = B>>(
        &mut self,
        transport: &mut T,
        now: Instant,
    ) -> bool {
        let (mut begun, mut count) = (None, 0_usize);
        self.is_behind = false;
        while let Some(effect) = transport.core().poll_effect() {
            self.apply(transport, effect, now);
            count += 1;
            if count.is_multiple_of(EFFECTS_PER_READING) {
                let clock = transport.clock();
                if clock.since(*begun.get_or_insert(clock)) >= EFFECT_TIME {
                    self.is_behind = true;
                    break;
                }
            }
        }
        !self.is_behind
    }

    fn apply<T: Transport<Buffers = B>>(
        &mut self,
        transport: &mut T,
        effect: Effect,
        now: Instant,
    ) {
        match effect {
            Effect::Transmit(id) => self.write(transport, id, now),
            Effect::Resume(id) => {
                if let Some(readiness) = transport.readiness(id) {
                    readiness.is_readable |= readiness.take(Flags::UNWANTED);
                }
                self.queue(transport, id, now);
            }
            Effect::Continue(id) => {
                if let Some(readiness) = transport.readiness(id) {
                    readiness.flags.insert(Flags::KEPT);
                    readiness.usage.add_rest(now);
                }
                self.queue(transport, id, now);
            }
            // No request can be in an unfinished handshake, which would cost the most.
            Effect::ReadThenExpire(id) if transport.is_handshaking(id) => {
                transport.core().handle(Input::Disconnected(id), now);
            }
            Effect::ReadThenExpire(id) => {
                if transport.readiness(id).is_some_and(|it| it.flags.contains(Flags::UNWRITTEN)) {
                    self.write(transport, id, now);
                }
                let unread = transport.unread(id).min(READ_TO_END_MAX);
                self.expiring.push_back((id, unread));
            }
            Effect::HalfClose(id) => {
                let is_read = transport.readiness(id).is_some_and(|it| !it.is_readable);
                let is_over = is_read && transport.core().has_closed(id);
                if transport.half_close(id, is_over, &mut self.buffers) {
                    transport.core().handle(Input::End(id), now);
                }
            }
            Effect::Disconnect(id) => {
                transport.disconnect(id, &mut self.buffers);
            }
        }
    }

    fn write_later<T: Transport<Buffers = B>>(&mut self, transport: &mut T, id: ConnId) {
        if let Some(readiness) = transport.readiness(id)
            && !readiness.flags.contains(Flags::UNWRITTEN)
        {
            readiness.flags.insert(Flags::UNWRITTEN);
            self.unwritten.push_back(id);
        }
    }

    fn write<T: Transport<Buffers = B>>(&mut self, transport: &mut T, id: ConnId, now: Instant) {
        if let Some(readiness) = transport.readiness(id) {
            readiness.flags.remove(Flags::UNWRITTEN);
        }
        for _ in 0..RECORDS_PER_WRITE {
            let written = transport.write(id, &mut self.buffers);
            let (Written::Bytes(count) | Written::Part(count)) = written else {
                if written == Written::Broken {
                    transport.core().handle(Input::Disconnected(id), now);
                }
                return;
            };
            if let Some(readiness) = transport.readiness(id) {
                readiness.usage.add_write(count, now);
            }
            let buffered = transport.buffered(id);
            transport.core().handle(Input::Written(id, count, buffered), now);
            // After a short write the stream is full: new room is a new event.
            if let Written::Bytes(_) = written {
                return;
            }
        }
        self.write_later(transport, id);
    }
}
