//! TLS of one connection, at rest from its first byte: the relay's record layer at both ends,
//! with keys from a seed.
//!
//! Owns both ends, what each keeps of a record, and the damage done to records on their way.
//! Must not know what is sent. Without TLS bytes pass unchanged.
//!
//! 1. Keys, version, suite and the first sequence numbers come from the seed of the run, so
//!    it replays. Some sessions begin a few records before a key has to be renewed.
//! 2. The relay's end is saved and restored after each call.
//! 3. An observer reads what the relay sends, as soon as a record is whole.

use std::collections::VecDeque;

use pyrycode_relay::protocol::transport::TransportBuffered;
use pyrycode_relay::server::net::tls_record::{RECORD_MAX, RecordLayer, SECRET_MAX, Suite};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::faults::Faults;
use crate::peer::Seen;
use crate::replay::seeds;
use crate::wire;
use crate::world::{PeerId, World, secs, text};

/// The most that the relay seals at once.
const SEAL_MAX: usize = 4 * RECORD_MAX;
/// The same if it has not sent what it sealed before.
const SEAL_SLOW: usize = 2 * RECORD_MAX;
/// The records of AES-GCM that one key protects (RFC 8446 §5.5).
const RECORDS_PER_KEY: u64 = 1 << 24;

/// The session of one connection, if it has one.
#[derive(Debug, Default)]
pub(crate) struct Tls(Option<Box<Session>>);

#[derive(Debug)]
struct Session {
    peer: End,
    relay: End,
    observer: End,
    /// Sealed by the relay and not yet on the link.
    unsent: Vec<u8>,
    /// The same, and what is on its way, before it was sealed, as far as the observer has not
    /// read it.
    accepted: VecDeque<u8>,
    /// FIN follows what is unsent.
    is_ending: bool,
    /// The bit to change in what the peer says next, and in what the relay sends next.
    damage: [Option<usize>; 2],
    /// The peer leaves without close_notify.
    is_rude: bool,
}

/// One end, with its incomplete record.
#[derive(Debug)]
struct End {
    records: RecordLayer,
    waiting: Vec<u8>,
}

impl End {
    fn new(records: RecordLayer) -> Self {
        Self { records, waiting: Vec::new() }
    }

    /// Opens what is complete; answers of the protocol are appended to `replies`.
    fn open(&mut self, bytes: &[u8], replies: &mut Vec<u8>) -> Vec<u8> {
        self.waiting.extend_from_slice(bytes);
        let opened = self.records.open(&mut self.waiting, replies);
        let plain = self.waiting[..opened.plain].to_vec();
        self.waiting.drain(..opened.used);
        if self.records.is_over() {
            self.waiting.clear();
        }
        plain
    }

    fn restore(&mut self) {
        if let Some(saved) = self.records.save() {
            self.records = RecordLayer::restore(&saved).expect("it was saved");
        }
    }
}

impl Session {
    fn new(rng: &mut StdRng) -> Self {
        let suite = Suite::ALL[rng.random_range(0..Suite::ALL.len())];
        let secrets: [[u8; SECRET_MAX]; 2] =
            [(); 2].map(|()| std::array::from_fn(|_| rng.random()));
        let is_13 = rng.random_bool(0.7);
        let is_near = is_13 && rng.random_bool(0.3);
        let numbers = [(); 2].map(|()| match is_near {
            true => RECORDS_PER_KEY - rng.random_range(2..9),
            false => rng.random_range(0..1000),
        });
        let end = |send: usize, receive: usize| {
            let both = [send, receive].map(|n| (numbers[n], &secrets[n]));
            let records = if is_13 {
                let len = suite.secret_len();
                let [send, receive] = both.map(|(number, secret)| (number, &secret[..len]));
                RecordLayer::tls13(suite, send, receive)
            } else {
                let len = if suite == Suite::Aes128Gcm { 16 } else { 32 };
                let [send, receive] =
                    both.map(|(number, secret)| (number, &secret[..len], &secret[36..]));
                RecordLayer::tls12(suite, send, receive)
            };
            End::new(records.expect("lengths fit the suite"))
        };
        Self {
            peer: end(0, 1),
            relay: end(1, 0),
            observer: end(0, 1),
            unsent: Vec::new(),
            accepted: VecDeque::new(),
            is_ending: false,
            damage: [None; 2],
            is_rude: false,
        }
    }
}

