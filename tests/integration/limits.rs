//! Limits: the rate limit and the connection caps.

use std::io::Write;
use std::net::SocketAddr;

use pyrycode_relay::config::Config;

use crate::support::{
    Answer, Peer, Process, ask, binary_head, connect_from, eventually, healthz, phone_head, relay,
    relay_for,
};

/// The status of an upgrade attempt.
fn attempt(relay: SocketAddr, source: [u8; 4], forwarded_for: Option<&str>) -> u16 {
    let forwarded_for = forwarded_for.map(|value| format!("x-forwarded-for: {value}\r\nuser"));
    let head = phone_head("none").replacen("user", &forwarded_for.unwrap_or("user".into()), 1);
    let mut stream = connect_from(source, relay);
    stream.write_all(head.as_bytes()).unwrap();
    let mut status = [0; 12];
    std::io::Read::read_exact(&mut stream, &mut status).unwrap();
    std::str::from_utf8(&status[9..]).unwrap().parse().unwrap()
}

/// The usual burst; and a refill so slow that a stall of the machine makes no difference.
fn limited(config: &mut Config) {
    config.limits.rate_per_minute = 1;
}

fn limited_and_proxied(config: &mut Config) {
    limited(config);
    config.forwarded.trust_x_forwarded_for = true;
}

#[test]
fn twenty_attempts_at_once_and_the_next_is_429() {
    let relay = relay(limited);
    for n in 0..20 {
        assert_eq!(attempt(relay, [127, 0, 0, 1], None), 101, "{n}");
    }
    for _ in 0..3 {
        assert_eq!(attempt(relay, [127, 0, 0, 1], None), 429);
    }
    // An untrusted header has no effect.
    assert_eq!(attempt(relay, [127, 0, 0, 1], Some("192.0.2.1")), 429);
    let answer = ask(relay, &binary_head("home"));
    assert_eq!((answer.status, answer.body.as_str()), (429, ""), "one bucket for both endpoints");
    // /healthz is not limited, and neither is any other address.
    assert_eq!(healthz(relay), (0, 0));
    assert_eq!(attempt(relay, [127, 0, 0, 2], None), 101);
}

#[test]
fn every_upgrade_attempt_counts_and_no_other_request() {
    let relay = relay(limited);
    for _ in 0..50 {
        assert_eq!(healthz(relay), (0, 0));
        assert_eq!(ask(relay, "GET /none HTTP/1.1\r\nHost: relay\r\n\r\n").status, 404);
    }
    let headless = "GET /v1/client HTTP/1.1\r\nHost: relay\r\n\r\n";
    for n in 0..20 {
        assert_eq!(ask(relay, headless).status, 400, "{n}");
    }
    assert_eq!(ask(relay, headless).status, 429, "the rate limit comes before the headers");
}

#[test]
fn behind_a_proxy_each_client_has_its_own_bucket() {
    let relay = relay(limited_and_proxied);
    let exhaust = |forwarded_for: &str| {
        (0..25)
            .map(|_| attempt(relay, [127, 0, 0, 1], Some(forwarded_for)))
            .filter(|s| *s == 101)
            .count()
    };
    assert_eq!(exhaust("192.0.2.1"), 20);
    assert_eq!(exhaust("192.0.2.2"), 20);
    // Read from the right, past trusted hops: what a client writes on the left
    // buys it nothing.
    assert_eq!(exhaust("198.51.100.7, 192.0.2.1"), 0);
    assert_eq!(exhaust("198.51.100.7, 192.0.2.2, 10.0.0.1, 127.0.0.1"), 0);
    assert_eq!(exhaust("garbage, 192.0.2.1"), 0);
    assert_eq!(exhaust("198.51.100.7\r\nx-forwarded-for: 192.0.2.1"), 0);
    // The same in another spelling; for IPv6 all of one /64.
    assert_eq!(exhaust("::ffff:192.0.2.1"), 0);
    assert_eq!(exhaust("2001:db8::1"), 20);
    assert_eq!(exhaust("2001:db8::ffff:1"), 0);
    assert_eq!(exhaust("2001:db8:0:1::1"), 20);
}

#[test]
fn one_pool_for_binaries_and_phones() {
    let relay = relay_for(2, |_| {});
    let mut binary = Peer::binary(relay, "home");
    let phone = Peer::phone(relay, "home");
    for head in [phone_head("home"), binary_head("away")] {
        let answer = ask(relay, &head);
        assert_eq!((answer.status, answer.body.as_str()), (503, ""));
        assert!(answer.has("Connection: close"));
    }
    let ready = "GET /readyz HTTP/1.1\r\nHost: relay\r\n\r\n";
    assert_eq!(ask(relay, ready).status, 503);
    assert_eq!(healthz(relay), (1, 1));
    // The cap comes before the headers.
    assert_eq!(ask(relay, "GET /v1/client HTTP/1.1\r\nHost: relay\r\n\r\n").status, 503);

    drop(phone);
    eventually("there is room", || ask(relay, ready).status == 200);
    // A refused connection does not count, however long it lingers.
    let _refused: Vec<Peer> = (0..5).map(|_| Peer::phone(relay, "none")).collect();
    let mut phone = Peer::phone(relay, "home");
    phone.expect_alive();
    binary.expect_alive();
}

#[test]
fn a_cap_for_each_client_address() {
    let relay = relay(|config| config.limits.connections_per_ip = 2);
    let _binary = Peer::binary(relay, "home");
    let phone = Peer::phone(relay, "home");
    let mut third = connect_from([127, 0, 0, 1], relay);
    third.write_all(phone_head("home").as_bytes()).unwrap();
    assert_eq!(Answer::read(&mut third).status, 503);
    let _elsewhere = Peer::upgrade(connect_from([127, 0, 0, 2], relay), &phone_head("home"));
    drop(phone);
    eventually("there is room", || {
        let mut stream = connect_from([127, 0, 0, 1], relay);
        stream.write_all(phone_head("none").as_bytes()).unwrap();
        let mut start = [0; 12];
        std::io::Read::read_exact(&mut stream, &mut start).unwrap();
        &start[9..] == b"101"
    });
}

#[test]
fn flags_set_the_limits() {
    let process = Process::start(&["--rate-limit-per-minute=60", "--rate-limit-burst", "3"]);
    let statuses: Vec<u16> = (0..4).map(|_| attempt(process.relay, [127, 0, 0, 1], None)).collect();
    assert_eq!(statuses, [101, 101, 101, 429]);
    let line = process.expect_line("msg=rate_limited");
    assert!(line.contains("remote=127.0.0.1") && line.contains("path=/v1/client"), "{line}");
    assert!(line.contains("level=WARN"), "{line}");

    let process = Process::start(&["-max-connections", "1"]);
    let _binary = Peer::binary(process.relay, "home");
    assert_eq!(attempt(process.relay, [127, 0, 0, 1], None), 503);
    process.expect_line("msg=conn_cap_reached");
}
