//! Heartbeat: a dead peer is detected, and no live one is closed.

use std::time::{Duration, Instant};

use pyrycode_relay::config::Config;

use crate::support::{
    NEVER, Opcode, PATIENCE, Peer, Received, connect_reading_little, eventually, healthz, millis,
    phone_head, relay,
};

const INTERVAL: Duration = millis(300);
const TIMEOUT: Duration = millis(300);
/// A timer tick, and what a busy machine may add.
const SLACK: Duration = millis(100 + 900);

fn beating(config: &mut Config) {
    config.timeouts.ping_interval = INTERVAL;
    config.timeouts.pong = TIMEOUT;
}

/// Reads on without answering until the close; returns how many pings came.
fn hear_out(peer: &mut Peer) -> usize {
    let mut pings = 0;
    loop {
        match peer.receive() {
            Received::Ping(_) => pings += 1,
            Received::Close(why) => {
                assert_eq!(why, Some((1011, "heartbeat timeout".into())));
                break;
            }
            received => panic!("{received:?}"),
        }
    }
    pings
}

#[test]
fn a_silent_peer_is_closed_and_its_place_is_free_at_once() {
    // The slot is released although the socket still lingers.
    let relay = relay(|config| {
        beating(config);
        config.timeouts.linger = NEVER;
    });
    let began = Instant::now();
    let mut binary = Peer::binary(relay, "home");
    assert!(hear_out(&mut binary) >= 1);
    let took = began.elapsed();
    assert!(took >= TIMEOUT && took <= INTERVAL + TIMEOUT + SLACK, "{took:?}");
    assert_eq!(healthz(relay), (0, 0), "the close is on the wire, the slot is free");

    // The claim succeeds without a probe although the old binary has not answered the close.
    let mut heir = Peer::binary(relay, "home");
    heir.expect_alive();
    let began = Instant::now();
    let mut phone = Peer::phone(relay, "home");
    let watch = std::thread::spawn(move || {
        loop {
            if let Received::End = heir.receive_answering() {
                break;
            }
        }
    });
    hear_out(&mut phone);
    let took = began.elapsed();
    assert!(took >= TIMEOUT && took <= INTERVAL + TIMEOUT + SLACK, "{took:?}");
    assert_eq!(healthz(relay), (1, 0));
    assert!(!watch.is_finished(), "the honest binary lives");
    assert_eq!(binary.receive(), Received::End);
}

#[test]
fn an_honest_peer_lives() {
    let relay = relay(beating);
    let mut peers = vec![Peer::binary(relay, "home"), Peer::phone(relay, "home")];
    peers.push(Peer::phone(relay, "home"));
    let listeners: Vec<_> = peers
        .into_iter()
        .map(|mut peer| {
            std::thread::spawn(move || {
                for ping in 0..5 {
                    let Received::Ping(payload) = peer.receive() else {
                        panic!("after {ping} pings")
                    };
                    peer.send(Opcode::Pong, &payload);
                }
                peer.expect_alive();
                peer
            })
        })
        .collect();
    // The binary ends first: otherwise it receives a close notice of the phone.
    for listener in listeners {
        listener.join().unwrap();
    }
}

#[test]
fn pings_come_at_their_interval() {
    let relay = relay(beating);
    let mut binary = Peer::binary(relay, "home");
    let mut came = Vec::new();
    while came.len() < 6 {
        let Received::Ping(payload) = binary.receive() else { panic!("nothing else is due") };
        came.push(Instant::now());
        binary.send(Opcode::Pong, &payload);
    }
    let took = came[5] - came[0];
    assert!(took + millis(120) >= 5 * INTERVAL && took <= 5 * INTERVAL + SLACK, "{took:?}");
}

