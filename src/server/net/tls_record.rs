//! TLS record layer: records of TLS 1.3 and 1.2 after the handshake.
//!
//! Owns the keys, sequence numbers and limits of one session between its handshake and its
//! end, and the protocol that is left then: data, alerts, KeyUpdate, and the refusal of a
//! renegotiation. Must not know how keys were agreed upon (nor the library that did it),
//! sockets, or what the data means.
//!
//! 1. A sequence number protects one record. Only the counter makes a [`Sequence`], and
//!    counts before it returns; a [`Sequence`] cannot be copied, and making the nonce
//!    consumes it.
//! 2. The state has a constant size, and a record costs no allocation: records are opened
//!    and sealed in the caller's memory.
//! 3. Keys and secrets are overwritten when they are replaced or dropped. `Debug` prints none.
//! 4. A fault is final: nothing is opened or sealed after it, except its own alert.
//!
//! "§" without an RFC refers to RFC 8446 (TLS 1.3).

mod fault;
mod keys;
mod messages;
mod saved;
#[cfg(test)]
mod tests;

use std::fmt::{self, Debug};

use ring::aead::{Aad, LessSafeKey};

pub use self::fault::Fault;
use self::keys::{IV, Sequence, Traffic};
pub use self::keys::{Known, SECRET_MAX, Suite};
use self::messages::{Partial, count};
pub use self::saved::{Facts, Saved};

/// The most data in one record (§5.1, RFC 5246 §6.2.1).
pub const RECORD_MAX: usize = 1 << 14;
/// Type, version and length of a record.
pub const HEADER: usize = 5;
/// The most that protection may add to the data of a record (§5.2); the suites of TLS 1.2
/// add less, and exactly 16 or 24 bytes.
pub const EXPANSION_MAX: usize = 256;
/// The authentication tag of every suite here.
const TAG: usize = 16;
/// The part of the nonce that an AES-GCM record of TLS 1.2 carries (RFC 5288 §3).
const EXPLICIT: usize = 8;

/// Records without content in succession, as in rustls and OpenSSL.
const EMPTY_MAX: u8 = 32;

/// Content types (§5.1).
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;
/// A handshake type (§4).
const KEY_UPDATE: u8 = 24;
/// Alert levels and descriptions (§6).
const WARNING: u8 = 1;
const FATAL: u8 = 2;
const CLOSE_NOTIFY: u8 = 0;
const NO_RENEGOTIATION: u8 = 100;

/// The protocol version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// RFC 5246.
    Tls12,
    /// RFC 8446.
    Tls13,
}

/// What [`RecordLayer::open`] has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Ciphertext that was consumed. The rest is an incomplete record, or follows the end.
    pub used: usize,
    /// Data, which now lies at the front of the ciphertext's memory.
    pub plain: usize,
}

/// What may still be received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    Open,
    /// The peer has sent close_notify.
    Ended,
    /// Nothing, nor can anything be sent.
    Broken(Fault),
}

/// What may still be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    Open,
    /// An answer is due before the next data: to a KeyUpdate, or to a renegotiation.
    OwesAnswer,
    /// close_notify was sealed.
    Ended,
}

/// One session after its handshake.
pub struct RecordLayer {
    send: Traffic,
    receive: Traffic,
    version: Version,
    suite: Suite,
    input: Input,
    output: Output,
    /// KeyUpdates since the last data; in TLS 1.2 refused renegotiations, in all.
    handshakes: u8,
    /// Warnings, in all.
    warnings: u8,
    /// Records without content, since the last one with some.
    empty: u8,
    partial: Partial,
}

/// The cost of a session at rest.
const _: () = assert!(size_of::<RecordLayer>() <= 208);

impl Debug for RecordLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordLayer").finish_non_exhaustive()
    }
}

impl RecordLayer {
    /// A session of TLS 1.3: sequence number and application traffic secret (§7.1) to send and
    /// to receive. `None`: a secret has not the length of the suite's hash.
    #[must_use]
    pub fn tls13(suite: Suite, send: (u64, &[u8]), receive: (u64, &[u8])) -> Option<Self> {
        let [send, receive] =
            [send, receive].map(|(sequence, secret)| Traffic::tls13(suite, sequence, secret));
        Some(Self::new(Version::Tls13, suite, send?, receive?))
    }

