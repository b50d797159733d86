//! TLS: the guarantees of plain connections hold over TLS as well.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use pyrycode_relay::config::Serving;
use rustix::process::Signal;
use rustls::{ClientConfig, HandshakeKind};

use crate::proxy;
use crate::support::{
    Answer, NEVER, Opcode, Pair, Peer, Process, Received, TlsStream, binary_head, connect,
    connect_reading_little, envelope, millis, phone_head, through_tls, tls_connect, tls_relay,
};

fn binary(relay: SocketAddr, client: &Arc<ClientConfig>, id: &str) -> Peer<TlsStream> {
    Peer::upgrade(tls_connect(relay, client), &binary_head(id))
}

fn phone(relay: SocketAddr, client: &Arc<ClientConfig>, id: &str) -> Peer<TlsStream> {
    Peer::upgrade(tls_connect(relay, client), &phone_head(id))
}

fn answer(relay: SocketAddr, client: &Arc<ClientConfig>, request: &str) -> Answer {
    let mut stream = tls_connect(relay, client);
    stream.write_all(request.as_bytes()).unwrap();
    // To the end, which without close_notify would be an error.
    Answer::read(&mut stream)
}

fn health(relay: SocketAddr, client: &Arc<ClientConfig>) -> (u64, u64) {
    let answer = answer(relay, client, "GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n");
    let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    let count = |key: &str| body[key].as_u64().unwrap();
    (count("connected_binaries"), count("connected_phones"))
}

fn numbered(n: usize, len: usize) -> String {
    format!("\"{n}:{}\"", "x".repeat(len - 3 - n.to_string().len()))
}

