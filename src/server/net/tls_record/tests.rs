//! TLS record layer: test vectors, and cases where the rules say what must happen. The
//! comparison with rustls is in `differential`.

mod differential;

use std::collections::HashSet;

use super::keys::Counter;
use super::messages::{KEY_UPDATES_MAX, USER_CANCELED, WARNINGS_MAX};
use super::*;

/// Both ends of a session.
fn pair(version: Version, suite: Suite) -> [RecordLayer; 2] {
    let (secrets, len) = ([[7; SECRET_MAX], [8; SECRET_MAX]], suite.secret_len());
    let (up, down) = (&secrets[0][..], &secrets[1][..]);
    let keys = |it: &'static [u8; 2], iv: &'static [u8; 2]| {
        move |n: usize| (0, vec![it[n]; suite.key_len()], vec![iv[n]; IV])
    };
    let keys = keys(&[1, 2], &[3, 4]);
    let end = |send: usize| match version {
        Version::Tls13 => {
            let both = [(0, &up[..len]), (0, &down[..len])];
            RecordLayer::tls13(suite, both[send], both[1 - send]).unwrap()
        }
        Version::Tls12 => {
            let both = [keys(0), keys(1)];
            let [send, receive] =
                [send, 1 - send].map(|n| (both[n].0, &both[n].1[..], &both[n].2[..]));
            RecordLayer::tls12(suite, send, receive).unwrap()
        }
    };
    [end(0), end(1)]
}

fn every_kind() -> impl Iterator<Item = (Version, Suite)> {
    let versions = [Version::Tls12, Version::Tls13];
    versions.into_iter().flat_map(|version| Suite::ALL.map(|suite| (version, suite)))
}

/// A record of this type and content.
fn record(end: &mut RecordLayer, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut output = Vec::new();
    let key = end.send.key(end.suite);
    end.protect(&key, kind, |output| output.extend_from_slice(content), &mut output).unwrap();
    output
}

fn data(end: &mut RecordLayer, content: &[u8]) -> Vec<u8> {
    record(end, DATA, content)
}

fn key_update(end: &mut RecordLayer, request: u8) -> Vec<u8> {
    let output = record(end, HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, request]);
    end.send.update(end.suite);
    output
}

/// The data, and what was answered.
fn open(end: &mut RecordLayer, input: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut memory, mut replies) = (input.to_vec(), Vec::new());
    let Opened { used, plain } = end.open(&mut memory, &mut replies);
    assert!(end.is_over() || used == input.len(), "{:?}", end.fault());
    (memory[..plain].to_vec(), replies)
}

fn hear(end: &mut RecordLayer, input: &[u8]) -> Vec<u8> {
    open(end, input).0
}

/// The alert that the sender of `input` hears, and the fault behind it.
fn refusal(ends: &mut [RecordLayer; 2], input: &[u8]) -> (Option<Fault>, Option<Fault>) {
    let [peer, own] = ends;
    let (_, replies) = open(own, input);
    open(peer, &replies);
    (own.fault(), peer.fault())
}

/// Whether these are the keys and ivs in use, to send and to receive.
fn has_keys(end: &RecordLayer, send: (&[u8], &[u8]), receive: (&[u8], &[u8])) -> bool {
    end.send.is(end.suite, send) && end.receive.is(end.suite, receive)
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|two| (16 * two[0] + two[1]) as u8).collect()
}

