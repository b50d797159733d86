//! Sockets: the TCP streams of the connections.
//!
//! Owns the mapping from connections to streams, reads into a shared buffer, writes of
//! several slices in one call, and the readiness that the last call implies. Removes the
//! layers below the relay's bytes: first a PROXY header, then TLS. Must not know any other
//! protocol.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rustls::ServerConfig;

use crate::config::{INITIAL_CAPACITY, PROXY_HEADER_MAX};
use crate::protocol::proxy_header::{self, Header, Malformed, Proxied};
use crate::protocol::transport::{Slices, TransportBuffered, only};
use crate::relay::ConnId;
use crate::server::net::tls_session::{Lent, Plain, SEAL_MAX, SEAL_SLOW, Session, is_fault};
use crate::server::os::eintr::retry_eintr;
use crate::server::turn::{PeerEnd, Readiness};

/// One stream, registered once for both directions, edge-triggered.
#[derive(Debug)]
pub(in crate::server) struct Socket {
    stream: TcpStream,
    /// The generation of the connection that the stream belongs to.
    generation: u32,
    tls: Option<Box<Session>>,
    pub(in crate::server) readiness: Readiness,
    /// The PROXY header has not arrived yet.
    pub(in crate::server) owes_header: bool,
}

/// Buffers that all sockets share; none keeps one for longer than a call.
#[derive(Debug)]
pub(in crate::server) struct Buffers {
    /// Bytes read from a stream.
    received: Vec<u8>,
    /// Plaintext from and for a TLS session that stays in rustls.
    plain: Vec<u8>,
    /// Ciphertext from TLS.
    lent: Lent,
}

impl Buffers {
    /// Buffers for reads of `received` bytes.
    pub(in crate::server) fn new(received: usize) -> Self {
        Self { received: vec![0; received], plain: Vec::new(), lent: Lent::default() }
    }
}

/// Every stream by the index of its connection.
#[derive(Debug)]
pub(in crate::server) struct Sockets(Vec<Option<Socket>>);

/// The memory per connection; in a debug build mio adds checks of its own.
#[cfg(not(debug_assertions))]
const _: () = assert!(size_of::<Option<Socket>>() <= 24);

impl Sockets {
    pub(in crate::server) fn new() -> Self {
        Self(Vec::with_capacity(INITIAL_CAPACITY))
    }

    pub(in crate::server) fn insert(&mut self, id: ConnId, mut socket: Socket) {
        socket.generation = id.generation();
        if self.0.len() <= id.index() {
            self.0.resize_with(id.index() + 1, || None);
        }
        self.0[id.index()] = Some(socket);
    }

    /// The socket of this connection; `None` for a stale id of an earlier connection.
    pub(in crate::server) fn find(&mut self, id: ConnId) -> Option<&mut Socket> {
        let socket = self.0.get_mut(id.index())?.as_mut()?;
        (socket.generation == id.generation()).then_some(socket)
    }

    /// Whether no connection has a socket.
    pub(in crate::server) fn is_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }

    /// The number of TLS handshakes under way.
    pub(in crate::server) fn handshakes(&self) -> usize {
        self.0.iter().flatten().filter(|socket| socket.is_handshaking()).count()
    }

    pub(in crate::server) fn remove(&mut self, id: ConnId) {
        if self.find(id).is_some() {
            self.0[id.index()] = None;
        }
    }
}

mod state;

/// The result of a read.
pub(in crate::server) enum Received<'b> {
    /// The peer's next bytes, possibly none yet, and the number of bytes read for them;
    /// [`Readiness::is_readable`] tells whether more may be waiting.
    Bytes(&'b [u8], usize),
    /// No input now.
    Nothing,
    /// The peer has sent its last byte.
    End,
    /// The stream has ended without close_notify: data may be missing, possibly by an
    /// attacker's doing (RFC 8446 §6.1).
    Cut,
}

/// A TLS failure.
#[derive(Debug)]
pub(in crate::server) struct TlsFailure {
    /// The server name that the peer asked for.
    pub(in crate::server) server_name: Option<Box<str>>,
    pub(in crate::server) error: String,
    /// The handshake was not complete.
    pub(in crate::server) in_handshake: bool,
}

/// What a connection has events for.
const EVENTS: Interest = Interest::READABLE.add(Interest::WRITABLE);

impl Socket {
    pub(in crate::server) fn new(
        mut stream: TcpStream,
        tls: Option<(Arc<ServerConfig>, Option<Arc<str>>)>,
        registry: &Registry,
        token: Token,
        owes_header: bool,
    ) -> io::Result<Self> {
        registry.register(&mut stream, token, EVENTS)?;
        let tls = tls.map(|(config, served)| Session::new(config, served));
        let tls = tls.transpose().map_err(io::Error::other)?;
        Ok(Self {
            stream,
            generation: 0,
            tls: tls.map(Box::new),
            readiness: Readiness::default(),
            owes_header,
        })
    }

