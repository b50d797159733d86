//! Log lines for envelopes that are not forwarded, for refusals and for takeovers.

use crate::support::{Opcode, PATIENCE, Peer, Process, envelope};

/// The lines up to the one that says `word`.
fn lines_until(process: &Process, word: &str) -> Vec<String> {
    let mut lines = Vec::new();
    while lines.last().is_none_or(|line: &String| !line.contains(word)) {
        lines.push(process.next_line(PATIENCE).unwrap_or_else(|| panic!("no {word}: {lines:?}")));
    }
    lines
}

fn say_all_that_is_wrong(binary: &mut Peer) {
    for wrong in ["{", "[]", "{}", r#"{"conn_id":"x"}"#] {
        binary.send_text(wrong);
    }
    binary.send(Opcode::Binary, b"\xff");
    binary.send_to("nobody", "1");
    binary.send_text(&envelope(&"0".repeat(32), "1"));
    binary.send_text(r#"{"push_wake":{"platform":"fcm","token":"secret"}}"#);
    binary.send_text(r#"{"push_wake":{"platform":"none","token":"secret"}}"#);
    binary.expect_alive();
}

#[test]
fn each_kind_of_dropped_envelope_is_warned_about_once_a_minute_and_connection() {
    let process = Process::start(&[]);
    for server_id in ["one", "two"] {
        let mut binary = Peer::binary(process.relay, server_id);
        say_all_that_is_wrong(&mut binary);
        let mut phone = Peer::phone(process.relay, server_id);
        phone.send_text("not JSON");
        let lines = lines_until(&process, "phone_unregistered");
        for (event, cause) in [
            ("binary_forwarder_unmarshal_err", "cause=malformed"),
            ("binary_forwarder_unknown_conn_id", "cause=unknown_phone"),
            ("binary_forwarder_push_wake_dropped", "cause=push_wake_off"),
            ("phone_forwarder_marshal_err", "conn_id="),
        ] {
            let word = format!("msg={event} server_id={server_id} ");
            let said: Vec<&String> = lines.iter().filter(|line| line.contains(&word)).collect();
            assert!(matches!(&said[..], [line] if line.contains(cause)), "{event}: {lines:#?}");
            let is_warning = said[0].contains("level=WARN ");
            assert!(is_warning && !said[0].contains("dropped="), "{}", said[0]);
        }
        assert!(!lines.concat().contains("secret"), "{lines:#?}");
    }
}

#[test]
fn at_debug_every_dropped_envelope_is_logged() {
    let process = Process::start_talkative(&[]);
    let mut binary = Peer::binary(process.relay, "home");
    say_all_that_is_wrong(&mut binary);
    let _phone = Peer::phone(process.relay, "home");
    let lines = lines_until(&process, "phone_registered");
    let causes: Vec<&str> = lines
        .iter()
        .filter(|line| line.contains("msg=binary_forwarder_"))
        .filter_map(|line| line.split("cause=").nth(1)?.split(' ').next())
        .collect();
    let expected = [
        "malformed",
        "malformed",
        "no_conn_id",
        "no_frame",
        "not_utf8",
        "unknown_phone",
        "unknown_phone",
        "push_wake_off",
        "push_wake_malformed",
    ];
    assert_eq!(causes, expected, "{lines:#?}");
}

#[test]
fn a_takeover_names_the_address_of_the_new_binary() {
    let process = Process::start(&[]);
    let mut old = Peer::binary(process.relay, "home");
    let mut new = Peer::binary(process.relay, "home");
    old.send_close(1000);
    new.expect_alive();
    let line = process.expect_line("msg=server_id_takeover");
    assert!(line.contains("server_id=home remote=127.0.0.1"), "{line}");
}
