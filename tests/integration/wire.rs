//! Wire format: request heads, refusals, frames in both directions.

use std::io::{BufRead, BufReader, Read, Write};
use std::time::Instant;

use tungstenite::client::IntoClientRequest;

use crate::support::{
    Answer, Opcode, Peer, Received, ask, binary_head, connect, envelope, eventually, frame,
    healthz, millis, phone_head, relay, upgrade_head,
};

const HEALTHZ: &str = "GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n";

#[test]
fn the_101_is_exact() {
    let relay = relay(|_| {});
    for head in [binary_head("home"), phone_head("home")] {
        let mut stream = connect(relay);
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        let answer = String::from_utf8(answer).unwrap();
        let (before, date) = answer.split_once("Date: ").unwrap();
        let (date, after) = date.split_once("\r\n").unwrap();
        assert!(date.len() == 29 && date.ends_with(" GMT"), "{date}");
        let answer = format!("{before}{after}");
        let (start, id) = answer.trim_end().rsplit_once("x-request-id: ").unwrap();
        assert_eq!(
            start,
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
        );
        assert!((1..=40).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()), "{id}");
    }
}

#[test]
fn a_frame_crosses_both_ways_byte_for_byte() {
    let relay = relay(|_| {});
    let mut binary = Peer::binary(relay, "home");
    let mut phone = Peer::phone(relay, "home");
    // The lengths around which a frame header changes its form, and the largest.
    let strings = [0, 1, 123, 124, 125, 126, 65_533, 65_534, 200_000].map(|len| "x".repeat(len));
    let mut frames: Vec<String> = strings.iter().map(|s| format!("\"{s}\"")).collect();
    frames.extend(
        [
            "0",
            "-0.0e-0",
            "true",
            "[]",
            "{}",
            "1000000000000000000000000000000000000001",
            r#"{"a":1,"a":2}"#,
            r#"{ "b" : [ 1 ,	2 ] , "a" : null }"#,
            r#""\u0041\/\ud83d\ude00\u0000""#,
            "\"ünïcødé 😀 \u{2028}\"",
            r#"{"conn_id":"x","frame":{"close_code":4000}}"#,
        ]
        .map(String::from),
    );
    frames.push("[".repeat(128) + &"]".repeat(128));
    for frame in &frames {
        phone.send_text(frame);
        assert_eq!(binary.receive_text(), envelope(&phone.id, frame));
        binary.send_to(&phone.id, frame);
        assert_eq!(phone.receive_text(), *frame);
    }
}

#[test]
fn a_message_of_the_maximum_size_is_forwarded_and_a_larger_one_is_not() {
    const LARGEST: usize = 256 * 1024;
    let relay = relay(|_| {});
    let mut binary = Peer::binary(relay, "home");
    let mut phone = Peer::phone(relay, "home");

    let largest = format!("\"{}\"", "x".repeat(LARGEST - 2));
    phone.send_text(&largest);
    assert_eq!(binary.receive_text(), envelope(&phone.id, &largest));

    let around = envelope(&phone.id, "\"\"").len();
    let largest = format!("\"{}\"", "x".repeat(LARGEST - around));
    binary.send_to(&phone.id, &largest);
    assert_eq!(phone.receive_text(), largest);

    phone.send_text(&format!("\"{}\"", "x".repeat(LARGEST - 1)));
    phone.expect_close(1009, "message too big");
    binary.expect_alive();
}

#[test]
fn binary_messages_fragments_and_white_space_arrive_as_one_text() {
    let relay = relay(|_| {});
    let mut binary = Peer::binary(relay, "home");
    let mut phone = Peer::phone(relay, "home");

    phone.send(Opcode::Binary, b"{\"a\":1}");
    assert_eq!(binary.receive_text(), envelope(&phone.id, "{\"a\":1}"));
    phone.send_text(" \r\n\t[1, 2] \n");
    assert_eq!(binary.receive_text(), envelope(&phone.id, "[1, 2]"));

    // A character cut in two, an empty fragment, a ping in between.
    let text = "\"grün\"".as_bytes();
    phone.send_raw(&frame(Opcode::Text, false, &text[..4]));
    phone.send_raw(&frame(Opcode::Continuation, false, &[]));
    phone.send(Opcode::Ping, b"now");
    phone.send_raw(&frame(Opcode::Continuation, true, &text[4..]));
    assert_eq!(phone.receive(), Received::Pong(b"now".into()));
    assert_eq!(binary.receive_text(), envelope(&phone.id, "\"grün\""));

    binary.send(Opcode::Binary, envelope(&phone.id, " 7 ").as_bytes());
    assert_eq!(phone.receive_text(), "7");
    let envelope = envelope(&phone.id, "8");
    binary.send_raw(&frame(Opcode::Binary, false, &envelope.as_bytes()[..9]));
    binary.send_raw(&frame(Opcode::Continuation, true, &envelope.as_bytes()[9..]));
    assert_eq!(phone.receive_text(), "8");
}

