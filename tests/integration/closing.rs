//! Closing: one close frame and a FIN, from whichever end the close starts.

use std::thread;

use crate::support::{
    NEVER, Opcode, Peer, Received, connect_reading_little, eventually, frame, header, healthz,
    millis, phone_head, relay,
};

/// A binary and a phone that are joined, each in turn the one to be tested.
fn pairs() -> [(Peer, Peer); 2] {
    let relay = relay(|config| config.timeouts.linger = NEVER);
    let pair = |server_id: &str| (Peer::binary(relay, server_id), Peer::phone(relay, server_id));
    let ((binary, phone), (other_binary, other_phone)) = (pair("one"), pair("two"));
    [(binary, phone), (other_phone, other_binary)]
}

#[test]
fn a_valid_close_is_echoed() {
    let payloads: [&[u8]; 5] =
        [b"", b"\x03\xe8", b"\x03\xe8done", b"\x0b\xb8", b"\x13\x87\xe2\x9c\x93 bye"];
    for payload in payloads {
        for (mut peer, mut other) in pairs() {
            // What is sent behind it is not read as a frame.
            peer.send_raw(&[frame(Opcode::Close, true, payload), b"garbage".into()].concat());
            let echoed = payload.split_first_chunk().map(|(code, reason)| {
                (u16::from_be_bytes(*code), String::from_utf8(reason.into()).unwrap())
            });
            assert_eq!(peer.receive(), Received::Close(echoed));
            assert_eq!(peer.receive(), Received::End);
            other.expect_alive();
        }
    }
}

#[test]
fn violations_of_rfc_6455_are_closed_with_their_code() {
    const MASK: [u8; 4] = [0; 4];
    let close = |code: u16| frame(Opcode::Close, true, &code.to_be_bytes());
    let start = frame(Opcode::Text, false, b"\"");
    let mut table: Vec<(&str, Vec<u8>, u16)> = vec![
        ("unmasked", b"\x81\x011".into(), 1002),
        ("unmasked ping", b"\x89\x00".into(), 1002),
        ("reserved bit 1", [b"\xc1\x81", &MASK[..], b"1"].concat(), 1002),
        ("reserved bit 3", [b"\x91\x81", &MASK[..], b"1"].concat(), 1002),
        ("reserved opcode 3", [b"\x83\x81", &MASK[..], b"1"].concat(), 1002),
        ("reserved opcode 15", [b"\x8f\x80", &MASK[..]].concat(), 1002),
        ("fragmented ping", [b"\x09\x80", &MASK[..]].concat(), 1002),
        ("ping of 126 bytes", header(0x89, 126), 1002),
        ("close of one byte", frame(Opcode::Close, true, b"x"), 1002),
        ("nothing to continue", frame(Opcode::Continuation, true, b"1"), 1002),
        ("text within a message", [start.clone(), frame(Opcode::Text, true, b"1")].concat(), 1002),
        ("text not UTF-8", frame(Opcode::Text, true, b"\"\xff\""), 1007),
        ("a surrogate", frame(Opcode::Text, true, b"\"\xed\xa0\x80\""), 1007),
        ("reason not UTF-8", frame(Opcode::Close, true, b"\x03\xe8\xff"), 1007),
        ("one byte too long", header(0x81, 256 * 1024 + 1), 1009),
        ("2^32 bytes", header(0x82, 1 << 32), 1009),
        ("2^62 bytes", header(0x81, 1 << 62), 1009),
        ("too long together", [start, header(0x80, 256 * 1024)].concat(), 1009),
    ];
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535] {
        table.push(("close code", close(code), 1002));
    }
    for (what, bytes, code) in table {
        for (mut peer, mut other) in pairs() {
            peer.send_raw(&bytes);
            let received = peer.receive();
            let is_right = matches!(&received, Received::Close(Some((own, _))) if *own == code);
            assert!(is_right, "{what} {bytes:x?}: {received:?}");
            assert_eq!(peer.receive(), Received::End, "{what}");
            other.expect_alive();
        }
    }
}

#[test]
fn lengths_need_not_be_minimal() {
    for (mut peer, _other) in pairs() {
        for length in [&b"\xfe\x00\x02"[..], b"\xff\x00\x00\x00\x00\x00\x00\x00\x02"] {
            peer.send_raw(&[&[0x82][..], length, &[0; 4], b"{}"].concat());
        }
        peer.send_raw(&[&b"\x89\xfe\x00\x02"[..], &[0; 4], b"hi"].concat());
        if peer.receive() != Received::Pong(b"hi".into()) {
            panic!("{peer:?}");
        }
    }
}

