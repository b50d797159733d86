//! Arrival: the first turns of a program that another one handed over to.
//!
//! Owns which connections were taken over and have no events yet, and what is told once all
//! have. Decides nothing about peers.
//!
//! The kernel takes some microseconds to register a connection. So they are registered between
//! turns, in slices: those that have events are served meanwhile.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use super::{Core, Server};
use crate::relay::{ConnId, Input};
use crate::server::handover::manifest::Record;
use crate::server::messages::handover_stats::Done;
use crate::server::os::clock::system_micros;
use crate::server::os::signals::Blocked;
use crate::time::Instant;

/// Connections that are registered between two turns: for a millisecond or two.
const SLICE: usize = 512;

/// A hand-over from the view of the program that took over.
#[derive(Debug)]
pub struct Taken {
    /// The version of the program before.
    pub from: String,
    /// What it left behind.
    pub record: Record,
    /// The connections that were taken over.
    pub connections: u64,
    /// The connections that were dropped.
    pub dropped: u64,
    /// Its epoll instance. To close it means to take every connection out of it.
    pub epoll: Option<OwnedFd>,
}

/// An arrival that is under way, if one is.
#[derive(Debug, Default)]
pub(super) struct Arrival {
    /// Connections without events.
    waiting: VecDeque<ConnId>,
    /// What was taken over, and the time in which no connection was served.
    taken: Option<(Taken, Duration)>,
}

impl Arrival {
    pub(super) fn of(waiting: impl Iterator<Item = ConnId>) -> Self {
        Self { waiting: waiting.collect(), taken: None }
    }

    pub(super) fn is_under_way(&self) -> bool {
        !self.waiting.is_empty() || self.taken.is_some()
    }

    /// The loop runs: if there was a pause, it is over.
    pub(super) fn begin(&mut self) {
        if let Some((taken, pause)) = &mut self.taken {
            let pause_us = system_micros().saturating_sub(taken.record.paused_at_us);
            *pause = Duration::from_micros(pause_us);
        }
    }
}

impl<C: Core> Server<C> {
    /// Tells of what was taken over, once all of it has arrived.
    #[must_use]
    pub fn with_taken(mut self, taken: Option<Taken>) -> Self {
        if let Some(taken) = &taken {
            self.handover.continue_from(&taken.record);
        }
        self.arrival.taken = taken.map(|taken| (taken, Duration::ZERO));
        self
    }

    /// Carries an arrival on.
    pub(super) fn arrive(&mut self, now: Instant) {
        if !self.arrival.is_under_way() {
            return;
        }
        let lost = self.register(SLICE);
        for id in &lost {
            self.tcp.core.handle(Input::Disconnected(*id), now);
        }
        if let Some((taken, _)) = &mut self.arrival.taken {
            let lost = lost.len() as u64;
            taken.connections = taken.connections.saturating_sub(lost);
            taken.dropped += lost;
        }
        if self.arrival.waiting.is_empty()
            && let Some((taken, pause)) = self.arrival.taken.take()
        {
            self.on_arrived(taken, pause);
        }
    }

    /// Registers the next connections, at most `count`; returns those that cannot be.
    pub(super) fn register(&mut self, count: usize) -> Vec<ConnId> {
        let waiting = &mut self.arrival.waiting;
        let registry = self.poll.registry();
        let ids = waiting.drain(..count.min(waiting.len()));
        // One that has ended meanwhile has no socket.
        let sockets = &mut self.tcp.sockets;
        ids.filter(|id| sockets.find(*id).is_some_and(|socket| !socket.register(*id, registry)))
            .collect()
    }

    fn on_arrived(&mut self, taken: Taken, pause: Duration) {
        let Taken { from, record: _, connections, dropped, epoll } = taken;
        log::info!(
            connections, pause_ms = pause.as_millis() as u64, from, to = env!("CARGO_PKG_VERSION"),
            dropped = Some(dropped).filter(|count| *count > 0);
            "handover_done"
        );
        self.handover.on_done(Done { from, connections, dropped, pause });
        // Signals are the loop's. Without a thread it is closed here.
        let _blocked = Blocked::new();
        let _ = thread::Builder::new().name("close".into()).spawn(|| drop(epoll));
    }
}
