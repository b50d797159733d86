//! Two servers in succession, with real sockets.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use mio::Events;

use super::*;
use crate::state::{decode, encode};

const SEED: [u8; 32] = [7; 32];
const WAIT: Duration = Duration::from_secs(10);

fn config() -> Config {
    let mut config = Config::default();
    config.limits.rate_per_minute = 0;
    config
}

/// Rounds until `is_done`, or for as long as a test may wait.
fn run(server: &mut Server<Relay>, mut is_done: impl FnMut(&Server<Relay>) -> bool) {
    let mut events = Events::with_capacity(64);
    let ends = server.tcp.clock.read() + WAIT;
    while !is_done(server) {
        assert!(server.tcp.clock.read() < ends, "it does not come to that");
        server.round(&mut events).unwrap();
    }
}

/// What the next program makes of the server. The first one keeps nothing.
fn handed_over(mut server: Server<Relay>) -> Server<Relay> {
    run(&mut server, |server| !server.turn.has_work());
    let saved = server.save().expect("no effects are left over");
    assert_eq!(saved.left_behind, 0);
    let bytes = encode("1.2.3", &saved.state, 0);
    let state: v1::State = decode(&bytes).expect("it is one").state;
    let own = |borrowed: &BorrowedFd<'_>| borrowed.try_clone_to_owned().unwrap();
    let listeners = saved.listeners.iter().map(own).collect();
    let sockets = saved.sockets.iter().map(own).collect();
    let arrived = Arrived { state: state.clone(), listeners, sockets };
    drop(server);
    let Restored { mut server, lost } =
        Server::restore(&config(), 100, arrived, [9; 32], None, WAIT).expect("it fits");
    assert!(lost.is_empty(), "{lost:?}");
    server.audit();
    assert_eq!(server.save().expect("nothing was done").state, state, "saved again");
    server
}

struct Client(TcpStream);

impl Client {
    fn dial(server: &mut Server<Relay>, to: SocketAddr, path: &str, header: &str) -> Self {
        let mut stream = TcpStream::connect(to).unwrap();
        let head = format!(
            "GET /v1/{path} HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nUser-Agent: test\r\n\
             x-pyrycode-server: home\r\n{header}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let before = server.tcp.core.websockets();
        run(server, |server| server.tcp.core.websockets() > before);
        run(server, |server| !server.turn.has_work());
        stream.set_read_timeout(Some(WAIT)).unwrap();
        let mut client = Self(stream);
        while !client.read(1).ends_with(b"\n") || !client.read(1).starts_with(b"\r") {}
        assert_eq!(client.read(1), b"\n", "the end of the head");
        client
    }

    fn read(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }
}

#[test]
fn connections_go_on_in_the_next_program() {
    let listener = Listener::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let address = listener.local_addr().unwrap();
    let relay = Relay::new(&config(), 100, SEED, Instant::START);
    let mut server = Server::new(relay, vec![listener], None, WAIT).unwrap();
    let mut binary = Client::dial(&mut server, address, "server", "x-pyrycode-version: 1");
    let mut phone = Client::dial(&mut server, address, "client", "x-pyrycode-token: t");

    // A text frame, masked by a key of zeros, cut by a hand-over at each byte.
    let frame = [0x81, 0x85, 0, 0, 0, 0, b'"', b'a', b'b', b'c', b'"'];
    for cut in 0..frame.len() {
        let before = server.tcp.core.stats().frames_to_binary;
        phone.0.write_all(&frame[..cut]).unwrap();
        let is_read = |server: &Server<Relay>| server.tcp.core.buffered() >= cut;
        run(&mut server, is_read);
        server = handed_over(server);
        phone.0.write_all(&frame[cut..]).unwrap();
        run(&mut server, |server| server.tcp.core.stats().frames_to_binary > before);
        run(&mut server, |server| !server.turn.has_work());
        let [0x81, len] = *binary.read(2) else { panic!("a short text frame") };
        let envelope = String::from_utf8(binary.read(len.into())).unwrap();
        assert!(envelope.ends_with(r#""frame":"abc"}"#), "{envelope}");
    }
    // The listener is served as well.
    let mut other = Client::dial(&mut server, address, "client", "x-pyrycode-token: t");
    drop(binary);
    run(&mut server, |server| server.tcp.core.live().0 == 0);
    server = handed_over(server);
    assert_eq!(server.tcp.core.live(), (0, 2), "the grace goes on");
    let _ = other.0.write_all(&frame);
}

/// Without what is queued. The state of a TLS session adds at most 140.
#[test]
fn a_connection_takes_80_bytes_at_most() {
    let listener = Listener::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let address = listener.local_addr().unwrap();
    let relay = Relay::new(&config(), 100, SEED, Instant::START);
    let mut server = Server::new(relay, vec![listener], None, WAIT).unwrap();
    let _binary = Client::dial(&mut server, address, "server", "x-pyrycode-version: 1");
    let len = |server: &mut Server<Relay>| {
        let state = server.save().expect("no effects are left over").state;
        encode("1.2.3", &state, 0).len()
    };
    let before = len(&mut server);
    let count = 16;
    let phones: Vec<_> = (0..count)
        .map(|_| Client::dial(&mut server, address, "client", "x-pyrycode-token: t"))
        .collect();
    let each = (len(&mut server) - before) / count;
    assert!((30..=80).contains(&each), "{each} bytes");
    drop(phones);
}
