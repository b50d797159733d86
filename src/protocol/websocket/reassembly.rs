//! Reassembly: what has arrived of one incomplete message.
//!
//! Owns its memory, which is no more than what has arrived, and the unmasking. Must not know
//! frame headers.

use super::Message;
use crate::protocol::close::CloseCause;

/// Appends a part of a payload without its mask (RFC 6455 §5.3), of which `mask` begins with
/// the byte for that part. Each block is unmasked while it is in the nearest cache.
pub(super) fn append_unmasked(payload: &mut Vec<u8>, masked: &[u8], mask: [u8; 4]) {
    const BLOCK: usize = 4 * 1024;
    for block in masked.chunks(BLOCK) {
        let start = payload.len();
        payload.extend_from_slice(block);
        unmask(&mut payload[start..], mask);
    }
}

/// Removes the mask of a payload (RFC 6455 §5.3). Applied twice it changes nothing.
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let (words, rest) = payload.as_chunks_mut::<4>();
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ u32::from_ne_bytes(mask)).to_ne_bytes();
    }
    rest.iter_mut().zip(mask).for_each(|(byte, key)| *byte ^= key);
}

/// Reassembly of one incomplete message.
#[derive(Debug, Default)]
pub struct Reassembly {
    /// An incomplete frame as received, header included, still masked.
    pub(super) frame: Vec<u8>,
    pub(super) fragments: Option<Box<Fragments>>,
}

/// The fragments of a message so far.
#[derive(Debug)]
pub(super) struct Fragments {
    pub(super) is_text: bool,
    pub(super) payload: Vec<u8>,
    /// Length of the part of `payload` that is known to be UTF-8, if it is text.
    pub(super) checked: usize,
}

impl Fragments {
    pub(super) fn append(&mut self, masked: &[u8], mask: [u8; 4]) -> Result<(), CloseCause> {
        append_unmasked(&mut self.payload, masked, mask);
        if self.is_text {
            self.checked += match simdutf8::compat::from_utf8(&self.payload[self.checked..]) {
                Ok(text) => text.len(),
                // A character may be in two fragments.
                Err(error) if error.error_len().is_none() => error.valid_up_to(),
                Err(_) => return Err(CloseCause::InvalidUtf8),
            };
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Message {
        Message { payload: self.payload, is_text: self.is_text }
    }
}

impl Reassembly {
    /// Whether no message is incomplete.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frame.is_empty() && self.fragments.is_none()
    }

    /// Bytes of memory that it holds.
    #[must_use]
    pub fn held(&self) -> usize {
        let fragments = self.fragments.as_ref();
        let fragments = fragments.map_or(0, |it| size_of::<Fragments>() + it.payload.capacity());
        self.frame.capacity() + fragments
    }

    /// Bytes of the fragmented message so far, if there is one.
    pub(super) fn fragmented_len(&self) -> Option<usize> {
        self.fragments.as_ref().map(|fragments| fragments.payload.len())
    }
}
