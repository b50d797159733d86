//! Limits: admission of peers, and the memory of all admitted peers together.

use std::net::IpAddr;

use pyrycode_relay::config::{Config, Forwarded};
use pyrycode_relay::relay::admission::EarlyClose;
use pyrycode_relay::time::TICK;

use crate::peer::{self, Seen, claim, join, request};
use crate::world::{PeerId, World, closed, secs, text};

/// The most memory that an outbox holds beyond its bytes, if nothing of it is sent.
const CHUNK: usize = 16 * 1024;
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
    let waits: usize = phones.iter().map(|phone| world.backlog(*phone)).sum();
    assert!(waits < 891 * 1024);
    assert!(world.relay.buffered() < waits + 4 * CHUNK);
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
    let waits: usize = phones.iter().map(|phone| world.backlog(*phone)).sum();
    assert!(waits < limit / 8 * 7 + 1024);
    assert!(world.relay.buffered() < waits + 8 * CHUNK);
    world.finish();
}

// Who is shed

/// A phone for `server_id` from this address.
fn phone_from(world: &mut World, from: &str, server_id: &str) -> PeerId {
    let peer = world.dial_from(address(from), join(server_id).as_bytes());
    assert_eq!(world.heard(peer), [Seen::Answer(101)]);
    peer
}

/// Many connections of modest size are one client's, whose largest is closed; one large
/// connection is another's, who holds less.
#[test]
fn the_client_that_holds_most_in_sum_loses_its_largest_connection() {
    let mut world = tight();
    let binary = world.binary("home");
    let large = phone_from(&mut world, "192.0.2.1", "home");
    pile_up(&mut world, binary, large, 250);
    let kib = [100, 110, 140, 120, 130, 90, 80];
    // Addresses of one /64.
    let many: Vec<PeerId> = (0..kib.len())
        .map(|n| phone_from(&mut world, &format!("2001:db8::{n:x}"), "home"))
        .collect();
    for (phone, kib) in many.iter().zip(kib) {
        pile_up(&mut world, binary, *phone, kib);
    }
    assert_eq!(world.relay.live(), (1, 7), "one of them was too many");
    for (phone, kib) in many.iter().zip(kib).chain([(&large, 250)]) {
        world.read_on(*phone);
        let seen = world.heard(*phone);
        match *phone == many[2] {
            true => assert!(seen.ends_with(&closed(SHED.0, SHED.1)), "the largest"),
            false => assert_eq!(seen.len(), kib),
        }
    }
    world.finish();
}

/// Behind a proxy that names no client all have one address. A tunnel is then a client.
#[test]
fn behind_a_proxy_that_names_nobody_the_members_of_a_slot_are_one_client() {
    let mut world = tight();
    let proxy = "10.0.0.1";
    let claim_from = |world: &mut World, server_id: &str| {
        let peer = world.dial_from(address(proxy), claim(server_id).as_bytes());
        assert_eq!(world.heard(peer), [Seen::Answer(101)]);
        peer
    };
    let (home, office) = (claim_from(&mut world, "home"), claim_from(&mut world, "office"));
    let large = phone_from(&mut world, proxy, "home");
    pile_up(&mut world, home, large, 250);
    for kib in [100, 110, 140, 120, 130, 90, 80] {
        let phone = phone_from(&mut world, proxy, "office");
        pile_up(&mut world, office, phone, kib);
    }
    assert_eq!(world.relay.live(), (2, 7));
    world.read_on(large);
    assert_eq!(world.heard(large).len(), 250, "it is of the slot that holds less");
    world.finish();
}

#[test]
fn a_slot_in_grace_is_charged_and_ends_early_when_memory_is_spent() {
    let mut world = tight();
    let binary = world.binary("home");
    let used = world.relay.buffered();
    world.hang_up(binary);
    assert!(world.relay.buffered() > used + "home".len());
    world.pass(secs(31));
    assert_eq!((world.relay.buffered(), world.relay.slots()), (0, 0));

    // A daemon that claims one name after the other.
    let mut config = world.config.clone();
    world.finish();
    config.limits.buffer_memory = 64 * 1024;
    let mut world = World::with(config, 1_000, 1);
    let guest = world.binary("guest");
    let mut most = 0;
    for number in 0..300 {
        let server_id = format!("{number:0128}");
        let peer = world.dial_from(address("192.0.2.9"), claim(&server_id).as_bytes());
        world.reset(peer);
        most = most.max(world.relay.slots());
    }
    assert!((150..=171).contains(&most), "{most} slots");
    assert_eq!(world.relay.live(), (1, 0));
    let phone = world.phone("guest");
    world.text(phone, "1");
    assert_eq!(world.heard(guest).len(), 1);
    world.finish();
}

// Before the upgrade

/// An unfinished head that takes about this many bytes.
fn half_head(len: usize) -> String {
    format!("GET / HTTP/1.1\r\nx: {:len$}", "")
}

