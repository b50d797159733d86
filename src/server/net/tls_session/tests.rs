//! TLS session: against rustls's own client, in memory.

use std::io::{Read, Write};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::driver::OWED_MAX;
use super::*;
use crate::server::certificates::certificate::{Certificate, Handshakes};
use crate::server::net::tls::provider;

/// The bytes for the peer.
fn taken(session: &mut Session) -> Vec<u8> {
    let unsent = session.unsent().to_vec();
    session.on_sent(unsent.len());
    session.give_back(&mut Lent::default());
    unsent
}

fn seal(session: &mut Session, plain: &[u8]) -> Result<usize, SessionError> {
    session.seal([plain, &[], &[], &[], &[], &[], &[], &[]], SEAL_MAX, &mut Vec::new())
}

struct Pair {
    client: ClientConnection,
    server: Session,
    /// The plaintext that the server received.
    plain: Vec<u8>,
    /// The size of the pieces in which the client's bytes reach the server.
    piece: usize,
}

fn certificate() -> (Certificate, CertificateDer<'static>) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["relay".into()]).unwrap();
    let key = signing_key.serialize_pem();
    (Certificate::from_pem(cert.pem().as_bytes(), key.as_bytes()).unwrap(), cert.der().clone())
}

fn client_config(root: CertificateDer<'static>, tls12: bool) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(root).unwrap();
    let version = if tls12 { &rustls::version::TLS12 } else { &rustls::version::TLS13 };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

impl Pair {
    fn new(tls12: bool) -> Self {
        let (certificate, root) = certificate();
        let config = Handshakes::new(None).unwrap().with(Some(&certificate));
        Self::with(config, root, tls12)
    }

    fn with(config: Arc<ServerConfig>, root: CertificateDer<'static>, tls12: bool) -> Self {
        let name = ServerName::try_from("relay").unwrap();
        Self {
            client: ClientConnection::new(client_config(root, tls12), name).unwrap(),
            server: Session::new(config, None).unwrap(),
            plain: Vec::new(),
            piece: usize::MAX,
        }
    }

    fn open(tls12: bool) -> Self {
        let mut pair = Self::new(tls12);
        pair.shuttle();
        assert!(!pair.server.is_handshaking() && !pair.client.is_handshaking());
        assert!(matches!(pair.server.state, State::Rest(_)));
        pair
    }

    /// A session that has to stay in rustls.
    fn open_kept(tls12: bool) -> Self {
        let (certificate, root) = certificate();
        let config = Handshakes::new(None).unwrap().with(Some(&certificate));
        let mut config = Arc::unwrap_or_clone(config);
        // Without the first no version leaves rustls, without the second only TLS 1.2 does.
        config.enable_secret_extraction = !tls12;
        config.key_log = Arc::new(rustls::NoKeyLog);
        let mut pair = Self::with(Arc::new(config), root, tls12);
        pair.shuttle();
        assert!(!pair.server.is_handshaking() && !pair.client.is_handshaking());
        assert!(matches!(pair.server.state, State::Kept(_)));
        pair
    }

    /// Every kind of session.
    fn every_kind() -> [Self; 4] {
        [Self::open(false), Self::open(true), Self::open_kept(false), Self::open_kept(true)]
    }

    /// Carries bytes until neither end has any.
    fn shuttle(&mut self) {
        loop {
            let mut to_server = Vec::new();
            while self.client.wants_write() {
                self.client.write_tls(&mut to_server).unwrap();
            }
            let to_client = taken(&mut self.server);
            if to_server.is_empty() && to_client.is_empty() {
                return;
            }
            for piece in to_server.chunks(self.piece) {
                self.server_receives(piece);
            }
            let mut rest = &to_client[..];
            while !rest.is_empty() {
                self.client.read_tls(&mut rest).unwrap();
                self.client.process_new_packets().unwrap();
            }
        }
    }

    fn server_receives(&mut self, bytes: &[u8]) {
        let mut ciphertext = [self.server.partial(), bytes].concat();
        let mut memory = Vec::new();
        let plain = match self.server.receive(&mut ciphertext, &mut memory) {
            Plain::InPlace(range) => &ciphertext[range],
            Plain::Copied => &memory,
        };
        self.plain.extend_from_slice(plain);
        self.server.give_back(&mut Lent::default());
    }

    fn heard_by_client(&mut self) -> Vec<u8> {
        let mut heard = Vec::new();
        let mut buffer = [0; 1000];
        while let Ok(count) = self.client.reader().read(&mut buffer) {
            if count == 0 {
                break;
            }
            heard.extend_from_slice(&buffer[..count]);
        }
        heard
    }
}

#[test]
fn what_is_said_is_heard_in_both_versions_and_an_idle_session_keeps_no_buffer() {
    for mut pair in Pair::every_kind() {
        assert_eq!(pair.client.alpn_protocol(), Some(&b"http/1.1"[..]));
        pair.client.writer().write_all(b"up").unwrap();
        seal(&mut pair.server, b"down").unwrap();
        pair.shuttle();
        assert_eq!(pair.plain, b"up");
        assert_eq!(pair.heard_by_client(), b"down");
        assert!(pair.server.pending.is_none());
    }
}

#[test]
fn records_may_come_in_any_pieces() {
    for piece in [1, 2, 7, 4096] {
        let mut pair = Pair::new(piece == 7);
        pair.piece = piece;
        pair.shuttle();
        let said: Vec<u8> = (0..100_000_u32).map(|i| i as u8).collect();
        for part in said.chunks(50_000) {
            pair.client.writer().write_all(part).unwrap();
            pair.shuttle();
        }
        assert!(pair.plain == said, "in pieces of {piece}");
        assert!(pair.server.partial().is_empty());
    }
}

#[test]
fn a_half_record_is_kept_and_sealing_meanwhile_does_not_disturb_it() {
    for mut pair in [Pair::open(false), Pair::open_kept(false)] {
        pair.client.writer().write_all(&[7; 9000]).unwrap();
        let mut record = Vec::new();
        pair.client.write_tls(&mut record).unwrap();
        let (first, second) = record.split_at(5000);
        pair.server_receives(first);
        assert_eq!((pair.plain.len(), pair.server.partial().len()), (0, 5000));
        seal(&mut pair.server, b"meanwhile").unwrap();
        pair.server_receives(second);
        assert_eq!(pair.plain, [7; 9000]);
        pair.shuttle();
        assert_eq!(pair.heard_by_client(), b"meanwhile");
    }
}

#[test]
fn half_a_handshake_message_is_kept_and_sealing_meanwhile_does_not_disturb_it() {
    // A KeyUpdate (RFC 8446 §4.6.3) in two records, which the client here never
    // sends; but a Finished in two is the same to the session.
    for mut pair in [Pair::open(false), Pair::open_kept(false)] {
        pair.client.refresh_traffic_keys().unwrap();
        pair.client.writer().write_all(b"new key").unwrap();
        let mut bytes = Vec::new();
        while pair.client.wants_write() {
            pair.client.write_tls(&mut bytes).unwrap();
        }
        for byte in bytes {
            pair.server_receives(&[byte]);
            seal(&mut pair.server, b"x").unwrap();
        }
        assert_eq!(pair.plain, b"new key");
        pair.shuttle();
        assert!(pair.heard_by_client().iter().all(|byte| *byte == b'x'));
    }
}

#[test]
fn both_ends_can_be_said() {
    for mut pair in Pair::every_kind() {
        seal(&mut pair.server, b"last").unwrap();
        pair.server.seal_end().unwrap();
        pair.client.writer().write_all(b"mine").unwrap();
        pair.client.send_close_notify();
        let mut bytes = Vec::new();
        while pair.client.wants_write() {
            pair.client.write_tls(&mut bytes).unwrap();
        }
        bytes.extend_from_slice(b"what follows means nothing");
        pair.server_receives(&bytes);
        assert!(pair.server.has_ended() && pair.server.is_over());
        assert_eq!(pair.plain, b"mine");
        assert!(pair.server.fault().is_none() && pair.server.partial().is_empty());
        let mut rest = &taken(&mut pair.server)[..];
        pair.client.read_tls(&mut rest).unwrap();
        let state = pair.client.process_new_packets().unwrap();
        assert!(state.peer_has_closed());
        assert_eq!(pair.heard_by_client(), b"last");
    }
}

#[test]
fn a_bad_record_is_a_fault_after_what_came_before_it_and_is_told_by_an_alert() {
    for mut pair in [Pair::open(false), Pair::open_kept(false)] {
        pair.client.writer().write_all(b"good").unwrap();
        let mut bytes = Vec::new();
        pair.client.write_tls(&mut bytes).unwrap();
        pair.client.writer().write_all(b"bad").unwrap();
        let bad = bytes.len();
        pair.client.write_tls(&mut bytes).unwrap();
        bytes[bad + 7] ^= 1;
        pair.server_receives(&bytes);
        assert_eq!(pair.plain, b"good");
        let fault = pair.server.fault();
        assert!(matches!(
            fault,
            Some(
                SessionError::Rustls(Error::DecryptError) | SessionError::Record(Fault::BadRecord)
            )
        ));
        let mut rest = &taken(&mut pair.server)[..];
        pair.client.read_tls(&mut rest).unwrap();
        let error = pair.client.process_new_packets().unwrap_err();
        assert!(matches!(error, Error::AlertReceived(rustls::AlertDescription::BadRecordMac)));
    }
}

#[test]
fn plain_http_is_a_fault_and_answered_by_an_alert() {
    let mut pair = Pair::new(false);
    pair.server_receives(b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n");
    assert!(pair.server.fault().is_some());
    assert_eq!(pair.server.unsent().first(), Some(&21), "an alert record");
    assert!(pair.plain.is_empty());
}

#[test]
fn before_the_handshake_nothing_can_be_said() {
    let mut pair = Pair::new(false);
    assert!(seal(&mut pair.server, b"too early").is_err());
    assert!(pair.server.seal_end().is_err());
    assert!(pair.server.unsent().is_empty());
}

#[test]
fn only_the_domain_is_served_and_nothing_without_a_certificate() {
    let (certificate, root) = certificate();
    let served = Handshakes::new(Some("Relay")).unwrap();
    let others = Handshakes::new(Some("relay.example")).unwrap();
    for (config, works) in [
        (served.with(Some(&certificate)), true),
        (served.with(None), false),
        (others.with(Some(&certificate)), false),
    ] {
        let mut pair = Pair::new(false);
        let name = ServerName::try_from("relay").unwrap();
        pair.client = ClientConnection::new(client_config(root.clone(), false), name).unwrap();
        pair.server = Session::new(config, None).unwrap();
        let mut hello = Vec::new();
        pair.client.write_tls(&mut hello).unwrap();
        pair.server_receives(&hello);
        assert_eq!(pair.server.fault().is_none(), works);
    }
    assert!(certificate.is_for("relay") && !certificate.is_for("relay.example"));
}

/// The alert for a client that asks for `asked` where only `served` is served.
fn heard_when_asking(asked: &str, served: &str, record: usize) -> Option<rustls::AlertDescription> {
    let (certificate, root) = certificate();
    let mut config = Arc::unwrap_or_clone(client_config(root, false));
    // The certificate is for another name than some ask for: what matters is the alert.
    config.enable_sni = !asked.is_empty();
    let name = if asked.is_empty() { "relay" } else { asked };
    let mut pair = Pair::new(false);
    let name = ServerName::try_from(name).unwrap().to_owned();
    pair.client = ClientConnection::new(Arc::new(config), name).unwrap();
    let config = Handshakes::new(Some(served)).unwrap().with(Some(&certificate));
    pair.server = Session::new(config, Some(served.into())).unwrap();
    let mut hello = Vec::new();
    pair.client.write_tls(&mut hello).unwrap();
    let (header, message) = hello.split_at(5);
    for fragment in message.chunks(record) {
        let len = u16::try_from(fragment.len()).unwrap().to_be_bytes();
        pair.server_receives(&[&header[..3], &len[..], fragment].concat());
    }
    let expected = (!asked.is_empty()).then_some(asked);
    assert_eq!(pair.server.server_name(), expected, "{asked} in records of {record}");
    let mut rest = pair.server.unsent();
    while !rest.is_empty() {
        pair.client.read_tls(&mut rest).unwrap();
        match pair.client.process_new_packets() {
            Err(Error::AlertReceived(alert)) => return Some(alert),
            _ => continue,
        }
    }
    None
}

#[test]
fn a_name_that_is_not_served_hears_unrecognized_name_and_no_name_is_served() {
    use rustls::AlertDescription::UnrecognisedName;
    for record in [16 * 1024, 100, 1] {
        assert_eq!(heard_when_asking("other", "relay", record), Some(UnrecognisedName));
        assert_eq!(heard_when_asking("relay", "Relay.", record), None);
        assert_eq!(heard_when_asking("", "relay", record), None);
    }
}

/// Where the name is found without rustls, rustls finds the same; and in every plain hello it
/// is found.
#[test]
fn the_name_in_a_hello_is_the_one_that_rustls_finds() {
    let (_, root) = certificate();
    let mut rng = StdRng::seed_from_u64(1);
    let (mut plain, mut same) = (0, 0);
    for name in ["relay", "relay.example", "RELAY.example", "127.0.0.1", ""] {
        for tls12 in [false, true] {
            let mut config = Arc::unwrap_or_clone(client_config(root.clone(), tls12));
            config.enable_sni = !name.is_empty();
            let asked = if name.is_empty() { "relay" } else { name };
            let asked = ServerName::try_from(asked).unwrap().to_owned();
            let mut client = ClientConnection::new(Arc::new(config), asked).unwrap();
            let mut hello = Vec::new();
            client.write_tls(&mut hello).unwrap();
            let found = hello::find_name(&hello).map(hello::Hello::Complete);
            assert_eq!(found, Some(hello::parse(&hello)), "{name}");
            plain += 1;
            for _ in 0..2_000 {
                let mut damaged = hello.clone();
                for _ in 0..rng.random_range(1..3) {
                    let at = rng.random_range(0..damaged.len());
                    damaged[at] = rng.random();
                }
                let found = hello::find_name(&damaged).map(hello::Hello::Complete);
                let expected = hello::parse(&damaged);
                // What is malformed elsewhere is found so by the session.
                if found.is_some() && expected != hello::Hello::Malformed {
                    assert_eq!(found, Some(expected), "{name}: {damaged:?}");
                    same += 1;
                }
            }
        }
    }
    assert!(plain == 10 && same > 1_000, "{same}");
    assert_eq!(hello::find_name(b""), None);
}

#[test]
fn a_hello_that_is_not_complete_is_kept_and_costs_no_more_than_its_bytes() {
    let mut pair = Pair::new(false);
    let mut hello = Vec::new();
    pair.client.write_tls(&mut hello).unwrap();
    let (front, last) = hello.split_at(hello.len() - 1);
    pair.server_receives(front);
    assert_eq!(pair.server.partial(), front);
    assert!(pair.server.unsent().is_empty());
    assert!(pair.server.pending.as_ref().unwrap().partial.capacity() <= hello.len());
    pair.server_receives(last);
    assert!(pair.server.partial().is_empty() && !pair.server.unsent().is_empty());
    pair.shuttle();
    assert!(!pair.server.is_handshaking() && pair.server.pending.is_none());
}

#[test]
fn a_hello_without_end_is_left_to_the_session() {
    let mut pair = Pair::new(false);
    // One handshake message of 64 KiB in records of a byte each.
    let mut received = 0;
    while pair.server.fault().is_none() && received < 100_000 {
        let byte = if received == 0 { 1 } else { 0xff };
        pair.server_receives(&[22, 3, 1, 0, 1, byte]);
        received += 6;
        assert!(pair.server.partial().len() <= OWED_MAX + RECORD_MAX);
    }
}

#[test]
fn a_challenge_has_a_certificate_of_its_own_and_others_notice_nothing() {
    let (certificate, root) = certificate();
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["relay".into()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
    let challenge =
        rustls::sign::CertifiedKey::from_der(vec![cert.der().clone()], key, &provider()).unwrap();
    let handshakes = Handshakes::new(Some("relay")).unwrap();
    let during = handshakes.with_challenge(Some(&certificate), Arc::new(challenge.clone()));
    let first = handshakes.with_challenge(None, Arc::new(challenge));
    let after = handshakes.with(Some(&certificate));
    let (http, acme) = ("http/1.1", "acme-tls/1");
    for (config, protocols, root, expected) in [
        (&during, vec![acme], cert.der(), Some(true)),
        (&first, vec![acme], cert.der(), Some(true)),
        (&first, vec![http], &root, None),
        (&during, vec![http], &root, Some(false)),
        (&during, vec![], &root, Some(false)),
        // RFC 8737 §3: a challenge comes with no other protocol.
        (&during, vec![acme, http], &root, Some(false)),
        (&after, vec![acme], &root, None),
        (&after, vec![http], &root, Some(false)),
    ] {
        for tls12 in [false, true] {
            let mut client = Arc::unwrap_or_clone(client_config(root.clone(), tls12));
            client.alpn_protocols = protocols.iter().map(|it| it.as_bytes().to_vec()).collect();
            let name = ServerName::try_from("relay").unwrap();
            let mut pair = Pair::new(tls12);
            pair.client = ClientConnection::new(Arc::new(client), name).unwrap();
            pair.server = Session::new(Arc::clone(config), None).unwrap();
            if expected.is_some() {
                pair.shuttle();
                assert!(!pair.server.is_handshaking());
            } else {
                let mut hello = Vec::new();
                pair.client.write_tls(&mut hello).unwrap();
                pair.server_receives(&hello);
                assert!(pair.server.fault().is_some());
            }
            let is_challenge = expected.unwrap_or(false);
            assert_eq!(pair.server.is_challenge(), is_challenge, "{protocols:?} {tls12}");
        }
    }
}

#[test]
fn a_session_resumes_with_a_ticket_even_after_a_reload() {
    for tls12 in [false, true] {
        let (certificate, root) = certificate();
        let handshakes = Handshakes::new(None).unwrap();
        let client = client_config(root, tls12);
        let kinds = [0, 1].map(|_| {
            let name = ServerName::try_from("relay").unwrap();
            let mut pair = Pair::new(tls12);
            pair.client = ClientConnection::new(Arc::clone(&client), name).unwrap();
            pair.server = Session::new(handshakes.with(Some(&certificate)), None).unwrap();
            pair.shuttle();
            pair.client.handshake_kind().unwrap()
        });
        assert_eq!(kinds, [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed]);
    }
}

/// For any change to a peer's bytes, and any pieces: a session continues or has one fault,
/// stays within its memory limits, and never panics.
#[test]
fn damage_anywhere_is_a_fault_or_nothing() {
    let mut faults = 0;
    for seed in 0..400 {
        let mut rng = StdRng::seed_from_u64(seed);
        let is_open = rng.random();
        let tls12 = rng.random();
        let mut pair = match (is_open, seed % 3) {
            (true, 0) => Pair::open_kept(tls12),
            (true, _) => Pair::open(tls12),
            (false, _) => Pair::new(tls12),
        };
        if is_open {
            for _ in 0..rng.random_range(1..5) {
                let said = vec![7; rng.random_range(1..3000)];
                pair.client.writer().write_all(&said).unwrap();
            }
            pair.client.send_close_notify();
        }
        let mut bytes = Vec::new();
        while pair.client.wants_write() {
            pair.client.write_tls(&mut bytes).unwrap();
        }
        for _ in 0..rng.random_range(0..4) {
            let at = rng.random_range(0..bytes.len());
            match rng.random_range(0..3) {
                0 => bytes[at] = rng.random(),
                1 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, rng.random()),
            }
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() && !pair.server.is_over() {
            let (piece, more) = rest.split_at(rng.random_range(1..=rest.len()));
            rest = more;
            pair.server_receives(piece);
            assert!(pair.server.partial().len() <= OWED_MAX + RECORD_MAX, "seed {seed}");
            if is_open {
                // It may fail once the session is over.
                let _ = seal(&mut pair.server, b"meanwhile");
            }
        }
        faults += u32::from(pair.server.fault().is_some());
        let _ = pair.server.seal_end();
    }
    assert!((50..350).contains(&faults), "{faults}");
}

#[test]
fn bytes_behind_the_handshake_are_not_shown_to_rustls_however_they_arrive() {
    for tls12 in [false, true] {
        for piece in [1, 3, 50, usize::MAX] {
            let mut pair = Pair::new(tls12);
            pair.piece = piece;
            let mut hello = Vec::new();
            pair.client.write_tls(&mut hello).unwrap();
            for piece in hello.chunks(piece) {
                pair.server_receives(piece);
            }
            let flight = taken(&mut pair.server);
            pair.client.read_tls(&mut &flight[..]).unwrap();
            pair.client.process_new_packets().unwrap();
            // Data and KeyUpdates in the same flight as the client's Finished, or in TLS 1.2,
            // where the server's comes last, as soon as it has come.
            pair.client.writer().write_all(b"early").unwrap();
            if !tls12 {
                pair.client.refresh_traffic_keys().unwrap();
                pair.client.writer().write_all(b" bird").unwrap();
            }
            pair.shuttle();
            assert!(matches!(pair.server.state, State::Rest(_)), "{tls12} {piece}");
            seal(&mut pair.server, b"worm").unwrap();
            pair.shuttle();
            assert_eq!(pair.plain, if tls12 { &b"early"[..] } else { b"early bird" });
            assert_eq!(pair.heard_by_client(), b"worm");
        }
    }
}

#[test]
fn a_session_whose_secrets_differ_from_its_keys_ends() {
    let (certificate, root) = certificate();
    let config = Handshakes::new(None).unwrap().with(Some(&certificate));
    let mut config = Arc::unwrap_or_clone(config);
    config.key_log = Arc::new(extract::tests::Forger);
    let mut pair = Pair::with(Arc::new(config), root, false);
    pair.shuttle();
    assert!(pair.server.fault().is_some() && !pair.server.is_handshaking());
    assert!(seal(&mut pair.server, b"x").is_err() && pair.server.seal_end().is_err());
    assert!(pair.server.unsent().len() < 500, "at most the ticket");
    // The next one stays in rustls.
    let mut next = Pair::new(false);
    next.shuttle();
    assert!(matches!(next.server.state, State::Kept(_)));
}

#[test]
fn several_queued_messages_are_full_records() {
    for mut pair in Pair::every_kind() {
        let (one, two) = (vec![1; 10_000], vec![2; 130_000]);
        let mut heard = 0;
        let mut left = [&one[..], &two[..]];
        while left.iter().any(|part| !part.is_empty()) {
            let most = [SEAL_SLOW, SEAL_MAX, usize::MAX][heard % 3];
            let mut slices = Slices::default();
            slices[1..3].copy_from_slice(&left);
            let count = pair.server.seal(slices, most, &mut Vec::new()).unwrap();
            let is_rest = matches!(pair.server.state, State::Rest(_));
            let most = if is_rest { most.min(SEAL_MAX) } else { RECORD_MAX };
            assert_eq!(count, left.iter().map(|part| part.len()).sum::<usize>().min(most));
            let from_first = count.min(left[0].len());
            left = [&left[0][from_first..], &left[1][count - from_first..]];
            let records = records(pair.server.unsent());
            assert!(records.iter().rev().skip(1).all(|len| *len > RECORD_MAX), "{records:?}");
            let sent = taken(&mut pair.server);
            let mut rest = &sent[..];
            while !rest.is_empty() {
                pair.client.read_tls(&mut rest).unwrap();
                pair.client.process_new_packets().unwrap();
                heard += pair.heard_by_client().len();
            }
        }
        assert_eq!(heard, 140_000);
    }
}

/// The lengths of records.
fn records(mut bytes: &[u8]) -> Vec<usize> {
    let mut lens = Vec::new();
    while let [_, _, _, high, low, rest @ ..] = bytes {
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        lens.push(len);
        bytes = &rest[len..];
    }
    lens
}

#[test]
fn an_answer_waits_while_output_is_stuck_and_leaves_with_the_next_output() {
    let mut pair = Pair::open(false);
    seal(&mut pair.server, b"stuck").unwrap();
    let stuck = pair.server.unsent().len();
    // Twice: the client asks for an answer each time it renews its own key.
    for _ in 0..40 {
        pair.client.refresh_traffic_keys().unwrap();
        pair.client.writer().write_all(b"x").unwrap();
        let mut bytes = Vec::new();
        while pair.client.wants_write() {
            pair.client.write_tls(&mut bytes).unwrap();
        }
        pair.server_receives(&bytes);
        assert!(pair.server.fault().is_none());
        assert_eq!(pair.server.unsent().len(), stuck);
    }
    pair.shuttle();
    seal(&mut pair.server, b" no more").unwrap();
    pair.shuttle();
    assert_eq!(pair.heard_by_client(), b"stuck no more");
}

/// The answer to a ClientHello costs a signature, and is not read.
#[test]
fn a_handshake_of_a_peer_that_has_hung_up_is_not_answered() {
    for tls12 in [false, true] {
        let mut pair = Pair::new(tls12);
        pair.server.on_hang_up();
        pair.shuttle();
        let fault = pair.server.fault().map(|fault| fault.to_string()).unwrap_or_default();
        assert!(fault.contains("the peer disconnected"), "{fault}");
        assert!(pair.client.is_handshaking() && !pair.client.wants_write());
        assert!(pair.server.unsent().is_empty());
    }
}