/// RFC 8448 §3: secrets, keys, and the records behind the handshake.
#[test]
fn the_vectors_of_rfc_8448() {
    let client_secret = hex("9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5");
    let server_secret = hex("a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643");
    // The server's first record is a ticket, which belongs to the handshake here.
    let ends = [(0, &client_secret[..]), (1, &server_secret[..])];
    let sides = [(ends[0], ends[1]), (ends[1], ends[0])];
    let [mut client, mut server] =
        sides.map(|(send, receive)| RecordLayer::tls13(Suite::Aes128Gcm, send, receive).unwrap());
    let client_keys =
        (&hex("17422dda596ed5d9acd890e3c63f5051")[..], &hex("5b78923dee08579033e523d9")[..]);
    let server_keys =
        (&hex("9f02283b6c9c07efc26bb9f2ac92e356")[..], &hex("cf782b88dd83549aadf1e984")[..]);
    assert!(
        has_keys(&client, client_keys, server_keys) && has_keys(&server, server_keys, client_keys)
    );
    assert!(
        !has_keys(&client, server_keys, client_keys)
            && !has_keys(&client, client_keys, client_keys)
    );

    let known = |secret, (key, iv)| Known { sequence: 0, secret, key, iv };
    let other = (client_keys.0, server_keys.1);
    for (keys, is_known) in [(client_keys, true), (server_keys, false), (other, false)] {
        let sides = [known(&client_secret, keys), known(&server_secret, server_keys)];
        let layer = RecordLayer::tls13_known(Suite::Aes128Gcm, sides[0], sides[1]);
        assert_eq!(layer.is_some(), is_known);
        assert_eq!(
            RecordLayer::tls13_known(Suite::Aes128Gcm, sides[1], sides[0]).is_some(),
            is_known
        );
    }

    let text: Vec<u8> = (0..50).collect();
    let said = [
        (
            &mut client,
            "17 03 03 00 43 a2 3f 70 54 b6 2c 94 d0 af fa fe 82 28 ba 55 cb ef ac ea 42
            f9 14 aa 66 bc ab 3f 2b 98 19 a8 a5 b4 6b 39 5b d5 4a 9a 20 44 1e 2b 62 97 4e 1f 5a 62
            92 a2 97 70 14 bd 1e 3d ea e6 3a ee bb 21 69 49 15 e4",
        ),
        (
            &mut server,
            "17 03 03 00 43 2e 93 7e 11 ef 4a c7 40 e5 38 ad 36 00 5f c4 a4 69 32 fc 32
            25 d0 5f 82 aa 1b 36 e3 0e fa f9 7d 90 e6 df fc 60 2d cb 50 1a 59 a8 fc c4 9c 4b f2 e5
            f0 a2 1c 00 47 c2 ab f3 32 54 0d d0 32 e1 67 c2 95 5d",
        ),
    ];
    for (end, expected) in said {
        let mut output = Vec::new();
        end.seal(&[&text[..10], &[], &text[10..]], &mut output).unwrap();
        assert_eq!(output, hex(expected));
    }
    let mut ends = [Vec::new(), Vec::new()];
    client.seal_end(&mut ends[0]);
    server.seal_end(&mut ends[1]);
    assert_eq!(
        ends[0],
        hex("17 03 03 00 13 c9 87 27 60 65 56 66 b7 4d 7f f1 15 3e fd 6d b6 d0 b0 e3")
    );
    assert_eq!(
        ends[1],
        hex("17 03 03 00 13 b5 8f d6 71 66 eb f5 99 d2 47 20 cf be 7e fa 7a 88 64 a9")
    );
}

#[test]
fn what_is_sealed_is_opened_in_pieces_of_any_size() {
    for (version, suite) in every_kind() {
        let [mut peer, mut own] = pair(version, suite);
        let text: Vec<u8> = (0..100_000_u32).map(|i| (i / 7) as u8).collect();
        let mut sent = Vec::new();
        peer.seal(&[&text[..40_000], &text[40_000..40_001], &text[40_001..]], &mut sent).unwrap();
        peer.seal(&[], &mut sent).unwrap();
        let overhead = sent.len() - text.len();
        assert_eq!(overhead % 7, 0, "seven records, all but the last full");
        for piece in [1000, 20_000, sent.len()] {
            let saved = own.save().unwrap();
            let mut end = RecordLayer::restore(&saved).unwrap();
            let (mut heard, mut waiting) = (Vec::new(), Vec::new());
            for piece in sent.chunks(piece) {
                waiting.extend_from_slice(piece);
                let Opened { used, plain } = end.open(&mut waiting, &mut Vec::new());
                heard.extend_from_slice(&waiting[..plain]);
                waiting.drain(..used);
            }
            assert!(heard == text && waiting.is_empty(), "{version:?} {suite:?} {piece}");
        }
        own.seal(&[b"back"], &mut Vec::new()).unwrap();
    }
}

