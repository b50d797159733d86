//! Listeners: the listening sockets.
//!
//! Owns binding, accepting from each listener in turn until none has a connection waiting,
//! and the pause while no descriptor is free. Must not know what an accepted stream is for.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::config::{LISTEN_BACKLOG, Listen, ListenerProtocol, NOTSENT_LOWAT, RECEIVE_BUFFER};
use crate::server::os::descriptors::is_exhaustion;
use crate::time::Instant;

/// How often to retry while accepting is paused: no event reports that a descriptor became
/// free elsewhere in the system.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

/// One listening socket.
#[derive(Debug)]
pub struct Listener {
    inner: TcpListener,
    speaks: ListenerProtocol,
    /// Connections may be waiting that no event will announce again.
    is_ready: bool,
    is_proxied: bool,
}

impl Listener {
    /// Binds and listens.
    ///
    /// # Errors
    /// Those of the kernel: address in use, not available or not permitted.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = match bind(address) {
            // `:8080` on a host without IPv6 falls back to IPv4.
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
        Ok(Self { inner, speaks: ListenerProtocol::Plain, is_ready: false, is_proxied: false })
    }

    /// Sets the protocol of accepted connections; the default is plain.
    #[must_use]
    pub fn speaking(self, speaks: ListenerProtocol) -> Self {
        Self { speaks, ..self }
    }

    /// Binds the configured addresses, except those that `inherited` sockets serve: an
    /// inherited socket takes the place of the only address, or of the one with its port.
    ///
    /// # Errors
    /// Those of [`Self::bind`], and if an inherited socket does not listen, matches no
    /// configured address, or is reachable from other machines where the configured address
    /// is not.
    pub fn open(
        listens: &[(Listen, ListenerProtocol)],
        inherited: Vec<std::net::TcpListener>,
    ) -> io::Result<Vec<Self>> {
        let mut unserved = listens.to_vec();
        let mut listeners = Vec::new();
        for socket in inherited {
            let address = socket.local_addr()?;
            let listen = match listens {
                [only] => Some(only),
                several => several.iter().find(|(it, _)| it.address.port() == address.port()),
            };
            let refuse = |why| Err(io::Error::new(ErrorKind::InvalidInput, why));
            let Some(of @ (listen, _)) = listen else {
                return refuse(format!("no flag names the port of the inherited socket {address}"));
            };
            // The checks of the configuration covered only what the flags expose.
            if is_loopback(listen.address) && !is_loopback(address) {
                return refuse(format!(
                    "the inherited socket {address} is reachable from other machines, \
                     but the configuration says {}: make them agree",
                    listen.address
                ));
            }
            unserved.retain(|it| it != of);
            listeners.push(Self::adopt(socket)?.serving(of));
        }
        for of in unserved {
            let address = of.0.address;
            let named =
                |error: io::Error| io::Error::new(error.kind(), format!("{address}: {error}"));
            listeners.push(Self::bind(address).map_err(named)?.serving(&of));
        }
        Ok(listeners)
    }

    fn serving(self, (listen, speaks): &(Listen, ListenerProtocol)) -> Self {
        self.speaking(*speaks).proxied(listen.proxy_protocol)
    }

    /// Takes over an inherited socket, which is bound and must listen already.
    fn adopt(socket: std::net::TcpListener) -> io::Result<Self> {
        let options = SockRef::from(&socket);
        if !options.is_listener()? {
            return Err(io::Error::new(
                ErrorKind::InvalidInput,
                "an inherited socket is not listening",
            ));
        }
        prepare(&options)?;
        socket.set_nonblocking(true)?;
        let inner = TcpListener::from_std(socket);
        Ok(Self { inner, speaks: ListenerProtocol::Plain, is_ready: false, is_proxied: false })
    }

    /// Sets whether every connection starts with a PROXY header.
    #[must_use]
    pub fn proxied(self, is_proxied: bool) -> Self {
        Self { is_proxied, ..self }
    }

    /// The bound address.
    ///
    /// # Errors
    /// No known one for a bound socket.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

mod state;

/// All listening sockets of a loop.
#[derive(Debug)]
pub(in crate::server) struct Listeners {
    all: Vec<Listener>,
    /// The index of the listener that accepted last.
    next: usize,
    /// No descriptor is free: when to try again, unless a connection ends before.
    paused_until: Option<Instant>,
    /// The pause has been logged; reset when no connection is waiting any more.
    is_pause_logged: bool,
}

