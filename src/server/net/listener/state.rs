//! State of the listening sockets, for a hand-over, and back.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{Listener, Listeners};
use crate::config::ListenerProtocol;
use crate::state::v1;

impl Listener {
    /// The listener of which [`Listeners::save`] returned `saved`.
    ///
    /// # Errors
    /// If the descriptor is not that of a listening socket.
    pub fn restore(saved: v1::Listener, descriptor: OwnedFd) -> io::Result<Self> {
        let speaks = match saved.speaks {
            0 => ListenerProtocol::Plain,
            1 => ListenerProtocol::Tls,
            _ => ListenerProtocol::Challenges,
        };
        let adopted = Self::adopt(std::net::TcpListener::from(descriptor))?;
        Ok(adopted.speaking(speaks).proxied(saved.is_proxied))
    }
}

impl Listeners {
    /// Each listener as plain values and as a descriptor.
    pub(in crate::server) fn save(&self) -> impl Iterator<Item = (v1::Listener, BorrowedFd<'_>)> {
        self.all.iter().map(|listener| {
            let speaks = match listener.speaks {
                ListenerProtocol::Plain => 0,
                ListenerProtocol::Tls => 1,
                ListenerProtocol::Challenges => 2,
            };
            let saved = v1::Listener { speaks, is_proxied: listener.is_proxied };
            (saved, listener.inner.as_fd())
        })
    }
}
