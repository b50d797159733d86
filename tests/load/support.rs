//! Support for the scenarios: the peers and the process of the integration tests, and
//! traffic with unique content.

#![allow(dead_code, unused_imports, reason = "the integration tests use the rest")]

#[path = "../support/http.rs"]
mod http;
#[path = "../support/peer.rs"]
mod peer;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/request.rs"]
mod request;
#[path = "../support/tls.rs"]
mod tls;
#[path = "../support/wire.rs"]
mod wire;

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

pub use http::{
    Answer, connect, connect_from, connect_reading_little, connect_writing_little, healthz,
};
pub use peer::{Opcode, Peer, Received, envelope, frame, header, is_close_notice};
pub use process::Process;
pub(crate) use request::{binary as binary_head, phone as phone_head};
pub use tls::{Pair, TlsStream, through_tls};
pub(crate) use wire::first_frame;

/// The longest wait for an event that should come at once, on a busy machine. Only a
/// failing run takes it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        pause(Duration::from_millis(5));
    }
}

/// The values of these metrics.
pub fn metrics<const N: usize>(process: &Process, names: [&str; N]) -> [u64; N] {
    let mut stream = connect(process.metrics);
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").unwrap();
    let text = Answer::read(&mut stream).body;
    names.map(|name| {
        let line = text.lines().find(|line| {
            let rest =
                line.strip_prefix("pyrycode_relay_").and_then(|line| line.strip_prefix(name));
            rest.is_some_and(|rest| rest.starts_with(' '))
        });
        let value =
            line.and_then(|line| line.rsplit(' ').next()).unwrap_or_else(|| panic!("no {name}"));
        value.parse::<f64>().unwrap() as u64
    })
}

/// Bytes that the relay charges to its budget.
pub fn buffered(process: &Process) -> u64 {
    let [bytes] = metrics(process, ["buffered_bytes"]);
    bytes
}

/// How many descriptors the relay has open once those are closed that belong to
/// connections which have just ended.
pub fn settled_descriptors(process: &Process) -> usize {
    let mut count = process.descriptors();
    eventually("no descriptor comes or goes", || {
        pause(Duration::from_millis(50));
        let last = std::mem::replace(&mut count, process.descriptors());
        count == last
    });
    count
}

/// Sleeps: a peer's pace, or the interval of polling.
pub fn pause(time: Duration) {
    thread::park_timeout(time);
}

/// The `n`-th message of sender `from`: a JSON string of `len` bytes that begins with `n`
/// and continues with unique content.
pub fn content(from: usize, n: usize, len: usize) -> String {
    let mut text = String::with_capacity(len);
    text.push_str(&format!("\"{n}:"));
    // Xorshift: Marsaglia, Xorshift RNGs, 2003.
    let mut state = ((from as u64 + 1) << 32) | (n as u64 + 1);
    while text.len() + 1 < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let letters = state.to_be_bytes().map(|byte| char::from(b'a' + byte % 26));
        text.extend(letters.iter().take(len - 1 - text.len()));
    }
    text.push('"');
    text
}

/// The `n`-th frame of sender `from` as the clients send it: an object with one long
/// string, `len` bytes in all.
pub fn noise(from: usize, n: usize, len: usize) -> String {
    const BEGIN: &str = r#"{"v":2,"type":"noise_msg","data":"#;
    format!("{BEGIN}{}}}", content(from, n, len - BEGIN.len() - 1))
}

/// An address of this machine to dial from, by number; another process of these tests,
/// or any that dials from 127.0.0.1, has used none of its ports.
pub fn source(number: usize) -> Ipv4Addr {
    let process = std::process::id();
    let [.., second, third] = (process % (254 * 256) + 256).to_be_bytes();
    Ipv4Addr::new(127, second, third, 1 + (number % 250) as u8)
}

/// The next envelope with a frame; close notices of other phones are skipped.
fn hear_frame<S: Read + Write>(binary: &mut Peer<S>) -> String {
    loop {
        let text = binary.receive_text();
        if !is_close_notice(&text) {
            return text;
        }
    }
}

/// Sends a frame there and a frame back; fails unless exactly these arrive.
pub fn round_trip<S: Read + Write>(
    binary: &mut Peer<S>,
    phone: &mut Peer<S>,
    n: usize,
) -> Duration {
    let (began, json) = (Instant::now(), n.to_string());
    phone.send_text(&json);
    assert_eq!(hear_frame(binary), envelope(&phone.id, &json));
    binary.send_to(&phone.id, &json);
    assert_eq!(phone.receive_text(), json);
    began.elapsed()
}
