//! Many connections: who may claim, who hears what, who is dead. No sockets.

pub mod admission;
mod audit;
mod authority;
pub mod conn_id;
mod departure;
mod drain;
pub mod envelope;
mod forward;
mod hash;
mod liveness;
mod notice;
mod output;
mod proxied;
mod push_wake;
pub mod refusals;
mod registry;
#[expect(clippy::module_inception, reason = "the struct the layer is named after")]
mod relay;
mod snapshot;
pub mod stats;
mod traffic;
mod upgrade;
pub mod wake;
mod warnings;

pub use conn_id::ConnId;
pub use relay::{Effect, Relay};
pub use snapshot::Snapshot;
