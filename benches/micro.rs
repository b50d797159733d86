//! Micro-benchmarks of the parts on the path of every message, ping and timer.
//!
//! `cargo bench --bench micro` runs all, `-- wheel` those with that word in their name. Times
//! depend on the machine: compare two runs on one machine only.

use std::fmt::Write;
use std::time::Duration;

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use pyrycode_relay::config::{MESSAGE_MAX, Timeouts};
use pyrycode_relay::protocol::connection::Connection;
use pyrycode_relay::protocol::outbox_pool::OutboxPool;
use pyrycode_relay::protocol::websocket::{Codec, Incoming, Opcode, Reassembly, accept_key};
use pyrycode_relay::protocol::work::Work;
use pyrycode_relay::relay::envelope;
use pyrycode_relay::server::net::tls_record::{RecordLayer, Suite};
use pyrycode_relay::time::{Instant, Wheel};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

fn main() {
    divan::main();
}

const SIZES: [usize; 3] = [256, 1024, 16 * 1024];
const CONN_ID: &str = "48d196f1a4e634ab0000000100000001";

/// A text that is sent, by its shape and its size in bytes.
#[derive(Clone, Copy, Debug)]
enum Text {
    /// JSON as daemons send it: short keys, short texts, numbers.
    Dense(usize),
    /// One string in base64, as clients send what they encrypted.
    Base64(usize),
    /// One string in Japanese.
    Japanese(usize),
}

const TEXTS: [Text; 8] = [
    Text::Dense(256),
    Text::Dense(1024),
    Text::Dense(16 * 1024),
    Text::Base64(256),
    Text::Base64(1024),
    Text::Base64(16 * 1024),
    Text::Base64(87 * 1024 + 512),
    Text::Japanese(16 * 1024),
];

impl Text {
    fn json(self) -> String {
        let string = |unit: &str, size: usize| format!("\"{}\"", unit.repeat(size / unit.len()));
        match self {
            Self::Dense(size) => json(size),
            Self::Base64(size) => string("bG9yZW0gaXBzdW0g", size),
            Self::Japanese(size) => string("\u{4e2d}\u{7d99}\u{5668}", size),
        }
    }
}

/// Dense JSON of about `size` bytes.
fn json(size: usize) -> String {
    const ITEM: &str =
        r#"{"id":48213,"ok":true,"text":"the \"brown\" fox\n","w":[1,2.5,-3e2,null]},"#;
    let mut json = String::from("[");
    while json.len() + ITEM.len() < size {
        json.push_str(ITEM);
    }
    let rest = size.saturating_sub(json.len() + 3);
    write!(json, "\"{}\"]", "x".repeat(rest)).expect("a String takes everything");
    json
}

