//! Log lines for refused requests, and how often the relay warns.
//!
//! Owns a `log` destination that keeps the lines of the current test: each test has its own
//! thread.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Once;
use std::time::Duration;

use log::kv::{Error, Key, Value, VisitSource};
use log::{LevelFilter, Log, Metadata, Record};
use pyrycode_relay::config::{ACME_DIRECTORY, Acme, Config, HEAD_MAX, Listen, Serving};
use pyrycode_relay::protocol::proxy_header::Proxied;
use pyrycode_relay::relay::{Input, ListenerKind, Relay};
use pyrycode_relay::time::Instant;

use crate::peer::request;

thread_local! {
    /// `None`: the test does not ask.
    static LINES: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

struct Keep;

impl Log for Keep {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        LINES.with_borrow(Option::is_some)
    }

    fn log(&self, record: &Record<'_>) {
        LINES.with_borrow_mut(|lines| {
            let Some(lines) = lines else { return };
            let mut line = format!("{} {}", record.level(), record.args());
            record.key_values().visit(&mut Pairs(&mut line)).expect("a String takes every write");
            lines.push(line);
        });
    }

    fn flush(&self) {}
}

struct Pairs<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for Pairs<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        if value.to_string() != "None" {
            write!(self.0, " {key}={value}").expect("a String takes every write");
        }
        Ok(())
    }
}

/// What `act` leaves in the log.
fn logged(act: impl FnOnce()) -> Vec<String> {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        log::set_boxed_logger(Box::new(Keep)).expect("it is the only one");
        log::set_max_level(LevelFilter::Debug);
    });
    LINES.set(Some(Vec::new()));
    act();
    LINES.take().expect("set above")
}

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));

fn at(seconds: u64) -> Instant {
    Instant::START + Duration::from_secs(seconds)
}

/// Sends `bytes` on a new connection.
fn send(relay: &mut Relay, bytes: &[u8], now: Instant) {
    let id = relay.handle_accept(PEER, ListenerKind::Clients, now);
    relay.handle(Input::Bytes(id, bytes), now);
    // After a 101 the bytes are frames.
    let answer = String::from_utf8_lossy(&relay.outgoing(id).concat()).into_owned();
    assert!(answer.contains("\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n"), "{answer}");
    relay.handle(Input::Disconnected(id), now);
    while relay.poll_effect().is_some() {}
}

fn relay(adjust: impl FnOnce(&mut Config), capacity: usize) -> Relay {
    let mut config = Config::default();
    adjust(&mut config);
    Relay::new(&config, capacity, [7; 32], Instant::START)
}

fn with_domain(config: &mut Config) {
    let any = Listen::at(SocketAddr::from(([127, 0, 0, 1], 0)));
    let acme = Acme {
        domain: "other.example".into(),
        cache: "certs".into(),
        directory: ACME_DIRECTORY.into(),
        ca: None,
        account: None,
    };
    config.serving = Serving::Automatic { https: any, http: any, acme };
}