#[test]
fn a_number_is_counted_before_it_is_used_and_the_last_one_is_never_used() {
    let last = (1 << 48) - 1;
    let mut counter = Counter::new(last - 1).unwrap();
    assert_eq!(counter.next().unwrap().to_bytes(), (last - 1).to_be_bytes());
    assert_eq!(counter.value(), last);
    assert!(counter.next().is_none() && counter.next().is_none());
    assert!(Counter::new(last + 1).is_none() && Counter::new(u64::MAX).is_none());

    let [mut peer, _] = pair(Version::Tls13, Suite::Aes128Gcm);
    let key = peer.send.key(peer.suite);
    let mut output = Vec::new();
    let before = peer.send.counter.value();
    let _ = peer.protect(&key, DATA, |_| (), &mut output);
    assert_eq!(peer.send.counter.value(), before + 1);
}

#[test]
fn explicit_nonces_are_unique_also_after_a_restore() {
    for suite in [Suite::Aes128Gcm, Suite::Aes256Gcm] {
        let [mut peer, mut own] = pair(Version::Tls12, suite);
        let mut nonces = HashSet::new();
        for _ in 0..100 {
            let mut sent = Vec::new();
            peer.seal(&[&[1; 20_000]], &mut sent).unwrap();
            for start in [0, HEADER + EXPLICIT + RECORD_MAX + TAG] {
                assert!(nonces.insert(sent[start + HEADER..][..EXPLICIT].to_vec()));
            }
            peer = RecordLayer::restore(&peer.save().unwrap()).unwrap();
            assert_eq!(hear(&mut own, &sent).len(), 20_000);
        }
    }
}

#[test]
fn any_changed_bit_is_refused_with_bad_record_mac_or_before() {
    for (version, suite) in every_kind() {
        let mut ends = pair(version, suite);
        let sent = data(&mut ends[0], b"good");
        for bit in 0..8 * sent.len() {
            let mut own = RecordLayer::restore(&ends[1].save().unwrap()).unwrap();
            let mut damaged = sent.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let Opened { plain, .. } = own.open(&mut damaged, &mut Vec::new());
            // A longer length: the record is incomplete.
            let is_longer = (24..40).contains(&bit) && own.fault().is_none();
            assert!(plain == 0 && (own.fault().is_some() || is_longer), "{version:?} {bit}");
            if bit >= 40 {
                assert_eq!(own.fault(), Some(Fault::BadRecord));
            }
        }
        let (own, peer) =
            refusal(&mut ends, &[&sent[..HEADER], &vec![0; sent.len() - HEADER]].concat());
        assert_eq!((own, peer), (Some(Fault::BadRecord), Some(Fault::Alert(20))));
    }
}

#[test]
fn a_record_counts_once_and_in_its_place() {
    for (version, suite) in every_kind() {
        let [mut peer, own] = pair(version, suite);
        let sent = [data(&mut peer, b"first"), data(&mut peer, b"second")];
        for order in [[0, 0], [1, 0]] {
            let mut own = RecordLayer::restore(&own.save().unwrap()).unwrap();
            let both = order.map(|n| &sent[n][..]).concat();
            own.open(&mut both.clone(), &mut Vec::new());
            assert_eq!(own.fault(), Some(Fault::BadRecord));
        }
    }
}

/// The type and padding of TLS 1.3 behind `content`: `protect` adds the last zero.
fn padded(end: &mut RecordLayer, kind: u8, content: &[u8], padding: usize) -> Vec<u8> {
    let content = [content, &[kind], &vec![0; padding - 1]].concat();
    record(end, 0, &content)
}

