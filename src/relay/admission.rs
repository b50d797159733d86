//! Admission: limits that concern more than one connection.
//!
//! Owns four limits: attempts per client or server-id ([`RateLimiter`], [`ClientLimiter`]),
//! live connections ([`ConnectionCaps`]), connections that are not upgraded
//! ([`RequestLimits`]) and buffered bytes ([`Budget`]). They count and answer; the caller
//! decides how to refuse and which connection to shed. Must not know connections, HTTP or a
//! clock.
//!
//! 1. Memory is bounded whatever peers do: the limiter by [`RATE_TABLE_MAX`],
//!    the caps by the connections that are live.
//! 2. A full table never causes a refusal: the limiter forgets clients, and so errs on the
//!    side of admission.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::mem;
use std::net::IpAddr;
use std::time::Duration;

use super::counts::closed_list;
use super::keyed_hash::HashKeys;
use crate::config::{
    NOTSENT_LOWAT, PHONE_BACKLOG_MIN, PREFIX_CLIENTS, REQUESTS_BURST, REQUESTS_PART,
    REQUESTS_PER_CLIENT, REQUESTS_PER_SECOND,
};
use crate::time::Instant;

/// The key of limits per client: an IPv4 address, or an IPv6 /64, which is the least that one
/// customer has (RFC 6177). An IPv4-mapped IPv6 address (RFC 4291 §2.5.5.2) is the IPv4
/// address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClientKey {
    /// The whole address.
    V4([u8; 4]),
    /// The first 64 bits of the address.
    V6([u8; 8]),
}

impl From<IpAddr> for ClientKey {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.octets()),
            IpAddr::V6(v6) => {
                let [a, b, c, d, e, f, g, h, ..] = v6.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

/// Maximum number of clients that a [`RateLimiter`] remembers: two generations of 28,672,
/// each the 7/8 that a hash table of 32,768 buckets holds. A bucket takes 24 bytes of entry
/// and 1 of control, so both take 1.6 MB when full.
pub const RATE_TABLE_MAX: usize = 2 * GENERATION_MAX;
const GENERATION_MAX: usize = 32_768 / 8 * 7;

/// Attempts per client: `burst` at once, then `per_minute`; a refused attempt costs nothing.
/// The default key is a client, for upgrades; other uses choose another `K`.
///
/// A token bucket, stored as one instant per client: when its bucket is full again (the
/// generic cell rate algorithm, ITU-T I.371). A client whose bucket is full is like one never
/// seen, so its entry is garbage.
///
/// Clients are in two generations; an attempt moves its client into the current one. When the
/// current generation is one refill time old, or full, it becomes the previous one, and the
/// rest of the previous one is dropped. After a refill time all of that is garbage; if the
/// table was full before, it is the clients with the oldest attempts, which find a full
/// bucket when they return.
///
/// An attacker that rotates over more than [`RATE_TABLE_MAX`] addresses within a refill time
/// (2 minutes by default) is forgotten before each return and never refused, and so are
/// others. One IPv6 /48 does not suffice for that ([`ClientLimiter`]). The alternatives are no
/// better: an unbounded table would still allow those addresses 9,557 attempts a second, and
/// a table that refuses unknown clients when full would let an attacker lock out all other
/// clients. The connection cap and the byte budget hold against such an attacker.
#[derive(Debug)]
pub struct RateLimiter<K = ClientKey> {
    /// Time in which one attempt is refilled; zero turns the limiter off.
    interval: Duration,
    /// Time in which an empty bucket is full again.
    refill: Duration,
    current: HashMap<K, Instant, HashKeys>,
    previous: HashMap<K, Instant, HashKeys>,
    /// When `previous` was last replaced.
    turned: Instant,
}

impl<K: Clone + Eq + Hash> RateLimiter<K> {
    /// Allows each client `burst` attempts at once and then `per_minute` a minute; the
    /// interval is rounded up to whole microseconds. 0 for either turns the limiter off.
    #[must_use]
    pub fn new(per_minute: u32, burst: u32, hash_keys: [u64; 2]) -> Self {
        const MINUTE: u64 = 60_000_000;
        let interval = match (per_minute, burst) {
            (0, _) | (_, 0) => Duration::ZERO,
            _ => Duration::from_micros(MINUTE.div_ceil(u64::from(per_minute))),
        };
        let table = HashMap::with_hasher(HashKeys::new(hash_keys));
        Self {
            interval,
            refill: interval * burst,
            current: table.clone(),
            previous: table,
            turned: Instant::START,
        }
    }

    /// Whether `client` may make an attempt now; if so it is counted.
    pub fn allow(&mut self, client: K, now: Instant) -> bool {
        self.attempt(client, now).is_ok()
    }

    /// Counts an attempt of `client` if it may make one now.
    ///
    /// # Errors
    ///
    /// The time until the next attempt is allowed, unless another one comes before it.
    pub fn attempt(&mut self, client: K, now: Instant) -> Result<(), Duration> {
        if self.is_off() {
            return Ok(());
        }
        if self.current.len() >= GENERATION_MAX || now.since(self.turned) >= self.refill {
            self.turn(now);
        }
        let known = self.previous.remove(&client).unwrap_or(now);
        let full_at = self.current.entry(client).or_insert(known);
        let after = (*full_at).max(now) + self.interval;
        let excess = after.since(now).saturating_sub(self.refill);
        if !excess.is_zero() {
            return Err(excess);
        }
        *full_at = after;
        Ok(())
    }

    /// What [`Self::attempt`] would return; counts nothing.
    ///
    /// # Errors
    /// Those of [`Self::attempt`].
    pub fn check(&self, client: &K, now: Instant) -> Result<(), Duration> {
        let known = self.current.get(client).or_else(|| self.previous.get(client));
        let Some(full_at) = known.filter(|_| !self.is_off()) else { return Ok(()) };
        let after = (*full_at).max(now) + self.interval;
        let excess = after.since(now).saturating_sub(self.refill);
        if excess.is_zero() { Ok(()) } else { Err(excess) }
    }

    fn is_off(&self) -> bool {
        self.interval.is_zero()
    }

    /// Clients remembered, those whose bucket is full again included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.current.len() + self.previous.len()
    }

    /// Whether no client is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn turn(&mut self, now: Instant) {
        mem::swap(&mut self.current, &mut self.previous);
        self.current.clear();
        self.turned = now;
    }
}

