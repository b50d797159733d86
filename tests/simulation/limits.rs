//! Limits: admission of peers, and the memory of all admitted peers together.

use std::net::IpAddr;

use pyrycode_relay::config::{Config, Forwarded};
use pyrycode_relay::time::TICK;

use crate::peer::{self, Seen, claim, join, request};
use crate::world::{PeerId, World, closed, secs, text};

const SHED: (u16, &str) = (1011, "relay out of buffer memory");

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The status of the answer to `head` from `address`.
fn status(world: &mut World, from: &str, head: &str) -> u16 {
    let peer = world.dial_from(address(from), head.as_bytes());
    match world.heard(peer)[0] {
        Seen::Answer(status) => status,
        ref other => panic!("{other:?}"),
    }
}

fn rate_limited(per_minute: u32, burst: u32) -> World {
    let mut config = Config::default();
    (config.limits.rate_per_minute, config.limits.rate_burst) = (per_minute, burst);
    World::with(config, 1_000, 1)
}

#[test]
fn upgrade_attempts_are_limited_per_address_and_refilled() {
    let mut world = rate_limited(10, 20);
    for _ in 0..20 {
        assert_eq!(status(&mut world, "192.0.2.1", &join("home")), 101);
    }
    for _ in 0..3 {
        let peer = world.dial_from(address("192.0.2.1"), join("home").as_bytes());
        assert_eq!(world.heard(peer), [Seen::Answer(429), Seen::End]);
    }
    assert_eq!(status(&mut world, "192.0.2.2", &join("home")), 101);
    // One token every 6 s; refused attempts take none.
    world.pass(secs(6) - TICK);
    assert_eq!(status(&mut world, "192.0.2.1", &join("home")), 429);
    world.pass(2 * TICK);
    assert_eq!(status(&mut world, "192.0.2.1", &claim("home")), 101);
    assert_eq!(status(&mut world, "192.0.2.1", &claim("home")), 429);
    // The bucket is full again and holds no more than its burst.
    world.pass(secs(3600));
    let allowed = (0..40).filter(|_| status(&mut world, "192.0.2.1", &join("x")) == 101).count();
    assert_eq!(allowed, 20);
    world.finish();
}

#[test]
fn health_is_not_limited_and_other_paths_cost_nothing() {
    let mut world = rate_limited(1, 2);
    for _ in 0..10 {
        for (path, expected) in [("/healthz", 200), ("/readyz", 200), ("/", 404)] {
            let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
            assert_eq!(status(&mut world, "192.0.2.1", &head), expected);
        }
        assert_eq!(status(&mut world, "192.0.2.1", "\n\r\n"), 400);
    }
    for expected in [101, 101, 429] {
        assert_eq!(status(&mut world, "192.0.2.1", &join("home")), expected);
    }
    world.finish();
}

#[test]
fn an_ipv6_client_is_a_64() {
    let mut world = rate_limited(1, 1);
    for (from, expected) in [
        ("2001:db8::1", 101),
        ("2001:db8::ffff:1", 429),
        ("2001:db8:0:1::1", 101),
        ("192.0.2.1", 101),
        ("::ffff:192.0.2.1", 429),
    ] {
        assert_eq!(status(&mut world, from, &join("home")), expected, "{from}");
    }
    world.finish();
}

#[test]
fn the_cap_counts_live_websockets_of_both_kinds_and_nothing_else() {
    let mut config = Config::default();
    config.limits.rate_per_minute = 0;
    let mut world = World::with(config, 3, 1);
    let binary = world.binary("home");
    let phone = world.phone("home");
    // Heads, refusals and closes in progress do not count.
    world.dial("");
    world.dial("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    for _ in 0..10 {
        assert_eq!(status(&mut world, "192.0.2.1", &join("nobody")), 101);
        assert_eq!(status(&mut world, "192.0.2.1", &request("/v1/client", &[])), 400);
    }
    world.vanish(binary);
    let claimant = world.binary("home");
    // A claimant is the third: upgrades are refused, health says why.
    for head in [claim("other"), join("home"), request("/v1/client", &[])] {
        let peer = world.dial(&head);
        assert_eq!(world.heard(peer), [Seen::Answer(503), Seen::End]);
    }
    let ready = "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_eq!(status(&mut world, "192.0.2.1", ready), 503);
    assert_eq!(status(&mut world, "192.0.2.1", &ready.replace("readyz", "healthz")), 200);
    world.hang_up(claimant);
    assert_eq!(status(&mut world, "192.0.2.1", ready), 200);
    // A place is free as soon as its WebSocket closes, though it lingers.
    let habits = &mut world.peer_mut(phone).habits;
    (habits.answers_close, habits.hangs_up) = (false, false);
    world.text(phone, "not JSON");
    for (server_id, expected) in [("a", 101), ("b", 101), ("c", 503)] {
        assert_eq!(status(&mut world, "192.0.2.1", &claim(server_id)), expected);
    }
    world.finish();
}

