//! Outbound HTTPS calls, made by helper threads beside the event loop.

pub(in crate::server) mod dns;
pub(in crate::server) mod https;
pub(in crate::server) mod retry_after;
