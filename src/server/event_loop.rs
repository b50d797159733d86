//! Event loop: poll → turn → push wakes, on one thread.
//!
//! Owns the poll, the clock and what arrives beside the connections: signals, messages from
//! helper threads, the watchdog. Decides nothing about peers.
//!
//! The steps of one round, in which each may depend on the ones before. The numbers
//! stand at the branches of `round` as well; 4 to 8 are those of [`Turn::run`].
//! 1. Sleep until something is ready or the next deadline; not at all while a
//!    socket still has input.
//! 2. Read the clock, once: the whole round happens at one instant.
//! 3. Note what the events say; take signals and messages.
//! 4. to 8. Accept, read, write, timers, all bounded in time: [`super::turn`].
//! 9. Push wakes go to their own thread: nothing here waits for them.
//! 10. Last, a hand-over that is under way is carried on, from the program before or to the next.

pub(super) mod arrival;
mod beside;
pub(super) mod handover;
pub(super) mod state;
mod tcp;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use mio::event::Event;
use mio::{Events, Poll, Token};

use super::turn::{PeerEnd, Turn};
use crate::config::READ_SIZE;
use crate::relay::stats::Histogram;
use crate::relay::{ConnId, Input};
use crate::server::messages::mailbox::Mailbox;
use crate::server::messages::{LoopHandle, LoopMessage};
use crate::server::net::listener::{Listener, Listeners};
use crate::server::net::socket::Buffers;
use crate::server::os::date::DateClock;
use crate::server::os::signals::Signals;
use crate::server::push;
use crate::server::turn::Core;
use crate::time::Instant;
use arrival::Arrival;
use beside::Watchdog;
use tcp::Tcp;

const SIGNALS: Token = Token(usize::MAX - 1);
const MAILBOX: Token = Token(usize::MAX - 2);
/// The token of the first listener; those of the others follow.
const LISTENER: usize = usize::MAX - 32;
/// The last token that may be a listener's; the single tokens lie above it.
const LISTENER_LAST: usize = usize::MAX - 16;

/// The maximum of events that one poll returns: a turn writes to each socket that drained.
const EVENTS: usize = 256;

/// A core (the relay) on bound listeners, ready to run.
#[derive(Debug)]
pub struct Server<C> {
    poll: Poll,
    turn: Turn<Buffers>,
    tcp: Tcp<C>,
    signals: Option<Signals>,
    mailbox: Mailbox<LoopMessage>,
    /// The queue for push wakes; `None`: push wake is not configured.
    push: Option<push::Handle>,
    watchdog: Watchdog,
    /// How long turns took.
    turns: Histogram,
    date: DateClock,
    shut_down: ShutDown,
    handover: handover::State<C>,
    arrival: Arrival,
}

/// How long connections that are no WebSockets are waited for in a shut-down, once nothing else
/// is.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);

