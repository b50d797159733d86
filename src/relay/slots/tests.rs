//! Slots: each edge case, then random operations compared with a model.

use std::collections::HashMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::config::BINARY_LOW_WATER;
use crate::time::TICK;

const MICRO: Duration = Duration::from_micros(1);
const SEEDS: [u64; 8] = [1, 2, 3, 5, 8, 13, 21, 0xC0FFEE];

/// Grace is 30 s and a probe 10 s.
fn slots() -> Slots {
    Slots::new(&Config::default(), HashKeys::new([1, 2]), Instant::START)
}

fn id(number: u32) -> ConnId {
    ConnId::new(number, u64::from(number))
}

fn at(seconds: u64) -> Instant {
    Instant::START + Duration::from_secs(seconds)
}

fn granted(slots: &mut Slots, server_id: &str, binary: u32) -> SlotKey {
    match slots.claim(server_id, id(binary), at(0)) {
        Claim::Granted(key) => key,
        other => panic!("{other:?}"),
    }
}

fn waits(slot: SlotKey, holder: u32, until: u64, is_first: bool) -> Claim {
    Claim::Waits { slot, holder: id(holder), until: at(until), is_first }
}

const GRACE: Release = Release::Grace { resumed: Vec::new() };

/// The claimants that were refused since the last call.
fn rejected(slots: &mut Slots) -> Vec<ConnId> {
    std::iter::from_fn(|| slots.pop_rejected()).collect()
}

#[test]
fn a_free_server_id_is_granted_and_found_by_its_exact_name() {
    let mut slots = slots();
    let home = granted(&mut slots, "home", 1);
    let office = granted(&mut slots, "Home", 2);
    assert_ne!(home, office);
    assert_eq!((slots.server_id(home), slots.holder(home)), ("home", Some(id(1))));
    assert_eq!(slots.join("home", id(3)), Ok(home));
    assert_eq!(slots.join("Home", id(4)), Ok(office));
    assert_eq!(slots.join("hom", id(5)), Err(JoinError::NoServer));
    assert_eq!((slots.len(), slots.binary_count(), slots.phone_count()), (2, 2, 2));
}

#[test]
fn a_claim_in_grace_gets_the_slot_and_its_earlier_phones() {
    let mut slots = slots();
    let key = granted(&mut slots, "home", 1);
    slots.join("home", id(2)).unwrap();
    assert_eq!(slots.release(key, id(1), at(0)), GRACE);
    assert_eq!((slots.len(), slots.binary_count(), slots.holder(key)), (1, 0, None));
    slots.join("home", id(3)).unwrap();
    let claim = slots.claim("home", id(4), at(1));
    assert_eq!(claim, Claim::Reclaimed(key, vec![id(2), id(3)]));
    assert_eq!((slots.phones(key), slots.phone_count()), (&[][..], 0));
    assert_eq!(slots.pop_due(at(99)), None);
}

#[test]
fn grace_ends_at_its_time_and_not_before() {
    let mut slots = slots();
    let key = granted(&mut slots, "home", 1);
    slots.join("home", id(2)).unwrap();
    assert_eq!(slots.pop_due(at(1)), None, "held");
    slots.release(key, id(1), at(1));
    assert_eq!(slots.pop_due(at(31) - MICRO), None);
    // A later grace of the same slot is not ended by the time of the earlier one.
    slots.claim("home", id(3), at(10));
    slots.release(key, id(3), at(11));
    slots.join("home", id(4)).unwrap();
    assert_eq!(slots.pop_due(at(31) + TICK), None);
    assert_eq!(slots.pop_due(at(41) - MICRO), None);
    assert_eq!(slots.next_deadline().map(|next| next < at(41) + TICK), Some(true));
    assert_eq!(slots.pop_due(at(41) + TICK), Some(Due::GraceOver(key, vec![id(4)])));
    slots.free(key);
    assert_eq!((slots.len(), slots.phone_count()), (0, 0));
    assert_eq!(slots.join("home", id(5)), Err(JoinError::NoServer));
    assert_eq!(slots.pop_due(at(99)), None, "free");
    // Its index is reused for another server-id, without the old timers.
    let next = granted(&mut slots, "office", 6);
    assert_eq!((next, slots.server_id(next)), (key, "office"));
    assert_eq!(slots.pop_due(at(199)), None);
}

