//! One connection: bytes in, bytes out. Knows no other connection, no socket
//! and no clock.

pub mod client_address;
pub mod close;
pub mod connection;
pub mod heartbeat;
mod inbound;
pub mod outbox;
pub mod outbox_pool;
pub mod proxy_header;
pub mod request;
pub mod response;
pub mod transport;
pub mod websocket;
