//! Admin listener: `/metrics`, `/history`, the health endpoints and the status page.
//!
//! Owns a few threads that answer plain HTTP, one request per connection. Must not touch
//! the event loop's state: it requests [`Snapshots`] and waits.
//!
//! 1. A request cannot slow the event loop: a snapshot costs it a copy of a kilobyte.
//! 2. If the event loop does not answer in time, the response is 503.
//! 3. A connection lasts [`CONNECTION_TIMEOUT`] at most, whatever its peer does. With [`THREADS`]
//!    connections in progress the oldest that waits for its peer is closed, so that silent
//!    connections delay no request ([`Waiting`]).
//! 4. Idle threads sleep in accept(2), in which the kernel has already reserved the
//!    descriptor of the next connection: they can answer even when the relay has used up all
//!    other descriptors.
//! 5. Web pages of other origins cannot read anything: there is no CORS, and a Host header
//!    with a public name is refused, because its owner could point it at this listener (DNS
//!    rebinding). The health endpoints accept any name, as on the public listeners.
//! 6. Peers outside loopback and the networks of `--metrics-allow` are closed without a
//!    response.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::config::HEAD_MAX;
use crate::protocol::fault::{Cause, Fault};
use crate::protocol::request::{self, Endpoint, Head, Request};
use crate::protocol::response::{self, Health, RETRY_LATER, Refusal, Status};
use crate::relay::refusals::Refusals;
use crate::server::admin::gate::Gate;
use crate::server::admin::health;
use crate::server::admin::history::{History, Recorder};
use crate::server::admin::hold::AdminHold;
use crate::server::admin::metrics::{self, Surroundings};
use crate::server::admin::snapshots::{LOOP_TIMEOUT, Snapshots};
use crate::server::admin::waiting::{Ticket, Waiting};
use crate::server::log::Sink;
use crate::server::messages::{LoopHandle, LoopSnapshot};
use crate::server::os::clock::{monotonic, wall_time};
use crate::server::os::date;
use crate::server::os::descriptors::is_exhaustion;
use crate::server::os::eintr::retry_eintr;
use crate::time::Throttle;

/// The maximum of connections answered at once. A browser opens one or two more than it uses.
pub(super) const THREADS: usize = 4;
/// The time limit of a connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// The delay before accepting again when no descriptor is free.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

// The 503 for a stuck loop must be sent before the connection's time is over.
const _: () = assert!(LOOP_TIMEOUT.as_secs() < CONNECTION_TIMEOUT.as_secs());

/// The status page; `{nonce}` marks the places of the nonce that admits its script and style.
const PAGE: &str = include_str!("http/status.html");

/// A bound listener.
#[derive(Debug)]
pub struct AdminListener {
    shared: Arc<Shared>,
}

/// The state that all threads share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) listener: TcpListener,
    /// Closed while the program is replaced.
    pub(super) gate: Gate,
    /// The networks that are admitted besides loopback.
    allowed: Vec<IpNet>,
    /// When the listener was bound.
    opened: Instant,
    /// The same, since 1970: when the process started.
    pub(super) started: Duration,
    log: Mutex<LogLimits>,
    history: History,
    waiting: Waiting,
}

/// The rate limits of the log lines.
#[derive(Debug, Default)]
struct LogLimits {
    requests: Refusals,
    strangers: Throttle,
}

impl Shared {
    /// The time since the listener was bound, on the time line of the rate limits.
    pub(super) fn now(&self) -> crate::time::Instant {
        crate::time::Instant::START + monotonic().saturating_duration_since(self.opened)
    }

    /// Whether `peer` is admitted. Loopback always is: the machine's own health checks use it.
    fn admits(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        peer.is_loopback() || self.allowed.iter().any(|network| network.contains(&peer))
    }

    fn log_stranger(&self, peer: IpAddr) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let admitted = log.strangers.admit(self.now());
        let level = if admitted.is_some() { ::log::Level::Warn } else { ::log::Level::Debug };
        let dropped = admitted.filter(|dropped| *dropped > 0);
        ::log::log!(
            level, remote:% = peer.to_canonical(), cause = "not_allowed", dropped;
            "metrics_refused"
        );
    }

    /// Logs a refused request and returns its response.
    fn refuse(&self, fault: Fault, peer: IpAddr, path: Option<&str>) -> Vec<u8> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.requests.log(fault, peer.to_canonical(), path, self.now());
        fault.refusal.bytes(&date::now())
    }
}