#[test]
fn connections_per_client_are_capped() {
    let mut config = Config::default();
    config.limits.rate_per_minute = 0;
    config.limits.connections_per_ip = 2;
    let mut world = World::with(config, 1_000, 1);
    world.dial_from(address("192.0.2.1"), claim("home").as_bytes());
    let phone = world.dial_from(address("192.0.2.1"), join("home").as_bytes());
    assert_eq!(status(&mut world, "192.0.2.1", &join("home")), 503);
    assert_eq!(status(&mut world, "::ffff:192.0.2.1", &join("home")), 503);
    assert_eq!(status(&mut world, "192.0.2.2", &join("home")), 101);
    world.hang_up(phone);
    assert_eq!(status(&mut world, "192.0.2.1", &join("home")), 101);
    for (from, expected) in
        [("2001:db8::1", 101), ("2001:db8::2", 101), ("2001:db8::3", 503), ("2001:db8:0:1::", 101)]
    {
        assert_eq!(status(&mut world, from, &join("home")), expected, "{from}");
    }
    world.finish();
}

/// The status that a phone gets which claims to come from `forwarded`.
fn attempt(world: &mut World, from: &str, forwarded: &str) -> u16 {
    let forwarded = format!("x-forwarded-for: {forwarded}");
    let fields = ["x-pyrycode-server: home", "x-pyrycode-token: t", &forwarded];
    status(world, from, &request("/v1/client", &fields))
}

/// A machine in a private network forges the header, through the proxy, which appends the
/// address it sees, and past it. It escapes the rate limit unless the proxy is named.
#[test]
fn a_client_in_a_private_network_cannot_forge_past_named_proxies() {
    let proxy = vec!["127.0.0.1/32".parse().unwrap()];
    for (trusted_proxies, expected) in [(Some(proxy), 429), (None, 101)] {
        let mut config = Config::default();
        (config.limits.rate_per_minute, config.limits.rate_burst) = (1, 1);
        config.forwarded = Forwarded { trust_x_forwarded_for: true, trusted_proxies };
        let mut world = World::with(config, 1_000, 1);
        assert_eq!(attempt(&mut world, "127.0.0.1", "203.0.113.1, 192.168.1.7"), 101);
        for n in 2..20 {
            let forged = format!("203.0.113.{n}");
            let through = format!("{forged}, 192.168.1.7");
            assert_eq!(attempt(&mut world, "127.0.0.1", &through), expected, "{forged}");
        }
        for n in 20..40 {
            let forged = format!("203.0.113.{n}");
            assert_eq!(attempt(&mut world, "192.168.1.7", &forged), expected, "{forged}");
        }
        // A client beyond the trusted proxies has its own limit.
        assert_eq!(attempt(&mut world, "127.0.0.1", "198.51.100.1"), 101);
        world.finish();
    }
}

#[test]
fn x_forwarded_for_names_the_client_only_when_trusted() {
    let mut world = rate_limited(1, 1);
    for expected in [101, 429] {
        assert_eq!(attempt(&mut world, "10.0.0.1", &format!("203.0.113.{expected}")), expected);
    }
    world.finish();
    let mut config = Config::default();
    (config.limits.rate_per_minute, config.limits.rate_burst) = (1, 1);
    config.forwarded = Forwarded { trust_x_forwarded_for: true, trusted_proxies: None };
    let mut world = World::with(config, 1_000, 1);
    for (from, forwarded, expected) in [
        ("10.0.0.1", "203.0.113.1", 101),
        ("10.0.0.1", "203.0.113.2", 101),
        // What the client itself wrote is on the left.
        ("10.0.0.1", "198.51.100.1, 203.0.113.2", 429),
        ("10.0.0.2", "203.0.113.1, 192.168.0.1", 429),
        // The header of an untrusted peer has no effect.
        ("198.51.100.1", "203.0.113.3", 101),
        ("198.51.100.1", "203.0.113.4", 429),
        ("10.0.0.1", "203.0.113.3", 101),
        // No address: the hop before it.
        ("10.0.0.1", "unknown", 101),
        ("10.0.0.1", "unknown", 429),
    ] {
        assert_eq!(attempt(&mut world, from, forwarded), expected, "{from} for {forwarded}");
    }
    world.finish();
}

/// A world with a budget of 1 MiB.
fn tight() -> World {
    let mut config = Config::default();
    config.limits.rate_per_minute = 0;
    config.limits.buffer_memory = 1024 * 1024;
    World::with(config, 1_000, 1)
}

/// Queues `kib` KiB to a phone that does not read.
fn pile_up(world: &mut World, binary: PeerId, phone: PeerId, kib: usize) {
    world.stop_reading(phone, 0);
    for _ in 0..kib {
        world.deliver(binary, phone, &format!("\"{}\"", "x".repeat(1012)));
    }
}

