//! Close causes: why a connection ends, as a value.
//!
//! Owns the one table from cause to status code, reason and metric label, whether queued
//! messages are still delivered, and what the phone's binary is told. Must not know how a
//! close is sent.
//!
//! A cause is not an error: the first one wins, so that exactly one close frame is sent.

/// Why a WebSocket ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCause {
    /// The peer sent a valid close frame; it is echoed.
    PeerClosed,
    /// The TCP connection ended without a close frame, or broke.
    Disconnected,
    /// A pong did not arrive in time.
    HeartbeatTimeout,
    /// No write progress for the write timeout.
    WriteTimeout,
    /// A phone's backlog passed its bound.
    BacklogFull,
    /// The byte budget is exhausted and this connection holds most of it.
    OutOfBufferMemory,
    /// A message took too long from first to last byte.
    MessageTimeout,
    /// A message is longer than allowed.
    MessageTooBig,
    /// The peer violated RFC 6455.
    ProtocolError,
    /// A text message or a close reason is not UTF-8.
    InvalidUtf8,
    /// A phone's message is not one JSON value.
    NotJson,
    /// Another binary holds the server-id and is alive.
    ServerIdClaimed,
    /// A phone asked for a server-id that has no slot.
    NoSuchServer,
    /// The server-id has its maximum of phones.
    TooManyPhones,
    /// A binary claimed the server-id again; its phones have to reconnect.
    BinaryReclaimed,
    /// A phone sent a frame while its binary was disconnected.
    BinaryDisconnected,
    /// The binary did not reconnect in time.
    GraceExpired,
    /// The binary asked for this phone to be closed, with this code.
    BinaryRequest(u16),
    /// The relay is shutting down.
    Shutdown,
}

/// One row of the table.
struct Row {
    /// Status code and reason of the close frame; `None`: the relay sends no frame of its
    /// own.
    frame: Option<(u16, &'static str)>,
    label: &'static str,
}

const fn row(code: u16, reason: &'static str, label: &'static str) -> Row {
    Row { frame: Some((code, reason)), label }
}

/// Lists every variant. One that is missing does not compile.
macro_rules! every_cause {
    ($($cause:ident $(($code:literal))?),+ $(,)?) => {
        /// Every cause, with code 0 where a cause carries one.
        pub const ALL: [Self; [$(stringify!($cause)),+].len()] =
            [$(Self::$cause $(($code))?),+];

        /// The place of the cause in [`Self::ALL`], whatever code it carries. Counters are
        /// in this order.
        #[must_use]
        pub const fn index(self) -> usize {
            enum Place {
                $($cause),+
            }
            match self {
                $(Self::$cause { .. } => Place::$cause as usize),+
            }
        }
    };
}

impl CloseCause {
    every_cause![
        PeerClosed,
        Disconnected,
        HeartbeatTimeout,
        WriteTimeout,
        BacklogFull,
        OutOfBufferMemory,
        MessageTimeout,
        MessageTooBig,
        ProtocolError,
        InvalidUtf8,
        NotJson,
        ServerIdClaimed,
        NoSuchServer,
        TooManyPhones,
        BinaryReclaimed,
        BinaryDisconnected,
        GraceExpired,
        BinaryRequest(0),
        Shutdown,
    ];

    const fn row(self) -> Row {
        match self {
            Self::PeerClosed => Row { frame: None, label: "peer_closed" },
            Self::Disconnected => Row { frame: None, label: "disconnected" },
            Self::HeartbeatTimeout => row(1011, "heartbeat timeout", "heartbeat_timeout"),
            Self::WriteTimeout => row(1011, "write timeout", "write_timeout"),
            Self::BacklogFull => row(1011, "phone backlog full", "backlog_full"),
            Self::OutOfBufferMemory => {
                row(1011, "relay out of buffer memory", "out_of_buffer_memory")
            }
            Self::MessageTimeout => row(1008, "message timeout", "message_timeout"),
            Self::MessageTooBig => row(1009, "message too big", "message_too_big"),
            Self::ProtocolError => row(1002, "protocol error", "protocol_error"),
            Self::InvalidUtf8 => row(1007, "invalid UTF-8", "invalid_utf8"),
            Self::NotJson => row(1007, "frame is not valid JSON", "not_json"),
            Self::ServerIdClaimed => row(4409, "server-id already claimed", "server_id_claimed"),
            Self::NoSuchServer => row(4404, "no server with that id", "no_such_server"),
            Self::TooManyPhones => row(4429, "too many phones for server-id", "too_many_phones"),
            Self::BinaryReclaimed => row(4404, "binary reclaimed server-id", "binary_reclaimed"),
            Self::BinaryDisconnected => row(4404, "binary disconnected", "binary_disconnected"),
            Self::GraceExpired => row(1000, "", "grace_expired"),
            Self::BinaryRequest(code) => {
                row(if is_sendable(code) { code } else { 1011 }, "", "binary_request")
            }
            Self::Shutdown => row(1001, "shutting down", "shutdown"),
        }
    }

