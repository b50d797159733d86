//! `pyrycode-relay probe` against healthy relays, and against other programs in their place.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use pyrycode_relay::config::{Listen, Serving};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::support::{PATIENCE, millis, relay, run, run_suspended};

/// An address without a listener, and the socket that keeps it so: a port that is
/// free is soon another test's.
fn unused_address() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// Runs a probe: exit code and JSON report.
fn probe(address: SocketAddr, flags: &[&str]) -> (i32, Value) {
    let url = format!("http://{address}");
    let output = run(&[&["probe", "--json", &url], flags].concat(), &[]);
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = serde_json::from_slice(&output.stdout).expect("one JSON object");
    (output.status.code().expect("it ends by itself"), report)
}

/// The one step that failed: its name, what was found, and the advice.
fn failure(report: &Value) -> (&str, &str, &str) {
    let steps = report["steps"].as_array().unwrap();
    let mut failed = steps.iter().filter(|step| step["outcome"] == "failed");
    let step = failed.next().unwrap_or_else(|| panic!("nothing failed: {report}"));
    assert!(failed.next().is_none(), "more than one failed: {report}");
    let text = |key: &str| step[key].as_str().unwrap_or_default();
    (text("name"), text("found"), text("advice"))
}

fn step<'a>(report: &'a Value, name: &str) -> &'a Value {
    let steps = report["steps"].as_array().unwrap();
    steps.iter().find(|step| step["name"] == name).unwrap_or_else(|| panic!("{name}: {report}"))
}

/// A server that hands every connection, with its request head read, to `answer`.
fn stand_in(answer: impl Fn(TcpStream, &str) + Send + Clone + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let answer = answer.clone();
            thread::spawn(move || answer_one(stream, answer));
        }
    });
    address
}

fn answer_one(stream: TcpStream, answer: impl Fn(TcpStream, &str)) {
    let mut head = String::new();
    let mut reader = BufReader::new(&stream);
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            return;
        }
    }
    drop(reader);
    answer(stream, &head);
}

/// A proxy in front of `relay` that sends on what `rewrite` makes of a request head,
/// and cuts what is silent for `idle`.
fn proxy(relay: SocketAddr, idle: Duration, rewrite: fn(&str) -> String) -> SocketAddr {
    stand_in(move |phone, head| tunnel(&phone, &rewrite(head), relay, idle))
}

/// Sends on what `phone` says after `head`, and what it is answered.
fn tunnel(phone: &TcpStream, head: &str, relay: SocketAddr, idle: Duration) {
    let mut upstream = TcpStream::connect(relay).unwrap();
    upstream.write_all(head.as_bytes()).unwrap();
    for (from, to) in [(phone, &upstream), (&upstream, phone)] {
        from.set_read_timeout(Some(idle)).unwrap();
        let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
        thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
}

#[test]
fn a_healthy_relay_passes_every_step() {
    let relay = relay(|_| {});
    let (code, report) = probe(relay, &["--round-trips=30"]);
    assert_eq!(code, 0, "{report}");
    assert_eq!(report["ok"], true);
    let names: Vec<_> =
        report["steps"].as_array().unwrap().iter().map(|step| &step["name"]).collect();
    let expected = [
        "resolve",
        "connect",
        "health",
        "binary",
        "phone",
        "headers",
        "phone to binary",
        "binary to phone",
        "large messages",
        "unknown id",
        "leaving",
    ];
    assert_eq!(names, expected);
    for step in report["steps"].as_array().unwrap() {
        assert_eq!(step["outcome"], "ok", "{step}");
    }
    for name in ["phone to binary", "binary to phone"] {
        let step = step(&report, name);
        let figure = |key: &str| step[key].as_f64().unwrap();
        assert_eq!(step["frames"], 30);
        assert!(figure("median_ms") > 0.0 && figure("median_ms") <= figure("p99_ms"), "{step}");
        assert!(figure("p99_ms") <= figure("max_ms"), "{step}");
    }
}

#[test]
fn the_report_is_lines_and_a_passed_health_check_is_silent() {
    let relay = relay(|_| {});
    let url = format!("ws://{relay}/");
    let output = run(&["probe", &url], &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.lines().all(|line| line.starts_with("ok ") || line.starts_with("all well")));
    assert!(!text.contains('\x1b'), "colour, but no terminal");

    let output = run(&["probe", "--health", &url], &[]);
    assert_eq!((output.status.code(), output.stdout), (Some(0), vec![]));
    // As an image's health check asks: the URL is in the environment.
    let here = format!("http://{relay}");
    let output = run(&["probe", "--health"], &[("PYRYCODE_RELAY_PROBE_URL", &here)]);
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    let (_socket, unused) = unused_address();
    let unused = format!("http://{unused}");
    // A URL on the command line takes precedence.
    let variables = [("PYRYCODE_RELAY_PROBE_URL", here.as_str())];
    let output = run(&["probe", "--health", &unused], &variables);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("no program listens there"), "{text}");
}

