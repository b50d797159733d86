//! Relay: the number of look-ups for one frame.

use std::net::Ipv4Addr;

use super::*;
use crate::protocol::transport::TransportBuffered;

const NOW: Instant = Instant::START;

/// Carries out the effects that the relay asks for.
fn settle(relay: &mut Relay) {
    while let Some(effect) = relay.poll_effect() {
        if let Effect::Transmit(id) = effect {
            let count = relay.outgoing(id).iter().map(|slice| slice.len()).sum();
            relay.handle(Input::Written(id, count, TransportBuffered::default()), NOW);
        }
    }
}

fn dial(relay: &mut Relay, path: &str, header: &str) -> ConnId {
    let head = format!(
        "GET /v1/{path} HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         User-Agent: test\r\nx-pyrycode-server: home\r\n{header}\r\n\r\n"
    );
    let id = relay.handle_accept(Ipv4Addr::LOCALHOST.into(), ListenerKind::Clients, NOW);
    relay.handle(Input::Bytes(id, head.as_bytes()), NOW);
    settle(relay);
    id
}

/// From a phone's readable socket to the write on its binary's.
#[test]
fn a_phones_frame_costs_at_most_8_lookups() {
    let mut relay = Relay::new(&Config::default(), 10, [7; 32], NOW);
    dial(&mut relay, "server", "x-pyrycode-version: 1");
    let phone = dial(&mut relay, "client", "x-pyrycode-token: t");
    assert_eq!(relay.live(), (1, 1));

    // The text "1", masked by a key of zeros.
    let frame = [0x81, 0x81, 0, 0, 0, 0, b'1'];
    let before = relay.connections.lookups.get();
    assert!(relay.is_reading(phone));
    relay.handle(Input::Bytes(phone, &frame), NOW);
    settle(&mut relay);
    let lookups = relay.connections.lookups.get() - before;
    assert_eq!(relay.stats().frames_to_binary, 1);
    assert!((1..=8).contains(&lookups), "{lookups}");
}
