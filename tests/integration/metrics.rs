//! Metrics: each one is driven over real sockets and counts the events that happened.

use std::io::Write;
use std::time::Instant;

use pyrycode_relay::config::Config;
use rustix::process::Signal;

use crate::support::{
    Answer, NEVER, Opcode, Peer, Process, Received, Scrape, ask, binary_head, connect,
    connect_reading_little, envelope, eventually, frame, header, healthz, millis, phone_head,
    upgrade_head, watched,
};

const ATTEMPTS: &str = "ws_upgrade_attempts_total";
const CLOSES: &str = "closes_total";
const FAILURES: &str = "register_failures_total";

/// The contract's names with their label sets.
fn contract() -> Vec<String> {
    const CAUSES: [&str; 19] = [
        "peer_closed",
        "disconnected",
        "heartbeat_timeout",
        "write_timeout",
        "backlog_full",
        "out_of_buffer_memory",
        "message_timeout",
        "message_too_big",
        "protocol_error",
        "invalid_utf8",
        "not_json",
        "server_id_claimed",
        "no_such_server",
        "too_many_phones",
        "binary_reclaimed",
        "binary_disconnected",
        "grace_expired",
        "binary_request",
        "shutdown",
    ];
    const OUTCOMES: [&str; 8] = [
        "accept",
        "reject_headers",
        "reject_409",
        "reject_404",
        "reject_429",
        "reject_rate_limit",
        "reject_cap",
        "reject_handshake",
    ];
    let mut series: Vec<String> = [
        "connected_binaries",
        "connected_phones",
        "frames_forwarded_total{direction=\"phone_to_binary\"}",
        "frames_forwarded_total{direction=\"binary_to_phone\"}",
        "grace_expiries_total",
        "close_notices_total",
        "register_failures_total{kind=\"no_server\"}",
        "register_failures_total{kind=\"server_in_use\"}",
        "register_failures_total{kind=\"phones_at_cap\"}",
        "register_failures_total{kind=\"ratelimit\"}",
        "heartbeat_pings_total",
        "heartbeat_pongs_total",
        "heartbeat_timeouts_total{role=\"binary\"}",
        "heartbeat_timeouts_total{role=\"phone\"}",
        "heartbeat_rtt_seconds_count",
        "heartbeat_rtt_seconds_sum",
        "heartbeat_rtt_seconds_bucket{le=\"+Inf\"}",
        "frames_dropped_total{cause=\"malformed\"}",
        "buffered_bytes",
        "takeovers_total",
        "log_lines_dropped_total",
        "proxy_header_refused_total{cause=\"untrusted\"}",
        "push_wakes_total{outcome=\"sent\"}",
        "push_wakes_total{outcome=\"unregistered\"}",
        "push_wakes_total{outcome=\"send_failed\"}",
        "push_wakes_total{outcome=\"token_fetch_failed\"}",
        "push_wakes_total{outcome=\"dropped\"}",
        "tls_reloads_total{outcome=\"ok\"}",
        "tls_reloads_total{outcome=\"failed\"}",
        "loop_lag_seconds_count",
        "loop_lag_seconds_sum",
        "loop_lag_seconds_bucket{le=\"0.001\"}",
    ]
    .map(String::from)
    .into();
    for endpoint in ["server", "client"] {
        series.extend(OUTCOMES.map(|outcome| {
            format!("ws_upgrade_attempts_total{{endpoint=\"{endpoint}\",outcome=\"{outcome}\"}}")
        }));
    }
    for role in ["binary", "phone"] {
        series.extend(
            CAUSES.map(|cause| format!("closes_total{{role=\"{role}\",cause=\"{cause}\"}}")),
        );
    }
    series
}

