//! Binaries that redial at once, as the daemon does after every connection that had opened:
//! why one is closed right after its 101, and the effect on others.
//!
//! Only the life of another binary closes a newcomer after its 101 (4409). Every other reason
//! is known before, and answered with a status that makes the daemon wait.

use pyrycode_relay::config::Config;

use crate::peer::{HOME, Seen, claim};
use crate::wire;
use crate::world::{PeerId, World, closed, secs, text};

const CLAIMED: (u16, &str) = (4409, "server-id already claimed");
const ELSEWHERE: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 9));

fn unlimited() -> Config {
    let mut config = Config::default();
    config.limits.rate_per_minute = 0;
    config
}

/// Dials for `server_id` and gives the status.
fn status(world: &mut World, server_id: &str) -> u16 {
    let peer = world.dial(&claim(server_id));
    match world.heard(peer)[..] {
        [Seen::Answer(status), ..] => status,
        ref seen => panic!("{seen:?}"),
    }
}

#[test]
fn a_newcomer_without_a_slot_is_refused_before_its_101() {
    // The connection cap is reached.
    let mut world = World::with(unlimited(), 1, 1);
    world.binary("home");
    assert_eq!(status(&mut world, "office"), 503);
    assert_eq!(status(&mut world, "home"), 503);
    world.finish();
    // The cap of this address is reached.
    let mut config = unlimited();
    config.limits.connections_per_ip = 1;
    let mut world = World::with(config, 100, 1);
    world.binary("home");
    assert_eq!(status(&mut world, "office"), 503);
    world.finish();
    // Too many attempts.
    let mut config = Config::default();
    (config.limits.rate_per_minute, config.limits.rate_burst) = (1, 1);
    let mut world = World::with(config, 100, 1);
    world.binary("home");
    assert_eq!(status(&mut world, "office"), 429);
    world.finish();
    // The relay shuts down, with or without a holder of the id that must be told.
    for drain in [0, 20] {
        let mut config = unlimited();
        config.drain = secs(drain);
        let mut world = World::with(config, 100, 1);
        world.binary("home");
        world.shut_down();
        assert_eq!(status(&mut world, "home"), 503);
        assert_eq!(status(&mut world, "office"), 503);
        world.pass(secs(30));
        world.finish();
    }
}

#[test]
fn a_newcomer_is_not_shed_when_memory_is_exhausted() {
    let mut config = unlimited();
    config.limits.buffer_memory = 256 * 1024;
    let mut world = World::with(config, 1_000, 1);
    let binary = world.binary("home");
    let hoards = world.phone("home");
    world.stop_reading(hoards, 0);
    for _ in 0..25 {
        world.deliver(binary, hoards, &format!("\"{}\"", "x".repeat(10_000)));
    }
    // Each has an unread response, until together they exceed the budget.
    let newcomers: Vec<PeerId> = (0..200)
        .map(|number| {
            let peer = world.dial_from(HOME, b"");
            world.stop_reading(peer, 0);
            world.send(peer, claim(&number.to_string()).as_bytes());
            peer
        })
        .collect();
    assert_eq!(world.relay.live(), (201, 0), "the one that holds most has gone");
    for newcomer in newcomers {
        world.read_on(newcomer);
        assert_eq!(world.heard(newcomer), [Seen::Answer(101)]);
    }
    world.finish();
}

#[test]
fn a_returning_binary_is_not_closed_in_any_state_of_its_id() {
    let leave: [fn(&mut World, PeerId); 3] =
        [|world, peer| world.close(peer, 1000, ""), World::hang_up, World::reset];
    for leave in leave {
        let mut world = World::new();
        for _ in 0..50 {
            // Its slot is in grace.
            let binary = world.binary("home");
            leave(&mut world, binary);
        }
        let binary = world.binary("home");
        // The old connection is half-open: the newcomer waits.
        world.vanish(binary);
        let again = world.binary("home");
        world.pass(secs(11));
        assert_eq!((world.heard(again), world.relay.live()), (vec![], (1, 0)));
        world.pass(secs(120));
        assert_eq!(world.heard(again), []);
        world.finish();
    }
}

/// Two daemons of one server-id: one holds it, the other dials for ever.
#[test]
fn a_rival_that_loops_costs_other_clients_nothing() {
    const ROUNDS: usize = 2_000;
    // Room for those that stay, and for one rival at a time.
    let mut world = World::with(unlimited(), 5, 1);
    let (binary, phone) = (world.binary("home"), world.phone("home"));
    let (other, guest) = (world.binary("office"), world.phone("office"));
    let pings = world.peer(binary).pings;
    for round in 0..ROUNDS {
        let rival = world.binary("home");
        // It does not even answer the close, so that its socket lingers.
        if round % 2 == 0 {
            let habits = &mut world.peer_mut(rival).habits;
            (habits.answers_close, habits.hangs_up) = (false, false);
        }
        assert_eq!(world.heard(rival).first(), closed(CLAIMED.0, CLAIMED.1).first());
        world.text(phone, "1");
        assert_eq!(world.heard(binary), [text(&world.envelope(phone, "1"))]);
        world.deliver(other, guest, "2");
        assert_eq!(world.heard(guest), [text("2")]);
    }
    // One probe each, and no memory is kept.
    assert_eq!(world.peer(binary).pings, pings + ROUNDS);
    assert_eq!((world.heard(phone), world.heard(other)), (vec![], vec![]));
    assert_eq!(world.relay.buffered(), 0);
    assert_eq!(world.relay.live(), (2, 2));
    world.pass(secs(6));
    assert_eq!(world.relay.len(), 4);
    world.finish();
}

#[test]
fn with_the_default_limits_the_loop_ends_at_429_for_its_own_address_only() {
    let mut world = World::with(Config::default(), 1_000, 1);
    let binary = world.dial_from(ELSEWHERE, claim("home").as_bytes());
    world.heard(binary);
    let mut opened = 0;
    loop {
        let rival = world.dial(&claim("home"));
        match &world.heard(rival)[..] {
            [Seen::Answer(101), rest @ ..] => assert_eq!(rest, closed(CLAIMED.0, CLAIMED.1)),
            [Seen::Answer(429), Seen::End] => break,
            seen => panic!("{seen:?}"),
        }
        opened += 1;
    }
    assert_eq!(opened, 20);
    for number in 0..19 {
        let peer = world.dial_from(ELSEWHERE, claim(&format!("office{number}")).as_bytes());
        assert_eq!(world.heard(peer), [Seen::Answer(101)]);
    }
    assert_eq!(world.heard(binary), []);
    world.finish();
}

/// A daemon that is closed for what it sends at every start: its phones are told each
/// time, and no other client notices.
#[test]
fn a_binary_that_is_wrong_at_every_start_disturbs_its_own_phones_only() {
    let mut world = World::with(unlimited(), 5, 1);
    let (other, guest) = (world.binary("office"), world.phone("office"));
    for _ in 0..500 {
        let binary = world.binary("home");
        let phone = world.phone("home");
        world.send(binary, &wire::raw_frame(0xc1, b"1"));
        assert_eq!(world.heard(binary), closed(1002, "protocol error"));
        let again = world.binary("home");
        assert_eq!(world.heard(phone), closed(4404, "binary reclaimed server-id"));
        world.close(again, 1000, "");
        world.deliver(other, guest, "2");
        assert_eq!(world.heard(guest), [text("2")]);
    }
    assert_eq!((world.heard(other), world.relay.live()), (vec![], (1, 1)));
    assert_eq!(world.relay.slots(), 2);
    world.finish();
}