/// How long a shut-down may take, and one in progress.
#[derive(Debug)]
struct ShutDown {
    limit: Duration,
    /// When the process ends at the latest, once a signal has arrived.
    drained_by: Option<Instant>,
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
        Ok(Self {
            turn: Turn::new(Buffers::new(READ_SIZE)),
            tcp: Tcp::new(core, listeners, poll.registry().try_clone()?),
            signals,
            mailbox: Mailbox::new(poll.registry(), MAILBOX)?,
            poll,
            push: None,
            watchdog: Watchdog::default(),
            turns: Histogram::default(),
            date: DateClock::default(),
            shut_down: ShutDown { limit: shutdown, drained_by: None },
            handover: handover::State::default(),
            arrival: Arrival::default(),
        })
    }

    /// Lets one of `signals` end the loop.
    ///
    /// # Errors
    /// If they cannot be registered.
    pub fn with_signals(mut self, mut signals: Signals) -> io::Result<Self> {
        signals.register(self.poll.registry(), SIGNALS)?;
        self.signals = Some(signals);
        Ok(self)
    }

    /// The addresses of the listeners.
    ///
    /// # Errors
    /// No known one for a bound socket.
    pub fn local_addrs(&self) -> io::Result<Vec<SocketAddr>> {
        self.tcp.listeners.local_addrs()
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
    /// If the poll fails, or the signals cannot be unblocked.
    pub fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        if let Some(signals) = &self.signals {
            signals.unblock()?;
        }
        self.arrival.begin();
        self.watchdog.ready(self.tcp.clock.now());
        while !self.is_finished() {
            self.round(&mut events)?;
        }
        Ok(())
    }

    /// Whether it has shut down. Requests that were accepted are answered: a moment ago nothing
    /// told their clients that they would not be.
    fn is_finished(&mut self) -> bool {
        let Some(drained_by) = &mut self.shut_down.drained_by else { return false };
        let now = self.tcp.clock.now();
        let is_idle = self.tcp.core.websockets() == 0;
        if is_idle {
            *drained_by = (*drained_by).min(now + ANSWERED_WITHIN);
        }
        now >= *drained_by || is_idle && self.tcp.sockets.is_empty()
    }

    fn round(&mut self, events: &mut Events) -> io::Result<()> {
        // 1. Sleep.
        self.tcp.clock.read();
        let timeout = self.timeout();
        if let Err(error) = self.poll.poll(events, timeout)
            && error.kind() != io::ErrorKind::Interrupted
        {
            return Err(error);
        }
        // 2. One instant for the whole round.
        let now = self.tcp.clock.read_after(timeout);
        let stopped = self.tcp.clock.take_stopped();
        if stopped > Duration::ZERO {
            log::warn!(stopped_ms = stopped.as_millis() as u64; "loop_stopped");
        }
        if let Some(date) = self.date.turn() {
            self.tcp.core.handle(Input::Date(date), now);
        }
        self.watchdog.turn(now);
        // 3. Events.
        for event in &*events {
            self.on_event(event, now);
        }
        // 4. to 8. Connections.
        self.turn.run(&mut self.tcp, now);
        // 9. Push wakes.
        self.push(now);
        // 10. Hand-overs, when nothing is half done.
        self.arrive(now);
        self.hand_over(now);
        self.turns.observe(self.tcp.clock.read().since(now));
        Ok(())
    }

    /// How long to sleep; `None`: until an event.
    fn timeout(&self) -> Option<Duration> {
        if self.turn.has_work() || self.tcp.wants_accept() || self.arrival.is_under_way() {
            return Some(Duration::ZERO);
        }
        let next = [
            self.tcp.core.next_deadline(),
            self.shut_down.drained_by,
            self.tcp.listeners.paused_until(),
            self.watchdog.due,
            self.handover.due(self.tcp.clock.now()),
        ];
        let next = next.into_iter().flatten().min()?;
        Some(next.since(self.tcp.clock.now()))
    }

    fn on_event(&mut self, event: &Event, now: Instant) {
        match event.token() {
            SIGNALS => self.on_signal(now),
            MAILBOX => self.on_messages(now),
            Token(token @ LISTENER..=LISTENER_LAST) => {
                self.tcp.listeners.on_ready(token - LISTENER);
            }
            Token(bits) => {
                let id = ConnId::from_bits(bits as u64);
                let end = match (event.is_error(), event.is_read_closed()) {
                    (true, _) => PeerEnd::Broken,
                    (false, true) => PeerEnd::Closed,
                    (false, false) => PeerEnd::Open,
                };
                if event.is_readable() || end != PeerEnd::Open {
                    self.turn.on_readable(&mut self.tcp, id, end, now);
                }
                if event.is_writable() {
                    self.turn.on_writable(&mut self.tcp, id);
                }
            }
        }
    }

    fn on_signal(&mut self, now: Instant) {
        if let Some(signal) = self.signals.as_mut().and_then(Signals::take)
            && self.shut_down.drained_by.is_none()
        {
            self.abandon_handover(now);
            log::info!(signal = signal.name(); "shutting_down");
            self.watchdog.stopping();
            self.shut_down.drained_by = Some(now + self.shut_down.limit);
            self.tcp.core.handle(Input::ShutDown, now);
        }
        if self.signals.as_mut().is_some_and(Signals::take_hangup)
            && let Some(renewer) = &self.tcp.tls.renewer
        {
            renewer.renew_now();
        }
        if self.signals.as_mut().is_some_and(Signals::take_upgrade) {
            self.begin_handover(now);
        }
    }
}
