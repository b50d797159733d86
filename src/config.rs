//! Configuration of one run: limits, timeouts, addresses, logging.
//!
//! Owns every default with its reason, and the relations between them as compile-time
//! assertions. Knows nothing of argv or the environment ([`crate::cli`] does) and nothing of
//! the machine (`server/` does).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

/// Default of `--metrics-listen`: loopback, Prometheus' own port.
pub const METRICS_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);

/// The configuration of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What is served, and where.
    pub serving: Serving,
    /// Address of the metrics listener. It is a loopback address unless
    /// [`metrics_allow`](Self::metrics_allow) names networks; `None` turns the listener off.
    pub metrics_listen: Option<SocketAddr>,
    /// Networks that may query the metrics listener, in addition to this machine.
    pub metrics_allow: Vec<IpNet>,
    /// Bounds on what peers may use.
    pub limits: Limits,
    /// Time limits for peers.
    pub timeouts: Timeouts,
    /// The time over which a shut-down spreads the closes of binaries; their phones follow
    /// [`Timeouts::phones_after`] later. Zero closes all binaries at once, which makes the
    /// shortest outage where one relay is restarted. Up to [`DRAIN_SECONDS_MAX`].
    pub drain: Duration,
    /// Which proxies are trusted to name a client's address.
    pub forwarded: Forwarded,
    /// The push service and the account to use there; `None` turns push wake off.
    pub push_wake: Option<PushWake>,
    /// Format of log lines.
    pub log_format: LogFormat,
    /// The least severe level that is logged.
    pub log_level: log::LevelFilter,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            serving: Serving::default(),
            metrics_listen: Some(METRICS_LISTEN),
            metrics_allow: Vec::new(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            drain: Duration::ZERO,
            forwarded: Forwarded::default(),
            push_wake: None,
            log_format: LogFormat::Logfmt,
            log_level: log::LevelFilter::Info,
        }
    }
}

/// What is served, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Serving {
    /// Plain HTTP/WebSocket.
    Plain(Listen),
    /// TLS with the operator's own certificate.
    Own {
        /// Where peers connect.
        https: Listen,
        /// The certificate chain and key to serve.
        pair: PairFiles,
    },
    /// TLS with a certificate that the relay obtains and renews (ACME).
    Automatic {
        /// Where peers connect.
        https: Listen,
        /// Where the certificate authority validates challenges.
        http: Listen,
        /// The certificate to obtain, and the certificate authority.
        acme: Acme,
    },
}

impl Default for Serving {
    fn default() -> Self {
        Self::Plain(Listen::default())
    }
}

impl Serving {
    /// Every address to listen on, with its protocol; the address for peers comes first.
    pub fn listens(&self) -> impl Iterator<Item = (Listen, ListenerProtocol)> {
        let (main, other) = match self {
            Self::Plain(listen) => ((*listen, ListenerProtocol::Plain), None),
            Self::Own { https, .. } => ((*https, ListenerProtocol::Tls), None),
            Self::Automatic { https, http, .. } => {
                ((*https, ListenerProtocol::Tls), Some((*http, ListenerProtocol::Challenges)))
            }
        };
        std::iter::once(main).chain(other)
    }

    /// The only host name that is served; `None` serves any.
    #[must_use]
    pub fn domain(&self) -> Option<&str> {
        match self {
            Self::Automatic { acme, .. } => Some(&acme.domain),
            _ => None,
        }
    }
}

/// The protocol on one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerProtocol {
    /// HTTP and WebSocket without TLS.
    Plain,
    /// HTTP and WebSocket over TLS.
    Tls,
    /// HTTP for ACME challenges and the health endpoints only.
    Challenges,
}

/// PEM files of a certificate chain, leaf first, and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairFiles {
    /// `--tls-cert`
    pub certificate: PathBuf,
    /// `--tls-key`: PKCS#8, PKCS#1 or SEC1, without a passphrase.
    pub key: PathBuf,
    /// `$CREDENTIALS_DIRECTORY`, in which systemd keeps secrets for one service alone.
    pub credentials: Option<PathBuf>,
}