#[test]
fn claimants_share_the_probe_of_the_first() {
    let mut slots = slots();
    let key = granted(&mut slots, "home", 1);
    assert_eq!(slots.claim("home", id(2), at(0)), waits(key, 1, 10, true));
    slots.on_probe_sent(key, id(1), at(0));
    assert_eq!(slots.claim("home", id(3), at(5)), waits(key, 1, 10, false));
    slots.reject_claimants(key);
    assert_eq!(slots.next_deadline(), Some(Instant::START), "at once");
    assert_eq!(rejected(&mut slots), [id(2), id(3)]);
    slots.reject_claimants(key);
    assert_eq!((rejected(&mut slots), slots.next_deadline()), (vec![], None));
    assert_eq!(slots.holder(key), Some(id(1)));
    // The next one starts a new probe.
    assert_eq!(slots.claim("home", id(4), at(10)), waits(key, 1, 20, true));
    slots.remove_claimant(key, id(4));
    assert_eq!(slots.claim("home", id(5), at(20)), waits(key, 1, 30, true));
}

#[test]
fn a_probe_times_out_ten_seconds_after_its_ping_has_left() {
    let mut slots = slots();
    let key = granted(&mut slots, "home", 1);
    assert_eq!(slots.probe_end(key, at(0)), None);
    assert_eq!(slots.claim("home", id(2), at(0)), waits(key, 1, 10, true));
    // It has not left: the ten seconds have not begun.
    assert_eq!(slots.probe_end(key, at(10)), Some(at(20)));
    assert_eq!(slots.claim("home", id(3), at(12)), waits(key, 1, 22, false));
    slots.on_probe_sent(key, id(7), at(13));
    assert_eq!(slots.take_over(key, at(23)), None, "of another than the holder");
    slots.on_probe_sent(key, id(1), at(14));
    slots.on_probe_sent(key, id(1), at(16));
    assert_eq!(slots.take_over(key, at(24) - MICRO), None);
    assert_eq!(slots.take_over(key, at(24)).map(|it| it.holder), Some(id(2)));
}

#[test]
fn a_probe_lasts_thirty_seconds_at_most() {
    for has_left in [true, false] {
        let mut slots = slots();
        let key = granted(&mut slots, "home", 1);
        slots.claim("home", id(2), at(0));
        if has_left {
            slots.on_probe_sent(key, id(1), at(25));
        }
        assert_eq!(slots.probe_end(key, at(25)), Some(at(30)));
        assert_eq!(slots.take_over(key, at(30) - MICRO), None);
        assert_eq!(slots.take_over(key, at(30)).map(|it| it.holder), Some(id(2)));
    }
}

#[test]
fn the_first_claimant_that_still_waits_takes_over() {
    for is_probed in [true, false] {
        let mut slots = slots();
        let key = granted(&mut slots, "home", 1);
        for claimant in 2..=5 {
            slots.claim("home", id(claimant), at(0));
        }
        slots.join("home", id(9)).unwrap();
        slots.on_probe_sent(key, id(1), at(0));
        slots.remove_claimant(key, id(2));
        slots.remove_claimant(key, id(4));
        assert!(slots.on_delivered(key, id(9), 1, BINARY_HIGH_WATER + 1));
        let expected = Takeover { holder: id(3), phones: vec![id(9)] };
        if is_probed {
            assert_eq!(slots.take_over(key, at(9)), None, "the probe is still out");
            assert_eq!(slots.take_over(key, at(10)), Some(expected));
        } else {
            assert_eq!(slots.release(key, id(1), at(40)), Release::TakenOver(expected));
        }
        assert_eq!(rejected(&mut slots), [id(5)]);
        assert_eq!(slots.holder(key), Some(id(3)));
        assert_eq!(slots.on_drained(key, 0), [], "the congestion was the old holder's");
        assert_eq!((slots.binary_count(), slots.phone_count()), (1, 0));
        // The old holder's release changes nothing, the new holder's does.
        slots.join("home", id(10)).unwrap();
        assert_eq!(slots.release(key, id(1), at(50)), Release::NotHolder);
        assert_eq!((slots.holder(key), slots.phones(key)), (Some(id(3)), &[id(10)][..]));
        assert_eq!(slots.release(key, id(3), at(60)), GRACE);
        assert_eq!(slots.pop_due(at(90) - MICRO), None);
        assert_eq!(slots.pop_due(at(90) + TICK), Some(Due::GraceOver(key, vec![id(10)])));
    }
}

#[test]
fn no_slot_is_taken_over_without_a_claimant_or_in_grace() {
    let mut slots = slots();
    let key = granted(&mut slots, "home", 1);
    assert_eq!(slots.take_over(key, at(99)), None);
    assert_eq!(slots.holder(key), Some(id(1)));
    slots.release(key, id(1), at(0));
    assert_eq!(slots.take_over(key, at(99)), None);
    assert_eq!(slots.release(key, id(1), at(99)), Release::NotHolder, "it has left already");
    assert_eq!(slots.pop_due(at(30) + TICK), Some(Due::GraceOver(key, vec![])));
}

