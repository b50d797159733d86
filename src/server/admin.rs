//! Admin listener: metrics and the status page, on helper threads.

pub mod http;
mod metrics;
mod process;
