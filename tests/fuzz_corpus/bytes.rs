//! Fuzzer input, read as a sequence of choices.
//!
//! Owns only the reading position. Beyond the end of the input every choice is zero, so each
//! input is valid and a shorter one means a simpler test.

use std::mem;

/// Bytes not read yet.
pub(crate) struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    /// All of `data`.
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// Nothing is left to choose from.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is left, as it is.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        mem::take(&mut self.0)
    }

    /// The next `count` bytes, or fewer at the end.
    pub(crate) fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A number of `N` bytes, little-endian.
    fn number<const N: usize>(&mut self) -> u64 {
        self.take(N).iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// 0 to 255.
    pub(crate) fn byte(&mut self) -> u8 {
        self.number::<1>() as u8
    }

    /// 0 to 65,535.
    pub(crate) fn word(&mut self) -> u16 {
        self.number::<2>() as u16
    }

    /// Any instant, or nearly.
    pub(crate) fn long(&mut self) -> u64 {
        self.number::<8>()
    }

    /// 0 to `below` − 1, at most 256 of them.
    pub(crate) fn index(&mut self, below: usize) -> usize {
        usize::from(self.byte()) % below
    }
}

/// `bytes` in pieces whose lengths, less one, are `pattern` over and over.
pub(crate) fn pieces<'a>(pattern: &[u8], mut bytes: &'a [u8]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for length in pattern.iter().cycle() {
        if bytes.is_empty() {
            break;
        }
        let (piece, rest) = bytes.split_at(bytes.len().min(1 + usize::from(*length)));
        pieces.push(piece);
        bytes = rest;
    }
    if !bytes.is_empty() {
        pieces.push(bytes);
    }
    pieces
}
