//! Shortened texts: a text without the inside of a string that is most of it.
//!
//! Owns the rule by which the JSON parser is spared that string. Must not know envelopes.
//!
//! Clients send one long string, base64 of up to 87.5 KB. serde_json reads a string at
//! 4 GB/s; a search for its end is several times as fast.
//!
//! Let the text be `A"R"B`, where R has no quote, no backslash and no control character, and
//! its shortened text `A""B`. If `A""B` is one JSON value, so is `A"R"B`, with the same tokens
//! but for one string: in JSON no string follows another directly, so the first of the two
//! quotes cannot end one. Either it begins a string, which the second ends, or a backslash in
//! a string escapes it, and the second ends that string. Between them the text is inside a
//! string in both cases, and R may stand anywhere in a string.
//!
//! If `A""B` is not JSON, nothing follows for `A"R"B`: R may stand between two strings.

/// The shortest inside that is left out. The parser reads a shorter one in the time that the
/// rest takes to be copied.
const INSIDE_MIN: usize = 512;

/// A text, and a copy of it without what stands between two quotes around its middle.
#[derive(Debug)]
pub(super) struct Shortened<'a> {
    text: &'a str,
    short: String,
    /// The index between the two quotes in `short`.
    gap: usize,
}

impl<'a> Shortened<'a> {
    /// `None` if that is less than half of `text`, or no part of a string without escapes.
    pub(super) fn new(text: &'a str) -> Option<Self> {
        let bytes = text.as_bytes();
        let middle = bytes.len() / 2;
        // A string that is more than half of the text covers its middle, from where either of
        // its ends is the first that is found.
        let opening = memchr::memrchr2(b'"', b'\\', &bytes[..middle])?;
        let closing = middle + memchr::memchr2(b'"', b'\\', &bytes[middle..])?;
        let gap = opening + 1;
        let inside = &bytes[gap..closing];
        if [bytes[opening], bytes[closing]] != [b'"'; 2]
            || inside.len() < middle.max(INSIDE_MIN)
            || has_control(inside)
        {
            return None;
        }
        Some(Self { text, short: [&text[..gap], &text[closing..]].concat(), gap })
    }

    /// The shortened text.
    pub(super) fn as_str(&self) -> &str {
        &self.short
    }

    /// Whether `part`, a slice of [`Self::as_str`], contains the string whose inside is left out.
    pub(super) fn is_gap_in(&self, part: &str) -> bool {
        let start = self.index_of(part);
        start < self.gap && self.gap < start + part.len()
    }

    /// The slice of the text that begins and ends where `part`, a slice of [`Self::as_str`],
    /// does. It may not begin or end between the two quotes.
    pub(super) fn original(&self, part: &str) -> &'a str {
        let left_out = self.text.len() - self.short.len();
        let index = |short: usize| if short < self.gap { short } else { short + left_out };
        let start = self.index_of(part);
        &self.text[index(start)..index(start + part.len())]
    }

    fn index_of(&self, part: &str) -> usize {
        part.as_ptr().addr() - self.short.as_ptr().addr()
    }
}

/// Whether a byte is a control character. Without an early end it uses vector instructions.
fn has_control(bytes: &[u8]) -> bool {
    bytes.iter().fold(u8::MAX, |least, byte| least.min(*byte)) < b' '
}

#[cfg(test)]
mod tests;