/// Attempts per client, and per IPv6 /48: an organisation usually has a /48 (RFC 6177), and
/// with it 65,536 clients. Together they are allowed as much as [`PREFIX_CLIENTS`] clients, so
/// that they cannot fill the table of clients and have all others forgotten.
#[derive(Debug)]
pub struct ClientLimiter {
    clients: RateLimiter,
    prefixes: RateLimiter<[u8; 6]>,
}

impl ClientLimiter {
    /// Allows each client what [`RateLimiter::new`] allows.
    #[must_use]
    pub fn new(per_minute: u32, burst: u32, mut hash_keys: impl FnMut() -> [u64; 2]) -> Self {
        let all = |count: u32| count.saturating_mul(PREFIX_CLIENTS);
        Self {
            clients: RateLimiter::new(per_minute, burst, hash_keys()),
            prefixes: RateLimiter::new(all(per_minute), all(burst), hash_keys()),
        }
    }

    /// Counts an attempt of `client` if it may make one now.
    ///
    /// # Errors
    /// The time until the next attempt is allowed, unless another one comes before it.
    pub fn attempt(&mut self, client: ClientKey, now: Instant) -> Result<(), Duration> {
        let ClientKey::V6([a, b, c, d, e, f, ..]) = client else {
            return self.clients.attempt(client, now);
        };
        let prefix = [a, b, c, d, e, f];
        // What is refused as a client must not count against its neighbours.
        self.prefixes.check(&prefix, now)?;
        self.clients.attempt(client, now)?;
        self.prefixes.attempt(prefix, now)
    }
}

closed_list! {
    /// Why a connection that is not upgraded was closed without an answer.
    pub enum EarlyClose {
        /// Its client has too many of them.
        Connections => "connections",
        /// Its client opens too many of them.
        Rate => "rate",
        /// Their memory is spent.
        Memory => "memory",
    }
}

