//! The whole relay without sockets, driven by arbitrary actions of its peers.
//!
//! Owns the possible actions. [`World`] checks the properties.

use std::time::Duration;

use pyrycode_relay::config::Config;
use pyrycode_relay::protocol::transport::TransportBuffered;
use pyrycode_relay::relay::{ConnId, Input, ListenerKind};

use super::bytes::Bytes;
use super::proxy;
use super::wire;
use super::world::{World, claim, join};

/// So few that the cap, and more phones than one server-id takes, are met.
const CAPACITY: usize = 24;
/// More would take time without reaching new states.
const PEERS_MAX: usize = 40;
const STEPS_MAX: usize = 300;

/// Performs the actions in the bytes, then disconnects all peers.
pub(crate) fn run(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let mut config = Config::default();
    config.limits.rate_per_minute = 0;
    let budgets = [config.limits.buffer_memory, 512 * 1024, 64 * 1024, 16 * 1024];
    config.limits.buffer_memory = budgets[bytes.index(budgets.len())];
    let mut world = World::new(&config, CAPACITY);
    let mut steps = 0;
    while !bytes.is_empty() && steps < STEPS_MAX {
        steps += 1;
        step(&mut world, &mut bytes);
    }
    world.finish();
}

/// One action of one peer, or time passes.
fn step(world: &mut World, bytes: &mut Bytes<'_>) {
    let (choice, who) = (bytes.byte() % 22, bytes.byte());
    if choice < 5 {
        if world.peers.len() < PEERS_MAX {
            dial(world, bytes, choice, who);
        }
        return;
    }
    if world.peers.is_empty() {
        return;
    }
    let index = usize::from(who) % world.peers.len();
    match choice {
        5 => {
            let text = format!("\"{}\"", "x".repeat(size(bytes)));
            world.send(index, &wire::frame(wire::TEXT, text.as_bytes()));
        }
        6 | 7 => {
            let phone = bytes.index(world.peers.len());
            let envelope = envelope(&world.peers[phone].conn_id, bytes, choice == 7);
            world.send(index, &wire::frame(wire::TEXT, envelope.as_bytes()));
        }
        8 => {
            world.peers[index].is_honest = false;
            let count = bytes.index(64);
            world.send(index, bytes.take(count));
        }
        9 => {
            // Any frame, fragments too, masked as it should be.
            world.peers[index].is_honest = false;
            let (first, count) = (bytes.byte(), bytes.index(160));
            world.send(index, &wire::raw_frame(first, bytes.take(count)));
        }
        10 => {
            world.peers[index].is_honest = false;
            let code = bytes.word();
            world.send(index, &wire::frame(wire::CLOSE, &wire::close_payload(code, "")));
        }
        11 => world.pong(index),
        12 => world.pass(Duration::from_millis(250 * u64::from(bytes.byte()))),
        13 => world.stall(Duration::from_millis(500 * u64::from(bytes.byte()))),
        14 => world.make_room(index, size(bytes)),
        15 => world.make_room(index, usize::MAX),
        16 => world.end(index),
        17 => world.reset(index),
        18 => {
            world.peers[index].is_honest = false;
            world.peers[index].answers_pings ^= true;
        }
        20 => world.buffer(index, size(bytes), size(bytes)),
        21 => world.buffer(index, 0, 0),
        _ => match who {
            0..8 => world.shut_down(),
            8..128 => stale(world, bytes),
            _ => {
                // Half a frame: the rest may never come.
                world.peers[index].is_honest = false;
                let frame = wire::frame(wire::TEXT, &vec![b'1'; size(bytes)]);
                world.send(index, &frame[..frame.len() / 2]);
            }
        },
    }
}

fn dial(world: &mut World, bytes: &mut Bytes<'_>, choice: u8, who: u8) {
    let server_id = ["home", "away", "none"][usize::from(who) % 3];
    let mut request = match choice {
        0 | 1 => claim(server_id),
        2 | 3 => join(server_id),
        _ => bytes.take(usize::from(who)).to_vec(),
    };
    // With what follows it in the same packet, or in small ones.
    let (behind, piece) = (bytes.index(4), bytes.byte());
    for _ in 0..behind {
        request.extend(wire::frame(wire::TEXT, b"[1]"));
    }
    if who & 0x40 != 0 {
        request.truncate(request.len() / 2);
    }
    let index = match bytes.byte() {
        byte @ 224.. => {
            let kinds = [ListenerKind::ProxiedClients, ListenerKind::ProxiedAuthorities];
            let header = match byte % 4 {
                0 => proxy::client([192, 0, 2, who].into()),
                1 => proxy::local(),
                2 => b"PROXY TCP4".to_vec(),
                // A part, and then whatever this peer sends.
                _ => proxy::client([192, 0, 2, who].into())[..usize::from(who % 28)].to_vec(),
            };
            let kind = kinds[usize::from(byte / 4 % 2)];
            let behind: &[u8] = if byte % 4 == 3 { b"" } else { &request };
            world.dial_through(kind, &header, behind)
        }
        _ => world.dial(&request),
    };
    let peer = &mut world.peers[index];
    peer.answers_pings = who & 0x80 != 0;
    peer.is_honest = behind == 0 && who & 0x40 == 0;
    if piece > 128 {
        peer.piece = usize::from(piece) - 128;
    }
}

/// A number of bytes that matters somewhere.
fn size(bytes: &mut Bytes<'_>) -> usize {
    let byte = bytes.byte();
    (usize::from(byte & 0x0f) + 1) << (byte >> 4)
}

fn envelope(conn_id: &str, bytes: &mut Bytes<'_>, closes: bool) -> String {
    let frame = "x".repeat(size(bytes));
    let mut envelope = format!(r#"{{"conn_id":"{conn_id}","frame":"{frame}""#);
    if closes {
        envelope.push_str(&format!(r#","close_code":{}"#, bytes.word()));
    }
    envelope + "}"
}

/// Input for a connection that is gone, or never existed, changes nothing.
fn stale(world: &mut World, bytes: &mut Bytes<'_>) {
    let gone = world.peers.iter().filter(|peer| peer.is_gone).map(|peer| peer.id);
    let gone: Vec<ConnId> = gone.chain([ConnId::new(3, u64::from(u32::MAX))]).collect();
    let id = gone[bytes.index(gone.len())];
    let (relay, now) = (&mut world.relay, world.now);
    let before = (relay.len(), relay.live(), relay.slots(), relay.buffered());
    for input in [
        Input::Bytes(id, b"GET"),
        Input::Written(id, 1, TransportBuffered::default()),
        Input::Hangup(id),
        Input::End(id),
        Input::ReadToEnd(id),
        Input::Disconnected(id),
    ] {
        relay.handle(input, now);
    }
    assert!(!relay.is_reading(id) && relay.outgoing(id).concat().is_empty());
    assert_eq!(relay.poll_effect(), None);
    assert_eq!((relay.len(), relay.live(), relay.slots(), relay.buffered()), before);
}
