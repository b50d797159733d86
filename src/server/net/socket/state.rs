//! State of the sockets, for a hand-over, and back.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use mio::net::TcpStream;
use mio::{Registry, Token};

use super::{EVENTS, Socket, Sockets};
use crate::relay::ConnId;
use crate::server::net::tls_session::Session;
use crate::server::turn::Readiness;
use crate::state::v1;

impl Sockets {
    /// Each socket by its index, with its generation, as plain values and as a descriptor;
    /// `None` for one that cannot be handed over.
    pub(in crate::server) fn save(
        &self,
    ) -> impl Iterator<Item = (u32, u32, Option<(v1::Socket, BorrowedFd<'_>)>)> {
        (0_u32..).zip(&self.0).filter_map(|(index, socket)| {
            let socket = socket.as_ref()?;
            let saved = socket.save().map(|saved| (saved, socket.stream.as_fd()));
            Some((index, socket.generation, saved))
        })
    }

    /// Adds the socket of which [`Self::save`] returned `saved`. Returns false if it cannot be
    /// continued: then it is closed.
    pub(in crate::server) fn restore(&mut self, saved: &v1::Socket, descriptor: OwnedFd) -> bool {
        let socket = Socket::restore(saved, descriptor);
        let is_restored = socket.is_some();
        if let Some(socket) = socket {
            self.insert(ConnId::from_bits(saved.id), socket);
        }
        is_restored
    }
}

impl Socket {
    /// Lets a restored socket have events; returns whether it can have them.
    pub(in crate::server) fn register(&mut self, id: ConnId, registry: &Registry) -> bool {
        registry.register(&mut self.stream, Token(id.to_bits() as usize), EVENTS).is_ok()
    }

    fn save(&self) -> Option<v1::Socket> {
        let tls = match &self.tls {
            Some(session) => Some(session.save()?),
            None => None,
        };
        let (readiness, owes_header) = (self.readiness.save(), self.owes_header);
        // The caller knows the name.
        Some(v1::Socket { id: 0, readiness, owes_header, tls })
    }

    fn restore(saved: &v1::Socket, descriptor: OwnedFd) -> Option<Self> {
        let tls = match &saved.tls {
            Some(session) => Some(Box::new(Session::restore(session)?)),
            None => None,
        };
        Some(Self {
            stream: TcpStream::from_std(std::net::TcpStream::from(descriptor)),
            generation: 0,
            tls,
            readiness: Readiness::restore(&saved.readiness),
            owes_header: saved.owes_header,
        })
    }
}
