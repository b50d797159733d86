//! Claims of a server-id: claim, grace, takeover; and the phones of the slot.

use crate::support::{
    NEVER, Opcode, Peer, Received, binary_head, connect, envelope, eventually, healthz, millis,
    relay,
};

const CLAIMED: &str = "server-id already claimed";
const RECLAIMED: &str = "binary reclaimed server-id";

/// The ping by which the relay asks a holder whether it lives.
fn hear_probe(holder: &mut Peer) -> Vec<u8> {
    match holder.receive() {
        Received::Ping(payload) => payload,
        received => panic!("no probe but {received:?}"),
    }
}

/// Frames go both ways between the two.
fn expect_joined(binary: &mut Peer, phone: &mut Peer) {
    phone.send_text("1");
    assert_eq!(binary.receive_text(), envelope(&phone.id, "1"));
    binary.send_to(&phone.id, "2");
    assert_eq!(phone.receive_text(), "2");
}

#[test]
fn the_first_claim_wins_while_its_holder_lives() {
    let relay = relay(|_| {});
    let mut holder = Peer::binary(relay, "home");
    let mut phone = Peer::phone(relay, "home");
    for _ in 0..3 {
        let mut newcomer = Peer::binary(relay, "home");
        let probe = hear_probe(&mut holder);
        newcomer.expect_silence(millis(50));
        holder.send(Opcode::Pong, &probe);
        newcomer.expect_close(4409, CLAIMED);
    }
    expect_joined(&mut holder, &mut phone);
}

#[test]
fn only_a_pong_to_the_probe_answers_it() {
    let relay = relay(|config| config.timeouts.probe = millis(300));
    let mut holder = Peer::binary(relay, "home");
    let mut newcomer = Peer::binary(relay, "home");
    hear_probe(&mut holder);
    holder.send_text("{}");
    holder.send(Opcode::Pong, b"");
    holder.send(Opcode::Pong, b"whatever");
    holder.expect_alive();
    holder.expect_close(1011, "heartbeat timeout");
    newcomer.expect_alive();
}

#[test]
fn server_ids_are_independent_and_case_sensitive() {
    let relay = relay(|_| {});
    let mut here = Peer::binary(relay, "home");
    let mut there = Peer::binary(relay, "Home");
    let (mut phone, mut other) = (Peer::phone(relay, "home"), Peer::phone(relay, "Home"));
    expect_joined(&mut here, &mut phone);
    expect_joined(&mut there, &mut other);

    // A binary cannot send to another binary's phone.
    there.send_to(&phone.id, "\"stolen\"");
    there.send_text(&format!("{{\"conn_id\":\"{}\",\"close_code\":4000}}", phone.id));
    there.expect_alive();
    expect_joined(&mut here, &mut phone);
}

#[test]
fn a_slot_is_kept_for_a_binary_however_it_closed() {
    type Leave = fn(Peer);
    let ways: [(&str, Leave); 3] = [
        ("close", |mut binary| {
            binary.send_close(1000);
            assert_eq!(binary.receive(), Received::Close(Some((1000, String::new()))));
        }),
        ("fin", |binary| drop(binary)),
        ("reset", Peer::reset),
    ];
    for (way, leave) in ways {
        let relay = relay(|_| {});
        let binary = Peer::binary(relay, "home");
        let mut before = Peer::phone(relay, "home");
        leave(binary);
        eventually(way, || healthz(relay) == (0, 1));
        let mut after = Peer::phone(relay, "home");
        before.expect_alive();
        after.expect_alive();
        assert_eq!(healthz(relay), (0, 2));

        // A frame sent meanwhile is not delivered, and its sender is closed.
        let mut speaker = Peer::phone(relay, "home");
        speaker.send_text("1");
        speaker.expect_close(4404, "binary disconnected");
        let mut babbler = Peer::phone(relay, "home");
        babbler.send_text("not JSON");
        babbler.expect_close(1007, "frame is not valid JSON");

        let mut binary = Peer::binary(relay, "home");
        for phone in [&mut before, &mut after] {
            phone.expect_close(4404, RECLAIMED);
        }
        expect_joined(&mut binary, &mut Peer::phone(relay, "home"));
    }
}

#[test]
fn the_end_of_grace_frees_the_slot_and_its_phones() {
    let relay = relay(|config| config.timeouts.grace = millis(200));
    let binary = Peer::binary(relay, "home");
    let mut phone = Peer::phone(relay, "home");
    drop(binary);
    phone.expect_close(1000, "");
    Peer::phone(relay, "home").expect_close(4404, "no server with that id");
    assert_eq!(healthz(relay), (0, 0));
    let mut binary = Peer::binary(relay, "home");
    expect_joined(&mut binary, &mut Peer::phone(relay, "home"));
}

#[test]
fn a_claim_within_grace_ends_the_grace() {
    let relay = relay(|config| config.timeouts.grace = millis(400));
    drop(Peer::binary(relay, "home"));
    eventually("grace", || healthz(relay) == (0, 0));
    let mut binary = Peer::binary(relay, "home");
    let mut phone = Peer::phone(relay, "home");
    phone.expect_silence(millis(700));
    expect_joined(&mut binary, &mut phone);
}

#[test]
fn a_holder_that_does_not_answer_the_probe_is_taken_over() {
    let relay = relay(|config| config.timeouts.probe = millis(300));
    let mut holder = Peer::binary(relay, "home");
    let mut phone = Peer::phone(relay, "home");
    let mut first = Peer::binary(relay, "home");
    let mut second = Peer::binary(relay, "home");
    let mut third = Peer::binary(relay, "home");
    hear_probe(&mut holder);
    holder.expect_close(1011, "heartbeat timeout");
    phone.expect_close(4404, RECLAIMED);
    second.expect_close(4409, CLAIMED);
    third.expect_close(4409, CLAIMED);

    // What the former holder still sends has no effect.
    holder.send_close(1000);
    drop(holder);
    let mut phone = Peer::phone(relay, "home");
    expect_joined(&mut first, &mut phone);
    phone.expect_silence(millis(100));
}