/// An automatic certificate (ACME, RFC 8555).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acme {
    /// The host name of the certificate, in lower case.
    pub domain: String,
    /// Directory that stores the account key and the certificate.
    pub cache: PathBuf,
    /// The certificate authority's directory, an `https` URL.
    pub directory: String,
    /// PEM file of the roots to trust for the connection to the certificate authority; `None`
    /// uses the public web roots.
    pub ca: Option<PathBuf>,
    /// External account binding; `None` for a certificate authority that needs none.
    pub account: Option<ExternalAccount>,
}

/// External account binding of ACME (RFC 8555 §7.3.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalAccount {
    /// `--acme-eab-kid`: the name of the key.
    pub kid: String,
    /// `--acme-eab-hmac-file`: the key, base64url.
    pub hmac_file: PathBuf,
    /// `$CREDENTIALS_DIRECTORY`, if systemd passes credentials.
    pub credentials: Option<PathBuf>,
}

/// Let's Encrypt, the default of `--acme-directory`.
pub const ACME_DIRECTORY: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// One listening address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Port 0 lets the kernel choose.
    pub address: SocketAddr,
    /// Every connection begins with a PROXY header, which names the client.
    pub proxy_protocol: bool,
}

impl Default for Listen {
    fn default() -> Self {
        // Loopback only, so that nothing is exposed by accident.
        Self::at(SocketAddr::from(([127, 0, 0, 1], 8080)))
    }
}

impl Listen {
    /// An address to which clients connect directly.
    #[must_use]
    pub const fn at(address: SocketAddr) -> Self {
        Self { address, proxy_protocol: false }
    }
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// `time=… level=… msg=… key=value`
    Logfmt,
    /// One JSON object a line.
    Json,
}

/// Which proxies are trusted to name a client's address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// Take the client address from X-Forwarded-For.
    pub trust_x_forwarded_for: bool,
    /// Proxies that may name a client. `None` accepts a PROXY header from any peer, and
    /// X-Forwarded-For from loopback, private and link-local addresses.
    pub trusted_proxies: Option<Vec<IpNet>>,
}

/// The push service and the account to use there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushWake {
    /// The service account.
    pub account: ServiceAccount,
    /// FCM, as an https URL without a trailing slash; tests pass their own server.
    pub endpoint: String,
    /// PEM file of the only roots to trust for the servers of push wake; `None` uses the
    /// public web roots.
    pub ca: Option<PathBuf>,
}

/// The FCM endpoint.
pub const FCM_ENDPOINT: &str = "https://fcm.googleapis.com";

/// Fields of a Google service account's JSON key, checked for their form. All of them come
/// from a secret, so `Debug` prints none.
#[derive(Clone, PartialEq, Eq)]
pub struct ServiceAccount {
    /// The Firebase project, as it appears in a URL's path.
    pub project_id: String,
    /// The account's name.
    pub client_email: String,
    /// The https URL that issues access tokens.
    pub token_uri: String,
    /// The identifier of the key, if the file has one.
    pub private_key_id: Option<String>,
    /// The key in PEM. The shell checks that it is a valid key.
    pub private_key: String,
}

impl fmt::Debug for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServiceAccount(..)")
    }
}