impl AdminListener {
    /// Binds and listens for loopback and the `allowed` networks.
    ///
    /// # Errors
    /// Those of the kernel, with the remedy.
    pub fn bind(address: SocketAddr, allowed: &[IpNet]) -> io::Result<Self> {
        let listener = TcpListener::bind(address).map_err(|error| {
            let advice = format!(
                "--metrics-listen {address}: {error}; choose another port, or disable the \
                 listener with --metrics-listen="
            );
            io::Error::new(error.kind(), advice)
        })?;
        Ok(Self::new(listener, allowed, monotonic(), wall_time()))
    }

    /// Takes over the listener of an earlier program, which started at `started` since 1970
    /// and has run for `uptime`.
    #[must_use]
    pub fn taken_over(
        listener: TcpListener,
        allowed: &[IpNet],
        (started, uptime): (Duration, Duration),
    ) -> Self {
        let now = monotonic();
        Self::new(listener, allowed, now.checked_sub(uptime).unwrap_or(now), started)
    }

    fn new(listener: TcpListener, allowed: &[IpNet], opened: Instant, started: Duration) -> Self {
        let shared = Shared {
            listener,
            gate: Gate::default(),
            allowed: allowed.to_vec(),
            opened,
            started,
            log: Mutex::default(),
            history: History::default(),
            waiting: Waiting::new(THREADS),
        };
        Self { shared: Arc::new(shared) }
    }

    /// What a hand-over does with it.
    #[must_use]
    pub fn to_hold(&self) -> AdminHold {
        AdminHold::new(Arc::clone(&self.shared))
    }

    /// The bound address.
    ///
    /// # Errors
    /// No known one for a bound socket.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.shared.listener.local_addr()
    }

    /// Starts the thread that keeps the history, until the process ends.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn record(&self, to_loop: &LoopHandle, sink: &Sink) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let recorder = Recorder {
            snapshots: Snapshots::new(to_loop.clone()),
            to_loop: to_loop.clone(),
            sink: sink.clone(),
            started: self.shared.started,
        };
        let record = move || recorder.run(&shared.history);
        thread::Builder::new().name("history".into()).spawn(record)?;
        Ok(())
    }

    /// Starts the threads, which answer until the process ends.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn serve(self, to_loop: &LoopHandle, sink: &Sink) -> io::Result<()> {
        for _ in 0..THREADS {
            let worker = AdminWorker {
                shared: Arc::clone(&self.shared),
                snapshots: Snapshots::new(to_loop.clone()),
                sink: sink.clone(),
            };
            thread::Builder::new().name("admin".into()).spawn(|| worker.run())?;
        }
        Ok(())
    }
}

/// One of the threads.
struct AdminWorker {
    shared: Arc<Shared>,
    snapshots: Snapshots,
    sink: Sink,
}

