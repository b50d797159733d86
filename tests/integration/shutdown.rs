//! Shut-down: on SIGTERM and SIGINT every peer receives a close, then the process ends.

use std::io::Write;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::{
    Answer, Peer, Process, Received, ask, connect, connect_reading_little, eventually, phone_head,
};

const HEALTHZ: &str = "GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n";

/// Hears 1001 and answers it as RFC 6455 wants it: a close, then wait for FIN.
fn answer_close(peer: &mut Peer) {
    let received = loop {
        // A pong now could answer a probe, and a claimant would be closed with 4409.
        match peer.receive() {
            Received::Ping(_) => {}
            received => break received,
        }
    };
    assert_eq!(received, Received::Close(Some((1001, "shutting down".into()))));
    peer.send_close(1001);
    assert_eq!(peer.receive(), Received::End);
}

#[test]
fn every_peer_is_closed_and_the_process_exits_with_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut process = Process::start(&[]);
        let relay = process.relay;
        let mut peers = vec![Peer::binary(relay, "home"), Peer::phone(relay, "home")];
        // A claimant that waits, and a phone whose binary is away.
        peers.push(Peer::binary(relay, "home"));
        drop(Peer::binary(relay, "away"));
        peers.push(Peer::phone(relay, "away"));
        process.signal(signal);
        for peer in &mut peers {
            answer_close(peer);
        }
        drop(peers);
        let (status, took) = process.wait();
        assert_eq!(status, Some(0));
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
}

#[test]
fn without_connections_it_ends_at_once() {
    let mut process = Process::start(&[]);
    process.signal(Signal::TERM);
    let (status, took) = process.wait();
    assert_eq!(status, Some(0));
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn peers_that_answered_are_not_waited_for() {
    let mut process = Process::start(&[]);
    let mut binary = Peer::binary(process.relay, "home");
    process.signal(Signal::TERM);
    // It answers and leaves it to the relay to close, as RFC 6455 §7.1.1 asks of
    // a client, without so much as a FIN.
    answer_close(&mut binary);
    let (status, took) = process.wait();
    assert_eq!(status, Some(0));
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn while_it_drains_it_reports_so_and_refuses_upgrades() {
    let mut process = Process::start(&[]);
    let relay = process.relay;
    let mut holdout = Peer::binary(relay, "home");
    let head = phone_head("home");
    let (begun, rest) = head.split_at(40);
    let mut in_flight = connect(relay);
    in_flight.write_all(begun.as_bytes()).unwrap();
    assert_eq!(ask(relay, HEALTHZ).status, 200);
    process.signal(Signal::TERM);
    assert_eq!(holdout.receive_answering(), Received::Close(Some((1001, "shutting down".into()))));

    let health = ask(relay, HEALTHZ);
    assert_eq!(health.status, 503);
    assert!(health.body.starts_with("{\"status\":\"draining\","), "{}", health.body);
    assert_eq!(ask(relay, &HEALTHZ.replace("healthz", "readyz")).status, 503);
    for path in ["/v1/server", "/v1/client"] {
        let answer = ask(relay, &head.replace("/v1/client", path));
        assert_eq!((answer.status, answer.body.as_str()), (503, ""), "{path}");
    }
    in_flight.write_all(rest.as_bytes()).unwrap();
    assert_eq!(Answer::read(&mut in_flight).status, 503);

    drop((holdout, in_flight));
    let (status, took) = process.wait();
    assert_eq!(status, Some(0));
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn a_request_that_was_accepted_is_answered_though_no_websocket_is_left() {
    let mut process = Process::start(&[]);
    let relay = process.relay;
    let (mut early, silent) = (connect(relay), connect(relay));
    // Both are accepted, because they were first.
    assert_eq!(ask(relay, HEALTHZ).status, 200);
    process.signal(Signal::TERM);
    eventually("it drains", || ask(relay, HEALTHZ).status == 503);
    early.write_all(phone_head("home").as_bytes()).unwrap();
    assert_eq!(Answer::read(&mut early).status, 503);
    let (status, took) = process.wait();
    assert_eq!(status, Some(0));
    assert!(took < Duration::from_secs(2), "{took:?}");
    drop(silent);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut process = Process::start(&[]);
    let mut holdout = Peer::binary(process.relay, "home");
    process.signal(Signal::TERM);
    assert!(matches!(holdout.receive_answering(), Received::Close(_)));
    process.signal(Signal::INT);
    let (status, took) = process.wait();
    assert_eq!(status, Some(1));
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn a_peer_that_is_closing_receives_nothing_more() {
    let mut process = Process::start(&[]);
    let mut peer = Peer::phone(process.relay, "none");
    assert_eq!(peer.receive(), Received::Close(Some((4404, "no server with that id".into()))));
    process.signal(Signal::TERM);
    eventually("it drains", || ask(process.relay, HEALTHZ).status == 503);
    assert_eq!(peer.receive(), Received::End);
    drop(peer);
    assert_eq!(process.wait().0, Some(0));
}

#[test]
fn peers_that_do_not_answer_delay_the_exit_by_at_most_ten_seconds() {
    let mut process = Process::start(&[]);
    let relay = process.relay;
    let mut binary = Peer::binary(relay, "home");
    let _silent = Peer::phone(relay, "home");
    // This phone reads nothing, so the relay waits for its backlog.
    let stuck = Peer::upgrade(connect_reading_little(relay), &phone_head("home"));
    let payload = format!("\"{}\"", "x".repeat(100_000));
    for _ in 0..20 {
        binary.send_to(&stuck.id, &payload);
    }
    binary.expect_alive();
    process.signal(Signal::TERM);
    let (status, took) = process.wait();
    assert_eq!(status, Some(0));
    assert!(took < Duration::from_secs(12), "{took:?}");
    drop(stuck);
}
