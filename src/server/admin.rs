//! Admin: the metrics and the status page, served by threads beside the event loop.

mod gate;
mod health;
mod history;
pub mod hold;
pub mod http;
mod metrics;
mod process;
mod snapshots;
mod waiting;
