//! The streams.
//!
//! Owns which one is whose, reading into a shared buffer and writing several slices
//! in one call, what the last call said about the next, and what lies on a stream below
//! what the relay reads: a PROXY header to take off, then TLS. Knows no other protocol.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rustls::ServerConfig;

use crate::config::{PROXY_HEADER_MAX, ROOM};
use crate::protocol::proxy_header::{self, Header, Malformed, Proxied};
use crate::protocol::transport::TransportBuffered;
use crate::relay::ConnId;
use crate::server::net::tls_session::{RECORD_MAX, Session, is_fault};
use crate::server::os::eintr::retry_eintr;

/// One stream, registered once for both directions, edge-triggered.
#[derive(Debug)]
pub(in crate::server) struct Socket {
    stream: TcpStream,
    /// That of the connection it belongs to.
    generation: u32,
    tls: Option<Box<Session>>,
    /// Input may wait that no event will announce again.
    pub(in crate::server) is_readable: bool,
    /// It was readable while its input was not wanted.
    pub(in crate::server) has_unwanted: bool,
    /// The peer has sent its last byte or the connection is broken: read to the
    /// end even after a short read.
    pub(in crate::server) is_read_closed: bool,
    /// In the queue of sockets to read.
    pub(in crate::server) is_queued: bool,
    /// FIN follows what is unsent.
    is_ending: bool,
    /// Its PROXY header has not come.
    pub(in crate::server) owes_header: bool,
}

/// Memory that all sockets share: each owns none of it for longer than a call.
#[derive(Debug)]
pub(in crate::server) struct Buffers {
    /// What a stream is read into.
    received: Vec<u8>,
    /// What came out of TLS.
    plain: Vec<u8>,
    /// What goes into it, of several slices.
    joined: Vec<u8>,
    /// What it made of that.
    sealed: Vec<u8>,
}

impl Buffers {
    /// `received` bytes are read at once.
    pub(in crate::server) fn new(received: usize) -> Self {
        Self {
            received: vec![0; received],
            plain: Vec::new(),
            joined: Vec::new(),
            sealed: Vec::new(),
        }
    }
}

/// Every stream by the index of its connection.
#[derive(Debug)]
pub(in crate::server) struct Sockets(Vec<Option<Socket>>);

/// What a connection costs here; in a debug build mio adds checks of its own.
#[cfg(not(debug_assertions))]
const _: () = assert!(size_of::<Option<Socket>>() <= 24);

impl Sockets {
    pub(in crate::server) fn new() -> Self {
        Self(Vec::with_capacity(ROOM))
    }

    pub(in crate::server) fn insert(&mut self, id: ConnId, mut socket: Socket) {
        socket.generation = id.generation();
        if self.0.len() <= id.index() {
            self.0.resize_with(id.index() + 1, || None);
        }
        self.0[id.index()] = Some(socket);
    }

    /// The socket of this connection; what comes for an earlier one is stale.
    pub(in crate::server) fn find(&mut self, id: ConnId) -> Option<&mut Socket> {
        let socket = self.0.get_mut(id.index())?.as_mut()?;
        (socket.generation == id.generation()).then_some(socket)
    }

    pub(in crate::server) fn remove(&mut self, id: ConnId) {
        if self.find(id).is_some() {
            self.0[id.index()] = None;
        }
    }
}

/// What a read found.
pub(in crate::server) enum Received<'b> {
    /// The peer's next bytes, perhaps none yet, out of so many that were read;
    /// [`Socket::is_readable`] says whether more may wait.
    Bytes(&'b [u8], usize),
    /// Nothing now.
    Nothing,
    /// The peer has sent its last byte.
    End,
    /// The stream has ended, and TLS had not said that it would: who knows what is
    /// missing, and whose doing it is (RFC 8446 §6.1).
    Cut,
}

/// How TLS has failed.
#[derive(Debug)]
pub(in crate::server) struct TlsFailure {
    /// What the peer asked for.
    pub(in crate::server) server_name: Option<Box<str>>,
    pub(in crate::server) error: String,
    /// No plaintext had come or gone.
    pub(in crate::server) in_handshake: bool,
}