#[test]
fn every_documented_metric_exists_at_zero() {
    let process = Process::start(&["--max-connections=7", "--buffer-memory=2097152"]);
    let scrape = Scrape::of(process.metrics);
    for series in contract() {
        assert_eq!(scrape.value(&series), 0.0, "{series}");
    }
    for (series, value) in [("connections_max", 7.0), ("buffered_bytes_max", 2_097_152.0)] {
        assert_eq!(scrape.value(series), value);
    }
    for name in [
        "process_cpu_seconds_total",
        "process_max_fds",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "process_virtual_memory_bytes",
    ] {
        assert!(scrape.0[name] > 0.0, "{name}");
    }
    // A scrape takes a turn.
    assert!(scrape.0.contains_key("pyrycode_relay_turn_seconds_bucket{le=\"0.001\"}"));
    // Scrapes change no series of the relay but the length of its turns.
    let again = Scrape::of(process.metrics);
    let own = |scrape: &Scrape| {
        let own = scrape.0.clone().into_iter();
        let is_own = |series: &str| {
            series.starts_with("pyrycode") && !series.starts_with("pyrycode_relay_turn_")
        };
        own.filter(|(series, _)| is_own(series)).collect::<Vec<_>>()
    };
    assert_eq!(own(&scrape), own(&again));
}

/// Asks for an upgrade; the status of the answer.
fn attempt(relay: std::net::SocketAddr, head: &str) -> u16 {
    let mut stream = connect(relay);
    stream.write_all(head.as_bytes()).unwrap();
    let mut status = [0; 12];
    std::io::Read::read_exact(&mut stream, &mut status).unwrap();
    std::str::from_utf8(&status[9..]).unwrap().parse().unwrap()
}

#[test]
fn each_attempt_is_counted_once_by_its_outcome() {
    let (relay, metrics) = watched(21, |_| {});
    let (limited, limited_metrics) = watched(100, |config| {
        config.limits.rate_per_minute = 1;
        config.limits.rate_burst = 1;
    });
    let before = Scrape::of(metrics);
    // Sixteen phones and four binaries; the others are all gone.
    let mut binaries: Vec<Peer> =
        ["home", "b", "c", "d"].iter().map(|id| Peer::binary(relay, id)).collect();
    let mut phones: Vec<Peer> = (0..16).map(|_| Peer::phone(relay, "home")).collect();
    phones[0].expect_alive();
    let after = Scrape::of(metrics);
    let accepts = vec![
        ("endpoint=\"client\",outcome=\"accept\"", 16.0),
        ("endpoint=\"server\",outcome=\"accept\"", 4.0),
    ];
    assert_eq!(after.changes(&before, ATTEMPTS), accepts);
    assert_eq!(after.value("connected_phones"), 16.0);
    assert_eq!(after.value("connected_binaries"), 4.0);
    assert_eq!(after.value("connections"), 20.0);

    let no_token = upgrade_head("/v1/client", "x-pyrycode-server: home\r\nuser-agent: t\r\n");
    let no_version = upgrade_head("/v1/server", "x-pyrycode-server: home\r\nuser-agent: t\r\n");
    let plain = |head: String| head.replace("Upgrade: websocket\r\n", "");
    let table = [
        ("client", no_token, 400, "reject_headers", None),
        ("server", no_version, 400, "reject_headers", None),
        ("client", plain(phone_head("home")), 426, "reject_handshake", None),
        ("server", plain(binary_head("new")), 426, "reject_handshake", None),
        ("client", phone_head("nobody"), 101, "reject_404", Some("no_server")),
        ("client", phone_head("home"), 101, "reject_429", Some("phones_at_cap")),
    ];
    for (endpoint, head, status, outcome, kind) in table {
        let before = Scrape::of(metrics);
        assert_eq!(attempt(relay, &head), status, "{outcome}");
        let after = Scrape::of(metrics);
        let labels = format!("endpoint=\"{endpoint}\",outcome=\"{outcome}\"");
        assert_eq!(after.changes(&before, ATTEMPTS), [(&*labels, 1.0)]);
        let failure = kind.map(|kind| format!("kind=\"{kind}\""));
        let expected: Vec<_> = failure.iter().map(|labels| (&**labels, 1.0)).collect();
        assert_eq!(after.changes(&before, FAILURES), expected, "{outcome}");
    }

    // The holder answers the probe.
    let before = Scrape::of(metrics);
    let mut claimant = Peer::binary(relay, "home");
    assert_eq!(Scrape::of(metrics).changes(&before, ATTEMPTS), [], "it is not decided yet");
    let Received::Ping(payload) = binaries[0].receive() else { panic!("no probe") };
    binaries[0].send(Opcode::Pong, &payload);
    claimant.expect_close(4409, "server-id already claimed");
    let after = Scrape::of(metrics);
    let conflict = [("endpoint=\"server\",outcome=\"reject_409\"", 1.0)];
    assert_eq!(after.changes(&before, ATTEMPTS), conflict);
    assert_eq!(after.changes(&before, FAILURES), [("kind=\"server_in_use\"", 1.0)]);

    // The cap refuses binaries and phones alike.
    let _last = Peer::binary(relay, "e");
    let before = Scrape::of(metrics);
    assert_eq!(attempt(relay, &binary_head("f")), 503);
    assert_eq!(attempt(relay, &phone_head("b")), 503);
    let full = vec![
        ("endpoint=\"client\",outcome=\"reject_cap\"", 1.0),
        ("endpoint=\"server\",outcome=\"reject_cap\"", 1.0),
    ];
    assert_eq!(Scrape::of(metrics).changes(&before, ATTEMPTS), full);

    let _first = Peer::binary(limited, "home");
    let before = Scrape::of(limited_metrics);
    assert_eq!(attempt(limited, &binary_head("home")), 429);
    assert_eq!(attempt(limited, &phone_head("home")), 429);
    let after = Scrape::of(limited_metrics);
    let refused = vec![
        ("endpoint=\"client\",outcome=\"reject_rate_limit\"", 1.0),
        ("endpoint=\"server\",outcome=\"reject_rate_limit\"", 1.0),
    ];
    assert_eq!(after.changes(&before, ATTEMPTS), refused);
    assert_eq!(after.changes(&before, FAILURES), [("kind=\"ratelimit\"", 2.0)]);

    assert_balanced(&Scrape::of(metrics));
}

