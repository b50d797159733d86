//! ClientHello: inspected before the TLS session answers it.
//!
//! Owns when it is complete, the server name in it, and the alert for a name that is not
//! served (RFC 6066 §3). Must not know certificates. The session parses the same bytes
//! again: a hello takes a few kilobytes, and parsing one takes microseconds.
//!
//! 1. No state is kept while a hello is incomplete: its bytes stay with the session.

use rustls::server::{Acceptor, ClientHello};

use crate::server::net::tls_record::{HEADER, RECORD_MAX};

/// The most ciphertext to wait for. A longer hello is left to the session, which selects the
/// certificate or refuses by itself. Browsers send 2 KiB with a post-quantum key share; one
/// record holds up to 16 KiB (RFC 8446 §5.1).
const HELLO_MAX: usize = RECORD_MAX + HEADER;
/// The type of a record of handshake messages.
const HANDSHAKE: u8 = 22;

/// A record with the fatal alert unrecognized_name (RFC 8446 §6).
pub(super) const UNRECOGNIZED_NAME: &[u8] = &[21, 3, 3, 0, 2, 2, 112];

/// The state of the hello.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Hello {
    /// Incomplete: more bytes are needed.
    Partial,
    /// Complete, with the server name that it asks for, if any.
    Complete(Option<Box<str>>),
    /// The bytes are not a hello: the session reports the error.
    Malformed,
}

/// Parses all ciphertext received so far.
pub(super) fn read(ciphertext: &[u8]) -> Hello {
    if ciphertext.len() < HELLO_MAX && is_partial(ciphertext) {
        return Hello::Partial;
    }
    let mut acceptor = Acceptor::default();
    let mut rest = ciphertext;
    while !rest.is_empty() {
        match acceptor.read_tls(&mut rest) {
            Ok(1..) => {}
            _ => break,
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Hello::Complete(name(&accepted.client_hello())),
            Ok(None) => {}
            Err(_) => break,
        }
    }
    Hello::Malformed
}

fn name(hello: &ClientHello<'_>) -> Option<Box<str>> {
    hello.server_name().map(Into::into)
}

/// Whether more bytes are needed to complete the first handshake message.
fn is_partial(ciphertext: &[u8]) -> bool {
    let (mut rest, mut head, mut received) = (ciphertext, [0; 4], 0);
    loop {
        let [kind, _, _, high, low, behind @ ..] = rest else {
            return rest.first().is_none_or(|kind| *kind == HANDSHAKE);
        };
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        // The session answers a malformed or oversized record at once.
        if *kind != HANDSHAKE || len == 0 || len > RECORD_MAX {
            return false;
        }
        let Some((fragment, next)) = behind.split_at_checked(len) else { return true };
        for (to, from) in head[received.min(4)..].iter_mut().zip(fragment) {
            *to = *from;
        }
        received += len;
        // The header of a handshake message: its type, then its length.
        let [_, length @ ..] = head;
        let whole = length.iter().fold(0, |sum, byte| 256 * sum + usize::from(*byte));
        let is_known = received >= head.len();
        if is_known && (received >= head.len() + whole || whole > RECORD_MAX) {
            return false;
        }
        rest = next;
    }
}