impl Socket {
    pub(in crate::server) fn new(
        mut stream: TcpStream,
        tls: Option<(Arc<ServerConfig>, Option<Arc<str>>)>,
        registry: &Registry,
        token: Token,
        owes_header: bool,
    ) -> io::Result<Self> {
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        let tls = tls.map(|(config, served)| Session::new(config, served));
        let tls = tls.transpose().map_err(io::Error::other)?;
        Ok(Self {
            stream,
            generation: 0,
            tls: tls.map(Box::new),
            is_readable: false,
            has_unwanted: false,
            is_read_closed: false,
            is_queued: false,
            is_ending: false,
            owes_header,
        })
    }

    /// Takes the PROXY header off the stream, or says what is wrong with it;
    /// `None` while it is not complete. So far as it has come it stays in the
    /// kernel: it takes no memory here, and no byte behind it is touched.
    pub(in crate::server) fn take_header(
        &mut self,
        buffers: &mut Buffers,
    ) -> io::Result<Option<Result<Proxied, Malformed>>> {
        let buffer = &mut buffers.received[..PROXY_HEADER_MAX];
        let seen = match retry_eintr(|| self.stream.peek(buffer)) {
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
    pub(in crate::server) fn read<'b>(
        &mut self,
        buffers: &'b mut Buffers,
    ) -> io::Result<Received<'b>> {
        let Some(session) = &mut self.tls else {
            let count = read(&mut self.stream, &mut buffers.received)?;
            self.note_read(count, buffers.received.len());
            return Ok(match count {
                Some(0) => Received::End,
                Some(count) => Received::Bytes(&buffers.received[..count], count),
                None => Received::Nothing,
            });
        };
        if let Some(fault) = session.fault() {
            return Err(io::Error::other(fault.clone()));
        }
        if session.has_ended() {
            self.is_readable = false;
            return Ok(Received::End);
        }
        let partial = session.partial().len();
        let (front, room) = buffers.received.split_at_mut(partial);
        let (count, wanted) = (read(&mut self.stream, room)?, room.len());
        let Some(count) = count else {
            self.note_read(None, wanted);
            return Ok(Received::Nothing);
        };
        if count == 0 {
            self.is_readable = false;
            return Ok(Received::Cut);
        }
        front.copy_from_slice(session.partial());
        buffers.plain.clear();
        session.borrow(&mut buffers.sealed);
        session.receive(&mut buffers.received[..partial + count], &mut buffers.plain);
        let is_over = session.is_over();
        let is_challenge = session.is_challenge();
        let is_sent = self.flush(&mut buffers.sealed);
        self.note_read(Some(count), wanted);
        // The end, or the fault, is the next thing that a read finds.
        self.is_readable |= is_over;
        is_sent?;
        if is_challenge {
            log::debug!("challenge_answered");
            self.half_close(buffers);
            return Ok(Received::End);
        }
        Ok(Received::Bytes(&buffers.plain, count))
    }

    /// What there is to tell of TLS that failed by `error`, or of a handshake that was cut
    /// off; `None`: it was not TLS that failed. A peer that hangs up without a byte, as
    /// health checks of a TCP port do, has not failed.
    pub(in crate::server) fn tls_failure(&self, error: Option<&io::Error>) -> Option<TlsFailure> {
        let session = self.tls.as_ref()?;
        let in_handshake = session.is_handshaking();
        let error = match error {
            Some(error) if is_fault(error) => error.to_string(),
            Some(_) => return None,
            None if !in_handshake || session.is_untouched() => return None,
            None => "the peer disconnected during the handshake".into(),
        };
        Some(TlsFailure { server_name: session.server_name().map(Into::into), error, in_handshake })
    }

    fn note_read(&mut self, count: Option<usize>, wanted: usize) {
        // A short read has emptied the socket: what comes later is a new edge.
        self.is_readable =
            count.is_some_and(|count| count == wanted || count > 0 && self.is_read_closed);
    }