/// Every WebSocket that was opened has ended or lives.
fn assert_balanced(scrape: &Scrape) {
    let of = |outcome: &str| {
        let series =
            |endpoint| format!("{ATTEMPTS}{{endpoint=\"{endpoint}\",outcome=\"{outcome}\"}}");
        scrape.value(&series("server")) + scrape.value(&series("client"))
    };
    let opened: f64 = ["accept", "reject_404", "reject_409", "reject_429"].map(of).iter().sum();
    let live = scrape.value("connected_binaries") + scrape.value("connected_phones");
    assert_eq!(opened, scrape.sum(CLOSES) + live, "{scrape:?}");
}

#[test]
fn frames_and_their_bytes_are_counted_where_they_are_forwarded() {
    let (relay, metrics) = watched(100, |_| {});
    let mut binary = Peer::binary(relay, "home");
    let mut phone = Peer::phone(relay, "home");
    for n in 0..1_000 {
        phone.send_text(&format!(" {n:06} ").replace("00", "10"));
        let _ = binary.receive_text();
    }
    for _ in 0..30 {
        binary.send_to(&phone.id, "\"to the phone\"");
        assert_eq!(phone.receive_text(), "\"to the phone\"");
    }
    let nested = [vec![b'['; 10_010], vec![b']'; 10_010]].concat();
    let too_deep = [b"{\"conn_id\":\"x\",\"frame\":", &nested[..], b"}"].concat();
    let dropped: [(&str, &[u8]); 7] = [
        ("malformed", b"[]"),
        ("no_conn_id", b"{\"frame\":1}"),
        ("no_frame", b"{\"conn_id\":\"x\"}"),
        ("not_utf8", b"{\"conn_id\":\"\xff\",\"frame\":1}"),
        ("push_wake_off", b"{\"push_wake\":{\"platform\":\"fcm\",\"token\":\"t\"}}"),
        ("too_deep", &too_deep),
        ("unknown_phone", b"{\"conn_id\":\"x\",\"frame\":1}"),
    ];
    for (_, envelope) in dropped {
        binary.send(Opcode::Binary, envelope);
    }
    binary.expect_alive();
    let scrape = Scrape::of(metrics);
    for (series, value) in [
        ("frames_forwarded_total{direction=\"phone_to_binary\"}", 1_000.0),
        ("forwarded_bytes_total{direction=\"phone_to_binary\"}", 6_000.0),
        ("frames_forwarded_total{direction=\"binary_to_phone\"}", 30.0),
        ("forwarded_bytes_total{direction=\"binary_to_phone\"}", 30.0 * 14.0),
    ] {
        assert_eq!(scrape.value(series), value, "{series}");
    }
    for (cause, _) in dropped {
        assert_eq!(
            scrape.value(&format!("frames_dropped_total{{cause=\"{cause}\"}}")),
            1.0,
            "{cause}"
        );
    }
    assert_eq!(scrape.sum("frames_dropped_total"), 7.0);
}