/// Limits per client on connections that are not upgraded. They begin before TLS and the
/// request head, which are what such a connection costs.
#[derive(Debug)]
pub struct RequestLimits {
    caps: ConnectionCaps,
    rate: ClientLimiter,
}

impl RequestLimits {
    /// The limits of [`crate::config`], or none.
    #[must_use]
    pub fn new(is_on: bool, mut hash_keys: impl FnMut() -> [u64; 2]) -> Self {
        let (count, per_minute) =
            if is_on { (REQUESTS_PER_CLIENT, 60 * REQUESTS_PER_SECOND) } else { (0, 0) };
        Self {
            caps: ConnectionCaps::new(usize::MAX, count, hash_keys()),
            rate: ClientLimiter::new(per_minute, REQUESTS_BURST, hash_keys),
        }
    }

    /// Counts a connection of `client`; each has to be [released](Self::release) once.
    ///
    /// # Errors
    /// The limit that is reached; the connection is not counted.
    pub fn admit(&mut self, client: ClientKey, now: Instant) -> Result<(), EarlyClose> {
        self.caps.admit(client).map_err(|_| EarlyClose::Connections)?;
        self.rate.attempt(client, now).map_err(|_| {
            self.caps.release(client);
            EarlyClose::Rate
        })
    }

    /// A connection of `client` is upgraded or gone.
    pub fn release(&mut self, client: ClientKey) {
        self.caps.release(client);
    }

    /// Whether exactly `clients` are counted, each as often as it occurs there.
    #[must_use]
    pub fn agrees(&self, clients: &[ClientKey]) -> bool {
        self.caps.agrees(clients)
    }
}

/// The cap that refuses a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CapReached {
    /// The cap on all live connections.
    Total,
    /// The cap on live connections of one client.
    PerClient,
}

/// Counts of live connections, in total and per client, with their caps.
#[derive(Debug)]
pub struct ConnectionCaps {
    total: usize,
    /// 0 turns it off, and `by_client` stays empty.
    per_client: u32,
    live: usize,
    /// Clients with a live connection.
    by_client: HashMap<ClientKey, u32, HashKeys>,
}

impl ConnectionCaps {
    /// At most `total` live connections, at most `per_client` of each client; `per_client` 0
    /// turns the latter off.
    #[must_use]
    pub fn new(total: usize, per_client: u32, hash_keys: [u64; 2]) -> Self {
        let by_client = HashMap::with_hasher(HashKeys::new(hash_keys));
        Self { total, per_client, live: 0, by_client }
    }

    /// Counts one connection of `client`; each has to be [released](Self::release) once.
    ///
    /// # Errors
    ///
    /// The cap that is reached; the connection is not counted.
    pub fn admit(&mut self, client: ClientKey) -> Result<(), CapReached> {
        if self.is_full() {
            return Err(CapReached::Total);
        }
        if self.per_client > 0 {
            let count = self.by_client.entry(client).or_insert(0);
            // It is 1 at least, so no entry is left behind that counts nothing.
            if *count >= self.per_client {
                return Err(CapReached::PerClient);
            }
            *count += 1;
        }
        self.live += 1;
        Ok(())
    }

