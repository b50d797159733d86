//! Event loop: poll → bytes → timers → effects, on one thread.
//!
//! Owns every socket and the order of a turn. Decides nothing about peers.
//!
//! The order of a turn, in which each step may depend on the ones before. The numbers
//! stand at the branches of `turn` as well.
//! 1. Sleep until something is ready or the next deadline; not at all while a
//!    socket still has input.
//! 2. Read the clock, once: the whole turn happens at one instant.
//! 3. Note what the events say; take signals and mail; write sockets that drained.
//! 4. Accept up to [`ACCEPTS_PER_TURN`], from each listener in rotation.
//! 5. Read each ready socket once, up to one buffer full. A socket with more input goes
//!    to the back of the queue, so that a busy peer delays the others by one read.
//!    Of sockets in a handshake only [`HANDSHAKES_PER_TURN`].
//! 6. Write: everything that the turn queued for a peer in one call; sooner
//!    when [`BYTES_PER_PASS`] were read, so that a pass fits the byte budget.
//! 7. Only then timers: no deadline counts while a pong waits unread.
//! 8. One poll returns a batch only, and a socket is read only so far, so a connection
//!    that a timer would close is read to the end first, and then expires.
//! 9. Last, push wakes go to their own thread: nothing here waits for them.

mod beside;
mod tls_failures;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use mio::event::Event;
use mio::{Events, Poll, Token};
use rustls::ServerConfig;

use crate::config::{BUFFER_MEMORY, ListenerProtocol, READ_SIZE};
use crate::relay::{ConnId, Effect, Input, ListenerKind};
use crate::server::certificates::renewer_handle::RenewerHandle;
use crate::server::core::Core;
use crate::server::messages::mailbox::Mailbox;
use crate::server::messages::{LoopHandle, LoopMessage, tls_stats};
use crate::server::net::listener::{Accepted, Listener, Listeners};
use crate::server::net::socket::{Buffers, Received, Socket, Sockets};
use crate::server::os::clock::Clock;
use crate::server::os::date::DateClock;
use crate::server::os::descriptors::is_exhaustion;
use crate::server::os::signals::Signals;
use crate::server::os::systemd::Notifier;
use crate::server::push;
use crate::time::{Instant, Throttle};

const SIGNALS: Token = Token(usize::MAX - 1);
const MAILBOX: Token = Token(usize::MAX - 2);
/// The token of the first listener; those of the others follow.
const LISTENER: usize = usize::MAX - 32;
/// The last token that may be a listener's; the single tokens lie above it.
const LISTENER_LAST: usize = usize::MAX - 16;

/// The maximum of events that one poll returns.
const EVENTS: usize = 1024;
/// Bytes read before the output that they caused is written.
const BYTES_PER_PASS: usize = 1024 * 1024;
/// The maximum of connections accepted in one turn, so that a burst of new connections does
/// not delay the existing ones.
const ACCEPTS_PER_TURN: usize = 256;
/// The maximum of bytes read from a peer before its deadline counts: more than can be queued
/// ahead of a pong, since the kernel's receive buffer is at most 6 MiB by default (tcp(7)).
const READ_TO_END_MAX: usize = 8 * 1024 * 1024;
/// The maximum of sockets in a TLS handshake that are read in one turn. With an RSA key of
/// 2048 bits a handshake takes 0.7 ms, and a turn should fit in a tick, when pings are due.
const HANDSHAKES_PER_TURN: usize = 32;
/// How often to retry while accepting is paused: no event reports that a descriptor became
/// free elsewhere in the system.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

// The most that a pass queues: the envelope around a one-byte frame is eight times as long
// as the frame on the wire.
const _: () = assert!(8 * (BYTES_PER_PASS + READ_SIZE) < BUFFER_MEMORY);