    /// Removes the PROXY header from the stream and returns it, or what is wrong with it;
    /// `None` while it is incomplete. A partial header stays in the kernel: it takes no
    /// memory here, and no byte after the header is read.
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
            Ok(Header::Partial) if self.has_ended() => Err(ErrorKind::UnexpectedEof.into()),
            Ok(Header::Partial) => {
                // New bytes cause a new edge, although these were only peeked at.
                self.readiness.is_readable = false;
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

    /// The bytes of input that the kernel holds.
    pub(in crate::server) fn unread(&self) -> usize {
        rustix::io::ioctl_fionread(&self.stream).map_or(0, |count| count as usize)
    }

    /// Reads once from the stream.
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
            return Err(io::Error::other(fault));
        }
        if session.has_ended() {
            self.readiness.is_readable = false;
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
            self.readiness.is_readable = false;
            return Ok(Received::Cut);
        }
        front.copy_from_slice(session.partial());
        if self.readiness.end != PeerEnd::Open {
            session.on_hang_up();
        }
        session.borrow(&mut buffers.lent);
        let plain = session.receive(&mut buffers.received[..partial + count], &mut buffers.plain);
        let is_over = session.is_over();
        let is_challenge = session.is_challenge();
        let is_sent = self.flush(&mut buffers.lent);
        self.note_read(Some(count), wanted);
        // The next read returns the end or the fault.
        self.readiness.is_readable |= is_over;
        is_sent?;
        if is_challenge {
            log::debug!("challenge_answered");
            self.half_close(buffers);
            return Ok(Received::End);
        }
        let bytes = match plain {
            Plain::InPlace(range) => &buffers.received[range],
            Plain::Copied => &buffers.plain,
        };
        Ok(Received::Bytes(bytes, count))
    }

    /// The failure to log for `error`, or for a handshake that was cut off (`None`). Returns
    /// `None` if TLS has not failed; a peer that disconnects without sending a byte, as TCP
    /// health checks do, is not a failure.
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

    fn has_ended(&self) -> bool {
        self.readiness.end != PeerEnd::Open
    }

    fn note_read(&mut self, count: Option<usize>, wanted: usize) {
        // A short read has emptied the socket: later input causes a new edge.
        self.readiness.is_readable =
            count.is_some_and(|count| count == wanted || count > 0 && self.has_ended());
    }

    /// Writes the slices in one call, with TLS as many of them as it seals at once; returns
    /// the number of bytes accepted.
    pub(in crate::server) fn write(
        &mut self,
        slices: Slices<'_>,
        buffers: &mut Buffers,
    ) -> io::Result<usize> {
        if self.tls.is_none() {
            return match only(&slices) {
                // send(2) is cheaper than writev(2), and there is nearly always one slice.
                Some(only) => write(|| self.stream.write(only)),
                None => write(|| self.stream.write_vectored(&slices.map(IoSlice::new))),
            };
        }
        let most = if self.is_sent() { SEAL_MAX } else { SEAL_SLOW };
        self.flush(&mut buffers.lent)?;
        let Some(session) = self.tls.as_mut().filter(|session| session.unsent().is_empty()) else {
            return Ok(0);
        };
        session.borrow(&mut buffers.lent);
        let sealed = session.seal(slices, most, &mut buffers.plain);
        self.flush(&mut buffers.lent)?;
        sealed.map_err(io::Error::other)
    }

    /// Whether TLS protects the stream.
    pub(in crate::server) fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether the next input may cost public-key cryptography.
    pub(in crate::server) fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|session| session.is_handshaking())
    }

    /// Whether TLS has sent all that [`Self::write`] accepted: a limited number of bytes,
    /// however much room the kernel has.
    pub(in crate::server) fn is_sent(&self) -> bool {
        self.tls.as_ref().is_some_and(|session| session.unsent().is_empty())
    }

    /// The bytes that TLS holds. [`Session`] bounds them.
    pub(in crate::server) fn buffered(&self) -> TransportBuffered {
        self.tls.as_ref().map_or(TransportBuffered::default(), |session| session.buffered())
    }

    /// Sends FIN after everything written, with TLS preceded by close_notify.
    pub(in crate::server) fn half_close(&mut self, buffers: &mut Buffers) {
        let Some(session) = &mut self.tls else {
            // Where the peer has ended, too, the stream is closed next, which sends FIN.
            if !self.has_ended() {
                let _ = self.stream.shutdown(Shutdown::Write);
            }
            return;
        };
        session.borrow(&mut buffers.lent);
        session.end();
        // Fails only if the handshake is incomplete or the session broken: then no
        // close_notify is due.
        let _ = session.seal_end();
        // On an error the connection is broken, which the next read reports.
        let _ = self.flush(&mut buffers.lent);
    }

    /// Sends close_notify before the stream is dropped, if TLS has not sent it yet and the
    /// kernel has room. FIN follows anyway.
    pub(in crate::server) fn close_notify(&mut self, buffers: &mut Buffers) {
        if self.tls.is_some() {
            self.half_close(buffers);
        }
    }

    /// Ends the connection in both directions, whatever other processes have a copy of it.
    pub(in crate::server) fn shut_down(&self) {
        // An error: it has ended.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Writes sealed bytes, as far as the kernel accepts them, and FIN after the last.
    fn flush(&mut self, memory: &mut Lent) -> io::Result<()> {
        let Some(session) = &mut self.tls else { return Ok(()) };
        let is_ending = session.is_ending();
        let sent = match session.unsent() {
            [] => Ok(0),
            unsent => write(|| self.stream.write(unsent)),
        };
        session.on_sent(*sent.as_ref().unwrap_or(&0));
        session.give_back(memory);
        sent?;
        if session.unsent().is_empty() && is_ending {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        Ok(())
    }
}

/// Reads once; `None`: no input now.
fn read(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    match retry_eintr(|| stream.read(buffer)) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        result => result.map(Some),
    }
}

/// Writes once; returns the number of bytes that the kernel accepted.
fn write(once: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    match retry_eintr(once) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        result => result,
    }
}
