//! Fairness: what one connection makes the relay do takes neither time nor memory from others.
//!
//! Time is that of the cost model ([`crate::cost`]), whose bound on turns holds in each of these
//! runs.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use pyrycode_relay::config::{Config, MESSAGE_MAX, READ_SIZE};
use pyrycode_relay::protocol::close::CloseCause;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::cost::TURN_MAX;
use crate::peer::{HOME, claim, join};
use crate::replay::{Replay, seeds};
use crate::wire::{self, PING, TEXT};
use crate::world::{PeerId, World, secs, text};

/// What a person's peer waits for beside any flood: two turns.
const ROUND_TRIP_MAX: Duration = Duration::from_millis(2);

/// What each of the others takes while a busy connection waits: a slice, and a little of what it
/// causes.
const SLICE_MAX: Duration = Duration::from_micros(400);

/// On a machine that is `speed` times as fast as the slowest.
fn busy_world(speed: u32) -> World {
    let mut world = World::new();
    (world.cost.is_on, world.cost.speed) = (true, speed);
    world
}

/// More than a read takes is on the way from each of the flooders.
fn flood(world: &mut World, flooders: &[PeerId], unit: &[u8]) {
    let chunk = unit.repeat(READ_SIZE.div_ceil(unit.len()));
    for flooder in flooders {
        if world.peer(*flooder).up.arrived.len() < READ_SIZE {
            world.send_unsettled(*flooder, &chunk);
        }
    }
}

/// A pair exchanges frames beside flooders, turn by turn, once each of these was read and is
/// known to be busy. Returns the longest round trip.
fn exchange_beside(speed: u32, count: usize, unit: &[u8], turns: usize) -> (World, Duration) {
    let mut world = busy_world(speed);
    let flooders: Vec<PeerId> =
        (0..count).map(|number| world.binary(&format!("flood-{number}"))).collect();
    for flooder in &flooders {
        world.peer_mut(*flooder).habits.forgets_texts = true;
    }
    // As long as requests of browsers: what that takes says nothing of what follows.
    let long = |head: String| head.replace("\r\n\r\n", &format!("\r\nx: {:400}\r\n\r\n", "x"));
    let binary = world.dial(&long(claim("home")));
    let phone = world.dial(&long(join("home")));
    let envelope = world.envelope(phone, "1");
    let (mut longest, mut sent_at, mut round_trips) = (Duration::ZERO, None, 0);
    let begin = count / 2;
    for turn in 0..begin + turns {
        flood(&mut world, &flooders, unit);
        match sent_at {
            None if turn < begin => {}
            None => {
                sent_at = Some(world.now);
                world.send_unsettled(phone, &wire::frame(TEXT, b"1"));
            }
            Some(_) if world.heard(binary).contains(&text(&envelope)) => {
                world.send_unsettled(binary, &wire::frame(TEXT, envelope.as_bytes()));
            }
            Some(at) if world.heard(phone).contains(&text("1")) => {
                longest = longest.max(world.now.since(at));
                (sent_at, round_trips) = (None, round_trips + 1);
            }
            Some(_) => {}
        }
        world.one_turn();
    }
    assert!(round_trips > turns / 8, "{round_trips} round trips in {turns} turns");
    (world, longest)
}

#[test]
fn a_flood_of_any_kind_leaves_a_pair_its_time() {
    let bad_envelope = wire::frame(TEXT, b"");
    let ping = wire::frame(PING, b"");
    let text = wire::frame(TEXT, b"{\"conn_id\":\"00000000000000000000000000000000\",\"frame\":1}");
    let large = wire::frame(TEXT, &[b' '; 60_000]);
    let cases = [(1, 1), (1, 20), (1, 100), (1, 400), (8, 400)];
    for (speed, count) in cases {
        for unit in [&bad_envelope, &ping, &text, &large] {
            let (world, longest) = exchange_beside(speed, count, unit, 60);
            let len = unit.len();
            let what = format!("{count} flooders with frames of {len} bytes, speed {speed}");
            assert!(longest <= ROUND_TRIP_MAX, "{what}: a round trip took {longest:?}");
            let waited = world.cost.waited;
            let bound = Duration::from_millis(1) + SLICE_MAX * count as u32;
            assert!(waited <= bound, "{what}: one waited {waited:?}");
        }
    }
}

