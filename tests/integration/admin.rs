//! Admin listener: its access rules, and that no client can block it.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Instant;

use log::LevelFilter;
use pyrycode_relay::config::LogFormat;
use pyrycode_relay::server::admin::http::AdminListener;
use pyrycode_relay::server::log::Sink;

use crate::support::{Answer, PATIENCE, Process, Scrape, ask, connect, millis, run, server, watch};

fn get(metrics: SocketAddr, path: &str, host: &str) -> Answer {
    ask(metrics, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"))
}

#[test]
fn only_requests_for_this_host_are_answered() {
    let process = Process::start(&[]);
    for host in [
        "localhost",
        "LOCALHOST:9090",
        "127.0.0.1",
        "127.0.0.1:1",
        "127.9.9.9",
        "[::1]:9090",
        "[::ffff:127.0.0.1]",
        "localhost.",
    ] {
        assert_eq!(get(process.metrics, "/", host).status, 200, "{host}");
    }
    for host in [
        "evil.example",
        "evil.example:9090",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "0.0.0.0",
        "[::2]",
        "2130706433",
    ] {
        for path in ["/", "/metrics", "/none"] {
            let answer = get(process.metrics, path, host);
            assert_eq!(answer.status, 421, "{host} {path}");
            assert!(answer.body.contains("localhost") && !answer.body.contains("evil"));
        }
    }
    // A browser always sends the Host it means.
    assert_eq!(ask(process.metrics, "GET /metrics HTTP/1.0\r\n\r\n").status, 421);
}

#[test]
fn paths_and_methods() {
    let process = Process::start(&[]);
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: localhost", 200),
        ("GET /metrics HTTP/1.1\r\nHost: localhost", 200),
        ("GET /metrics?x=/ HTTP/1.1\r\nHost: localhost", 200),
        ("HEAD / HTTP/1.1\r\nHost: localhost", 200),
        ("HEAD /metrics HTTP/1.1\r\nHost: localhost", 200),
        ("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0", 405),
        ("DELETE /metrics HTTP/1.1\r\nHost: localhost", 405),
        ("OPTIONS /metrics HTTP/1.1\r\nHost: localhost", 405),
        ("GET /metrics/ HTTP/1.1\r\nHost: localhost", 404),
        ("GET /v1/server HTTP/1.1\r\nHost: localhost", 404),
        ("GET /healthz/ HTTP/1.1\r\nHost: localhost", 404),
        ("GET /../metrics HTTP/1.1\r\nHost: localhost", 404),
        ("GET metrics HTTP/1.1\r\nHost: localhost", 404),
        ("GET /metrics HTTP/1.1", 400),
        ("GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: localhost", 400),
        ("GET /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1", 400),
        ("\u{16}\u{3}\u{1}", 400),
    ] {
        let answer = ask(process.metrics, &format!("{request}\r\n\r\n"));
        assert_eq!(answer.status, status, "{request}");
        assert!(answer.has("Connection: close"), "{request}");
        assert_eq!(answer.body.is_empty(), status != 200 || request.starts_with("HEAD"));
        if status == 200 {
            assert!(answer.has("Cache-Control: no-store"), "{request}");
            assert!(answer.has("X-Content-Type-Options: nosniff"), "{request}");
            assert!(answer.head.contains("Content-Security-Policy: default-src 'none'"));
            assert!(!answer.head.contains("Access-Control"), "{request}");
        }
    }
    // The relay's own listener serves none of these pages.
    assert_eq!(get(process.relay, "/metrics", "localhost").status, 404);
}

#[test]
fn the_page_runs_only_its_own_script() {
    let process = Process::start(&[]);
    let nonce = || {
        let answer = get(process.metrics, "/", "localhost");
        let policy = answer.head.split_once("script-src 'nonce-").unwrap().1;
        let nonce = policy.split('\'').next().unwrap().to_owned();
        assert_eq!(answer.body.matches(&format!("nonce=\"{nonce}\"")).count(), 2);
        assert!(!answer.body.contains("{nonce}") && nonce.len() == 32);
        // The page loads nothing and inserts no string as markup.
        for word in ["src=", "http:", "https:", "@import", "url(", "innerHTML", "eval("] {
            let body = answer.body.replace("http://www.w3.org/2000/svg", "");
            assert!(!body.contains(word), "{word}");
        }
        nonce
    };
    assert_ne!(nonce(), nonce());
}