/// Changes the bit that is to be changed, if there is one.
fn damage(bit: &mut Option<usize>, bytes: &mut [u8]) {
    if !bytes.is_empty()
        && let Some(bit) = bit.take()
    {
        let bit = bit % (8 * bytes.len());
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

/// The peer's end.
impl Tls {
    pub(crate) fn seeded(rng: &mut StdRng) -> Self {
        Self(Some(Box::new(Session::new(rng))))
    }

    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// The peer sends bytes.
    pub(crate) fn say(&mut self, bytes: &[u8], link: &mut VecDeque<u8>) {
        let Some(session) = &mut self.0 else { return link.extend(bytes) };
        let mut sealed = Vec::new();
        // After a fault it says nothing more.
        let _ = session.peer.records.seal(&[bytes], &mut sealed);
        damage(&mut session.damage[0], &mut sealed);
        link.extend(sealed);
    }

    /// The peer sends close_notify, ahead of its FIN.
    pub(crate) fn say_end(&mut self, link: &mut VecDeque<u8>) {
        let Some(session) = self.0.as_mut().filter(|session| !session.is_rude) else { return };
        let mut sealed = Vec::new();
        session.peer.records.seal_end(&mut sealed);
        link.extend(sealed);
    }

    /// The peer stops within a record of these bytes, and will not say that it ends.
    pub(crate) fn cut_off(&mut self, bytes: &[u8], left: usize, link: &mut VecDeque<u8>) {
        let Some(session) = &mut self.0 else { return };
        session.is_rude = true;
        let mut sealed = Vec::new();
        let _ = session.peer.records.seal(&[bytes], &mut sealed);
        sealed.truncate(left % sealed.len().max(1));
        link.extend(sealed);
    }

    /// Changes a bit in what the peer sends next, or in what the relay does.
    pub(crate) fn damage_next(&mut self, is_peers: bool, bit: usize) {
        if let Some(session) = &mut self.0 {
            session.damage[usize::from(!is_peers)] = Some(bit);
        }
    }

    /// The peer has received bytes; returns them as the relay said them.
    pub(crate) fn hear(&mut self, bytes: Vec<u8>, link: &mut VecDeque<u8>) -> Vec<u8> {
        let Some(session) = &mut self.0 else { return bytes };
        let mut replies = Vec::new();
        let plain = session.peer.open(&bytes, &mut replies);
        link.extend(replies);
        plain
    }

    /// Whether the peer can tell that nothing was cut off in front of a FIN.
    pub(crate) fn is_complete(&self) -> bool {
        self.0.as_ref().is_none_or(|session| session.peer.records.has_ended())
    }

    /// Whether an end has received what it cannot read.
    pub(crate) fn is_damaged(&self) -> bool {
        self.0.as_ref().is_some_and(|session| {
            let End { records, waiting } = &session.peer;
            records.fault().is_some() || !waiting.is_empty()
        })
    }
}

/// The relay's end.
impl Tls {
    /// Replaces bytes that were read by the data in complete records.
    pub(crate) fn open(&mut self, bytes: &mut Vec<u8>) {
        if let Some(session) = &mut self.0 {
            *bytes = session.relay.open(bytes, &mut session.unsent);
            session.relay.restore();
        }
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.0.as_ref().is_some_and(|session| session.relay.records.fault().is_some())
    }

    /// Whether the peer's close_notify was read.
    pub(crate) fn has_ended(&self) -> bool {
        self.0.as_ref().is_some_and(|session| session.relay.records.has_ended())
    }

    /// Seals the first of `bytes`, and returns how many.
    pub(crate) fn seal(&mut self, bytes: &[u8], is_slow: bool) -> usize {
        let Some(session) = &mut self.0 else { return 0 };
        let most = if is_slow { SEAL_SLOW } else { SEAL_MAX };
        let bytes = &bytes[..bytes.len().min(most)];
        let sealed = session.relay.records.seal(&[bytes], &mut session.unsent);
        sealed.expect("the session is not broken");
        session.relay.restore();
        session.accepted.extend(bytes);
        bytes.len()
    }

    /// Seals close_notify, behind which FIN follows.
    pub(crate) fn seal_end(&mut self) {
        if let Some(session) = &mut self.0 {
            session.relay.records.seal_end(&mut session.unsent);
            session.is_ending = true;
        }
    }

    /// Whether FIN is due, once.
    pub(crate) fn takes_end(&mut self) -> bool {
        let Some(session) = &mut self.0 else { return false };
        session.unsent.is_empty() && std::mem::take(&mut session.is_ending)
    }

    pub(crate) fn unsent(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |session| &session.unsent)
    }

    /// The first `count` unsent bytes are on the link.
    pub(crate) fn on_sent(&mut self, count: usize) {
        if let Some(session) = &mut self.0 {
            session.unsent.drain(..count);
        }
    }

    /// What reaches the link of bytes that the relay sends, and what an observer reads in them.
    pub(crate) fn observe(&mut self, sent: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let mut on_link = sent.to_vec();
        let Some(session) = &mut self.0 else { return (on_link, sent.to_vec()) };
        let plain = session.observer.open(sent, &mut Vec::new());
        session.accepted.drain(..plain.len());
        damage(&mut session.damage[1], &mut on_link);
        (on_link, plain)
    }

    /// Accepted from the relay, and not yet seen by the observer.
    pub(crate) fn accepted(&self) -> Vec<u8> {
        self.0.as_ref().map_or(Vec::new(), |session| session.accepted.iter().copied().collect())
    }

    pub(crate) fn buffered(&self) -> TransportBuffered {
        self.0.as_ref().map_or(TransportBuffered::default(), |session| TransportBuffered {
            unread: session.relay.waiting.len(),
            unsent: session.unsent.len(),
        })
    }
}

/// The same peers do the same with and without TLS; returns what each received.
fn transcript(seed: u64, tls_keys: Option<StdRng>, faults: Faults) -> Vec<(Vec<Seen>, usize)> {
    let mut world = World::new();
    (world.tls_keys, world.faults) = (tls_keys, faults);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut peers = vec![world.binary("home")];
    for step in 0..60 {
        let peer = peers[rng.random_range(0..peers.len())];
        let phones = &peers[1..];
        let frame = format!("[{step}, \"{}\"]", "x".repeat(rng.random_range(0..40_000)));
        match rng.random_range(0..10) {
            0 | 1 => peers.push(world.phone("home")),
            2..5 if peer != peers[0] => world.text(peer, &frame),
            2..6 if !phones.is_empty() => {
                let phone = phones[rng.random_range(0..phones.len())];
                world.deliver(peers[0], phone, &frame);
            }
            6 if peer != peers[0] => world.close(peer, 1000, "bye"),
            7 if peer != peers[0] => world.hang_up(peer),
            8 => world.send(peer, &wire::frame(wire::PING, b"own")),
            _ => world.pass(secs(rng.random_range(0..20))),
        }
    }
    world.pass(secs(70));
    world.hang_up(peers[0]);
    world.pass(secs(60));
    peers.into_iter().map(|peer| (world.heard(peer), world.peer(peer).pings)).collect()
}

#[test]
fn what_peers_receive_does_not_depend_on_tls() {
    for seed in seeds(6, &[]) {
        let plain = transcript(seed, None, Faults::default());
        let texts = plain.iter().flat_map(|(seen, _)| seen);
        assert!(texts.filter(|seen| matches!(seen, Seen::Text(_))).count() > 5);
        for splits in [false, true] {
            let keys = StdRng::seed_from_u64(seed);
            let faults = if splits { Faults::new(seed, false) } else { Faults::default() };
            assert!(plain == transcript(seed, Some(keys), faults), "seed {seed}, {splits}");
        }
    }
}

/// A phone and its binary over TLS; the keys are those of the seed.
fn pair(seed: u64) -> (World, PeerId, PeerId) {
    let mut world = World::new();
    world.tls_keys = Some(StdRng::seed_from_u64(seed));
    let binary = world.binary("home");
    let phone = world.phone("home");
    (world, binary, phone)
}

#[test]
fn a_damaged_record_ends_its_connection_and_no_byte_of_it_is_delivered() {
    // Behind the length: a longer one is a record that is never complete.
    for bit in (5 * 8..35 * 8).step_by(7) {
        let (mut world, binary, phone) = pair(bit as u64);
        world.text(phone, "[\"whole\"]");
        world.damage(phone, true, bit);
        world.text(phone, "[\"damaged\"]");
        world.text(phone, "[\"behind it\"]");
        assert!(world.is_gone(phone), "{bit}");
        let whole = text(&world.envelope(phone, "[\"whole\"]"));
        assert_eq!(world.heard(binary), [whole, world.notice(phone, 1001)], "{bit}");
        // The alert has come, and no close_notify.
        assert!(world.peer(phone).tls.is_damaged());

        let other = world.phone("home");
        world.damage(other, false, bit);
        world.deliver(binary, other, "[\"damaged\"]");
        assert_eq!(world.heard(other), [Seen::Cut], "{bit}");
        assert_eq!(world.heard(binary), [world.notice(other, 1001)], "{bit}");
        world.finish();
    }
}

#[test]
fn a_stream_cut_off_within_a_record_delivers_nothing_of_it() {
    for left in 0..30 {
        let (mut world, binary, phone) = pair(left as u64);
        world.text(phone, "[\"whole\"]");
        world.cut_off(phone, left);
        let whole = text(&world.envelope(phone, "[\"whole\"]"));
        assert_eq!(world.heard(binary), [whole, world.notice(phone, 1001)], "{left}");
        assert!(!world.heard(phone).iter().any(|seen| matches!(seen, Seen::Pong(_))));
        world.finish();
    }
}
