//! What a run of the relay is told: limits, timeouts, addresses, log.
//!
//! Owns every default with its reason, and the relations between them as
//! compile-time assertions. Knows nothing of argv or the environment
//! ([`crate::cli`] does) and nothing of the machine (the shell does).

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

/// Everything a run of the relay is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What is served, and where.
    pub serving: Serving,
    /// Address of the metrics listener, on loopback unless somebody is allowed; `None`
    /// turns it off.
    pub metrics_listen: Option<SocketAddr>,
    /// Which networks may ask the metrics listener, beside this machine.
    pub metrics_allow: Vec<IpNet>,
    /// Bounds on what peers may use.
    pub limits: Limits,
    /// How long peers may take.
    pub timeouts: Timeouts,
    /// Over how much time a shut-down spreads the closes of binaries; their phones
    /// follow [`Timeouts::phones_after`] later. Zero: all at once, which makes the
    /// shortest outage where one relay is restarted. Up to [`DRAIN_SECONDS_MAX`].
    pub drain: Duration,
    /// Whom to believe about a client's address.
    pub forwarded: Forwarded,
    /// Whom to ask to wake phones, and as whom; `None` turns push wake off.
    pub push_wake: Option<PushWake>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// The least severe level that is written.
    pub log_level: log::LevelFilter,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            serving: Serving::default(),
            metrics_listen: Some(SocketAddr::from(([127, 0, 0, 1], 9090))),
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
        /// Where peers dial.
        https: Listen,
        /// What to serve.
        pair: PairFiles,
    },
    /// TLS with a certificate that is fetched and renewed.
    Automatic {
        /// Where peers dial.
        https: Listen,
        /// Where the certificate authority asks.
        http: Listen,
        /// What to fetch, and from whom.
        acme: Acme,
    },
}

impl Default for Serving {
    fn default() -> Self {
        Self::Plain(Listen::default())
    }
}

impl Serving {
    /// Every address to listen on, and what is spoken there; where peers dial first.
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

    /// The only host name that is served; `None`: any.
    #[must_use]
    pub fn domain(&self) -> Option<&str> {
        match self {
            Self::Automatic { acme, .. } => Some(&acme.domain),
            _ => None,
        }
    }
}

/// What is spoken on an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerProtocol {
    /// HTTP and WebSocket as they are.
    Plain,
    /// The same through TLS.
    Tls,
    /// HTTP for the certificate authority only.
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
    /// The name it is for, in lower case.
    pub domain: String,
    /// Where account key and certificate are kept.
    pub cache: PathBuf,
    /// The certificate authority's directory, an `https` URL.
    pub directory: String,
    /// PEM file of the roots to trust when talking to it; `None`: the web's.
    pub ca: Option<PathBuf>,
    /// As which of its customers; `None`: it is open to all.
    pub account: Option<ExternalAccount>,
}

/// Who the operator is to a certificate authority (RFC 8555 §7.3.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalAccount {
    /// `--acme-eab-kid`: the name of the key.
    pub kid: String,
    /// `--acme-eab-hmac-file`: the key, base64url.
    pub hmac_file: PathBuf,
    /// Where systemd hands keys over (`$CREDENTIALS_DIRECTORY`), if it does.
    pub credentials: Option<PathBuf>,
}

/// Let's Encrypt, the default of `--acme-directory`.
pub const ACME_DIRECTORY: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// One address that peers dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Port 0 lets the kernel choose.
    pub address: SocketAddr,
    /// Every connection opens with a PROXY header, which names the client.
    pub proxy_protocol: bool,
}

impl Default for Listen {
    fn default() -> Self {
        // Loopback only: nothing is exposed by accident.
        Self::at(SocketAddr::from(([127, 0, 0, 1], 8080)))
    }
}

