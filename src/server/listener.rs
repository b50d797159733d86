//! The listening socket.
//!
//! Owns binding, accepting until nothing waits, and the pause while descriptors
//! are out. Knows nothing of what an accepted stream is for.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, Socket, Type};

use crate::config::NOTSENT_LOWAT;

/// Connections that may wait to be accepted; the kernel caps it at `somaxconn`.
const BACKLOG: i32 = 4096;

/// The listening socket.
#[derive(Debug)]
pub struct Listener {
    inner: TcpListener,
    /// Connections may wait that no event will announce again.
    is_ready: bool,
    /// Out of descriptors: not accepting until one is free.
    is_paused: bool,
    /// The pause has been logged; once until the queue was empty again.
    is_pause_logged: bool,
}

impl Listener {
    /// Binds and listens.
    ///
    /// # Errors
    /// What the kernel says: address in use, not ours, not permitted.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = match bind(address) {
            // `:8080` on a host without IPv6.
            Err(error)
                if address.ip() == Ipv6Addr::UNSPECIFIED
                    && error.kind() != ErrorKind::AddrInUse
                    && error.kind() != ErrorKind::PermissionDenied =>
            {
                bind((Ipv4Addr::UNSPECIFIED, address.port()).into())?
            }
            result => result?,
        };
        let inner = TcpListener::from_std(socket.into());
        Ok(Self { inner, is_ready: false, is_paused: false, is_pause_logged: false })
    }

    /// The address really bound.
    ///
    /// # Errors
    /// None that is known for a bound socket.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.inner, token, Interest::READABLE)
    }

    /// An event said that connections wait.
    pub(super) fn on_ready(&mut self) {
        self.is_ready = true;
    }

    /// A descriptor may be free again.
    pub(super) fn resume(&mut self) {
        self.is_paused = false;
    }

    /// Connections may wait, and nothing keeps us from accepting them.
    pub(super) fn wants_accept(&self) -> bool {
        self.is_ready && !self.is_paused
    }

    /// Out of descriptors.
    pub(super) fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// The next connection, if one waits and can be had.
    pub(super) fn accept(&mut self) -> Option<(TcpStream, SocketAddr)> {
        while self.wants_accept() {
            match self.inner.accept() {
                Ok(accepted) => return Some(accepted),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.is_ready = false;
                    self.is_pause_logged = false;
                }
                Err(error) if is_exhaustion(&error) => self.pause(&error),
                // accept(2): errors already pending on the new connection, and
                // ECONNABORTED, EINTR, EPERM (a firewall): that one is lost, the
                // next may be well.
                Err(error) => log::debug!(err:% = error; "accept_failed"),
            }
        }
        None
    }

    /// Stops accepting because `error` says that nothing more can be had.
    pub(super) fn pause(&mut self, error: &io::Error) {
        self.is_paused = true;
        if !std::mem::replace(&mut self.is_pause_logged, true) {
            log::warn!(err:% = error; "accept_paused");
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    // A restart shall not wait for TIME_WAIT of the connections before.
    socket.set_reuse_address(true)?;
    if domain == Domain::IPV6 {
        // `:8080` means IPv4 too, whatever the host's default is.
        socket.set_only_v6(address.ip() != Ipv6Addr::UNSPECIFIED)?;
    }
    // Accepted sockets inherit these two, which saves each of them two calls. A
    // frame is written when its pass ends: the kernel shall not wait for more.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// EMFILE, ENFILE, ENOBUFS, ENOMEM: to try again at once would spin.
pub(super) fn is_exhaustion(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exhaustion_pauses() {
        // errno numbers of Linux: EINTR, EAGAIN, ENOMEM, EPERM, ENFILE, EMFILE, EPROTO,
        // ENETDOWN, ECONNABORTED, ENOBUFS, EHOSTUNREACH.
        for (errno, exhausted) in [
            (4, false),
            (11, false),
            (12, true),
            (1, false),
            (23, true),
            (24, true),
            (71, false),
            (100, false),
            (103, false),
            (105, true),
            (113, false),
        ] {
            assert_eq!(is_exhaustion(&io::Error::from_raw_os_error(errno)), exhausted, "{errno}");
        }
    }

    #[test]
    fn a_pause_lasts_until_something_is_free() {
        let mut listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        listener.on_ready();
        listener.pause(&io::Error::from_raw_os_error(24));
        assert!(listener.accept().is_none() && !listener.wants_accept());
        listener.resume();
        assert!(listener.wants_accept());
        assert!(listener.accept().is_none(), "nobody has dialled");
        assert!(!listener.wants_accept());
    }

    #[test]
    fn accepted_sockets_inherit_what_a_ping_needs_to_be_in_time() {
        let mut listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let _dialer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        listener.on_ready();
        let (accepted, _) = listener.accept().expect("a dialer waits");
        assert!(accepted.nodelay().unwrap());
        let accepted = socket2::SockRef::from(&accepted);
        assert_eq!(accepted.tcp_notsent_lowat().unwrap(), NOTSENT_LOWAT);
    }

    #[test]
    fn every_interface_means_both_families() {
        let listener = Listener::bind("[::]:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    }
}
