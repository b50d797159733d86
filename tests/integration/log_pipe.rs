//! Log pipe: a stderr that is not read loses log lines and has no other effect.

use std::time::Duration;

use rustix::process::Signal;

use crate::support::{Opcode, Peer, Process, Received, Scrape, envelope, healthz};

#[test]
fn a_stuck_stderr_delays_neither_frames_nor_pings_nor_exit() {
    let mut process = Process::start_with_stuck_stderr("trace");
    let relay = process.relay;
    let mut binary = Peer::binary(relay, "home");
    let mut phone = Peer::phone(relay, "home");
    // Each dropped envelope writes a line: many times what pipe and queue hold.
    let undeliverable = envelope("nobody", "1");
    for _ in 0..300 {
        let flood = crate::support::frame(Opcode::Text, true, undeliverable.as_bytes()).repeat(100);
        binary.send_raw(&flood);
    }
    for n in 0..100 {
        phone.send_text(&n.to_string());
        assert_eq!(binary.receive_text(), envelope(&phone.id, &n.to_string()));
        binary.send_to(&phone.id, &n.to_string());
        assert_eq!(phone.receive_text(), n.to_string());
    }
    // First pings are spread over 30 s: of 200 peers one is pinged within 2 s.
    let mut others: Vec<Peer> = (0..200).map(|n| Peer::binary(relay, &n.to_string())).collect();
    let has_pinged = others.iter_mut().any(|peer| {
        peer.stream.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        matches!(peer.try_receive(), Ok(Received::Ping(_)))
    });
    assert!(has_pinged);
    assert_eq!(healthz(relay), (201, 1));
    let scrape = Scrape::of(process.metrics);
    assert_eq!(scrape.value("frames_dropped_total{cause=\"unknown_phone\"}"), 30_000.0);
    let lost = scrape.value("log_lines_dropped_total");
    assert!(lost > 10_000.0 && lost < 30_000.0 + 1_000.0, "{lost}");

    process.signal(Signal::TERM);
    drop((binary, phone, others));
    let (status, took) = process.wait();
    assert_eq!(status, Some(0));
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn no_peer_can_forge_a_line_and_no_token_is_written() {
    let process = Process::start(&[]);
    let head = crate::support::upgrade_head(
        "/v1/client",
        "x-pyrycode-server: none\"\\msg=forged\r\nx-pyrycode-token: hunter2-swordfish\r\n\
         x-pyrycode-device-name: a b\" level=ERROR msg=forged \u{85}\u{2028}\r\nuser-agent: t\r\n",
    );
    drop(Peer::upgrade(crate::support::connect(process.relay), &head));
    let _binary = Peer::binary(process.relay, "home");
    let mut line = process.next_line(crate::support::PATIENCE).unwrap();
    while !line.contains("server_claimed") {
        assert!(!line.contains("hunter2-swordfish"), "{line}");
        assert!(!line.contains(" msg=forged") || line.contains("\\\""), "{line}");
        line = process.next_line(crate::support::PATIENCE).unwrap();
    }
}
