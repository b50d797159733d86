//! TLS and certificates, from the relay's side: bytes that the event loop buffers in TLS, the
//! host name, and the port for certificate authorities.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use pyrycode_relay::config::{ACME_DIRECTORY, Acme, Config, Listen, Serving};
use pyrycode_relay::protocol::proxy_header::Proxied;
use pyrycode_relay::protocol::transport::TransportBuffered;
use pyrycode_relay::relay::{ConnId, Effect, Input, ListenerKind, Relay};
use pyrycode_relay::time::Instant;

use crate::peer::request;

const NOW: Instant = Instant::START;
const HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n";

fn accept(relay: &mut Relay, kind: ListenerKind) -> ConnId {
    relay.handle_accept(IpAddr::V4(Ipv4Addr::LOCALHOST), kind, NOW)
}

fn effects(relay: &mut Relay) -> Vec<Effect> {
    std::iter::from_fn(|| relay.poll_effect()).collect()
}

/// What a new connection is answered, after which it must end.
fn answer(relay: &mut Relay, confined: bool, head: &str) -> String {
    let kind = if confined { ListenerKind::Authorities } else { ListenerKind::Clients };
    let id = accept(relay, kind);
    relay.handle(Input::Bytes(id, head.as_bytes()), NOW);
    assert_eq!(effects(relay), [Effect::Transmit(id)]);
    let answer = String::from_utf8(relay.outgoing(id).concat()).expect("text");
    relay.handle(Input::Written(id, answer.len(), TransportBuffered::default()), NOW);
    assert_eq!(effects(relay), [Effect::HalfClose(id)]);
    relay.handle(Input::End(id), NOW);
    assert_eq!(effects(relay), [Effect::Disconnect(id)]);
    answer
}

fn status(answer: &str) -> &str {
    &answer["HTTP/1.1 ".len()..][..3]
}

#[test]
fn a_half_close_waits_for_bytes_buffered_in_tls() {
    let mut relay = Relay::new(&Config::default(), 10, [7; 32], NOW);
    let id = accept(&mut relay, ListenerKind::Clients);
    relay.handle(Input::Bytes(id, HEALTH), NOW);
    assert_eq!(effects(&mut relay), [Effect::Transmit(id)]);
    let len = relay.outgoing(id).concat().len();
    let below = TransportBuffered { unread: 0, unsent: len + 22 };
    relay.handle(Input::Written(id, len, below), NOW);
    assert!(relay.outgoing(id).concat().is_empty());
    for kept in [len + 22, 40, 1] {
        relay.handle(Input::Buffered(id, TransportBuffered { unread: 0, unsent: kept }), NOW);
        assert_eq!((effects(&mut relay), relay.buffered()), (vec![], kept));
        relay.audit();
    }
    relay.handle(Input::Buffered(id, TransportBuffered { unread: 0, unsent: 0 }), NOW);
    assert_eq!((effects(&mut relay), relay.buffered()), (vec![Effect::HalfClose(id)], 0));
    relay.audit();
}

#[test]
fn half_records_come_out_of_the_part_for_requests() {
    const RECORD: usize = 16 * 1024;
    const FIT: usize = 12;
    let mut config = Config::default();
    config.limits.buffer_memory = 5 * FIT * RECORD + 5;
    let mut relay = Relay::new(&config, 1000, [7; 32], NOW);
    let mut gone = 0;
    for n in 1..=200 {
        let id = accept(&mut relay, ListenerKind::Clients);
        relay.handle(Input::Buffered(id, TransportBuffered { unread: RECORD, unsent: 0 }), NOW);
        relay.audit();
        gone += effects(&mut relay).len();
        assert!(relay.buffered() <= FIT * RECORD);
        assert_eq!((relay.len(), gone), (n.min(FIT), n - n.min(FIT)));
    }
    // A whole record came: nothing is kept any more.
    let id = accept(&mut relay, ListenerKind::Clients);
    relay.handle(Input::Buffered(id, TransportBuffered { unread: 100, unsent: 0 }), NOW);
    let before = relay.buffered();
    relay.handle(Input::Buffered(id, TransportBuffered { unread: 0, unsent: 0 }), NOW);
    assert_eq!(relay.buffered(), before - 100);
}

