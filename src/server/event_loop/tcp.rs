//! TCP transport: sockets, listeners and TLS, as a turn uses them.
//!
//! Owns every stream and the core whose connections they carry. Decides nothing about peers;
//! which listener a connection came through is all that it tells of one.

use std::net::IpAddr;
use std::sync::mpsc::SyncSender;

use mio::{Registry, Token};

use super::tls::Tls;
use crate::config::ListenerProtocol;
use crate::protocol::transport::TransportBuffered;
use crate::relay::{ConnId, ListenerKind};
use crate::server::net::listener::{Accepted, Listeners};
use crate::server::net::socket::{self, Buffers, Socket, Sockets};
use crate::server::os::clock::Clock;
use crate::server::os::descriptors::is_exhaustion;
use crate::server::turn::Core;
use crate::server::turn::{PeerEnd, Readiness, Received, Transport, Written};
use crate::time::Instant;

/// The core and the streams of its connections.
#[derive(Debug)]
pub(super) struct Tcp<C> {
    pub(super) core: C,
    pub(super) listeners: Listeners,
    pub(super) sockets: Sockets,
    pub(super) tls: Tls,
    pub(super) clock: Clock,
    /// To be told of the next connection.
    pub(super) awaits_arrival: Option<SyncSender<()>>,
    /// A rehearsing child has copies of all sockets: closing one would not end its connection
    /// before the child ends.
    pub(super) is_shared: bool,
    /// No connection is accepted: those that arrive wait in the kernel.
    pub(super) is_quiet: bool,
    registry: Registry,
    /// Accepted, and without an id yet.
    accepted: Option<Accepted>,
}

impl<C: Core> Tcp<C> {
    /// No connections; their streams will be registered with `registry`.
    pub(super) fn new(core: C, listeners: Listeners, registry: Registry) -> Self {
        Self {
            core,
            listeners,
            sockets: Sockets::new(),
            tls: Tls::default(),
            clock: Clock::start(),
            awaits_arrival: None,
            is_shared: false,
            is_quiet: false,
            registry,
            accepted: None,
        }
    }

    /// Whether connections may be waiting that would be accepted now.
    pub(super) fn wants_accept(&self) -> bool {
        !self.is_quiet && self.listeners.wants_accept()
    }
}

impl<C: Core> Transport for Tcp<C> {
    type Core = C;
    type Buffers = Buffers;

    fn core(&mut self) -> &mut C {
        &mut self.core
    }

    fn accept(&mut self, now: Instant) -> Option<(IpAddr, ListenerKind)> {
        if self.is_quiet {
            return None;
        }
        loop {
            let accepted = self.listeners.accept(now)?;
            if let Some(told) = self.awaits_arrival.take() {
                // The receiver may have stopped waiting.
                let _ = told.try_send(());
            }
            if accepted.speaks == ListenerProtocol::Tls && self.tls.config.is_none() {
                continue;
            }
            let kind = match (accepted.speaks == ListenerProtocol::Challenges, accepted.is_proxied)
            {
                (false, false) => ListenerKind::Clients,
                (false, true) => ListenerKind::ProxiedClients,
                (true, false) => ListenerKind::Authorities,
                (true, true) => ListenerKind::ProxiedAuthorities,
            };
            let peer = accepted.peer.ip();
            self.accepted = Some(accepted);
            return Some((peer, kind));
        }
    }

    fn attach(&mut self, id: ConnId, now: Instant) -> bool {
        let Some(Accepted { stream, speaks, is_proxied, .. }) = self.accepted.take() else {
            return false;
        };
        let tls = if speaks == ListenerProtocol::Tls { self.tls.session_config() } else { None };
        let token = Token(id.to_bits() as usize);
        match Socket::new(stream, tls, &self.registry, token, is_proxied) {
            Ok(socket) => {
                self.sockets.insert(id, socket);
                true
            }
            Err(error) => {
                if is_exhaustion(&error) {
                    self.listeners.pause(&error, now);
                }
                false
            }
        }
    }

    fn readiness(&mut self, id: ConnId) -> Option<&mut Readiness> {
        self.sockets.find(id).map(|socket| &mut socket.readiness)
    }

    fn is_handshaking(&mut self, id: ConnId) -> bool {
        self.sockets.find(id).is_some_and(|socket| socket.is_handshaking())
    }

    fn buffered(&mut self, id: ConnId) -> TransportBuffered {
        self.sockets.find(id).map_or(TransportBuffered::default(), |socket| socket.buffered())
    }

    fn unread(&mut self, id: ConnId) -> usize {
        self.sockets.find(id).map_or(0, |socket| socket.unread())
    }

    fn clock(&mut self) -> Instant {
        self.clock.read()
    }

    fn read<'b>(&mut self, id: ConnId, buffers: &'b mut Buffers, now: Instant) -> Received<'b> {
        let Some(socket) = self.sockets.find(id) else { return Received::Nothing };
        if socket.owes_header {
            match socket.take_header(buffers) {
                Ok(None) => return Received::Nothing,
                Ok(Some(header)) => return Received::Proxied(header),
                Err(_) => return Received::Broken,
            }
        }
        // No handshake is carried on with a peer that has gone.
        let read = match socket.is_handshaking() && socket.readiness.end == PeerEnd::Broken {
            true => Ok(socket::Received::Cut),
            false => socket.read(buffers),
        };
        match read {
            Ok(socket::Received::Bytes(bytes, count)) => Received::Bytes(bytes, count),
            Ok(socket::Received::Nothing) => Received::Nothing,
            Ok(socket::Received::End) => Received::End,
            Ok(socket::Received::Cut) => {
                let failure = socket.tls_failure(None);
                self.tls.on_cut(self.core.client(id), failure.as_ref(), now);
                Received::End
            }
            Err(error) => {
                if let Some(failure) = socket.tls_failure(Some(&error)) {
                    self.tls.on_failure(self.core.client(id), &failure, now);
                }
                Received::Broken
            }
        }
    }

    fn write(&mut self, id: ConnId, buffers: &mut Buffers) -> Written {
        let Some(socket) = self.sockets.find(id) else { return Written::Nothing };
        let slices = self.core.outgoing(id);
        let all: usize = slices.iter().map(|slice| slice.len()).sum();
        if all == 0 && socket.buffered().unsent == 0 {
            return Written::Nothing;
        }
        match socket.write(slices, buffers) {
            // A TLS socket accepts a few records per call, although the kernel may have room.
            Ok(count @ 1..) if count < all && socket.is_sent() => Written::Part(count),
            Ok(count) => Written::Bytes(count),
            Err(_) => Written::Broken,
        }
    }

    fn half_close(&mut self, id: ConnId, is_over: bool, buffers: &mut Buffers) -> bool {
        let Some(socket) = self.sockets.find(id) else { return false };
        // TLS is owed the peer's close_notify: closing the stream before would reset it. Nor
        // does closing send FIN while another process has a copy.
        let is_closed_next = is_over && !socket.has_tls() && !self.is_shared;
        if !is_closed_next {
            socket.half_close(buffers);
        }
        is_closed_next
    }

    fn disconnect(&mut self, id: ConnId, buffers: &mut Buffers) {
        if let Some(socket) = self.sockets.find(id) {
            socket.close_notify(buffers);
            if self.is_shared {
                socket.shut_down();
            }
        }
        self.sockets.remove(id);
        self.listeners.resume();
    }
}