impl AdminWorker {
    fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        loop {
            shared.gate.pass();
            match shared.listener.accept() {
                // For a hand-over, to wake this thread.
                Ok((_, peer)) if shared.gate.is_own(peer) => {}
                Ok((_, peer)) if !shared.admits(peer.ip()) => shared.log_stranger(peer.ip()),
                // An error of one connection must not affect the others.
                Ok((stream, peer)) => {
                    drop(self.serve(&shared.waiting.enter(stream), peer.ip()));
                }
                Err(error) if is_exhaustion(&error) => {
                    #[expect(clippy::disallowed_methods, reason = "no thread waits for this one")]
                    thread::sleep(ACCEPT_RETRY);
                }
                Err(_) => {}
            }
        }
    }

    fn serve(&mut self, ticket: &Ticket<'_>, peer: IpAddr) -> io::Result<()> {
        let until = monotonic() + CONNECTION_TIMEOUT;
        let mut stream = Bounded { stream: ticket.stream(), until };
        let mut head = Vec::new();
        let answer = loop {
            match request::parse(&head) {
                Ok(Head::Complete { request, .. }) => {
                    ticket.on_request();
                    break self.answer(&request, peer);
                }
                Ok(Head::Partial) => {}
                Err(fault) => break self.shared.refuse(fault, peer, request::path_of(&head)),
            }
            let start = head.len();
            head.resize(start + HEAD_MAX, 0);
            let count = stream.read(&mut head[start..])?;
            head.truncate(start + count);
            if count == 0 {
                return Ok(());
            }
        };
        stream.write_all(&answer)?;
        // With unread input the kernel would reset the connection, and the response could
        // be lost (RFC 9112 §9.6).
        stream.stream.shutdown(Shutdown::Write)?;
        ticket.on_response();
        while stream.read(&mut [0; 4096])? > 0 {}
        Ok(())
    }

    fn answer(&mut self, request: &Request<'_>, peer: IpAddr) -> Vec<u8> {
        let path = Some(request.path());
        let is_health = matches!(request.endpoint(), Endpoint::Health | Endpoint::Ready);
        let is_ours = |host| is_name_of_ours(host, !self.shared.allowed.is_empty());
        if !is_health && !request.host().is_some_and(is_ours) {
            let fault = Fault::of(Refusal::Misdirected, Cause::WrongHost, "host");
            self.shared.refuse(fault, peer, path);
            let body = "This host name is not accepted: use localhost or an IP address.\n";
            return Answer::text(Refusal::Misdirected.status(), body).bytes(request);
        }
        if let Err(fault) = request.read_only() {
            return self.shared.refuse(fault, peer, path);
        }
        match (request.endpoint(), request.path()) {
            (Endpoint::Health, _) => self.health(request),
            (Endpoint::Ready, _) => self.ready(request),
            (_, "/history") => self.history().bytes(request),
            (_, "/metrics") => self.metrics().bytes(request),
            (_, "/") => page().bytes(request),
            _ => {
                let fault = Fault::new(Refusal::NotFound, Cause::UnknownPath);
                self.shared.refuse(fault, peer, path)
            }
        }
    }

    /// Answers as the public listeners do, and 503 if the event loop is stuck.
    fn health(&mut self, request: &Request<'_>) -> Vec<u8> {
        let Some(report) = self.snapshots.take() else { return stuck().bytes(request) };
        let health = Health {
            status: if report.relay.is_draining { Status::Draining } else { Status::Ok },
            version: env!("CARGO_PKG_VERSION"),
            connected_binaries: report.relay.binaries as u64,
            connected_phones: report.relay.phones as u64,
            uptime_seconds: self.shared.now().since(crate::time::Instant::START).as_secs(),
        };
        health::answer(&health, &report.handover, &date::now(), request.is_head())
    }

    fn ready(&mut self, request: &Request<'_>) -> Vec<u8> {
        let Some(LoopSnapshot { relay, .. }) = self.snapshots.take() else {
            return stuck().bytes(request);
        };
        let is_ready = !relay.is_draining && relay.connections < relay.connections_max;
        let mut answer = Vec::new();
        response::ready(is_ready, &date::now(), &mut answer);
        answer
    }

    fn metrics(&mut self) -> Answer {
        let Some(report) = self.snapshots.take() else { return stuck() };
        let around = Surroundings::now(self.shared.started, &self.sink);
        let body = metrics::text(&report, &around);
        Answer { media_type: metrics::MEDIA_TYPE, ..Answer::text("200 OK", body) }
    }

    fn history(&self) -> Answer {
        Answer::text("200 OK", self.shared.history.text(wall_time()))
    }
}

/// The response if the event loop does not answer.
fn stuck() -> Answer {
    let body = format!("The event loop has not answered within {LOOP_TIMEOUT:?}.\n");
    Answer::text(Refusal::Unavailable.status(), body)
}

/// Whether a host is safe from DNS rebinding: a name or address of loopback or, if other
/// networks are admitted (`is_open`), any address and any name that cannot exist in the
/// public DNS, as containers and private networks use them (RFC 6761, RFC 6762, RFC 8375;
/// `internal` is reserved by ICANN).
fn is_name_of_ours(host: &str, is_open: bool) -> bool {
    if let Ok(address) = host.parse::<IpAddr>() {
        return is_open || address.to_canonical().is_loopback();
    }
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let private = [".internal", ".local", ".localhost", ".home.arpa"];
    name == "localhost"
        || is_open && (!name.contains('.') || private.iter().any(|it| name.ends_with(it)))
}