#[test]
fn a_slot_has_16_phones_and_removes_only_its_own() {
    let mut slots = slots();
    let key = granted(&mut slots, "home", 1);
    for phone in 0..16 {
        assert_eq!(slots.join("home", id(100 + phone)), Ok(key));
    }
    for _ in 0..2 {
        assert_eq!(slots.join("home", id(200)), Err(JoinError::AtCap));
        // Removing an unknown phone does nothing.
        slots.remove_phone(key, id(200));
        assert_eq!((slots.phones(key).len(), slots.phone_count()), (16, 16));
    }
    slots.remove_phone(key, id(107));
    slots.remove_phone(key, id(107));
    assert_eq!((slots.phones(key).len(), slots.phone_count()), (15, 15));
    assert_eq!(slots.join("home", id(200)), Ok(key));
}

#[test]
fn phones_that_are_paused_are_resumed_when_their_binary_drains_or_ends() {
    for is_drained in [true, false] {
        let mut slots = slots();
        let key = granted(&mut slots, "home", 1);
        for phone in 2..=4 {
            slots.join("home", id(phone)).unwrap();
        }
        assert!(!slots.on_delivered(key, id(2), 1, BINARY_HIGH_WATER));
        for phone in [2, 3, 4] {
            assert!(slots.on_delivered(key, id(phone), 1, BINARY_HIGH_WATER + 1));
        }
        slots.remove_phone(key, id(3));
        let resumed = vec![id(2), id(4)];
        if is_drained {
            assert_eq!(slots.on_drained(key, BINARY_LOW_WATER + 1), []);
            assert_eq!(slots.on_drained(key, BINARY_LOW_WATER), resumed);
        } else {
            assert_eq!(slots.release(key, id(1), at(30)), Release::Grace { resumed });
        }
        assert_eq!(slots.on_drained(key, 0), []);
        assert!(!slots.on_delivered(key, id(2), 1, BINARY_HIGH_WATER), "a new congestion");
    }
}

/// The reference model.
#[derive(Debug, Default)]
struct Model {
    slots: HashMap<String, ModelSlot>,
}

#[derive(Debug, Default)]
struct ModelSlot {
    holder: Option<ConnId>,
    claimants: Vec<ConnId>,
    phones: Vec<ConnId>,
    /// The end of its grace.
    until: Instant,
    /// When the first claimant came, and when the probe's ping left.
    probed: Instant,
    sent: Option<Instant>,
}

impl ModelSlot {
    fn probe_end(&self, now: Instant) -> Instant {
        let answer_due = self.sent.unwrap_or(now) + Duration::from_secs(10);
        answer_due.min(self.probed + Duration::from_secs(30))
    }

    fn hand_on(&mut self, rejected: &mut Vec<ConnId>) -> Option<Takeover> {
        if self.claimants.is_empty() {
            return None;
        }
        let holder = self.claimants.remove(0);
        self.holder = Some(holder);
        rejected.append(&mut self.claimants);
        Some(Takeover { holder, phones: mem::take(&mut self.phones) })
    }
}

/// The first tick of a wheel that is not before `at`.
fn tick(at: Instant) -> Instant {
    let tick = TICK.as_micros() as u64;
    Instant::from_micros(at.as_micros().div_ceil(tick) * tick)
}