#[test]
fn every_kind_of_refusal_logs_a_line_with_its_cause() {
    let server = ["x-pyrycode-server: home", "x-pyrycode-version: 1"];
    let client = ["x-pyrycode-server: home", "x-pyrycode-token: hush"];
    let (server, client) = (request("/v1/server", &server), request("/v1/client", &client));
    let many = "x: y\r\n".repeat(70);
    let with = |head: &str, old: &str, new: &str| {
        assert!(head.contains(old), "{head}");
        head.replacen(old, new, 1).into_bytes()
    };
    let long_id = format!("server: {}", "x".repeat(129));
    let cookie = format!("Host: relay.example\r\nCookie: {}", "c".repeat(HEAD_MAX));
    let (s, c) = ("path=/v1/server", "path=/v1/client");
    let no_path = "";
    let table: Vec<(Vec<u8>, &str, u16, &str, &str)> = vec![
        (with(&server, "x-pyrycode-server: home\r\n", ""), s, 400, "missing", "x-pyrycode-server"),
        (
            with(&server, "x-pyrycode-server", "x-pyrycode-server: other\r\nx-pyrycode-server"),
            s,
            400,
            "repeated",
            "x-pyrycode-server",
        ),
        (with(&server, "server: home", &long_id), s, 400, "invalid", "x-pyrycode-server"),
        (with(&server, "server: home", "server: hömé"), s, 400, "invalid", "x-pyrycode-server"),
        (with(&server, "x-pyrycode-version: 1\r\n", ""), s, 400, "missing", "x-pyrycode-version"),
        (with(&client, "x-pyrycode-token: hush\r\n", ""), c, 400, "missing", "x-pyrycode-token"),
        (with(&client, "User-Agent: simulation\r\n", ""), c, 400, "missing", "user-agent"),
        (with(&client, "Upgrade: websocket\r\n", ""), c, 426, "missing", "upgrade"),
        (
            with(&client, "Connection: Upgrade", "Connection: close"),
            c,
            426,
            "invalid",
            "connection",
        ),
        (with(&client, "HTTP/1.1", "HTTP/1.0"), c, 426, "old_http", ""),
        (with(&client, "GET ", "POST "), c, 405, "method", ""),
        (
            with(&client, "/v1/client", "/v1/clients?token=hush"),
            "path=/v1/clients",
            404,
            "unknown_path",
            "",
        ),
        (with(&client, "Host: relay.example", &cookie), c, 431, "head_too_long", ""),
        (with(&client, "\r\n\r\n", &format!("\r\n{many}\r\n")), c, 431, "too_many_fields", ""),
        (
            with(&client, "Host", "Transfer-Encoding: chunked\r\nHost"),
            c,
            400,
            "body",
            "transfer-encoding",
        ),
        (with(&client, "Host", "Content-Length: 3\r\nHost"), c, 400, "body", "content-length"),
        (with(&client, "Host: relay.example\r\n", ""), c, 400, "missing", "host"),
        (with(&client, "Version: 13", "Version: 8"), c, 400, "invalid", "sec-websocket-version"),
        (with(&client, "Key: dGhl", "Key: AAAA"), c, 101, "", ""),
        (with(&client, "Key: dGhl", "Key: -"), c, 400, "invalid", "sec-websocket-key"),
        (with(&client, "Host:", "Host :"), c, 400, "malformed_head", ""),
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
            no_path,
            400,
            "tls_client_hello",
            "",
        ),
        (
            [b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", client.as_bytes()].concat(),
            no_path,
            400,
            "proxy_header",
            "",
        ),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), no_path, 400, "http2_preface", ""),
    ];
    for (bytes, path, status, cause, header) in table {
        let shown = bytes.escape_ascii().to_string();
        let mut relay = relay(|_| {}, 10);
        let lines = logged(|| send(&mut relay, &bytes, at(1)));
        if status == 101 {
            assert!(lines.iter().all(|line| !line.contains("request_refused")), "{lines:?}");
            continue;
        }
        let [line] = &lines[..] else { panic!("{shown}: {lines:?}") };
        let mut expected = "WARN request_refused remote=192.0.2.7".to_owned();
        if !path.is_empty() {
            write!(expected, " {path}").unwrap();
        }
        write!(expected, " status={status} cause={cause}").unwrap();
        if !header.is_empty() {
            write!(expected, " header={header}").unwrap();
        }
        assert_eq!(line, &expected, "{shown}");
        assert!(!line.contains("hush"), "{line}");
    }

    // What takes more than a head: another Host, a balancer's own connection, silence, a
    // shut-down.
    let mut domain = relay(with_domain, 10);
    let lines = logged(|| send(&mut domain, client.as_bytes(), at(1)));
    let expected = format!(
        "WARN request_refused remote=192.0.2.7 {c} status=421 cause=wrong_host header=host"
    );
    assert_eq!(lines, [expected]);
    let mut plain = relay(|_| {}, 10);
    let lines = logged(|| {
        let id = plain.handle_accept(PEER, ListenerKind::ProxiedClients, at(1));
        plain.handle(Input::Proxied(id, Ok(Proxied::Local)), at(1));
        plain.handle(Input::Bytes(id, client.as_bytes()), at(1));
    });
    let refused = format!("WARN request_refused remote=192.0.2.7 {c} status=");
    assert_eq!(lines, [format!("{refused}403 cause=health_only")]);
    let lines = logged(|| {
        let id = plain.handle_accept(PEER, ListenerKind::Clients, at(1));
        plain.handle(Input::ReadToEnd(id), at(7));
    });
    assert_eq!(lines, ["WARN request_refused remote=192.0.2.7 status=408 cause=timeout"]);
    plain.handle(Input::ShutDown, at(8));
    let lines = logged(|| send(&mut plain, client.as_bytes(), at(8)));
    assert_eq!(lines, [format!("{refused}503 cause=draining")]);
}

