//! TLS keys: what protects one direction of a session.
//!
//! Owns the suites, the key schedule after the handshake (RFC 8446 §7), sequence numbers and
//! nonces. Must not know records.

use ring::aead::{
    AES_128_GCM, AES_256_GCM, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use ring::hkdf::{self, HKDF_SHA256, HKDF_SHA384, KeyType, Prk};
use zeroize::Zeroize;

use super::Version;

/// The longest traffic secret: SHA-384.
pub const SECRET_MAX: usize = 48;
/// The longest key.
pub(super) const KEY_MAX: usize = 32;
/// The length of an iv, and of a nonce.
pub(super) const IV: usize = 12;

const _: () = assert!(KEY_MAX + IV <= SECRET_MAX, "one of both is saved in the same place");

/// The cipher suites, by what matters after the handshake (RFC 8446 §B.4, RFC 5289 §3.2,
/// RFC 7905 §2). The order is that of the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// TLS_AES_128_GCM_SHA256 and its ECDHE twins of TLS 1.2.
    Aes128Gcm,
    /// TLS_AES_256_GCM_SHA384.
    Aes256Gcm,
    /// TLS_CHACHA20_POLY1305_SHA256.
    ChaCha20Poly1305,
}

impl Suite {
    /// Every suite.
    pub const ALL: [Self; 3] = [Self::Aes128Gcm, Self::Aes256Gcm, Self::ChaCha20Poly1305];

    /// A number that stays the same in every version of the program.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8 + 1
    }

    /// The suite with this number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| suite.number() == number)
    }

    fn aead(self) -> &'static Algorithm {
        match self {
            Self::Aes128Gcm => &AES_128_GCM,
            Self::Aes256Gcm => &AES_256_GCM,
            Self::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        }
    }

    fn hash(self) -> hkdf::Algorithm {
        match self {
            Self::Aes256Gcm => HKDF_SHA384,
            Self::Aes128Gcm | Self::ChaCha20Poly1305 => HKDF_SHA256,
        }
    }

    /// The length of a key.
    pub(super) fn key_len(self) -> usize {
        self.aead().key_len()
    }

    /// The length of a traffic secret: that of the hash (RFC 8446 §7.1).
    #[must_use]
    pub fn secret_len(self) -> usize {
        self.hash().len()
    }

    /// How many records one key may protect (RFC 8446 §5.5: 2^24.5 full ones for AES-GCM; for
    /// ChaCha20-Poly1305 the sequence number ends first).
    pub(super) fn records_max(self) -> u64 {
        match self {
            Self::Aes128Gcm | Self::Aes256Gcm => 1 << 24,
            Self::ChaCha20Poly1305 => COUNTER_MAX - 0xffff,
        }
    }
}

/// The last sequence number, which is never used. RFC 8446 §5.3 allows 64 bits: 2^48 of the
/// shortest records are 6 petabytes, and two bytes in every session.
const COUNTER_MAX: u64 = (1 << 48) - 1;

/// The next sequence number, as bytes: its alignment would cost every session 16 bytes.
pub(super) struct Counter([u8; 6]);

/// A sequence number for one record. It is neither `Clone` nor `Copy`, and
/// [`Traffic::nonce`] consumes it.
pub(super) struct Sequence(u64);

impl Counter {
    const ZERO: Self = Self([0; 6]);

    /// `None`: there is no such number.
    pub(super) fn new(next: u64) -> Option<Self> {
        let [0, 0, bytes @ ..] = next.to_be_bytes() else { return None };
        Some(Self(bytes))
    }

    /// The next number, which stays unused.
    pub(super) fn value(&self) -> u64 {
        self.0.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// Counts, and then returns the number; `None`: all were used (RFC 8446 §5.3).
    pub(super) fn next(&mut self) -> Option<Sequence> {
        let sequence = self.value();
        *self = Self::new(sequence + 1)?;
        Some(Sequence(sequence))
    }
}

impl Sequence {
    pub(super) fn to_bytes(&self) -> [u8; 8] {
        self.0.to_be_bytes()
    }
}

/// One direction of a session of TLS 1.3 whose keys are in use already.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    /// The next sequence number.
    pub sequence: u64,
    /// The application traffic secret (RFC 8446 §7.1).
    pub secret: &'a [u8],
    /// The key that was derived from it (§7.3).
    pub key: &'a [u8],
    /// The iv that was.
    pub iv: &'a [u8],
}

/// One direction: sequence number, and key and iv with their traffic secret.
pub(super) struct Traffic {
    pub(super) counter: Counter,
    /// All zero in TLS 1.2.
    secret: [u8; SECRET_MAX],
    /// Zero, as the iv, until they were derived.
    key: [u8; KEY_MAX],
    iv: [u8; IV],
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.secret.zeroize();
        self.key.zeroize();
        self.iv.zeroize();
    }
}

impl Traffic {
    fn empty(sequence: u64) -> Option<Self> {
        let counter = Counter::new(sequence)?;
        Some(Self { counter, secret: [0; SECRET_MAX], key: [0; KEY_MAX], iv: [0; IV] })
    }

    /// With a traffic secret, from which [`Self::key`] derives key and iv; `None` if it or the
    /// number is not possible.
    pub(super) fn tls13(suite: Suite, sequence: u64, secret: &[u8]) -> Option<Self> {
        let mut traffic = Self::empty(sequence)?;
        if secret.len() != suite.secret_len() {
            return None;
        }
        traffic.secret[..secret.len()].copy_from_slice(secret);
        Some(traffic)
    }