/// Maximum size of a request head, request line to blank line, in bytes (else 431).
pub const HEAD_MAX: usize = 8 * 1024;
/// Maximum number of header fields of a request (else 431).
pub const HEADERS_MAX: usize = 64;
/// Maximum size of a PROXY header, in bytes (else closed). Addresses take 52, and a sender
/// should stay within the 536 bytes of the smallest TCP segment; but a load balancer may pass
/// on a client's certificate, and nginx stops here too. The header waits in the kernel, so a
/// large one costs the relay no memory.
pub const PROXY_HEADER_MAX: usize = 4 * 1024;
/// Maximum size of one message after reassembly, in bytes (else 1009).
pub const MESSAGE_MAX: usize = 256 * 1024;
/// Maximum nesting of a JSON frame. Go's `encoding/json`, which the daemons use, stops at
/// 10,000 levels; the envelope is one of them.
pub const NESTING_MAX: usize = 9_999;
/// Maximum number of phones on one server-id (else 4429).
pub const PHONES_PER_SERVER_MAX: usize = 16;
/// Maximum size that the envelope adds to a phone's frame, in bytes.
pub const ENVELOPE_MAX: usize = 64;
/// Unsent bytes that may always be queued to one phone, beyond the kernel's buffer, however
/// little of the byte budget is free: one message of maximum size. Beyond it the budget
/// decides (`Budget::admits`); a phone that the budget does not admit is closed with 1011
/// `phone backlog full`.
pub const PHONE_BACKLOG_MIN: usize = MESSAGE_MAX + ENVELOPE_MAX;
/// High watermark of a binary's outbox, in bytes: above it, its phones are no longer read.
pub const BINARY_HIGH_WATER: usize = 256 * 1024;
/// Low watermark of a binary's outbox, in bytes: at or below it, its phones are read again.
pub const BINARY_LOW_WATER: usize = 64 * 1024;
/// Bytes that are read and discarded after a close frame or a refusal, so that the kernel
/// does not answer unread input with a reset, which would destroy the close frame or refusal.
pub const DRAIN_MAX: usize = 4 * 1024 * 1024;
/// Maximum of `--drain-seconds`.
pub const DRAIN_SECONDS_MAX: u64 = 8;
/// Initial capacity of the tables, in connections; the kernel provides the memory when it is
/// first touched. Tables that grow from empty leave freed allocations of their earlier sizes
/// behind: about 20 bytes for each of 10,000 connections.
pub const INITIAL_CAPACITY: usize = 16 * 1024;
/// Connections that may wait to be accepted, if the kernel (`net.core.somaxconn`) allows as
/// many.
pub const LISTEN_BACKLOG: u32 = 4096;
/// File descriptors reserved for everything that is not a WebSocket.
pub const DESCRIPTORS_RESERVED: usize = 64;
/// Maximum number of connections of one client that are not upgraded. They live 10 s at most
/// (head and linger), so a client that keeps to its rate has no need of more.
pub const REQUESTS_PER_CLIENT: u32 = 64;
/// Connections that one client may open each second. With an RSA key of 2048 bits the handshakes
/// of that many take 4 % of a core.
pub const REQUESTS_PER_SECOND: u32 = 50;
/// Connections that one client may open at once.
pub const REQUESTS_BURST: u32 = 200;
/// One part in this many of the byte budget is for connections that are not upgraded: at
/// 64 MiB, 2,600 TLS handshakes of 4.8 KiB.
pub const REQUESTS_PART: usize = 5;
/// All clients of an IPv6 /48 may do as much as this many clients.
pub const PREFIX_CLIENTS: u32 = 64;
/// Minimum of `--buffer-memory`, in bytes.
pub const BUFFER_MEMORY_MIN: usize = 1024 * 1024;
/// Default of `--buffer-memory`, in bytes, unless a memory limit makes it smaller.
pub const BUFFER_MEMORY: usize = 64 * 1024 * 1024;
/// Maximum bytes read from one socket per turn: the size of the shared receive buffer. Eight
/// messages of 16 KiB cost a seventh less CPU time in one read than in three. A larger buffer
/// would delay other connections: a full one of the smallest frames takes about 5 ms. Only
/// the used part is resident.
pub const READ_SIZE: usize = 144 * 1024;
/// Unsent bytes that may be in the kernel beyond those in flight (`TCP_NOTSENT_LOWAT`), so
/// that a ping overtakes queued data.
pub const NOTSENT_LOWAT: u32 = 16 * 1024;

/// Receive buffer of a socket (`SO_RCVBUF`), in bytes; the kernel doubles it for its own
/// overhead and caps it at `net.core.rmem_max` (208 KiB by default). Without it the kernel lets
/// a peer grow its window to 6 MiB or more, which waits in the kernel's memory for as long as
/// the relay does not read the peer. A window of 256 KiB carries 20 Mbit/s over a round trip
/// of 100 ms; a message has at most as many bytes.
pub const RECEIVE_BUFFER: usize = 256 * 1024;

const _: () = assert!(BINARY_LOW_WATER < BINARY_HIGH_WATER);
// Half of the default budget holds an attachment of 16 MiB, which is 30 MB of frames when
// base64 is applied twice.
const _: () = assert!(BUFFER_MEMORY / 2 > 30_000_000);
// A relay that cannot queue one message of maximum size and its copy to a phone would shed
// every peer that sends one.
const _: () = assert!(BUFFER_MEMORY_MIN > 2 * PHONE_BACKLOG_MIN);
const _: () = assert!(HEAD_MAX < MESSAGE_MAX);
// The fifth for connections that are not upgraded holds one of each client's that is large.
const _: () = assert!(BUFFER_MEMORY_MIN / REQUESTS_PART > 2 * HEAD_MAX);