#[test]
fn only_the_matching_pong_proves_life() {
    let relay = relay(beating);
    let mut binary = Peer::binary(relay, "home");
    let mut payload = Vec::new();
    // The peer is busy: it sends messages, pings of its own, unsolicited pongs, and the
    // first pong over and over.
    eventually("the close", || {
        let flurry = [
            crate::support::frame(Opcode::Pong, true, b"unasked"),
            crate::support::frame(Opcode::Pong, true, &[]),
            crate::support::frame(Opcode::Pong, true, &payload),
            crate::support::frame(Opcode::Ping, true, b"mine"),
            crate::support::frame(Opcode::Text, true, b"{\"conn_id\":\"x\",\"frame\":1}"),
        ];
        binary.send_raw(&flurry.concat());
        loop {
            match binary.receive() {
                Received::Ping(ping) => {
                    if payload.is_empty() {
                        payload = ping;
                    }
                }
                // The relay has read all of these frames.
                Received::Pong(_) => return false,
                Received::Close(why) => {
                    assert_eq!(why, Some((1011, "heartbeat timeout".into())));
                    return true;
                }
                received => panic!("{received:?}"),
            }
        }
    });
}

#[test]
fn the_pong_to_the_latest_ping_is_enough() {
    let relay = relay(|config| {
        config.timeouts.ping_interval = millis(150);
        config.timeouts.pong = millis(1500);
    });
    let mut binary = Peer::binary(relay, "home");
    for _ in 0..3 {
        let mut latest = Vec::new();
        for _ in 0..4 {
            let Received::Ping(payload) = binary.receive() else { panic!("nothing else is due") };
            latest = payload;
        }
        binary.send(Opcode::Pong, &latest);
    }
    binary.expect_alive();
}

#[test]
fn a_peer_that_vanished_with_data_queued_to_it_is_found_as_soon() {
    let relay = relay(|config| {
        beating(config);
        config.timeouts.write = NEVER;
        // The binary answers no ping either.
        config.timeouts.pong = millis(900);
    });
    let mut binary = Peer::binary(relay, "home");
    let phone = Peer::upgrade(connect_reading_little(relay), &phone_head("home"));
    let began = Instant::now();
    // From here on the peer reads nothing; its kernel acknowledges until its buffer is full.
    let payload = format!("\"{}\"", "x".repeat(100_000));
    for _ in 0..20 {
        binary.send_to(&phone.id, &payload);
    }
    let listener = std::thread::spawn(move || while binary.receive_answering() != Received::End {});
    eventually("the phone is gone", || healthz(relay) == (1, 0));
    let took = began.elapsed();
    assert!(took <= INTERVAL + millis(900) + SLACK, "{took:?}");
    assert!(!listener.is_finished());
}

#[test]
fn a_live_peer_that_reads_slowly_gets_its_ping_in_time() {
    let relay = relay(|config| {
        beating(config);
        config.timeouts.pong = millis(1000);
    });
    let mut binary = Peer::binary(relay, "home");
    let mut phone = Peer::upgrade(connect_reading_little(relay), &phone_head("home"));
    // The backlog is 3 MB; the phone reads 1 MB/s.
    let payload = format!("\"{}\"", "x".repeat(50_000));
    for _ in 0..60 {
        binary.send_to(&phone.id, &payload);
    }
    let listener = std::thread::spawn(move || while binary.receive_answering() != Received::End {});
    let (mut texts, mut answered) = (0, 0);
    while answered < 5 {
        match phone.receive() {
            Received::Ping(ping) => {
                phone.send(Opcode::Pong, &ping);
                answered += 1;
            }
            Received::Text(_) => {
                texts += 1;
                // Sets the reading speed; nothing is waited for.
                std::thread::park_timeout(millis(50));
            }
            received => panic!("{received:?} after {texts} messages"),
        }
    }
    assert!(texts < 60, "the pings overtook what was queued");
    while texts < 60 {
        texts += usize::from(matches!(phone.receive_answering(), Received::Text(_)));
    }
    assert!(!listener.is_finished());
}

#[test]
fn the_close_is_the_only_one_and_the_socket_goes_when_it_is_answered() {
    let relay = relay(|config| {
        beating(config);
        config.timeouts.linger = PATIENCE;
    });
    let mut binary = Peer::binary(relay, "home");
    hear_out(&mut binary);
    assert_eq!(binary.receive(), Received::End);
    // The socket is drained, not reset: what the peer still sends is read and discarded.
    binary.send(Opcode::Text, &[b' '; 100_000]);
    binary.send_close(1011);
    let began = Instant::now();
    eventually("the socket is gone", || {
        use std::io::Write;
        binary.stream.write_all(b"x").is_err()
    });
    assert!(began.elapsed() < PATIENCE / 2);
}