#[test]
fn lengths_at_the_limit() {
    for suite in Suite::ALL {
        let open_len = |sent: &dyn Fn(&mut RecordLayer) -> Vec<u8>| {
            let mut ends = pair(Version::Tls13, suite);
            let sent = sent(&mut ends[0]);
            let heard = hear(&mut ends[1], &sent).len();
            ends[1].fault().map_or(Ok(heard), Err)
        };
        let zeros = vec![0x55; RECORD_MAX + 300];
        assert_eq!(open_len(&|end| data(end, &zeros[..RECORD_MAX])), Ok(RECORD_MAX));
        assert_eq!(open_len(&|end| data(end, &zeros[..RECORD_MAX + 1])), Err(Fault::Overflow));
        // Padding counts.
        assert_eq!(
            open_len(&|end| padded(end, DATA, &zeros[..RECORD_MAX - 1], 1)),
            Ok(RECORD_MAX - 1)
        );
        assert_eq!(
            open_len(&|end| padded(end, DATA, &zeros[..RECORD_MAX], 1)),
            Err(Fault::Overflow)
        );
        // The most that a record may have, though this cipher has no use for it.
        assert_eq!(open_len(&|end| data(end, &zeros[..RECORD_MAX + 239])), Err(Fault::Overflow));
        for (version, most) in [(Version::Tls13, 256), (Version::Tls12, 24)] {
            for (len, fault) in [(most, None), (most + 1, Some(Fault::Overflow))] {
                let [_, mut own] = pair(version, suite);
                let [high, low] = ((RECORD_MAX + len) as u16).to_be_bytes();
                own.open(&mut [DATA, 3, 3, high, low], &mut Vec::new());
                assert_eq!(own.fault(), fault, "the header is enough");
            }
        }
        let [mut peer, mut own] = pair(Version::Tls12, suite);
        let longest = data(&mut peer, &zeros[..RECORD_MAX]);
        assert_eq!(hear(&mut own, &longest).len(), RECORD_MAX);
        let [mut peer, mut own] = pair(Version::Tls12, Suite::ChaCha20Poly1305);
        let too_long = data(&mut peer, &zeros[..RECORD_MAX + 1]);
        own.open(&mut too_long.clone(), &mut Vec::new());
        assert_eq!(own.fault(), Some(Fault::Overflow));
    }
}

#[test]
fn records_too_short_for_a_tag_are_not_authentic() {
    for (version, suite) in every_kind() {
        for len in 0..24 {
            let [_, mut own] = pair(version, suite);
            let input = [&[DATA, 3, 3, 0, len][..], &vec![0; usize::from(len)]].concat();
            own.open(&mut input.clone(), &mut Vec::new());
            assert_eq!(own.fault(), Some(Fault::BadRecord), "{version:?} {suite:?} {len}");
        }
    }
}

#[test]
fn empty_records_are_data_and_not_many_of_them() {
    for (version, suite) in every_kind() {
        let mut ends = pair(version, suite);
        for _ in 0..3 {
            for _ in 0..EMPTY_MAX {
                let sent = data(&mut ends[0], b"");
                assert_eq!(hear(&mut ends[1], &sent), b"");
            }
            let sent = data(&mut ends[0], b"x");
            assert_eq!(hear(&mut ends[1], &sent), b"x");
        }
        let sent: Vec<u8> = (0..=EMPTY_MAX).flat_map(|_| data(&mut ends[0], b"")).collect();
        assert_eq!(refusal(&mut ends, &sent), (Some(Fault::TooMany), Some(Fault::Alert(10))));
        for kind in [ALERT, HANDSHAKE] {
            let mut ends = pair(version, suite);
            let sent = record(&mut ends[0], kind, b"");
            assert_eq!(refusal(&mut ends, &sent).0, Some(Fault::Unexpected));
        }
    }
}

#[test]
fn padding_is_removed_and_there_must_be_a_type() {
    let mut ends = pair(Version::Tls13, Suite::ChaCha20Poly1305);
    for padding in [1, 7, 1000] {
        let sent = padded(&mut ends[0], DATA, b"padded\0\0", padding);
        assert_eq!(hear(&mut ends[1], &sent), b"padded\0\0");
        let sent = padded(&mut ends[0], DATA, b"", padding);
        assert_eq!(hear(&mut ends[1], &sent), b"");
    }
    for content in [&b""[..], &[0; 100]] {
        let mut ends = pair(Version::Tls13, Suite::Aes256Gcm);
        let sent = record(&mut ends[0], 0, content);
        assert_eq!(refusal(&mut ends, &sent), (Some(Fault::Unexpected), Some(Fault::Alert(10))));
    }
}

