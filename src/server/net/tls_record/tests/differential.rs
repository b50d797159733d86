//! The record layer against rustls, at random from a seed.
//!
//! Two ends of rustls shake hands, one of them also reports its secrets, and from these the
//! record layer becomes its twin: both get the same bytes from the peer, in the same pieces,
//! and must agree on data, end and fault. What the peer hears comes from the record layer,
//! which is saved and restored after every call. In a third of the runs bytes are damaged:
//! then the record layer may refuse more than rustls, never less.
//!
//! `PYRYCODE_TLS_SEEDS=n` runs n seeds from `PYRYCODE_TLS_FIRST=n` on, instead of a few.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex, OnceLock};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use ring::hmac;
use rustls::crypto::{CryptoProvider, ring as provider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    CipherSuite, ClientConfig, ClientConnection, Connection, KeyLog, RootCertStore, ServerConfig,
    ServerConnection,
};

use super::*;

const SEEDS: u64 = 120;
const STEPS: usize = 40;

#[expect(clippy::disallowed_methods, reason = "settings of the test itself")]
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

/// Prints the seed of a run that fails.
struct Replay(u64, usize);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self(seed, step) = self;
            eprintln!("step {step}; replay with PYRYCODE_TLS_FIRST={seed} PYRYCODE_TLS_SEEDS=1");
        }
    }
}

/// Label, client random, secret.
type Line = (String, Vec<u8>, Vec<u8>);

#[derive(Debug, Default)]
struct Secrets(Mutex<Vec<Line>>);

impl KeyLog for Secrets {
    fn log(&self, label: &str, random: &[u8], secret: &[u8]) {
        self.0.lock().unwrap().push((label.into(), random.into(), secret.into()));
    }
}

impl Secrets {
    fn find(&self, label: &str) -> Line {
        self.0.lock().unwrap().iter().find(|line| line.0 == label).unwrap().clone()
    }
}

fn identity() -> &'static (CertificateDer<'static>, Vec<u8>) {
    static IDENTITY: OnceLock<(CertificateDer<'static>, Vec<u8>)> = OnceLock::new();
    IDENTITY.get_or_init(|| {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["relay".into()]).unwrap();
        (cert.der().clone(), signing_key.serialize_der())
    })
}