fn attachment() -> String {
    format!("\"{}\"", "x".repeat(60_000))
}

/// Phones that do not read, with four attachments each.
fn slow_phones(world: &mut World) -> Vec<PeerId> {
    let slow_phone = |number: usize| {
        let home = format!("home-{number}");
        let (binary, phone) = (world.binary(&home), world.phone(&home));
        world.stop_reading(phone, 100_000);
        for _ in 0..4 {
            world.deliver(binary, phone, &attachment());
        }
        phone
    };
    (0..64).map(slow_phone).collect()
}

/// What has room again when the relay has stood still is written before deadlines count that
/// passed meanwhile, however many have.
#[test]
fn room_after_a_pause_counts_before_deadlines() {
    let mut world = busy_world(1);
    let phones = slow_phones(&mut world);
    world.pass(secs(8));
    let in_reverse =
        |world: &mut World| phones.iter().rev().for_each(|phone| world.read_on(*phone));
    world.freeze(secs(4), in_reverse);
    world.pass(secs(1));
    for phone in phones {
        assert_eq!(world.heard(phone), vec![text(&attachment()); 4]);
    }
}

/// Large queues to many phones that read again in the same moment are written bit by bit.
#[test]
fn many_that_read_again_at_once_make_no_long_turn() {
    let mut world = busy_world(1);
    let phones = slow_phones(&mut world);
    world.pass(secs(8));
    world.cost.longest = Duration::ZERO;
    world.at_once(|world| phones.iter().for_each(|phone| world.read_on(*phone)));
    world.pass(secs(1));
    for phone in phones {
        assert_eq!(world.heard(phone).len(), 4);
    }
    assert!(world.cost.longest <= Duration::from_millis(2), "{:?}", world.cost.longest);
}

/// Deadlines are met beside a flood, which takes all the time that it can.
#[test]
fn a_peer_that_dies_beside_a_flood_is_found_in_time() {
    let mut world = busy_world(1);
    let flooders: Vec<PeerId> = (0..20).map(|n| world.binary(&format!("flood-{n}"))).collect();
    let (_, phone) = (world.binary("home"), world.phone("home"));
    world.pass_until(secs(61), |world| world.peer(phone).pings == 1);
    world.vanish(phone);
    let died = world.now;
    let unit = wire::frame(TEXT, b"");
    while world.relay.has_place(world.peer(phone).id) {
        // A turn lasts some milliseconds: most of the minute passes without a flood.
        if world.now.since(died) > secs(59) {
            flood(&mut world, &flooders, &unit);
            world.one_turn();
        } else {
            world.pass(secs(1));
        }
        let waited = world.now.since(died);
        assert!(waited <= Duration::from_millis(60_100) + TURN_MAX, "{waited:?}");
    }
}

/// The verdicts on thousands are spread over turns.
#[test]
fn thousands_whose_time_is_over_at_once_make_no_long_turn() {
    let mut world = World::with(Config::default(), 10_000, 1);
    world.cost.is_on = true;
    // Their heads never end.
    let silent: Vec<PeerId> = (0..6_000)
        .map(|number: u32| {
            let [.., high, low] = number.to_be_bytes();
            world.dial_from(IpAddr::from([10, 1, high, low]), b"GET /v1/client HTTP/1.1\r\n")
        })
        .collect();
    // The relay notices all of it at once.
    world.freeze(secs(12), |_| {});
    world.pass(secs(1));
    assert!(silent.iter().all(|peer| world.is_gone(*peer)));
    assert!(world.cost.longest > Duration::from_millis(2), "{:?}", world.cost.longest);

    // And claimants that are refused together.
    let binary = world.binary("home");
    world.peer_mut(binary).habits.answers_pings = false;
    let claimants: Vec<PeerId> = (0..2_000)
        .map(|number: u32| {
            let [.., high, low] = number.to_be_bytes();
            world.dial_from(IpAddr::from([10, 2, high, low]), claim("home").as_bytes())
        })
        .collect();
    let probe = wire::frame(wire::PONG, &world.peer(binary).last_ping.clone());
    world.send(binary, &probe);
    world.pass(secs(1));
    assert!(claimants.iter().all(|peer| !world.relay.has_place(world.peer(*peer).id)));
    assert_eq!(world.relay.live(), (1, 0));
}

