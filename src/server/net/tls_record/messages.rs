//! Messages after the handshake: alerts, KeyUpdate, and the refusal of a renegotiation.
//!
//! Owns what each message means and how many a peer may send. Must not know ciphers. "§"
//! without an RFC refers to RFC 8446 (TLS 1.3).

use super::{CLOSE_NOTIFY, FATAL, Fault, KEY_UPDATE, RecordLayer, Version, WARNING};

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
const CLIENT_HELLO: u8 = 1;
/// The alert of a peer that gives up (§6.1).
pub(super) const USER_CANCELED: u8 = 90;

impl RecordLayer {
    pub(super) fn on_alert(&mut self, content: &[u8]) -> Result<(), Fault> {
        let [level, description] = *content else { return Err(Fault::Malformed) };
        if !matches!(level, WARNING | FATAL) {
            return Err(Fault::Illegal);
        }
        if description == CLOSE_NOTIFY {
            // §6.1: what follows is ignored.
            self.facts.has_ended = true;
            return Ok(());
        }
        // RFC 5246 §7.2: a warning ends nothing. §6: in TLS 1.3 whatever the level says,
        // everything but user_canceled is an error.
        let is_error = self.version == Version::Tls13 && description != USER_CANCELED;
        if level == FATAL || is_error {
            return Err(Fault::Alert(description));
        }
        count(&mut self.facts.warnings, WARNINGS_MAX)
    }

    /// §4.6.3; returns whether the key to receive has changed.
    pub(super) fn on_key_update(&mut self, content: &[u8]) -> Result<bool, Fault> {
        let facts = &mut self.facts;
        let have = usize::from(facts.message_len);
        let (taken, rest) = content.split_at(content.len().min(facts.message.len() - have));
        facts.message[have..have + taken.len()].copy_from_slice(taken);
        facts.message_len += taken.len() as u8;
        // §4.6.1, §4.6.2: nothing else comes from a client that has no certificate to show.
        if facts.message[0] != KEY_UPDATE {
            return Err(Fault::Unexpected);
        }
        if usize::from(facts.message_len) < facts.message.len() {
            return Ok(false);
        }
        // §5.1: a message before a change of keys ends its record.
        if !rest.is_empty() {
            return Err(Fault::Unexpected);
        }
        let [_, length @ .., request] = facts.message;
        if length != [0, 0, 1] {
            return Err(Fault::Malformed);
        }
        if request > 1 {
            return Err(Fault::Illegal);
        }
        facts.message_len = 0;
        count(&mut facts.key_updates, KEY_UPDATES_MAX)?;
        // One answer for several requests is enough.
        facts.owes_answer |= request == 1;
        self.receive.update(self.suite);
        Ok(true)
    }

    /// RFC 5246 §7.2.2: a ClientHello of any length, and only that, is answered by a warning.
    pub(super) fn on_renegotiation(&mut self, mut content: &[u8]) -> Result<(), Fault> {
        let facts = &mut self.facts;
        while let [byte, rest @ ..] = content {
            if facts.skip > 0 {
                let len = content.len().min(usize::from(facts.skip));
                facts.skip -= len as u16;
                content = &content[len..];
                continue;
            }
            facts.message[usize::from(facts.message_len)] = *byte;
            facts.message_len += 1;
            content = rest;
            if facts.message[0] != CLIENT_HELLO {
                return Err(Fault::Unexpected);
            }
            if facts.message_len == 4 {
                let [_, high, middle, low, _] = facts.message;
                let len = u32::from_be_bytes([0, high, middle, low]);
                facts.skip = u16::try_from(len.min(HELLO_MAX + 1)).map_err(|_| Fault::Malformed)?;
                facts.message_len = 0;
                count(&mut facts.renegotiations, RENEGOTIATIONS_MAX)?;
                facts.owes_answer = true;
            }
        }
        Ok(())
    }
}

/// Counts one more of at most `max`.
pub(super) fn count(counter: &mut u8, max: u8) -> Result<(), Fault> {
    if *counter == max {
        return Err(Fault::TooMany);
    }
    *counter += 1;
    Ok(())
}