/// Two ends after their handshake, client and server, and the record layer's twin of one.
fn shake_hands(
    version: Version,
    suite: Suite,
    is_client: bool,
) -> (Connection, Connection, RecordLayer) {
    let suites = provider::ALL_CIPHER_SUITES.iter().copied().filter(|it| {
        let (its_version, its_suite) = kind(it.suite());
        (its_version, its_suite) == (version, suite)
    });
    let crypto = CryptoProvider { cipher_suites: suites.collect(), ..provider::default_provider() };
    let version13 = [&rustls::version::TLS13];
    let version12 = [&rustls::version::TLS12];
    let versions = if version == Version::Tls13 { &version13 } else { &version12 };
    let (certificate, key) = identity();
    let secrets = Arc::new(Secrets::default());
    let mut server = ServerConfig::builder_with_provider(Arc::new(crypto.clone()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], PrivateKeyDer::Pkcs8(key.clone().into()))
        .unwrap();
    // No ticket reaches the record layer, which is never at the client's end.
    server.send_tls13_tickets = 0;
    server.key_log = Arc::clone(&secrets) as Arc<dyn KeyLog>;
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let client = ClientConfig::builder_with_provider(Arc::new(crypto))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("relay").unwrap();
    let mut client = Connection::from(ClientConnection::new(Arc::new(client), name).unwrap());
    let mut server = Connection::from(ServerConnection::new(Arc::new(server)).unwrap());
    let mut first = Vec::new();
    for _ in 0..4 {
        hand_over(&taken(&mut client), &mut server);
        let flight = taken(&mut server);
        if first.is_empty() {
            first = flight.clone();
        }
        hand_over(&flight, &mut client);
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    let own = usize::from(is_client);
    let end = if version == Version::Tls13 {
        let labels = ["SERVER_TRAFFIC_SECRET_0", "CLIENT_TRAFFIC_SECRET_0"];
        let both = labels.map(|label| secrets.find(label).2);
        RecordLayer::tls13(suite, (0, &both[own]), (0, &both[1 - own]))
    } else {
        let (_, client_random, master) = secrets.find("CLIENT_RANDOM");
        // Record header, handshake header, version.
        let both = key_block(suite, &master, &first[11..43], &client_random);
        let [send, receive] = [own, 1 - own].map(|n| (1, &both[n].0[..], &both[n].1[..]));
        RecordLayer::tls12(suite, send, receive)
    };
    (client, server, end.unwrap())
}

fn kind(suite: CipherSuite) -> (Version, Suite) {
    let name = format!("{suite:?}");
    let version = if name.starts_with("TLS13") { Version::Tls13 } else { Version::Tls12 };
    let suites = [("AES_128", Suite::Aes128Gcm), ("AES_256", Suite::Aes256Gcm)];
    let suite = suites.into_iter().find(|(part, _)| name.contains(part));
    (version, suite.map_or(Suite::ChaCha20Poly1305, |(_, suite)| suite))
}

/// RFC 5246 §6.3: key and iv of the server, then of the client.
fn key_block(suite: Suite, master: &[u8], server: &[u8], client: &[u8]) -> [(Vec<u8>, Vec<u8>); 2] {
    let is_384 = suite == Suite::Aes256Gcm;
    let hash = if is_384 { hmac::HMAC_SHA384 } else { hmac::HMAC_SHA256 };
    let key = hmac::Key::new(hash, master);
    let seed = [b"key expansion", server, client].concat();
    let (mut a, mut block) = (seed.clone(), Vec::new());
    while block.len() < 2 * (32 + 12) {
        a = hmac::sign(&key, &a).as_ref().to_vec();
        block.extend_from_slice(hmac::sign(&key, &[&a[..], &seed].concat()).as_ref());
    }
    let (len, iv) = match suite {
        Suite::Aes128Gcm => (16, 4),
        Suite::Aes256Gcm => (32, 4),
        Suite::ChaCha20Poly1305 => (32, 12),
    };
    [1, 0].map(|n| {
        let mut its_iv = block[2 * len + n * iv..][..iv].to_vec();
        its_iv.resize(IV, 0x5a);
        (block[n * len..][..len].to_vec(), its_iv)
    })
}

fn taken(end: &mut Connection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while end.wants_write() {
        end.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// The data, whether close_notify has come, and whether the session broke.
fn hand_over(mut bytes: &[u8], end: &mut Connection) -> (Vec<u8>, bool, bool) {
    let (mut heard, mut has_ended, mut is_broken) = (Vec::new(), false, false);
    while !bytes.is_empty() && !is_broken && !has_ended {
        end.read_tls(&mut bytes).unwrap();
        match end.process_new_packets() {
            Ok(state) => has_ended |= state.peer_has_closed(),
            Err(_) => is_broken = true,
        }
        let mut part = [0; 20_000];
        while let Ok(count) = end.reader().read(&mut part) {
            if count == 0 {
                break;
            }
            heard.extend_from_slice(&part[..count]);
        }
    }
    (heard, has_ended, is_broken)
}

#[derive(Debug, Default)]
struct Totals {
    messages: usize,
    key_updates: usize,
    restored: usize,
    damaged: usize,
    /// Damaged runs that the record layer ended and rustls did not.
    stricter: usize,
}

struct Run {
    rng: StdRng,
    peer: Connection,
    twin: Connection,
    own: RecordLayer,
    is_13: bool,
    is_damaged: bool,
    twin_is_broken: bool,
    /// Ciphertext of an incomplete record.
    waiting: Vec<u8>,
    /// Sealed, but not sent yet.
    unsent: Vec<u8>,
    /// What the peer has yet to hear.
    expected: Vec<u8>,
    totals: Totals,
}

impl Run {
    fn restore(&mut self) {
        if let Some(saved) = self.own.save() {
            self.own = RecordLayer::restore(&saved).unwrap();
            self.totals.restored += 1;
        }
    }

    fn text(&mut self) -> Vec<u8> {
        let len = match self.rng.random_range(0..10) {
            0 => self.rng.random_range(0..50_000),
            1 => RECORD_MAX + self.rng.random_range(0..3) - 1,
            _ => self.rng.random_range(0..200),
        };
        let first: u8 = self.rng.random();
        (0..len).map(|n| first.wrapping_add(n as u8)).collect()
    }

    /// The peer says something.
    fn peer_speaks(&mut self) {
        for _ in 0..self.rng.random_range(1..4) {
            if self.is_13 && self.rng.random_range(0..4) == 0 {
                self.peer.refresh_traffic_keys().unwrap();
                self.totals.key_updates += 1;
            } else {
                let text = self.text();
                self.peer.writer().write_all(&text).unwrap();
                self.totals.messages += 1;
            }
            if self.rng.random_range(0..60) == 0 {
                self.peer.send_close_notify();
            }
        }
        let mut bytes = taken(&mut self.peer);
        if self.is_damaged && !bytes.is_empty() && self.rng.random_range(0..6) == 0 {
            self.totals.damaged += 1;
            let at = self.rng.random_range(0..bytes.len());
            match self.rng.random_range(0..4) {
                0 => bytes[at] = self.rng.random(),
                1 => bytes[at] ^= 1 << self.rng.random_range(0..8),
                2 => drop(bytes.remove(at)),
                _ => bytes.insert(at, self.rng.random()),
            }
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() && !self.own.is_over() {
            let (piece, later) = rest.split_at(self.rng.random_range(1..=rest.len()));
            rest = later;
            self.hear(piece);
        }
    }

    /// Both hear the same.
    fn hear(&mut self, piece: &[u8]) {
        self.waiting.extend_from_slice(piece);
        let Opened { used, plain } = self.own.open(&mut self.waiting, &mut self.unsent);
        let (heard, has_ended, is_broken) = match self.twin_is_broken {
            true => (Vec::new(), false, true),
            false => hand_over(piece, &mut self.twin),
        };
        let is_same = heard == self.waiting[..plain];
        self.waiting.drain(..used);
        // rustls looks at the type before the header is complete, and at the version in it,
        // which is ignored (RFC 8446 §5.1) but authentic: the record layer sees the fault
        // when header or record are complete.
        let is_odd = match self.waiting[..] {
            [kind, major, ..] => !(20..25).contains(&kind) || major != 3,
            [kind] => !(20..25).contains(&kind),
            [] => false,
        };
        self.twin_is_broken |= is_broken && is_odd;
        if self.twin_is_broken && self.is_damaged {
            assert!(plain == 0 || is_same);
            return;
        }
        if self.is_damaged && self.own.fault().is_some() && !is_broken {
            self.totals.stricter += 1;
            // Not the data, but more of it may come where there was no fault.
            return;
        }
        assert!(is_same, "{} and {plain} bytes", heard.len());
        assert_eq!(has_ended, self.own.has_ended());
        assert_eq!(is_broken, self.own.fault().is_some(), "{:?}", self.own.fault());
        assert!(self.is_damaged || !is_broken);
        self.restore();
    }

    fn own_speaks(&mut self) {
        let text = self.text();
        let cut = self.rng.random_range(0..=text.len());
        if self.own.seal(&[&text[..cut], &text[cut..]], &mut self.unsent).is_ok() {
            self.expected.extend_from_slice(&text);
            self.totals.messages += 1;
        }
        self.restore();
    }

    fn send(&mut self) {
        let bytes = std::mem::take(&mut self.unsent);
        let (heard, _, is_broken) = hand_over(&bytes, &mut self.peer);
        assert!(self.expected.starts_with(&heard));
        self.expected.drain(..heard.len());
        // It hears of a fault by an alert.
        assert_eq!(is_broken, self.own.fault().is_some_and(|fault| fault.alert().is_some()));
    }
}

fn run(seed: u64) -> Totals {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut replay = Replay(seed, 0);
    let kinds: Vec<_> = every_kind().collect();
    let (version, suite) = kinds[seed as usize % kinds.len()];
    let is_client = rng.random();
    let (client, server, own) = shake_hands(version, suite, is_client);
    let (mut peer, twin) = if is_client { (server, client) } else { (client, server) };
    peer.set_buffer_limit(None);
    let is_damaged = rng.random_range(0..3) == 0;
    let is_13 = version == Version::Tls13;
    let (waiting, unsent, expected) = (Vec::new(), Vec::new(), Vec::new());
    let totals = Totals::default();
    let mut run = Run {
        rng,
        peer,
        twin,
        own,
        is_13,
        is_damaged,
        twin_is_broken: false,
        waiting,
        unsent,
        expected,
        totals,
    };
    for step in 0..STEPS {
        replay.1 = step;
        match run.rng.random_range(0..3) {
            0 => run.peer_speaks(),
            1 => run.own_speaks(),
            _ => run.send(),
        }
        if run.own.is_over() {
            break;
        }
    }
    if run.own.fault().is_none() {
        run.own.seal_end(&mut run.unsent);
    }
    run.send();
    assert!(run.expected.is_empty());
    run.totals
}

#[test]
fn the_record_layer_and_rustls_agree() {
    let first = setting("PYRYCODE_TLS_FIRST").unwrap_or(0);
    let count = setting("PYRYCODE_TLS_SEEDS").unwrap_or(SEEDS);
    let mut sum = Totals::default();
    for seed in first..first + count {
        let totals = run(seed);
        sum.messages += totals.messages;
        sum.key_updates += totals.key_updates;
        sum.restored += totals.restored;
        sum.damaged += totals.damaged;
        sum.stricter += totals.stricter;
    }
    println!("{sum:?}");
    assert!(count < SEEDS || sum.key_updates > 100 && sum.damaged > 30, "{sum:?}");
}
