//! A WebSocket relay: a *binary* at home claims a server-id, *phones* dial in
//! for it, and the relay carries frames between them. Its heart is the RFC 6455
//! heartbeat, which finds a dead peer within 60 s.
//!
//! Three layers, one direction, and time only at the door:
//!
//! ```text
//!  main ─▶ cli ─▶ config
//!    │
//!    ▼
//!  server/   the shell: mio, sockets, signals, threads, the one clock
//!    │          bytes + now ▼   ▲ effects, outgoing bytes, next deadline
//!    ▼
//!  relay/    many connections: who may claim, who hears what, who is dead
//!    │
//!    ├────▶ protocol/   one connection: bytes in, bytes out
//!    └────▶ time/       timer wheel
//! ```
//!
//! Beside them [`probe`], a client: it examines a relay from outside and shares no
//! code with one.
//!
//! The one rule: nothing below `server/` touches a socket, the clock, a thread,
//! the environment or unseeded randomness, so a whole day of connections runs
//! in a test in seconds and replays from its seed.

pub mod cli;
pub mod config;
pub mod pem;
pub mod probe;
pub mod protocol;
pub mod relay;
pub mod server;
pub mod terminal;
pub mod time;