#[test]
fn only_data_alerts_and_key_updates_are_accepted() {
    for kind in 0..=u8::MAX {
        let mut ends = pair(Version::Tls13, Suite::Aes128Gcm);
        let sent = record(&mut ends[0], kind, &[2, 40]);
        let (own, _) = refusal(&mut ends, &sent);
        let expected = match kind {
            DATA => None,
            ALERT => Some(Fault::Alert(40)),
            // The type is the last byte that is not zero, so this is data of type 40.
            _ => Some(Fault::Unexpected),
        };
        assert_eq!(own, expected, "inner type {kind}");
        // In the clear, whatever else is in the record.
        for version in [Version::Tls12, Version::Tls13] {
            let [_, mut own] = pair(version, Suite::Aes128Gcm);
            own.open(&mut [kind, 3, 3, 0, 1], &mut Vec::new());
            let is_known =
                kind == DATA || version == Version::Tls12 && matches!(kind, ALERT | HANDSHAKE);
            assert_eq!(own.fault().is_none(), is_known, "{version:?}, outer type {kind}");
        }
    }
    for message in 0..=u8::MAX {
        let mut ends = pair(Version::Tls13, Suite::Aes128Gcm);
        let sent = record(&mut ends[0], HANDSHAKE, &[message, 0, 0, 1, 0]);
        let expected = (message != KEY_UPDATE).then_some(Fault::Unexpected);
        assert_eq!(refusal(&mut ends, &sent).0, expected, "handshake type {message}");
    }
}

#[test]
fn a_key_update_renews_the_key_and_is_answered_under_the_old_one_if_it_asks_for_that() {
    for suite in Suite::ALL {
        let mut ends = pair(Version::Tls13, suite);
        let old = ends[1].save().unwrap();
        let sent = [key_update(&mut ends[0], 0), data(&mut ends[0], b"new key")].concat();
        let (heard, replies) = open(&mut ends[1], &sent);
        assert_eq!((&heard[..], &replies[..]), (&b"new key"[..], &[][..]));
        assert_ne!(old.material[1], ends[1].save().unwrap().material[1]);
        assert_eq!(old.material[0], ends[1].save().unwrap().material[0]);

        let sent = key_update(&mut ends[0], 1);
        let (_, replies) = open(&mut ends[1], &sent);
        assert_ne!(old.material[0], ends[1].save().unwrap().material[0]);
        assert_eq!(ends[1].send.counter.value(), 0);
        // The peer still has the old key: it can read the answer, and then what follows.
        let mut rest = Vec::new();
        ends[1].seal(&[b"answered"], &mut rest).unwrap();
        assert_eq!(hear(&mut ends[0], &[replies, rest].concat()), b"answered");
    }
}

#[test]
fn a_key_update_may_be_cut_anywhere_but_nothing_may_come_between_or_behind_it() {
    for cut in 1..5 {
        let mut ends = pair(Version::Tls13, Suite::Aes128Gcm);
        let message = [KEY_UPDATE, 0, 0, 1, 0];
        let parts = [
            record(&mut ends[0], HANDSHAKE, &message[..cut]),
            record(&mut ends[0], HANDSHAKE, &message[cut..]),
        ];
        for part in parts {
            hear(&mut ends[1], &part);
            let saved = ends[1].save().unwrap();
            ends[1] = RecordLayer::restore(&saved).unwrap();
        }
        let (suite, peer) = (Suite::Aes128Gcm, &mut ends[0]);
        peer.send.update(suite);
        let sent = data(peer, b"new key");
        assert_eq!(hear(&mut ends[1], &sent), b"new key");

        for (kind, between) in [(DATA, &b"x"[..]), (ALERT, &[1, 90]), (ALERT, &[1, 0])] {
            let mut ends = pair(Version::Tls13, Suite::Aes128Gcm);
            let part = record(&mut ends[0], HANDSHAKE, &message[..cut]);
            let sent = [part, record(&mut ends[0], kind, between)].concat();
            assert_eq!(refusal(&mut ends, &sent).0, Some(Fault::Unexpected));
        }
    }
    // Two in one record, or one and the beginning of something.
    for behind in [&[KEY_UPDATE, 0, 0, 1, 0][..], &[KEY_UPDATE], &[0]] {
        let mut ends = pair(Version::Tls13, Suite::Aes128Gcm);
        let sent = record(&mut ends[0], HANDSHAKE, &[&[KEY_UPDATE, 0, 0, 1, 0], behind].concat());
        assert_eq!(refusal(&mut ends, &sent), (Some(Fault::Unexpected), Some(Fault::Alert(10))));
    }
    for (message, fault) in [
        ([KEY_UPDATE, 0, 0, 2, 0], Fault::Malformed),
        ([KEY_UPDATE, 1, 0, 1, 0], Fault::Malformed),
        ([KEY_UPDATE, 0, 0, 1, 2], Fault::Illegal),
    ] {
        let mut ends = pair(Version::Tls13, Suite::Aes128Gcm);
        let sent = record(&mut ends[0], HANDSHAKE, &message);
        assert_eq!(refusal(&mut ends, &sent).0, Some(fault));
    }
}

