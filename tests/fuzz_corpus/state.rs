//! The state of a relay, which may say anything: it is refused, or a relay goes on with it.

use std::time::Duration;

use pyrycode_relay::config::Config;
use pyrycode_relay::relay::{ConnId, Relay};
use pyrycode_relay::state::v1;
use pyrycode_relay::time::Instant;

use super::survive::survive;

/// The bytes are a relay of format 1, without the checksum that guards it against accidents.
pub(crate) fn run(data: &[u8]) {
    let Ok(saved) = postcard::from_bytes::<v1::Relay>(data) else { return };
    let ids = saved.connections.entries.iter();
    // Names that no connection can have are refused; here they only have to be packed.
    let ids = ids.filter(|it| it.index < ConnId::INDEX_MAX);
    let ids: Vec<ConnId> = ids.map(|it| ConnId::new(it.index, it.generation)).collect();
    let now = Instant::from_micros(saved.connections.timers.now << 16);
    let Ok((mut relay, lost)) = Relay::restore(&Config::default(), 100, saved, [7; 32], now) else {
        return;
    };
    survive(&mut relay, &lost, &ids, now + Duration::from_secs(20));
}
