//! TLS record layer: a peer that may say anything under the right keys.
//!
//! The input chooses version, suite and what the peer sends: data, alerts, KeyUpdates, whole or
//! in parts, other handshake messages, padding, records under a wrong key, and plain bytes, in
//! pieces of any size. The session is saved and restored between them. It opens all that is
//! well-formed, nothing behind a fault, and answers within a bound; its memory is the caller's.

use pyrycode_relay::server::net::tls_record::{Opened, RecordLayer, SECRET_MAX, Suite};
use ring::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use ring::hkdf::{HKDF_SHA256, HKDF_SHA384, KeyType, Prk};

use super::bytes::Bytes;

const STEPS_MAX: usize = 100;
/// An alert and an answer, with what protects them.
const REPLIES_MAX: usize = 100;

struct Len(usize);

impl KeyType for Len {
    fn len(&self) -> usize {
        self.0
    }
}

/// The peer's own sealing, which shares nothing with the record layer.
struct Peer {
    is_13: bool,
    suite: Suite,
    secret: Vec<u8>,
    key: Vec<u8>,
    iv: [u8; 12],
    sequence: u64,
}

impl Peer {
    fn expand(&self, label: &str, len: usize) -> Vec<u8> {
        let hash = if self.suite == Suite::Aes256Gcm { HKDF_SHA384 } else { HKDF_SHA256 };
        let label = format!("tls13 {label}");
        let (len_bytes, label_len) = ((len as u16).to_be_bytes(), [label.len() as u8]);
        let info = [&len_bytes[..], &label_len, label.as_bytes(), &[0]];
        let mut output = vec![0; len];
        let prk = Prk::new_less_safe(hash, &self.secret);
        prk.expand(&info, Len(len))
            .expect("lengths fit the suite")
            .fill(&mut output)
            .expect("lengths fit the suite");
        output
    }

    fn derive(&mut self) {
        self.key = self.expand("key", self.key.len());
        let iv = self.expand("iv", 12);
        self.iv.copy_from_slice(&iv);
        self.sequence = 0;
    }

    fn update(&mut self) {
        self.secret = self.expand("traffic upd", self.secret.len());
        self.derive();
    }