/// An accepted connection.
#[derive(Debug)]
pub(in crate::server) struct Accepted {
    pub(in crate::server) stream: TcpStream,
    pub(in crate::server) peer: SocketAddr,
    pub(in crate::server) speaks: ListenerProtocol,
    /// The connection starts with a PROXY header.
    pub(in crate::server) is_proxied: bool,
}

impl Listeners {
    /// Registers each listener under one of `tokens`, in their order.
    pub(in crate::server) fn register(
        mut all: Vec<Listener>,
        registry: &Registry,
        tokens: RangeInclusive<usize>,
    ) -> io::Result<Self> {
        if all.len() > tokens.clone().count() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "too many listening sockets"));
        }
        for (listener, token) in all.iter_mut().zip(tokens) {
            registry.register(&mut listener.inner, Token(token), Interest::READABLE)?;
        }
        Ok(Self { all, next: 0, paused_until: None, is_pause_logged: false })
    }

    /// An event reported connections waiting at the `index`th listener.
    pub(in crate::server) fn on_ready(&mut self, index: usize) {
        if let Some(listener) = self.all.get_mut(index) {
            listener.is_ready = true;
        }
    }

    /// Their addresses.
    pub(in crate::server) fn local_addrs(&self) -> io::Result<Vec<SocketAddr>> {
        self.all.iter().map(Listener::local_addr).collect()
    }

    /// A descriptor may be free again.
    pub(in crate::server) fn resume(&mut self) {
        self.paused_until = None;
    }

    /// Whether connections may be waiting and accepting is not paused.
    pub(in crate::server) fn wants_accept(&self) -> bool {
        self.paused_until.is_none() && self.all.iter().any(|listener| listener.is_ready)
    }

    /// When accepting is tried again, while it is paused for lack of descriptors.
    pub(in crate::server) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// The next waiting connection, from each listener in turn, so that a burst at one
    /// listener does not delay connections to another.
    pub(in crate::server) fn accept(&mut self, now: Instant) -> Option<Accepted> {
        if self.paused_until.is_some_and(|until| until <= now) {
            self.resume();
        }
        while self.wants_accept() {
            self.next = (self.next + 1) % self.all.len();
            let listener = &mut self.all[self.next];
            if !listener.is_ready {
                continue;
            }
            match listener.inner.accept() {
                Ok((stream, peer)) => {
                    let Listener { speaks, is_proxied, .. } = *listener;
                    return Some(Accepted { stream, peer, speaks, is_proxied });
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    listener.is_ready = false;
                    self.is_pause_logged &= self.wants_accept();
                }
                Err(error) if is_exhaustion(&error) => self.pause(&error, now),
                // accept(2) also returns errors of the new connection itself, ECONNABORTED,
                // EINTR, and EPERM from a firewall: only this connection is lost.
                Err(error) => log::debug!(err:% = error; "accept_failed"),
            }
        }
        None
    }

    /// Stops accepting because `error` reports exhaustion.
    pub(in crate::server) fn pause(&mut self, error: &io::Error, now: Instant) {
        self.paused_until = Some(now + ACCEPT_RETRY);
        if !std::mem::replace(&mut self.is_pause_logged, true) {
            log::warn!(err:% = error; "accept_paused");
        }
    }
}

fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    // A restart must not wait for connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if domain == Domain::IPV6 {
        // `:8080` includes IPv4, whatever the host's default (ipv6(7), bindv6only).
        socket.set_only_v6(address.ip() != Ipv6Addr::UNSPECIFIED)?;
    }
    prepare(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(LISTEN_BACKLOG as i32)?;
    Ok(socket)
}