/// Random operations on a few server-ids. Replay a failure with the seed it names.
fn run(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut slots = slots();
    let mut model = Model::default();
    // The slot key of each server-id.
    let mut keys: HashMap<String, SlotKey> = HashMap::new();
    let mut next = 0;
    for step in 0..5_000 {
        let now = at(step);
        let server_id = format!("id{}", rng.random_range(0..6));
        let context = format!("seed {seed}, step {step}, {server_id}");
        next += 1;
        let new = id(next);
        let key = keys.get(&server_id).copied();
        match rng.random_range(0..8) {
            0 | 1 => {
                let claim = slots.claim(&server_id, new, now);
                let slot = model.slots.entry(server_id.clone());
                let is_new = matches!(slot, Entry::Vacant(_));
                let slot = slot.or_default();
                let expected = if let Some(holder) = slot.holder {
                    let is_first = slot.claimants.is_empty();
                    if is_first {
                        (slot.probed, slot.sent) = (now, None);
                    }
                    slot.claimants.push(new);
                    let (key, until) = (key.expect("held"), slot.probe_end(now));
                    Claim::Waits { slot: key, holder, until, is_first }
                } else {
                    slot.holder = Some(new);
                    match (&claim, is_new) {
                        (Claim::Granted(key), true) => {
                            assert!(!keys.values().any(|used| used == key), "{context}");
                            keys.insert(server_id.clone(), *key);
                            Claim::Granted(*key)
                        }
                        _ => Claim::Reclaimed(key.expect("known"), mem::take(&mut slot.phones)),
                    }
                };
                assert_eq!(claim, expected, "{context}");
            }
            2 | 3 => {
                let joined = slots.join(&server_id, new);
                let expected = match model.slots.get_mut(&server_id) {
                    None => Err(JoinError::NoServer),
                    Some(slot) if slot.phones.len() == 16 => Err(JoinError::AtCap),
                    Some(slot) => {
                        slot.phones.push(new);
                        Ok(keys[&server_id])
                    }
                };
                assert_eq!(joined, expected, "{context}");
            }
            4 => {
                let Some((key, slot)) = key.zip(model.slots.get_mut(&server_id)) else { continue };
                // One of its phones, claimants or holders, or an unknown connection.
                let phone = slot.phones.get(rng.random_range(0..16)).copied().unwrap_or(new);
                slots.remove_phone(key, phone);
                slot.phones.retain(|known| *known != phone);
                let claimant = slot.claimants.get(rng.random_range(0..4)).copied().unwrap_or(new);
                slots.remove_claimant(key, claimant);
                slot.claimants.retain(|known| *known != claimant);
            }
            5 => {
                let Some((key, slot)) = key.zip(model.slots.get_mut(&server_id)) else { continue };
                let is_holder = rng.random_bool(0.8);
                let who = slot.holder.filter(|_| is_holder).unwrap_or(new);
                let until = now + Duration::from_secs(30);
                let mut refused = Vec::new();
                let expected = if slot.holder != Some(who) {
                    Release::NotHolder
                } else if let Some(takeover) = slot.hand_on(&mut refused) {
                    Release::TakenOver(takeover)
                } else {
                    (slot.holder, slot.until) = (None, until);
                    GRACE
                };
                assert_eq!(slots.release(key, who, now), expected, "{context}");
                assert_eq!(rejected(&mut slots), refused, "{context}");
            }
            6 => {
                let Some((key, slot)) = key.zip(model.slots.get_mut(&server_id)) else { continue };
                let mut refused = Vec::new();
                match rng.random_range(0..3) {
                    0 => {
                        let is_over = slot.holder.is_some() && slot.probe_end(now) <= now;
                        let expected = is_over.then(|| slot.hand_on(&mut refused)).flatten();
                        assert_eq!(slots.take_over(key, now), expected, "{context}");
                    }
                    1 => {
                        let who = slot.holder.filter(|_| rng.random_bool(0.8)).unwrap_or(new);
                        slots.on_probe_sent(key, who, now);
                        if slot.holder == Some(who) && !slot.claimants.is_empty() {
                            slot.sent.get_or_insert(now);
                        }
                    }
                    _ => {
                        refused = mem::take(&mut slot.claimants);
                        slots.reject_claimants(key);
                    }
                }
                assert_eq!(rejected(&mut slots), refused, "{context}");
            }
            _ => {
                let is_over = |slot: &ModelSlot| slot.holder.is_none() && tick(slot.until) <= now;
                while let Some(due) = slots.pop_due(now) {
                    let Due::GraceOver(key, phones) = due else { panic!("{context}: {due:?}") };
                    let (server_id, _) = keys.iter().find(|(_, known)| **known == key).unwrap();
                    let server_id = server_id.clone();
                    let slot = model.slots.remove(&server_id).expect("exists");
                    // It may be due before the tick at which it must be.
                    assert!(slot.holder.is_none() && slot.until <= now, "{context}: {slot:?}");
                    assert_eq!(phones, slot.phones, "{context}");
                    slots.free(key);
                    keys.remove(&server_id);
                }
                assert!(!model.slots.values().any(is_over), "{context}");
            }
        }
        let expected = model.slots.values();
        assert_eq!(slots.len(), expected.len(), "{context}");
        let held = expected.clone().filter(|slot| slot.holder.is_some()).count();
        assert_eq!(slots.binary_count(), held, "{context}");
        let phones: usize = expected.map(|slot| slot.phones.len()).sum();
        assert_eq!(slots.phone_count(), phones, "{context}");
        for (server_id, slot) in &model.slots {
            let key = keys[server_id];
            assert_eq!(slots.server_id(key), server_id, "{context}");
            assert_eq!(slots.holder(key), slot.holder, "{context}");
            assert_eq!(slots.phones(key), slot.phones, "{context}");
            assert!(slot.holder.is_some() || slot.claimants.is_empty(), "{context}");
        }
    }
}

#[test]
fn random_operations_agree_with_the_model() {
    for seed in SEEDS {
        run(seed);
    }
}
