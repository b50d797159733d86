//! ClientHello: inspected before the TLS session answers it.
//!
//! Owns when it is complete, the server name in it, and the alert for a name that is not
//! served (RFC 6066 §3). Must not know certificates. The session parses the same bytes
//! again, and decides whether they are well-formed.
//!
//! 1. No state is kept while a hello is incomplete: its bytes stay with the session.
//! 2. What is not a hello in one record with at most one host name is left to rustls.

use rustls::pki_types::DnsName;
use rustls::server::{Acceptor, ClientHello};

use crate::server::net::tls_record::{HEADER, RECORD_MAX};

/// The most ciphertext to wait for. A longer hello is left to the session, which selects the
/// certificate or refuses by itself. Browsers send 2 KiB with a post-quantum key share; one
/// record holds up to 16 KiB (RFC 8446 §5.1).
const HELLO_MAX: usize = RECORD_MAX + HEADER;
/// The type of a record of handshake messages.
const HANDSHAKE: u8 = 22;
/// The handshake type of a hello (RFC 8446 §4), and the type of the name in it (RFC 6066 §3).
const CLIENT_HELLO: u8 = 1;
const HOST_NAME: u8 = 0;
/// The extension server_name.
const SERVER_NAME: [u8; 2] = [0, 0];

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
    if let Some(asked) = find_name(ciphertext) {
        return Hello::Complete(asked);
    }
    parse(ciphertext)
}

/// The same by rustls.
pub(super) fn parse(ciphertext: &[u8]) -> Hello {
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

/// The name in a hello, read where it lies: rustls' `Acceptor` copies the hello and takes 3 %
/// of a handshake. `None`: not a plain case.
pub(super) fn find_name(mut bytes: &[u8]) -> Option<Option<Box<str>>> {
    let [HANDSHAKE, _, _] = take(&mut bytes, 3)? else { return None };
    let mut record = vector::<2>(&mut bytes)?;
    let [CLIENT_HELLO] = take(&mut record, 1)? else { return None };
    // RFC 8446 §4.1.2: version and random, session id, suites, compression, extensions.
    let mut hello = vector::<3>(&mut record)?;
    take(&mut hello, 2 + 32)?;
    vector::<1>(&mut hello)?;
    vector::<2>(&mut hello)?;
    vector::<1>(&mut hello)?;
    let mut extensions = vector::<2>(&mut hello)?;
    if !record.is_empty() || !hello.is_empty() {
        return None;
    }
    let mut asked = None;
    while !extensions.is_empty() {
        let kind = take(&mut extensions, 2)?;
        let mut content = vector::<2>(&mut extensions)?;
        if kind != SERVER_NAME {
            continue;
        }
        let mut list = vector::<2>(&mut content)?;
        let [HOST_NAME] = take(&mut list, 1)? else { return None };
        let name = DnsName::try_from(vector::<2>(&mut list)?).ok()?;
        if !list.is_empty() || !content.is_empty() || asked.is_some() {
            return None;
        }
        // As rustls writes it.
        asked = Some(name.as_ref().to_ascii_lowercase().into());
    }
    Some(asked)
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

/// What follows its length in `N` bytes (RFC 8446 §3.4).
fn vector<'a, const N: usize>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = take(bytes, N)?;
    take(bytes, len.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)))
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