/// Sets three options that accepted sockets inherit, which saves three calls per connection.
/// TCP_NODELAY: a frame is written when its pass ends, so the kernel must not wait for more.
/// SO_RCVBUF must be set before the handshake, which fixes the window's scale (tcp(7)).
fn prepare(socket: &Socket) -> io::Result<()> {
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inherited_sockets_take_the_place_of_what_is_configured() {
        let socket = |address: &str| std::net::TcpListener::bind(address).unwrap();
        let plain = |listen| (listen, ListenerProtocol::Plain);
        let listen = |address: &str| plain(Listen::at(address.parse().unwrap()));
        let (one, other) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
        let addresses = [one.local_addr().unwrap(), other.local_addr().unwrap()];
        // Both take the place of the only configured address, which is not bound.
        let proxied = Listen { proxy_protocol: true, ..Listen::at(addresses[0]) };
        let sockets = vec![one, other];
        let listeners = Listener::open(&[plain(proxied)], sockets).unwrap();
        let bound: Vec<_> = listeners.iter().map(|it| it.local_addr().unwrap()).collect();
        assert_eq!(bound, addresses);
        assert!(listeners.iter().all(|it| it.is_proxied));

        // Of several each for its port, and the others are bound.
        let one = socket("127.0.0.1:0");
        let address = one.local_addr().unwrap();
        let listens = [listen("127.0.0.1:0"), plain(Listen::at(address))];
        let listeners = Listener::open(&listens, vec![one]).unwrap();
        assert_eq!(listeners.len(), 2);
        let refused = |listens: &[(Listen, ListenerProtocol)], address: &str| {
            Listener::open(listens, vec![socket(address)]).unwrap_err().to_string()
        };
        assert!(refused(&listens, "127.0.0.1:0").contains("no flag names the port"));
        // What is for this machine only stays so.
        let said = refused(&[listen("127.0.0.1:1")], "0.0.0.0:0");
        assert!(said.contains("make them agree"), "{said}");
        assert!(Listener::open(&[listen("[::]:1")], vec![socket("0.0.0.0:0")]).is_ok());
    }

    fn listeners(count: usize) -> (Listeners, Vec<SocketAddr>, mio::Poll) {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let all: Vec<_> = (0..count).map(|_| Listener::bind(loopback).unwrap()).collect();
        let addresses = all.iter().map(|listener| listener.local_addr().unwrap()).collect();
        let poll = mio::Poll::new().unwrap();
        let mut listeners = Listeners::register(all, poll.registry(), 7..=9).unwrap();
        (0..count).for_each(|index| listeners.on_ready(index));
        (listeners, addresses, poll)
    }

    #[test]
    fn a_pause_lasts_until_something_is_free() {
        let (mut listeners, ..) = listeners(2);
        for end in [Instant::START, Instant::START + ACCEPT_RETRY] {
            (0..2).for_each(|index| listeners.on_ready(index));
            listeners.pause(&io::Error::from_raw_os_error(24), Instant::START);
            assert!(listeners.accept(Instant::START).is_none() && !listeners.wants_accept());
            assert_eq!(listeners.paused_until(), Some(Instant::START + ACCEPT_RETRY));
            if end == Instant::START {
                listeners.resume();
                assert!(listeners.wants_accept());
            }
            assert!(listeners.accept(end).is_none(), "no connection waits");
            assert!(listeners.paused_until().is_none() && !listeners.wants_accept());
        }
    }

    #[test]
    fn accepted_sockets_inherit_what_a_ping_needs_to_be_in_time() {
        let (mut listeners, addresses, _poll) = listeners(1);
        let _dialer = std::net::TcpStream::connect(addresses[0]).unwrap();
        let Accepted { stream, .. } = listeners.accept(Instant::START).expect("a dialer waits");
        assert!(stream.nodelay().unwrap());
        let stream = SockRef::from(&stream);
        assert_eq!(stream.tcp_notsent_lowat().unwrap(), NOTSENT_LOWAT);
        // Doubled, and capped where the machine allows less.
        let receive_buffer = stream.recv_buffer_size().unwrap();
        assert!((1..=2 * RECEIVE_BUFFER).contains(&receive_buffer), "{receive_buffer}");
        let grown = std::fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap();
        let most: usize = grown.trim().parse().unwrap();
        assert_eq!(receive_buffer, 2 * RECEIVE_BUFFER.min(most), "inherited");
    }

    #[test]
    fn dialers_of_one_listener_do_not_wait_for_those_of_another() {
        let (mut listeners, addresses, _poll) = listeners(3);
        let mut dialers = Vec::new();
        for address in [0, 0, 0, 0, 2, 2].map(|index| addresses[index]) {
            dialers.push(std::net::TcpStream::connect(address).unwrap());
        }
        let port = |accepted: Accepted| accepted.stream.local_addr().unwrap().port();
        let ports: Vec<_> =
            std::iter::from_fn(|| listeners.accept(Instant::START)).map(port).collect();
        assert_eq!(ports.len(), 6);
        let is_third = |port: &&u16| **port == addresses[2].port();
        assert_eq!(ports[..4].iter().filter(is_third).count(), 2);
    }

    #[test]
    fn every_interface_means_both_families() {
        let listener = Listener::bind("[::]:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    }
}
