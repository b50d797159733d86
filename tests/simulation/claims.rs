//! Claims and grace: the holder of a server-id at each time, and the peers that are told.

use pyrycode_relay::time::TICK;

use crate::world::{World, secs};

const RECLAIMED: (u16, &str) = (4404, "binary reclaimed server-id");

#[test]
fn the_first_claim_wins_and_server_ids_are_independent() {
    let mut world = World::new();
    let home = world.binary("home");
    let office = world.binary("office");
    let phone = world.phone("home");
    assert_eq!((world.relay.slots(), world.relay.live()), (2, (2, 1)));
    assert!(world.is_holder(home, phone));
    assert_eq!(world.heard(office), []);
    world.finish();
}

#[test]
fn server_ids_are_told_apart_by_every_byte() {
    let mut world = World::new();
    world.binary("home");
    for other in ["Home", "home1", "hom", "home/", "h%6fme"] {
        let phone = world.phone(other);
        world.assert_closed(phone, (4404, "no server with that id"));
    }
    world.finish();
}

#[test]
fn a_binary_that_leaves_keeps_its_slot_for_the_grace() {
    for leave in
        [World::hang_up, World::reset, |world: &mut World, peer| world.close(peer, 1000, "")]
    {
        let mut world = World::new();
        let binary = world.binary("home");
        let phone = world.phone("home");
        leave(&mut world, binary);
        assert_eq!((world.relay.slots(), world.relay.live()), (1, (0, 1)));
        world.pass(secs(30) - TICK);
        assert_eq!(world.heard(phone), []);
        let late = world.phone("home");
        assert_eq!(world.heard(late), [], "new phones still register");
        world.pass(2 * TICK);
        world.assert_closed(phone, (1000, ""));
        world.assert_closed(late, (1000, ""));
        assert_eq!((world.relay.slots(), world.relay.live()), (0, (0, 0)));
        let later = world.phone("home");
        world.assert_closed(later, (4404, "no server with that id"));
        world.finish();
    }
}

#[test]
fn a_claim_in_grace_takes_the_slot_and_phones_dial_again() {
    let mut world = World::new();
    let old = world.binary("home");
    let phones = [world.phone("home"), world.phone("home")];
    let stranger = world.binary("office");
    let strange_phone = world.phone("office");
    world.hang_up(old);
    world.pass(secs(29));
    let new = world.binary("home");
    for phone in phones {
        world.assert_closed(phone, RECLAIMED);
    }
    assert_eq!(world.relay.live(), (2, 1), "phones of the old binary count nowhere");
    let again = world.phone("home");
    // The timer of the grace is cancelled.
    world.pass(secs(120));
    assert_eq!(world.heard(again), []);
    assert!(world.is_holder(new, again));
    assert!(world.is_holder(stranger, strange_phone));
    assert_eq!(world.heard(strange_phone), []);
    world.finish();
}

#[test]
fn each_grace_runs_its_full_time() {
    let mut world = World::new();
    let first = world.binary("home");
    world.hang_up(first);
    world.pass(secs(20));
    let second = world.binary("home");
    world.pass(secs(5));
    world.hang_up(second);
    let phone = world.phone("home");
    // The first grace would have ended now.
    world.pass(secs(10));
    assert_eq!(world.heard(phone), []);
    world.pass(secs(20) - TICK);
    assert_eq!(world.heard(phone), []);
    world.pass(2 * TICK);
    world.assert_closed(phone, (1000, ""));
    world.finish();
}

#[test]
fn a_freed_slot_used_by_another_server_id_keeps_nothing_of_the_old_one() {
    let mut world = World::new();
    let old = world.binary("home");
    world.hang_up(old);
    world.pass(secs(31));
    let new = world.binary("office");
    let phone = world.phone("office");
    world.pass(secs(31));
    assert!(world.is_holder(new, phone));
    world.hang_up(new);
    world.pass(secs(29));
    assert_eq!(world.heard(phone), []);
    world.finish();
}
