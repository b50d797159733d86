//! Hostile peers: after each attack the relay still serves, and its memory is free again.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::thread;

use pyrycode_relay::config::PHONES_PER_SERVER_MAX;

use crate::support::{
    Opcode, Peer, Process, Received, ask, connect, connect_reading_little, envelope, eventually,
    frame, header, healthz, millis, phone_head,
};

type Attack = fn(SocketAddr);

/// Round trips between a phone and its binary.
fn expect_service(relay: SocketAddr, server_id: &str) {
    let mut binary = Peer::binary(relay, server_id);
    let mut phone = Peer::phone(relay, server_id);
    for n in 0..10 {
        phone.send_text(&n.to_string());
        assert_eq!(binary.receive_text(), envelope(&phone.id, &n.to_string()));
        binary.send_to(&phone.id, &n.to_string());
        assert_eq!(phone.receive_text(), n.to_string());
    }
}

/// Bytes that look like nothing, the same on every run.
fn garbage(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn garbage_for_heads_and_frames(relay: SocketAddr) {
    let _binary = Peer::binary(relay, "victim");
    for seed in 0..200 {
        let _ = connect(relay).write_all(&garbage(seed, 3000));
        let mut phone = Peer::phone(relay, "victim");
        let _ = phone.stream.write_all(&garbage(seed, 3000));
    }
}

fn half_requests(relay: SocketAddr) {
    let head = phone_head("victim");
    let streams: Vec<TcpStream> = (0..head.len())
        .map(|len| {
            let mut stream = connect(relay);
            stream.write_all(&head.as_bytes()[..len]).unwrap();
            stream
        })
        .collect();
    drop(streams);
}

fn connect_and_drop(relay: SocketAddr) {
    for n in 0..2000 {
        let mut stream = connect(relay);
        match n % 4 {
            0 => {}
            1 => stream.write_all(b"GET").unwrap(),
            2 => stream.write_all(phone_head("victim").as_bytes()).unwrap(),
            _ => socket2::SockRef::from(&stream).set_linger(Some(millis(0))).unwrap(),
        }
    }
}

fn great_promises(relay: SocketAddr) {
    let mut binaries: Vec<Peer> =
        (0..13).map(|n| Peer::binary(relay, &format!("victim{n}"))).collect();
    let mut phones: Vec<Peer> =
        (0..200).map(|n| Peer::phone(relay, &format!("victim{}", n / 16))).collect();
    for (n, phone) in phones.iter_mut().enumerate() {
        let len = if n % 2 == 0 { 256 * 1024 } else { 1 << 62 };
        phone.send_raw(&[header(0x81, len), b"\"begun".into()].concat());
    }
    for phone in phones.iter_mut().skip(1).step_by(2) {
        phone.expect_close(1009, "message too big");
    }
    // The remaining phones may still finish their messages.
    phones[0].send_raw(&[&vec![b'x'; 256 * 1024 - 7][..], b"\""].concat());
    let start = envelope(&phones[0].id, "\"begunxxx");
    // Ahead of its frame come the close notices of the other phones.
    let received = std::iter::repeat_with(|| binaries[0].receive_text());
    let frame = received.take(PHONES_PER_SERVER_MAX).find(|text| text.contains(&phones[0].id));
    assert!(frame.is_some_and(|text| text.starts_with(start.trim_end_matches('}'))));
}

fn deep_json(relay: SocketAddr) {
    let mut binary = Peer::binary(relay, "victim");
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let depth = 200_000 / open.len();
        for text in
            [open.repeat(depth), format!("{}1{}", open.repeat(depth / 2), close.repeat(depth / 2))]
        {
            let mut phone = Peer::phone(relay, "victim");
            phone.send_text(&text);
            phone.expect_close(1007, "frame is not valid JSON");
            binary.send_to("nobody", &text);
            binary.send_text(&text);
        }
    }
    binary.expect_alive();
}

fn empty_fragments(relay: SocketAddr) {
    let mut binary = Peer::binary(relay, "victim");
    let mut phone = Peer::phone(relay, "victim");
    phone.send_raw(&frame(Opcode::Text, false, b""));
    let flood = frame(Opcode::Continuation, false, b"").repeat(1000);
    for _ in 0..100 {
        phone.send_raw(&flood);
    }
    phone.send_raw(&frame(Opcode::Continuation, true, b"1"));
    assert_eq!(binary.receive_text(), envelope(&phone.id, "1"));
}

fn pings_whose_pongs_are_not_read(relay: SocketAddr) {
    let _binary = Peer::binary(relay, "victim");
    let mut phone = Peer::upgrade(connect_reading_little(relay), &phone_head("victim"));
    let mut witness = Peer::phone(relay, "victim");
    let flood = frame(Opcode::Ping, true, &[b'p'; 125]).repeat(1000);
    for _ in 0..100 {
        phone.send_raw(&flood);
        witness.expect_alive();
    }
    // The peer reads again: only whole pongs arrive, the answer to the last ping included.
    phone.send(Opcode::Ping, b"last");
    while phone.receive_answering() != Received::Pong(b"last".into()) {}
}

fn single_bytes(relay: SocketAddr) {
    let mut binary = Peer::binary(relay, "victim");
    let mut phone = Peer::phone(relay, "victim");
    let message = format!("\"{}\"", "x".repeat(20_000));
    for byte in frame(Opcode::Text, true, message.as_bytes()) {
        phone.send_raw(&[byte]);
    }
    assert_eq!(binary.receive_text(), envelope(&phone.id, &message));
}

fn backlogs_that_are_not_read(relay: SocketAddr) {
    let mut binary = Peer::binary(relay, "victim");
    let phones: Vec<Peer> = (0..8)
        .map(|_| Peer::upgrade(connect_reading_little(relay), &phone_head("victim")))
        .collect();
    let payload = format!("\"{}\"", "x".repeat(200_000));
    for _ in 0..15 {
        for phone in &phones {
            binary.send_to(&phone.id, &payload);
        }
    }
    binary.expect_alive();
}

#[test]
fn it_serves_during_and_after_every_attack_and_its_memory_comes_back() {
    let process = Process::start(&[]);
    let relay = process.relay;
    expect_service(relay, "warm");
    let (at_start, _) = process.memory();
    let attacks: [(&str, Attack); 9] = [
        ("garbage", garbage_for_heads_and_frames),
        ("half requests", half_requests),
        ("connect and drop", connect_and_drop),
        ("great promises", great_promises),
        ("deep JSON", deep_json),
        ("empty fragments", empty_fragments),
        ("pings", pings_whose_pongs_are_not_read),
        ("single bytes", single_bytes),
        ("backlogs", backlogs_that_are_not_read),
    ];
    for (n, (what, attack)) in attacks.into_iter().enumerate() {
        let began = std::time::Instant::now();
        println!("{what}");
        let under_attack = thread::spawn(move || attack(relay));
        expect_service(relay, &format!("during{n}"));
        under_attack.join().unwrap();
        println!("{what} took {:?}, {} KiB", began.elapsed(), process.memory().0 >> 10);
        eventually("all attackers are gone", || healthz(relay) == (0, 0));
        expect_service(relay, &format!("after{n}"));
    }
    eventually("all sockets are closed", || process.descriptors() < 20);
    assert_eq!(ask(relay, "GET /readyz HTTP/1.1\r\nHost: relay\r\n\r\n").status, 200);
    let (after, _) = process.memory();
    let grown = after.saturating_sub(at_start);
    assert!(grown < 8 << 20, "{grown} bytes more than at the start");
}
