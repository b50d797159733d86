//! TLS as a transport: ciphertext in, plaintext out, and back.
//!
//! Owns one TLS session, with what of its ciphertext can go nowhere yet. Knows no
//! socket and nothing of what the plaintext means.
//!
//! 1. Between records a session owns keys and no buffer: ciphertext is read into
//!    lent memory, and what is sealed lies in lent memory until it is out.
//! 2. It holds at most half a record (RFC 8446 §5.1) or, of a handshake, half a
//!    message, and on the way out at most one record and [`OWED_MAX`].
//! 3. What came before a fault is handed out before the fault is told.

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
use crate::server::certificates::certificate::{ACME_TLS, is_served};

/// Whether it was TLS that failed, and not the stream below it.
pub(in crate::server) fn is_fault(error: &io::Error) -> bool {
    error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<Error>)
}

/// The most plaintext that is sealed at once, one record's (RFC 8446 §5.1): a ping
/// can overtake all that is not sealed yet.
pub(in crate::server) const RECORD_MAX: usize = 16 * 1024;
/// What the protocol itself may owe the peer: a handshake flight, with a long
/// certificate chain in it. Who does not read and makes it more is dropped.
const OWED_MAX: usize = 64 * 1024;

/// One TLS session, the server's end.
pub(in crate::server) struct Session {
    inner: UnbufferedServerConnection,
    /// `None`: the handshake is complete.
    handshake: Option<Box<Handshake>>,
    /// Received, and no whole record yet.
    partial: Vec<u8>,
    /// Sealed, and not sent yet.
    pub(in crate::server) unsent: Vec<u8>,
    has_ended: bool,
    fault: Option<Error>,
}

/// What a session has to know until its handshake is complete.
struct Handshake {
    /// The only name that is served; `None`: any.
    served: Option<Arc<str>>,
    has_hello: bool,
    /// The name that the peer asked for.
    asked: Option<Box<str>>,
}

impl Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Keys belong into no log.
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

/// What is to be sealed.
#[derive(Clone, Copy)]
enum Say<'a> {
    Nothing,
    Data(&'a [u8]),
    /// close_notify.
    End,
}

impl Session {
    /// A session whose first byte has not come. `served` is the only name that a peer may
    /// ask for; `None`: any.
    ///
    /// # Errors
    /// None that is known for a configuration that was accepted.
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

    /// No plaintext can come or go yet.
    pub(in crate::server) fn is_handshaking(&self) -> bool {
        self.inner.is_handshaking()
    }

    /// Not a byte has come.
    pub(in crate::server) fn is_untouched(&self) -> bool {
        self.partial.is_empty() && self.handshake.as_ref().is_some_and(|it| !it.has_hello)
    }

    /// The name that the peer asked for in a handshake that is not complete.
    pub(in crate::server) fn server_name(&self) -> Option<&str> {
        self.handshake.as_ref()?.asked.as_deref()
    }

    /// The peer has said that it sends no more (close_notify): a FIN is no
    /// truncation.
    pub(in crate::server) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// What broke the session.
    pub(in crate::server) fn fault(&self) -> Option<&Error> {
        self.fault.as_ref()
    }

    /// Nothing more comes out of it: it ended, well or not.
    pub(in crate::server) fn is_over(&self) -> bool {
        self.has_ended || self.fault.is_some()
    }

    /// The handshake is complete, and was all that the peer wanted: it is a certificate
    /// authority's (RFC 8737 §3).
    pub(in crate::server) fn is_challenge(&self) -> bool {
        !self.is_handshaking() && self.inner.alpn_protocol() == Some(ACME_TLS)
    }

    /// What must stand in front of the next ciphertext.
    pub(in crate::server) fn partial(&self) -> &[u8] {
        &self.partial
    }

    /// Takes ciphertext, [`Self::partial`] included, and appends what it means to
    /// `plain`. What the peer is owed for it is in [`Self::unsent`].
    pub(in crate::server) fn receive(&mut self, ciphertext: &mut [u8], plain: &mut Vec<u8>) {
        let mut used = 0;
        let result = match self.look_at_hello(ciphertext) {
            Ok(true) => self.run(&mut used, ciphertext, plain, Say::Nothing),
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        // The alert that tells the peer. Nothing more may be handed in.
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

    /// Before the session answers a ClientHello: whether it is complete, and names a server
    /// that is served. rustls by itself would answer access_denied to any other name.
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
    /// If the handshake is not complete, or the keys are worn out.
    pub(in crate::server) fn seal(&mut self, plain: &[u8]) -> Result<(), Error> {
        self.say(Say::Data(plain))
    }

    /// Says that nothing more will be sealed (close_notify).
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
        // The session may remember where in it half a message stands.
        let mut partial = mem::take(&mut self.partial);
        let result = self.run(&mut 0, &mut partial, &mut Vec::new(), say);
        self.partial = partial;
        result
    }

    /// Steps through the session until it wants more input; `used` counts what of
    /// `ciphertext` is done with.
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
                // Early data is not offered, so what is left wants input, or nothing.
                _ => return Ok(()),
            }
        }
    }

    /// Lends memory to seal into, unless something waits already.
    pub(in crate::server) fn borrow(&mut self, memory: &mut Vec<u8>) {
        if self.unsent.is_empty() {
            self.unsent = mem::take(memory);
        }
    }

    /// Gives lent memory back if nothing waits in it.
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

/// Appends what `write` writes, in as much room as it says it needs.
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