/// Each alone had five seconds and a thread of four: 40 of them kept every scrape waiting for
/// longer than Prometheus does.
#[test]
fn silent_and_slow_clients_do_not_delay_others() {
    let process = Process::start(&[]);
    let mut slow: Vec<_> = (0..40).map(|_| connect(process.metrics)).collect();
    for stream in slow.iter_mut().skip(20) {
        // One that is closed for a later one may be reset.
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\n");
    }
    let began = Instant::now();
    for _ in 0..10 {
        assert_eq!(Scrape::of(process.metrics).value("connections"), 0.0);
    }
    // Below the time of one silent connection, on any machine.
    assert!(began.elapsed() < millis(4_000), "{:?}", began.elapsed());
    drop(slow);
}

#[test]
fn requests_during_a_suspension_are_answered_afterwards() {
    let process = Process::start(&[]);
    let mut stream = connect(process.metrics);
    stream.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
    // A thread that answers others still waits for the rest of this request.
    assert_eq!(get(process.metrics, "/", "localhost").status, 200);
    process.suspend();
    stream.write_all(b"Host: localhost\r\n\r\n").unwrap();
    assert_eq!(Answer::read(&mut stream).status, 200);
}

#[test]
fn a_stuck_loop_is_reported_until_it_answers_again() {
    let (mut server, _) = server(10, |_| {});
    let metrics = watch(&server);
    // The loop does not run.
    for _ in 0..5 {
        let answer = get(metrics, "/metrics", "localhost");
        assert_eq!(answer.status, 503);
        assert!(answer.body.contains("event loop"), "{}", answer.body);
    }
    assert_eq!(get(metrics, "/", "localhost").status, 200, "the page needs no loop");
    thread::spawn(move || server.run());
    let began = Instant::now();
    while get(metrics, "/metrics", "localhost").status != 200 {
        assert!(began.elapsed() < PATIENCE);
    }
}

#[test]
fn a_metrics_address_in_use_exits_1_with_advice() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let flags = ["--insecure-listen", "127.0.0.1:0", "--metrics-listen", &address];
    let output = run(&flags, &[]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains(&format!("--metrics-listen {address}: ")), "{stderr}");
    assert!(stderr.contains("another port"), "{stderr}");
}

#[test]
fn health_is_the_same_as_on_the_relay_s_listener() {
    let process = Process::start(&[]);
    for path in ["/healthz", "/readyz"] {
        for host in ["localhost", "10.1.2.3", "relay.example.com"] {
            let [here, there] = [process.metrics, process.relay].map(|it| get(it, path, host));
            assert_eq!((here.status, there.status), (200, 200), "{path} {host}");
            let body = |answer: &Answer| answer.body.split("\"uptime").next().unwrap().to_owned();
            assert_eq!(body(&here), body(&there), "{path}");
        }
        let posted = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(ask(process.metrics, &posted).status, 405);
    }
}

#[test]
fn an_address_that_is_not_allowed_is_closed_without_a_response() {
    // Every address of 127.0.0.0/8 is this machine, so what is closed is seen at another
    // address of it: its own interface, if it has one.
    let Some(own) = own_address() else { return };
    let (mut server, _) = server(10, |_| {});
    let open = |allowed: &[&str]| {
        let allowed: Vec<_> = allowed.iter().map(|it| it.parse().unwrap()).collect();
        let operator = AdminListener::bind(SocketAddr::from(([0; 4], 0)), &allowed).unwrap();
        let port = operator.local_addr().unwrap().port();
        let sink = Sink::start(LogFormat::Logfmt, LevelFilter::Off, std::io::sink()).unwrap();
        operator.serve(&server.handle(), &sink).unwrap();
        SocketAddr::from((own, port))
    };
    let (closed, opened) = (open(&["198.51.100.0/24"]), open(&[&format!("{own}/32")]));
    thread::spawn(move || server.run());
    let dial = |metrics: SocketAddr| {
        let mut stream = TcpStream::connect(metrics).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: relay\r\n\r\n");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    };
    assert_eq!(dial(closed), "");
    assert!(dial(opened).starts_with("HTTP/1.1 200 OK\r\n"));
}

/// An address of this machine beyond loopback: what a datagram to elsewhere would carry.
/// Nothing is sent.
fn own_address() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(own) if !own.is_loopback() => Some(own),
        _ => None,
    }
}
