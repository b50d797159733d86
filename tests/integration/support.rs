//! Test support: starts a relay, dials peers, and waits for conditions.

#[path = "../support/http.rs"]
mod http;
#[path = "../support/peer.rs"]
mod peer;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/request.rs"]
mod request;
mod scrape;
#[path = "../support/tls.rs"]
mod tls;
#[path = "../support/wire.rs"]
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::LevelFilter;
use pyrycode_relay::config::{Config, LogFormat, Serving, Timeouts};
use pyrycode_relay::relay::Relay;
use pyrycode_relay::server::Server;
use pyrycode_relay::server::admin::http::AdminListener;
use pyrycode_relay::server::certificates::source::Source;
use pyrycode_relay::server::log::Sink;
use pyrycode_relay::server::net::listener::Listener;
use pyrycode_relay::time;
use rustls::ClientConfig;

pub use http::{
    Answer, ask, connect, connect_from, connect_reading_little, connect_writing_little, healthz,
};
pub use peer::{Opcode, Peer, Received, envelope, frame, header};
pub use process::{Process, run, run_into, run_suspended, run_with_descriptors, run_with_sockets};
pub(crate) use request::{binary as binary_head, phone as phone_head, upgrade as upgrade_head};
pub use scrape::Scrape;
pub use tls::{Pair, TlsStream, through_tls, tls_connect};

/// The longest wait for an event that should come at once. Only a failing test takes it.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A timeout that never expires within a test.
pub const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

/// A short interval.
pub const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A relay on a thread of this process, which ends with it. Without rate limit
/// and without ordinary pings, if `adjust` does not say otherwise.
pub fn relay(adjust: impl FnOnce(&mut Config)) -> SocketAddr {
    relay_for(10_000, adjust)
}

/// The same with a cap on WebSockets.
pub fn relay_for(capacity: usize, adjust: impl FnOnce(&mut Config)) -> SocketAddr {
    let (mut server, address) = server(capacity, adjust);
    thread::spawn(move || server.run());
    address
}

/// The same with its metrics, at the second address.
pub fn watched(capacity: usize, adjust: impl FnOnce(&mut Config)) -> (SocketAddr, SocketAddr) {
    let (mut server, address) = server(capacity, adjust);
    let metrics = watch(&server);
    thread::spawn(move || server.run());
    (address, metrics)
}

/// Serves the metrics of a server.
pub fn watch(server: &Server<Relay>) -> SocketAddr {
    let operator = AdminListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)), &[]).unwrap();
    let metrics = operator.local_addr().unwrap();
    let sink = Sink::start(LogFormat::Logfmt, LevelFilter::Off, io::sink()).unwrap();
    operator.serve(&server.handle(), &sink).unwrap();
    metrics
}

/// A relay that is not running yet, and its address.
pub fn server(capacity: usize, adjust: impl FnOnce(&mut Config)) -> (Server<Relay>, SocketAddr) {
    let mut config = Config {
        timeouts: Timeouts { ping_interval: NEVER, ..Timeouts::STANDARD },
        ..Config::default()
    };
    config.limits.rate_per_minute = 0;
    adjust(&mut config);
    let (listen, speaks) = config.serving.listens().next().unwrap();
    let listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let listener = listener.speaking(speaks).proxied(listen.proxy_protocol);
    let address = listener.local_addr().unwrap();
    let relay = Relay::new(&config, capacity, [7; 32], time::Instant::START);
    let mut server = Server::new(relay, vec![listener], None, config.timeouts.shutdown).unwrap();
    if let Some(source) = Source::new(&config.serving).unwrap() {
        server = server.with_tls(source).unwrap();
    }
    (server, address)
}

/// A relay as [`relay`]'s, with TLS.
pub fn tls_relay(adjust: impl FnOnce(&mut Config)) -> (SocketAddr, Arc<ClientConfig>) {
    let pair = Pair::new();
    let relay = relay_for(10_000, |config| {
        let https = config.serving.listens().next().unwrap().0;
        config.serving = Serving::Own { https, pair: pair.files.clone() };
        adjust(config);
    });
    (relay, pair.client())
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::park_timeout(millis(5));
    }
}

/// Waits until `value` has not changed for a while and returns it.
pub fn settled<T: PartialEq>(mut value: impl FnMut() -> T) -> T {
    const STILL: Duration = Duration::from_millis(300);
    let (mut last, mut since) = (value(), Instant::now());
    eventually("it stands still", || {
        let now = value();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() > STILL
    });
    last
}