/// Bounds on what peers may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of live WebSockets, binaries and phones together. `None`: what
    /// `RLIMIT_NOFILE` leaves after [`DESCRIPTORS_RESERVED`].
    pub connections: Option<usize>,
    /// Concurrent WebSockets per client address (IPv6: per /64); 0 turns the limit off.
    pub connections_per_ip: u32,
    /// Upgrade attempts per client address and minute; 0 turns the limit off.
    pub rate_per_minute: u32,
    /// Burst of upgrade attempts of one client address.
    pub rate_burst: u32,
    /// Bytes that all queues of all connections may hold together.
    pub buffer_memory: usize,
    /// Whether `--buffer-memory` was given; only the default yields to the memory limit of
    /// the control group.
    pub is_buffer_memory_given: bool,
    /// See [`MESSAGE_MAX`].
    pub message: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: None,
            connections_per_ip: 0,
            rate_per_minute: 10,
            rate_burst: 20,
            buffer_memory: BUFFER_MEMORY,
            is_buffer_memory_given: false,
            message: MESSAGE_MAX,
        }
    }
}

/// Time limits for peers. Constants of the protocol, not flags; tests pass shorter ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Interval between two pings of one connection.
    pub ping_interval: Duration,
    /// From a ping's due time to the deadline of its pong.
    pub pong: Duration,
    /// From when the probe's ping has left the outbox of a claimed slot's holder to the
    /// deadline of its pong.
    pub probe: Duration,
    /// From the claim to that deadline at the latest, whether the ping has left or not.
    pub probe_max: Duration,
    /// How long a slot is kept after its binary has disconnected.
    pub grace: Duration,
    /// From accept to the end of the request head.
    pub head: Duration,
    /// From the first byte of a frame to the end of its message.
    pub message: Duration,
    /// With bytes queued, the longest time without write progress.
    pub write: Duration,
    /// From our close frame or refusal to the disconnect.
    pub linger: Duration,
    /// How long a close frame may wait behind queued messages.
    pub close_backlog: Duration,
    /// At a shut-down, from a binary's close to those of its phones. The delay lets the
    /// binary connect to another relay before its phones do, and lets a load balancer that
    /// checks twice a second see that this relay is draining.
    pub phones_after: Duration,
    /// From the signal to the end of the process.
    pub shutdown: Duration,
}

impl Timeouts {
    /// The timeouts of the protocol.
    pub const STANDARD: Self = Self {
        ping_interval: Duration::from_secs(30),
        pong: Duration::from_secs(30),
        probe: Duration::from_secs(10),
        probe_max: Duration::from_secs(30),
        grace: Duration::from_secs(30),
        head: Duration::from_secs(5),
        message: Duration::from_secs(30),
        write: Duration::from_secs(10),
        linger: Duration::from_secs(5),
        close_backlog: Duration::from_secs(30),
        phones_after: Duration::from_secs(1),
        shutdown: Duration::from_secs(10),
    };
}

// Guarantee: the slot of a dead peer is free at most 60 s after its death. A peer that dies
// just after a pong is detected one interval plus one pong timeout later.
const _: () =
    assert!(Timeouts::STANDARD.ping_interval.as_secs() + Timeouts::STANDARD.pong.as_secs() == 60);
// A probe must time out sooner than an ordinary ping does, or takeover would never be faster
// than the heartbeat.
const _: () = assert!(Timeouts::STANDARD.probe.as_secs() < Timeouts::STANDARD.pong.as_secs());
const _: () = assert!(Timeouts::STANDARD.probe_max.as_secs() <= Timeouts::STANDARD.pong.as_secs());
// The phones that are closed last have time to answer before the process ends.
const _: () = assert!(
    DRAIN_SECONDS_MAX + Timeouts::STANDARD.phones_after.as_secs()
        < Timeouts::STANDARD.shutdown.as_secs()
);

impl Default for Timeouts {
    fn default() -> Self {
        Self::STANDARD
    }
}
