//! HTTP admission: the order of the checks, and how a response ends.
//!
//! The format of a request head is tested beside its parser.

use pyrycode_relay::config::Config;
use pyrycode_relay::relay::stats::Outcome;
use pyrycode_relay::time::TICK;

use crate::peer::{HOME, Seen, claim, join, request};
use crate::wire;
use crate::world::{PeerId, World, secs};

fn refused(world: &mut World, head: &str) -> (u16, PeerId) {
    let peer = world.dial(head);
    let seen = world.heard(peer);
    let [Seen::Answer(status), Seen::End] = seen[..] else { panic!("{head:?}: {seen:?}") };
    assert!(world.is_gone(peer));
    (status, peer)
}

/// Has everything wrong, from the last gate to the first.
fn worst(faults: usize) -> String {
    let mut head = request(
        "/v1/client",
        &["x-pyrycode-server: home", "x-pyrycode-token: t", "content-length: 0"],
    );
    let breaks: [(&str, &str); 6] = [
        ("Key: dGhlIHNhbXBsZSBub25jZQ==", "Key: short"),
        ("Version: 13", "Version: 12"),
        ("Upgrade: websocket", "Upgrade: h2c"),
        ("GET ", "POST "),
        ("x-pyrycode-token: t", "x-pyrycode-token: "),
        ("content-length: 0", "content-length: 1"),
    ];
    for (right, wrong) in &breaks[..faults] {
        head = head.replace(right, wrong);
    }
    head
}

#[test]
fn gates_are_checked_in_this_order() {
    let mut world = World::new();
    // Key, version, upgrade, method, headers, body: the first gate decides.
    for (faults, expected) in [(1, 400), (2, 400), (3, 426), (4, 405), (5, 400), (6, 400)] {
        let (status, peer) = refused(&mut world, &worst(faults));
        let answer = &world.peer(peer).answer;
        assert_eq!(status, expected, "{faults} faults");
        assert_eq!(wire::field(answer, "sec-websocket-version"), (faults == 2).then_some("13"));
        assert_eq!(wire::field(answer, "allow").is_some(), faults == 4);
        assert_eq!(wire::field(answer, "upgrade").is_some(), faults == 3);
    }
    // 2 bad handshakes of the key, version; upgrade, method; headers; a bad head is no attempt.
    let upgrades = &world.relay.stats().upgrades[1];
    assert_eq!(upgrades[Outcome::RejectHandshake], 4);
    assert_eq!(upgrades[Outcome::RejectHeaders], 1);
    assert_eq!(upgrades.total(), 5);
    world.finish();

    // The cap stands before headers and handshake, the rate before the cap.
    let mut config = Config::default();
    (config.limits.rate_per_minute, config.limits.rate_burst) = (1, 2);
    let mut world = World::with(config, 0, 1);
    assert_eq!(refused(&mut world, &worst(0)).0, 503);
    assert_eq!(refused(&mut world, &worst(5)).0, 503);
    assert_eq!(refused(&mut world, &worst(5)).0, 429);
    assert_eq!(refused(&mut world, &worst(6)).0, 400);
    let upgrades = &world.relay.stats().upgrades[1];
    assert_eq!(upgrades[Outcome::RejectCap], 2);
    assert_eq!(upgrades[Outcome::RejectRateLimit], 1);
    world.finish();
}

#[test]
fn required_headers_by_endpoint() {
    let lines = ["x-pyrycode-server: home", "x-pyrycode-version: 1", "x-pyrycode-token: t"];
    for (path, needs) in [("/v1/server", [0, 1]), ("/v1/client", [0, 2])] {
        for left_out in 0..3 {
            let mut world = World::new();
            let mut kept = lines.to_vec();
            kept.remove(left_out);
            let peer = world.dial(&request(path, &kept));
            let expected = if needs.contains(&left_out) { 400 } else { 101 };
            assert_eq!(world.heard(peer)[0], Seen::Answer(expected), "{path} {left_out}");
        }
        let mut world = World::new();
        let head = request(path, &lines).replace("User-Agent: simulation\r\n", "");
        assert_eq!(refused(&mut world, &head).0, 400, "{path}");
        let twice = request(path, &[&lines[..], &lines[..1]].concat());
        assert_eq!(refused(&mut world, &twice).0, 400, "{path}");
        let spaced = request(path, &lines).replace("server: home", "server: my home");
        assert_eq!(refused(&mut world, &spaced).0, 400, "{path}");
        for (len, expected) in [(128, 101), (129, 400)] {
            let head = request(path, &lines).replace("home", &"x".repeat(len));
            let peer = world.dial(&head);
            assert_eq!(world.heard(peer)[0], Seen::Answer(expected), "{path} {len}");
        }
    }
}

#[test]
fn the_101_is_what_rfc_6455_asks_for() {
    let mut world = World::new();
    let binary = world.binary("home");
    let answer = &world.peer(binary).answer;
    for (name, value) in [
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        // The example of RFC 6455 §1.3.
        ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
    ] {
        assert_eq!(wire::field(answer, name), Some(value));
    }
    for name in ["sec-websocket-protocol", "sec-websocket-extensions", "server"] {
        assert_eq!(wire::field(answer, name), None);
    }
    world.finish();
}