/// A client's text frame.
fn masked(payload: &[u8]) -> Vec<u8> {
    const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let mut frame = vec![0x81];
    match payload.len() {
        len @ ..126 => frame.push(0x80 | len as u8),
        len => match u16::try_from(len) {
            Ok(len) => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&len.to_be_bytes());
            }
            Err(_) => {
                frame.push(0x80 | 127);
                frame.extend_from_slice(&(len as u64).to_be_bytes());
            }
        },
    }
    frame.extend_from_slice(&KEY);
    frame.extend(payload.iter().zip(KEY.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

/// Checks a phone's frame.
#[divan::bench(args = TEXTS)]
fn json_check(bencher: Bencher<'_, '_>, text: Text) {
    let json = text.json();
    bencher
        .counter(BytesCount::of_str(&json))
        .bench(|| envelope::frame(black_box(&json)).map(str::len));
}

/// Opens a binary's envelope.
#[divan::bench(args = TEXTS)]
fn envelope_unwrap(bencher: Bencher<'_, '_>, text: Text) {
    let message = format!(r#"{{"conn_id":"{CONN_ID}","frame":{}}}"#, text.json());
    bencher
        .counter(BytesCount::of_str(&message))
        .bench(|| envelope::unwrap(black_box(&message)).is_ok());
}

/// Handles a piece of input as the relay does, which checks a message and reuses its memory.
fn step(codec: &mut Codec, reassembly: &mut Reassembly, mut input: &[u8]) {
    let incoming = codec.next(reassembly, &mut input, &mut Work::unbounded());
    if let Some(Incoming::Message(message)) = incoming.expect("a valid frame") {
        assert!(message.text().is_ok());
        codec.recycle(message);
    }
}

/// From bytes to a message, a whole frame at once.
#[divan::bench(args = TEXTS)]
fn websocket_step(bencher: Bencher<'_, '_>, text: Text) {
    let frame = masked(text.json().as_bytes());
    let (mut codec, mut reassembly) = (Codec::new(MESSAGE_MAX), Reassembly::default());
    bencher
        .counter(BytesCount::of_slice(&frame))
        .bench_local(|| step(&mut codec, &mut reassembly, black_box(&frame)));
}

/// The same split in the middle, so that the first half is buffered.
#[divan::bench(args = TEXTS)]
fn websocket_step_in_halves(bencher: Bencher<'_, '_>, text: Text) {
    let frame = masked(text.json().as_bytes());
    let halves = frame.split_at(frame.len() / 2);
    let (mut codec, mut reassembly) = (Codec::new(MESSAGE_MAX), Reassembly::default());
    bencher.counter(BytesCount::of_slice(&frame)).bench_local(|| {
        for half in [halves.0, halves.1] {
            step(&mut codec, &mut reassembly, black_box(half));
        }
    });
}

/// The digest in a 101.
#[divan::bench]
fn handshake_accept_key() -> String {
    accept_key(black_box("dGhlIHNhbXBsZSBub25jZQ=="))
}

/// The bare cipher of a message that is forwarded through TLS: opened and sealed in one buffer,
/// under a key that is expanded.
#[divan::bench(args = SIZES)]
fn cipher_open_and_seal(bencher: Bencher<'_, '_>, size: usize) {
    let key = UnboundKey::new(&AES_256_GCM, &[7; 32]).expect("the length fits");
    let key = LessSafeKey::new(key);
    let nonce = || Nonce::assume_unique_for_key([1; 12]);
    let mut buffer = json(size).into_bytes();
    let tag = key.seal_in_place_separate_tag(nonce(), Aad::empty(), &mut buffer);
    let mut tag = tag.expect("short enough");
    bencher.counter(BytesCount::new(size)).bench_local(|| {
        key.open_in_place_separate_tag(nonce(), Aad::empty(), tag, black_box(&mut buffer), 0..)
            .expect("it was sealed so");
        let sealed = key.seal_in_place_separate_tag(nonce(), Aad::empty(), black_box(&mut buffer));
        tag = sealed.expect("short enough");
    });
}

/// The same in the record layer, one record at a time: keys are expanded, and data is copied
/// into the record.
#[divan::bench(args = SIZES)]
fn tls_record_seal_and_open(bencher: Bencher<'_, '_>, size: usize) {
    let secrets = [(0, &[7; 48][..]), (0, &[8; 48][..])];
    let [mut one, mut other] = [[0, 1], [1, 0]].map(|[send, receive]| {
        RecordLayer::tls13(Suite::Aes256Gcm, secrets[send], secrets[receive])
            .expect("lengths fit the suite")
    });
    let (text, mut record, mut replies) = (json(size), Vec::new(), Vec::new());
    bencher.counter(BytesCount::new(size)).bench_local(|| {
        record.clear();
        one.seal(&[black_box(text.as_bytes())], &mut record).expect("its session is not over");
        other.open(black_box(&mut record), &mut replies).plain
    });
}

/// One key fires and is armed again, among that many others.
#[divan::bench(args = [1_000, 100_000, 1_000_000])]
fn wheel_fire_and_arm(bencher: Bencher<'_, '_>, keys: u32) {
    const INTERVAL: Duration = Duration::from_secs(30);
    let mut wheel = Wheel::new(Instant::START);
    for key in 0..keys {
        wheel.arm(key, Instant::START + INTERVAL * key / keys);
    }
    let mut now = Instant::START;
    bencher.bench_local(|| {
        let key = loop {
            match wheel.pop_expired(now) {
                Some(key) => break key,
                None => now = wheel.next_expiry().expect("all keys are armed"),
            }
        };
        wheel.arm(key, now + INTERVAL);
    });
}

/// One message is queued to a peer and written, in as many writes as it has chunks.
#[divan::bench(args = [256, 1024, 16 * 1024, 256 * 1024])]
fn outbox_message(bencher: Bencher<'_, '_>, size: usize) {
    let (now, timeouts) = (Instant::START, Timeouts::STANDARD);
    let (mut connection, mut pool) = (Connection::new(now, &timeouts), OutboxPool::default());
    connection.open(Instant::NEVER, now);
    let message = vec![b'x'; size];
    bencher.counter(BytesCount::of_slice(&message)).bench_local(|| {
        connection.send_message(Opcode::Text, &[black_box(&message)], &mut pool, now);
        while connection.backlog() > 0 {
            let count = connection.outgoing().iter().map(|slice| slice.len()).sum();
            connection.on_written(count, &mut pool, now);
        }
    });
}
