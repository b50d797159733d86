//! Stream: a connection to the relay, plain or TLS, with a deadline on every call.
//!
//! Owns resolving, reading and writing. Does not know the protocol on top.
//!
//! 1. No call waits past the most recent deadline, however slowly bytes arrive; it fails
//!    with `WouldBlock` and may be retried.

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
    // The system's resolver accepts no timeout, so it runs on a thread that is abandoned
    // when the time is up.
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
        Err(_) => format!("no response about {host:?} within {} s", timeout.as_secs_f64()),
    };
    Err(Diagnosis::new(trouble).advise(
        "check the spelling of the name, that it is in DNS, and that this machine reaches DNS",
    ))
}

/// How the remote end ended the TCP connection.
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

/// A TCP stream with a deadline.
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
                // The process was stopped (Ctrl-Z) and continued (signal(7)).
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

    /// Sets the deadline of all further calls.
    pub(super) fn set_deadline(&mut self, deadline: Instant) {
        self.timed().deadline = deadline;
    }

    /// How the remote end ended the connection, if it has.
    pub(super) fn end(&mut self) -> Option<End> {
        self.timed().end
    }

    /// The diagnosis for a failed call: the end of the connection, the deadline, or `error`.
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
