//! PROXY header: the first bytes of every connection, as a load balancer sends them.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Instant;

use pyrycode_relay::config::{Config, Listen, Serving};

use crate::proxy;
use crate::support::{
    Answer, NEVER, Opcode, PATIENCE, Peer, Process, binary_head, connect, connect_from, envelope,
    eventually, frame, healthz, millis, phone_head, relay,
};

const READY: &[u8] = b"GET /readyz HTTP/1.1\r\nHost: relay\r\n\r\n";

fn behind_a_balancer(config: &mut Config) {
    let (listen, _) = config.serving.listens().next().unwrap();
    config.serving = Serving::Plain(Listen { proxy_protocol: true, ..listen });
}

/// So that only a wrong byte can end it.
fn patient(config: &mut Config) {
    behind_a_balancer(config);
    config.timeouts.head = NEVER;
}

fn client(source: [u8; 4]) -> Vec<u8> {
    proxy::client(source.into())
}

fn client_v6(last: u8) -> Vec<u8> {
    let source = [&[0x20, 1, 0xd, 0xb8], &[0; 11][..], &[last]].concat();
    proxy::header(0x21, 0x21, &[&source, &source, &[0; 4][..], b"\x04\0\x01x"].concat())
}

/// The connection ends and not a byte has come; whether by FIN or reset is all one.
fn expect_only_an_end(mut stream: TcpStream) {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{error}"),
    }
    assert!(bytes.is_empty(), "{}", String::from_utf8_lossy(&bytes));
}

/// The loop has seen to all that was sent before.
fn turn(relay: SocketAddr) {
    let mut stream = connect(relay);
    stream.write_all(&[&proxy::local(), READY].concat()).unwrap();
    assert_eq!(Answer::read(&mut stream).status, 200);
}

#[test]
fn header_and_request_and_frames_may_come_in_one_segment() {
    let relay = relay(behind_a_balancer);
    let said = frame(Opcode::Ping, true, b"early");
    let mut stream = connect(relay);
    stream
        .write_all(&[&client([192, 0, 2, 1]), binary_head("home").as_bytes(), &said].concat())
        .unwrap();
    let mut binary = Peer::upgraded(stream);
    assert_eq!(binary.receive(), crate::support::Received::Pong(b"early".into()));

    let mut stream = connect(relay);
    stream.write_all(&client_v6(7)).unwrap();
    let mut phone = Peer::upgrade(stream, &phone_head("home"));
    phone.send_text("1");
    assert_eq!(binary.receive_text(), envelope(&phone.id, "1"));
}

#[test]
fn a_header_may_come_byte_by_byte() {
    let relay = relay(patient);
    let header = client_v6(7);
    let mut stream = connect(relay);
    for byte in header.chunks(1) {
        stream.write_all(byte).unwrap();
        turn(relay);
    }
    stream.write_all(READY).unwrap();
    assert_eq!(Answer::read(&mut stream).status, 200);
    // In two pieces, wherever it is cut; the request follows at once.
    for cut in 0..header.len() {
        let mut stream = connect(relay);
        stream.write_all(&header[..cut]).unwrap();
        turn(relay);
        stream.write_all(&[&header[cut..], READY].concat()).unwrap();
        assert_eq!(Answer::read(&mut stream).status, 200, "{cut}");
    }
}

#[test]
fn a_slow_header_has_the_head_timeout_and_is_closed_without_a_byte() {
    let relay = relay(|config| {
        behind_a_balancer(config);
        config.timeouts.head = millis(400);
    });
    let began = Instant::now();
    let silent = connect(relay);
    let mut begun = connect(relay);
    begun.write_all(&client([192, 0, 2, 1])[..27]).unwrap();
    let mut unasked = connect(relay);
    unasked.write_all(&client([192, 0, 2, 1])).unwrap();
    expect_only_an_end(silent);
    assert!(began.elapsed() >= millis(300), "{:?}", began.elapsed());
    expect_only_an_end(begun);
    // A connection whose header has arrived is a client and gets a response.
    assert_eq!(Answer::read(&mut unasked).status, 408);
}

#[test]
fn an_invalid_header_is_closed_without_a_byte() {
    let relay = relay(patient);
    let unix = proxy::header(0x21, 0x31, &[0; 216]);
    let too_long = proxy::header(0x21, 0x11, &[0; 5_000]);
    for bytes in [
        b"G",
        binary_head("home").as_bytes(),
        READY,
        b"PROXY TCP4 192.0.2.1 198.51.100.1 4660 8080\r\nGET /readyz HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"\r\n\r\n\0\r\nQUID",
        &proxy::header(0x21, 0x00, &[]),
        &proxy::header(0x21, 0x12, &[1; 12]),
        &proxy::header(0x11, 0x11, &[1; 12]),
        &proxy::header(0x21, 0x11, &[1; 11]),
        &unix,
        &too_long[..16],
    ] {
        let mut stream = connect(relay);
        stream.write_all(bytes).unwrap();
        expect_only_an_end(stream);
    }
    turn(relay);
}

#[test]
fn after_the_header_every_byte_belongs_to_the_client() {
    let relay = relay(behind_a_balancer);
    let header = client([192, 0, 2, 1]);
    for (follows, status) in [
        // A second header, and a TLS handshake: bad requests.
        (header.clone(), 400),
        (proxy::local(), 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), 400),
        (READY.to_vec(), 200),
    ] {
        let mut stream = connect(relay);
        stream.write_all(&[&header[..], &follows].concat()).unwrap();
        assert_eq!(Answer::read(&mut stream).status, status, "{follows:?}");
    }
}

