//! The registry edge by edge, then at random against a model with strings.

use std::collections::HashMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

const SEEDS: [u64; 8] = [1, 2, 3, 5, 8, 13, 21, 0xC0FFEE];

fn registry() -> Registry {
    Registry::new(HashKeys::new([1, 2]))
}

fn id(number: u32) -> ConnId {
    ConnId::new(number, number)
}

fn at(seconds: u64) -> Instant {
    Instant::START + Duration::from_secs(seconds)
}

fn granted(registry: &mut Registry, server_id: &str, binary: u32) -> SlotKey {
    match registry.claim(server_id, id(binary), at(10)) {
        Claim::Granted(key) => key,
        other => panic!("{other:?}"),
    }
}

fn waits(slot: SlotKey, holder: u32, until: u64, is_first: bool) -> Claim {
    Claim::Waits { slot, holder: id(holder), until: at(until), is_first }
}

fn succession(holder: u32, rejected: &[u32], phones: &[u32]) -> Succession {
    let ids = |numbers: &[u32]| numbers.iter().copied().map(id).collect();
    Succession { holder: id(holder), rejected: ids(rejected), phones: ids(phones) }
}

#[test]
fn a_free_server_id_is_granted_and_found_by_its_exact_name() {
    let mut registry = registry();
    let home = granted(&mut registry, "home", 1);
    let office = granted(&mut registry, "Home", 2);
    assert_ne!(home, office);
    assert_eq!((registry.server_id(home), registry.holder(home)), ("home", Some(id(1))));
    assert_eq!(registry.join("home", id(3)), Ok(home));
    assert_eq!(registry.join("Home", id(4)), Ok(office));
    assert_eq!(registry.join("hom", id(5)), Err(JoinError::NoServer));
    assert_eq!((registry.len(), registry.binary_count(), registry.phone_count()), (2, 2, 2));
}

#[test]
fn who_leaves_has_grace_and_who_claims_then_gets_the_phones_of_before() {
    let mut registry = registry();
    let key = granted(&mut registry, "home", 1);
    registry.join("home", id(2)).unwrap();
    assert_eq!(registry.leave(key, id(1), at(30)), Departure::Grace);
    assert_eq!((registry.len(), registry.binary_count(), registry.holder(key)), (1, 0, None));
    registry.join("home", id(3)).unwrap();
    let claim = registry.claim("home", id(4), at(99));
    assert_eq!(claim, Claim::Reclaimed(key, vec![id(2), id(3)]));
    assert_eq!((registry.phones(key), registry.phone_count()), (&[][..], 0));
    assert_eq!(registry.end_grace(key, at(99)), Err(None));
}

#[test]
fn grace_ends_when_it_was_said_to_and_not_before() {
    let mut registry = registry();
    let key = granted(&mut registry, "home", 1);
    registry.join("home", id(2)).unwrap();
    assert_eq!(registry.end_grace(key, at(99)), Err(None), "held");
    registry.leave(key, id(1), at(30));
    assert_eq!(registry.end_grace(key, at(29)), Err(Some(at(30))));
    // A later grace of the same slot is not ended by the time of the earlier one.
    registry.claim("home", id(3), at(0));
    registry.leave(key, id(3), at(40));
    registry.join("home", id(4)).unwrap();
    assert_eq!(registry.end_grace(key, at(30)), Err(Some(at(40))));
    assert_eq!(registry.end_grace(key, at(40)), Ok(vec![id(4)]));
    registry.free(key);
    assert_eq!((registry.len(), registry.phone_count()), (0, 0));
    assert_eq!(registry.join("home", id(5)), Err(JoinError::NoServer));
    assert_eq!(registry.end_grace(key, at(99)), Err(None), "free");
    // Its index may serve another server-id, of which it knows nothing.
    let next = granted(&mut registry, "office", 6);
    assert_eq!((next, registry.server_id(next)), (key, "office"));
    assert_eq!(registry.end_grace(next, at(99)), Err(None));
}