#[test]
fn a_kind_is_warned_of_once_a_minute_with_the_number_left_out() {
    let mut relay = relay(|_| {}, 10);
    let client = request("/v1/client", &["x-pyrycode-server: home"]);
    let mut lines = logged(|| {
        for second in [0, 1, 59, 60, 61, 200] {
            send(&mut relay, client.as_bytes(), at(second));
        }
        // Another kind has a minute of its own.
        send(&mut relay, b"GET /none HTTP/1.1\r\nHost: relay\r\n\r\n", at(200));
    });
    let other = lines.pop().unwrap();
    assert!(other.starts_with("WARN") && other.contains("cause=unknown_path"), "{other}");
    let told = lines.iter().map(|line| {
        let level = line.split(' ').next().unwrap();
        (level, line.split_once("dropped=").map(|(_, count)| count))
    });
    let expected = [
        ("WARN", None),
        ("DEBUG", None),
        ("DEBUG", None),
        ("WARN", Some("2")),
        ("DEBUG", None),
        ("WARN", Some("1")),
    ];
    assert_eq!(told.collect::<Vec<_>>(), expected);
}

#[test]
fn limits_keep_their_own_events() {
    let client = request("/v1/client", &["x-pyrycode-server: home", "x-pyrycode-token: t"]);
    let mut limited = relay(|config| config.limits.rate_burst = 1, 10);
    send(&mut limited, client.as_bytes(), at(0));
    let lines = logged(|| send(&mut limited, client.as_bytes(), at(0)));
    let expected = "remote=192.0.2.7 path=/v1/client status=";
    assert_eq!(lines, [format!("WARN rate_limited {expected}429 cause=rate_limit")]);
    let mut full = relay(|_| {}, 0);
    let lines = logged(|| send(&mut full, client.as_bytes(), at(0)));
    assert_eq!(lines, [format!("WARN conn_cap_reached {expected}503 cause=cap")]);
}

#[test]
fn retry_after_is_exact_to_the_second() {
    let client = request("/v1/client", &["x-pyrycode-server: home", "x-pyrycode-token: t"]);
    let mut relay =
        relay(|config| (config.limits.rate_per_minute, config.limits.rate_burst) = (10, 2), 100);
    // One attempt is refilled each 6 s.
    let mut attempt = |millis: u64| {
        let now = Instant::START + Duration::from_millis(millis);
        let id = relay.handle_accept(PEER, ListenerKind::Clients, now);
        relay.handle(Input::Bytes(id, client.as_bytes()), now);
        let answer = String::from_utf8_lossy(&relay.outgoing(id).concat()).into_owned();
        let after = answer.split_once("Retry-After: ").map(|(_, rest)| rest.split('\r').next());
        (answer[9..12].to_owned(), after.flatten().map(str::to_owned))
    };
    let told = |status: &str, after: Option<&str>| (status.to_owned(), after.map(str::to_owned));
    for (millis, status, after) in [
        (0, "101", None),
        (0, "101", None),
        (0, "429", Some("6")),
        (1, "429", Some("6")),
        (1000, "429", Some("5")),
        (5999, "429", Some("1")),
        (6000, "101", None),
        (6000, "429", Some("6")),
    ] {
        assert_eq!(attempt(millis), told(status, after), "{millis} ms");
    }
}
