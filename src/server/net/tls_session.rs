//! TLS session: ciphertext in, plaintext out, and back.
//!
//! Owns one TLS session and its pending ciphertext: rustls' connection during the handshake,
//! the record layer from then on. Must not know sockets, nor what the plaintext means.
//!
//! 1. Between records a session owns keys and no buffer: ciphertext is read into lent
//!    memory, and sealed bytes lie in lent memory until they are sent.
//! 2. Pending input is at most an incomplete record (RFC 8446 §5.1) or, in a handshake, an
//!    incomplete message; pending output is at most [`SEAL_MAX`] of data and [`OWED_MAX`].
//! 3. Plaintext that arrived before a fault is returned before the fault.
//! 4. rustls sees no byte behind the handshake, unless the session stays there for its life.

pub(in crate::server) mod extract;
mod hello;
#[cfg(test)]
mod tests;

use std::fmt::{self, Debug, Display};
use std::io;
use std::mem;
use std::ops::Range;
use std::sync::Arc;

use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError,
    UnbufferedStatus,
};
use rustls::{Error, ServerConfig};

use self::extract::{Extracted, Secrets, extract, take_caught};
use self::hello::Hello;
use super::tls_record::{Fault, HEADER, RECORD_MAX, RecordLayer};
use crate::server::certificates::certificate::{ACME_TLS, is_served};

/// The most plaintext sealed at once: a ping can overtake output that is not sealed yet. Two
/// full records, so that large messages need half the calls of the kernel.
const SEAL_MAX: usize = 2 * RECORD_MAX;
/// The limit on output of the protocol itself: a handshake flight with a long certificate
/// chain. A peer that causes more without reading is disconnected.
const OWED_MAX: usize = 64 * 1024;

/// Why a session is broken.
#[derive(Clone, Debug)]
pub(in crate::server) enum SessionError {
    /// In rustls, above all in the handshake.
    Rustls(Error),
    /// After the handshake.
    Record(Fault),
}

impl Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rustls(error) => Display::fmt(error, f),
            Self::Record(fault) => Display::fmt(fault, f),
        }
    }
}

impl std::error::Error for SessionError {}

impl From<Error> for SessionError {
    fn from(error: Error) -> Self {
        Self::Rustls(error)
    }
}

impl From<Fault> for SessionError {
    fn from(fault: Fault) -> Self {
        Self::Record(fault)
    }
}

/// Whether TLS failed, rather than the stream below it.
pub(in crate::server) fn is_fault(error: &io::Error) -> bool {
    error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<SessionError>)
}

/// One TLS session, the server's end.
pub(in crate::server) struct Session {
    state: State,
    /// `None`: nothing is pending.
    pending: Option<Box<Pending>>,
}

enum State {
    Handshake(Box<Handshake>),
    /// In rustls for its life.
    Kept(Box<Kept>),
    /// At rest: keys and counters.
    Rest(RecordLayer),
    /// Neither: the extraction has failed.
    Lost,
}

/// The cost of an idle session, its only allocation.
const _: () = assert!(size_of::<Session>() <= 248);

/// The state needed until the handshake is complete.
struct Handshake {
    inner: Box<UnbufferedServerConnection>,
    /// The only server name that is served; `None`: any.
    served: Option<Arc<str>>,
    has_hello: bool,
    /// The name that the peer asked for.
    asked: Option<Box<str>>,
    /// How much of the pending input rustls has seen: it must not see less the next time.
    shown: usize,
    /// The configuration lets secrets out.
    may_rest: bool,
    secrets: Option<Box<Secrets>>,
}

/// A session that stays in rustls.
struct Kept {
    inner: Box<UnbufferedServerConnection>,
    has_ended: bool,
}

/// Bytes between the peer and the session. Lent, unless some are left.
#[derive(Default)]
struct Pending {
    /// Received bytes of an incomplete record.
    partial: Vec<u8>,
    /// Sealed bytes that are not sent yet.
    unsent: Vec<u8>,
    /// The error that broke a session in rustls.
    error: Option<Error>,
}

/// Memory to lend to a session for the length of a call.
#[derive(Default)]
pub(in crate::server) struct Lent(Option<Box<Pending>>);

impl Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lent").finish_non_exhaustive()
    }
}

impl Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Keys must not be logged.
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

/// Where [`Session::receive`] has put the plaintext.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::server) enum Plain {
    /// In the memory of the ciphertext.
    InPlace(Range<usize>),
    /// In the memory for plaintext.
    Copied,
}

/// The output to seal.
#[derive(Clone, Copy)]
enum Say<'a> {
    Nothing,
    Data(&'a [u8]),
    /// close_notify.
    End,
}