impl Listen {
    /// Where clients dial directly.
    #[must_use]
    pub const fn at(address: SocketAddr) -> Self {
        Self { address, proxy_protocol: false }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// `time=… level=… msg=… key=value`
    Logfmt,
    /// One JSON object a line.
    Json,
}

/// Whom to believe about a client's address when a proxy stands in front.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// Take the client address from X-Forwarded-For.
    pub trust_x_forwarded_for: bool,
    /// Proxies that may name a client; `None` means anyone in a PROXY header, and
    /// loopback and private ranges in X-Forwarded-For.
    pub trusted_proxies: Option<Vec<IpNet>>,
}

/// Whom to ask to wake phones, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushWake {
    /// As whom.
    pub account: ServiceAccount,
    /// FCM, as an https URL without a slash at its end; a test's own server.
    pub endpoint: String,
    /// PEM file of the only authorities that may vouch for the servers asked;
    /// `None` means those that browsers know.
    pub ca: Option<PathBuf>,
}

/// Where FCM is.
pub const FCM_ENDPOINT: &str = "https://fcm.googleapis.com";

/// What a Google service account's JSON key says, checked for its form. All of it
/// came from a secret, so none of it is printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ServiceAccount {
    /// The Firebase project, as it stands in a URL's path.
    pub project_id: String,
    /// The account's name.
    pub client_email: String,
    /// Where access tokens are had: an https URL.
    pub token_uri: String,
    /// Which of the account's keys this is, if it says so.
    pub private_key_id: Option<String>,
    /// The key in PEM; whether it is one is the shell's to find out.
    pub private_key: String,
}

impl fmt::Debug for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServiceAccount(..)")
    }
}

/// The most bytes of a request head, request line to blank line (else 431).
pub const HEAD_MAX: usize = 8 * 1024;
/// The most header fields of a request (else 431).
pub const HEADERS_MAX: usize = 64;
/// The most bytes of a PROXY header (else closed). Addresses take 52, and a sender
/// should stay within the 536 bytes of the smallest TCP segment; but one may pass a
/// client's certificate on, and nginx stops here too. It waits in the kernel, so
/// it costs us nothing.
pub const PROXY_HEADER_MAX: usize = 4 * 1024;
/// The most bytes of one message after reassembly (else 1009).
pub const MESSAGE_MAX: usize = 256 * 1024;
/// The deepest nesting of a JSON frame. Go's `encoding/json`, which the daemons
/// use, stops at 10,000 levels; the envelope is one of them.
pub const NESTING_MAX: usize = 9_999;
/// The most phones on one server-id (else 4429).
pub const PHONES_PER_SERVER_MAX: usize = 16;
/// The most bytes that the envelope adds to a phone's frame.
pub const ENVELOPE_MAX: usize = 64;
/// Unsent bytes that may be queued to one phone, beyond the kernel's buffer, however
/// little of the byte budget is free: one largest message. Beyond it the budget
/// decides (`Budget::admits`), and the phone is closed 1011 `phone backlog full`.
pub const PHONE_BACKLOG_MIN: usize = MESSAGE_MAX + ENVELOPE_MAX;
/// Unsent bytes queued to one binary at which its phones are no longer read.
pub const BINARY_HIGH_WATER: usize = 256 * 1024;
/// Unsent bytes queued to one binary at which its phones are read again.
pub const BINARY_LOW_WATER: usize = 64 * 1024;
/// Bytes read and thrown away after a close frame or a refusal, so that the
/// kernel does not answer unread input with a reset that destroys it.
pub const DRAIN_MAX: usize = 4 * 1024 * 1024;
/// The most `--drain-seconds`.
pub const DRAIN_SECONDS_MAX: u64 = 8;
/// Connections for which the tables have room from the start, in memory that the kernel
/// gives when it is touched. Tables that grow from nothing leave behind what they had
/// been: some 20 bytes for each of 10,000 connections.
pub const ROOM: usize = 16 * 1024;
/// Descriptors kept for everything that is not a WebSocket.
pub const DESCRIPTORS_RESERVED: usize = 64;
/// Least `--buffer-memory`, in bytes.
pub const BUFFER_MEMORY_MIN: usize = 1024 * 1024;
/// Default of `--buffer-memory`, in bytes, where no limit on memory makes it less.
pub const BUFFER_MEMORY: usize = 64 * 1024 * 1024;
/// What one socket is read in a turn at most: the size of the shared receive buffer. Eight
/// messages of 16 KiB in one read cost a seventh less than in three; but a flood of the
/// smallest frames delays every other connection by as long as a buffer of them takes, some
/// 5 ms, so it is not larger. Only what is used of it is resident.
pub const READ_SIZE: usize = 144 * 1024;
/// Unsent bytes that may sit in the kernel beyond what is in flight
/// (`TCP_NOTSENT_LOWAT`), so that a ping overtakes queued data.
pub const NOTSENT_LOWAT: u32 = 16 * 1024;