/// The status page. Only its own script and style are applied: they carry a nonce that
/// cannot be guessed, and the Content-Security-Policy admits nothing else.
fn page() -> Answer {
    let mut random = [0; 16];
    #[expect(clippy::disallowed_methods, reason = "a nonce that cannot be guessed")]
    if getrandom::fill(&mut random).is_err() {
        return Answer::text("500 Internal Server Error", "The system has no random numbers.\n");
    }
    let nonce = random.iter().fold(String::new(), |mut nonce, byte| {
        let _ = write!(nonce, "{byte:02x}");
        nonce
    });
    Answer {
        media_type: "text/html; charset=utf-8",
        policy: format!(
            "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
             connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
             frame-ancestors 'none'"
        ),
        ..Answer::text("200 OK", PAGE.replace("{nonce}", &nonce))
    }
}

struct Answer {
    status: &'static str,
    media_type: &'static str,
    /// Content-Security-Policy.
    policy: String,
    body: String,
}

impl Answer {
    fn text(status: &'static str, body: impl Into<String>) -> Self {
        let policy = "default-src 'none'; frame-ancestors 'none'".into();
        Self { status, media_type: "text/plain; charset=utf-8", policy, body: body.into() }
    }

    fn bytes(&self, request: &Request<'_>) -> Vec<u8> {
        let Self { status, media_type, policy, body } = self;
        let is_later = *status == Refusal::Unavailable.status();
        let later = if is_later { RETRY_LATER } else { "" };
        let mut bytes = format!(
            "HTTP/1.1 {status}\r\nDate: {}\r\n{later}Connection: close\r\n\
             Content-Type: {media_type}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
             Content-Security-Policy: {policy}\r\nCross-Origin-Resource-Policy: same-origin\r\n\
             Referrer-Policy: no-referrer\r\nX-Content-Type-Options: nosniff\r\n\r\n",
            date::now().as_str(),
            body.len()
        );
        if !request.is_head() {
            bytes.push_str(body);
        }
        bytes.into_bytes()
    }
}

/// A stream with a deadline for all reads and writes together, however slow the peer is.
struct Bounded<'a> {
    stream: &'a TcpStream,
    until: Instant,
}

impl Bounded<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        match self.until.saturating_duration_since(monotonic()) {
            Duration::ZERO => Err(ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

impl Read for Bounded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        retry_eintr(|| {
            self.stream.set_read_timeout(self.left()?)?;
            self.stream.read(buffer)
        })
    }
}

impl Write for Bounded<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_a_web_page_could_own_is_none_of_ours() {
        for (host, here, open) in [
            ("localhost", true, true),
            ("LOCALHOST.", true, true),
            ("127.0.0.1", true, true),
            ("::1", true, true),
            ("::ffff:127.0.0.1", true, true),
            ("10.0.0.7", false, true),
            ("relay", false, true),
            ("relay.process.app.internal", false, true),
            ("relay.monitoring.svc.cluster.local", false, true),
            ("relay.example.com", false, false),
            ("internal.example.com", false, false),
            ("evil-internal", false, true),
            ("localhost.example.com", false, false),
        ] {
            assert_eq!(is_name_of_ours(host, false), here, "{host}");
            assert_eq!(is_name_of_ours(host, true), open, "{host}");
        }
    }

    #[test]
    fn this_machine_and_the_allowed_networks_may_ask() {
        let allowed = ["10.0.0.0/8".parse().unwrap(), "fdaa::/16".parse().unwrap()];
        let admin = AdminListener::bind("127.0.0.1:0".parse().unwrap(), &allowed).unwrap();
        for (peer, admitted) in [
            ("127.0.0.1", true),
            ("::1", true),
            ("::ffff:10.1.2.3", true),
            ("10.1.2.3", true),
            ("fdaa:0:1::2", true),
            ("192.0.2.1", false),
            ("fdab::1", false),
        ] {
            assert_eq!(admin.shared.admits(peer.parse().unwrap()), admitted, "{peer}");
        }
    }
}
