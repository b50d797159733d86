//! Upgrade requests as the relay's clients send them.

#![allow(dead_code, reason = "no suite uses all of it")]

/// An upgrade request for `path` with these field lines, each ended by CR LF.
pub(crate) fn upgrade(path: &str, fields: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: relay.example\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{fields}\r\n"
    )
}

/// The request of a binary that claims `server_id`.
pub(crate) fn binary(server_id: &str) -> String {
    upgrade("/v1/server", &fields(server_id, "x-pyrycode-version: 1"))
}

/// The request of a phone that dials in for `server_id`.
pub(crate) fn phone(server_id: &str) -> String {
    upgrade("/v1/client", &fields(server_id, "x-pyrycode-token: t"))
}

fn fields(server_id: &str, required: &str) -> String {
    format!("x-pyrycode-server: {server_id}\r\n{required}\r\nuser-agent: t\r\n")
}