    fn seal(&mut self, kind: u8, content: &[u8], padding: usize) -> Vec<u8> {
        let algorithm = match self.suite {
            Suite::Aes128Gcm => &AES_128_GCM,
            Suite::Aes256Gcm => &AES_256_GCM,
            Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        let key =
            LessSafeKey::new(UnboundKey::new(algorithm, &self.key).expect("lengths fit the suite"));
        let mut nonce = self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        let mut inner = content.to_vec();
        let (mut explicit, mut outer) = (Vec::new(), kind);
        if self.is_13 {
            outer = 23;
            inner.push(kind);
            inner.resize(inner.len() + padding, 0);
        } else if self.suite != Suite::ChaCha20Poly1305 {
            explicit = nonce[4..].to_vec();
        }
        let [high, low] = ((explicit.len() + inner.len() + 16) as u16).to_be_bytes();
        let header = [outer, 3, 3, high, low];
        let [high, low] = (content.len() as u16).to_be_bytes();
        let aad12 = [&self.sequence.to_be_bytes()[..], &[kind, 3, 3, high, low]].concat();
        let aad = Aad::from(if self.is_13 { &header[..] } else { &aad12 });
        let nonce = Nonce::assume_unique_for_key(nonce);
        key.seal_in_place_append_tag(nonce, aad, &mut inner).expect("lengths fit the suite");
        self.sequence += 1;
        [&header[..], &explicit, &inner].concat()
    }
}

fn ends(is_13: bool, suite: Suite) -> (Peer, RecordLayer) {
    let key_len = if suite == Suite::Aes128Gcm { 16 } else { 32 };
    let secret = &[7; SECRET_MAX][..suite.secret_len()];
    let mut peer = Peer {
        is_13,
        suite,
        secret: secret.to_vec(),
        key: vec![1; key_len],
        iv: [2; 12],
        sequence: 0,
    };
    if is_13 {
        peer.derive();
    }
    let own = if is_13 {
        RecordLayer::tls13(suite, (0, &[8; SECRET_MAX][..secret.len()]), (0, secret))
    } else {
        RecordLayer::tls12(suite, (0, &vec![3; key_len], &[4; 12]), (0, &peer.key, &peer.iv))
    };
    (peer, own.expect("lengths fit the suite"))
}

pub(crate) fn run(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let is_13 = bytes.byte().is_multiple_of(2);
    let suite = Suite::ALL[usize::from(bytes.byte()) % 3];
    let (mut peer, mut own) = ends(is_13, suite);
    let (mut waiting, mut said, mut heard) = (Vec::new(), Vec::new(), Vec::new());
    // So far nothing that may be refused.
    let mut is_clean = true;
    // What counts against limits.
    let mut idle = 0;
    for _ in 0..STEPS_MAX {
        if bytes.is_empty() || own.is_over() {
            break;
        }
        let len = usize::from(bytes.byte()) * usize::from(bytes.byte() % 80);
        let fill = bytes.byte();
        let content: Vec<u8> = (0..len.min(16_384)).map(|n| fill.wrapping_add(n as u8)).collect();
        let record = match bytes.byte() % 10 {
            0..4 => {
                idle = if content.is_empty() { idle + 1 } else { 0 };
                said.extend_from_slice(&content);
                let padding =
                    if is_13 { (16_384 - content.len()).min(usize::from(fill)) } else { 0 };
                peer.seal(23, &content, padding)
            }
            4 if is_13 => {
                idle += 1;
                let request = bytes.byte() % 2;
                let record = peer.seal(22, &[24, 0, 0, 1, request], 0);
                peer.update();
                record
            }
            5 if is_13 => {
                // In two records.
                idle += 1;
                let (message, cut) = ([24, 0, 0, 1, 1], usize::from(bytes.byte() % 4) + 1);
                let parts = [peer.seal(22, &message[..cut], 3), peer.seal(22, &message[cut..], 0)];
                peer.update();
                parts.concat()
            }
            6 => {
                is_clean = false;
                peer.seal(bytes.byte(), &content[..content.len().min(9)], 0)
            }
            7 => {
                is_clean = false;
                let mut record = peer.seal(23, &content, 0);
                let at = usize::from(bytes.byte()) % record.len();
                record[at] ^= bytes.byte();
                record
            }
            8 => {
                is_clean = false;
                content[..content.len().min(40)].to_vec()
            }
            _ => {
                // A warning, or what is one in TLS 1.2; a renegotiation.
                is_clean = false;
                match bytes.byte() % 3 {
                    0 => peer.seal(21, &[bytes.byte() % 3, bytes.byte()], 0),
                    1 => peer.seal(22, &[1, 0, 0, bytes.byte()], 0),
                    _ => peer.seal(22, &[24, 0, bytes.byte(), 1, bytes.byte()], 0),
                }
            }
        };
        is_clean &= idle < 16;
        let piece = usize::from(bytes.byte()) * 97 + 1;
        for piece in record.chunks(piece) {
            if own.is_over() {
                break;
            }
            waiting.extend_from_slice(piece);
            let mut replies = Vec::new();
            let Opened { used, plain } = own.open(&mut waiting, &mut replies);
            assert!(plain <= used && used <= waiting.len() && replies.len() <= REPLIES_MAX);
            heard.extend_from_slice(&waiting[..plain]);
            waiting.drain(..used);
            assert!(own.is_over() || waiting.len() < 5 + 16_384 + 256);
            if let Some(saved) = own.save() {
                own = RecordLayer::restore(&saved).expect("it was saved");
            }
        }
        assert!(said.starts_with(&heard) || !is_clean);
        if is_clean {
            assert!(own.fault().is_none() && heard == said, "{:?}", own.fault());
        }
    }
    let fault = own.fault();
    let mut output = Vec::new();
    let sealed = own.seal(&[b"still here"], &mut output);
    assert_eq!(sealed.is_err(), fault.is_some());
    if fault.is_some() {
        let opened = own.open(&mut peer.seal(23, b"more", 0), &mut output);
        assert!(opened == Opened::default() && output.is_empty());
    }
}
