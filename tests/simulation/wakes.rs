//! Push wakes: which requests are accepted, and that a wake's only effect is its outcome.

use pyrycode_relay::config::{Config, FCM_ENDPOINT, PushWake, ServiceAccount};
use pyrycode_relay::relay::Input;
use pyrycode_relay::relay::envelope::Dropped;
use pyrycode_relay::relay::push_wake::IN_FLIGHT_MAX;
use pyrycode_relay::relay::stats::WakeOutcome;
use pyrycode_relay::time::TICK;

use crate::world::{PeerId, World, closed, secs, text};

fn pushing() -> World {
    let account = ServiceAccount {
        project_id: "project".into(),
        client_email: "a@b".into(),
        token_uri: "https://localhost/token".into(),
        private_key_id: None,
        private_key: "in the shell only".into(),
    };
    let push_wake = PushWake { account, endpoint: FCM_ENDPOINT.into(), ca: None };
    let mut config = Config { push_wake: Some(push_wake), ..Config::default() };
    config.limits.rate_per_minute = 0;
    World::with(config, 1_000, 1)
}

fn ask(world: &mut World, binary: PeerId, token: &str) {
    let wake = format!(r#"{{"push_wake":{{"platform":"fcm","token":"{token}"}}}}"#);
    world.text(binary, &wake);
}

/// The tokens of the wakes handed out now; all of them have come to this end.
fn carry_out(world: &mut World, outcome: WakeOutcome) -> Vec<String> {
    let mut tokens = Vec::new();
    while let Some(wake) = world.relay.poll_wake() {
        tokens.push(wake.device.reveal().to_owned());
    }
    for _ in &tokens {
        world.relay.handle(Input::WakeDone(outcome), world.now);
    }
    world.relay.audit();
    tokens
}

fn counted(world: &World, outcome: WakeOutcome) -> u64 {
    world.relay.stats().wakes[outcome]
}

#[test]
fn a_wake_is_handed_out_once_and_its_outcome_counted() {
    let mut world = pushing();
    assert_eq!(world.relay.stats().wakes.total(), 0);
    let binary = world.binary("home");
    let phone = world.phone("home");
    for outcome in WakeOutcome::ALL {
        ask(&mut world, binary, outcome.label());
        assert_eq!(carry_out(&mut world, outcome), [outcome.label()]);
        assert_eq!(counted(&world, outcome), 1);
    }
    assert_eq!(world.relay.stats().wakes.total(), WakeOutcome::ALL.len() as u64);
    // No peer is told, and frames go on.
    assert_eq!((world.heard(binary), world.heard(phone)), (vec![], vec![]));
    world.deliver(binary, phone, "1");
    assert_eq!(world.heard(phone), [text("1")]);
    assert_eq!(world.relay.stats().dropped.total(), 0);
    world.finish();
}

#[test]
fn a_wake_says_which_server_id_asked() {
    let mut world = pushing();
    for server_id in ["home", "office"] {
        let binary = world.binary(server_id);
        ask(&mut world, binary, "t");
        // The binary may have disconnected.
        world.hang_up(binary);
        let wake = world.relay.poll_wake().expect("it is taken on");
        assert_eq!((&*wake.server_id, wake.device.reveal()), (server_id, "t"));
        world.relay.handle(Input::WakeDone(WakeOutcome::Sent), world.now);
    }
    world.finish();
}

#[test]
fn with_push_wake_off_a_wake_is_dropped_and_the_binary_stays() {
    let mut world = World::new();
    let binary = world.binary("home");
    ask(&mut world, binary, "t");
    assert!(world.relay.poll_wake().is_none());
    assert_eq!(counted(&world, WakeOutcome::Dropped), 1);
    assert_eq!(world.relay.stats().dropped[Dropped::PushWakeOff], 1);
    assert_eq!(world.heard(binary), []);
    world.finish();
}

#[test]
fn an_invalid_wake_is_dropped_and_takes_no_token() {
    let mut world = pushing();
    let binary = world.binary("home");
    for _ in 0..10 {
        ask(&mut world, binary, "");
        world.text(binary, r#"{"push_wake":["fcm","t"]}"#);
    }
    assert!(world.relay.poll_wake().is_none());
    assert_eq!(counted(&world, WakeOutcome::Dropped), 20);
    assert_eq!(world.relay.stats().dropped[Dropped::PushWakeMalformed], 20);
    for _ in 0..6 {
        ask(&mut world, binary, "t");
    }
    assert_eq!(carry_out(&mut world, WakeOutcome::Sent).len(), 6);
    assert_eq!(world.heard(binary), []);
    world.finish();
}

#[test]
fn a_server_id_has_its_own_bucket_for_every_holder() {
    let mut world = pushing();
    let home = world.binary("home");
    let office = world.binary("office");
    for number in 0..10 {
        ask(&mut world, home, &number.to_string());
    }
    assert_eq!(carry_out(&mut world, WakeOutcome::Sent), ["0", "1", "2", "3", "4", "5"]);
    assert_eq!(counted(&world, WakeOutcome::Dropped), 4);
    assert_eq!(world.relay.stats().dropped[Dropped::PushWakeLimit], 4);
    ask(&mut world, office, "office");
    assert_eq!(carry_out(&mut world, WakeOutcome::Sent), ["office"]);
    // A new binary on the slot, and one after its grace, find the same bucket.
    world.hang_up(home);
    let home = world.binary("home");
    ask(&mut world, home, "too soon");
    world.pass(secs(10) - TICK);
    ask(&mut world, home, "too soon");
    assert_eq!(carry_out(&mut world, WakeOutcome::Sent), [""; 0]);
    world.pass(TICK);
    ask(&mut world, home, "after 10 s");
    ask(&mut world, home, "too soon");
    assert_eq!(carry_out(&mut world, WakeOutcome::Sent), ["after 10 s"]);
    world.hang_up(home);
    world.pass(secs(31));
    let home = world.binary("home");
    for _ in 0..10 {
        ask(&mut world, home, "after the grace");
    }
    assert_eq!(carry_out(&mut world, WakeOutcome::Sent).len(), 3);
    world.pass(secs(60));
    for _ in 0..10 {
        ask(&mut world, home, "full again");
    }
    assert_eq!(carry_out(&mut world, WakeOutcome::Sent).len(), 6);
    world.finish();
}

#[test]
fn wakes_in_flight_are_capped() {
    let mut world = pushing();
    let binaries: Vec<PeerId> = (0..40).map(|n| world.binary(&format!("home-{n}"))).collect();
    for binary in &binaries {
        ask(&mut world, *binary, "t");
    }
    assert_eq!(counted(&world, WakeOutcome::Dropped), 40 - IN_FLIGHT_MAX as u64);
    // A wake that was handed out is still in flight.
    let mut handed_out = 0;
    while world.relay.poll_wake().is_some() {
        handed_out += 1;
    }
    assert_eq!(handed_out, IN_FLIGHT_MAX);
    ask(&mut world, binaries[0], "one too many");
    assert!(world.relay.poll_wake().is_none());
    world.relay.handle(Input::WakeDone(WakeOutcome::SendFailed), world.now);
    ask(&mut world, binaries[39], "room for one");
    ask(&mut world, binaries[38], "and not two");
    assert_eq!(world.relay.poll_wake().unwrap().device.reveal(), "room for one");
    assert!(world.relay.poll_wake().is_none());
    // Refusals for the global limit took no token of a server-id.
    for _ in 0..IN_FLIGHT_MAX {
        world.relay.handle(Input::WakeDone(WakeOutcome::SendFailed), world.now);
    }
    for _ in 0..10 {
        ask(&mut world, binaries[38], "t");
    }
    assert_eq!(carry_out(&mut world, WakeOutcome::Sent).len(), 6);
    world.finish();
}

#[test]
fn the_end_of_a_wake_outlives_its_binary_and_the_shut_down() {
    let mut world = pushing();
    let binary = world.binary("home");
    ask(&mut world, binary, "t");
    world.hang_up(binary);
    assert_eq!(carry_out(&mut world, WakeOutcome::Sent), ["t"]);
    let binary = world.binary("home");
    ask(&mut world, binary, "t");
    assert!(world.relay.poll_wake().is_some());
    world.shut_down();
    assert_eq!(world.heard(binary), closed(1001, "shutting down"));
    world.relay.handle(Input::WakeDone(WakeOutcome::Sent), world.now);
    assert_eq!(counted(&world, WakeOutcome::Sent), 2);
}
