//! The ClientHello, seen before the session that answers it.
//!
//! Owns how much of it must have come, the name it asks for, and the answer to a name that
//! is not served (RFC 6066 §3). Knows no certificate. The session reads the same bytes
//! again: a hello is some kilobytes at most, and parsing one takes microseconds.
//!
//! Nothing is kept here while a hello is incomplete: its bytes stay with the session.

use rustls::server::{Acceptor, ClientHello};

use super::RECORD_MAX;

/// The most ciphertext that is waited for. A hello that takes more is left to the session,
/// which finds the certificate, or refuses, by itself. Those of browsers take 2 KiB with a
/// post-quantum key share; one record takes 16 KiB (RFC 8446 §5.1).
const HELLO_MAX: usize = RECORD_MAX + HEADER;
/// Of a record: its type, a version, the length of the rest.
const HEADER: usize = 5;
/// The type of a record of handshake messages.
const HANDSHAKE: u8 = 22;

/// A fatal alert in a record of its own: unrecognized_name (RFC 8446 §6).
pub(super) const UNRECOGNIZED_NAME: &[u8] = &[21, 3, 3, 0, 2, 2, 112];

/// What is known of the hello.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Hello {
    /// More bytes have to come.
    Partial,
    /// It is there, and names this server, if one at all. Bytes that are no hello name
    /// none: the session says what is wrong with them.
    Complete(Option<Box<str>>),
}

/// Looks at all ciphertext so far.
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
    Hello::Complete(None)
}

fn name(hello: &ClientHello<'_>) -> Option<Box<str>> {
    hello.server_name().map(Into::into)
}

/// Whether more records are needed for the first handshake message to be whole.
fn is_partial(ciphertext: &[u8]) -> bool {
    let (mut rest, mut head, mut received) = (ciphertext, [0; 4], 0);
    loop {
        let [kind, _, _, high, low, behind @ ..] = rest else {
            return rest.first().is_none_or(|kind| *kind == HANDSHAKE);
        };
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        // What breaks the rules, or cannot fit, is the session's to answer at once.
        if *kind != HANDSHAKE || len == 0 || len > RECORD_MAX {
            return false;
        }
        let Some((fragment, next)) = behind.split_at_checked(len) else { return true };
        for (to, from) in head[received.min(4)..].iter_mut().zip(fragment) {
            *to = *from;
        }
        received += len;
        // Its type, then its length.
        let [_, length @ ..] = head;
        let whole = length.iter().fold(0, |sum, byte| 256 * sum + usize::from(*byte));
        let is_known = received >= head.len();
        if is_known && (received >= head.len() + whole || whole > RECORD_MAX) {
            return false;
        }
        rest = next;
    }
}
