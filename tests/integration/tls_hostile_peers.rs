//! Hostile peers of the TLS listener.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use rustls::ClientConfig;

use crate::support::{
    Answer, NEVER, Opcode, PATIENCE, Peer, binary_head, connect, eventually, millis, tls_connect,
    tls_relay,
};

/// A whole ClientHello in its record.
fn hello(client: &Arc<ClientConfig>, relay: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::new();
    tls_connect(relay, client).conn.write_tls(&mut bytes).unwrap();
    bytes
}

fn is_well(relay: SocketAddr, client: &Arc<ClientConfig>) {
    let mut stream = tls_connect(relay, client);
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: relay\r\n\r\n").unwrap();
    assert_eq!(Answer::read(&mut stream).status, 200);
}

/// All that comes until the relay ends it, by a reset or not.
fn rest(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    bytes
}

#[test]
fn two_thousand_half_handshakes_delay_no_peer_and_end_with_the_head_deadline() {
    let (relay, client) = tls_relay(|config| config.timeouts.head = millis(1500));
    let hello = hello(&client, relay);
    let began = Instant::now();
    let halves: Vec<TcpStream> = (0..2000)
        .map(|n| {
            let mut stream = connect(relay);
            // Silence, half a ClientHello, or a whole one whose response is not answered.
            stream.write_all(&hello[..hello.len() * (n % 3) / 2]).unwrap();
            stream
        })
        .collect();
    is_well(relay, &client);
    for (n, half) in halves.iter().enumerate() {
        let received = rest(half);
        assert_eq!(received.is_empty(), n % 3 != 2, "{n}: {received:x?}");
    }
    assert!(began.elapsed() >= millis(1500), "not before their time");
    is_well(relay, &client);
}

#[test]
fn a_dripping_handshake_ends_with_the_head_deadline() {
    let (relay, client) = tls_relay(|config| config.timeouts.head = millis(400));
    let hello = hello(&client, relay);
    let mut stream = connect(relay);
    let mut sent = 0;
    eventually("it ends", || {
        sent += 1;
        stream.write_all(&hello[sent..=sent]).is_err() || sent > hello.len() - 5
    });
    assert!(sent < hello.len() - 5, "it outlived {sent} bytes");
}

#[test]
fn other_bytes_than_a_client_hello_get_an_alert_and_a_close() {
    let (relay, client) = tls_relay(|_| {});
    let hello = hello(&client, relay);
    // Behind both headers, the version and the random: the length of the session id.
    let mut wrong_length = hello.clone();
    wrong_length[5 + 4 + 2 + 32] = 200;
    let mut huge_record = hello.clone();
    huge_record[3] = 0xff;
    let mut huge_message = vec![22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff];
    huge_message.resize(5 + 0x4000, 0);
    let mut silent = Vec::new();
    for garbage in [
        b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n".to_vec(),
        vec![0; 100],
        vec![22, 3, 1, 0, 0],
        vec![21, 3, 1, 0, 2, 2, 40],
        vec![23, 3, 3, 0, 20].into_iter().chain([0; 20]).collect(),
        // SSL 2.
        vec![0x80, 0x2e, 1, 3, 1, 0, 0x15, 0, 0, 0, 0x10],
        wrong_length,
        huge_record,
        huge_message,
    ] {
        let mut stream = connect(relay);
        stream.write_all(&garbage).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let received = rest(&stream);
        match received[..] {
            [] => silent.push(garbage[..5].to_vec()),
            // One fatal alert (RFC 8446 §6).
            [21, 3, _, 0, 2, 2, _] => {}
            _ => panic!("{:x?}…: {received:x?}", &garbage[..5]),
        }
    }
    // An alert is not answered, and rustls sends none for a message that is too long.
    assert_eq!(silent, [[21, 3, 1, 0, 2], [22, 3, 1, 0x40, 0]]);
    is_well(relay, &client);
}

#[test]
fn an_endless_message_in_many_records_is_cut_off() {
    let (relay, client) = tls_relay(|config| config.timeouts.head = NEVER);
    for len in [[0xff, 0xff, 0xff], [0, 0xff, 0xff]] {
        let mut stream = connect(relay);
        let began = Instant::now();
        // A ClientHello of 16 MiB or of nearly 64 KiB, in records of one byte.
        let mut result = stream.write_all(&[22, 3, 1, 0, 4, 1]).and(stream.write_all(&len));
        while result.is_ok() && began.elapsed() < PATIENCE {
            result = stream.write_all(&[22, 3, 1, 0, 1, 0].repeat(100));
        }
        let error = result.expect_err("it takes it for ever");
        assert!(
            matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
            "{error}"
        );
        is_well(relay, &client);
    }
}

#[test]
fn a_reset_or_a_forged_record_ends_one_connection_only() {
    let (relay, client) = tls_relay(|_| {});
    let mut standing = Peer::upgrade(tls_connect(relay, &client), &binary_head("stands"));
    for forged in [false, true] {
        for cut in [1, 4, 5, 6, 30] {
            let mut peer = Peer::upgrade(tls_connect(relay, &client), &binary_head("home"));
            let mut record = Vec::new();
            peer.stream.conn.writer().write_all(&[0x8a, 0x80, 0, 0, 0, 0].repeat(20)).unwrap();
            peer.stream.conn.write_tls(&mut record).unwrap();
            if forged {
                record[cut + 5] ^= 0x10;
                peer.stream.sock.write_all(&record).unwrap();
                let received = peer.try_receive();
                let error = received.expect_err("an alert");
                assert!(error.to_string().contains("BadRecordMac"), "{error}");
            } else {
                peer.stream.sock.write_all(&record[..cut]).unwrap();
                let socket = socket2::SockRef::from(&peer.stream.sock);
                socket.set_linger(Some(millis(0))).unwrap();
            }
            drop(peer);
        }
    }
    standing.expect_alive();
    // The slot was released: a new claim succeeds at once.
    let mut next = Peer::upgrade(tls_connect(relay, &client), &binary_head("home"));
    next.expect_alive();
    next.send(Opcode::Pong, b"");
}
