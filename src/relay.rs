//! Many connections: slots and their members, forwarding, limits and deadlines. Must not know
//! sockets, the clock or threads.

#![allow(
    clippy::redundant_closure_for_method_calls,
    reason = "the path of a method of `Editor` is not general over its lifetime, as `edit` asks"
)]

pub mod admission;
mod closing;
pub mod conn_id;
mod connections;
pub mod counts;
mod deadlines;
pub mod envelope;
mod follow_ups;
mod forward;
mod gates;
mod invariants;
mod keyed_hash;
mod notice;
mod ping_phase;
mod proxied;
pub mod push_wake;
pub mod refusals;
#[expect(clippy::module_inception, reason = "the struct the layer is named after")]
mod relay;
mod slots;
mod snapshot;
mod state;
pub mod stats;
mod warnings;

pub use conn_id::ConnId;
pub use connections::Effect;
pub use gates::ListenerKind;
pub use relay::{Input, Relay};
pub use snapshot::Snapshot;
