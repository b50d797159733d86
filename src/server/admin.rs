//! Admin: the metrics and the status page, served by threads beside the event loop.

pub mod http;
mod metrics;
mod process;