/// Neither those that dial nor those that are closed.
#[test]
fn thousands_that_come_and_go_at_once_make_no_long_turn() {
    let mut world = World::with(Config::default(), 10_000, 1);
    world.cost.is_on = true;
    let peers: Vec<PeerId> = world.at_once(|world| {
        let dials = (0..3_000).map(|number: u32| {
            let [.., high, low] = number.to_be_bytes();
            world
                .dial_from(IpAddr::from([10, 3, high, low]), claim(&format!("{number}")).as_bytes())
        });
        dials.collect()
    });
    world.pass(secs(1));
    assert_eq!(world.relay.live(), (3_000, 0));
    world.shut_down();
    world.pass(secs(1));
    assert!(peers.iter().all(|peer| world.is_gone(*peer)));
}

/// Of clients with queues of all sizes, the one that holds most is shed and no other.
#[test]
fn only_the_largest_client_is_shed() {
    const CLIENTS: u8 = 12;
    let endless = wire::frame(TEXT, &vec![b'x'; MESSAGE_MAX]);
    for seed in seeds(8, &[]) {
        let _replay = Replay::new(seed, "fairness::only_the_largest_client_is_shed");
        let mut rng = StdRng::seed_from_u64(seed);
        let mut config = Config::default();
        config.limits.rate_per_minute = 0;
        config.limits.buffer_memory = 4 * 1024 * 1024;
        let mut world = World::with(config, 1_000, seed);
        let binary = world.binary("home");
        let mut phones: Vec<(PeerId, IpAddr)> = Vec::new();
        let mut shed = 0;
        for step in 0..1_500 {
            while phones.len() < 16 {
                // One in a private range would be a proxy that names no client.
                let address = IpAddr::from([198, 51, 100, rng.random_range(1..=CLIENTS)]);
                let phone = world.dial_from(address, join("home").as_bytes());
                world.stop_reading(phone, 0);
                phones.push((phone, address));
            }
            let held = |world: &World| {
                let mut sums = HashMap::<IpAddr, usize>::from([(HOME, 0)]);
                for peer in &world.peers {
                    *sums.entry(peer.address).or_default() += world.relay.held(peer.id);
                }
                sums
            };
            let before = held(&world);
            let count = |world: &World| -> u64 {
                world.relay.stats().closes_by(CloseCause::OutOfBufferMemory).iter().sum()
            };
            let shed_before = count(&world);
            let (phone, _) = phones[rng.random_range(0..phones.len())];
            let len = rng.random_range(1..=16 * 1024);
            if rng.random_bool(0.7) {
                world.deliver(binary, phone, &format!("\"{}\"", "x".repeat(len)));
            } else {
                // The beginning of a frame of a message that never ends.
                world.send_part(phone, &endless[..len]);
            }
            let is_shed = count(&world) > shed_before;
            phones.retain(|(phone, address)| {
                let is_left = world.relay.has_place(world.peers[phone.0].id);
                if !is_left && is_shed {
                    shed += 1;
                    let (own, most) = (before[address], before.values().max().copied().unwrap());
                    // Within a quarter, and what this step has added.
                    let least = (most * 3 / 4).saturating_sub(2 * 16 * 1024);
                    assert!(own >= least, "step {step}: {own} bytes, and {most} are held");
                }
                is_left
            });
            world.relay.audit();
        }
        assert!(shed > 10, "{shed} were shed");
    }
}
