//! Registry: claims, grace, takeover and phones against sections 4 and 5 of the contract,
//! applied to a list of slots.
//!
//! The registry is private to the relay, so it is observed through connections, by what they
//! receive. No heartbeat interferes; a peer answers a probe only when the input says so.

use std::collections::BTreeMap;
use std::time::Duration;

use pyrycode_relay::config::{Config, PHONES_PER_SERVER_MAX};
use pyrycode_relay::time::Instant;

use super::bytes::Bytes;
use super::wire;
use super::world::{World, claim, join};

const PEERS_MAX: usize = 60;
const STEPS_MAX: usize = 200;
const SERVER_IDS: [&str; 3] = ["home", "away", "none"];
/// No step is closer than this to a deadline, which may be a tick late.
const MARGIN: Duration = Duration::from_millis(200);

/// One server-id that is held or in grace.
#[derive(Default)]
struct Slot {
    holder: Option<usize>,
    claimants: Vec<usize>,
    phones: Vec<usize>,
    /// End of the grace, or of the probe if there are claimants.
    until: Instant,
}

/// The expected input of one peer.
#[derive(Clone, Debug, Default, PartialEq)]
struct Received {
    close: Option<u16>,
    texts: usize,
}

struct Model {
    slots: BTreeMap<&'static str, Slot>,
    /// By peer.
    received: Vec<Received>,
    grace: Duration,
    probe: Duration,
}

impl Model {
    fn claim(&mut self, server_id: &'static str, peer: usize, now: Instant) {
        let Some(slot) = self.slots.get_mut(server_id) else {
            self.slots.insert(server_id, Slot { holder: Some(peer), ..Slot::default() });
            return;
        };
        if slot.holder.is_none() {
            slot.holder = Some(peer);
            let phones = std::mem::take(&mut slot.phones);
            return self.close(&phones, 4404);
        }
        if slot.claimants.is_empty() {
            slot.until = now + self.probe;
        }
        slot.claimants.push(peer);
    }

    fn join(&mut self, server_id: &str, peer: usize) {
        match self.slots.get_mut(server_id) {
            None => self.close(&[peer], 4404),
            Some(slot) if slot.phones.len() == PHONES_PER_SERVER_MAX => self.close(&[peer], 4429),
            Some(slot) => slot.phones.push(peer),
        }
    }

    /// The peer has lost its slot.
    fn leave(&mut self, peer: usize, now: Instant) {
        let Some(server_id) = self.find(peer) else { return };
        let slot = self.slots.get_mut(server_id).expect("found");
        if let Some(holder) = slot.holder.filter(|_| slot.phones.contains(&peer)) {
            // The close notice.
            self.received[holder].texts += 1;
        }
        slot.claimants.retain(|waiting| *waiting != peer);
        slot.phones.retain(|phone| *phone != peer);
        if slot.holder == Some(peer) {
            slot.holder = None;
            if slot.claimants.is_empty() {
                slot.until = now + self.grace;
            } else {
                self.succeed(server_id);
            }
        }
    }

    /// The first claimant gets the slot.
    fn succeed(&mut self, server_id: &str) {
        let slot = self.slots.get_mut(server_id).expect("exists");
        slot.holder = Some(slot.claimants.remove(0));
        let phones = std::mem::take(&mut slot.phones);
        let claimants = std::mem::take(&mut slot.claimants);
        self.close(&phones, 4404);
        self.close(&claimants, 4409);
    }

    fn pong(&mut self, peer: usize) {
        let held = self.slots.values_mut().find(|slot| slot.holder == Some(peer));
        let rejected = held.map(|slot| std::mem::take(&mut slot.claimants)).unwrap_or_default();
        self.close(&rejected, 4409);
    }

    fn pass(&mut self, now: Instant) {
        let is_due = |slot: &Slot| slot.until <= now && slot.is_timed();
        let due = self.slots.iter().filter(|(_, slot)| is_due(slot));
        for server_id in due.map(|(server_id, _)| *server_id).collect::<Vec<_>>() {
            if let Some(holder) = self.slots[server_id].holder {
                self.close(&[holder], 1011);
                self.succeed(server_id);
            } else {
                let slot = self.slots.remove(server_id).expect("exists");
                self.close(&slot.phones, 1000);
            }
        }
    }

    fn close(&mut self, peers: &[usize], code: u16) {
        for peer in peers {
            self.received[*peer].close = Some(code);
        }
    }

