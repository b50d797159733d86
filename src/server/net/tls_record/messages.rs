//! Messages after the handshake: alerts, KeyUpdate, and the refusal of a renegotiation.
//!
//! Owns what each message means and how many a peer may send. Must not know ciphers. "§"
//! without an RFC refers to RFC 8446 (TLS 1.3).

use super::{CLOSE_NOTIFY, FATAL, Fault, Input, KEY_UPDATE, Output, RecordLayer, Version, WARNING};

/// KeyUpdates without data between them. As many as rustls and BoringSSL accept: each costs
/// a key derivation.
pub(super) const KEY_UPDATES_MAX: u8 = 32;
/// Warnings in one session, as in rustls and BoringSSL.
pub(super) const WARNINGS_MAX: u8 = 4;
/// Refused renegotiations, as in rustls.
const RENEGOTIATIONS_MAX: u8 = 1;
/// The longest ClientHello that is skipped, as in rustls.
const HELLO_MAX: u32 = 0xffff;

/// The handshake type of a ClientHello (RFC 5246 §7.4).
pub(super) const CLIENT_HELLO: u8 = 1;
/// The length of a handshake message's header: its type, and its length in three bytes (§4).
pub(super) const MESSAGE_HEADER: u8 = 4;
/// The alert of a peer that gives up (§6.1).
pub(super) const USER_CANCELED: u8 = 90;

/// A handshake message that is cut over records. Only one type is possible in each version,
/// so the type is not kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Partial {
    /// How many bytes of the header have arrived.
    pub(super) head_len: u8,
    /// The length in the header; of a refused ClientHello what is still to come.
    pub(super) length: [u8; 3],
}

impl Partial {
    /// Takes what the header still lacks off the front of `content`; whether it is complete.
    fn take_header(&mut self, kind: u8, content: &mut &[u8]) -> Result<bool, Fault> {
        while self.head_len < MESSAGE_HEADER {
            let [byte, rest @ ..] = *content else { return Ok(false) };
            *content = rest;
            match self.head_len {
                0 if *byte != kind => return Err(Fault::Unexpected),
                0 => {}
                at => self.length[usize::from(at) - 1] = *byte,
            }
            self.head_len += 1;
        }
        Ok(true)
    }

    pub(super) fn length(self) -> u32 {
        let [high, middle, low] = self.length;
        u32::from_be_bytes([0, high, middle, low])
    }

    pub(super) fn set_length(&mut self, length: u32) {
        let [_, bytes @ ..] = length.to_be_bytes();
        self.length = bytes;
    }
}

impl RecordLayer {
    pub(super) fn on_alert(&mut self, content: &[u8]) -> Result<(), Fault> {
        let [level, description] = *content else { return Err(Fault::Malformed) };
        if !matches!(level, WARNING | FATAL) {
            return Err(Fault::Illegal);
        }
        if description == CLOSE_NOTIFY {
            // §6.1: what follows is ignored.
            self.input = Input::Ended;
            return Ok(());
        }
        // RFC 5246 §7.2: a warning ends nothing. §6: in TLS 1.3 whatever the level says,
        // everything but user_canceled is an error.
        let is_error = self.version == Version::Tls13 && description != USER_CANCELED;
        if level == FATAL || is_error {
            return Err(Fault::Alert(description));
        }
        count(&mut self.warnings, WARNINGS_MAX)
    }

    /// §4.6.3; returns whether the key to receive has changed.
    pub(super) fn on_key_update(&mut self, mut content: &[u8]) -> Result<bool, Fault> {
        // §4.6.1, §4.6.2: nothing else comes from a client that has no certificate to show.
        if !self.partial.take_header(KEY_UPDATE, &mut content)? {
            return Ok(false);
        }
        let [request, rest @ ..] = content else { return Ok(false) };
        // §5.1: a message before a change of keys ends its record.
        if !rest.is_empty() {
            return Err(Fault::Unexpected);
        }
        if self.partial.length() != 1 {
            return Err(Fault::Malformed);
        }
        if *request > 1 {
            return Err(Fault::Illegal);
        }
        self.partial = Partial::default();
        count(&mut self.handshakes, KEY_UPDATES_MAX)?;
        // One answer for several requests is enough.
        self.owe_answer(*request == 1);
        self.receive.update(self.suite);
        Ok(true)
    }

    /// RFC 5246 §7.2.2: a ClientHello of any length, and only that, is answered by a warning.
    pub(super) fn on_renegotiation(&mut self, mut content: &[u8]) -> Result<(), Fault> {
        while !content.is_empty() {
            if self.partial.head_len < MESSAGE_HEADER {
                if !self.partial.take_header(CLIENT_HELLO, &mut content)? {
                    return Ok(());
                }
                if self.partial.length() > HELLO_MAX {
                    return Err(Fault::Malformed);
                }
                count(&mut self.handshakes, RENEGOTIATIONS_MAX)?;
                self.owe_answer(true);
            }
            let length = self.partial.length();
            let skipped = content.len().min(length as usize);
            content = &content[skipped..];
            self.partial.set_length(length - skipped as u32);
            if self.partial.length() == 0 {
                self.partial = Partial::default();
            }
        }
        Ok(())
    }

    fn owe_answer(&mut self, is_due: bool) {
        if is_due && self.output == Output::Open {
            self.output = Output::OwesAnswer;
        }
    }
}

/// Counts one more of at most `max`.
pub(super) fn count(counter: &mut u8, max: u8) -> Result<(), Fault> {
    if *counter >= max {
        return Err(Fault::TooMany);
    }
    *counter += 1;
    Ok(())
}
