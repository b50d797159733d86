//! State of an incomplete message, and a check of queued frames.

use super::{Codec, Fragments, MASKED_HEADER_MAX, Reassembly, try_frame_len};
use crate::state::{Unfit, v1};

const MALFORMED: Unfit = Unfit("an incomplete message");

impl Reassembly {
    /// The incomplete frame, and the fragments before it.
    #[must_use]
    pub fn save(&self) -> (v1::Buffer, Option<v1::Fragments>) {
        let fragments = self.fragments.as_ref().map(|fragments| v1::Fragments {
            is_text: fragments.is_text,
            payload: v1::Buffer::from(&fragments.payload),
            checked: fragments.checked as u64,
        });
        (v1::Buffer::from(&self.frame), fragments)
    }
}

impl Codec {
    /// The incomplete message of which [`Reassembly::save`] returned `frame` and `fragments`.
    ///
    /// # Errors
    /// If no such message can be, or it is longer than this codec allows.
    pub fn restore(
        &self,
        frame: v1::Buffer,
        fragments: Option<v1::Fragments>,
    ) -> Result<Reassembly, Unfit> {
        let fragments = fragments.map(|saved| self.fragments(saved)).transpose()?;
        let frame = frame.restore(2 * (self.message_max + MASKED_HEADER_MAX));
        let reassembly = Reassembly { frame, fragments };
        if !reassembly.frame.is_empty() {
            let header = self.header(&reassembly.frame, &reassembly).map_err(|_| MALFORMED)?;
            if header.is_some_and(|(_, len)| len <= reassembly.frame.len()) {
                return Err(MALFORMED);
            }
        }
        Ok(reassembly)
    }

    fn fragments(&self, saved: v1::Fragments) -> Result<Box<Fragments>, Unfit> {
        let v1::Fragments { is_text, payload, checked } = saved;
        let payload = payload.restore(2 * self.message_max);
        let checked = usize::try_from(checked).map_err(|_| MALFORMED)?;
        let is_text_valid = match payload.get(..checked) {
            Some(start) if is_text => str::from_utf8(start).is_ok(),
            Some(_) => checked == 0,
            None => false,
        };
        if payload.len() > self.message_max || !is_text_valid {
            return Err(MALFORMED);
        }
        Ok(Box::new(Fragments { is_text, payload, checked }))
    }
}

/// Whether `pieces` are whole frames, none of whose headers is in two pieces, after the last
/// `begun` bytes of one.
pub(in crate::protocol) fn are_frames<'a>(
    pieces: impl Iterator<Item = &'a [u8]>,
    begun: usize,
) -> bool {
    let mut left = begun;
    for mut rest in pieces {
        while !rest.is_empty() {
            if left == 0 {
                let Some(len) = try_frame_len(rest) else { return false };
                left = len;
            }
            let here = left.min(rest.len());
            left -= here;
            rest = &rest[here..];
        }
    }
    left == 0
}