#[test]
fn the_port_for_authorities_answers_the_challenge_and_health_and_nothing_else() {
    let mut relay = Relay::new(&Config::default(), 10, [7; 32], NOW);
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: relay\r\n\r\n");
    let path = "/.well-known/acme-challenge/token";
    assert_eq!(status(&answer(&mut relay, true, &get(path))), "404");
    relay.handle(Input::Challenge(Some(("token", "token.thumbprint"))), NOW);
    let told = answer(&mut relay, true, &get(path));
    assert!(told.starts_with("HTTP/1.1 200 OK\r\n") && told.ends_with("\r\n\r\ntoken.thumbprint"));
    let told = answer(&mut relay, true, &get(path).replace("GET", "HEAD"));
    assert!(told.contains("Content-Length: 16\r\n") && told.ends_with("\r\n\r\n"), "{told}");
    assert_eq!(status(&answer(&mut relay, true, &get(path).replace("GET", "POST"))), "405");
    for health in ["/healthz", "/readyz"] {
        assert_eq!(status(&answer(&mut relay, true, &get(health))), "200", "{health}");
    }
    for other in ["/", "/.well-known/acme-challenge/", "/v1/server"] {
        assert_eq!(status(&answer(&mut relay, true, &get(other))), "404", "{other}");
    }
    for near in [format!("{path}/"), format!("{path}x"), path.to_uppercase()] {
        assert_eq!(status(&answer(&mut relay, true, &get(&near))), "404", "{near}");
    }
    let upgrade = request("/v1/client", &["x-pyrycode-server: home", "x-pyrycode-token: t"]);
    assert_eq!(status(&answer(&mut relay, true, &upgrade)), "404");
    // Another listener serves no challenge, and afterwards neither does this one.
    assert_eq!(status(&answer(&mut relay, false, &get(path))), "404");
    relay.handle(Input::Challenge(None), NOW);
    assert_eq!(status(&answer(&mut relay, true, &get(path))), "404");
    relay.audit();
}

/// A PROXY header in front of the port for authorities opens no other door there.
#[test]
fn the_port_for_authorities_answers_the_same_behind_a_load_balancer() {
    let path = "GET /.well-known/acme-challenge/token HTTP/1.1\r\nHost: relay\r\n\r\n";
    let upgrade = request("/v1/server", &["x-pyrycode-server: home", "x-pyrycode-version: 1"]);
    let client = Proxied::Client(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
    for header in [client, Proxied::Local] {
        for (head, expected) in [(path, "200"), (&upgrade, "404")] {
            let mut relay = Relay::new(&Config::default(), 10, [7; 32], NOW);
            relay.handle(Input::Challenge(Some(("token", "token.thumbprint"))), NOW);
            let id = accept(&mut relay, ListenerKind::ProxiedAuthorities);
            relay.handle(Input::Proxied(id, Ok(header)), NOW);
            relay.handle(Input::Bytes(id, head.as_bytes()), NOW);
            let answer = String::from_utf8(relay.outgoing(id).concat()).expect("text");
            assert_eq!(status(&answer), expected, "{header:?} {head}");
        }
    }
}

#[test]
fn another_host_is_misdirected_before_it_counts_against_any_limit() {
    let any = Listen::at(SocketAddr::from(([127, 0, 0, 1], 0)));
    let acme = Acme {
        domain: "relay.example".into(),
        cache: "certs".into(),
        directory: ACME_DIRECTORY.into(),
        ca: None,
        account: None,
    };
    let mut config =
        Config { serving: Serving::Automatic { https: any, http: any, acme }, ..Config::default() };
    (config.limits.rate_per_minute, config.limits.rate_burst) = (1, 6);
    let mut relay = Relay::new(&config, 0, [7; 32], NOW);
    let upgrade = request("/v1/client", &["x-pyrycode-server: home", "x-pyrycode-token: t"]);
    let host = upgrade.lines().find(|line| line.starts_with("Host:")).unwrap().to_owned();
    let dial = |relay: &mut Relay, host_line: &str, target: &str| {
        let head = upgrade.replace(&host, host_line).replace("/v1/client", target);
        status(&answer(relay, false, &head)).to_owned()
    };
    for other in ["relay.example.com", "example", "relay.example..", "[::1]:443", "relay"] {
        assert_eq!(dial(&mut relay, &format!("Host: {other}"), "/v1/client"), "421", "{other}");
    }
    // The target's own host takes the place of Host.
    let target = "https://other.example/v1/client";
    assert_eq!(dial(&mut relay, "Host: relay.example", target), "421");
    // Ours, in any case and with any port, meets the next gate: here the cap.
    for ours in ["relay.example", "RELAY.example:8443", "relay.example.", "relay.Example.:443"] {
        assert_eq!(dial(&mut relay, &format!("Host: {ours}"), "/v1/client"), "503", "{ours}");
    }
    for target in ["https://relay.example:1/v1/client", "https://RELAY.example./v1/client"] {
        assert_eq!(dial(&mut relay, "Host: other.example", target), "503", "{target}");
    }
    assert_eq!(status(&answer(&mut relay, false, str::from_utf8(HEALTH).unwrap())), "200");
}