#[test]
fn key_updates_that_cross() {
    let [mut one, mut other] = pair(Version::Tls13, Suite::Aes256Gcm);
    for _ in 0..3 {
        let (first, second) = (key_update(&mut one, 1), key_update(&mut other, 1));
        let (_, from_one) = open(&mut one, &second);
        let (_, from_other) = open(&mut other, &first);
        let said = [from_one, data(&mut one, b"one")].concat();
        assert_eq!(hear(&mut other, &said), b"one");
        let said = [from_other, data(&mut other, b"other")].concat();
        assert_eq!(hear(&mut one, &said), b"other");
    }
}

#[test]
fn while_output_is_stuck_one_answer_waits_for_several_requests() {
    let [mut peer, mut own] = pair(Version::Tls13, Suite::Aes128Gcm);
    let mut stuck = data(&mut own, b"not sent yet");
    let before = stuck.len();
    for round in 0..100 {
        let mut sent = [key_update(&mut peer, 1), data(&mut peer, b"x")].concat();
        own.open(&mut sent, &mut stuck);
        assert!(own.fault().is_none() && stuck.len() == before, "round {round}");
        own = RecordLayer::restore(&own.save().unwrap()).unwrap();
    }
    let mut rest = Vec::new();
    own.seal(&[], &mut rest).unwrap();
    assert_eq!(rest.len(), HEADER + 5 + 1 + TAG, "one KeyUpdate");
    own.seal(&[b"more"], &mut rest).unwrap();
    assert_eq!(hear(&mut peer, &[stuck, rest].concat()), b"not sent yetmore");
}

#[test]
fn a_flood_of_key_updates_or_warnings_ends_the_session() {
    let mut ends = pair(Version::Tls13, Suite::Aes128Gcm);
    for _ in 0..3 {
        let sent: Vec<u8> =
            (0..KEY_UPDATES_MAX).flat_map(|_| key_update(&mut ends[0], 0)).collect();
        hear(&mut ends[1], &sent);
        // Without content it is no data.
        let sent = data(&mut ends[0], b"data");
        assert_eq!(hear(&mut ends[1], &sent), b"data");
    }
    let sent: Vec<u8> = (0..=KEY_UPDATES_MAX)
        .flat_map(|_| [key_update(&mut ends[0], 1), data(&mut ends[0], b"")].concat())
        .collect();
    assert_eq!(refusal(&mut ends, &sent).0, Some(Fault::TooMany));

    for (version, warning) in [(Version::Tls13, USER_CANCELED), (Version::Tls12, 41)] {
        let mut ends = pair(version, Suite::Aes128Gcm);
        let warn = |ends: &mut [RecordLayer; 2]| {
            let sent = record(&mut ends[0], ALERT, &[WARNING, warning]);
            refusal(ends, &sent).0
        };
        for _ in 0..WARNINGS_MAX {
            assert_eq!(warn(&mut ends), None);
        }
        assert_eq!(warn(&mut ends), Some(Fault::TooMany));
    }
}

#[test]
fn alerts() {
    for version in [Version::Tls12, Version::Tls13] {
        let is_13 = version == Version::Tls13;
        for (content, fault) in [
            (&[FATAL, 40][..], Some(Fault::Alert(40))),
            (&[WARNING, 41], is_13.then_some(Fault::Alert(41))),
            (&[FATAL, USER_CANCELED], Some(Fault::Alert(USER_CANCELED))),
            (&[WARNING, USER_CANCELED], None),
            (&[3, 0], Some(Fault::Illegal)),
            (&[0, 40], Some(Fault::Illegal)),
            (&[FATAL], Some(Fault::Malformed)),
            (&[WARNING, 0, 0], Some(Fault::Malformed)),
        ] {
            let mut ends = pair(version, Suite::ChaCha20Poly1305);
            let sent = record(&mut ends[0], ALERT, content);
            let (own, peer) = refusal(&mut ends, &sent);
            assert_eq!(own, fault, "{version:?} {content:?}");
            // An alert is not answered by one.
            let answer = fault.and_then(Fault::alert).map(Fault::Alert);
            assert_eq!(peer, answer, "{version:?} {content:?}");
        }
    }
}

