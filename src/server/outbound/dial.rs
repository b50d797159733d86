//! Dial: a TCP connection to the first of a host's addresses that answers (RFC 8305 §5).
//!
//! Owns the delay between attempts and their number. Must not know names or TLS.
//!
//! 1. The next address is tried [`ATTEMPT_DELAY`] after the previous one, or at once when an
//!    attempt fails. Earlier attempts continue beside it.
//! 2. No thread is started: one poll(2) waits for all attempts, until the deadline at most.
//! 3. A call always has one socket. It has more only while [`Places`] are free, and at most
//!    [`ATTEMPTS_MAX`]. Beyond that, the oldest attempt is given up for the next address once
//!    it has had [`ATTEMPT_TIMEOUT`].

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;
use socket2::{Domain, Protocol, Socket, Type};

use super::places::{Place, Places};
use crate::server::os::clock::monotonic;

/// The delay between two attempts that RFC 8305 §5 recommends.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// The maximum of concurrent attempts of one call.
const ATTEMPTS_MAX: usize = 4;
/// How long an attempt may take before it is given up for another: the kernel repeats a lost
/// SYN after 1 s (RFC 6298 §2.1), and the answer takes a round trip.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(1500);

/// An attempt in progress.
struct Attempt {
    socket: Socket,
    began: Instant,
    /// `None`: it was the call's only attempt when it started, which needs no place.
    _place: Option<Place>,
}

impl Attempt {
    fn start(address: SocketAddr, began: Instant, place: Option<Place>) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        match socket.connect(&address.into()) {
            Err(error) if !is_under_way(&error) => Err(error),
            _ => Ok(Self { socket, began, _place: place }),
        }
    }

    /// The connection, once poll(2) has reported its socket ready.
    fn finish(self) -> io::Result<TcpStream> {
        if let Some(error) = self.socket.take_error()? {
            return Err(error);
        }
        self.socket.set_nonblocking(false)?;
        self.socket.set_tcp_nodelay(true)?;
        Ok(self.socket.into())
    }
}

fn is_under_way(error: &io::Error) -> bool {
    let codes = [Errno::INPROGRESS, Errno::INTR];
    codes.iter().any(|code| error.raw_os_error() == Some(code.raw_os_error()))
}

/// Connects to the first of `addresses`, tried in this order, that answers before `deadline`;
/// a concurrent attempt takes one of the `places`.
///
/// # Errors
/// The last failure if all attempts have failed, `TimedOut` at the deadline.
pub(super) fn dial(
    addresses: &[SocketAddr],
    deadline: Instant,
    places: &Places,
) -> io::Result<TcpStream> {
    let mut untried = addresses.iter();
    let mut attempts: VecDeque<Attempt> = VecDeque::new();
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    let mut next_at = monotonic();
    loop {
        let now = monotonic();
        if now >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut wake_at = deadline;
        if !untried.as_slice().is_empty() {
            let is_first = attempts.is_empty();
            let is_due = is_first || next_at <= now;
            let may_join = is_due && !is_first && attempts.len() < ATTEMPTS_MAX;
            let place = may_join.then(|| places.take()).flatten();
            if is_first || place.is_some() {
                let address = *untried.next().expect("it is not empty");
                match Attempt::start(address, now, place) {
                    Ok(attempt) => attempts.push_back(attempt),
                    Err(error) => {
                        failure = error;
                        continue;
                    }
                }
                next_at = now + ATTEMPT_DELAY;
                wake_at = next_at;
            } else if is_due {
                let oldest = attempts.front().expect("one is under way");
                wake_at = oldest.began + ATTEMPT_TIMEOUT;
                if wake_at <= now {
                    attempts.pop_front();
                    continue;
                }
            } else {
                wake_at = next_at;
            }
        }
        if attempts.is_empty() {
            return Err(failure);
        }
        let ready = wait(&attempts, wake_at.min(deadline).saturating_duration_since(now))?;
        // From the back, so that smaller indices stay valid.
        for index in ready.into_iter().rev() {
            let attempt = attempts.remove(index).expect("it was polled");
            match attempt.finish() {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    failure = error;
                    next_at = monotonic();
                }
            }
        }
    }
}

/// Waits until attempts have succeeded or failed and returns their indices; empty after
/// `timeout`.
fn wait(attempts: &VecDeque<Attempt>, timeout: Duration) -> io::Result<Vec<usize>> {
    let mut sockets: Vec<PollFd<'_>> =
        attempts.iter().map(|attempt| PollFd::new(&attempt.socket, PollFlags::OUT)).collect();
    let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
    match poll(&mut sockets, Some(&timeout)) {
        Ok(_) => {}
        // The caller computes the remaining time again.
        Err(Errno::INTR) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    }
    let is_ready = |index: &usize| !sockets[*index].revents().is_empty();
    Ok((0..sockets.len()).filter(is_ready).collect())
}

