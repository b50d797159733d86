//! TLS session: ciphertext in, plaintext out, and back.
//!
//! Owns one TLS session and its pending ciphertext: rustls' connection during the handshake,
//! the record layer from then on. Must not know sockets, nor what the plaintext means.
//!
//! 1. Between records a session owns keys and no buffer: ciphertext is read into lent
//!    memory, and sealed bytes lie in lent memory until they are sent.
//! 2. Pending input is at most an incomplete record (RFC 8446 §5.1) or, in a handshake, an
//!    incomplete message; pending output is at most [`SEAL_MAX`] of data and `OWED_MAX`.
//! 3. Plaintext that arrived before a fault is returned before the fault.
//! 4. rustls sees no byte behind the handshake, unless the session stays there for its life.

mod driver;
pub(in crate::server) mod extract;
mod handshake;
mod hello;
mod state;
#[cfg(test)]
mod tests;

use std::fmt::{self, Debug, Display};
use std::io;
use std::mem;
use std::ops::Range;
use std::sync::Arc;

use rustls::{Error, ServerConfig};

use self::driver::{Kept, Say, say_alert};
use self::extract::{Extracted, extract};
use self::handshake::Handshake;
use crate::protocol::transport::{Slices, TransportBuffered, only};
use crate::server::net::tls::ACME_TLS;
use crate::server::net::tls_record::{Fault, RECORD_MAX, RecordLayer};

/// The most plaintext sealed at once: what the kernel takes of it as one segment, so that
/// large messages need as many calls as without TLS.
pub(in crate::server) const SEAL_MAX: usize = 4 * RECORD_MAX;
/// The same for a peer that has not taken what was sealed before: a ping can overtake output
/// that is not sealed yet.
pub(in crate::server) const SEAL_SLOW: usize = 2 * RECORD_MAX;

/// What rustls holds for a handshake of which no ClientHello has arrived: resident memory of
/// 20,000 silent connections over their number.
const HANDSHAKE_SILENT: usize = 2_200;
/// The same after a ClientHello, with the flight that answers it sent: transcript, key schedule
/// and traffic keys. 4.3 to 4.8 KB were measured; the certificate chain is shared.
const HANDSHAKE_BEGUN: usize = 4_800;

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

/// The cost of an idle session, its only allocation: 224 bytes with what an allocator adds.
const _: () = assert!(size_of::<Session>() <= 216);

/// Bytes between the peer and the session. Lent, unless some are left.
#[derive(Default)]
struct Pending {
    /// Received bytes of an incomplete record.
    partial: Vec<u8>,
    /// Sealed bytes that are not sent yet.
    unsent: Vec<u8>,
    /// FIN is to follow the unsent bytes.
    is_ending: bool,
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

impl Session {
    /// A new session. `served` is the only name that a peer may ask for; `None`: any.
    ///
    /// # Errors
    /// No known one for a configuration that rustls has built.
    pub(in crate::server) fn new(
        config: Arc<ServerConfig>,
        served: Option<Arc<str>>,
    ) -> Result<Self, Error> {
        let handshake = Handshake::new(config, served)?;
        Ok(Self { state: State::Handshake(Box::new(handshake)), pending: None })
    }

    /// Whether the handshake is incomplete, so that no plaintext can be exchanged.
    pub(in crate::server) fn is_handshaking(&self) -> bool {
        matches!(self.state, State::Handshake(_))
    }

    /// The bytes that the session holds, as the relay charges them.
    pub(in crate::server) fn buffered(&self) -> TransportBuffered {
        let handshake = match &self.state {
            State::Handshake(handshake) if handshake.has_hello => HANDSHAKE_BEGUN,
            State::Handshake(_) => HANDSHAKE_SILENT,
            State::Kept(_) | State::Rest(_) | State::Lost => 0,
        };
        let held = |bytes: &Vec<u8>| if bytes.is_empty() { 0 } else { bytes.capacity() };
        let pending = self.pending.as_ref();
        TransportBuffered {
            unread: pending.map_or(0, |pending| held(&pending.partial)) + handshake,
            unsent: pending.map_or(0, |pending| held(&pending.unsent)),
        }
    }

    /// The peer has sent its last byte: a handshake that it has not begun is not begun.
    pub(in crate::server) fn on_hang_up(&mut self) {
        if let State::Handshake(handshake) = &mut self.state {
            handshake.has_hung_up = true;
        }
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

    /// Notes that FIN follows the unsent bytes.
    pub(in crate::server) fn end(&mut self) {
        self.pending().is_ending = true;
    }

    /// Whether FIN follows the unsent bytes; forgotten once they are sent.
    pub(in crate::server) fn is_ending(&self) -> bool {
        self.pending.as_ref().is_some_and(|pending| pending.is_ending)
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
    /// before; returns how many bytes, at most `most` and [`SEAL_MAX`].
    ///
    /// # Errors
    /// If the handshake is not complete, the session is broken, or the keys have reached their
    /// usage limit.
    pub(in crate::server) fn seal(
        &mut self,
        slices: Slices<'_>,
        most: usize,
        memory: &mut Vec<u8>,
    ) -> Result<usize, SessionError> {
        let most = most.min(SEAL_MAX);
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
                let mut left = most;
                let slices = slices.map(|slice| {
                    let now = &slice[..slice.len().min(left)];
                    left -= now.len();
                    now
                });
                records.seal(&slices, &mut pending.unsent)?;
                Ok(most - left)
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
            pending.is_ending = false;
            memory.0 = self.pending.take();
        } else {
            pending.partial.shrink_to_fit();
            pending.unsent.shrink_to_fit();
        }
    }
}

/// The first bytes of the slices, at most one record.
fn joined<'a>(slices: Slices<'a>, memory: &'a mut Vec<u8>) -> &'a [u8] {
    if let Some(only) = only(&slices) {
        return &only[..only.len().min(RECORD_MAX)];
    }
    memory.clear();
    for slice in slices {
        let room = RECORD_MAX - memory.len();
        memory.extend_from_slice(&slice[..slice.len().min(room)]);
    }
    memory
}