#[test]
fn a_phone_is_told_that_its_frame_is_not_json() {
    let relay = relay(|config| config.timeouts.linger = NEVER);
    let _binary = Peer::binary(relay, "home");
    let texts: [&[u8]; 12] = [
        b"",
        b" ",
        b"{",
        b"{}{}",
        b"nul",
        b"{\"a\":1,}",
        b"01",
        b"'a'",
        b"\"\t\"",
        b"\"\\x\"",
        b"\xef\xbb\xbf{}",
        b"NaN",
    ];
    for text in texts {
        let mut phone = Peer::phone(relay, "home");
        phone.send(Opcode::Text, text);
        phone.expect_close(1007, "frame is not valid JSON");
    }
    let mut phone = Peer::phone(relay, "home");
    phone.send(Opcode::Binary, b"\"\xff\"");
    phone.expect_close(1007, "frame is not valid JSON");
}

#[test]
fn a_message_that_does_not_end_in_time_is_closed_1008() {
    let relay = relay(|config| config.timeouts.message = millis(300));
    let mut binary = Peer::binary(relay, "home");
    let beginnings = [
        vec![0x81],
        header(0x81, 5),
        [header(0x81, 5), b"123".into()].concat(),
        header(0x89, 5),
        frame(Opcode::Text, false, b"\"begun"),
        // A whole control frame within the message does not end it.
        [frame(Opcode::Text, false, b"1"), frame(Opcode::Ping, true, b"")].concat(),
    ];
    let halted = beginnings.map(|beginning| {
        let mut phone = Peer::phone(relay, "home");
        phone.send_raw(&beginning);
        (beginning, phone)
    });
    for (beginning, mut phone) in halted {
        let received = loop {
            match phone.receive() {
                Received::Pong(_) => {}
                received => break received,
            }
        };
        let expected = Received::Close(Some((1008, "message timeout".into())));
        assert_eq!(received, expected, "{beginning:x?}");
    }
    // Between messages silence is allowed.
    binary.expect_alive();
}

#[test]
fn a_dripping_message_has_the_same_timeout_as_a_stopped_one() {
    let relay = relay(|config| config.timeouts.message = millis(300));
    let _binary = Peer::binary(relay, "home");
    let mut phone = Peer::phone(relay, "home");
    phone.stream.set_read_timeout(Some(millis(20))).unwrap();
    phone.send_raw(&header(0x81, 100_000));
    let mut received = None;
    eventually("the close", || {
        let _ = std::io::Write::write_all(&mut phone.stream, b" ");
        received = phone.try_receive().ok();
        received.is_some()
    });
    assert_eq!(received, Some(Received::Close(Some((1008, "message timeout".into())))));
}

#[test]
fn a_binary_closes_its_phones_with_the_code_it_names() {
    let relay = relay(|config| config.timeouts.linger = NEVER);
    let mut binary = Peer::binary(relay, "home");
    for (asked, sent) in [
        (1000, 1000),
        (1003, 1003),
        (1011, 1011),
        (1014, 1014),
        (3000, 3000),
        (4999, 4999),
        (1, 1011),
        (1004, 1011),
        (1005, 1011),
        (1006, 1011),
        (1015, 1011),
        (2999, 1011),
        (5000, 1011),
        (65_535, 1011),
    ] {
        let mut phone = Peer::phone(relay, "home");
        let id = &phone.id;
        binary.send_text(&format!(
            "{{\"close_code\":{asked},\"conn_id\":\"{id}\",\"frame\":\"bye\"}}"
        ));
        assert_eq!(phone.receive_text(), "\"bye\"");
        phone.expect_close(sent, "");

        let mut phone = Peer::phone(relay, "home");
        let id = &phone.id;
        binary
            .send_text(&format!("{{\"frame\":null,\"conn_id\":\"{id}\",\"close_code\":{asked}}}"));
        phone.expect_close(sent, "");
    }
    let mut phone = Peer::phone(relay, "home");
    binary.send_text(&format!("{{\"conn_id\":\"{}\",\"frame\":1,\"close_code\":0}}", phone.id));
    assert_eq!(phone.receive_text(), "1");
    phone.expect_alive();
}