#[test]
fn bytes_behind_the_head_belong_to_the_websocket() {
    let relay = relay(|_| {});
    let mut stream = connect(relay);
    let ping = frame(Opcode::Ping, true, b"early");
    stream.write_all(&[binary_head("home").as_bytes(), &ping].concat()).unwrap();
    let mut binary = Peer::upgraded(stream);
    assert_eq!(binary.receive(), Received::Pong(b"early".into()));

    // Whole messages and the beginning of one.
    let (first, second, third) = (
        frame(Opcode::Text, true, b"1"),
        frame(Opcode::Text, true, b"2"),
        frame(Opcode::Text, true, b"33"),
    );
    let mut stream = connect(relay);
    stream
        .write_all(&[phone_head("home").as_bytes(), &first, &second, &third[..7]].concat())
        .unwrap();
    let mut phone = Peer::upgraded(stream);
    phone.send_raw(&third[7..]);
    for text in ["1", "2", "33"] {
        assert_eq!(binary.receive_text(), envelope(&phone.id, text));
    }
}

#[test]
fn heads_and_frames_may_come_byte_by_byte() {
    let relay = relay(|_| {});
    let mut binary = Peer::binary(relay, "home");
    let mut stream = connect(relay);
    let message = frame(Opcode::Text, true, b"{\"slowly\":true}");
    for byte in [phone_head("home").as_bytes(), &message, &message].concat() {
        stream.write_all(&[byte]).unwrap();
    }
    let phone = Peer::upgraded(stream);
    for _ in 0..2 {
        assert_eq!(binary.receive_text(), envelope(&phone.id, "{\"slowly\":true}"));
    }
}

/// Requests that are refused, with what the answer must be.
fn refusals() -> Vec<(String, u16, Option<&'static str>)> {
    let good = phone_head("home");
    let without = |field: &str| {
        let kept = good.split_inclusive("\r\n").filter(|line| !line.starts_with(field));
        kept.collect::<String>()
    };
    let with = |line: &str| good.replacen("user-agent", &format!("{line}\r\nuser-agent"), 1);
    let version = Some("Sec-WebSocket-Version: 13");
    vec![
        ("GET /none HTTP/1.1\r\nHost: relay\r\n\r\n".into(), 404, None),
        ("POST /healthz HTTP/1.1\r\nHost: relay\r\n\r\n".into(), 405, None),
        ("GET /v1/client HTTP/1.1\r\n\r\n".into(), 400, None),
        ("nonsense\r\n\r\n".into(), 400, None),
        (good.replace("GET", "POST"), 405, Some("Allow: GET")),
        (good.replace("HTTP/1.1", "HTTP/1.0"), 426, Some("Upgrade: websocket")),
        (without("Upgrade"), 426, Some("Connection: Upgrade, close")),
        (good.replace("Version: 13", "Version: 12"), 400, version),
        (good.replace("dGhl", "dG"), 400, None),
        (without("x-pyrycode-server"), 400, None),
        (without("x-pyrycode-token"), 400, None),
        (without("user-agent"), 400, None),
        (good.replace("/v1/client", "/v1/server"), 400, None),
        (good.replace("server: home", "server: a b"), 400, None),
        (good.replace("home", &"h".repeat(129)), 400, None),
        (with("x-pyrycode-server: home"), 400, None),
        (with("Content-Length: 5"), 400, None),
        (with("Transfer-Encoding: chunked"), 400, None),
        (with(" folded: yes"), 400, None),
        (with("spaced : yes"), 400, None),
        (good.replacen("\r\n", "\n", 1), 400, None),
        (with(&format!("long: {}", "x".repeat(8 * 1024))), 431, None),
        (with(&["a: b"; 64].join("\r\n")), 431, None),
    ]
}

#[test]
fn a_refusal_has_no_body_no_server_header_and_ends_the_connection() {
    let relay = relay(|_| {});
    for (request, status, field) in refusals() {
        let answer = ask(relay, &request);
        assert_eq!(answer.status, status, "{request}");
        assert_eq!(answer.body, "", "{request}");
        let is_closing =
            answer.has("Connection: close") || answer.has("Connection: Upgrade, close");
        assert!(is_closing && answer.has("Content-Length: 0"), "{request}{}", answer.head);
        assert!(field.is_none_or(|line| answer.has(line)), "{request}{}", answer.head);
        let head = answer.head.to_lowercase();
        assert!(!head.contains("server:") && !head.contains("pyrycode"), "{head}");
    }
}

#[test]
fn behind_a_refused_request_nothing_is_parsed() {
    let relay = relay(|_| {});
    for (request, status, _) in refusals() {
        let answer = ask(relay, &format!("{request}{HEALTHZ}{}", binary_head("smuggled")));
        assert_eq!((answer.status, answer.body.as_str()), (status, ""), "{request}");
    }
    // Nor after a request that was answered.
    let answer = ask(relay, &format!("{HEALTHZ}{HEALTHZ}"));
    assert_eq!(answer.body.matches("status").count(), 1);
    assert_eq!(healthz(relay), (0, 0));
}