#[test]
fn a_holder_that_leaves_while_probed_is_replaced_at_once() {
    type Leave = fn(Peer);
    let leave: [Leave; 3] = [|mut holder| holder.send_close(1000), drop, Peer::reset];
    for leave in leave {
        let relay = relay(|config| config.timeouts.probe = NEVER);
        let mut holder = Peer::binary(relay, "home");
        let mut phone = Peer::phone(relay, "home");
        let mut first = Peer::binary(relay, "home");
        let mut second = Peer::binary(relay, "home");
        hear_probe(&mut holder);
        leave(holder);
        phone.expect_close(4404, RECLAIMED);
        second.expect_close(4409, CLAIMED);
        expect_joined(&mut first, &mut Peer::phone(relay, "home"));
    }
}

#[test]
fn while_a_claimant_waits_it_is_neither_pinged_nor_read() {
    let relay = relay(|config| {
        config.timeouts.ping_interval = millis(100);
        config.timeouts.pong = NEVER;
        config.timeouts.probe = NEVER;
        config.timeouts.message = millis(100);
    });
    let holder = Peer::binary(relay, "home");
    let mut claimant = Peer::binary(relay, "home");
    claimant.send(Opcode::Ping, b"hello");
    claimant.send(Opcode::Text, b"{}");
    // The start of a message: its timeout does not run while it is not read.
    claimant.send_raw(&crate::support::header(0x81, 2));
    claimant.expect_silence(millis(400));
    drop(holder);
    assert_eq!(claimant.receive_answering(), Received::Pong(b"hello".into()));
    claimant.send_raw(b"{}");
    claimant.expect_alive();
}

#[test]
fn a_claimant_that_disconnects_is_forgotten() {
    type HangUp = fn(Peer);
    let ways: [(&str, HangUp); 4] = [
        ("fin", drop),
        ("reset", Peer::reset),
        ("fin-behind-data", |mut claimant| {
            // No more than the relay's kernel buffers, or the FIN would not arrive.
            claimant.send_raw(&[b'x'; 30_000]);
            claimant.finish();
            // This side stays open until the relay has disconnected.
            while claimant.try_receive().is_ok_and(|received| received != Received::End) {}
        }),
        ("reset-behind-data", |mut claimant| {
            claimant.send_raw(&[b'x'; 300_000]);
            claimant.reset();
        }),
    ];
    let relay = relay(|config| config.timeouts.probe = millis(500));
    let mut pairs = ways.map(|(way, hang_up)| {
        // The only claimant: no takeover follows, whether or not the holder answers.
        let mut holder = Peer::binary(relay, way);
        hang_up(Peer::binary(relay, way));
        let probe = hear_probe(&mut holder);

        // The first of two: the second gets the slot.
        let other = format!("{way}-and-another");
        let deposed = Peer::binary(relay, &other);
        hang_up(Peer::binary(relay, &other));
        let heir = Peer::binary(relay, &other);
        (holder, probe, deposed, heir, other)
    });
    for (_, _, deposed, heir, other) in &mut pairs {
        println!("{other}");
        deposed.expect_close(1011, "heartbeat timeout");
        expect_joined(heir, &mut Peer::phone(relay, other));
    }
    for ((holder, probe, ..), (way, _)) in pairs.iter_mut().zip(ways) {
        println!("{way}");
        holder.expect_silence(millis(100));
        holder.send(Opcode::Pong, probe);
        expect_joined(holder, &mut Peer::phone(relay, way));
    }
}

#[test]
fn a_head_followed_at_once_by_a_disconnect_leaves_nothing() {
    use std::io::Write;
    let relay = relay(|config| config.timeouts.probe = millis(200));
    let mut holder = Peer::binary(relay, "home");
    for _ in 0..20 {
        let mut stream = connect(relay);
        stream.write_all(binary_head("home").as_bytes()).unwrap();
    }
    // Each claim starts at most one probe; all claimants are gone before it ends.
    let mut latest = Vec::new();
    while let Ok(Received::Ping(payload)) = {
        holder.stream.set_read_timeout(Some(millis(500))).unwrap();
        holder.try_receive()
    } {
        latest = payload;
    }
    holder.stream.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    assert!(!latest.is_empty(), "no probe");
    expect_joined(&mut holder, &mut Peer::phone(relay, "home"));
}

#[test]
fn sixteen_phones_and_no_more_on_one_server_id() {
    let relay = relay(|config| config.timeouts.linger = NEVER);
    let mut binary = Peer::binary(relay, "home");
    let mut phones: Vec<Peer> = (0..16).map(|_| Peer::phone(relay, "home")).collect();
    Peer::phone(relay, "home").expect_close(4429, "too many phones for server-id");
    Peer::phone(relay, "none").expect_close(4404, "no server with that id");
    for phone in &mut phones {
        expect_joined(&mut binary, phone);
    }

    // A connection in its linger is not counted.
    binary.send_text(&format!("{{\"conn_id\":\"{}\",\"close_code\":4000}}", phones[3].id));
    phones[3].expect_close(4000, "");
    expect_joined(&mut binary, &mut Peer::phone(relay, "home"));
    assert_eq!(healthz(relay).0, 1);

    let mut ids: Vec<&str> = phones.iter().map(|phone| phone.id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 16, "conn_ids are unique");
}