    /// A session of TLS 1.2: sequence number, key and iv (RFC 5246 §6.3) to send and to
    /// receive; for AES-GCM the iv is the salt (RFC 5288 §3) and where the explicit nonces
    /// begin. `None`: one has a wrong length.
    #[must_use]
    pub fn tls12(
        suite: Suite,
        send: (u64, &[u8], &[u8]),
        receive: (u64, &[u8], &[u8]),
    ) -> Option<Self> {
        let [send, receive] =
            [send, receive].map(|(sequence, key, iv)| Traffic::tls12(suite, sequence, key, iv));
        Some(Self::new(Version::Tls12, suite, send?, receive?))
    }

    fn new(version: Version, suite: Suite, send: Traffic, receive: Traffic) -> Self {
        Self {
            send,
            receive,
            version,
            suite,
            input: Input::Open,
            output: Output::Open,
            handshakes: 0,
            warnings: 0,
            empty: 0,
            partial: Partial::default(),
        }
    }

    /// The same with the keys and ivs in use; `None` also if they do not belong to the secrets.
    #[must_use]
    pub fn tls13_known(suite: Suite, send: Known<'_>, receive: Known<'_>) -> Option<Self> {
        let [send, receive] = [send, receive].map(|known| Traffic::tls13_known(suite, known));
        Some(Self::new(Version::Tls13, suite, send?, receive?))
    }