#[test]
fn pings_pongs_round_trips_and_dead_peers_are_counted() {
    let (relay, metrics) = watched(100, |config| {
        config.timeouts.ping_interval = millis(200);
        config.timeouts.pong = millis(2_000);
    });
    let mut binary = Peer::binary(relay, "home");
    // These phones never answer a ping.
    let _phones: Vec<Peer> = (0..3).map(|_| Peer::phone(relay, "home")).collect();
    let (mut answered, mut behind) = (0.0, 0.0);
    let mut since_answer = Instant::now();
    loop {
        let payload = match binary.receive() {
            Received::Ping(payload) => payload,
            // The dead phones have been closed.
            Received::Text(text) if text.ends_with(r#","close_code":1011}"#) => continue,
            received => panic!("{received:?}"),
        };
        // After a stall of the machine it was sent before the last answer had come, and
        // that one told no round trip.
        behind += f64::from(u8::from(answered > 0.0 && since_answer.elapsed() < millis(100)));
        if healthz(relay).1 == 0 && answered >= 10.0 {
            break;
        }
        since_answer = Instant::now();
        binary.send(Opcode::Pong, &payload);
        // Unsolicited, and again: it answers nothing.
        binary.send(Opcode::Pong, &payload);
        answered += 1.0;
    }
    let scrape = Scrape::of(metrics);
    let pongs = scrape.value("heartbeat_pongs_total");
    assert!((answered - 1.0..=answered).contains(&pongs), "{pongs} of {answered}");
    let round_trips = scrape.value("heartbeat_rtt_seconds_count");
    assert!((pongs - behind..=pongs).contains(&round_trips), "{round_trips} of {pongs}, {behind}");
    assert_eq!(scrape.value("heartbeat_rtt_seconds_bucket{le=\"+Inf\"}"), round_trips);
    let sum = scrape.value("heartbeat_rtt_seconds_sum");
    assert!(sum > 0.0 && sum < 20.0, "in seconds: {sum}");
    let pings = scrape.value("heartbeat_pings_total");
    assert!(pings >= answered + 3.0, "those to the dead, too: {pings} of {answered}");
    assert_eq!(scrape.value("heartbeat_timeouts_total{role=\"phone\"}"), 3.0);
    assert_eq!(scrape.value("heartbeat_timeouts_total{role=\"binary\"}"), 0.0);
    let dead = "closes_total{role=\"phone\",cause=\"heartbeat_timeout\"}";
    assert_eq!(scrape.value(dead), 3.0);
    // Each ping was a timer.
    assert!(scrape.value("loop_lag_seconds_count") >= pings);
    assert_balanced(&scrape);
}

#[test]
fn takeover_and_the_end_of_grace_are_counted() {
    let (relay, metrics) = watched(100, |config| {
        config.timeouts.probe = millis(300);
        config.timeouts.grace = millis(300);
    });
    let _dead = Peer::binary(relay, "home");
    let mut phone = Peer::phone(relay, "home");
    let mut heir = Peer::binary(relay, "home");
    phone.expect_close(4404, "binary reclaimed server-id");
    heir.expect_alive();
    let scrape = Scrape::of(metrics);
    assert_eq!(scrape.value("takeovers_total"), 1.0);
    assert_eq!(scrape.value("heartbeat_timeouts_total{role=\"binary\"}"), 1.0);
    assert_eq!(scrape.value("grace_expiries_total"), 0.0);

    let mut phone = Peer::phone(relay, "home");
    drop(heir);
    phone.expect_close(1000, "");
    let scrape = Scrape::of(metrics);
    assert_eq!(scrape.value("grace_expiries_total"), 1.0);
    assert_eq!(scrape.value("closes_total{role=\"phone\",cause=\"grace_expired\"}"), 1.0);
    assert_balanced(&scrape);
}

#[test]
fn every_cause_of_a_close_is_counted_under_its_name() {
    let impatient = |config: &mut Config| {
        config.timeouts.message = millis(200);
        config.timeouts.write = millis(500);
        config.timeouts.linger = NEVER;
        config.limits.buffer_memory = 2_000_000;
    };
    let (relay, metrics) = watched(1_000, impatient);
    // What a phone does, and the cause for which it is closed.
    let close = |code: u16| frame(Opcode::Close, true, &code.to_be_bytes());
    let sent: [(&str, Vec<u8>); 6] = [
        ("peer_closed", close(1000)),
        ("protocol_error", close(5000)),
        ("message_too_big", header(0x81, 1 << 40)),
        ("invalid_utf8", frame(Opcode::Text, true, b"\"\xff\"")),
        ("not_json", frame(Opcode::Text, true, b"{")),
        ("message_timeout", frame(Opcode::Text, false, b"1")),
    ];
    let mut binary = Peer::binary(relay, "home");
    let before = Scrape::of(metrics);
    let mut expected = Vec::new();
    for (cause, bytes) in sent {
        let mut phone = Peer::phone(relay, "home");
        phone.send_raw(&bytes);
        assert!(matches!(phone.receive(), Received::Close(_)), "{cause}");
        expected.push(cause);
    }
    Peer::phone(relay, "home").reset();
    eventually("it is gone", || healthz(relay) == (1, 0));
    expected.push("disconnected");
    let mut phone = Peer::phone(relay, "home");
    binary.send_text(&format!("{{\"conn_id\":\"{}\",\"close_code\":4000}}", phone.id));
    phone.expect_close(4000, "");
    expected.push("binary_request");
    Peer::phone(relay, "nobody").expect_close(4404, "no server with that id");
    expected.push("no_such_server");

    let long = format!("\"{}\"", "x".repeat(64_000));
    let phone = Peer::upgrade(connect_reading_little(relay), &phone_head("home"));
    // Less than half of the memory.
    (0..10).for_each(|_| binary.send_to(&phone.id, &long));
    eventually("nothing drains", || healthz(relay) == (1, 0));
    assert_eq!(
        Scrape::of(metrics).value("closes_total{role=\"phone\",cause=\"write_timeout\"}"),
        1.0
    );
    expected.push("write_timeout");
    let phone = Peer::upgrade(connect_reading_little(relay), &phone_head("home"));
    (0..100).for_each(|_| binary.send_to(&phone.id, &long));
    binary.expect_alive();
    expected.push("backlog_full");
    // Each phone holds at most one largest message; together they exceed the budget.
    let phones: Vec<Peer> = (0..16)
        .map(|_| Peer::upgrade(connect_reading_little(relay), &phone_head("home")))
        .collect();
    for phone in &phones {
        (0..4).for_each(|_| binary.send_to(&phone.id, &long));
    }
    binary.expect_alive();
    let scrape = Scrape::of(metrics);
    let buffered = scrape.value("buffered_bytes");
    assert!(buffered > 1_000_000.0, "the others': {buffered}");
    let shed = scrape.value("closes_total{role=\"phone\",cause=\"out_of_buffer_memory\"}") as usize;
    assert!((1..16).contains(&shed), "{shed} were shed");
    eventually("nothing drains there either", || healthz(relay) == (1, 0));
    expected.extend(vec!["out_of_buffer_memory"; shed]);
    expected.extend(vec!["write_timeout"; phones.len() - shed]);

    let phones: Vec<Peer> = (0..17).map(|_| Peer::phone(relay, "home")).collect();
    expected.push("too_many_phones");
    drop(binary);
    eventually("it is away", || healthz(relay) == (0, 16));
    let mut phones = phones;
    phones[0].send_text("1");
    phones[0].expect_close(4404, "binary disconnected");
    expected.push("binary_disconnected");
    let _heir = Peer::binary(relay, "home");
    phones[1].expect_close(4404, "binary reclaimed server-id");
    expected.extend(["binary_reclaimed"; 15]);

    let after = Scrape::of(metrics);
    let mut counted: Vec<String> = Vec::new();
    for (labels, count) in after.changes(&before, CLOSES) {
        let cause = labels.trim_end_matches('"').rsplit('"').next().unwrap();
        if labels.contains("role=\"phone\"") {
            counted.extend(vec![cause.to_owned(); count as usize]);
        } else {
            assert_eq!((labels, count), ("role=\"binary\",cause=\"disconnected\"", 1.0));
        }
    }
    expected.sort_unstable();
    counted.sort_unstable();
    assert_eq!(counted, expected);
    assert_balanced(&after);
}

#[test]
fn a_shut_down_is_shown_and_its_closes_are_counted() {
    let process = Process::start(&[]);
    let _peers = [Peer::binary(process.relay, "home"), Peer::phone(process.relay, "home")];
    process.signal(Signal::TERM);
    process.expect_line("shutting_down");
    // The phone is closed shortly after its binary.
    let phones = "closes_total{role=\"phone\",cause=\"shutdown\"}";
    eventually("the phone is told", || Scrape::of(process.metrics).value(phones) == 1.0);
    let scrape = Scrape::of(process.metrics);
    assert_eq!(scrape.value("draining"), 1.0);
    for role in ["binary", "phone"] {
        assert_eq!(
            scrape.value(&format!("closes_total{{role=\"{role}\",cause=\"shutdown\"}}")),
            1.0
        );
    }
    assert_balanced(&scrape);
}

#[test]
fn peers_cannot_put_text_into_the_metrics() {
    let process = Process::start(&[]);
    let marker = "hunter2-swordfish";
    let fields = format!(
        "x-pyrycode-server: {marker}\r\nx-pyrycode-version: {marker}\r\nuser-agent: {marker}\r\n\
         x-pyrycode-token: {marker}\r\nx-pyrycode-device-name: {marker}\r\n"
    );
    let mut binary = Peer::upgrade(connect(process.relay), &upgrade_head("/v1/server", &fields));
    let mut phone = Peer::upgrade(connect(process.relay), &upgrade_head("/v1/client", &fields));
    phone.send_text(&format!("\"{marker}\""));
    let _ = binary.receive_text();
    binary.send_text(&envelope(marker, "1"));
    binary.expect_alive();
    for path in ["/metrics", "/"] {
        let Answer { status, body, .. } =
            ask(process.metrics, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        assert!(status == 200 && !body.contains(marker), "{path}");
    }
}