#[test]
fn a_refusal_reaches_a_peer_that_has_sent_much_more() {
    let relay = relay(|_| {});
    let more = vec![b'x'; 100 * 1024];
    for (request, status, _) in refusals() {
        let mut stream = connect(relay);
        stream.write_all(&[request.as_bytes(), &more].concat()).unwrap();
        assert_eq!(Answer::read(&mut stream).status, status, "{request}");
        // A reset, even one behind the FIN, would show here.
        for _ in 0..2 {
            stream.write_all(&more).unwrap_or_else(|error| panic!("{error}: {request}"));
        }
    }
}

#[test]
fn a_head_that_does_not_come_in_time_is_answered_408() {
    let relay = relay(|config| config.timeouts.head = millis(300));
    let began = Instant::now();
    let halted = ["", "G", "GET / HTTP/1.1\r\nHost: relay\r\n"].map(|start| {
        let mut stream = connect(relay);
        stream.write_all(start.as_bytes()).unwrap();
        (start, stream)
    });
    for (start, mut stream) in halted {
        let answer = Answer::read(&mut stream);
        assert_eq!((answer.status, answer.body.as_str()), (408, ""), "{start:?}");
    }
    assert!(began.elapsed() >= millis(300));

    // Single bytes do not extend the deadline.
    let mut stream = connect(relay);
    stream.set_read_timeout(Some(millis(20))).unwrap();
    let mut answer = Vec::new();
    eventually("408", || {
        let _ = stream.write_all(b"x");
        let _ = stream.read_to_end(&mut answer);
        answer.starts_with(b"HTTP/1.1 408 ")
    });
}

#[test]
fn healthz_answers_get_and_head() {
    let relay = relay(|_| {});
    let _binary = Peer::binary(relay, "home");
    let _phone = Peer::phone(relay, "home");
    let get = ask(relay, HEALTHZ);
    assert_eq!(get.status, 200);
    assert!(get.has("Content-Type: application/json; charset=utf-8"), "{}", get.head);
    assert!(get.has("Cache-Control: no-store") && get.has("Connection: close"), "{}", get.head);
    let (version, uptime) = (env!("CARGO_PKG_VERSION"), "\"uptime_seconds\":");
    let expected = format!(
        "{{\"status\":\"ok\",\"version\":\"{version}\",\"connected_binaries\":1,\
         \"connected_phones\":1,{uptime}"
    );
    assert!(get.body.starts_with(&expected) && get.body.ends_with('}'), "{}", get.body);

    let head = ask(relay, &HEALTHZ.replace("GET", "HEAD"));
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    for path in ["/healthz?probe=1", "http://relay/healthz"] {
        assert_eq!(ask(relay, &HEALTHZ.replace("/healthz", path)).status, 200, "{path}");
    }
    assert_eq!(ask(relay, &HEALTHZ.replace("healthz", "readyz")).status, 200);
}

#[test]
fn neither_subprotocol_nor_extension_is_agreed_to() {
    let relay = relay(|_| {});
    let mut stream = connect(relay);
    let fields = "x-pyrycode-server: home\r\nx-pyrycode-version: 1\r\nuser-agent: t\r\n\
                  Origin: https://elsewhere.example\r\nSec-WebSocket-Protocol: chat\r\n\
                  Sec-WebSocket-Extensions: permessage-deflate\r\n";
    stream.write_all(upgrade_head("/v1/server", fields).as_bytes()).unwrap();
    let lines = BufReader::new(stream).lines().map(Result::unwrap);
    let answer = lines.take_while(|line| !line.is_empty()).collect::<Vec<_>>().join("\n");
    let answer = answer.to_lowercase();
    assert!(answer.starts_with("http/1.1 101 ") && !answer.contains("sec-websocket-p"), "{answer}");
    assert!(!answer.contains("extensions"), "{answer}");
}

#[test]
fn a_third_party_client_works() {
    let relay = relay(|config| config.timeouts.ping_interval = millis(100));
    let dial = |path: &str, fields: &[(&'static str, &'static str)]| {
        let mut request = format!("ws://relay{path}").into_client_request().unwrap();
        for (name, value) in fields {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        tungstenite::client(request, connect(relay)).unwrap()
    };
    let common = [("x-pyrycode-server", "home"), ("user-agent", "t")];
    let (mut binary, _) = dial("/v1/server", &[common[0], common[1], ("x-pyrycode-version", "1")]);
    let (mut phone, answer) =
        dial("/v1/client", &[common[0], common[1], ("x-pyrycode-token", "t")]);
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();

    for round in 0..20 {
        phone.send(format!("[{round}]").into()).unwrap();
        let received = loop {
            let message = binary.read().unwrap();
            if message.is_text() {
                break message.into_text().unwrap();
            }
        };
        assert_eq!(received.as_str(), envelope(&id, &format!("[{round}]")));
        binary.send(tungstenite::Message::Text(received)).unwrap();
        while !phone.read().unwrap().is_text() {}
    }
    phone.close(None).unwrap();
    let end = loop {
        if let Err(error) = phone.read() {
            break error;
        }
    };
    assert!(matches!(end, tungstenite::Error::ConnectionClosed), "{end}");
}
