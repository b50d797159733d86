//! Crowding: clients that try to hold the relay's memory, each connection with less than an
//! honest peer has. The client that holds most is shed, whatever others hold one by one.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::percentiles::{self, mib};
use crate::support::{
    Opcode, Peer, Received, binary_head, buffered, connect_from, content, envelope, frame, pause,
    phone_head, source,
};
use crate::watch::{Exchange, Watched};

/// An address of this machine is that of a client.
const NO_PROXY: &str = "--trusted-proxies=192.0.2.1";
/// A budget that an attacker of this size can spend.
const BUDGET: u64 = 16 << 20;
const LEN: usize = 64_000;
const TIME: Duration = Duration::from_secs(4);

/// A home whose phone is on a slow link: something is always queued to it.
struct Slow {
    binary: Peer,
    phone: Peer,
    told: usize,
    heard: usize,
}

impl Slow {
    fn start(relay: &Watched) -> Self {
        let dial = |head: &str| Peer::upgrade(connect_from(source(248), relay.process.relay), head);
        let binary = dial(&binary_head("slow"));
        Self { binary, phone: dial(&phone_head("slow")), told: 0, heard: 0 }
    }

    /// Four messages are on their way; one more is read.
    fn step(&mut self) {
        while self.told < self.heard + 4 {
            self.binary.send_to(&self.phone.id, &content(0, self.told, LEN));
            self.told += 1;
        }
        assert!(self.phone.receive_text() == content(0, self.heard, LEN));
        self.heard += 1;
    }
}

/// Runs an attack whose connections are `streams`, and looks after those that are honest.
fn resist(
    relay: &mut Watched,
    what: &str,
    mut streams: Vec<TcpStream>,
    mut act: impl FnMut(&mut Vec<TcpStream>),
) {
    let address = relay.process.relay;
    let exchange = Exchange::start(Peer::binary(address, "quiet"), Peer::phone(address, "quiet"));
    let mut slow = Slow::start(relay);
    relay.begin();
    let (began, mut most) = (Instant::now(), 0);
    while began.elapsed() < TIME {
        act(&mut streams);
        slow.step();
        most = most.max(buffered(&relay.process));
        pause(Duration::from_millis(20));
    }
    let times = exchange.stop();
    percentiles::record("charged, at most", mib(most));
    percentiles::record("messages through the slow link", slow.heard);
    relay.report(what, &times);
    slow.binary.expect_alive();
    assert!(!matches!(slow.phone.receive(), Received::Close(_)), "an honest phone was shed");
}

/// Request heads that lack their end, dialled again before their time is over.
pub fn half_heads() {
    const COUNT: usize = 8_600;
    // The limits before the upgrade are off, so that one address can do what needs many.
    let mut relay = Watched::start(&[NO_PROXY]);
    let address = relay.process.relay;
    let head = format!("GET /v1/client HTTP/1.1\r\nx: {}", "y".repeat(8_070));
    let mut next = 0;
    resist(&mut relay, "half heads", Vec::new(), |streams| {
        for _ in 0..COUNT / 100 {
            let mut stream = connect_from(source(7), address);
            let _ = stream.write_all(head.as_bytes());
            match streams.len() < COUNT {
                true => streams.push(stream),
                false => streams[next % COUNT] = stream,
            }
            next += 1;
        }
    });
    percentiles::record("half heads", next);
}

/// Upgraded connections, each with the first six bytes of a message.
pub fn first_fragments() {
    const COUNT: usize = 4_100;
    let mut relay = Watched::start(&[&format!("--buffer-memory={BUDGET}"), NO_PROXY]);
    let address = relay.process.relay;
    let first = frame(Opcode::Text, false, b"");
    let streams: Vec<TcpStream> = (0..COUNT)
        .map(|n| {
            let stream = connect_from(source(7), address);
            let mut peer = Peer::upgrade(stream, &binary_head(&format!("crowd-{n}")));
            peer.send_raw(&first);
            peer.stream
        })
        .collect();
    resist(&mut relay, "first fragments", streams, |_| {});
    percentiles::record("first fragments", COUNT);
}

/// Phones that read so little that their queues stay.
pub fn slow_readers() {
    const COUNT: usize = 166;
    const EACH: usize = 105 << 10;
    let mut relay = Watched::start(&[&format!("--buffer-memory={BUDGET}"), NO_PROXY]);
    let address = relay.process.relay;
    let message = content(0, 0, EACH);
    let (mut binaries, mut streams) = (Vec::new(), Vec::new());
    for n in 0..COUNT {
        let name = format!("crowd-{}", n / 16);
        if n % 16 == 0 {
            binaries.push(Peer::upgrade(connect_from(source(7), address), &binary_head(&name)));
        }
        let phone = Peer::upgrade(connect_from(source(7), address), &phone_head(&name));
        let binary: &mut Peer = binaries.last_mut().unwrap();
        // The first fills the kernel's buffers.
        for _ in 0..4 {
            binary.send_raw(&frame(Opcode::Text, true, envelope(&phone.id, &message).as_bytes()));
        }
        phone.stream.set_nonblocking(true).unwrap();
        streams.push(phone.stream);
    }
    resist(&mut relay, "slow readers", streams, |streams| {
        for stream in streams {
            // A little, if there is any and it was not shed.
            let _ = stream.read_exact(&mut [0; 16]);
        }
    });
}