#[test]
fn bad_usage_exits_2_with_advice() {
    for (flags, says) in [
        (&[][..], "PYRYCODE_RELAY_PROBE_URL"),
        (&["relay.example"], "https://relay.example"),
        (&["http://a", "http://b"], "unexpected argument"),
        (&["http://a", "--frobnicate"], "probe --help"),
        (&["http://a", "--watch=0"], "--watch"),
        (&["http://a", "--ca=x.pem"], "https://"),
        (&["http://a", "--health", "--watch=9"], "--health"),
        (&["http://a", "--connect=:80"], "--connect: \":80\""),
        (&["http://b\u{fc}cher.example"], "punycode"),
    ] {
        let output = run(&[&["probe"], flags].concat(), &[]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {text}");
        assert!(text.contains(says) && output.stdout.is_empty(), "{flags:?}: {text}");
    }
    let output = run(&["probe"], &[("PYRYCODE_RELAY_PROBE_URL", "127.0.0.1:9090")]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("PYRYCODE_RELAY_PROBE_URL: must be"), "{text}");
    let output = run(&["probe", "--help"], &[]);
    assert!(String::from_utf8(output.stdout).unwrap().contains("--watch SECONDS"));
}

#[test]
fn responses_of_other_servers_are_explained() {
    const CASES: &[(&str, &str, &str)] = &[
        ("200 OK", "200", "does not pass WebSockets"),
        ("426 Upgrade Required", "426", "proxy_set_header Upgrade"),
        ("502 Bad Gateway", "502", "cannot reach the relay"),
        ("429 Too Many Requests", "429", "rate limit"),
        ("301 Moved Permanently\r\nLocation: https://there.example/\x1b", "301", "there.example"),
    ];
    for (status, found, advice) in CASES {
        let address = stand_in(move |mut stream, head| {
            let answer = if head.starts_with("GET /healthz") {
                "HTTP/1.1 200 OK\r\n\r\n{\"status\":\"ok\",\"version\":\"\x1b[2J\",\
                 \"connected_binaries\":0,\"connected_phones\":0,\"uptime_seconds\":0}"
                    .to_owned()
            } else {
                format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")
            };
            let _ = stream.write_all(answer.as_bytes());
        });
        let (code, report) = probe(address, &[]);
        assert_eq!(code, 1, "{status}: {report}");
        // A control character in a version is no JSON, in a header no HTTP.
        let failed: Vec<_> = report["steps"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|step| step["outcome"] == "failed")
            .collect();
        let upgrade = failed.last().unwrap();
        assert_eq!(upgrade["name"], "binary", "{report}");
        if !status.contains('\x1b') {
            assert!(upgrade["found"].as_str().unwrap().contains(found), "{report}");
            assert!(upgrade["advice"].as_str().unwrap().contains(advice), "{report}");
        }
    }
}

#[test]
fn a_proxy_that_drops_headers_is_named() {
    fn without(head: &str, name: &str) -> String {
        let lines = head.split_inclusive("\r\n");
        lines.filter(|line| !line.to_ascii_lowercase().starts_with(name)).collect()
    }
    let relay = relay(|_| {});
    type Case = (fn(&str) -> String, &'static str, &'static str);
    let rewrites: [Case; 3] = [
        (|head| without(head, "x-pyrycode-server"), "binary", "drops"),
        (|head| without(head, "x-pyrycode-token"), "phone", "drops"),
        (|head| without(head, "upgrade"), "binary", "does not pass WebSockets"),
    ];
    for (rewrite, step, advice) in rewrites {
        let (code, report) = probe(proxy(relay, Duration::from_secs(60), rewrite), &[]);
        let (name, _, said) = failure(&report);
        assert_eq!((code, name), (1, step), "{report}");
        assert!(said.contains(advice), "{report}");
    }
}

#[test]
fn silent_closed_and_slow_servers_are_told_apart() {
    let hangs = stand_in(|mut stream, _| {
        let _ = stream.read(&mut [0; 1]);
    });
    let (code, report) = probe(hangs, &["--timeout=1", "--health"]);
    assert_eq!((code, failure(&report).0), (1, "health"));
    assert!(failure(&report).1.contains("no response within 1 s"), "{report}");

    let closes = stand_in(|stream, _| drop(stream));
    let (code, report) = probe(closes, &["--health"]);
    assert_eq!((code, failure(&report).0), (1, "health"));
    assert!(failure(&report).1.contains("closed"), "{report}");

    // Single bytes do not extend the time limit.
    let drips = stand_in(|mut stream, _| {
        while stream.write_all(b"H").is_ok() {
            thread::park_timeout(millis(50));
        }
    });
    let (code, report) = probe(drips, &["--timeout=1", "--health"]);
    assert_eq!(code, 1, "{report}");

    let (_socket, unused) = unused_address();
    let (code, report) = probe(unused, &[]);
    assert_eq!((code, failure(&report).0), (1, "connect"));
}

#[test]
fn another_address_is_dialled_for_the_same_name() {
    let relay = relay(|_| {});
    let connect = format!("--connect={relay}");
    let url = "http://relay.example:1234";
    let output = run(&["probe", "--json", "--round-trips=1", &connect, url], &[]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert_eq!(step(&report, "connect")["address"], relay.to_string());
    // The port is the URL's if it is not given.
    let asked = stand_in(|mut stream, head| {
        let is_right = head.contains("\r\nHost: relay.example:");
        let status = if is_right { "502 Bad Gateway" } else { "404 Not Found" };
        let _ = stream.write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes());
    });
    let url = format!("http://relay.example:{}", asked.port());
    let output = run(&["probe", "--json", "--health", "--connect=127.0.0.1", &url], &[]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(failure(&report).1, "/healthz answers 502", "{report}");
}

#[test]
fn a_proxy_header_is_sent_where_the_relay_needs_one() {
    let proxied = relay(|config| {
        let (listen, _) = config.serving.listens().next().unwrap();
        config.serving = Serving::Plain(Listen { proxy_protocol: true, ..listen });
    });
    let (code, report) = probe(proxied, &["--proxy-protocol", "--round-trips=1"]);
    assert_eq!(code, 0, "{report}");
    let (code, report) = probe(proxied, &["--proxy-protocol", "--health"]);
    assert_eq!(code, 0, "{report}");
    let (code, report) = probe(proxied, &["--health"]);
    let (name, _, advice) = failure(&report);
    assert_eq!((code, name), (1, "health"), "{report}");
    assert!(advice.contains("probe with --proxy-protocol"), "{report}");
}

#[test]
fn a_suspension_is_not_a_failure() {
    let relay = relay(|_| {});
    for path in ["/healthz", "/v1/server", "/v1/client"] {
        let (asked, stop) = mpsc::channel();
        let (resumed, go_on) = mpsc::channel::<()>();
        let go_on = Arc::new(Mutex::new(go_on));
        let slow = stand_in(move |stream, head| {
            if head.starts_with(&format!("GET {path} ")) {
                let _ = asked.send(());
                // After the end every read returns zero.
                let _ = go_on.lock().unwrap().recv();
            }
            tunnel(&stream, head, relay, PATIENCE);
        });
        let url = format!("http://{slow}");
        let output = run_suspended(&["probe", "--round-trips=1", &url], &stop, resumed);
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{path}: {said}");
    }
}

#[test]
fn the_rate_limit_is_named() {
    let relay = relay(|config| {
        config.limits.rate_per_minute = 1;
        config.limits.rate_burst = 1;
    });
    let (code, report) = probe(relay, &[]);
    let (name, found, advice) = failure(&report);
    assert_eq!((code, name), (1, "phone"), "{report}");
    assert!(found.contains("429") && advice.contains("rate limit"), "{report}");
}

#[test]
fn a_watch_reports_pings_and_an_early_close() {
    let relay = relay(|config| config.timeouts.ping_interval = millis(400));
    let (code, report) = probe(relay, &["--watch=2", "--round-trips=1"]);
    assert_eq!(code, 0, "{report}");
    assert!(step(&report, "watch")["pings"].as_u64().unwrap() >= 2, "{report}");

    let relay = crate::support::relay(|_| {});
    let impatient = proxy(relay, millis(1500), str::to_owned);
    let (code, report) = probe(impatient, &["--watch=10", "--round-trips=1"]);
    let (name, found, advice) = failure(&report);
    assert_eq!((code, name), (1, "watch"), "{report}");
    assert!(found.contains("closed after 1.") && found.contains("FIN"), "{report}");
    assert!(advice.contains("under 35 s") && advice.contains("proxy_read_timeout"), "{report}");
}