#[test]
fn a_load_balancers_own_connection_may_request_health_only() {
    let relay = relay(behind_a_balancer);
    for (path, status) in [("/readyz", 200), ("/healthz", 200), ("/", 403), ("/v1/client", 403)] {
        let mut stream = connect(relay);
        let request = format!("GET {path} HTTP/1.1\r\nHost: relay\r\n\r\n");
        // Whatever addresses the header carries.
        let header = proxy::header(0x20, 0x11, &[127; 12]);
        stream.write_all(&[&header[..], request.as_bytes()].concat()).unwrap();
        assert_eq!(Answer::read(&mut stream).status, status, "{path}");
    }
}

#[test]
fn limits_apply_to_the_client_in_the_header() {
    let relay = relay(|config| {
        behind_a_balancer(config);
        config.limits.connections_per_ip = 1;
    });
    let dial = |header: &[u8]| {
        let mut stream = connect(relay);
        stream.write_all(&[header, phone_head("none").as_bytes()].concat()).unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        (stream, String::from_utf8(status[9..].to_vec()).unwrap())
    };
    let hold = |source: [u8; 4], server_id: &str| {
        let mut stream = connect(relay);
        stream.write_all(&client(source)).unwrap();
        Peer::upgrade(stream, &binary_head(server_id))
    };
    let _held = [hold([192, 0, 2, 1], "one"), hold([192, 0, 2, 2], "two")];
    assert_eq!(dial(&client([192, 0, 2, 1])).1, "503");
    assert_eq!(dial(&client([192, 0, 2, 2])).1, "503");
    assert_eq!(dial(&client([192, 0, 2, 3])).1, "101");
}

#[test]
fn only_named_proxies_may_send_a_header() {
    let relay = relay(|config| {
        patient(config);
        config.forwarded.trusted_proxies = Some(vec!["127.0.0.1/32".parse().unwrap()]);
    });
    // A balancer's own connection need not send anything; what it sends has no effect.
    expect_only_an_end(connect_from([127, 0, 0, 2], relay));
    let mut stream = connect_from([127, 0, 0, 2], relay);
    // The relay may disconnect before these bytes arrive.
    let _ = stream.write_all(&[&client([192, 0, 2, 1]), READY].concat());
    expect_only_an_end(stream);
    turn(relay);
}

#[test]
fn a_disconnect_within_the_header_leaves_nothing() {
    let relay = relay(patient);
    for len in [0, 1, 16, 27] {
        let mut stream = connect(relay);
        stream.write_all(&client([192, 0, 2, 1])[..len]).unwrap();
        if len != 16 {
            turn(relay);
        }
        stream.shutdown(Shutdown::Write).unwrap();
        expect_only_an_end(stream);
    }
    // A half-closed connection with a complete request is answered.
    let mut stream = connect(relay);
    stream.write_all(&[&client([192, 0, 2, 1]), READY].concat()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(Answer::read(&mut stream).status, 200);
}

#[test]
fn client_addresses_are_logged_and_refused_headers_once() {
    let process = Process::start(&["--proxy-protocol", "--trusted-proxies=127.0.0.1"]);
    let mut stream = connect(process.relay);
    stream.write_all(&client_v6(7)).unwrap();
    let binary = Peer::upgrade(stream, &binary_head("home"));
    let claimed = process.expect_line("server_claimed");
    assert!(claimed.contains("remote=2001:db8::7"), "{claimed}");

    for _ in 0..20 {
        expect_only_an_end(connect_from([127, 0, 0, 2], process.relay));
    }
    let mut stream = connect(process.relay);
    stream.write_all(&client([192, 0, 2, 1])).unwrap();
    let last = Peer::upgrade(stream, &binary_head("last"));
    let lines = std::iter::from_fn(|| process.next_line(PATIENCE));
    let lines: Vec<String> = lines.take_while(|line| !line.contains("server_claimed")).collect();
    let [refused] = &lines[..] else { panic!("{lines:?}") };
    for words in ["level=WARN", "msg=proxy_header_refused", "remote=127.0.0.2", "cause=untrusted"] {
        assert!(refused.contains(words), "{refused}");
    }
    drop((binary, last));
    eventually("all that left are gone", || process.descriptors() < 20);
}

#[test]
fn many_half_headers_take_no_memory_and_delay_no_peer() {
    let process = Process::start(&["--proxy-protocol"]);
    turn(process.relay);
    let (before, _) = process.memory();
    // The largest header without its last byte.
    let header = proxy::header(0x21, 0x11, &[1; 4_080]);
    let half: Vec<TcpStream> = (0..500)
        .map(|_| {
            let mut stream = connect(process.relay);
            stream.write_all(&header[..header.len() - 1]).unwrap();
            stream
        })
        .collect();
    let began = Instant::now();
    turn(process.relay);
    assert!(began.elapsed() < PATIENCE);
    let (after, _) = process.memory();
    assert!(after < before + 512 * 1024, "{before} → {after}");
    for mut stream in half {
        // On a slow machine the relay has closed some of these already.
        let _ = stream.write_all(&header[header.len() - 1..]);
        let _ = stream.write_all(READY);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    turn(process.relay);
}

#[test]
fn without_the_flag_a_header_is_a_bad_request() {
    let relay = relay(|_| {});
    let mut stream = connect(relay);
    stream.write_all(&client([192, 0, 2, 1])).unwrap();
    assert_eq!(Answer::read(&mut stream).status, 400);
    assert_eq!(healthz(relay), (0, 0));
}
