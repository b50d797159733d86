//! Driver of rustls' unbuffered connections, in the handshake and of sessions that stay there.
//!
//! Owns the loop around its states. Must not know when a session leaves rustls.
//!
//! 1. Input that rustls has seen and not consumed is shown to it again.
//! 2. Output of the protocol itself is bounded by [`OWED_MAX`].

use rustls::Error;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError,
    UnbufferedStatus,
};

use super::Pending;
use crate::server::net::tls_record::RECORD_MAX;

/// The limit on output of the protocol itself: a handshake flight with a long certificate
/// chain. A peer that causes more without reading is disconnected.
pub(super) const OWED_MAX: usize = 64 * 1024;

/// A session that stays in rustls.
pub(super) struct Kept {
    pub(super) inner: Box<UnbufferedServerConnection>,
    pub(super) has_ended: bool,
}

/// The output to seal.
#[derive(Clone, Copy)]
pub(super) enum Say<'a> {
    Nothing,
    Data(&'a [u8]),
    /// close_notify.
    End,
}

impl Kept {
    /// Decrypts `ciphertext`; returns the bytes consumed.
    pub(super) fn receive(
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

    pub(super) fn say(&mut self, say: Say<'_>, pending: &mut Pending) -> Result<(), Error> {
        // The session may hold offsets of an incomplete message into these bytes.
        let input = (&mut 0, &mut pending.partial[..]);
        let output = (&mut Vec::new(), &mut pending.unsent);
        run(&mut self.inner, input, output, &mut self.has_ended, say)
    }
}

/// After an error rustls takes no more input, only hands out the alert for the peer.
pub(super) fn say_alert(inner: &mut UnbufferedServerConnection, unsent: &mut Vec<u8>) {
    while inner.wants_write() {
        if let Ok(ConnectionState::EncodeTlsData(data)) = inner.process_tls_records(&mut []).state {
            let _ = encode(data, unsent);
        }
    }
}

/// Advances a session in rustls until it wants more input. Counts the bytes of the input that
/// it has consumed; the output is plaintext, and bytes for the peer.
pub(super) fn run(
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