/// A core (the relay) on bound listeners, ready to run.
#[derive(Debug)]
pub struct Server<C> {
    poll: Poll,
    listeners: Listeners,
    /// The configuration for TLS listeners; `None`: there is no TLS.
    tls: Option<Arc<ServerConfig>>,
    /// The only server name that is served; `None`: any.
    domain: Option<Arc<str>>,
    tls_failures: Throttle,
    tls_stats: tls_stats::Stats,
    renewer: Option<RenewerHandle>,
    signals: Option<Signals>,
    mailbox: Mailbox<LoopMessage>,
    /// The queue for push wakes; `None`: push wake is not configured.
    push: Option<push::Handle>,
    /// The connection to systemd, if there is one.
    notifier: Option<Notifier>,
    core: C,
    clock: Clock,
    sockets: Sockets,
    /// Sockets with input that no event will announce again.
    ready: VecDeque<ConnId>,
    /// Connections to read to the end before their deadline counts.
    expiring: Vec<ConnId>,
    buffers: Buffers,
    shutdown: Duration,
    /// When to retry accepting, while out of descriptors.
    accept_retry: Option<Instant>,
    /// The deadline of a shut-down in progress.
    drained_by: Option<Instant>,
    /// When to notify the watchdog next.
    watchdog_due: Option<Instant>,
    date: DateClock,
}

impl<C: Core> Server<C> {
    /// A server for a core that starts at [`Instant::START`]. It ends after one of `signals`
    /// arrives, at the latest `shutdown` later.
    ///
    /// # Errors
    /// If the poll cannot be created or a listener cannot be registered.
    pub fn new(
        core: C,
        listeners: Vec<Listener>,
        mut signals: Option<Signals>,
        shutdown: Duration,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let listeners = Listeners::register(listeners, poll.registry(), LISTENER..=LISTENER_LAST)?;
        if let Some(signals) = &mut signals {
            signals.register(poll.registry(), SIGNALS)?;
        }
        let mailbox = Mailbox::new(poll.registry(), MAILBOX)?;
        Ok(Self {
            poll,
            listeners,
            tls: None,
            domain: None,
            tls_failures: Throttle::default(),
            tls_stats: tls_stats::Stats::default(),
            renewer: None,
            signals,
            mailbox,
            push: None,
            notifier: None,
            core,
            clock: Clock::start(),
            sockets: Sockets::new(),
            ready: VecDeque::new(),
            expiring: Vec::new(),
            buffers: Buffers::new(READ_SIZE),
            shutdown,
            accept_retry: None,
            drained_by: None,
            watchdog_due: None,
            date: DateClock::default(),
        })
    }

    /// A handle through which other threads send messages to the loop.
    #[must_use]
    pub fn handle(&self) -> LoopHandle {
        self.mailbox.handle()
    }

