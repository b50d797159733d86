//! Envelopes: what a binary may request, and that it reaches its own phones only.

use pyrycode_relay::relay::envelope::Dropped;

use crate::peer::{HOME, Seen, join};
use crate::wire;
use crate::world::{PeerId, World, closed, text};

struct Pair {
    world: World,
    binary: PeerId,
    phone: PeerId,
    conn_id: String,
}

fn pair() -> Pair {
    let mut world = World::new();
    let binary = world.binary("home");
    let phone = world.phone("home");
    let conn_id = world.peer(phone).conn_id().to_owned();
    Pair { world, binary, phone, conn_id }
}

fn dropped(world: &World) -> u64 {
    world.relay.stats().dropped.total()
}

#[test]
fn effects_of_an_envelope() {
    let cases: [(&str, &[&str], Option<u16>); 17] = [
        (r#"{"conn_id":"$","frame":{"a":1}}"#, &[r#"{"a":1}"#], None),
        (r#"{"frame":[1 , 2],"conn_id":"$"}"#, &["[1 , 2]"], None),
        (r#"{"conn_id":"$","frame":"x","close_code":0}"#, &[r#""x""#], None),
        (r#"{"conn_id":"$","frame":"x","close_code":null}"#, &[r#""x""#], None),
        (r#"{"conn_id":"$","frame":false,"other":1,"other":2}"#, &["false"], None),
        (r#"{"conn\u005fid":"$","\u0066rame":0}"#, &["0"], None),
        (" \r\n\t{ \"conn_id\" : \"$\" , \"frame\" : \t7\n } ", &["7"], None),
        (r#"{"conn_id":"$","close_code":4001}"#, &[], Some(4001)),
        (r#"{"conn_id":"$","frame":null,"close_code":1000}"#, &[], Some(1000)),
        (r#"{"conn_id":"$","frame":"bye","close_code":1000}"#, &[r#""bye""#], Some(1000)),
        (r#"{"close_code":3000,"frame":"bye","conn_id":"$"}"#, &[r#""bye""#], Some(3000)),
        // Codes that may not be sent become 1011.
        (r#"{"conn_id":"$","close_code":1}"#, &[], Some(1011)),
        (r#"{"conn_id":"$","close_code":1005}"#, &[], Some(1011)),
        (r#"{"conn_id":"$","close_code":1015}"#, &[], Some(1011)),
        (r#"{"conn_id":"$","close_code":2999}"#, &[], Some(1011)),
        (r#"{"conn_id":"$","close_code":5000}"#, &[], Some(1011)),
        (r#"{"conn_id":"$","close_code":65535}"#, &[], Some(1011)),
    ];
    for (envelope, frames, close_code) in cases {
        let Pair { mut world, binary, phone, conn_id } = pair();
        world.text(binary, &envelope.replace('$', &conn_id));
        let mut expected: Vec<Seen> = frames.iter().map(|frame| text(frame)).collect();
        if let Some(code) = close_code {
            expected.extend(closed(code, ""));
        }
        assert_eq!(world.heard(phone), expected, "{envelope}");
        assert_eq!((world.heard(binary), dropped(&world)), (vec![], 0), "{envelope}");
        world.finish();
    }
}

#[test]
fn every_code_that_may_go_on_the_wire_does() {
    for code in (1000..=1003).chain(1007..=1014).chain([3000, 3999, 4000, 4404, 4999]) {
        let Pair { mut world, binary, phone, conn_id } = pair();
        world.text(binary, &format!(r#"{{"conn_id":"{conn_id}","close_code":{code}}}"#));
        assert_eq!(world.heard(phone), closed(code, ""));
        world.finish();
    }
}

#[test]
fn a_bad_envelope_is_dropped_and_counted_and_the_binary_stays() {
    let Pair { mut world, binary, phone, conn_id } = pair();
    let deep =
        format!(r#"{{"conn_id":"$","frame":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    for (count, (envelope, cause)) in [
        ("", Dropped::Malformed),
        ("null", Dropped::Malformed),
        (r#"["$",1]"#, Dropped::Malformed),
        (r#""$""#, Dropped::Malformed),
        (r#"{"conn_id":"$","frame":1"#, Dropped::Malformed),
        (r#"{"conn_id":"$","frame":1}}"#, Dropped::Malformed),
        (r#"{"conn_id":"$","conn_id":"$","frame":1}"#, Dropped::Malformed),
        (r#"{"conn_id":"$","frame":1,"fr\u0061me":1}"#, Dropped::Malformed),
        (r#"{"conn_id":7,"frame":1}"#, Dropped::Malformed),
        (r#"{"conn_id":"$","frame":1,"close_code":"1000"}"#, Dropped::Malformed),
        (r#"{"conn_id":"$","frame":1,"close_code":1000.0}"#, Dropped::Malformed),
        (r#"{"conn_id":"$","frame":1,"close_code":1e3}"#, Dropped::Malformed),
        (r#"{"conn_id":"$","frame":1,"close_code":-1}"#, Dropped::Malformed),
        (r#"{"conn_id":"$","frame":1,"close_code":65536}"#, Dropped::Malformed),
        (r#"{"conn_id":"$"}"#, Dropped::NoFrame),
        (r#"{"conn_id":"$","frame":null,"close_code":0}"#, Dropped::NoFrame),
        // Keys match exactly.
        (r#"{"conn_id":"$","Frame":1}"#, Dropped::NoFrame),
        (r#"{"CONN_ID":"$","frame":1}"#, Dropped::NoConnId),
        (r#"{"conn_id":"","frame":1}"#, Dropped::NoConnId),
        (r#"{"conn_id":null,"frame":1}"#, Dropped::NoConnId),
        ("{}", Dropped::NoConnId),
        (&deep, Dropped::TooDeep),
        (r#"{"conn_id":"0","frame":1}"#, Dropped::UnknownPhone),
        (r#"{"conn_id":" $","frame":1}"#, Dropped::UnknownPhone),
        (r#"{"conn_id":"$0","close_code":1000}"#, Dropped::UnknownPhone),
    ]
    .into_iter()
    .enumerate()
    {
        let before = world.relay.stats().dropped[cause];
        world.text(binary, &envelope.replace('$', &conn_id));
        let shown = &envelope[..envelope.len().min(80)];
        assert_eq!(world.relay.stats().dropped[cause], before + 1, "{shown}");
        assert_eq!(dropped(&world), count as u64 + 1, "{shown}");
    }
    let not_utf8 = [br#"{"conn_id":"x","frame":""#, &b"\xff\"}"[..]].concat();
    world.send(binary, &wire::frame(wire::BINARY, &not_utf8));
    assert_eq!(world.relay.stats().dropped[Dropped::NotUtf8], 1);
    assert_eq!((world.heard(phone), world.heard(binary)), (vec![], vec![]));
    world.deliver(binary, phone, "1");
    assert_eq!(world.heard(phone), [text("1")]);
    world.finish();
}

#[test]
fn a_binary_reaches_no_phone_of_another_server_id() {
    let Pair { mut world, binary, phone, .. } = pair();
    let other = world.binary("office");
    let others_phone = world.phone("office");
    world.deliver(other, phone, "1");
    let close = format!(r#"{{"conn_id":"{}","close_code":1000}}"#, world.peer(phone).conn_id());
    world.text(other, &close);
    // Nor can a binary send to a binary.
    for target in [binary, other] {
        world.deliver(other, target, "1");
    }
    assert_eq!((world.heard(phone), world.heard(others_phone)), (vec![], vec![]));
    assert_eq!((world.heard(binary), world.heard(other)), (vec![], vec![]));
    assert_eq!(world.relay.stats().dropped[Dropped::UnknownPhone], 4);
    world.finish();
}

#[test]
fn a_closed_phone_s_conn_id_reaches_neither_it_nor_its_successor() {
    let Pair { mut world, binary, phone, .. } = pair();
    world.hang_up(phone);
    let next = world.phone("home");
    assert_eq!(world.peer(next).id.index(), world.peer(phone).id.index());
    world.deliver(binary, phone, "1");
    assert_eq!((world.heard(next), dropped(&world)), (vec![], 1));
    world.finish();
}

#[test]
fn a_closing_phone_receives_no_more_frames() {
    let Pair { mut world, binary, phone, conn_id } = pair();
    let habits = &mut world.peer_mut(phone).habits;
    (habits.answers_close, habits.hangs_up) = (false, false);
    let close = format!(r#"{{"conn_id":"{conn_id}","close_code":4001}}"#);
    for _ in 0..2 {
        world.text(binary, &close);
    }
    world.deliver(binary, phone, "1");
    assert_eq!(world.heard(phone), closed(4001, ""));
    assert_eq!(dropped(&world), 2);
    world.finish();
}

#[test]
fn a_phone_whose_binary_was_reclaimed_does_not_hear_the_new_one() {
    let Pair { mut world, binary, phone, .. } = pair();
    world.hang_up(binary);
    let new = world.binary("home");
    world.deliver(new, phone, "1");
    assert_eq!(world.heard(phone), closed(4404, "binary reclaimed server-id"));
    world.finish();
}

#[test]
fn order_is_kept_in_both_directions() {
    let Pair { mut world, binary, phone, .. } = pair();
    let second = world.dial_from(HOME, join("home").as_bytes());
    world.heard(second);
    let mut bytes = Vec::new();
    for number in 0..100 {
        let to = if number % 3 == 0 { second } else { phone };
        let envelope = world.envelope(to, &number.to_string());
        bytes.extend(wire::frame(wire::TEXT, envelope.as_bytes()));
    }
    world.send(binary, &bytes);
    let numbers = |pick: fn(&i32) -> bool| -> Vec<Seen> {
        (0..100).filter(pick).map(|number| text(&number.to_string())).collect()
    };
    assert_eq!(world.heard(second), numbers(|number| number % 3 == 0));
    assert_eq!(world.heard(phone), numbers(|number| number % 3 != 0));
    let mut bytes = Vec::new();
    for number in 0..100 {
        bytes.extend(wire::frame(wire::TEXT, number.to_string().as_bytes()));
    }
    world.send(phone, &bytes);
    let expected: Vec<Seen> =
        (0..100).map(|number| text(&world.envelope(phone, &number.to_string()))).collect();
    assert_eq!(world.heard(binary), expected);
    world.finish();
}
