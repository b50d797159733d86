//! TLS session: ciphertext in, plaintext out, and back.
//!
//! Owns one TLS session and its pending ciphertext. Must not know sockets, nor what the
//! plaintext means.
//!
//! 1. Between records a session owns keys and no buffer: ciphertext is read into lent
//!    memory, and sealed bytes lie in lent memory until they are sent.
//! 2. Pending input is at most an incomplete record (RFC 8446 §5.1) or, in a handshake, an
//!    incomplete message; pending output is at most one record and [`OWED_MAX`].
//! 3. Plaintext that arrived before a fault is returned before the fault.

mod hello;
#[cfg(test)]
mod tests;

use std::fmt::{self, Debug};
use std::io;
use std::mem;
use std::sync::Arc;

use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError,
    UnbufferedStatus,
};
use rustls::{Error, ServerConfig};

use self::hello::Hello;
use crate::server::net::tls::{ACME_TLS, is_served};

/// Whether TLS failed, rather than the stream below it.
pub(in crate::server) fn is_fault(error: &io::Error) -> bool {
    error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<Error>)
}

/// The most plaintext sealed at once, one record (RFC 8446 §5.1): a ping can overtake output
/// that is not sealed yet.
pub(in crate::server) const RECORD_MAX: usize = 16 * 1024;
/// The limit on output of the protocol itself: a handshake flight with a long certificate
/// chain. A peer that causes more without reading is disconnected.
const OWED_MAX: usize = 64 * 1024;

/// One TLS session, the server's end.
pub(in crate::server) struct Session {
    inner: UnbufferedServerConnection,
    /// `None`: the handshake is complete.
    handshake: Option<Box<Handshake>>,
    /// Received bytes of an incomplete record.
    partial: Vec<u8>,
    /// Sealed bytes that are not sent yet.
    pub(in crate::server) unsent: Vec<u8>,
    has_ended: bool,
    fault: Option<Error>,
}

/// The state needed until the handshake is complete.
struct Handshake {
    /// The only server name that is served; `None`: any.
    served: Option<Arc<str>>,
    has_hello: bool,
    /// The name that the peer asked for.
    asked: Option<Box<str>>,
}

