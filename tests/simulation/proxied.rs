//! PROXY header: connections through a load balancer that names the client.
//!
//! The format of a header is tested beside its parser.

use std::net::IpAddr;

use pyrycode_relay::config::{Config, Forwarded};
use pyrycode_relay::relay::counts::Counts;
use pyrycode_relay::relay::stats::ProxyRefusal;
use pyrycode_relay::time::TICK;

use crate::peer::{Seen, claim, join, request};
use crate::proxy;
use crate::world::{PeerId, World, secs, text};

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

const BALANCER: &str = "10.0.0.9";

fn dial(world: &mut World, header: &[u8], head: &str) -> PeerId {
    world.dial_through(address(BALANCER), header, head)
}

/// The status of the answer to `head` of a client at `address`.
fn status(world: &mut World, from: &str, head: &str) -> u16 {
    let peer = dial(world, &proxy::client(address(from)), head);
    match world.heard(peer)[0] {
        Seen::Answer(status) => status,
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn limits_count_by_client_and_never_by_balancer() {
    let mut config = Config::default();
    (config.limits.rate_per_minute, config.limits.rate_burst) = (1, 3);
    config.limits.connections_per_ip = 2;
    let mut world = World::with(config, 1_000, 1);
    let server = dial(&mut world, &proxy::client(address("192.0.2.1")), &claim("home"));
    assert_eq!(world.heard(server), [Seen::Answer(101)]);
    assert_eq!(status(&mut world, "192.0.2.1", &join("home")), 101);
    assert_eq!(status(&mut world, "192.0.2.1", &join("home")), 503, "two connections");
    assert_eq!(status(&mut world, "192.0.2.1", &join("home")), 429, "three attempts");
    // One client has one bucket, however its address is spelt.
    assert_eq!(status(&mut world, "::ffff:192.0.2.1", &join("home")), 429);
    for n in 2..10 {
        assert_eq!(status(&mut world, &format!("192.0.2.{n}"), &join("home")), 101);
    }
    for n in 1..20 {
        assert_eq!(status(&mut world, &format!("2001:db8:0:{n}::1"), &join("none")), 101);
    }
    world.finish();
}

#[test]
fn a_balancers_own_connection_asks_for_health_and_nothing_else() {
    let mut world = World::with(Config::default(), 0, 1);
    for (head, expected) in [
        (request("/healthz", &[]), 200),
        // Full: not ready for a client.
        (request("/readyz", &[]), 503),
        (request("/healthz", &[]).replace("GET", "POST"), 405),
        (request("/", &[]), 403),
        (request("/metrics", &[]), 403),
        (join("home"), 403),
        (claim("home"), 403),
        ("GET\r\n\r\n".into(), 400),
    ] {
        let peer = dial(&mut world, &proxy::local(), &head);
        assert_eq!(world.heard(peer), [Seen::Answer(expected), Seen::End], "{head}");
    }
    world.shut_down();
    let peer = dial(&mut world, &proxy::local(), &join("home"));
    assert_eq!(world.heard(peer), [Seen::Answer(403), Seen::End]);
    assert_eq!(world.relay.stats().upgrades.each_ref().map(Counts::total), [0, 0]);
    // More of them than a client may attempt upgrades.
    let mut world = World::with(Config::default(), 10, 1);
    for _ in 0..50 {
        let peer = dial(&mut world, &proxy::local(), &request("/readyz", &[]));
        assert_eq!(world.heard(peer), [Seen::Answer(200), Seen::End]);
    }
}

#[test]
fn without_a_valid_header_a_connection_is_closed_without_a_byte() {
    let mut world = World::new();
    let garbage = dial(&mut world, b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", &claim("home"));
    assert_eq!(world.heard(garbage), [Seen::Cut]);

    let silent = dial(&mut world, b"", "");
    world.pass(secs(5) - TICK);
    assert_eq!(world.heard(silent), []);
    world.pass(2 * TICK);
    assert_eq!(world.heard(silent), [Seen::Cut]);

    // A port check, which is not an error.
    let checks = dial(&mut world, b"", "");
    world.hang_up(checks);
    assert!(world.is_gone(checks) && world.relay.is_empty());

    let refusals = &world.relay.stats().proxy_refusals;
    assert_eq!(refusals[ProxyRefusal::Malformed], 1);
    assert_eq!(refusals[ProxyRefusal::Late], 1);
    assert_eq!(refusals[ProxyRefusal::Untrusted], 0);
    assert_eq!(world.relay.slots(), 0);
    world.finish();
}

#[test]
fn the_head_timeout_of_5_s_starts_at_accept_and_includes_the_header() {
    let mut world = World::new();
    let peer = dial(&mut world, &proxy::client(address("192.0.2.1")), "GET");
    world.pass(secs(5) + TICK);
    assert_eq!(world.heard(peer), [Seen::Answer(408), Seen::End]);
    world.finish();
}

fn trusting(proxies: &[&str], trust_x_forwarded_for: bool) -> World {
    let mut config = Config::default();
    config.limits.connections_per_ip = 1;
    let proxies = proxies.iter().map(|net| net.parse().expect("a network")).collect();
    config.forwarded = Forwarded { trust_x_forwarded_for, trusted_proxies: Some(proxies) };
    World::with(config, 1_000, 1)
}

#[test]
fn only_the_proxies_that_are_named_may_send_a_header() {
    let client = proxy::client(address("192.0.2.1"));
    for (trusted, expected) in
        [("10.0.0.0/24", Seen::Answer(101)), ("10.0.1.0/24", Seen::Cut), ("::/0", Seen::Cut)]
    {
        let mut world = trusting(&[trusted], false);
        let peer = dial(&mut world, &client, &claim("home"));
        assert_eq!(world.heard(peer), std::slice::from_ref(&expected), "{trusted}");
        let refused = world.relay.stats().proxy_refusals[ProxyRefusal::Untrusted];
        assert_eq!(refused, u64::from(expected == Seen::Cut));
        world.finish();
    }
    // At once, without waiting for a header.
    let mut world = trusting(&["192.0.2.0/24"], false);
    let silent = dial(&mut world, b"", "");
    assert_eq!(world.heard(silent), [Seen::Cut]);
}

#[test]
fn x_forwarded_for_is_read_behind_a_trusted_source() {
    let head = |client: &str| {
        claim(client).replace("\r\n\r\n", &format!("\r\nX-Forwarded-For: {client}\r\n\r\n"))
    };
    // A proxy behind the balancer is named by the header, and names its clients.
    let mut world = trusting(&["10.0.0.0/24"], true);
    for (client, expected) in [("192.0.2.1", 101), ("192.0.2.2", 101), ("192.0.2.1", 503)] {
        assert_eq!(status(&mut world, "10.0.0.7", &head(client)), expected, "{client}");
    }
    // A client's header has no effect.
    for (client, expected) in [("192.0.2.3", 101), ("192.0.2.4", 503)] {
        assert_eq!(status(&mut world, "203.0.113.1", &head(client)), expected, "{client}");
    }
    world.finish();
}

#[test]
fn behind_a_balancer_everything_else_is_as_before() {
    let mut world = World::new();
    world.balancer = Some(address(BALANCER));
    let binary = world.binary("home");
    let phone = world.phone("home");
    world.deliver(binary, phone, "1");
    assert_eq!(world.heard(phone), [text("1")]);
    let late = world.dial(&join("none"));
    assert_eq!(world.heard(late).remove(0), Seen::Answer(101));
    world.finish();
}
