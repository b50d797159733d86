//! The streams.
//!
//! Owns which one is whose, reading into a shared buffer and writing several slices
//! in one call, what the last call said about the next, and taking a PROXY header
//! off the stream. Knows no other protocol.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use crate::config::PROXY_HEADER_MAX;
use crate::protocol::proxy_header::{self, Header, Malformed, Proxied};
use crate::relay::ConnId;

/// One stream, registered once for both directions, edge-triggered.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    /// Input may wait that no event will announce again.
    pub(super) is_readable: bool,
    /// It was readable while its input was not wanted.
    pub(super) has_unwanted: bool,
    /// The peer has sent its last byte or the connection is broken: read to the
    /// end even after a short read.
    pub(super) is_read_closed: bool,
    /// In the queue of sockets to read.
    pub(super) is_queued: bool,
    /// Its PROXY header has not come.
    pub(super) owes_header: bool,
}

/// Every stream by the index of its connection, with the generation.
#[derive(Debug, Default)]
pub(super) struct Sockets(Vec<Option<(u32, Socket)>>);

impl Sockets {
    pub(super) fn insert(&mut self, id: ConnId, socket: Socket) {
        if self.0.len() <= id.index() {
            self.0.resize_with(id.index() + 1, || None);
        }
        self.0[id.index()] = Some((id.generation(), socket));
    }

    /// The socket of this connection; what comes for an earlier one is stale.
    pub(super) fn find(&mut self, id: ConnId) -> Option<&mut Socket> {
        let (generation, socket) = self.0.get_mut(id.index())?.as_mut()?;
        (*generation == id.generation()).then_some(socket)
    }

    pub(super) fn remove(&mut self, id: ConnId) {
        if self.find(id).is_some() {
            self.0[id.index()] = None;
        }
    }
}

/// What a read found.
pub(super) enum Input {
    /// So many bytes; [`Socket::is_readable`] says whether more may wait.
    Some(usize),
    /// Nothing now.
    Nothing,
    /// The peer has sent its last byte.
    End,
}

impl Socket {
    pub(super) fn new(
        mut stream: TcpStream,
        registry: &Registry,
        token: Token,
        owes_header: bool,
    ) -> io::Result<Self> {
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self {
            stream,
            is_readable: false,
            has_unwanted: false,
            is_read_closed: false,
            is_queued: false,
            owes_header,
        })
    }

    /// Takes the PROXY header off the stream, or says what is wrong with it;
    /// `None` while it is not complete. So far as it has come it stays in the
    /// kernel: it takes no memory here, and no byte behind it is touched.
    pub(super) fn take_header(
        &mut self,
        buffer: &mut [u8],
    ) -> io::Result<Option<Result<Proxied, Malformed>>> {
        let buffer = &mut buffer[..PROXY_HEADER_MAX];
        let seen = match uninterrupted(|| self.stream.peek(buffer)) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            result => result?,
        };
        match proxy_header::parse(&buffer[..seen]) {
            Ok(Header::Partial) if self.is_read_closed => Err(ErrorKind::UnexpectedEof.into()),
            Ok(Header::Partial) => {
                // More bytes are a new edge, although these were not read.
                self.is_readable = false;
                Ok(None)
            }
            Ok(Header::Complete { proxied, len }) => {
                self.owes_header = false;
                self.stream.read_exact(&mut buffer[..len])?;
                Ok(Some(Ok(proxied)))
            }
            Err(malformed) => Ok(Some(Err(malformed))),
        }
    }

    /// Reads once.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Input> {
        Ok(match uninterrupted(|| self.stream.read(buffer)) {
            Ok(0) => {
                self.is_readable = false;
                Input::End
            }
            Ok(count) => {
                // A short read has emptied the socket: what comes later is a new edge.
                self.is_readable = count == buffer.len() || self.is_read_closed;
                Input::Some(count)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.is_readable = false;
                Input::Nothing
            }
            Err(error) => return Err(error),
        })
    }

    /// Writes the slices in one call; returns how many bytes the kernel took.
    pub(super) fn write(&mut self, slices: [&[u8]; 3]) -> io::Result<usize> {
        let written = uninterrupted(|| match slices {
            // send(2) takes less than writev(2), and it is nearly always one.
            [[], [], only] | [[], only, []] | [only, [], []] => self.stream.write(only),
            _ => self.stream.write_vectored(&slices.map(IoSlice::new)),
        });
        match written {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            result => result,
        }
    }

    /// Sends FIN behind everything written.
    pub(super) fn half_close(&self) {
        // An error means that the peer is gone, which reading will tell.
        let _ = self.stream.shutdown(Shutdown::Write);
    }
}

/// Calls until no signal has come between.
fn uninterrupted(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