#[test]
fn heads_have_a_part_of_the_memory_and_the_oldest_of_the_client_with_most_goes() {
    let mut world = tight();
    let part = world.config.limits.buffer_memory / 5;
    let binary = world.binary("home");
    let phone = world.phone("home");
    pile_up(&mut world, binary, phone, 200);
    let holds = world.relay.buffered();
    let honest = world.dial_from(address("192.0.2.1"), &join("home").as_bytes()[..60]);
    let dial =
        |world: &mut World| world.dial_from(address("198.51.100.7"), half_head(7_000).as_bytes());
    let flood: Vec<PeerId> = (0..100).map(|_| dial(&mut world)).collect();
    assert!((holds + part / 2..holds + part).contains(&world.relay.buffered()));
    let left = flood.iter().filter(|peer| !world.is_gone(**peer)).count();
    assert!((20..30).contains(&left), "{left} fit");
    assert!(flood[..100 - left].iter().all(|peer| world.is_gone(*peer)), "the oldest went");
    assert_eq!(world.relay.stats().early_closes[EarlyClose::Memory], 100 - left as u64);
    assert_eq!(world.heard(flood[0]), [Seen::Cut], "without an answer");
    // It had come before all of them.
    world.send(honest, &join("home").as_bytes()[60..]);
    assert_eq!(world.heard(honest), [Seen::Answer(101)]);
    assert_eq!(world.relay.live(), (1, 2));
    world.finish();
}

#[test]
fn a_client_has_64_connections_that_are_not_upgraded() {
    let mut world = rate_limited(1_000, 1_000);
    let dial = |world: &mut World, from: &str| world.dial_from(address(from), b"GET /");
    let own: Vec<PeerId> = (0..64).map(|_| dial(&mut world, "192.0.2.1")).collect();
    let refused = dial(&mut world, "192.0.2.1");
    assert_eq!((world.heard(refused), world.is_gone(refused)), (vec![Seen::Cut], true));
    let other = dial(&mut world, "192.0.2.2");
    assert!(own.iter().chain([&other]).all(|peer| !world.is_gone(*peer)));
    assert_eq!(world.relay.stats().early_closes[EarlyClose::Connections], 1);
    // One that has left does not count.
    world.hang_up(own[1]);
    let next = dial(&mut world, "192.0.2.1");
    assert!(!world.is_gone(next));
    world.pass(secs(11));
    // Nor do those that are upgraded.
    for _ in 0..100 {
        let peer = world.dial_from(address("192.0.2.1"), join("home").as_bytes());
        assert_eq!(world.heard(peer)[0], Seen::Answer(101));
    }
    // Proxies are exempt: their clients are known later. So are all if there is no rate limit.
    for _ in 0..100 {
        let peer = dial(&mut world, "10.0.0.1");
        assert!(!world.is_gone(peer));
    }
    world.finish();
    let mut world = rate_limited(0, 0);
    for _ in 0..300 {
        let peer = dial(&mut world, "192.0.2.1");
        assert!(!world.is_gone(peer));
    }
    world.finish();
}

#[test]
fn a_client_opens_200_connections_at_once_and_then_50_a_second() {
    let mut world = rate_limited(1_000, 1_000);
    let admitted = |world: &mut World, count: usize| {
        let is_admitted = |world: &mut World| {
            let peer = world.dial_from(address("192.0.2.1"), b"");
            let is_admitted = !world.is_gone(peer);
            world.hang_up(peer);
            is_admitted
        };
        (0..count).filter(|_| is_admitted(world)).count()
    };
    assert_eq!(admitted(&mut world, 250), 200);
    world.pass(secs(1));
    assert_eq!(admitted(&mut world, 100), 50);
    assert_eq!(world.relay.stats().early_closes[EarlyClose::Rate], 100);
    world.finish();
}

/// The client is known by the PROXY header: what comes before it counts for nobody.
#[test]
fn behind_a_load_balancer_the_client_in_the_header_is_limited() {
    let mut world = rate_limited(1_000, 1_000);
    world.balancer = Some(address("203.0.113.200"));
    let own: Vec<PeerId> =
        (0..64).map(|_| world.dial_from(address("192.0.2.1"), b"GET /")).collect();
    let refused = world.dial_from(address("192.0.2.1"), b"GET /");
    assert_eq!((world.heard(refused), world.is_gone(refused)), (vec![Seen::Cut], true));
    let other = world.dial_from(address("192.0.2.2"), b"GET /");
    assert!(own.iter().chain([&other]).all(|peer| !world.is_gone(*peer)));
    world.finish();
}

/// One /48 has 65,536 clients, and the table of the rate limit room for fewer.
#[test]
fn a_48_does_as_much_as_64_clients() {
    let mut world = rate_limited(1, 1);
    let attempts = (0..100).map(|n| format!("2001:db8:7:{n:x}::1"));
    let statuses: Vec<u16> =
        attempts.map(|from| status(&mut world, &from, &join("home"))).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 101).count(), 64);
    assert_eq!(status(&mut world, "2001:db8:8::1", &join("home")), 101);
    // A client that is refused takes nothing from its neighbours.
    for _ in 0..100 {
        assert_eq!(status(&mut world, "2001:db8:8::1", &join("home")), 429);
    }
    assert_eq!(status(&mut world, "2001:db8:8:1::1", &join("home")), 101);
    world.finish();
}