impl Session {
    /// A new session. `served` is the only name that a peer may ask for; `None`: any.
    ///
    /// # Errors
    /// No known one for a configuration that rustls has built.
    pub(in crate::server) fn new(
        config: Arc<ServerConfig>,
        served: Option<Arc<str>>,
    ) -> Result<Self, Error> {
        let may_rest = config.enable_secret_extraction;
        let handshake = Handshake {
            inner: Box::new(UnbufferedServerConnection::new(config)?),
            served,
            has_hello: false,
            asked: None,
            shown: 0,
            may_rest,
            secrets: None,
        };
        Ok(Self { state: State::Handshake(Box::new(handshake)), pending: None })
    }

    /// Whether the handshake is incomplete, so that no plaintext can be exchanged.
    pub(in crate::server) fn is_handshaking(&self) -> bool {
        matches!(self.state, State::Handshake(_))
    }

    /// Whether no byte has arrived.
    pub(in crate::server) fn is_untouched(&self) -> bool {
        matches!(&self.state, State::Handshake(it) if !it.has_hello) && self.partial().is_empty()
    }

    /// The server name that the peer asked for, while the handshake is incomplete.
    pub(in crate::server) fn server_name(&self) -> Option<&str> {
        match &self.state {
            State::Handshake(handshake) => handshake.asked.as_deref(),
            _ => None,
        }
    }

    /// Whether the peer has sent close_notify, so that a FIN is not a truncation.
    pub(in crate::server) fn has_ended(&self) -> bool {
        match &self.state {
            State::Handshake(_) | State::Lost => false,
            State::Kept(kept) => kept.has_ended,
            State::Rest(records) => records.has_ended(),
        }
    }

    /// The error that broke the session.
    pub(in crate::server) fn fault(&self) -> Option<SessionError> {
        if let State::Rest(records) = &self.state {
            return records.fault().map(Into::into);
        }
        self.pending.as_ref()?.error.clone().map(Into::into)
    }

    /// Whether the session has ended, by close_notify or a fault.
    pub(in crate::server) fn is_over(&self) -> bool {
        self.has_ended() || self.fault().is_some()
    }

    /// Whether the handshake is complete and was a certificate authority's validation, which
    /// exchanges no data (RFC 8737 §3).
    pub(in crate::server) fn is_challenge(&self) -> bool {
        matches!(&self.state, State::Kept(it) if it.inner.alpn_protocol() == Some(ACME_TLS))
    }

    /// The bytes to prepend to the next ciphertext.
    pub(in crate::server) fn partial(&self) -> &[u8] {
        self.pending.as_ref().map_or(&[], |pending| &pending.partial)
    }

    /// Sealed bytes that are not sent yet.
    pub(in crate::server) fn unsent(&self) -> &[u8] {
        self.pending.as_ref().map_or(&[], |pending| &pending.unsent)
    }

    /// The first `count` of the unsent bytes were sent.
    pub(in crate::server) fn on_sent(&mut self, count: usize) {
        if count > 0 {
            self.pending().unsent.drain(..count);
        }
    }

    fn pending(&mut self) -> &mut Pending {
        self.pending.get_or_insert_default()
    }

    /// Decrypts ciphertext, which starts with [`Self::partial`]. Replies of the protocol are
    /// appended to [`Self::unsent`].
    pub(in crate::server) fn receive(
        &mut self,
        ciphertext: &mut [u8],
        memory: &mut Vec<u8>,
    ) -> Plain {
        memory.clear();
        let mut used = 0;
        if let State::Handshake(_) = self.state {
            used = self.shake_hands(ciphertext);
        }
        let pending = self.pending.get_or_insert_default();
        let plain = match &mut self.state {
            State::Handshake(_) | State::Lost => Plain::Copied,
            State::Kept(kept) => {
                used += kept.receive(&mut ciphertext[used..], memory, pending);
                Plain::Copied
            }
            State::Rest(records) => {
                let start = used;
                let opened = records.open(&mut ciphertext[start..], &mut pending.unsent);
                used += opened.used;
                Plain::InPlace(start..start + opened.plain)
            }
        };
        let is_over = self.is_over();
        let partial = &mut self.pending().partial;
        partial.clear();
        if !is_over {
            partial.extend_from_slice(&ciphertext[used..]);
        }
        plain
    }

    /// Continues the handshake, record by record, up to its end; returns the bytes consumed.
    fn shake_hands(&mut self, ciphertext: &mut [u8]) -> usize {
        let State::Handshake(handshake) = &mut self.state else { return 0 };
        let pending = self.pending.get_or_insert_default();
        let mut used = 0;
        let result = handshake.advance(&mut used, ciphertext, &mut pending.unsent);
        if result.is_err() {
            say_alert(&mut handshake.inner, &mut pending.unsent);
        }
        pending.error = result.err();
        if pending.error.is_none() && !handshake.inner.is_handshaking() {
            self.end_handshake();
        }
        used
    }