#[test]
fn close_notify_ends_one_direction_and_what_follows_is_ignored() {
    for (version, suite) in every_kind() {
        let [mut peer, mut own] = pair(version, suite);
        let mut sent = data(&mut peer, b"last");
        peer.seal_end(&mut sent);
        peer.seal_end(&mut sent);
        let len = sent.len();
        sent.extend_from_slice(b"what follows means nothing");
        let Opened { used, plain } = own.open(&mut sent, &mut Vec::new());
        assert_eq!((used, &sent[..plain]), (len, &b"last"[..]));
        assert!(own.has_ended() && own.is_over() && own.fault().is_none());
        own = RecordLayer::restore(&own.save().unwrap()).unwrap();
        assert!(own.has_ended());
        let mut back = Vec::new();
        own.seal(&[b"still said"], &mut back).unwrap();
        assert_eq!(hear(&mut peer, &back), b"still said");
        assert_eq!(peer.seal(&[b"x"], &mut Vec::new()), Err(Fault::Internal));
        // A flush of what was sealed before.
        assert_eq!(peer.seal(&[b"", b""], &mut Vec::new()), Ok(()));
    }
}

#[test]
fn no_alert_follows_our_close_notify() {
    let [_, mut own] = pair(Version::Tls13, Suite::Aes128Gcm);
    own.seal_end(&mut Vec::new());
    let mut replies = Vec::new();
    own.open(&mut [ALERT, 3, 3, 0, 2], &mut replies);
    assert!(own.fault() == Some(Fault::Unexpected) && replies.is_empty());
}

#[test]
fn nothing_is_opened_or_sealed_after_a_fault() {
    let mut ends = pair(Version::Tls13, Suite::Aes128Gcm);
    let sent = [data(&mut ends[0], b"before"), vec![DATA, 3, 3, 0, 17], vec![0; 17]].concat();
    let (heard, alert) = open(&mut ends[1], &sent);
    assert_eq!((&heard[..], ends[1].fault()), (&b"before"[..], Some(Fault::BadRecord)));
    assert!(!alert.is_empty() && ends[1].save().is_none());
    let next = data(&mut ends[0], b"after");
    let mut output = Vec::new();
    assert_eq!(ends[1].open(&mut next.clone(), &mut output), Opened::default());
    assert_eq!(ends[1].seal(&[b"x"], &mut output), Err(Fault::BadRecord));
    ends[1].seal_end(&mut output);
    assert!(output.is_empty());
}

#[test]
fn a_renegotiation_is_refused_by_a_warning_once_however_it_is_cut() {
    let hello: Vec<u8> = [&[1, 0, 0x01, 0x2c][..], &[9; 300]].concat();
    for cut in [1, 2, 3, 4, 5, 100, 304] {
        let mut ends = pair(Version::Tls12, Suite::Aes256Gcm);
        let mut answers = Vec::new();
        for part in hello.chunks(cut) {
            let sent = record(&mut ends[0], HANDSHAKE, part);
            answers.extend(open(&mut ends[1], &sent).1);
            ends[1] = RecordLayer::restore(&ends[1].save().unwrap()).unwrap();
        }
        assert_eq!(answers.len(), HEADER + EXPLICIT + 2 + TAG);
        open(&mut ends[0], &answers);
        assert_eq!((ends[0].warnings, ends[0].fault()), (1, None), "cut at {cut}");
        let sent = data(&mut ends[0], b"as before");
        assert_eq!(hear(&mut ends[1], &sent), b"as before");
        let sent = record(&mut ends[0], HANDSHAKE, &hello);
        assert_eq!(refusal(&mut ends, &sent).0, Some(Fault::TooMany));
    }
    let mut ends = pair(Version::Tls12, Suite::Aes256Gcm);
    let sent = [record(&mut ends[0], HANDSHAKE, &hello[..200]), data(&mut ends[0], b"x")].concat();
    assert_eq!(refusal(&mut ends, &sent).0, Some(Fault::Unexpected));
    for (message, fault) in
        [([1, 1, 0, 0], Fault::Malformed), ([KEY_UPDATE, 0, 0, 1], Fault::Unexpected)]
    {
        let mut ends = pair(Version::Tls12, Suite::Aes256Gcm);
        let sent = record(&mut ends[0], HANDSHAKE, &message);
        assert_eq!(refusal(&mut ends, &sent).0, Some(fault));
    }
}

