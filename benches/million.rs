//! The core alone with a thousand to a million well-behaved connections: memory per
//! connection and CPU time per ping and pong, neither of which may grow with their number.
//!
//! `cargo bench --bench million [-- MINUTES]` of virtual time, by default 2; one binary for
//! every four phones. There are no peer objects: the benchmark answers the relay's output
//! directly, so only the relay is measured. The memory is that of the whole process, without
//! sockets.

#![allow(clippy::disallowed_methods, reason = "argv of the program itself")]

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use pyrycode_relay::config::Config;
use pyrycode_relay::relay::{ConnId, ListenerKind, Relay};
use pyrycode_relay::server::turn::{PeerEnd, Readiness, Received, Transport, Turn, Written};
use pyrycode_relay::time::{Instant, TICK};
use rustix::time::{ClockId, clock_gettime};

/// Connections that come in one tick: a million in half a minute.
const ARRIVALS: usize = 2_000;
const PHONES_PER_BINARY: usize = 4;
const INTERVAL: Duration = Duration::from_secs(30);

fn main() {
    let minutes = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(2);
    println!("{minutes} minutes of virtual time");
    println!("connections  bytes each  CPU an upgrade  pings and pongs  CPU a pair");
    for count in [1_000, 10_000, 100_000, 1_000_000] {
        measure(count, Duration::from_secs(60 * minutes));
    }
}

fn measure(count: usize, time: Duration) {
    let (memory, cpu) = (resident(), cpu_time());
    let mut crowd = Crowd::new(count);
    let mut opened = 0;
    while opened < count {
        for _ in 0..ARRIVALS.min(count - opened) {
            crowd.open(opened);
            opened += 1;
        }
        crowd.pass(TICK);
    }
    let up = cpu_time() - cpu;
    // From here on every peer has been pinged once.
    crowd.pass(INTERVAL + TICK);
    let (cpu, pairs) = (cpu_time(), crowd.relay.stats().pongs);
    crowd.pass(time);
    let pairs = crowd.relay.stats().pongs - pairs;
    let spent = cpu_time() - cpu;

    let (binaries, phones) = crowd.relay.live();
    assert_eq!(binaries + phones, count, "all live");
    assert_eq!(crowd.relay.stats().pings, crowd.relay.stats().pongs, "all answered");
    println!(
        "{count:>11}  {:>10}  {:>11.2} µs  {pairs:>15}  {:>7} ns",
        resident().saturating_sub(memory) / count,
        up.as_secs_f64() * 1e6 / count as f64,
        spent.as_nanos() / u128::from(pairs.max(1)),
    );
}

/// The relay and its virtual time, below the turn that the event loop runs as well. Every peer
/// reads at once and answers every ping.
struct Crowd {
    relay: Relay,
    now: Instant,
    turn: Option<Turn<Vec<u8>>>,
    /// The request of the peer that connects.
    request: Option<Vec<u8>>,
    peers: Vec<Peer>,
    readable: Vec<ConnId>,
}

/// What a peer has sent that the relay has not read.
#[derive(Default)]
struct Peer {
    readiness: Readiness,
    unread: Vec<u8>,
}

impl Crowd {
    fn new(count: usize) -> Self {
        let mut config = Config::default();
        config.limits.rate_per_minute = 0;
        let relay = Relay::new(&config, count, [7; 32], Instant::START);
        Self {
            relay,
            now: Instant::START,
            turn: Some(Turn::new(Vec::new())),
            request: None,
            peers: Vec::new(),
            readable: Vec::new(),
        }
    }

    /// A peer upgrades.
    fn open(&mut self, number: usize) {
        let (pair, place) = (number / (PHONES_PER_BINARY + 1), number % (PHONES_PER_BINARY + 1));
        let (path, header) = match place {
            0 => ("server", "x-pyrycode-version: 1"),
            _ => ("client", "x-pyrycode-token: t"),
        };
        let head = format!(
            "GET /v1/{path} HTTP/1.1\r\nHost: relay.example\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nUser-Agent: bench\r\n\
             x-pyrycode-server: {pair}\r\n{header}\r\n\r\n"
        );
        self.request = Some(head.into_bytes());
        self.settle();
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.relay.next_deadline().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.settle();
        }
        self.now = end;
    }

    /// Turns follow each other until every peer has been answered.
    fn settle(&mut self) {
        let mut turn = self.turn.take().expect("no turn within a turn");
        loop {
            turn.run(self, self.now);
            for id in std::mem::take(&mut self.readable) {
                turn.on_readable(self, id, PeerEnd::Open, self.now);
            }
            if !turn.has_work() {
                break;
            }
        }
        self.turn = Some(turn);
    }
}

impl Transport for Crowd {
    type Core = Relay;
    type Buffers = Vec<u8>;

    fn core(&mut self) -> &mut Relay {
        &mut self.relay
    }

    fn accept(&mut self, _now: Instant) -> Option<(IpAddr, ListenerKind)> {
        self.request.as_ref()?;
        Some((IpAddr::V4(Ipv4Addr::LOCALHOST), ListenerKind::Clients))
    }

    fn attach(&mut self, id: ConnId, _now: Instant) -> bool {
        if self.peers.len() <= id.index() {
            self.peers.resize_with(id.index() + 1, Peer::default);
        }
        self.peers[id.index()].unread = self.request.take().unwrap_or_default();
        self.readable.push(id);
        true
    }

    fn readiness(&mut self, id: ConnId) -> Option<&mut Readiness> {
        self.peers.get_mut(id.index()).map(|peer| &mut peer.readiness)
    }

    fn unread(&mut self, id: ConnId) -> usize {
        self.peers[id.index()].unread.len()
    }

    fn clock(&mut self) -> Instant {
        self.now
    }

    fn read<'b>(&mut self, id: ConnId, buffer: &'b mut Vec<u8>, _now: Instant) -> Received<'b> {
        let peer = &mut self.peers[id.index()];
        peer.readiness.is_readable = false;
        *buffer = std::mem::take(&mut peer.unread);
        Received::Bytes(buffer, buffer.len())
    }

    fn write(&mut self, id: ConnId, _buffer: &mut Vec<u8>) -> Written {
        const PING: u8 = 0x89;
        let (peer, mut count) = (&mut self.peers[id.index()], 0);
        for slice in self.relay.outgoing(id) {
            count += slice.len();
            if slice.first() == Some(&PING) {
                // FIN and pong; masked by a key of zeros.
                peer.unread.extend_from_slice(&[0x8a, 0x80 | slice[1], 0, 0, 0, 0]);
                peer.unread.extend_from_slice(&slice[2..]);
                self.readable.push(id);
            }
        }
        if count == 0 { Written::Nothing } else { Written::Bytes(count) }
    }

    fn half_close(&mut self, id: ConnId, _is_over: bool, _buffer: &mut Vec<u8>) -> bool {
        panic!("no peer of this bench is closed: {id:?}");
    }

    fn disconnect(&mut self, id: ConnId, _buffer: &mut Vec<u8>) {
        panic!("no peer of this bench is closed: {id:?}");
    }
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Bytes of resident memory (proc(5), `statm`).
fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: usize = statm.split(' ').nth(1).expect("resident").parse().expect("a number");
    pages * rustix::param::page_size()
}
