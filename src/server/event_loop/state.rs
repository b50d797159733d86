//! State of the loop, for a hand-over, and back.
//!
//! Owns which descriptors belong to which part of a state. Must not know how either travels.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use super::Server;
use super::arrival::Arrival;
use crate::config::{Config, READ_SIZE};
use crate::relay::stats::Histogram;
use crate::relay::{ConnId, Input, Relay};
use crate::server::messages::tls_stats;
use crate::server::net::listener::Listener;
use crate::server::net::socket::Buffers;
use crate::server::os::clock::Clock;
use crate::server::os::signals::Signals;
use crate::server::turn::Turn;
use crate::state::{Unfit, v1};
use crate::time::Instant;

/// A server as plain values and descriptors.
#[derive(Debug)]
pub struct Saved<'s> {
    /// Everything but descriptors.
    pub state: v1::State,
    /// The listening sockets. They are not part of the state, which they have to survive.
    pub listeners: Vec<(v1::Listener, BorrowedFd<'s>)>,
    /// The connections' sockets, in the order of the state.
    pub sockets: Vec<BorrowedFd<'s>>,
    /// Number of connections that cannot be handed over, because rustls holds their session:
    /// a handshake that has not ended, and the few that stay there.
    pub left_behind: usize,
}

/// A state with its descriptors, as they have arrived.
#[derive(Debug)]
pub struct Arrived {
    /// Everything but descriptors.
    pub state: v1::State,
    /// The listening sockets.
    pub listeners: Vec<(v1::Listener, OwnedFd)>,
    /// The connections' sockets.
    pub sockets: Vec<OwnedFd>,
}

/// A server that can continue, but for some of its connections.
#[derive(Debug)]
pub struct Restored {
    /// The server. It has not read, written or accepted anything, and its connections have no
    /// events before it runs, or [`Server::register_all`].
    pub server: Server<Relay>,
    /// Connections whose socket did not arrive, or that cannot be continued; to be
    /// [disconnected](Server::disconnect) before it runs.
    pub lost: Vec<ConnId>,
}

impl Server<Relay> {
    /// All that a hand-over moves; `None` while effects are left over from a turn. What waits
    /// for busy connections to be written is written before; else the server is as it was.
    pub fn save(&mut self) -> Option<Saved<'_>> {
        let now = self.tcp.clock.now();
        self.turn.write_all(&mut self.tcp, now);
        let (relay, turn) = (self.tcp.core.save()?, self.turn.save()?);
        let ids = relay.connections.entries.iter().map(|it| ConnId::new(it.index, it.generation));
        let ids: Vec<ConnId> = ids.collect();
        let mut left_behind = 0;
        let (mut saved, mut sockets) = (Vec::new(), Vec::new());
        for (index, generation, socket) in self.tcp.sockets.save() {
            let place = ids.binary_search_by_key(&(index as usize), |id| id.index());
            let id = place.ok().map(|place| ids[place]).filter(|id| id.generation() == generation);
            match (id, socket) {
                (Some(id), Some((socket, descriptor))) => {
                    saved.push(v1::Socket { id: id.to_bits(), ..socket });
                    sockets.push(descriptor);
                }
                _ => left_behind += 1,
            }
        }
        Some(Saved {
            state: v1::State {
                now: self.tcp.clock.now().as_micros(),
                relay,
                turn,
                sockets: saved,
                tls: self.tcp.tls.stats.save(),
                turns: self.turns.save(),
            },
            listeners: self.tcp.listeners.save().collect(),
            sockets,
            left_behind,
        })
    }

    /// A server that continues where another stopped. `seed` makes the keys of tables anew.
    ///
    /// # Errors
    /// If the state contradicts itself or its descriptors, or those of [`Server::new`].
    pub fn restore(
        config: &Config,
        capacity: usize,
        arrived: Arrived,
        seed: [u8; 32],
        signals: Option<Signals>,
        shutdown: Duration,
    ) -> io::Result<Restored> {
        let Arrived { state, listeners, sockets } = arrived;
        let v1::State { now, relay, turn, sockets: saved, tls, turns } = state;
        if sockets.len() != saved.len() {
            return Err(io::Error::other(Unfit("number of descriptors")));
        }
        let now = Instant::from_micros(now);
        let ids = relay.connections.entries.iter().map(|it| ConnId::new(it.index, it.generation));
        let ids: Vec<ConnId> = ids.collect();
        let restored = Relay::restore(config, capacity, relay, seed, now);
        let (relay, mut lost) = restored.map_err(io::Error::other)?;
        let listeners = listeners.into_iter().map(|(kind, socket)| Listener::restore(kind, socket));
        let listeners = listeners.collect::<io::Result<Vec<_>>>()?;
        let mut server = Self::new(relay, listeners, signals, shutdown)?;
        server.tcp.clock = Clock::resume(now);
        server.tcp.tls.stats = tls_stats::Stats::restore(tls);
        server.turns = Histogram::restore(&turns);
        server.turn = Turn::restore(turn, Buffers::new(READ_SIZE));
        for (saved, descriptor) in saved.iter().zip(sockets) {
            server.tcp.sockets.restore(saved, descriptor);
        }
        server.arrival = Arrival::of(saved.iter().map(|saved| ConnId::from_bits(saved.id)));
        lost.extend(ids.into_iter().filter(|id| server.tcp.sockets.find(*id).is_none()));
        Ok(Restored { server, lost })
    }

    /// Lets all connections have events, as a server that runs does bit by bit. Returns those
    /// for which that is impossible.
    pub fn register_all(&mut self) -> Vec<ConnId> {
        self.register(usize::MAX)
    }

    /// Ends connections that cannot be continued.
    pub fn disconnect(&mut self, lost: &[ConnId]) {
        let now = self.tcp.clock.now();
        for id in lost {
            self.tcp.core.handle(Input::Disconnected(*id), now);
        }
        self.turn.on_input();
    }

    /// Checks every invariant of the relay.
    ///
    /// # Panics
    /// Names the first that does not hold.
    pub fn audit(&self) {
        self.tcp.core.audit();
    }
}

#[cfg(test)]
mod tests;