/// A session whose next record to send has this number, and its peer.
fn at(version: Version, suite: Suite, sequence: u64) -> [RecordLayer; 2] {
    let [own, peer] = pair(version, suite).map(|end| end.save().unwrap());
    let [mut own, mut peer] = [own, peer];
    own.sequences[0] = sequence;
    peer.sequences[1] = sequence;
    [own, peer].map(|saved| RecordLayer::restore(&saved).unwrap())
}

#[test]
fn a_key_of_aes_gcm_is_renewed_in_time_or_the_session_ends() {
    const MAX: u64 = 1 << 24;
    for suite in [Suite::Aes128Gcm, Suite::Aes256Gcm] {
        let [mut own, mut peer] = at(Version::Tls13, suite, MAX - 3);
        let mut sent = Vec::new();
        own.seal(&[&[5; 5 * RECORD_MAX]], &mut sent).unwrap();
        // Two records of data, the KeyUpdate, and three under the next key.
        assert_eq!(own.send.counter.value(), 3);
        let (heard, answer) = open(&mut peer, &sent);
        assert!(heard == [5; 5 * RECORD_MAX]);
        assert_eq!(own.receive.counter.value(), 0);
        // It was asked for one in return.
        let sent = [answer, data(&mut peer, b"back")].concat();
        assert_eq!(hear(&mut own, &sent), b"back");
        assert_eq!(own.receive.counter.value(), 1);

        let [mut own, mut peer] = at(Version::Tls12, suite, MAX - 2);
        let mut sent = Vec::new();
        let both = own.seal(&[&[5; RECORD_MAX + 1]], &mut sent);
        assert_eq!((both, own.fault()), (Err(Fault::Exhausted), Some(Fault::Exhausted)));
        assert_eq!(own.send.counter.value(), MAX);
        assert!(hear(&mut peer, &sent) == [5; RECORD_MAX] && peer.has_ended());
    }
    let [mut own, mut peer] = at(Version::Tls13, Suite::ChaCha20Poly1305, MAX - 1);
    let mut sent = Vec::new();
    own.seal(&[b"no limit here"], &mut sent).unwrap();
    assert_eq!(
        (hear(&mut peer, &sent), own.send.counter.value()),
        (b"no limit here".to_vec(), MAX)
    );
    let [mut own, _] = at(Version::Tls13, Suite::ChaCha20Poly1305, (1 << 48) - 1);
    assert!(own.seal(&[b"x"], &mut Vec::new()).is_err(), "no number is left");
}

#[test]
fn a_session_without_secrets_of_the_right_length_is_none() {
    for suite in Suite::ALL {
        for len in [0, 16, 31, 33, 47, 49] {
            let secret = &vec![0; len][..];
            assert!(RecordLayer::tls13(suite, (0, secret), (0, secret)).is_none());
            let iv = &[0; IV][..];
            assert!(
                len == suite.key_len()
                    || RecordLayer::tls12(suite, (0, secret, iv), (0, secret, iv)).is_none()
            );
        }
    }
    let key = &[0; 16][..];
    assert!(RecordLayer::tls12(Suite::Aes128Gcm, (0, key, &[0; 4]), (0, key, &[0; 4])).is_none());
}

#[test]
fn what_is_saved_must_be_that_of_a_session() {
    let saved = || pair(Version::Tls13, Suite::Aes128Gcm)[0].save().unwrap();
    assert!(RecordLayer::restore(&saved()).is_some());
    let damage: [fn(&mut Saved); 7] = [
        |it| it.version = 2,
        |it| it.suite = 0,
        |it| it.suite = 4,
        |it| it.facts.message_len = 5,
        |it| it.facts.message_len = 1,
        |it| it.facts.skip = 1,
        |it| it.sequences[1] = 1 << 48,
    ];
    for damage in damage {
        let mut saved = saved();
        damage(&mut saved);
        assert!(RecordLayer::restore(&saved).is_none());
    }
}

#[test]
fn secrets_are_not_printed() {
    let [own, _] = pair(Version::Tls13, Suite::Aes128Gcm);
    assert_eq!(format!("{own:?}"), "RecordLayer { .. }");
    assert_eq!(format!("{:?}", own.save()), "Some(Saved { .. })");
}