#[test]
fn claimants_share_the_probe_of_the_first() {
    let mut registry = registry();
    let key = granted(&mut registry, "home", 1);
    assert_eq!(registry.claim("home", id(2), at(10)), waits(key, 1, 10, true));
    assert_eq!(registry.claim("home", id(3), at(15)), waits(key, 1, 10, false));
    assert_eq!(registry.reject_claimants(key), [id(2), id(3)]);
    assert_eq!(registry.reject_claimants(key), []);
    assert_eq!(registry.holder(key), Some(id(1)));
    // The next one starts a new probe.
    assert_eq!(registry.claim("home", id(4), at(20)), waits(key, 1, 20, true));
    registry.withdraw(key, id(4));
    assert_eq!(registry.claim("home", id(5), at(30)), waits(key, 1, 30, true));
}

#[test]
fn the_first_that_still_waits_succeeds() {
    for is_deposed in [true, false] {
        let mut registry = registry();
        let key = granted(&mut registry, "home", 1);
        for claimant in 2..=5 {
            registry.claim("home", id(claimant), at(10));
        }
        registry.join("home", id(9)).unwrap();
        registry.withdraw(key, id(2));
        registry.withdraw(key, id(4));
        registry.pause(key, true);
        let expected = succession(3, &[5], &[9]);
        if is_deposed {
            assert_eq!(registry.depose(key, at(9)), None, "the probe is still out");
            assert_eq!(registry.depose(key, at(10)), Some(expected));
        } else {
            assert_eq!(registry.leave(key, id(1), at(40)), Departure::Succeeded(expected));
        }
        assert_eq!((registry.holder(key), registry.is_paused(key)), (Some(id(3)), false));
        assert_eq!((registry.binary_count(), registry.phone_count()), (1, 0));
        // The old one's own departure changes nothing, the new one's does.
        registry.join("home", id(10)).unwrap();
        assert_eq!(registry.leave(key, id(1), at(50)), Departure::NotHolder);
        assert_eq!((registry.holder(key), registry.phones(key)), (Some(id(3)), &[id(10)][..]));
        assert_eq!(registry.leave(key, id(3), at(60)), Departure::Grace);
        assert_eq!(registry.end_grace(key, at(59)), Err(Some(at(60))));
    }
}

#[test]
fn nobody_is_deposed_without_a_claimant_or_in_grace() {
    let mut registry = registry();
    let key = granted(&mut registry, "home", 1);
    assert_eq!(registry.depose(key, at(99)), None);
    assert_eq!(registry.holder(key), Some(id(1)));
    registry.leave(key, id(1), at(30));
    assert_eq!(registry.depose(key, at(99)), None);
    assert_eq!(registry.leave(key, id(1), at(99)), Departure::NotHolder, "it has left already");
    assert_eq!(registry.end_grace(key, at(30)), Ok(vec![]));
}

#[test]
fn a_slot_has_16_phones_and_only_its_own_part() {
    let mut registry = registry();
    let key = granted(&mut registry, "home", 1);
    for phone in 0..16 {
        assert_eq!(registry.join("home", id(100 + phone)), Ok(key));
    }
    for _ in 0..2 {
        assert_eq!(registry.join("home", id(200)), Err(JoinError::AtCap));
        // A stranger parts: nothing happens.
        registry.part(key, id(200));
        assert_eq!((registry.phones(key).len(), registry.phone_count()), (16, 16));
    }
    registry.part(key, id(107));
    registry.part(key, id(107));
    assert_eq!((registry.phones(key).len(), registry.phone_count()), (15, 15));
    assert_eq!(registry.join("home", id(200)), Ok(key));
}

#[test]
fn pausing_says_whether_it_is_new_and_ends_with_its_binary() {
    let mut registry = registry();
    let key = granted(&mut registry, "home", 1);
    assert!(!registry.is_paused(key) && !registry.pause(key, false));
    assert!(registry.pause(key, true) && !registry.pause(key, true));
    registry.leave(key, id(1), at(30));
    assert!(!registry.is_paused(key));
}

/// The same in the words of the contract.
#[derive(Debug, Default)]
struct Model {
    slots: HashMap<String, ModelSlot>,
}

#[derive(Debug, Default)]
struct ModelSlot {
    holder: Option<ConnId>,
    claimants: Vec<ConnId>,
    phones: Vec<ConnId>,
    until: Instant,
}