impl Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Keys must not be logged.
        f.debug_struct("Session").finish_non_exhaustive()
    }
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
        Ok(Self {
            inner: UnbufferedServerConnection::new(config)?,
            handshake: Some(Box::new(Handshake { served, has_hello: false, asked: None })),
            partial: Vec::new(),
            unsent: Vec::new(),
            has_ended: false,
            fault: None,
        })
    }

    /// Whether the handshake is incomplete, so that no plaintext can be exchanged.
    pub(in crate::server) fn is_handshaking(&self) -> bool {
        self.inner.is_handshaking()
    }

    /// Whether no byte has arrived.
    pub(in crate::server) fn is_untouched(&self) -> bool {
        self.partial.is_empty() && self.handshake.as_ref().is_some_and(|it| !it.has_hello)
    }

    /// The server name that the peer asked for, while the handshake is incomplete.
    pub(in crate::server) fn server_name(&self) -> Option<&str> {
        self.handshake.as_ref()?.asked.as_deref()
    }

    /// Whether the peer has sent close_notify, so that a FIN is not a truncation.
    pub(in crate::server) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// The error that broke the session.
    pub(in crate::server) fn fault(&self) -> Option<&Error> {
        self.fault.as_ref()
    }

    /// Whether the session has ended, by close_notify or a fault.
    pub(in crate::server) fn is_over(&self) -> bool {
        self.has_ended || self.fault.is_some()
    }

    /// Whether the handshake is complete and was a certificate authority's validation, which
    /// exchanges no data (RFC 8737 §3).
    pub(in crate::server) fn is_challenge(&self) -> bool {
        !self.is_handshaking() && self.inner.alpn_protocol() == Some(ACME_TLS)
    }

    /// The bytes to prepend to the next ciphertext.
    pub(in crate::server) fn partial(&self) -> &[u8] {
        &self.partial
    }

    /// Decrypts ciphertext, which starts with [`Self::partial`], and appends the plaintext
    /// to `plain`. Replies of the protocol are appended to [`Self::unsent`].
    pub(in crate::server) fn receive(&mut self, ciphertext: &mut [u8], plain: &mut Vec<u8>) {
        let mut used = 0;
        let result = match self.look_at_hello(ciphertext) {
            Ok(true) => self.run(&mut used, ciphertext, plain, Say::Nothing),
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        // After an error rustls takes no more input, only hands out the alert for the peer.
        while result.is_err() && self.inner.wants_write() {
            if let Ok(ConnectionState::EncodeTlsData(data)) =
                self.inner.process_tls_records(&mut []).state
            {
                let _ = encode(data, &mut self.unsent);
            }
        }
        self.fault = result.err();
        if !self.inner.is_handshaking() {
            self.handshake = None;
        }
        self.partial = if self.is_over() { Vec::new() } else { ciphertext[used..].to_vec() };
    }

    /// Whether the ClientHello is complete; an error if it asks for a name that is not
    /// served. Checked before the session answers, because rustls would send access_denied
    /// instead of unrecognized_name.
    fn look_at_hello(&mut self, ciphertext: &[u8]) -> Result<bool, Error> {
        let Some(handshake) = self.handshake.as_mut().filter(|it| !it.has_hello) else {
            return Ok(true);
        };
        let Hello::Complete(asked) = hello::read(ciphertext) else { return Ok(false) };
        handshake.has_hello = true;
        handshake.asked = asked;
        if is_served(handshake.asked.as_deref(), handshake.served.as_deref()) {
            return Ok(true);
        }
        self.unsent.extend_from_slice(hello::UNRECOGNIZED_NAME);
        Err(Error::General("the server name is not served here".into()))
    }

    /// Seals `plain`, at most [`RECORD_MAX`] bytes, into [`Self::unsent`].
    ///
    /// # Errors
    /// If the handshake is not complete, or the keys have reached their usage limit.
    pub(in crate::server) fn seal(&mut self, plain: &[u8]) -> Result<(), Error> {
        self.say(Say::Data(plain))
    }

    /// Seals close_notify: nothing more will be sent.
    ///
    /// # Errors
    /// Those of [`Self::seal`].
    pub(in crate::server) fn seal_end(&mut self) -> Result<(), Error> {
        self.say(Say::End)
    }

    fn say(&mut self, say: Say<'_>) -> Result<(), Error> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        if self.is_handshaking() {
            return Err(Error::HandshakeNotComplete);
        }
        // The session may hold offsets of an incomplete message into these bytes.
        let mut partial = mem::take(&mut self.partial);
        let result = self.run(&mut 0, &mut partial, &mut Vec::new(), say);
        self.partial = partial;
        result
    }

    /// Advances the session until it wants more input; `used` counts the bytes of
    /// `ciphertext` that it has consumed.
    fn run(
        &mut self,
        used: &mut usize,
        ciphertext: &mut [u8],
        plain: &mut Vec<u8>,
        say: Say<'_>,
    ) -> Result<(), Error> {
        loop {
            let UnbufferedStatus { discard, state } =
                self.inner.process_tls_records(&mut ciphertext[*used..]);
            *used += discard;
            match state? {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        plain.extend_from_slice(record?.payload);
                    }
                }
                ConnectionState::EncodeTlsData(data) => {
                    encode(data, &mut self.unsent)?;
                    if self.unsent.len() > OWED_MAX + RECORD_MAX {
                        return Err(Error::General("the peer does not read".into()));
                    }
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed => self.has_ended = true,
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
                    return append(&mut self.unsent, write);
                }
                // Early data is not offered, so the other states need input or are final.
                _ => return Ok(()),
            }
        }
    }

    /// Lends memory to seal into, unless sealed bytes are already pending.
    pub(in crate::server) fn borrow(&mut self, memory: &mut Vec<u8>) {
        if self.unsent.is_empty() {
            self.unsent = mem::take(memory);
        }
    }

    /// Returns lent memory if no sealed bytes are pending in it.
    pub(in crate::server) fn give_back(&mut self, memory: &mut Vec<u8>) {
        if self.unsent.is_empty() {
            *memory = mem::take(&mut self.unsent);
        } else {
            self.unsent.shrink_to_fit();
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