    /// Runs until a signal has arrived and every WebSocket has closed, or the shut-down
    /// deadline has passed.
    ///
    /// # Errors
    /// If the poll fails.
    pub fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        if let Some(notifier) = &self.notifier {
            notifier.ready();
        }
        self.notify_watchdog();
        while !self.is_finished() {
            self.turn(&mut events)?;
        }
        Ok(())
    }

    fn is_finished(&self) -> bool {
        let Some(drained_by) = self.drained_by else { return false };
        self.core.websockets() == 0 || self.clock.now() >= drained_by
    }

    fn turn(&mut self, events: &mut Events) -> io::Result<()> {
        // 1. Sleep.
        let timeout = self.timeout();
        if let Err(error) = self.poll.poll(events, timeout)
            && error.kind() != io::ErrorKind::Interrupted
        {
            return Err(error);
        }
        // 2. One instant for the whole turn.
        let stopped = self.clock.turn(timeout);
        if stopped > Duration::ZERO {
            log::warn!(stopped_ms = stopped.as_millis() as u64; "loop_stopped");
        }
        let now = self.clock.now();
        if let Some(date) = self.date.turn() {
            self.core.handle(Input::Date(date), now);
        }
        if self.watchdog_due.is_some_and(|due| due <= now) {
            self.notify_watchdog();
        }
        // 3. Events.
        for event in &*events {
            self.on_event(event, now);
        }
        // 4. Accept.
        self.accept(now);
        // 5. Read; 6. within a pass and after it, write.
        self.read(now);
        self.apply_effects(now);
        // 7. Timers, after the bytes that have arrived.
        if self.core.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.core.handle(Input::Timeout, now);
            self.apply_effects(now);
            // 8. Connections with a deadline that has passed: their input first.
            while let Some(id) = self.expiring.pop() {
                self.read_then_expire(id, now);
            }
        }
        // 9. Push wakes.
        self.push(now);
        Ok(())
    }

    /// How long to sleep; `None`: until an event.
    fn timeout(&self) -> Option<Duration> {
        if !self.ready.is_empty() || self.listeners.wants_accept() {
            return Some(Duration::ZERO);
        }
        let next =
            [self.core.next_deadline(), self.drained_by, self.accept_retry, self.watchdog_due];
        let next = next.into_iter().flatten().min()?;
        Some(next.since(self.clock.now()))
    }

    fn on_event(&mut self, event: &Event, now: Instant) {
        match event.token() {
            SIGNALS => self.on_signal(now),
            MAILBOX => self.on_mail(now),
            Token(token @ LISTENER..=LISTENER_LAST) => self.listeners.on_ready(token - LISTENER),
            Token(bits) => {
                let id = ConnId::from_bits(bits as u64);
                let Some(socket) = self.sockets.find(id) else { return };
                if event.is_readable() || event.is_read_closed() || event.is_error() {
                    socket.is_readable = true;
                    socket.is_read_closed |= event.is_read_closed() || event.is_error();
                    self.queue(id);
                }
                if event.is_writable() {
                    self.write(id, now);
                }
            }
        }
    }

    fn on_signal(&mut self, now: Instant) {
        if let Some(signal) = self.signals.as_mut().and_then(Signals::take)
            && self.drained_by.is_none()
        {
            log::info!(signal = signal.name(); "shutting_down");
            if let Some(notifier) = &self.notifier {
                notifier.stopping();
            }
            self.drained_by = Some(now + self.shutdown);
            self.core.handle(Input::ShutDown, now);
        }
        if self.signals.as_mut().is_some_and(Signals::take_hangup)
            && let Some(renewer) = &self.renewer
        {
            renewer.renew_now();
        }
    }

    fn accept(&mut self, now: Instant) {
        if self.accept_retry.is_some_and(|retry| retry <= now) {
            self.listeners.resume();
        }
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(accepted) = self.listeners.accept() else { break };
            self.on_accepted(accepted, now);
        }
        if !self.listeners.is_paused() {
            self.accept_retry = None;
        } else if self.accept_retry.is_none_or(|retry| retry <= now) {
            self.accept_retry = Some(now + ACCEPT_RETRY);
        }
    }

    fn on_accepted(&mut self, accepted: Accepted, now: Instant) {
        let Accepted { stream, peer, speaks, is_proxied } = accepted;
        let tls = match (speaks, &self.tls) {
            (ListenerProtocol::Tls, None) => return,
            (ListenerProtocol::Tls, Some(tls)) => Some((Arc::clone(tls), self.domain.clone())),
            _ => None,
        };
        let kind = match (speaks == ListenerProtocol::Challenges, is_proxied) {
            (false, false) => ListenerKind::Clients,
            (false, true) => ListenerKind::ProxiedClients,
            (true, false) => ListenerKind::Authorities,
            (true, true) => ListenerKind::ProxiedAuthorities,
        };
        let id = self.core.handle_accept(peer.ip(), kind, now);
        let token = Token(id.to_bits() as usize);
        match Socket::new(stream, tls, self.poll.registry(), token, is_proxied) {
            Ok(socket) => self.sockets.insert(id, socket),
            Err(error) => {
                if is_exhaustion(&error) {
                    self.listeners.pause(&error);
                }
                self.core.handle(Input::Disconnected(id), now);
            }
        }
    }

    /// Reads once from every socket that was in the queue when the turn began.
    fn read(&mut self, now: Instant) {
        let (mut unwritten, mut handshakes) = (0, 0);
        for _ in 0..self.ready.len() {
            if unwritten >= BYTES_PER_PASS {
                unwritten = 0;
                self.apply_effects(now);
            }
            let Some(id) = self.ready.pop_front() else { return };
            if let Some(socket) = self.sockets.find(id) {
                if socket.is_handshaking() {
                    if handshakes == HANDSHAKES_PER_TURN {
                        self.ready.push_back(id);
                        continue;
                    }
                    handshakes += 1;
                }
                socket.is_queued = false;
                unwritten += self.read_once(id, now);
                self.queue(id);
            }
        }
    }

    /// Reads up to one buffer, passes it to the core and returns the number of bytes.
    fn read_once(&mut self, id: ConnId, now: Instant) -> usize {
        let Some(socket) = self.sockets.find(id) else { return 0 };
        if !self.core.is_reading(id) {
            // Backpressure: the input stays in the kernel until Effect::Resume.
            socket.is_readable = false;
            socket.has_unwanted = true;
            if socket.is_read_closed {
                self.core.handle(Input::Hangup(id), now);
            }
            return 0;
        }
        if socket.owes_header {
            match socket.take_header(&mut self.buffers) {
                Ok(None) => return 0,
                Ok(Some(header)) => {
                    self.core.handle(Input::Proxied(id, header), now);
                    if header.is_err() {
                        return 0;
                    }
                }
                Err(_) => {
                    self.core.handle(Input::Disconnected(id), now);
                    return 0;
                }
            }
        }
        let buffered = socket.buffered();
        let count = match socket.read(&mut self.buffers) {
            Ok(Received::Bytes(bytes, count)) => {
                if !bytes.is_empty() {
                    self.core.handle(Input::Bytes(id, bytes), now);
                }
                count
            }
            Ok(Received::Nothing) => 0,
            Ok(end @ (Received::End | Received::Cut)) => {
                let is_cut = matches!(end, Received::Cut);
                self.tls_stats.truncations += u64::from(is_cut);
                if is_cut {
                    let failure = socket.tls_failure(None);
                    self.on_tls_cut(id, failure.as_ref(), now);
                }
                self.core.handle(Input::End(id), now);
                0
            }
            Err(error) => {
                if let Some(failure) = socket.tls_failure(Some(&error)) {
                    self.tls_stats.faults += 1;
                    self.on_tls_failure(id, &failure, now);
                }
                self.core.handle(Input::Disconnected(id), now);
                0
            }
        };
        let now_buffered = self.sockets.find(id).map_or(buffered, |socket| socket.buffered());
        if now_buffered != buffered {
            self.core.handle(Input::Buffered(id, now_buffered), now);
        }
        count
    }

    /// Reads all that a peer has sent, and only then lets its deadline count.
    fn read_then_expire(&mut self, id: ConnId, now: Instant) {
        let mut read = 0;
        while let Some(socket) = self.sockets.find(id)
            && read < READ_TO_END_MAX
        {
            // Poll may not have returned the event for this input yet.
            socket.is_readable = true;
            match self.read_once(id, now) {
                0 => break,
                count => read += count,
            }
            self.apply_effects(now);
        }
        self.core.handle(Input::ReadToEnd(id), now);
        self.apply_effects(now);
    }

    fn apply_effects(&mut self, now: Instant) {
        while let Some(effect) = self.core.poll_effect() {
            match effect {
                Effect::Transmit(id) => self.write(id, now),
                Effect::Resume(id) => {
                    if let Some(socket) = self.sockets.find(id) {
                        socket.is_readable |= std::mem::take(&mut socket.has_unwanted);
                    }
                    self.queue(id);
                }
                Effect::ReadThenExpire(id) => self.expiring.push(id),
                Effect::HalfClose(id) => {
                    if let Some(socket) = self.sockets.find(id) {
                        socket.half_close(&mut self.buffers);
                    }
                }
                Effect::Disconnect(id) => {
                    if let Some(socket) = self.sockets.find(id) {
                        socket.close_notify(&mut self.buffers);
                    }
                    self.sockets.remove(id);
                    self.listeners.resume();
                }
            }
        }
    }

    /// Writes a peer's queued output as far as the kernel accepts it.
    fn write(&mut self, id: ConnId, now: Instant) {
        while let Some(socket) = self.sockets.find(id) {
            let slices = self.core.outgoing(id);
            let before = socket.buffered();
            if before.unsent == 0 && slices.iter().all(|slice| slice.is_empty()) {
                return;
            }
            let result = socket.write(slices, &mut self.buffers);
            let buffered = socket.buffered();
            // A TLS socket accepts one record per call.
            let is_cut = socket.takes_records() && buffered.unsent == 0;
            if buffered != before {
                self.core.handle(Input::Buffered(id, buffered), now);
            }
            match result {
                // After a short write the kernel's buffer is full: new room is a new edge.
                Ok(count) => {
                    self.core.handle(Input::Written(id, count), now);
                    if !is_cut || count == 0 {
                        return;
                    }
                }
                Err(_) => return self.core.handle(Input::Disconnected(id), now),
            }
        }
    }

    /// Adds a readable socket to the queue of sockets to read.
    fn queue(&mut self, id: ConnId) {
        if let Some(socket) = self.sockets.find(id)
            && socket.is_readable
            && !std::mem::replace(&mut socket.is_queued, true)
        {
            self.ready.push_back(id);
        }
    }
}
