//! Time as the core knows it: instants handed in by the shell and a timer
//! wheel over them. Knows no clock and nothing of connections.

mod instant;
mod throttle;
mod wheel;

pub use instant::Instant;
pub use throttle::{Throttle, WARN_INTERVAL};
pub use wheel::{TICK, Wheel};
