//! Hostile floods: many connections send what costs the relay most for a byte, as fast as
//! they can, beside one pair that exchanges a frame twenty times a second.
//!
//! A flood may take the processor; it must not take the pair's time.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::percentiles;
use crate::support::{Opcode, Peer, frame, pause};
use crate::watch::{Exchange, Watched};

const FLOODERS: [usize; 4] = [1, 20, 100, 400];
const TIME: Duration = Duration::from_secs(2);

/// Empty texts of binaries: envelopes that have to be dropped.
pub fn bad_envelopes() {
    flood("empty texts", Peer::binary, b"", &frame(Opcode::Text, true, b""));
}

/// Pings, which have to be answered.
pub fn pings() {
    flood("pings", Peer::binary, b"", &frame(Opcode::Ping, true, b""));
}

/// The smallest frames that are forwarded, each eight times as long on the binary's side.
pub fn smallest_frames() {
    flood("frames of one byte", phone_of_its_own, b"", &frame(Opcode::Text, true, b"1"));
}

/// Empty fragments of a message that never ends.
pub fn fragments() {
    let first = frame(Opcode::Text, false, b"");
    let mut next = first.clone();
    next[0] = 0;
    flood("fragments", Peer::binary, &first, &next);
}

/// A phone whose binary reads and forgets.
fn phone_of_its_own(relay: std::net::SocketAddr, name: &str) -> Peer {
    let mut binary = Peer::binary(relay, name).stream;
    let phone = Peer::phone(relay, name);
    thread::spawn(move || {
        let mut trash = vec![0; 1 << 18];
        while binary.read(&mut trash).is_ok_and(|count| count > 0) {}
    });
    phone
}

fn flood(what: &str, dial: impl Fn(std::net::SocketAddr, &str) -> Peer, first: &[u8], next: &[u8]) {
    let mut relay = Watched::start(&[]);
    let address = relay.process.relay;
    for count in FLOODERS {
        let flooders: Vec<Peer> =
            (0..count).map(|n| dial(address, &format!("flood-{count}-{n}"))).collect();
        let exchange =
            Exchange::start(Peer::binary(address, "quiet"), Peer::phone(address, "quiet"));
        let is_over = Arc::new(AtomicBool::new(false));
        let streams = flooders.iter().map(|peer| peer.stream.try_clone().unwrap()).collect();
        relay.begin();
        let flood = send_all(streams, first.to_vec(), next.repeat(4_000), &is_over);
        let began = Instant::now();
        pause(TIME);
        let times = exchange.stop();
        relay.report(&format!("{count} with {what}"), &times);
        let took = began.elapsed();
        is_over.store(true, Ordering::Relaxed);
        let sent = flood.join().unwrap();
        percentiles::record("  flood: kB a second", sent * 1000 / took.as_micros());
    }
}

/// Sends `first` and then `next` over and over on every stream, as far as each takes it, and
/// discards what comes. Returns how many bytes were taken.
fn send_all(
    mut streams: Vec<TcpStream>,
    first: Vec<u8>,
    next: Vec<u8>,
    is_over: &Arc<AtomicBool>,
) -> JoinHandle<u128> {
    let is_over = Arc::clone(is_over);
    thread::spawn(move || {
        for stream in &mut streams {
            stream.write_all(&first).unwrap();
            stream.set_nonblocking(true).unwrap();
        }
        let (mut sent, mut offsets, mut trash) = (0, vec![0; streams.len()], vec![0; 1 << 16]);
        while !is_over.load(Ordering::Relaxed) {
            let before = sent;
            for (stream, offset) in streams.iter_mut().zip(&mut offsets) {
                let _ = stream.read(&mut trash);
                match stream.write(&next[*offset..]) {
                    Ok(count) => {
                        sent += count as u128;
                        *offset = (*offset + count) % next.len();
                    }
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "closed"),
                }
            }
            if sent == before {
                // The relay takes no more now.
                pause(Duration::from_micros(200));
            }
        }
        sent
    })
}

/// Bad envelopes of six bytes at 1 Mbit/s, while thirty binaries claim.
pub fn log_of_bad_envelopes() {
    const CLAIMS: usize = 30;
    const A_TENTH: usize = 1_000_000 / 8 / 6 / 10;
    let mut relay = Watched::start(&[]);
    let address = relay.process.relay;
    let exchange = Exchange::start(Peer::binary(address, "quiet"), Peer::phone(address, "quiet"));
    let mut flooder = Peer::binary(address, "flood");
    relay.begin();
    let burst = frame(Opcode::Text, true, b"").repeat(A_TENTH);
    let began = Instant::now();
    let mut honest = Vec::new();
    for n in 0..CLAIMS {
        flooder.send_raw(&burst);
        honest.push(Peer::binary(address, &format!("honest-{n}")));
        pause(Duration::from_millis(100));
    }
    let took = began.elapsed();
    let lines = relay.report("1 Mbit/s of bad envelopes", &exchange.stop());
    let (claims, others): (Vec<_>, Vec<_>) =
        lines.iter().partition(|line| line.contains("server_id=honest-"));
    assert_eq!(claims.len(), CLAIMS, "lines that matter were lost");
    let bytes: usize = others.iter().map(|line| line.len() + 1).sum();
    let of_a_day = bytes as f64 * 86_400.0 / took.as_secs_f64() / 1e6;
    percentiles::record("  log of the flood: MB a day", format!("{of_a_day:.1}"));
    assert!(of_a_day <= 100.0, "{of_a_day} MB a day");
}
