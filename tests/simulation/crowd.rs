//! Heartbeat at scale.
//!
//! The long run simulates an hour of 10,000 connections, which stays cheap without
//! `--release`; `PYRYCODE_SIM_MINUTES=1440` makes it a day.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use pyrycode_relay::config::Config;
use pyrycode_relay::protocol::close::CloseCause;
use pyrycode_relay::time::Instant;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::peer::{HOME, Seen, claim};
use crate::replay::{Replay, seeds, setting};
use crate::world::{PeerId, World, secs};

/// From a peer's death to its free slot.
const PROMISE: Duration = Duration::from_millis(60_100);

fn crowded(capacity: usize, seed: u64) -> World {
    let mut config = Config::default();
    config.limits.rate_per_minute = 0;
    World::with(config, capacity, seed)
}

/// The most events in any window of one second that starts with an event.
fn busiest_second(events: &[(Instant, u64)]) -> u64 {
    let (mut busiest, mut sum, mut window) = (0, 0, VecDeque::new());
    for (at, count) in events {
        window.push_back((*at, *count));
        sum += count;
        while window.front().is_some_and(|(first, _)| at.since(*first) >= secs(1)) {
            sum -= window.pop_front().map_or(0, |(_, count)| count);
        }
        busiest = busiest.max(sum);
    }
    busiest
}

#[test]
fn pings_of_a_hundred_thousand_simultaneous_connections_are_spread() {
    const COUNT: u64 = 100_000;
    let seed = seeds(1, &[])[0];
    let _replay = Replay::new(seed, "crowd");
    let mut world = crowded(COUNT as usize, seed);
    for number in 0..COUNT {
        world.dial_from(HOME, claim(&number.to_string()).as_bytes());
        world.pass(secs(1) / COUNT as u32);
    }
    assert_eq!(world.relay.live(), (COUNT as usize, 0));
    let until = world.now + secs(60);
    let mut pings: Vec<(Instant, u64)> = Vec::new();
    let mut counted = world.relay.stats().pings;
    let mean = COUNT / 30;
    while world.step(until) {
        let sent = world.relay.stats().pings;
        pings.push((world.now, sent - counted));
        counted = sent;
    }
    assert!(counted.abs_diff(2 * COUNT) < 2 * mean, "{counted} pings in 61 s");
    let busiest = busiest_second(&pings);
    assert!(busiest <= 2 * mean, "{busiest} pings in one second, {mean} are the mean");
    assert!(busiest >= mean, "the window is wrong");
    assert_eq!(world.relay.stats().pongs, counted);
    assert_eq!(world.relay.live(), (COUNT as usize, 0), "no peer was closed");
}

/// What happens to the crowd of the long run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// Nothing comes from this peer any more.
    Dies(PeerId),
    /// By now its slot is free.
    IsFound(PeerId),
    /// The binary at this place says something to its phones, and they to it.
    Talks(usize),
    /// The relay's numbers are compared with the shadow's.
    Compare,
}

/// A binary, its phones and when it died.
struct House {
    binary: PeerId,
    phones: Vec<PeerId>,
    died: Option<Instant>,
}

struct Crowd {
    world: World,
    rng: StdRng,
    houses: Vec<House>,
    /// By peer.
    died: Vec<Option<Instant>>,
    events: BinaryHeap<Reverse<(Instant, Event)>>,
}

impl Crowd {
    fn new(seed: u64, houses: usize, phones: usize) -> Self {
        let mut world = crowded(houses * (phones + 1), seed);
        let houses: Vec<House> = (0..houses)
            .map(|number| {
                let server_id = format!("house{number}");
                world.pass(Duration::from_millis(1));
                let binary = world.binary(&server_id);
                let phones = (0..phones).map(|_| world.phone(&server_id)).collect();
                House { binary, phones, died: None }
            })
            .collect();
        for peer in &mut world.peers {
            peer.habits.forgets_texts = true;
        }
        let died = vec![None; world.peers.len()];
        let rng = StdRng::seed_from_u64(seed);
        Self { world, rng, houses, died, events: BinaryHeap::new() }
    }

    fn schedule(&mut self, at: Instant, event: Event) {
        self.events.push(Reverse((at, event)));
    }

    fn within(&mut self, time: Duration) -> Duration {
        Duration::from_micros(self.rng.random_range(0..=time.as_micros() as u64))
    }