    /// Takes the session out of rustls, if nothing is in doubt.
    fn end_handshake(&mut self) {
        let State::Handshake(handshake) = mem::replace(&mut self.state, State::Lost) else {
            return;
        };
        let Handshake { inner, shown, may_rest, secrets, .. } = *handshake;
        // A validation ends at once (RFC 8737 §3).
        let is_challenge = inner.alpn_protocol() == Some(ACME_TLS);
        let extracted = if may_rest && shown == 0 && !is_challenge {
            extract(inner, secrets.as_deref())
        } else {
            Extracted::Kept(inner)
        };
        match extracted {
            Extracted::Rest(records) => self.state = State::Rest(records),
            Extracted::Kept(inner) => {
                self.state = State::Kept(Box::new(Kept { inner, has_ended: false }));
            }
            Extracted::Lost(error) => self.pending().error = Some(error),
        }
    }

    /// Seals the first of `slices`, joined, into [`Self::unsent`], and what the protocol owes
    /// before; returns how many bytes.
    ///
    /// # Errors
    /// If the handshake is not complete, the session is broken, or the keys have reached their
    /// usage limit.
    pub(in crate::server) fn seal(
        &mut self,
        slices: [&[u8]; 3],
        memory: &mut Vec<u8>,
    ) -> Result<usize, SessionError> {
        if let Some(fault) = self.fault() {
            return Err(fault);
        }
        let pending = self.pending.get_or_insert_default();
        match &mut self.state {
            State::Handshake(_) | State::Lost => Err(Error::HandshakeNotComplete.into()),
            State::Kept(kept) => {
                let plain = joined(slices, memory);
                if !plain.is_empty() {
                    kept.say(Say::Data(plain), pending)?;
                }
                Ok(plain.len())
            }
            State::Rest(records) => {
                let mut left = SEAL_MAX;
                let slices = slices.map(|slice| {
                    let now = &slice[..slice.len().min(left)];
                    left -= now.len();
                    now
                });
                records.seal(&slices, &mut pending.unsent)?;
                Ok(SEAL_MAX - left)
            }
        }
    }

    /// Seals close_notify: nothing more will be sent.
    ///
    /// # Errors
    /// Those of [`Self::seal`].
    pub(in crate::server) fn seal_end(&mut self) -> Result<(), SessionError> {
        if let Some(fault) = self.fault() {
            return Err(fault);
        }
        let pending = self.pending.get_or_insert_default();
        match &mut self.state {
            State::Handshake(_) | State::Lost => return Err(Error::HandshakeNotComplete.into()),
            State::Kept(kept) => kept.say(Say::End, pending)?,
            State::Rest(records) => records.seal_end(&mut pending.unsent),
        }
        Ok(())
    }

    /// Lends memory, unless bytes are already pending.
    pub(in crate::server) fn borrow(&mut self, memory: &mut Lent) {
        if self.pending.is_none() {
            self.pending = memory.0.take();
        }
    }

    /// Returns lent memory if no bytes are pending in it.
    pub(in crate::server) fn give_back(&mut self, memory: &mut Lent) {
        let Some(pending) = &mut self.pending else { return };
        if pending.partial.is_empty() && pending.unsent.is_empty() && pending.error.is_none() {
            memory.0 = self.pending.take();
        } else {
            pending.partial.shrink_to_fit();
            pending.unsent.shrink_to_fit();
        }
    }
}

impl Handshake {
    fn advance(
        &mut self,
        used: &mut usize,
        ciphertext: &mut [u8],
        unsent: &mut Vec<u8>,
    ) -> Result<(), Error> {
        if !self.look_at_hello(ciphertext, unsent)? {
            return Ok(());
        }
        loop {
            let rest = &mut ciphertext[*used..];
            let show = next_record_end(rest, self.shown);
            let (mut consumed, mut has_ended) = (0, false);
            let output = (&mut Vec::new(), &mut *unsent);
            let input = (&mut consumed, &mut rest[..show]);
            let result = run(&mut self.inner, input, output, &mut has_ended, Say::Nothing);
            if let Some(secrets) = take_caught() {
                self.secrets = Some(secrets);
            }
            *used += consumed;
            self.shown = show - consumed;
            result?;
            if !self.inner.is_handshaking() || *used + self.shown == ciphertext.len() {
                return Ok(());
            }
        }
    }

    /// Whether the ClientHello is complete; an error if it asks for a name that is not
    /// served. Checked before the session answers, because rustls would send access_denied
    /// instead of unrecognized_name.
    fn look_at_hello(&mut self, ciphertext: &[u8], unsent: &mut Vec<u8>) -> Result<bool, Error> {
        if self.has_hello {
            return Ok(true);
        }
        let Hello::Complete(asked) = hello::read(ciphertext) else { return Ok(false) };
        self.has_hello = true;
        self.asked = asked;
        if is_served(self.asked.as_deref(), self.served.as_deref()) {
            return Ok(true);
        }
        unsent.extend_from_slice(hello::UNRECOGNIZED_NAME);
        Err(Error::General("the server name is not served here".into()))
    }
}