    /// Writes the slices in one call, through TLS up to [`RECORD_MAX`] bytes of them;
    /// returns how many bytes were taken.
    pub(in crate::server) fn write(
        &mut self,
        slices: [&[u8]; 3],
        buffers: &mut Buffers,
    ) -> io::Result<usize> {
        if self.tls.is_none() {
            return write(&mut self.stream, slices);
        }
        self.flush(&mut buffers.sealed)?;
        let Some(session) = self.tls.as_mut().filter(|session| session.unsent.is_empty()) else {
            return Ok(0);
        };
        let plain = joined(slices, &mut buffers.joined);
        if plain.is_empty() {
            return Ok(0);
        }
        session.borrow(&mut buffers.sealed);
        session.seal(plain).map_err(io::Error::other)?;
        self.flush(&mut buffers.sealed)?;
        Ok(plain.len())
    }

    /// Its next input costs public-key cryptography.
    pub(in crate::server) fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|session| session.is_handshaking())
    }

    /// [`Self::write`] takes a part only, however much room the kernel has.
    pub(in crate::server) fn takes_records(&self) -> bool {
        self.tls.is_some()
    }

    /// What TLS keeps. All of it is bounded by [`Session`].
    pub(in crate::server) fn buffered(&self) -> TransportBuffered {
        self.tls.as_ref().map_or(TransportBuffered::default(), |session| TransportBuffered {
            unread: session.partial().len(),
            unsent: session.unsent.len(),
        })
    }

    /// Sends FIN behind everything written, and through TLS close_notify before it.
    pub(in crate::server) fn half_close(&mut self, buffers: &mut Buffers) {
        self.is_ending = true;
        if let Some(session) = &mut self.tls {
            session.borrow(&mut buffers.sealed);
            // Without a session there is nobody to say it to.
            let _ = session.seal_end();
        }
        // An error means that the peer is gone, which reading will tell.
        let _ = self.flush(&mut buffers.sealed);
    }

    /// The last that is done with it: through TLS close_notify, if it was not said
    /// and the kernel has room for it.
    pub(in crate::server) fn part(&mut self, buffers: &mut Buffers) {
        if self.tls.is_some() && !self.is_ending {
            self.half_close(buffers);
        }
    }

    /// Writes what waits below the slices, as far as the kernel takes it.
    fn flush(&mut self, sealed: &mut Vec<u8>) -> io::Result<()> {
        if let Some(session) = &mut self.tls {
            let sent = match &session.unsent[..] {
                [] => Ok(0),
                unsent => write(&mut self.stream, [unsent, &[], &[]]),
            };
            session.unsent.drain(..*sent.as_ref().unwrap_or(&0));
            session.give_back(sealed);
            sent?;
            if !session.unsent.is_empty() {
                return Ok(());
            }
        }
        if self.is_ending {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        Ok(())
    }
}

/// Reads once; `None`: nothing now.
fn read(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    match retry_eintr(|| stream.read(buffer)) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        result => result.map(Some),
    }
}

/// Writes the slices in one call; returns how many bytes the kernel took.
fn write(stream: &mut TcpStream, slices: [&[u8]; 3]) -> io::Result<usize> {
    let written = retry_eintr(|| match slices {
        // send(2) takes less than writev(2), and it is nearly always one.
        [[], [], only] | [[], only, []] | [only, [], []] => stream.write(only),
        _ => stream.write_vectored(&slices.map(IoSlice::new)),
    });
    match written {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        result => result,
    }
}

/// The first bytes of the slices, at most one record's.
fn joined<'a>(slices: [&'a [u8]; 3], memory: &'a mut Vec<u8>) -> &'a [u8] {
    if let [[], [], only] | [[], only, []] | [only, [], []] = slices {
        return &only[..only.len().min(RECORD_MAX)];
    }
    memory.clear();
    for slice in slices {
        let room = RECORD_MAX - memory.len();
        memory.extend_from_slice(&slice[..slice.len().min(room)]);
    }
    memory
}
