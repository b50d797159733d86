//! Piece: a part of a byte queue, of bounded size.
//!
//! Owns its memory. Must not know frames, nor the queue that it is a part of.
//!
//! A whole piece has pages of its own, so that they return to the kernel when it is dropped,
//! whatever was allocated since. An allocator keeps freed pieces of this size as long as
//! anything behind them is in use: of 30 MB that one phone had queued, glibc kept 26 MB.

use std::ops::Deref;

use memmap2::{MmapMut, MmapOptions};

/// Maximum size of a piece, in bytes: what the kernel takes beyond the congestion window
/// (`NOTSENT_LOWAT`).
pub(crate) const CHUNK: usize = 16 * 1024;

/// Bytes, at most [`CHUNK`].
#[derive(Debug)]
pub(super) struct Piece {
    memory: Memory,
    /// Meaningful for a mapping: the bytes in use.
    len: usize,
}

#[derive(Debug)]
enum Memory {
    Allocated(Vec<u8>),
    Mapped(MmapMut),
}

impl Piece {
    /// An empty piece with room for `capacity` bytes, which may grow.
    pub(super) fn short(capacity: usize) -> Self {
        Self { memory: Memory::Allocated(Vec::with_capacity(capacity)), len: 0 }
    }

    /// An empty piece with room for [`CHUNK`] bytes.
    pub(super) fn whole() -> Self {
        // It is about to be filled: its pages come with the call, not by a page fault each. The
        // kernel bounds the number of mappings (`vm.max_map_count`).
        MmapOptions::new().len(CHUNK).populate().map_anon().map_or_else(
            |_| Self::short(CHUNK),
            |pages| Self { memory: Memory::Mapped(pages), len: 0 },
        )
    }

    /// Whether it has pages of its own.
    pub(super) fn is_mapped(&self) -> bool {
        matches!(self.memory, Memory::Mapped(_))
    }

    /// Bytes of memory.
    pub(super) fn capacity(&self) -> usize {
        match &self.memory {
            Memory::Allocated(bytes) => bytes.capacity(),
            Memory::Mapped(pages) => pages.len(),
        }
    }

    /// Makes room for `capacity` bytes in all, at most [`CHUNK`].
    pub(super) fn grow(&mut self, capacity: usize) {
        if let Memory::Allocated(bytes) = &mut self.memory {
            bytes.reserve_exact(capacity - bytes.len());
        }
    }

    /// Appends bytes, for which there is room.
    pub(super) fn append(&mut self, more: &[u8]) {
        match &mut self.memory {
            Memory::Allocated(bytes) => bytes.extend_from_slice(more),
            Memory::Mapped(pages) => pages[self.len..][..more.len()].copy_from_slice(more),
        }
        self.len += more.len();
    }

    /// Removes all but the first `len` bytes.
    pub(super) fn truncate(&mut self, len: usize) {
        if let Memory::Allocated(bytes) = &mut self.memory {
            bytes.truncate(len);
        }
        self.len = self.len.min(len);
    }
}

impl Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.memory {
            Memory::Allocated(bytes) => bytes,
            Memory::Mapped(pages) => &pages[..self.len],
        }
    }
}
