//! The shell: sockets, signals, threads and the one clock. It moves bytes and
//! time; what they mean is decided below.

pub mod admin;
pub mod certificates;
mod event_loop;
pub mod fitting;
pub mod handover;
pub mod log;
pub mod messages;
pub mod net;
pub mod os;
mod outbound;
pub mod push;
pub mod turn;

pub use event_loop::Server;
pub use event_loop::arrival::Taken;
pub use event_loop::handover::Handover;
pub use event_loop::state::{Arrived, Restored, Saved};
pub use messages::{LoopHandle, LoopMessage};
pub use turn::Core;
