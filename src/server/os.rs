//! The operating system: clock, signals, descriptors and systemd.

pub mod backlog;
pub mod clock;
pub(in crate::server) mod date;
pub mod descriptors;
pub(in crate::server) mod eintr;
pub mod memory_limit;
pub mod privileges;
pub mod signals;
pub mod systemd;
