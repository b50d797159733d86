//! WebSocket relay: a *binary* at home claims a server-id, *phones* connect for that
//! server-id, and the relay forwards frames between them. The RFC 6455 heartbeat detects a
//! half-open connection within 60 s.
//!
//! Three layers that depend on each other in one direction; only `server/` reads the clock:
//!
//! ```text
//!  main ─▶ cli ─▶ config
//!    │
//!    ▼
//!  server/   the shell: mio, sockets, signals, threads, the one clock
//!    │          bytes + now ▼   ▲ effects, outgoing bytes, next deadline
//!    ▼
//!  relay/    many connections: claims, forwarding, heartbeats, limits
//!    │
//!    ├────▶ protocol/   one connection: bytes in, bytes out
//!    └────▶ time/       timer wheel
//! ```
//!
//! [`state`] is what all of it looks like as plain values, for a hand-over to another program.
//!
//! Beside them are [`probe`], a client that examines a relay from outside and shares no code
//! with it, and [`upgrade`], which asks a relay to hand over.
//!
//! Nothing below `server/` touches a socket, the clock, a thread, the environment or unseeded
//! randomness, so a whole day of connections runs in a test in seconds and replays from its
//! seed.

pub mod cli;
pub mod config;
pub mod pem;
pub mod probe;
pub mod protocol;
pub mod relay;
pub mod server;
pub mod state;
pub mod terminal;
pub mod time;
pub mod upgrade;
