//! Two servers in succession, with real sockets.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use mio::Events;

use super::*;
use crate::relay::counts::Counts;
use crate::state::{decode, encode};

const SEED: [u8; 32] = [7; 32];
/// The conn_id of the first phone of the committed state.
const CONN_ID: &str = "efcb80f644bcddd01eae6ef13ae2567f";
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
    let listeners = saved.listeners.iter().map(|(kind, socket)| (*kind, own(socket))).collect();
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

/// Without what is queued, and so does a TLS session beside its connection.
#[test]
fn a_connection_takes_80_bytes_at_most_and_a_session_140() {
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

    // Of the longest secrets, at the highest numbers.
    let mut session = session(4);
    session.sequences = [u64::from(u32::MAX); 2];
    session.partial = Vec::new().into();
    let len = postcard::to_allocvec(&session).unwrap().len();
    assert!((100..=140).contains(&len), "{len} bytes");
}

/// A TLS session that has received the beginning of a record.
fn session(version: u8) -> v1::Session {
    v1::Session {
        version,
        suite: 1,
        has_ended: false,
        has_sent_end: false,
        owes_answer: false,
        key_updates: 1,
        warnings: 0,
        empty: 0,
        renegotiations: 0,
        message: [0; 5],
        message_len: 0,
        skip: 0,
        sequences: [5, 70_000],
        material: [7, 9].map(|byte| vec![byte; 48].into()),
        partial: b"\x17\x03\x03".to_vec().into(),
        unsent: Vec::new().into(),
        is_ending: false,
    }
}

/// A state of this program, with what real sockets do not bring about at once: output that is
/// queued, a message that is cut, TLS sessions, a push wake.
fn state() -> v1::State {
    let listener = Listener::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let address = listener.local_addr().unwrap();
    let relay = Relay::new(&config(), 100, SEED, Instant::START);
    let mut server = Server::new(relay, vec![listener], None, WAIT).unwrap();
    let binary = Client::dial(&mut server, address, "server", "x-pyrycode-version: 1");
    let phones: Vec<_> = (0..3)
        .map(|_| Client::dial(&mut server, address, "client", "x-pyrycode-token: t"))
        .collect();
    run(&mut server, |server| !server.turn.has_work());
    let mut state = server.save().expect("no effects are left over").state;
    let now = state.now;
    let entries = &mut state.relay.connections.entries;
    let piece = v1::Buffer { bytes: b"\x81\x05hello\x81\x02ho".to_vec(), room: 10 };
    entries[1].outbox = Some(v1::Outbox {
        pieces: vec![v1::Piece { buffer: piece, is_whole: false }],
        sent: 0,
        begun: 7,
        control: v1::Buffer { bytes: b"\x89\x01p".to_vec(), room: 0 },
        late_pong: None,
        probe_end: None,
        below: 0,
        progress: now,
    });
    entries[2].inbound = Some(v1::Inbound {
        kept: v1::Buffer::default(),
        frame: v1::Buffer { bytes: b"\x80\x85\x01\x02\x03\x04ab".to_vec(), room: 0 },
        fragments: Some(v1::Fragments {
            is_text: true,
            payload: v1::Buffer { bytes: b"\"first".to_vec(), room: 2 },
            checked: 6,
        }),
        below: 0,
        since: now,
        paused: None,
    });
    for (version, socket) in [4, 3].into_iter().zip(&mut state.sockets[2..]) {
        socket.tls = Some(session(version));
    }
    drop((binary, phones));
    // Timers follow what was added.
    restored(state).save().expect("nothing was done").state
}

/// A server that continues a state, on sockets that stand for those of the time.
fn restored(state: v1::State) -> Server<Relay> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dial = || TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let sockets = state.sockets.iter().map(|_| OwnedFd::from(dial())).collect();
    let kind = v1::Listener { speaks: 0, is_proxied: false };
    let listeners = vec![(kind, listener.try_clone().unwrap().into())];
    let arrived = Arrived { state, listeners, sockets };
    let Restored { server, lost } =
        Server::restore(&config(), 100, arrived, [9; 32], None, WAIT).expect("it fits");
    assert!(lost.is_empty(), "{lost:?}");
    server.audit();
    server
}

/// As long as there is one format: another one before it, which lacks what it has.
mod format_before {
    use serde::{Deserialize, Serialize};

    use super::v1;
    use crate::relay::stats::Histogram;
    use crate::state::State;

    #[derive(Debug, Serialize, Deserialize)]
    pub(super) struct Old {
        pub sockets: Vec<v1::Socket>,
        pub turn: v1::Turn,
        pub relay: v1::Relay,
        pub tls: v1::TlsStats,
        pub now: u64,
    }

    #[derive(Debug, Serialize, Deserialize)]
    pub(super) struct New(pub v1::State);

    impl State for Old {
        const FORMAT: u32 = 0;
        type Before = Self;
    }

    impl State for New {
        const FORMAT: u32 = 1;
        type Before = Old;
    }

    impl From<Old> for New {
        fn from(Old { sockets, turn, relay, tls, now }: Old) -> Self {
            let turns = Histogram::default().save();
            Self(v1::State { now, relay, turn, sockets, tls, turns })
        }
    }
}

#[test]
fn the_state_of_the_format_before_is_continued() {
    use format_before::{New, Old};
    let v1::State { now, relay, turn, sockets, tls, turns: _ } = state();
    let connections = relay.connections.entries.len();
    let bytes = encode("0.1.9", &Old { sockets, turn, relay, tls, now }, 0);
    let received = decode::<New>(&bytes).expect("it is the one before");
    assert_eq!((received.program.as_str(), received.format), ("0.1.9", 0));
    let New(state) = received.state;
    let mut server = restored(state.clone());
    assert_eq!(server.tcp.core.len(), connections);
    assert_eq!(server.save().expect("nothing was done").state, state, "saved again");
}

/// Writes the state that the test below restores. Once for each format: what is committed is
/// never written again.
#[test]
#[ignore = "writes tests/fixtures"]
fn write_the_state_of_this_format() {
    let path =
        format!("{}/tests/fixtures/state-{}", env!("CARGO_MANIFEST_DIR"), crate::state::FORMAT);
    std::fs::write(path, &*encode("0.2.0", &state(), 0)).unwrap();
}

/// The first program that could hand over wrote it; every later one has to restore it.
#[test]
fn the_state_of_format_1_is_restored_for_ever() {
    let bytes = include_bytes!("../../../../tests/fixtures/state-1");
    let received = decode::<v1::State>(bytes).expect("it can be read");
    assert_eq!(received.program, "0.2.0");
    let mut server = restored(received.state.clone());
    let core = &server.tcp.core;
    assert_eq!((core.live(), core.slots(), core.websockets()), ((1, 3), 1, 4));
    let stats = core.stats();
    assert_eq!(stats.upgrades.each_ref().map(Counts::total), [1, 3]);
    let ids = received.state.relay.connections.entries.iter();
    let ids: Vec<ConnId> = ids.map(|it| ConnId::new(it.index, it.generation)).collect();
    assert_eq!(core.conn_id(ids[1]), CONN_ID, "a name outlives its program");
    let queued: Vec<u8> = core.queued(ids[1]).flatten().copied().collect();
    assert_eq!(queued, b"\x81\x05hello\x89\x01p\x81\x02ho");
    assert!(core.held(ids[2]) >= 8 + 6, "the message that is cut");
    let tls = received.state.sockets.iter().filter(|socket| socket.tls.is_some());
    assert_eq!(tls.count(), 2);
    assert_eq!(server.save().expect("nothing was done").state, received.state, "saved again");
}