#[test]
fn frames_cross_pings_are_answered_and_every_end_is_announced() {
    let (relay, client) = tls_relay(|config| config.timeouts.ping_interval = millis(200));
    let mut binary = binary(relay, &client, "home");
    let mut phone = phone(relay, &client, "home");
    phone.send_text("{\"up\" : 1}");
    assert_eq!(binary.receive_text(), envelope(&phone.id, "{\"up\" : 1}"));
    binary.send_to(&phone.id, "[2]");
    assert_eq!(phone.receive_text(), "[2]");
    for _ in 0..3 {
        let Received::Ping(payload) = phone.receive() else { panic!("no ping") };
        phone.send(Opcode::Pong, &payload);
    }
    // The end after the close is close_notify: a bare FIN would be an error.
    phone.send_text("{");
    phone.expect_close(1007, "frame is not valid JSON");
    assert_eq!(answer(relay, &client, "GET /x HTTP/1.1\r\nHost: relay\r\n\r\n").status, 404);
    let notice = format!(r#"{{"conn_id":"{}","close_code":1007}}"#, phone.id);
    assert_eq!(binary.receive_text(), notice);
    binary.send_close(1000);
    assert_eq!(binary.receive_answering(), Received::Close(Some((1000, String::new()))));
    assert_eq!(binary.receive(), Received::End);
}

#[test]
fn a_dead_peer_is_found_and_its_slot_taken_over() {
    let (relay, client) = tls_relay(|config| {
        config.timeouts.ping_interval = millis(300);
        config.timeouts.pong = millis(300);
    });
    let mut dead = binary(relay, &client, "home");
    dead.expect_close(1011, "heartbeat timeout");

    let (relay, client) = tls_relay(|config| config.timeouts.probe = millis(300));
    let mut holder = binary(relay, &client, "home");
    let mut phone = phone(relay, &client, "home");
    let mut claimant = binary(relay, &client, "home");
    holder.expect_close(1011, "heartbeat timeout");
    phone.expect_close(4404, "binary reclaimed server-id");
    claimant.expect_alive();
}

#[test]
fn what_a_claimant_sends_with_its_head_waits_for_its_slot() {
    let (relay, client) = tls_relay(|_| {});
    let mut holder = binary(relay, &client, "home");
    let phone = phone(relay, &client, "home");
    // Head and frame in records of their own, in one segment.
    let mut stream = tls_connect(relay, &client);
    stream.conn.writer().write_all(b"").unwrap();
    stream.conn.complete_io(&mut stream.sock).unwrap();
    let mut segment = Vec::new();
    for part in [
        binary_head("home").into_bytes(),
        crate::support::frame(Opcode::Text, true, envelope(&phone.id, "1").as_bytes()),
        crate::support::frame(Opcode::Ping, true, b"read"),
    ] {
        stream.conn.writer().write_all(&part).unwrap();
        while stream.conn.wants_write() {
            stream.conn.write_tls(&mut segment).unwrap();
        }
    }
    stream.sock.write_all(&segment).unwrap();
    let mut claimant = Peer::upgraded(stream);
    let Received::Ping(_) = holder.receive() else { panic!("no probe") };
    drop(holder);
    assert_eq!(claimant.receive_answering(), Received::Pong(b"read".into()));
}

#[test]
fn sixty_four_mebibytes_come_through_in_order() {
    const COUNT: usize = 256;
    const LEN: usize = 256 * 1024;
    let (relay, client) = tls_relay(|config| config.timeouts.write = NEVER);
    let mut binary = binary(relay, &client, "home");
    let mut phone = phone(relay, &client, "home");
    let id = phone.id.clone();
    let sender = thread::spawn(move || {
        for n in 0..COUNT {
            phone.send_text(&numbered(n, LEN));
        }
        phone
    });
    for n in 0..COUNT {
        assert!(binary.receive_text() == envelope(&id, &numbered(n, LEN)), "message {n}");
    }
    let mut phone = sender.join().unwrap();
    for n in 0..16 {
        binary.send_to(&id, &numbered(n, LEN - 100));
        assert!(phone.receive_text() == numbered(n, LEN - 100), "message {n}");
    }
}

#[test]
fn a_ping_overtakes_what_is_queued_and_a_stuck_phone_is_closed_behind_a_gapless_prefix() {
    let (relay, client) = tls_relay(|config| {
        config.timeouts.linger = NEVER;
        config.timeouts.ping_interval = millis(300);
        config.timeouts.pong = NEVER;
        config.timeouts.write = NEVER;
        // The phone's bound is half of the budget.
        config.limits.buffer_memory = 8 << 20;
    });
    let mut binary = binary(relay, &client, "home");
    let slow = through_tls(connect_reading_little(relay), &client);
    let mut slow = Peer::upgrade(slow, &phone_head("home"));
    for n in 0..50 {
        binary.send_to(&slow.id, &numbered(n, 64_000));
    }
    // The backlog is 3 MB; a little of it drains, then a ping is due.
    let (mut texts, mut before_pings, mut is_ready) = (0, Vec::new(), false);
    while texts < 50 {
        if texts == 3 && !std::mem::replace(&mut is_ready, true) {
            let queued = Instant::now();
            while queued.elapsed() < millis(900) {
                binary.expect_alive();
            }
        }
        match slow.receive() {
            Received::Text(text) => {
                assert_eq!(text, numbered(texts, 64_000));
                texts += 1;
            }
            Received::Ping(_) => before_pings.push(texts),
            received => panic!("{received:?}"),
        }
    }
    let overtaking = before_pings.iter().filter(|before| (3..28).contains(*before)).count();
    assert!(overtaking > 0, "pings came behind this number of messages: {before_pings:?}");

    for n in 50..150 {
        binary.send_to(&slow.id, &numbered(n, 64_000));
        binary.expect_alive();
    }
    loop {
        match slow.receive() {
            Received::Text(text) => {
                assert_eq!(text, numbered(texts, 64_000));
                texts += 1;
            }
            Received::Ping(_) => {}
            received => {
                assert_eq!(received, Received::Close(Some((1011, "phone backlog full".into()))));
                break;
            }
        }
    }
    assert_eq!(slow.receive(), Received::End);
    assert!((51..149).contains(&texts), "{texts}");
}

#[test]
fn a_phone_that_drains_nothing_is_closed() {
    let (relay, client) = tls_relay(|config| config.timeouts.write = millis(400));
    let mut binary = binary(relay, &client, "home");
    let stuck = through_tls(connect_reading_little(relay), &client);
    let stuck = Peer::upgrade(stuck, &phone_head("home"));
    for n in 0..60 {
        binary.send_to(&stuck.id, &numbered(n, 64_000));
    }
    crate::support::eventually("it is closed", || health(relay, &client) == (1, 0));
}

#[test]
fn truncation_and_close_notify_are_told_apart() {
    let pair = Pair::new();
    let process = Process::start_talkative(&pair.flags());
    let client = pair.client();
    let ended = |announced: bool| {
        let mut peer = binary(process.relay, &client, "home");
        if announced {
            peer.stream.conn.send_close_notify();
            peer.stream.flush().unwrap();
        }
        peer.stream.sock.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        let end = peer.stream.read_to_end(&mut rest);
        process.expect_line("server_released");
        end
    };
    assert!(ended(true).is_ok(), "close_notify is answered");
    assert!(process.next_line(millis(0)).is_none(), "nothing was cut");
    let _ = ended(false);
    // The truncation has a line beside that of the loop.
    let pair = Pair::new();
    let process = Process::start_talkative(&pair.flags());
    let peer = binary(process.relay, &pair.client(), "home");
    peer.stream.sock.shutdown(Shutdown::Write).unwrap();
    let line = process.expect_line("tls_cut");
    assert!(line.contains("cause=truncated"), "{line}");
}

#[test]
fn a_proxy_header_stands_in_front_of_the_first_record() {
    let (relay, client) = tls_relay(|config| {
        let Serving::Own { https, .. } = &mut config.serving else { unreachable!() };
        https.proxy_protocol = true;
        config.limits.connections_per_ip = 1;
    });
    let header = |client: u8| proxy::client([192, 0, 2, client].into());
    let dial = |header: &[u8]| {
        let mut stream = connect(relay);
        stream.write_all(header).unwrap();
        through_tls(stream, &client)
    };
    let mut binary = Peer::upgrade(dial(&header(1)), &binary_head("home"));
    let mut phone = Peer::upgrade(dial(&header(2)), &phone_head("home"));
    phone.send_text("1");
    assert_eq!(binary.receive_text(), envelope(&phone.id, "1"));
    // Clients are counted by the addresses in their headers.
    let mut second = dial(&header(2));
    second.write_all(phone_head("home").as_bytes()).unwrap();
    assert_eq!(Answer::read(&mut second).status, 503);
    // Without a header there is not even an alert.
    let mut stream = connect(relay);
    through_tls(connect(relay), &client).conn.write_tls(&mut stream).unwrap();
    let mut received = Vec::new();
    let _ = stream.read_to_end(&mut received);
    assert!(received.is_empty(), "{received:x?}");
}

#[test]
fn a_peer_that_returns_resumes_its_session() {
    let (relay, client) = tls_relay(|_| {});
    let kinds = [0, 1].map(|_| {
        let mut stream = tls_connect(relay, &client);
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: relay\r\n\r\n").unwrap();
        assert_eq!(Answer::read(&mut stream).status, 200);
        stream.conn.handshake_kind().unwrap()
    });
    assert_eq!(kinds, [HandshakeKind::Full, HandshakeKind::Resumed]);
}

#[test]
fn more_handshakes_than_one_turn_allows_all_complete() {
    let pair = Pair::new();
    let process = Process::start_talkative(&pair.flags());
    let client = pair.client();
    process.signal(Signal::STOP);
    let streams: Vec<TlsStream> = (0..100)
        .map(|_| {
            let mut stream = tls_connect(process.relay, &client);
            stream.conn.write_tls(&mut stream.sock).unwrap();
            stream
        })
        .collect();
    process.signal(Signal::CONT);
    for mut stream in streams {
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: relay\r\n\r\n").unwrap();
        assert_eq!(Answer::read(&mut stream).status, 200);
    }
}

#[test]
fn an_unsupported_alpn_protocol_is_refused() {
    let (relay, client) = tls_relay(|_| {});
    let mut config = Arc::unwrap_or_clone(client);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mut stream = tls_connect(relay, &Arc::new(config));
    let error = stream
        .write_all(b"PRI")
        .and_then(|()| stream.flush())
        .and_then(|()| stream.read_exact(&mut [0; 1]));
    assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidData);
}