    /// The same where key and iv are known; `None` also if they are not those of the secret.
    /// The iv tells: to derive the key as well costs each handshake two microseconds.
    pub(super) fn tls13_known(suite: Suite, known: Known<'_>) -> Option<Self> {
        let Known { sequence, secret, key, iv } = known;
        let mut traffic = Self::tls12(suite, sequence, key, iv)?;
        if secret.len() != suite.secret_len() {
            return None;
        }
        traffic.secret[..secret.len()].copy_from_slice(secret);
        let mut derived = [0; IV];
        expand(suite, secret, "iv", &mut derived);
        (derived == traffic.iv).then_some(traffic)
    }

    /// With this key and iv; `None` if one or the number is not possible.
    pub(super) fn tls12(suite: Suite, sequence: u64, key: &[u8], iv: &[u8]) -> Option<Self> {
        let mut traffic = Self::empty(sequence)?;
        if key.len() != suite.key_len() || iv.len() != IV {
            return None;
        }
        traffic.key[..key.len()].copy_from_slice(key);
        traffic.iv.copy_from_slice(iv);
        Some(traffic)
    }

    /// The next traffic secret, with its key and iv (RFC 8446 §7.2). Sequence numbers begin
    /// again (§5.3).
    pub(super) fn update(&mut self, suite: Suite) {
        let mut next = [0; SECRET_MAX];
        expand(suite, self.secret(suite), "traffic upd", &mut next[..suite.secret_len()]);
        self.secret.copy_from_slice(&next);
        next.zeroize();
        self.derive(suite);
        self.counter = Counter::ZERO;
    }

    /// Key and iv (RFC 8446 §7.3).
    fn derive(&mut self, suite: Suite) {
        let secret = &self.secret[..suite.secret_len()];
        expand(suite, secret, "key", &mut self.key[..suite.key_len()]);
        expand(suite, secret, "iv", &mut self.iv);
    }

    fn secret(&self, suite: Suite) -> &[u8] {
        &self.secret[..suite.secret_len()]
    }

    /// Whether these are its key and iv.
    #[cfg(test)]
    pub(super) fn is(&self, suite: Suite, (key, iv): (&[u8], &[u8])) -> bool {
        let Self { secret, key: own, iv: own_iv, .. } = self;
        let mut own = Self { counter: Counter::ZERO, secret: *secret, key: *own, iv: *own_iv };
        let _ = own.key(suite);
        own.key[..suite.key_len()] == *key && own.iv == *iv
    }

    /// What is saved of it.
    pub(super) fn material(&self, version: Version) -> [u8; SECRET_MAX] {
        let mut material = self.secret;
        if version == Version::Tls12 {
            material[..KEY_MAX].copy_from_slice(&self.key);
            material[KEY_MAX..KEY_MAX + IV].copy_from_slice(&self.iv);
        }
        material
    }

    /// The key, expanded for the cipher. ring does not overwrite it when it is dropped.
    ///
    /// Key and iv are derived here if they were not before: a hand-over has no time to do it
    /// for all sessions at once. So this is called before a nonce is asked for.
    pub(super) fn key(&mut self, suite: Suite) -> LessSafeKey {
        // Derived again, should they really be zero.
        if self.key == [0; KEY_MAX] && self.iv == [0; IV] {
            self.derive(suite);
        }
        let key = UnboundKey::new(suite.aead(), &self.key[..suite.key_len()]);
        LessSafeKey::new(key.expect("the length is that of the suite"))
    }

    /// The nonce of a record: the iv, with the sequence number added to its end (RFC 8446
    /// §5.3, RFC 7905 §2; for AES-GCM in TLS 1.2 RFC 5288 §3 leaves it to the sender).
    #[expect(clippy::needless_pass_by_value, reason = "a sequence number is used once")]
    pub(super) fn nonce(&self, sequence: Sequence) -> Nonce {
        let mut nonce = self.iv;
        for (byte, number) in nonce[IV - 8..].iter_mut().zip(sequence.to_bytes()) {
            *byte ^= number;
        }
        Nonce::assume_unique_for_key(nonce)
    }

    /// The nonce of a received record that carries the greater part of it (RFC 5288 §3).
    pub(super) fn nonce_carried(&self, carried: &[u8; 8]) -> Nonce {
        let mut nonce = self.iv;
        nonce[IV - 8..].copy_from_slice(carried);
        Nonce::assume_unique_for_key(nonce)
    }
}

/// HKDF-Expand-Label with an empty context (RFC 8446 §7.1).
fn expand(suite: Suite, secret: &[u8], label: &str, output: &mut [u8]) {
    struct Len(usize);
    impl KeyType for Len {
        fn len(&self) -> usize {
            self.0
        }
    }
    const PREFIX: &str = "tls13 ";
    let len = (output.len() as u16).to_be_bytes();
    let label_len = [(PREFIX.len() + label.len()) as u8];
    let info = [&len[..], &label_len, PREFIX.as_bytes(), label.as_bytes(), &[0]];
    Prk::new_less_safe(suite.hash(), secret)
        .expand(&info, Len(output.len()))
        .and_then(|okm| okm.fill(output))
        .expect("shorter than 255 hashes");
}
