//! A relay that was restored from a state, in use: whatever the state said, it goes on.

use pyrycode_relay::protocol::transport::TransportBuffered;
use pyrycode_relay::relay::{ConnId, Effect, Input, Relay};
use pyrycode_relay::time::Instant;

/// More effects than any restored relay has.
const EFFECTS_MAX: usize = 100_000;

/// Ends what was lost, lets time pass and input arrive, carries out all effects, and shuts
/// down.
pub(crate) fn survive(relay: &mut Relay, lost: &[ConnId], ids: &[ConnId], now: Instant) {
    lost.iter().for_each(|id| relay.handle(Input::Disconnected(*id), now));
    relay.audit();
    relay.handle(Input::Timeout, now);
    for id in ids {
        relay.handle(Input::Bytes(*id, b"\x81\x80\0\0\0\0"), now);
    }
    for _ in 0..EFFECTS_MAX {
        match relay.poll_effect() {
            None => break,
            Some(Effect::Transmit(id)) => {
                let count = relay.outgoing(id).iter().map(|slice| slice.len()).sum();
                relay.handle(Input::Written(id, count, TransportBuffered::default()), now);
            }
            Some(Effect::ReadThenExpire(id)) => relay.handle(Input::ReadToEnd(id), now),
            Some(Effect::Continue(id)) => relay.handle(Input::Continue(id), now),
            Some(_) => {}
        }
    }
    assert_eq!(relay.poll_effect(), None, "effects without an end");
    relay.handle(Input::ShutDown, now);
    ids.iter().for_each(|id| relay.handle(Input::Disconnected(*id), now));
}