impl ModelSlot {
    fn succeed(&mut self) -> Option<Succession> {
        if self.claimants.is_empty() {
            return None;
        }
        let holder = self.claimants.remove(0);
        self.holder = Some(holder);
        let (rejected, phones) = (mem::take(&mut self.claimants), mem::take(&mut self.phones));
        Some(Succession { holder, rejected, phones })
    }
}

/// Random operations on a few server-ids. Replay a failure with the seed it names.
fn run(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut registry = registry();
    let mut model = Model::default();
    // Where the registry says that a server-id is.
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
                let until = now + Duration::from_secs(10);
                let claim = registry.claim(&server_id, new, until);
                let slot = model.slots.entry(server_id.clone());
                let is_new = matches!(slot, Entry::Vacant(_));
                let slot = slot.or_default();
                let expected = if let Some(holder) = slot.holder {
                    let is_first = slot.claimants.is_empty();
                    if is_first {
                        slot.until = until;
                    }
                    slot.claimants.push(new);
                    let key = key.expect("held");
                    Claim::Waits { slot: key, holder, until: slot.until, is_first }
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
                let joined = registry.join(&server_id, new);
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
                // One of its phones, claimants or holders, or a stranger.
                let phone = slot.phones.get(rng.random_range(0..16)).copied().unwrap_or(new);
                registry.part(key, phone);
                slot.phones.retain(|known| *known != phone);
                let claimant = slot.claimants.get(rng.random_range(0..4)).copied().unwrap_or(new);
                registry.withdraw(key, claimant);
                slot.claimants.retain(|known| *known != claimant);
            }
            5 => {
                let Some((key, slot)) = key.zip(model.slots.get_mut(&server_id)) else { continue };
                let is_holder = rng.random_bool(0.8);
                let who = slot.holder.filter(|_| is_holder).unwrap_or(new);
                let until = now + Duration::from_secs(30);
                let expected = if slot.holder != Some(who) {
                    Departure::NotHolder
                } else if let Some(succession) = slot.succeed() {
                    Departure::Succeeded(succession)
                } else {
                    (slot.holder, slot.until) = (None, until);
                    Departure::Grace
                };
                assert_eq!(registry.leave(key, who, until), expected, "{context}");
            }
            6 => {
                let Some((key, slot)) = key.zip(model.slots.get_mut(&server_id)) else { continue };
                if rng.random_bool(0.5) {
                    let is_over = slot.holder.is_some() && slot.until <= now;
                    let expected = is_over.then(|| slot.succeed()).flatten();
                    assert_eq!(registry.depose(key, now), expected, "{context}");
                } else {
                    let expected = mem::take(&mut slot.claimants);
                    assert_eq!(registry.reject_claimants(key), expected, "{context}");
                }
            }
            _ => {
                let Some((key, slot)) = key.zip(model.slots.get_mut(&server_id)) else { continue };
                let ended = registry.end_grace(key, now);
                if slot.holder.is_some() {
                    assert_eq!(ended, Err(None), "{context}");
                } else if slot.until > now {
                    assert_eq!(ended, Err(Some(slot.until)), "{context}");
                } else {
                    assert_eq!(ended, Ok(mem::take(&mut slot.phones)), "{context}");
                    registry.free(key);
                    model.slots.remove(&server_id);
                    keys.remove(&server_id);
                }
            }
        }
        let slots = model.slots.values();
        assert_eq!(registry.len(), slots.len(), "{context}");
        let held = slots.clone().filter(|slot| slot.holder.is_some()).count();
        assert_eq!(registry.binary_count(), held, "{context}");
        let phones: usize = slots.map(|slot| slot.phones.len()).sum();
        assert_eq!(registry.phone_count(), phones, "{context}");
        for (server_id, slot) in &model.slots {
            let key = keys[server_id];
            assert_eq!(registry.server_id(key), server_id, "{context}");
            assert_eq!(registry.holder(key), slot.holder, "{context}");
            assert_eq!(registry.phones(key), slot.phones, "{context}");
            assert!(slot.holder.is_some() || slot.claimants.is_empty(), "{context}");
        }
    }
}

#[test]
fn it_does_what_the_model_does() {
    for seed in SEEDS {
        run(seed);
    }
}
