//! One stream to the relay, plain or TLS, with a deadline on everything.
//!
//! Owns resolving, dialling, reading and writing. Knows nothing of what is said.
//!
//! 1. No call waits past the deadline that was set last, however slowly the other
//!    end drips; it fails with `WouldBlock` and may be tried again.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustls::{ClientConnection, StreamOwned};

use super::clock;
use super::diagnosis::{self, Diagnosis};

/// All addresses of a host, in the resolver's order.
pub(super) fn resolve(
    host: &str,
    port: u16,
    timeout: Duration,
) -> Result<Vec<SocketAddr>, Diagnosis> {
    // The resolver has times of its own and takes none: it is left behind.
    let (sender, answer) = mpsc::sync_channel(1);
    let asked = (host.to_owned(), port);
    let ask = move || {
        let addresses = asked.to_socket_addrs().map(Iterator::collect::<Vec<_>>);
        let _ = sender.try_send(addresses);
    };
    thread::Builder::new()
        .name("resolve".into())
        .spawn(ask)
        .map_err(|error| Diagnosis::new(format!("cannot start a thread: {error}")))?;
    let trouble = match answer.recv_timeout(timeout) {
        Ok(Ok(addresses)) if !addresses.is_empty() => return Ok(addresses),
        Ok(Ok(_)) => format!("{host:?} has no address"),
        Ok(Err(error)) => format!("{host:?}: {error}"),
        Err(_) => format!("no answer about {host:?} within {} s", timeout.as_secs_f64()),
    };
    Err(Diagnosis::new(trouble)
        .advise("see that the name is spelt well and in DNS, and that this machine can ask DNS"))
}

/// Dials the first of `addresses` that answers.
pub(super) fn dial(
    addresses: &[SocketAddr],
    timeout: Duration,
) -> Result<(TcpStream, SocketAddr), Diagnosis> {
    let mut trouble = Diagnosis::new("no address to dial");
    for &address in addresses {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => {
                // Small frames shall not wait for each other's acknowledgements.
                let _ = stream.set_nodelay(true);
                return Ok((stream, address));
            }
            Err(error) => {
                trouble =
                    Diagnosis::new(format!("{address}: {error}")).advise(match error.kind() {
                        ErrorKind::ConnectionRefused => {
                            "nobody listens there: see that the relay (or its proxy) runs, and on \
                         which address and port (`listening` in its log)"
                        }
                        ErrorKind::TimedOut | ErrorKind::WouldBlock => {
                            "no answer at all: a firewall, or a wrong address"
                        }
                        _ => "see the network between here and there",
                    });
            }
        }
    }
    Err(trouble)
}

/// How the other end ended a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Fin,
    Reset,
}

impl End {
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Fin => "the connection was closed (FIN)",
            Self::Reset => "the connection was reset (RST)",
        }
    }
}

/// A TCP stream that keeps to a deadline.
#[derive(Debug)]
pub(super) struct Timed {
    socket: TcpStream,
    deadline: Instant,
    end: Option<End>,
}

impl Timed {
    pub(super) fn new(socket: TcpStream, deadline: Instant) -> Self {
        Self { socket, deadline, end: None }
    }

    fn left(&self) -> io::Result<Duration> {
        match self.deadline.saturating_duration_since(clock::now()) {
            Duration::ZERO => Err(ErrorKind::WouldBlock.into()),
            left => Ok(left),
        }
    }

    fn note<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result
            && matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
        {
            self.end = Some(End::Reset);
        }
        result
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = loop {
            self.socket.set_read_timeout(Some(self.left()?))?;
            match self.socket.read(buffer) {
                // It was suspended (Ctrl-Z) and goes on (signal(7)).
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        if let Ok(0) = result
            && !buffer.is_empty()
        {
            self.end = Some(End::Fin);
        }
        self.note(result)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(self.left()?))?;
        let result = self.socket.write(bytes);
        self.note(result)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A stream to the relay.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(Timed),
    Tls(Box<StreamOwned<ClientConnection, Timed>>),
}

impl Stream {
    fn timed(&mut self) -> &mut Timed {
        match self {
            Self::Plain(timed) => timed,
            Self::Tls(stream) => &mut stream.sock,
        }
    }

    /// From now on nothing waits past `deadline`.
    pub(super) fn set_deadline(&mut self, deadline: Instant) {
        self.timed().deadline = deadline;
    }

    /// How the other end ended it, if it has.
    pub(super) fn end(&mut self) -> Option<End> {
        self.timed().end
    }

    /// Why a call failed, if it was no deadline: the end that was seen, or `error`.
    pub(super) fn failure(&mut self, error: &io::Error, timeout: Duration) -> Diagnosis {
        match (self.end(), error.kind()) {
            (Some(end), _) => diagnosis::cut_off(end.words()),
            (None, ErrorKind::WouldBlock) => diagnosis::silence(timeout),
            _ => Diagnosis::new(error.to_string()),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}