    /// Has half of the phones and a tenth of the binaries die at a random time,
    /// and half of the houses talk all the time.
    fn plan(&mut self, time: Duration) {
        let start = self.world.now;
        for house in 0..self.houses.len() {
            let phones = self.houses[house].phones.clone();
            let dying = phones
                .into_iter()
                .step_by(2)
                .chain(Some(self.houses[house].binary).filter(|_| house % 10 == 0));
            for peer in dying.collect::<Vec<_>>() {
                let at = start + self.within(time);
                self.schedule(at, Event::Dies(peer));
            }
            if house % 2 == 0 {
                let at = start + self.within(secs(60));
                self.schedule(at, Event::Talks(house));
            }
        }
        self.schedule(start, Event::Compare);
    }

    fn run(&mut self, until: Instant) {
        while let Some(Reverse((at, event))) = self.events.pop() {
            if at > until {
                break;
            }
            self.world.pass(at.since(self.world.now));
            match event {
                Event::Dies(peer) => self.kill(peer),
                Event::IsFound(peer) => {
                    assert!(self.world.peer(peer).has_ended(), "{peer:?} still has its slot");
                }
                Event::Talks(house) => self.talk(house),
                Event::Compare => self.compare(),
            }
        }
    }

    fn kill(&mut self, peer: PeerId) {
        let now = self.world.now;
        // A phone may have been closed because its binary died.
        if self.world.peer(peer).has_ended() {
            return;
        }
        self.world.vanish(peer);
        self.died[peer.0] = Some(now);
        if let Some(house) = self.houses.iter_mut().find(|house| house.binary == peer) {
            house.died = Some(now);
        }
        self.schedule(now + PROMISE, Event::IsFound(peer));
    }

    fn talk(&mut self, house: usize) {
        let House { binary, ref phones, died } = self.houses[house];
        if died.is_some() {
            return;
        }
        let phones = phones.clone();
        let phone = phones[self.rng.random_range(0..phones.len())];
        // Frames go to half-open phones too.
        self.world.deliver(binary, phone, "{\"to\":\"phone\"}");
        if self.died[phone.0].is_none() {
            self.world.text(phone, "{\"to\":\"binary\"}");
        }
        let next = self.world.now + self.within(secs(60));
        self.schedule(next, Event::Talks(house));
    }

    /// What the relay counts is what there is.
    fn compare(&mut self) {
        let (relay, world) = (&self.world.relay, &self.world);
        let is_live = |peer: &&PeerId| !world.peer(**peer).has_ended();
        let binaries = self.houses.iter().filter(|house| is_live(&&house.binary)).count();
        let phones = self.houses.iter().flat_map(|house| &house.phones).filter(is_live).count();
        assert_eq!(relay.live(), (binaries, phones));
        assert_eq!(relay.len(), world.peers.iter().filter(|peer| !peer.is_gone).count());
        let might_be_in_grace = self.houses.iter().filter(|house| {
            let ended = house.died.map(|died| died + PROMISE + secs(31));
            !is_live(&&house.binary) && ended.is_some_and(|ended| world.now < ended)
        });
        assert!(relay.slots() >= binaries && relay.slots() <= binaries + might_be_in_grace.count());
        for (index, peer) in world.peers.iter().enumerate() {
            if self.died[index].is_none() && !peer.seen.is_empty() {
                assert_eq!(peer.seen, [Seen::Close(1000, String::new()), Seen::End], "{index}");
                let house = self.houses.iter().find(|house| house.phones.contains(&PeerId(index)));
                assert!(house.is_some_and(|house| house.died.is_some()), "{index} was honest");
            }
        }
        let next = world.now + secs(60);
        self.schedule(next, Event::Compare);
    }
}

#[test]
fn every_silent_peer_is_found_in_time_and_no_honest_one_is_closed() {
    let seed = seeds(1, &[])[0];
    let _replay = Replay::new(seed, "crowd");
    let time = secs(60 * setting("PYRYCODE_SIM_MINUTES").unwrap_or(60));
    let mut crowd = Crowd::new(seed, 2_000, 4);
    let until = crowd.world.now + time;
    crowd.plan(time - secs(2 * 60));
    crowd.run(until);
    crowd.compare();
    let dead = crowd.died.iter().flatten().count();
    let stats = crowd.world.relay.stats();
    let found: u64 = stats.closes_by(CloseCause::HeartbeatTimeout).iter().sum();
    // The end of the grace of their binary closed the others.
    assert!((dead * 9 / 10..=dead).contains(&(found as usize)), "{found} of {dead}");
    assert!(dead > 3_500);
    assert!(stats.frames_to_binary > 1_000 && stats.frames_to_phone > 1_000);
    crowd.world.finish();
}