    /// Releases one admitted connection of `client`.
    pub fn release(&mut self, client: ClientKey) {
        debug_assert!(self.live > 0, "released more often than admitted");
        self.live = self.live.saturating_sub(1);
        if self.per_client > 0 {
            let Entry::Occupied(mut count) = self.by_client.entry(client) else {
                debug_assert!(false, "{client:?} released more often than admitted");
                return;
            };
            *count.get_mut() -= 1;
            // Without this the table would keep an entry of every client ever admitted.
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    /// Whether exactly `clients` are counted, each as often as it occurs there.
    #[must_use]
    pub fn agrees(&self, clients: &[ClientKey]) -> bool {
        let mut left = self.by_client.clone();
        if self.per_client > 0 {
            for client in clients {
                let Some(count) = left.get_mut(client).filter(|count| **count > 0) else {
                    return false;
                };
                *count -= 1;
            }
        }
        self.live == clients.len() && left.values().all(|count| *count == 0)
    }

    /// Number of live connections.
    #[must_use]
    pub fn live(&self) -> usize {
        self.live
    }

    /// Maximum number of live connections.
    #[must_use]
    pub fn total(&self) -> usize {
        self.total
    }

    /// Whether the next connection would be refused, whatever its client.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.live >= self.total
    }
}

/// The bytes that all connections hold together, and their limit. Those that are not upgraded
/// may hold a fifth of it; WebSockets may hold what is left.
#[derive(Clone, Debug)]
pub struct Budget {
    limit: usize,
    used: usize,
    /// The part of `used` that is held by connections that are not upgraded.
    requests: usize,
    /// Number of connections for which [`is_holder`] is true.
    holders: usize,
}

impl Budget {
    /// `limit` bytes, none of them used.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self { limit, used: 0, requests: 0, holders: 0 }
    }

    /// One connection that is not upgraded held `old` bytes and holds `new` now.
    pub fn charge_request(&mut self, old: usize, new: usize) {
        debug_assert!(old <= self.requests, "a request gives back more than it was charged");
        self.used = self.used.saturating_sub(old) + new;
        self.requests = self.requests.saturating_sub(old) + new;
    }

    /// One WebSocket, or slot in grace, held `old` bytes and holds `new` now. Charges even bytes beyond the
    /// limit, because they exist; the caller sheds while [`is_exceeded`](Self::is_exceeded).
    pub fn charge(&mut self, old: usize, new: usize) {
        debug_assert!(old <= self.used, "a queue gives back more than it was charged");
        self.used = self.used.saturating_sub(old) + new;
        self.holders = self.holders + usize::from(is_holder(new)) - usize::from(is_holder(old));
    }

    /// Whether `more` bytes may be queued behind a backlog of `backlog` bytes to a
    /// connection that is charged `charged`: the dynamic threshold of Choudhury and
    /// Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches"
    /// (IEEE/ACM Transactions on Networking 6(2), 1998), with α = 1. A backlog may be
    /// as long as what is then free, so one alone takes half the budget, and n that
    /// grow alike take 1/(n+1) each.
    ///
    /// Backlogs do not grow alike: where the first holds half, the threshold would stop the
    /// second at a quarter. A switch then drops packets until the first has drained; here the
    /// second connection would be closed. So 1/(n+1) is always admitted, n being the number
    /// of connections that hold more than 16 KiB, and so is one message of maximum size. If
    /// that exhausts the budget, the largest connection is shed.
    #[must_use]
    pub fn admits(&self, charged: usize, backlog: usize, more: usize) -> bool {
        let backlog = backlog + more;
        let free = self.limit.saturating_sub(self.used + more);
        let others = self.holders - usize::from(is_holder(charged));
        backlog <= free.max(self.limit / (others + 2)).max(PHONE_BACKLOG_MIN)
    }

    /// The limit, in bytes.
    #[must_use]
    pub const fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes in use.
    #[must_use]
    pub const fn used(&self) -> usize {
        self.used
    }

    /// Whether more bytes are in use than the limit.
    #[must_use]
    pub const fn is_exceeded(&self) -> bool {
        self.used > self.limit
    }

    /// Bytes of connections that are not upgraded.
    #[must_use]
    pub const fn requests(&self) -> usize {
        self.requests
    }

    /// Whether connections that are not upgraded hold more than their part.
    #[must_use]
    pub const fn is_requests_exceeded(&self) -> bool {
        self.requests > self.limit / REQUESTS_PART
    }

    /// Number of connections for which [`is_holder`] is true.
    #[must_use]
    pub const fn holders(&self) -> usize {
        self.holders
    }
}

/// Whether a connection charged with this many bytes counts among those that share the
/// budget; one with only a request head or a ping does not.
#[must_use]
pub const fn is_holder(charged: usize) -> bool {
    charged > NOTSENT_LOWAT as usize
}

mod state;
#[cfg(test)]
mod tests;