    /// Status code and reason of the close frame; `None` where the peer's own close is echoed
    /// or no frame can reach the peer.
    #[must_use]
    pub const fn frame(self) -> Option<(u16, &'static str)> {
        self.row().frame
    }

    /// The payload of that frame; empty without one.
    #[must_use]
    pub fn payload(self) -> Vec<u8> {
        self.frame().map_or_else(Vec::new, |(code, reason)| {
            [&code.to_be_bytes(), reason.as_bytes()].concat()
        })
    }

    /// The code in the notice that tells the binary of its phone's end; `None`: no notice is
    /// sent. `code` is that of the close frame: ours, or the peer's own where that is the
    /// cause.
    ///
    /// There is no notice of a close that the binary requested, nor where no binary knows the
    /// phone: the slot is in grace, or another binary holds it.
    #[must_use]
    pub const fn notice(self, code: Option<u16>) -> Option<u16> {
        match self {
            // RFC 6455 §7.1.5: a close frame without a code counts as 1005.
            Self::PeerClosed if code.is_none() => Some(1005),
            // A broken connection has no code; 1001 means that the phone went away.
            Self::Disconnected => Some(1001),
            Self::PeerClosed
            | Self::HeartbeatTimeout
            | Self::WriteTimeout
            | Self::BacklogFull
            | Self::OutOfBufferMemory
            | Self::MessageTimeout
            | Self::MessageTooBig
            | Self::ProtocolError
            | Self::InvalidUtf8
            | Self::NotJson => code,
            Self::ServerIdClaimed
            | Self::NoSuchServer
            | Self::TooManyPhones
            | Self::BinaryReclaimed
            | Self::BinaryDisconnected
            | Self::GraceExpired
            | Self::BinaryRequest(_)
            | Self::Shutdown => None,
        }
    }

    /// The value of `cause` in metrics and log lines.
    #[must_use]
    pub const fn label(self) -> &'static str {
        self.row().label
    }

    /// Whether messages queued before the close are still sent ahead of it. Where the peer is
    /// dead, slow or in error, the close frame overtakes them.
    #[must_use]
    pub const fn delivers_backlog(self) -> bool {
        matches!(
            self,
            Self::BinaryReclaimed | Self::GraceExpired | Self::BinaryRequest(_) | Self::Shutdown
        )
    }

    /// Whether the boundaries of the peer's frames are lost: the peer violated the framing,
    /// or the memory of its unfinished frame was freed.
    #[must_use]
    pub const fn loses_framing(self) -> bool {
        matches!(
            self,
            Self::ProtocolError | Self::InvalidUtf8 | Self::MessageTooBig | Self::OutOfBufferMemory
        )
    }
}

/// Whether a status code may stand in a close frame (RFC 6455 §7.4, and the
/// codes registered since: 1012–1014).
#[must_use]
pub const fn is_sendable(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_that_may_go_on_the_wire() {
        for (code, sendable) in [
            (0, false),
            (999, false),
            (1000, true),
            (1003, true),
            (1004, false),
            (1005, false),
            (1006, false),
            (1007, true),
            (1014, true),
            (1015, false),
            (2999, false),
            (3000, true),
            (4999, true),
            (5000, false),
            (u16::MAX, false),
        ] {
            assert_eq!(is_sendable(code), sendable, "{code}");
        }
    }

    #[test]
    fn a_code_that_may_not_go_on_the_wire_becomes_1011() {
        assert_eq!(CloseCause::BinaryRequest(1005).frame(), Some((1011, "")));
        assert_eq!(CloseCause::BinaryRequest(4001).frame(), Some((4001, "")));
    }

    #[test]
    fn every_reason_fits_a_control_frame() {
        for (index, cause) in CloseCause::ALL.into_iter().enumerate() {
            let reason = cause.frame().map_or("", |(_, reason)| reason);
            assert!(reason.len() <= 123, "{cause:?}");
            assert_eq!(cause.index(), index, "{cause:?}");
        }
    }
}
