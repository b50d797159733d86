//! TLS of one peer, as far as the relay notices it: the bytes of an incomplete record, and
//! those that were accepted and not sent.
//!
//! Owns both, without any cipher. A peer without TLS keeps nothing.

use std::collections::VecDeque;

use pyrycode_relay::protocol::transport::TransportBuffered;

/// The most plaintext in a record (RFC 8446, section 5.1).
pub(crate) const RECORD_MAX: usize = 16 * 1024;
/// Header, content type and tag of a record, counted with the bytes in it.
const OVERHEAD: usize = 22;

/// The two directions of a session.
#[derive(Debug, Default)]
pub(crate) struct Tls {
    pub(crate) is_on: bool,
    /// Where the peer's records end, in bytes that it has sent.
    ends: VecDeque<u64>,
    /// How many of its bytes were read, and how many of them handed in.
    read: u64,
    opened: u64,
    partial: Vec<u8>,
    /// Accepted from the relay and not yet on the link.
    pub(crate) unsent: VecDeque<u8>,
}

impl Tls {
    /// The peer sends bytes that begin at `from`, in records.
    pub(crate) fn on_sent(&mut self, from: u64, count: usize) {
        if self.is_on {
            let ends = (RECORD_MAX..count).step_by(RECORD_MAX).chain([count]);
            self.ends.extend(ends.map(|end| from + end as u64));
        }
    }

    /// The relay has read `count` bytes that are not TLS.
    pub(crate) fn skip(&mut self, count: usize) {
        self.read += count as u64;
        self.opened += count as u64;
        self.ends.retain(|end| *end > self.opened);
    }

    /// Replaces bytes that were read by those of the records that are complete.
    pub(crate) fn open(&mut self, bytes: &mut Vec<u8>) {
        if !self.is_on {
            return;
        }
        self.read += bytes.len() as u64;
        self.partial.append(bytes);
        let complete = self.ends.iter().take_while(|end| **end <= self.read).count();
        if let Some(end) = self.ends.drain(..complete).next_back() {
            bytes.extend(self.partial.drain(..(end - self.opened) as usize));
            self.opened = end;
        }
    }

    pub(crate) fn buffered(&self) -> TransportBuffered {
        let unsent = self.unsent.len();
        TransportBuffered {
            unread: self.partial.len(),
            unsent: if unsent == 0 { 0 } else { unsent + OVERHEAD },
        }
    }
}
