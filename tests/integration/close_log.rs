//! Close log: exactly one line for the end of every WebSocket.

use rustix::process::Signal;

use crate::support::{Opcode, Peer, Process, Received, envelope};

/// A line of the log as JSON.
fn line(process: &Process, event: &str) -> serde_json::Value {
    let line = process.expect_line(event);
    let fields: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(fields["msg"], event);
    fields
}

#[test]
fn the_last_line_of_a_connection_has_its_summary_and_cause() {
    let process = Process::start(&["--log-format=json"]);
    let mut binary = Peer::binary(process.relay, "home");
    let mut phone = Peer::phone(process.relay, "home");
    for frame in ["1", "\"twelve bytes\"", "[3]"] {
        phone.send_text(frame);
        assert_eq!(binary.receive_text(), envelope(&phone.id, frame));
    }
    // A frame that is not delivered is counted for no phone.
    binary.send_to("nobody", "0");
    binary.send_to(&phone.id, "{ }");
    assert_eq!(phone.receive_text(), "{ }");

    phone.send_close(1000);
    let end = line(&process, "phone_unregistered");
    assert_eq!(end["role"], "phone");
    assert_eq!(
        (&end["conn_id"], &end["cause"]),
        (&phone.id.as_str().into(), &"peer_closed".into())
    );
    let counts = |end: &serde_json::Value| {
        ["frames_in", "bytes_in", "frames_out", "bytes_out"].map(|key| end[key].as_u64().unwrap())
    };
    assert_eq!(counts(&end), [3, 18, 1, 3]);
    assert!(end["age_ms"].as_u64().unwrap() < 20_000, "{end}");
    assert!(end.get("rtt_ms").is_none(), "no ping is due so soon: {end}");

    drop(binary);
    let end = line(&process, "server_released");
    assert_eq!((&end["role"], &end["cause"]), (&"binary".into(), &"disconnected".into()));
    assert_eq!(counts(&end), [1, 3, 3, 18]);
}

#[test]
fn the_last_round_trip_is_logged() {
    let process = Process::start(&["--log-format=json"]);
    let mut binary = Peer::binary(process.relay, "home");
    // A claim makes the relay ping the holder at once.
    let mut claimant = Peer::binary(process.relay, "home");
    let Received::Ping(payload) = binary.receive() else { panic!("no probe") };
    binary.send(Opcode::Pong, &payload);
    claimant.expect_close(4409, "server-id already claimed");
    line(&process, "server_id_conflict");
    drop(binary);
    let end = line(&process, "server_released");
    assert!(end["rtt_ms"].as_u64().unwrap() < 10_000, "{end}");
}

#[test]
fn sighup_ends_nothing() {
    let process = Process::start(&[]);
    let mut binary = Peer::binary(process.relay, "home");
    process.signal(Signal::HUP);
    let mut phone = Peer::phone(process.relay, "home");
    phone.send_text("1");
    assert_eq!(binary.receive_text(), envelope(&phone.id, "1"));
}