const _: () = assert!(BINARY_LOW_WATER < BINARY_HIGH_WATER);
// Half of the default budget holds an attachment of 16 MiB, which is 30 MB of frames
// when base64 is applied twice.
const _: () = assert!(BUFFER_MEMORY / 2 > 30_000_000);
// A relay that cannot queue one largest message, and its copy to a phone, would shed
// every peer that sends one.
const _: () = assert!(BUFFER_MEMORY_MIN > 2 * PHONE_BACKLOG_MIN);
const _: () = assert!(HEAD_MAX < MESSAGE_MAX);

/// Bounds on what peers may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Live WebSockets, binaries and phones in one pool. `None`: what
    /// `RLIMIT_NOFILE` leaves after [`DESCRIPTORS_RESERVED`].
    pub connections: Option<usize>,
    /// Concurrent WebSockets per client address (IPv6: per /64); 0 is off.
    pub connections_per_ip: u32,
    /// Upgrade attempts per client address and minute; 0 is off.
    pub rate_per_minute: u32,
    /// Upgrade attempts a client address may make at once.
    pub rate_burst: u32,
    /// Bytes that all queues of all connections may hold together.
    pub buffer_memory: usize,
    /// Whether `--buffer-memory` was given; a default gives way to the memory limit of
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

/// How long peers may take. Constants of the protocol, not flags: tests pass
/// shorter ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Between two pings of one connection.
    pub ping_interval: Duration,
    /// From when a ping was due to when its pong must have come.
    pub pong: Duration,
    /// From a probe of a claimed slot to when its pong must have come.
    pub probe: Duration,
    /// A slot is kept for its binary this long after it left.
    pub grace: Duration,
    /// From accept to the end of the request head.
    pub head: Duration,
    /// From the first byte of a frame to the end of its message.
    pub message: Duration,
    /// With bytes queued, the longest time in which none of them drained.
    pub write: Duration,
    /// From our close frame or refusal to the end of the socket.
    pub linger: Duration,
    /// Longest time in which a close that waits behind queued messages may wait.
    pub close_backlog: Duration,
    /// At a shut-down, from a binary's close to those of its phones: for the binary
    /// to be the first at its new home, and for a load balancer that checks twice a
    /// second to see that this relay leaves.
    pub phones_after: Duration,
    /// From the signal to the end of the process.
    pub shutdown: Duration,
}

impl Timeouts {
    /// The times of the protocol.
    pub const STANDARD: Self = Self {
        ping_interval: Duration::from_secs(30),
        pong: Duration::from_secs(30),
        probe: Duration::from_secs(10),
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

// The promise: a dead peer's slot is free 60 s after its death at the latest.
// Death just after a pong is noticed one interval plus one pong timeout later.
const _: () =
    assert!(Timeouts::STANDARD.ping_interval.as_secs() + Timeouts::STANDARD.pong.as_secs() == 60);
// A probe must be able to end before the next ordinary ping would, or takeover
// would never be faster than the heartbeat.
const _: () = assert!(Timeouts::STANDARD.probe.as_secs() < Timeouts::STANDARD.pong.as_secs());
// The last phones that are told have a moment to answer before the process ends.
const _: () = assert!(
    DRAIN_SECONDS_MAX + Timeouts::STANDARD.phones_after.as_secs()
        < Timeouts::STANDARD.shutdown.as_secs()
);

impl Default for Timeouts {
    fn default() -> Self {
        Self::STANDARD
    }
}
