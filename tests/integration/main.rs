//! The relay over real sockets, as peers and operators use it.
//!
//! Expectations come from the contract, not from the code. Peers are plain `std` sockets that
//! write their frames by hand ([`support::Peer`]), so that they can also write invalid ones.
//! Nothing leaves 127.0.0.0/8, nothing needs root, and nothing sleeps: every wait is for a
//! condition, with a deadline.
//!
//! A test that waits for a timeout shortens only that one, so that a slow machine makes the
//! test slow but does not fail it.

#![allow(clippy::disallowed_methods, reason = "tests live outside the deterministic core")]
#![allow(unreachable_pub, reason = "a test binary exports nothing")]
#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod admin;
mod claims;
mod close_log;
mod closing;
mod command_line;
mod descriptors;
mod forwarder_log;
mod handover;
mod heartbeat;
mod hostile_peers;
mod limits;
mod log_pipe;
mod metrics;
mod notices;
mod probe;
mod proxied;
#[path = "../support/proxy.rs"]
mod proxy;
mod shutdown;
mod slow_peers;
mod support;
mod systemd;
mod tls;
mod tls_hostile_peers;
mod tls_reload;
mod wire;