    /// Whether the peer has sent close_notify, so that the end of the stream is no truncation.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.input == Input::Ended
    }

    /// What broke the session.
    #[must_use]
    pub fn fault(&self) -> Option<Fault> {
        match self.input {
            Input::Broken(fault) => Some(fault),
            Input::Open | Input::Ended => None,
        }
    }

    /// Whether nothing more can be received.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.input != Input::Open
    }

    /// Opens the complete records in `input`, up to the first fault or close_notify, and
    /// moves their data to the front of `input`. Alerts and, if `replies` is empty, answers
    /// are appended to `replies`: a peer that does not read causes no more than one.
    pub fn open(&mut self, input: &mut [u8], replies: &mut Vec<u8>) -> Opened {
        let mut opened = Opened::default();
        // Expanded once for all records under one key.
        let mut key = None;
        while !self.is_over() {
            match self.open_one(input, opened, &mut key) {
                Ok(next) if next == opened => break,
                Ok(next) => opened = next,
                Err(fault) => self.fail(fault, replies),
            }
        }
        if replies.is_empty() && !self.is_over() {
            // A failure is kept as the fault.
            let _ = self.answer(replies);
        }
        opened
    }

    /// Opens one record behind `input[..so_far.used]`; no progress: it is incomplete.
    fn open_one(
        &mut self,
        input: &mut [u8],
        so_far: Opened,
        key: &mut Option<LessSafeKey>,
    ) -> Result<Opened, Fault> {
        let Opened { used, plain } = so_far;
        let Some(header) = input[used..].first_chunk::<HEADER>().copied() else {
            return Ok(so_far);
        };
        let end = used + HEADER + self.length(header)?;
        if input.len() < end {
            return Ok(so_far);
        }
        let key = key.get_or_insert_with(|| self.receive.key(self.suite));
        let (kind, len) = self.unprotect(key, header, &mut input[plain..end], used - plain)?;
        let content = &input[plain..plain + len];
        // §5.1: no other record may interrupt a handshake message.
        if self.partial.head_len > 0 && kind != HANDSHAKE {
            return Err(Fault::Unexpected);
        }
        if !content.is_empty() {
            self.empty = 0;
        } else if kind != DATA {
            // §5.4 and RFC 5246 §6.2.1: only data may be empty.
            return Err(Fault::Unexpected);
        } else {
            count(&mut self.empty, EMPTY_MAX)?;
        }
        match (kind, self.version) {
            (DATA, _) => {
                if len > 0 && self.version == Version::Tls13 {
                    self.handshakes = 0;
                }
                return Ok(Opened { used: end, plain: plain + len });
            }
            (ALERT, _) => self.on_alert(content)?,
            (HANDSHAKE, Version::Tls12) => self.on_renegotiation(content)?,
            (HANDSHAKE, Version::Tls13) => {
                if self.on_key_update(content)? {
                    *key = self.receive.key(self.suite);
                }
            }
            // §5: among them change_cipher_spec after the handshake.
            _ => return Err(Fault::Unexpected),
        }
        Ok(Opened { used: end, plain })
    }

    /// The length behind a header.
    fn length(&self, header: [u8; HEADER]) -> Result<usize, Fault> {
        let [kind, _, _, high, low] = header;
        let len = usize::from(u16::from_be_bytes([high, low]));
        let (is_expected, expansion) = match self.version {
            // §5.2: a protected record looks like data. The version is ignored, but
            // authentic, as the header is the additional data.
            Version::Tls13 => (kind == DATA, EXPANSION_MAX),
            Version::Tls12 => (matches!(kind, ALERT | HANDSHAKE | DATA), EXPLICIT + TAG),
        };
        if !is_expected {
            return Err(Fault::Unexpected);
        }
        // §5.2 and RFC 5246 §6.2.3: record_overflow.
        if len > RECORD_MAX + expansion { Err(Fault::Overflow) } else { Ok(len) }
    }

    /// Decrypts the record at `memory[at..]`; returns its type and the length of its content,
    /// which is moved to the front.
    fn unprotect(
        &mut self,
        key: &LessSafeKey,
        header: [u8; HEADER],
        memory: &mut [u8],
        at: usize,
    ) -> Result<(u8, usize), Fault> {
        let sequence = self.receive.counter.next().ok_or(Fault::Exhausted)?;
        let len = memory.len() - at - HEADER;
        let explicit = self.explicit_len();
        // A record that is too short for its tag is not authentic either.
        let plain = len.checked_sub(explicit + TAG).ok_or(Fault::BadRecord)?;
        let body = at + HEADER + explicit;
        let carried = &memory[at + HEADER..body];
        let inner = match self.version {
            // §5.2: the additional data is the header.
            Version::Tls13 => {
                let nonce = self.receive.nonce(sequence);
                key.open_within(nonce, Aad::from(header), memory, body..)
            }
            Version::Tls12 => {
                let aad = aad12(&sequence, header, plain);
                let nonce = match carried.first_chunk::<EXPLICIT>() {
                    Some(carried) => self.receive.nonce_carried(carried),
                    None => self.receive.nonce(sequence),
                };
                key.open_within(nonce, aad, memory, body..)
            }
        };
        let inner = inner.map_err(|_| Fault::BadRecord)?;
        if self.version == Version::Tls12 {
            // RFC 5246 §6.2.1.
            return if plain > RECORD_MAX { Err(Fault::Overflow) } else { Ok((header[0], plain)) };
        }
        // §5.4: type and padding count, too.
        if inner.len() > RECORD_MAX + 1 {
            return Err(Fault::Overflow);
        }
        // §5.4: the last byte that is not zero is the type; there must be one.
        let len = inner.iter().rposition(|byte| *byte != 0).ok_or(Fault::Unexpected)?;
        Ok((inner[len], len))
    }

    /// The length of the nonce that each record carries.
    fn explicit_len(&self) -> usize {
        // RFC 5288 §3; RFC 7905 §2 and TLS 1.3 (§5.3) carry none.
        let is_explicit = self.version == Version::Tls12 && self.suite != Suite::ChaCha20Poly1305;
        if is_explicit { EXPLICIT } else { 0 }
    }

    /// Seals `parts`, joined, as full records, and appends them to `output`, after the answer
    /// that is due.
    ///
    /// # Errors
    /// If the session is broken or was ended by [`Self::seal_end`], or in TLS 1.2 if the keys
    /// have reached their limit: then `output` has a close_notify.
    pub fn seal(&mut self, parts: &[&[u8]], output: &mut Vec<u8>) -> Result<(), Fault> {
        if let Some(fault) = self.fault() {
            return Err(fault);
        }
        let mut left: usize = parts.iter().map(|part| part.len()).sum();
        if self.output == Output::Ended {
            // No data is no misuse: close_notify may not be sent yet.
            return if left == 0 { Ok(()) } else { Err(Fault::Internal) };
        }
        self.answer(output)?;
        output.reserve(left + left.div_ceil(RECORD_MAX) * (HEADER + EXPLICIT + 1 + TAG));
        let mut parts = parts.iter().copied();
        let mut part: &[u8] = &[];
        let mut key = None;
        while left > 0 {
            if self.send.counter.value().saturating_add(1) >= self.suite.records_max() {
                self.renew_key(output)?;
                key = None;
            }
            let key = key.get_or_insert_with(|| self.send.key(self.suite));
            let len = left.min(RECORD_MAX);
            left -= len;
            let content = |output: &mut Vec<u8>| {
                let mut wanted = len;
                while wanted > 0 {
                    if part.is_empty() {
                        part = parts.next().unwrap_or_default();
                    }
                    let (now, later) = part.split_at(part.len().min(wanted));
                    output.extend_from_slice(now);
                    (part, wanted) = (later, wanted - now.len());
                }
            };
            let sealed = self.protect(key, DATA, content, output);
            sealed.inspect_err(|fault| self.input = Input::Broken(*fault))?;
        }
        Ok(())
    }

    /// Seals close_notify: nothing more will be sent.
    pub fn seal_end(&mut self, output: &mut Vec<u8>) {
        if self.fault().is_none() && self.output != Output::Ended {
            self.output = Output::Ended;
            // A failure is kept as the fault.
            let _ = self.say(ALERT, &[WARNING, CLOSE_NOTIFY], output);
        }
    }

    /// The last record under a key that has reached its limit.
    fn renew_key(&mut self, output: &mut Vec<u8>) -> Result<(), Fault> {
        if self.version == Version::Tls13 {
            // §5.5. It asks for one in return, so that both directions are renewed.
            self.say(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 1], output)?;
            self.send.update(self.suite);
            return Ok(());
        }
        self.seal_end(output);
        self.input = Input::Broken(Fault::Exhausted);
        Err(Fault::Exhausted)
    }

    /// Seals the answer that is due.
    fn answer(&mut self, output: &mut Vec<u8>) -> Result<(), Fault> {
        if self.output != Output::OwesAnswer {
            return Ok(());
        }
        self.output = Output::Open;
        if self.version == Version::Tls12 {
            return self.say(ALERT, &[WARNING, NO_RENEGOTIATION], output);
        }
        // §4.6.3: under the old key, and it requests none in return.
        self.say(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0], output)?;
        self.send.update(self.suite);
        Ok(())
    }

    fn fail(&mut self, fault: Fault, replies: &mut Vec<u8>) {
        self.input = Input::Broken(fault);
        if let Some(alert) = fault.alert().filter(|_| self.output != Output::Ended) {
            let _ = self.say(ALERT, &[FATAL, alert], replies);
        }
    }

    /// Seals a message of the protocol itself, which the limit on records leaves room for.
    fn say(&mut self, kind: u8, message: &[u8], output: &mut Vec<u8>) -> Result<(), Fault> {
        let key = self.send.key(self.suite);
        let content = |output: &mut Vec<u8>| output.extend_from_slice(message);
        let said = self.protect(&key, kind, content, output);
        said.inspect_err(|fault| self.input = Input::Broken(*fault))
    }

    /// Seals one record; `content` appends at most [`RECORD_MAX`] bytes.
    fn protect(
        &mut self,
        key: &LessSafeKey,
        kind: u8,
        content: impl FnOnce(&mut Vec<u8>),
        output: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        // Counted before any byte is encrypted: an error below skips a number, and no
        // number is used twice.
        let sequence = self.send.counter.next().ok_or(Fault::Exhausted)?;
        let (start, explicit) = (output.len(), self.explicit_len());
        output.extend_from_slice(&[0; HEADER + EXPLICIT][..HEADER + explicit]);
        let body = start + HEADER + explicit;
        content(output);
        let plain = output.len() - body;
        // §5.2: the type is encrypted with the content. §5.1: the version is that of TLS 1.2.
        let outer = match self.version {
            Version::Tls13 => {
                output.push(kind);
                DATA
            }
            Version::Tls12 => kind,
        };
        let [high, low] = ((output.len() - body + explicit + TAG) as u16).to_be_bytes();
        let header = [outer, 3, 3, high, low];
        output[start..start + HEADER].copy_from_slice(&header);
        let sealed = match self.version {
            Version::Tls13 => {
                let nonce = self.send.nonce(sequence);
                key.seal_in_place_separate_tag(nonce, Aad::from(header), &mut output[body..])
            }
            Version::Tls12 => {
                let aad = aad12(&sequence, header, plain);
                let nonce = self.send.nonce(sequence);
                // RFC 5288 §3: unique, as it contains the sequence number; RFC 7905 §2.
                output[body - explicit..body].copy_from_slice(&nonce.as_ref()[IV - explicit..]);
                key.seal_in_place_separate_tag(nonce, aad, &mut output[body..])
            }
        };
        match sealed {
            Ok(tag) => output.extend_from_slice(tag.as_ref()),
            Err(_) => {
                output.truncate(start);
                return Err(Fault::Internal);
            }
        }
        Ok(())
    }
}

/// The additional data of TLS 1.2 (RFC 5246 §6.2.3.3): sequence number, type, version and
/// length of the plaintext.
fn aad12(sequence: &Sequence, header: [u8; HEADER], plain: usize) -> Aad<[u8; 13]> {
    let mut data = [0; 13];
    data[..8].copy_from_slice(&sequence.to_bytes());
    data[8..11].copy_from_slice(&header[..3]);
    data[11..].copy_from_slice(&(plain as u16).to_be_bytes());
    Aad::from(data)
}
