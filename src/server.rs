//! The shell: sockets, signals, threads and the one clock. It moves bytes and
//! time; what they mean is decided below.

mod acme;
pub mod clock;
mod core;
pub mod descriptors;
mod event_loop;
mod https;
pub mod listener;
pub mod log;
mod lookup;
pub mod mailbox;
mod metrics;
pub mod operator;
mod process;
pub mod push;
pub mod signals;
mod socket;
pub mod systemd;
pub mod tls;
mod uninterrupted;

pub use core::Core;
pub use event_loop::Server;
pub use mailbox::{Message, Post};
