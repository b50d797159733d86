//! ClientHellos: a few hundred bytes that cost the relay a signature each.
//!
//! They are canned, so they cost their sender nothing. The keys are RSA, the dearest, and made
//! by openssl.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection};

use crate::percentiles::{self, Latencies};
use crate::support::{
    Pair, Peer, TlsStream, binary_head, connect_from, pause, phone_head, source, through_tls,
};
use crate::watch::{Exchange, LIMITS, Watched};

/// Connections that send theirs when the time for their request is almost over.
const BURST: usize = 9_000;
const HEAD_TIME: Duration = Duration::from_secs(5);
/// Those of one client in a second.
const RATE: usize = 1_900;

pub fn burst_of_rsa_2048() {
    burst(2048);
}

pub fn burst_of_rsa_4096() {
    burst(4096);
}

/// A pair of files with an RSA key.
fn rsa(bits: u32) -> Pair {
    let mut pair = Pair::new();
    let [key, certificate] = ["key", "certificate"].map(|name| {
        let process = std::process::id();
        std::env::temp_dir().join(format!("pyrycode-relay-load-{process}-{bits}-{name}.pem"))
    });
    let made = Command::new("openssl")
        .args(["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=relay"])
        .args(["-addext", "subjectAltName=DNS:relay", "-addext", "basicConstraints=CA:FALSE"])
        .args(["-newkey", &format!("rsa:{bits}")])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .expect("openssl is installed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let [key_pem, certificate_pem] = [&key, &certificate].map(|path| {
        let text = std::fs::read_to_string(path).unwrap();
        std::fs::remove_file(path).unwrap();
        text
    });
    pair.put(&certificate_pem, &key_pem);
    pair.root = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).unwrap();
    pair
}

fn hello(config: &Arc<ClientConfig>) -> Vec<u8> {
    let name = ServerName::try_from("relay").unwrap();
    let mut client = ClientConnection::new(Arc::clone(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

fn dial(relay: SocketAddr, config: &Arc<ClientConfig>, head: &str) -> Peer<TlsStream> {
    Peer::upgrade(through_tls(connect_from(source(249), relay), config), head)
}

fn exchange(relay: SocketAddr, config: &Arc<ClientConfig>) -> Exchange<TlsStream> {
    let binary = dial(relay, config, &binary_head("quiet"));
    Exchange::start(binary, dial(relay, config, &phone_head("quiet")))
}

fn burst(bits: u32) {
    let pair = rsa(bits);
    let [certificate, key] = pair.flags();
    let mut relay = Watched::start(&[&certificate, &key]);
    let (address, config) = (relay.process.relay, pair.client());
    let (hello, exchange) = (hello(&config), exchange(address, &config));
    let began = Instant::now();
    let mut streams: Vec<TcpStream> =
        (0..BURST).map(|n| connect_from(source(n), address)).collect();
    let dialled = began.elapsed();
    assert!(dialled < HEAD_TIME * 3 / 4, "the machine is too slow: {dialled:?} for the dials");
    pause((HEAD_TIME - HEAD_TIME / 8).saturating_sub(began.elapsed()));
    relay.begin();
    // One whose time is over may be closed.
    let sent = streams.iter_mut().filter_map(|stream| stream.write_all(&hello).ok()).count();
    pause(HEAD_TIME);
    let times = exchange.stop();
    percentiles::record("hellos sent, of RSA keys with bits", format!("{sent}, {bits}"));
    relay.report("a burst of hellos", &times);
}

/// One client sends them without an end, and others dial.
pub fn stream_of_rsa_2048() {
    const TIME: Duration = Duration::from_secs(5);
    const DIALERS: usize = 40;
    let pair = rsa(2048);
    let [certificate, key] = pair.flags();
    let [certificate, key] = [&*certificate, &*key];
    let mut relay = Watched::start(&[&LIMITS[..], &[certificate, key]].concat());
    let (address, config) = (relay.process.relay, pair.client());
    let (hello, exchange) = (hello(&config), exchange(address, &config));
    relay.begin();
    let attacker = std::thread::spawn(move || {
        let (began, mut sent) = (Instant::now(), 0);
        let mut open = std::collections::VecDeque::new();
        while began.elapsed() < TIME {
            let due = (began.elapsed().as_secs_f64() * RATE as f64) as usize;
            while sent < due {
                let mut stream = connect_from(source(7), address);
                if stream.write_all(&hello).is_ok() {
                    open.push_back(stream);
                }
                sent += 1;
            }
            // It has descriptors for some seconds.
            while open.len() > 4_000 {
                open.pop_front();
            }
            pause(Duration::from_millis(1));
        }
        sent
    });
    let mut dials = Latencies::default();
    for n in 0..DIALERS {
        let began = Instant::now();
        let stream = through_tls(connect_from(source(20 + n), address), &config);
        let mut peer = Peer::upgrade(stream, &binary_head(&format!("new-{n}")));
        dials.push(began.elapsed());
        peer.expect_alive();
        pause(TIME / DIALERS as u32 / 2);
    }
    let sent = attacker.join().unwrap();
    let times = exchange.stop();
    percentiles::record("hellos sent by one client in a second", sent / TIME.as_secs() as usize);
    percentiles::record("dials of others", &dials);
    relay.report("a stream of hellos", &times);
    assert!(dials.permille(1000) < Duration::from_secs(3), "a dialer waited");
}