    /// Where the peer is: holder, claimant or phone.
    fn find(&self, peer: usize) -> Option<&'static str> {
        let has = |slot: &Slot| {
            let is_peer = |other: &usize| *other == peer;
            slot.holder == Some(peer)
                || slot.claimants.iter().any(is_peer)
                || slot.phones.iter().any(is_peer)
        };
        self.slots.iter().find(|(_, slot)| has(slot)).map(|(server_id, _)| *server_id)
    }

    fn is_near_deadline(&self, now: Instant) -> bool {
        let near = now - MARGIN..now + MARGIN;
        self.slots.values().any(|slot| slot.is_timed() && near.contains(&slot.until))
    }
}

impl Slot {
    /// In grace or probed.
    fn is_timed(&self) -> bool {
        self.holder.is_none() || !self.claimants.is_empty()
    }
}

/// Applies each step to both; then every peer must have received what the model says.
pub(crate) fn run(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let mut config = Config::default();
    config.limits.rate_per_minute = 0;
    // 317 years: the phase of the first ping is random within.
    config.timeouts.ping_interval = Duration::from_secs(10_000_000_000);
    let mut world = World::new(&config, PEERS_MAX);
    let mut model = Model {
        slots: BTreeMap::new(),
        received: Vec::new(),
        grace: config.timeouts.grace,
        probe: config.timeouts.probe,
    };
    let mut steps = 0;
    while !bytes.is_empty() && steps < STEPS_MAX {
        steps += 1;
        while model.is_near_deadline(world.now) {
            world.pass(MARGIN);
        }
        model.pass(world.now);
        step(&mut world, &mut model, &mut bytes);
        if !model.is_near_deadline(world.now) {
            compare(&world, &mut model);
        }
    }
    world.finish();
}

fn compare(world: &World, model: &mut Model) {
    model.pass(world.now);
    for (index, peer) in world.peers.iter().enumerate() {
        let received = Received { close: peer.close, texts: peer.texts };
        assert_eq!(received, model.received[index], "peer {index}");
    }
    let binaries = model.slots.values().filter(|slot| slot.holder.is_some()).count();
    let phones = model.slots.values().map(|slot| slot.phones.len()).sum();
    assert_eq!(world.relay.live(), (binaries, phones));
    assert_eq!(world.relay.slots(), model.slots.len());
}

fn step(world: &mut World, model: &mut Model, bytes: &mut Bytes<'_>) {
    let (choice, who) = (bytes.byte() % 10, usize::from(bytes.byte()));
    let server_id = SERVER_IDS[who % SERVER_IDS.len()];
    if choice < 3 {
        let count = if choice == 2 { who % 20 } else { 1 };
        for _ in 0..count.min(PEERS_MAX - world.peers.len()) {
            model.received.push(Received::default());
            if choice == 0 {
                let peer = world.dial(&claim(server_id));
                model.claim(server_id, peer, world.now);
            } else {
                let peer = world.dial(&join(server_id));
                model.join(server_id, peer);
            }
        }
        return;
    }
    if choice == 3 {
        world.pass(Duration::from_millis(who as u64 * 200));
        return;
    }
    if world.peers.is_empty() {
        return;
    }
    let peer = who % world.peers.len();
    // A peer without a slot has no effect.
    let Some(server_id) = model.find(peer) else { return };
    let slot = model.slots.get_mut(server_id).expect("found");
    match choice {
        4 => {
            if !world.peers[peer].pings.is_empty() {
                model.pong(peer);
            }
            world.pong(peer);
        }
        5 => {
            model.leave(peer, world.now);
            world.end(peer);
        }
        6 => {
            model.leave(peer, world.now);
            world.reset(peer);
        }
        // What a claimant sends is not read.
        _ if slot.claimants.contains(&peer) => {}
        7 => {
            model.leave(peer, world.now);
            model.close(&[peer], 3000);
            world.send(peer, &wire::frame(wire::CLOSE, &wire::close_payload(3000, "")));
        }
        _ if slot.holder == Some(peer) => {
            // To any peer, of any slot.
            let to = bytes.index(world.peers.len());
            if slot.phones.contains(&to) {
                model.received[to].texts += 1;
            }
            let envelope = format!(r#"{{"conn_id":"{}","frame":1}}"#, world.peers[to].conn_id);
            world.send(peer, &wire::frame(wire::TEXT, envelope.as_bytes()));
        }
        _ => {
            if let Some(holder) = slot.holder {
                model.received[holder].texts += 1;
            } else {
                slot.phones.retain(|phone| *phone != peer);
                model.close(&[peer], 4404);
            }
            world.send(peer, &wire::frame(wire::TEXT, b"1"));
        }
    }
}
