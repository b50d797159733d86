//! Outbound: HTTPS calls made by threads beside the event loop.

mod dial;
pub(in crate::server) mod dns;
pub(in crate::server) mod https;
mod places;
pub(in crate::server) mod retry_after;
mod stream;
