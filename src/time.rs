//! Time in the core: instants handed in by the shell, a timer wheel and a throttle over them.
//! Must not know a clock or connections.

mod instant;
mod throttle;
mod wheel;

pub use instant::Instant;
pub use throttle::{Throttle, WARN_INTERVAL};
pub use wheel::{TICK, Wheel};
