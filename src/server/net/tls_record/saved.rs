//! Saved sessions: a session as plain values, and back.
//!
//! Owns what is saved. Must not know how it is encoded or where it goes.

use std::fmt::{self, Debug};

use zeroize::Zeroize;

use super::keys::{IV, KEY_MAX, SECRET_MAX, Suite, Traffic};
use super::messages::{CLIENT_HELLO, MESSAGE_HEADER, Partial};
use super::{Input, KEY_UPDATE, Output, RecordLayer, Version};

/// What a session remembers besides its keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The peer has sent close_notify.
    pub has_ended: bool,
    /// close_notify was sealed.
    pub has_sent_end: bool,
    /// An answer is due before the next data: to a KeyUpdate, or to a renegotiation.
    pub owes_answer: bool,
    /// Since the last data.
    pub key_updates: u8,
    /// In all.
    pub warnings: u8,
    /// Since the last record with content.
    pub empty: u8,
    /// In all.
    pub renegotiations: u8,
    /// The first bytes of a handshake message that is cut over records.
    pub message: [u8; 5],
    /// How many of them have arrived.
    pub message_len: u8,
    /// Bytes of a refused ClientHello that are still to come.
    pub skip: u16,
}

/// A session as plain values of fixed size, from which it can be continued. Only one
/// continuation may seal: two would use a sequence number twice.
pub struct Saved {
    /// The protocol version, as the last byte of its number: 3 or 4.
    pub version: u8,
    /// The suite, as [`Suite::number`].
    pub suite: u8,
    /// Everything else but keys.
    pub facts: Facts,
    /// The next sequence numbers: to send, to receive.
    pub sequences: [u64; 2],
    /// To send, to receive: in TLS 1.3 the traffic secret, from which key and iv are
    /// derived; in TLS 1.2 the key, 32 bytes, and the iv.
    pub material: [[u8; SECRET_MAX]; 2],
}

impl Drop for Saved {
    fn drop(&mut self) {
        self.material.zeroize();
    }
}

const _: () = assert!(90 <= size_of::<Saved>() && size_of::<Saved>() <= 220);

impl Debug for Saved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Saved").finish_non_exhaustive()
    }
}

impl RecordLayer {
    /// The session as plain values; `None` for a broken one, which cannot continue.
    #[must_use]
    pub fn save(&self) -> Option<Saved> {
        let version = self.version;
        let both = [&self.send, &self.receive];
        self.fault().is_none().then(|| Saved {
            version: if version == Version::Tls13 { 4 } else { 3 },
            suite: self.suite.number(),
            facts: self.facts(),
            sequences: both.map(|traffic| traffic.counter.value()),
            material: both.map(|traffic| traffic.material(version)),
        })
    }

    /// Continues a session; `None` if the values are not those of one.
    #[must_use]
    pub fn restore(saved: &Saved) -> Option<Self> {
        let suite = Suite::from_number(saved.suite)?;
        let ([send, receive], [first, second]) = (&saved.material, saved.sequences);
        let mut restored = match saved.version {
            4 => {
                let len = suite.secret_len();
                Self::tls13(suite, (first, &send[..len]), (second, &receive[..len]))
            }
            3 => {
                let cut = |sequence, material: &'_ [u8; SECRET_MAX]| {
                    let (key, iv) = (&material[..suite.key_len()], &material[KEY_MAX..]);
                    Traffic::tls12(suite, sequence, key, &iv[..IV])
                };
                Some(Self::new(Version::Tls12, suite, cut(first, send)?, cut(second, receive)?))
            }
            _ => None,
        }?;
        restored.remember(&saved.facts).then_some(restored)
    }

    fn facts(&self) -> Facts {
        let is_13 = self.version == Version::Tls13;
        let mut facts = Facts {
            has_ended: self.has_ended(),
            has_sent_end: self.output == Output::Ended,
            owes_answer: self.output == Output::OwesAnswer,
            key_updates: if is_13 { self.handshakes } else { 0 },
            warnings: self.warnings,
            empty: self.empty,
            renegotiations: if is_13 { 0 } else { self.handshakes },
            ..Facts::default()
        };
        let Partial { head_len, length: [high, middle, low] } = self.partial;
        if head_len == MESSAGE_HEADER && !is_13 {
            facts.skip = u16::from_be_bytes([middle, low]);
        } else if head_len > 0 {
            let kind = if is_13 { KEY_UPDATE } else { CLIENT_HELLO };
            facts.message = [kind, high, middle, low, 0];
            facts.message_len = head_len;
        }
        facts
    }

    /// The reverse of [`Self::facts`]; whether they are those of a session.
    fn remember(&mut self, facts: &Facts) -> bool {
        self.input = if facts.has_ended { Input::Ended } else { Input::Open };
        self.output = match facts {
            Facts { has_sent_end: true, .. } => Output::Ended,
            Facts { owes_answer: true, .. } => Output::OwesAnswer,
            _ => Output::Open,
        };
        self.handshakes = match self.version {
            Version::Tls13 => facts.key_updates,
            Version::Tls12 => facts.renegotiations,
        };
        (self.warnings, self.empty) = (facts.warnings, facts.empty);
        let (is_13, len) = (self.version == Version::Tls13, usize::from(facts.message_len));
        let kind = if is_13 { KEY_UPDATE } else { CLIENT_HELLO };
        if len > usize::from(MESSAGE_HEADER) || len > 0 && facts.message[0] != kind {
            return false;
        }
        self.partial.head_len = facts.message_len;
        for (to, from) in self.partial.length.iter_mut().zip(&facts.message[1..len.max(1)]) {
            *to = *from;
        }
        if facts.skip > 0 {
            self.partial = Partial::default();
            self.partial.head_len = MESSAGE_HEADER;
            self.partial.set_length(facts.skip.into());
        }
        facts.skip == 0 || !is_13
    }
}