#[test]
fn invalid_envelopes_are_dropped_and_the_binary_stays() {
    let relay = relay(|_| {});
    let mut binary = Peer::binary(relay, "home");
    let mut phone = Peer::phone(relay, "home");
    let id = phone.id.clone();
    let deep = format!("{}{}", "[".repeat(50_000), "]".repeat(50_000));
    for senseless in [
        String::new(),
        "[]".into(),
        format!("[\"{id}\",1]"),
        "not JSON".into(),
        "{\"frame\":1}".into(),
        "{\"conn_id\":null,\"frame\":1}".into(),
        "{\"conn_id\":\"\",\"frame\":1}".into(),
        "{\"conn_id\":7,\"frame\":1}".into(),
        "{\"conn_id\":\"nobody\",\"frame\":1}".into(),
        format!("{{\"conn_id\":\"{id}\"}}"),
        format!("{{\"conn_id\":\"{id}\",\"frame\":null}}"),
        format!("{{\"conn_id\":\"{id}\",\"frame\":1}}x"),
        format!("{{\"conn_id\":\"{id}\",\"frame\":1,\"frame\":2}}"),
        format!("{{\"conn_id\":\"{id}\",\"conn_id\":\"{id}\",\"frame\":1}}"),
        format!("{{\"Conn_id\":\"{id}\",\"frame\":1}}"),
        format!("{{\"conn_id\":\"{id}\",\"close_code\":\"4000\"}}"),
        format!("{{\"conn_id\":\"{id}\",\"close_code\":4000.0}}"),
        format!("{{\"conn_id\":\"{id}\",\"close_code\":4e3}}"),
        format!("{{\"conn_id\":\"{id}\",\"close_code\":-1}}"),
        format!("{{\"conn_id\":\"{id}\",\"close_code\":65536}}"),
        format!("{{\"conn_id\":\"{id}\",\"frame\":{deep}}}"),
        format!("{{\"conn_id\":\"{}\",\"frame\":1}}", id.to_uppercase() + "0"),
    ] {
        binary.send_text(&senseless);
        binary.send(Opcode::Binary, senseless.as_bytes());
    }
    binary.send(Opcode::Binary, b"{\"conn_id\":\"\xff\",\"frame\":1}");
    // Unknown fields, even twice, and escaped keys do no harm.
    binary.send_text(&format!(
        "{{\"x\":1,\"x\":[2],\"fr\\u0061me\":\"received\",\"\\u0063onn_id\":\"{id}\"}}"
    ));
    assert_eq!(phone.receive_text(), "\"received\"", "the first that made sense");
    binary.expect_alive();
}

#[test]
fn when_both_ends_close_at_once_each_receives_one_close() {
    let relay = relay(|_| {});
    let mut binary = Peer::binary(relay, "home");
    for _ in 0..50 {
        let mut phone = Peer::phone(relay, "home");
        let ask = format!("{{\"conn_id\":\"{}\",\"close_code\":4000}}", phone.id);
        thread::scope(|scope| {
            scope.spawn(|| binary.send_text(&ask));
            phone.send_close(3000);
            let Received::Close(Some((code, _))) = phone.receive() else { panic!("no close") };
            assert!(code == 4000 || code == 3000, "{code}");
            assert_eq!(phone.receive(), Received::End);
        });
    }
    binary.expect_alive();
}

#[test]
fn a_close_behind_a_backlog_comes_after_all_of_it() {
    let relay = relay(|_| {});
    let mut binary = Peer::binary(relay, "home");
    let mut phone = Peer::upgrade(connect_reading_little(relay), &phone_head("home"));
    for n in 0..40 {
        binary.send_to(&phone.id, &format!("\"{n}:{}\"", "x".repeat(64_000)));
    }
    binary.send_text(&format!(
        "{{\"conn_id\":\"{}\",\"frame\":\"last\",\"close_code\":4001}}",
        phone.id
    ));
    eventually("its place is free", || healthz(relay) == (1, 0));
    for n in 0..40 {
        let text = phone.receive_text();
        assert!(text.starts_with(&format!("\"{n}:x")), "{n} {text:.10}");
    }
    assert_eq!(phone.receive_text(), "\"last\"");
    phone.expect_close(4001, "");
}

#[test]
fn a_close_reaches_a_peer_that_has_sent_much_and_read_nothing() {
    for (mut peer, mut other) in pairs() {
        // Unmasked: 1002. Then more than any socket buffer holds.
        peer.send_raw(b"\x81\x011");
        peer.send_raw(&vec![b'x'; 3 << 20]);
        peer.expect_close(1002, "protocol error");
        other.expect_alive();
    }
    // A close that the peer did not cause, while it is writing.
    let relay = relay(|_| {});
    let mut binary = Peer::binary(relay, "home");
    let mut phone = Peer::phone(relay, "home");
    binary.send_text(&format!("{{\"conn_id\":\"{}\",\"close_code\":4000}}", phone.id));
    let message = format!("\"{}\"", "x".repeat(60_000));
    for _ in 0..40 {
        phone.send_text(&message);
    }
    phone.expect_close(4000, "");
}

#[test]
fn a_peer_that_keeps_sending_after_the_close_is_disconnected() {
    let relay = relay(|config| config.timeouts.linger = NEVER);
    let _binary = Peer::binary(relay, "home");
    let mut phone = Peer::phone(relay, "home");
    phone.send_text("not JSON");
    let junk = vec![b'x'; 1 << 20];
    eventually("the socket is gone", || {
        std::io::Write::write_all(&mut phone.stream, &junk).is_err()
    });
}

#[test]
fn the_linger_ends() {
    let relay = relay(|config| config.timeouts.linger = millis(200));
    let _binary = Peer::binary(relay, "home");
    let mut phone = Peer::phone(relay, "home");
    phone.send_text("not JSON");
    phone.expect_close(1007, "frame is not valid JSON");
    // The peer neither answers nor disconnects; its socket is closed all the same.
    eventually("the socket is gone", || {
        std::io::Write::write_all(&mut phone.stream, b"x").is_err()
    });
}
