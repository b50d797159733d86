//! One connection: bytes in, bytes out. Must not know other connections, sockets or the
//! clock.

pub mod client_address;
pub mod close;
pub mod connection;
pub mod fault;
pub mod heartbeat;
mod inbound;
pub mod outbox;
pub mod outbox_pool;
pub mod proxy_header;
pub mod request;
pub mod response;
pub mod transport;
pub mod websocket;
pub mod work;