/// The addresses with alternating families, starting with the first address's family (RFC
/// 8305 §4): a family that does not work costs one delay, however many addresses it has.
pub(super) fn interleave(addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut addresses = addresses.peekable();
    let is_ipv6 = addresses.peek().is_some_and(SocketAddr::is_ipv6);
    let (one, other): (Vec<_>, Vec<_>) = addresses.partition(|it| it.is_ipv6() == is_ipv6);
    let longer = one.len().max(other.len());
    let turns = (0..longer).flat_map(|turn| [one.get(turn), other.get(turn)]);
    turns.flatten().copied().collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::TcpListener;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    /// A listener whose backlog is full: the kernel drops a SYN to it, as a black hole does.
    pub(in super::super) struct BlackHole {
        pub(in super::super) address: SocketAddr,
        _listener: Socket,
        _fill: Vec<Socket>,
    }

    impl BlackHole {
        pub(in super::super) fn new() -> Self {
            let socket = || {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                socket.set_nonblocking(true).unwrap();
                socket
            };
            let listener = socket();
            let loopback: SocketAddr = "127.0.0.1:0".parse().unwrap();
            listener.bind(&loopback.into()).unwrap();
            listener.listen(0).unwrap();
            let address = listener.local_addr().unwrap().as_socket().unwrap();
            let fill = Vec::from_iter((0..3).map(|_| {
                let socket = socket();
                // Never completes.
                let _ = socket.connect(&address.into());
                socket
            }));
            Self { address, _listener: listener, _fill: fill }
        }
    }

    fn live() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    fn refusing() -> SocketAddr {
        live().1
    }

    /// The address that was reached, or the failure, and how long that took.
    fn timed(
        addresses: &[SocketAddr],
        within: Duration,
        places: usize,
    ) -> (Result<SocketAddr, io::ErrorKind>, Duration) {
        let began = monotonic();
        let stream = dial(addresses, began + within, &Places::new(places));
        let reached = stream.map(|stream| stream.peer_addr().unwrap());
        (reached.map_err(|error| error.kind()), monotonic() - began)
    }

    #[test]
    fn an_address_that_refuses_costs_nothing() {
        let (_listener, address) = live();
        let (reached, took) = timed(&[refusing(), refusing(), address], SOON, 4);
        assert_eq!(reached, Ok(address));
        assert!(took < ATTEMPT_DELAY, "{took:?}");
    }

    #[test]
    fn an_address_that_is_silent_costs_a_quarter_of_a_second() {
        let (hole, (_listener, address)) = (BlackHole::new(), live());
        let (reached, took) = timed(&[hole.address, address], SOON, 4);
        assert_eq!(reached, Ok(address));
        assert!(took >= ATTEMPT_DELAY && took < 6 * ATTEMPT_DELAY, "{took:?}");
        // A refusal, even behind others that are silent, costs nothing more.
        let (reached, took) = timed(&[hole.address, hole.address, refusing(), address], SOON, 4);
        assert_eq!(reached, Ok(address));
        assert!(took >= 2 * ATTEMPT_DELAY && took < 8 * ATTEMPT_DELAY, "{took:?}");
    }

    #[test]
    fn without_a_place_each_address_has_its_time_and_then_gives_way() {
        let (hole, (_listener, address)) = (BlackHole::new(), live());
        let (reached, took) = timed(&[hole.address, address], SOON, 0);
        assert_eq!(reached, Ok(address));
        assert!(took >= ATTEMPT_TIMEOUT, "{took:?}");
        // One address more than the maximum of concurrent attempts.
        let holes = [hole.address; ATTEMPTS_MAX];
        let (reached, took) = timed(&[&holes[..], &[address]].concat(), SOON, 10);
        assert_eq!(reached, Ok(address));
        assert!(took >= ATTEMPT_TIMEOUT, "{took:?}");
    }

    #[test]
    fn the_deadline_ends_it_and_places_are_free_again() {
        let hole = BlackHole::new();
        let within = 3 * ATTEMPT_DELAY;
        let places = Places::new(2);
        let began = monotonic();
        let failed = dial(&[hole.address; 3], began + within, &places).unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::TimedOut);
        assert!(monotonic() - began >= within);
        assert!(places.take().is_some_and(|_held| places.take().is_some()), "all are free");
    }

    #[test]
    fn the_failure_of_the_last_is_told() {
        let (reached, _) = timed(&[refusing(), refusing()], SOON, 4);
        assert_eq!(reached, Err(io::ErrorKind::ConnectionRefused));
        let (reached, _) = timed(&[], SOON, 4);
        assert_eq!(reached, Err(io::ErrorKind::AddrNotAvailable));
    }

    #[test]
    fn families_take_turns() {
        let address = |text: &str| format!("{text}:1").parse::<SocketAddr>().unwrap();
        let [a, b, c, d] = ["[::1]", "[::2]", "[::3]", "1.1.1.1"].map(address);
        assert_eq!(interleave([a, b, c, d].into_iter()), [a, d, b, c]);
        assert_eq!(interleave([d, a, b].into_iter()), [d, a, b]);
        assert_eq!(interleave([].into_iter()), []);
    }
}