#[test]
fn half_a_request_is_answered_408_after_5_s() {
    for begun in ["", "G", "GET /v1/server HTTP/1.1\r\nHost: x\r\n"] {
        let mut world = World::new();
        let peer = world.dial(begun);
        // Further bytes do not extend the deadline.
        world.pass(secs(3));
        if !begun.is_empty() {
            world.send(peer, if begun.len() == 1 { b"E" } else { b"x: y\r\n" });
        }
        world.pass(secs(2) - TICK);
        assert_eq!(world.heard(peer), []);
        world.pass(2 * TICK);
        assert_eq!(world.heard(peer), [Seen::Answer(408), Seen::End], "{begun:?}");
        assert!(world.is_gone(peer));
        world.finish();
    }
}

#[test]
fn a_head_may_come_in_any_pieces() {
    let head = claim("home");
    for size in 1..head.len() {
        let mut world = World::new();
        let peer = world.dial("");
        for piece in head.as_bytes().chunks(size) {
            world.send(peer, piece);
        }
        assert_eq!(world.heard(peer), [Seen::Answer(101)], "pieces of {size}");
        assert_eq!(world.relay.buffered(), 0);
    }
}

#[test]
fn a_refused_peer_receives_the_response_however_it_behaves() {
    // The peer continues to send, and reads late.
    let mut world = World::new();
    let peer = world.dial("");
    world.stop_reading(peer, 10);
    world.peer_mut(peer).habits.hangs_up = false;
    world.send(peer, format!("GET / HTTP/1.1\r\nHost: x\r\n\r\n{}", claim("home")).as_bytes());
    world.send(peer, &[0; 100_000]);
    assert_eq!(world.relay.slots(), 0, "what follows is never parsed");
    world.pass(secs(2));
    world.read_on(peer);
    assert_eq!(world.heard(peer), [Seen::Answer(404), Seen::End]);
    world.send(peer, b"still here");
    world.pass(secs(5) + TICK);
    assert!(world.is_gone(peer));
    world.finish();
    // The peer has disconnected already.
    let mut world = World::new();
    let peer = world.dial("");
    world.freeze(secs(0), |world| {
        world.send(peer, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
        world.hang_up(peer);
    });
    assert_eq!(world.heard(peer), [Seen::Answer(200), Seen::End]);
    assert!(world.is_gone(peer));
    world.finish();
}

#[test]
fn a_disconnect_within_the_head_releases_the_connection() {
    for bytes in ["", "GET"] {
        let mut world = World::new();
        let peer = world.dial_from(HOME, bytes.as_bytes());
        world.hang_up(peer);
        assert!(world.is_gone(peer) && world.relay.is_empty());
        assert_eq!((world.relay.buffered(), world.relay.next_deadline()), (0, None));
    }
}

#[test]
fn healthz_counts() {
    let mut world = World::new();
    let binary = world.binary("home");
    for _ in 0..3 {
        world.phone("home");
    }
    world.pass(secs(90));
    let body = |world: &mut World| {
        let (status, peer) = refused(world, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
        let answer = &world.peer(peer).answer;
        assert_eq!(status, 200);
        assert_eq!(wire::field(answer, "content-type"), Some("application/json; charset=utf-8"));
        assert_eq!(wire::field(answer, "cache-control"), Some("no-store"));
        answer.rsplit("\r\n").next().expect("a body").to_owned()
    };
    let version = env!("CARGO_PKG_VERSION");
    let expected = |binaries: u32, phones: u32, uptime: u32| {
        format!(
            r#"{{"status":"ok","version":"{version}","connected_binaries":{binaries},"connected_phones":{phones},"uptime_seconds":{uptime}}}"#
        )
    };
    assert_eq!(body(&mut world), expected(1, 3, 90));
    world.hang_up(binary);
    assert_eq!(body(&mut world), expected(0, 3, 90));
    world.pass(secs(31));
    assert_eq!(body(&mut world), expected(0, 0, 121));
    let (status, peer) = refused(&mut world, "POST /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!((status, wire::field(&world.peer(peer).answer, "allow")), (405, Some("GET, HEAD")));
    world.finish();
}

#[test]
fn attempts_are_counted_once_by_how_they_end() {
    let mut world = World::new();
    let binary = world.binary("home");
    for _ in 0..17 {
        world.phone("home");
    }
    world.dial(&join("nobody"));
    world.binary("home");
    world.vanish(binary);
    let waits = world.binary("home");
    world.hang_up(waits);
    world.binary("home");
    world.pass(secs(11));
    let [server, client] = &world.relay.stats().upgrades;
    assert_eq!(client[Outcome::Accept], 16);
    assert_eq!(client[Outcome::Reject429], 1);
    assert_eq!(client[Outcome::Reject404], 1);
    assert_eq!(client.total(), 18);
    assert_eq!(server[Outcome::Accept], 2);
    assert_eq!(server[Outcome::Reject409], 2);
    assert_eq!(server.total(), 4);
    world.finish();
}