#[test]
fn only_the_largest_backlog_is_shed() {
    let mut world = tight();
    let binary = world.binary("home");
    // Each has at most one largest message; together they exceed the budget.
    let kib = [200, 250, 240, 230, 220];
    let phones: Vec<PeerId> = kib.iter().map(|_| world.phone("home")).collect();
    for (phone, kib) in phones.iter().zip(kib) {
        assert_eq!(world.relay.live(), (1, 5));
        pile_up(&mut world, binary, *phone, kib);
    }
    assert_eq!(world.relay.live(), (1, 4));
    assert!(world.relay.buffered() < 891 * 1024);
    for (index, phone) in phones.iter().enumerate() {
        world.read_on(*phone);
        let seen = world.heard(*phone);
        match index {
            1 => assert_eq!(seen[seen.len() - 2..], closed(SHED.0, SHED.1)),
            _ => assert_eq!(seen.len(), kib[index]),
        }
    }
    assert_eq!(world.relay.buffered(), 0);
    world.finish();
}

#[test]
fn a_closing_connection_with_the_largest_backlog_is_shed_too() {
    let mut world = tight();
    let old = world.binary("home");
    let hoards = world.phone("home");
    pile_up(&mut world, old, hoards, 500);
    // Reclaimed: the backlog still goes out ahead of the close.
    world.hang_up(old);
    world.binary("home");
    assert!(world.relay.buffered() > 480 * 1024);
    let binary = world.binary("office");
    let modest: Vec<PeerId> = (0..3).map(|_| world.phone("office")).collect();
    for phone in &modest {
        pile_up(&mut world, binary, *phone, 200);
    }
    assert_eq!(world.relay.live(), (2, 3), "the modest ones stay");
    // No 4404 arrives, which would mean that everything before it was delivered.
    world.read_on(hoards);
    let seen = world.heard(hoards);
    assert!(!seen.contains(&Seen::Close(4404, "binary reclaimed server-id".to_owned())));
    assert!(seen.len() < 500);
    for phone in modest {
        world.read_on(phone);
        assert_eq!(world.heard(phone).len(), 200);
    }
    world.finish();
}

#[test]
fn unfinished_messages_and_heads_come_out_of_the_budget_too() {
    let mut world = tight();
    let binary = world.binary("home");
    let phones: Vec<PeerId> = (0..6).map(|_| world.phone("home")).collect();
    let part = crate::wire::frame(crate::wire::TEXT, &[b' '; 200 * 1024]);
    for phone in &phones {
        world.send_part(*phone, &part[..180 * 1024]);
    }
    // Five phones fit the budget.
    assert!(world.relay.live().1 < 6);
    world.text(binary, "{}");
    // Heads cost each client's own connection, never a WebSocket that holds little.
    let mut heads = Vec::new();
    for _ in 0..400 {
        heads.push(
            world.dial_from(peer::HOME, format!("GET / HTTP/1.1\r\nx: {:8000}", "").as_bytes()),
        );
    }
    assert_eq!(world.relay.live().0, 1);
    world.pass(secs(6));
    assert!(heads.iter().all(|head| world.is_gone(*head)));
    let is_notice =
        |seen: &Seen| matches!(seen, Seen::Text(text) if text.ends_with(r#","close_code":1011}"#));
    assert!(world.heard(binary).iter().all(is_notice));
    world.finish();
}

#[test]
fn a_shed_binary_is_in_grace() {
    let mut world = tight();
    let binary = world.binary("home");
    let phone = world.phone("home");
    world.stop_reading(binary, 0);
    world.text(phone, &format!("\"{}\"", "x".repeat(200 * 1024)));
    // 900 KiB more arrive for another phone, which drains below the binary's share.
    let other = world.binary("office");
    for _ in 0..5 {
        let phone = world.phone("office");
        pile_up(&mut world, other, phone, 180);
    }
    assert_eq!((world.relay.live(), world.relay.slots()), ((1, 6), 2));
    world.read_on(binary);
    assert_eq!(world.heard(binary).pop(), Some(Seen::End));
    assert_eq!(world.heard(phone), []);
    world.text(phone, "1");
    assert_eq!(world.heard(phone), closed(4404, "binary disconnected"));
    let after = world.phone("office");
    world.deliver(other, after, "1");
    assert_eq!(world.heard(after), [text("1")]);
    world.finish();
}

#[test]
fn shutting_down_stays_within_the_budget() {
    let mut world = tight();
    let binary = world.binary("home");
    let phones: Vec<PeerId> = (0..8).map(|_| world.phone("home")).collect();
    let limit = world.config.limits.buffer_memory;
    for phone in phones.iter().cycle() {
        if world.relay.buffered() + 1024 >= limit {
            break;
        }
        pile_up(&mut world, binary, *phone, 1);
    }
    for number in 0..100 {
        world.binary(&number.to_string());
    }
    // A hundred close frames are more than what is left: the world checks.
    world.shut_down();
    world.pass(secs(2));
    // The largest of eight was shed, and what the others hold is all that waits.
    assert!(world.relay.buffered() < limit / 8 * 7 + 1024);
    world.finish();
}