impl Kept {
    /// Decrypts `ciphertext`; returns the bytes consumed.
    fn receive(
        &mut self,
        ciphertext: &mut [u8],
        plain: &mut Vec<u8>,
        pending: &mut Pending,
    ) -> usize {
        let mut used = 0;
        let output = (plain, &mut pending.unsent);
        let input = (&mut used, ciphertext);
        let result = run(&mut self.inner, input, output, &mut self.has_ended, Say::Nothing);
        if result.is_err() {
            say_alert(&mut self.inner, &mut pending.unsent);
        }
        pending.error = result.err();
        used
    }

    fn say(&mut self, say: Say<'_>, pending: &mut Pending) -> Result<(), Error> {
        // The session may hold offsets of an incomplete message into these bytes.
        let input = (&mut 0, &mut pending.partial[..]);
        let output = (&mut Vec::new(), &mut pending.unsent);
        run(&mut self.inner, input, output, &mut self.has_ended, say)
    }
}

/// The end of the first record that ends behind `shown`; if it is incomplete, that of `bytes`.
fn next_record_end(bytes: &[u8], shown: usize) -> usize {
    let mut end = 0;
    while end <= shown {
        let Some(&[_, _, _, high, low]) = bytes.get(end..).and_then(<[u8]>::first_chunk) else {
            return bytes.len();
        };
        end += HEADER + usize::from(u16::from_be_bytes([high, low]));
    }
    end.min(bytes.len())
}

/// After an error rustls takes no more input, only hands out the alert for the peer.
fn say_alert(inner: &mut UnbufferedServerConnection, unsent: &mut Vec<u8>) {
    while inner.wants_write() {
        if let Ok(ConnectionState::EncodeTlsData(data)) = inner.process_tls_records(&mut []).state {
            let _ = encode(data, unsent);
        }
    }
}

/// Advances a session in rustls until it wants more input. Counts the bytes of the input that
/// it has consumed; the output is plaintext, and bytes for the peer.
fn run(
    inner: &mut UnbufferedServerConnection,
    (used, ciphertext): (&mut usize, &mut [u8]),
    (plain, unsent): (&mut Vec<u8>, &mut Vec<u8>),
    has_ended: &mut bool,
    say: Say<'_>,
) -> Result<(), Error> {
    loop {
        let UnbufferedStatus { discard, state } =
            inner.process_tls_records(&mut ciphertext[*used..]);
        *used += discard;
        match state? {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    plain.extend_from_slice(record?.payload);
                }
            }
            ConnectionState::EncodeTlsData(data) => {
                encode(data, unsent)?;
                if unsent.len() > OWED_MAX + RECORD_MAX {
                    return Err(Error::General("the peer does not read".into()));
                }
            }
            ConnectionState::TransmitTlsData(data) => data.done(),
            ConnectionState::PeerClosed => *has_ended = true,
            ConnectionState::WriteTraffic(mut traffic) => {
                let write = |room: &mut [u8]| {
                    let sealed = match say {
                        Say::Nothing => Ok(0),
                        Say::Data(plain) => traffic.encrypt(plain, room),
                        Say::End => traffic.queue_close_notify(room),
                    };
                    sealed.map_err(|error| match error {
                        EncryptError::InsufficientSize(need) => Some(need),
                        EncryptError::EncryptExhausted => None,
                    })
                };
                return append(unsent, write);
            }
            // Early data is not offered, so the other states need input or are final.
            _ => return Ok(()),
        }
    }
}

fn encode(
    mut data: EncodeTlsData<'_, ServerConnectionData>,
    unsent: &mut Vec<u8>,
) -> Result<(), Error> {
    append(unsent, |room| {
        data.encode(room).map_err(|error| match error {
            EncodeError::InsufficientSize(need) => Some(need),
            EncodeError::AlreadyEncoded => None,
        })
    })
}

/// Appends the output of `write`, growing the buffer to the size that it asks for.
fn append(
    bytes: &mut Vec<u8>,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, Option<InsufficientSizeError>>,
) -> Result<(), Error> {
    let len = bytes.len();
    loop {
        match write(&mut bytes[len..]) {
            Ok(count) => {
                bytes.truncate(len + count);
                return Ok(());
            }
            Err(Some(InsufficientSizeError { required_size })) => {
                bytes.resize(len + required_size, 0);
            }
            Err(None) => {
                bytes.truncate(len);
                return Err(Error::EncryptError);
            }
        }
    }
}

/// The first bytes of the slices, at most one record.
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
