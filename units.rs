// SPDX-License-Identifier: GPL-2.0

//! The units of length and place: sectors, chunks, and ranges of either.
//!
//! A [`Sector`] is 512 bytes, as everywhere in the block layer. A [`Chunk`] is the
//! unit in which a snapshot saves data: a power of two of sectors, chosen by the
//! administrator for each snapshot. The two are never mixed up, since each has its
//! own type, and [`ChunkSize`] is the only way from one to the other.

#![deny(unsafe_code)]

use kernel::prelude::*;

/// The number of bytes in a sector.
pub(crate) const SECTOR_SIZE: u64 = 512;

/// A place on a device, in units of 512 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Sector(pub(crate) u64);

/// The number of a chunk: of the origin (old) or of the COW device (new).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Chunk(pub(crate) u64);

impl Chunk {
    /// The chunk that lies `n` chunks further on; stops at the last number there is.
    pub(crate) fn plus(self, n: u64) -> Chunk {
        Chunk(self.0.saturating_add(n))
    }

    /// How many chunks lie from `earlier` to this one; none if `earlier` is not earlier.
    pub(crate) fn since(self, earlier: Chunk) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A half-open range of sectors: `start` belongs to it, `end` does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Sectors {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Sectors {
    /// All sectors that there can be.
    pub(crate) const ALL: Self = Self {
        start: 0,
        end: u64::MAX,
    };

    /// The range of `len` sectors from `start`.
    pub(crate) fn new(start: Sector, len: u64) -> Self {
        Self {
            start: start.0,
            end: start.0.saturating_add(len),
        }
    }

    /// The number of sectors in the range.
    pub(crate) fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether no sector is in the range.
    pub(crate) fn is_empty(&self) -> bool {
        self.end <= self.start
    }

    /// Whether the two ranges have a sector in common.
    pub(crate) fn overlaps(&self, other: &Sectors) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// Whether all of another range is in this one.
    pub(crate) fn contains(&self, other: &Sectors) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// The smallest range that holds both.
    pub(crate) fn union(&self, other: &Sectors) -> Sectors {
        Sectors {
            start: self.start.min(other.start),
            end: self.end.max(other.end),
        }
    }

    /// The same with its start at a block of so many sectors.
    pub(crate) fn begun_at_block(self, block: u64) -> Sectors {
        let over = self.start.checked_rem(block).unwrap_or(0);
        Sectors {
            start: self.start.saturating_sub(over),
            end: self.end,
        }
    }
}

/// A half-open range of chunks: `start` belongs to it, `end` does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Chunks {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Chunks {
    /// The range of `len` chunks from `start`.
    pub(crate) fn new(start: Chunk, len: u64) -> Self {
        Self {
            start: start.0,
            end: start.0.saturating_add(len),
        }
    }

    /// The number of chunks in the range.
    pub(crate) fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

/// The size of a chunk: a power of two of sectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ChunkSize {
    shift: u32,
}

impl ChunkSize {
    /// The largest size in sectors that the type takes; `table.rs` and the format on disk set
    /// a lower limit.
    pub(crate) const MAX: u64 = (1 << 31) - 1;

    /// A chunk of `sectors` sectors.
    ///
    /// # Errors
    ///
    /// `EINVAL` if `sectors` is zero, not a power of two or larger than [`Self::MAX`].
    pub(crate) fn from_sectors(sectors: u64) -> Result<Self> {
        if sectors == 0 || sectors > Self::MAX || !sectors.is_power_of_two() {
            return Err(EINVAL);
        }
        Ok(Self {
            shift: sectors.trailing_zeros(),
        })
    }

    /// The size in sectors.
    pub(crate) fn sectors(self) -> u64 {
        1 << self.shift
    }

    /// The size in bytes.
    pub(crate) fn bytes(self) -> u64 {
        SECTOR_SIZE << self.shift
    }

    /// The binary logarithm of the size in sectors.
    pub(crate) fn shift(self) -> u32 {
        self.shift
    }

    /// The chunk in which a sector lies.
    pub(crate) fn chunk_of(self, sector: Sector) -> Chunk {
        Chunk(sector.0 >> self.shift)
    }

    /// The first sector of a chunk; stops at the last sector there is.
    pub(crate) fn first_sector(self, chunk: Chunk) -> Sector {
        Sector(chunk.0.checked_shl(self.shift).map_or(u64::MAX, |s| {
            if s >> self.shift == chunk.0 {
                s
            } else {
                u64::MAX
            }
        }))
    }

    /// How far into its chunk a sector lies, in sectors.
    pub(crate) fn offset_in_chunk(self, sector: Sector) -> u64 {
        sector.0 & (self.sectors() - 1)
    }

    /// The chunks that a range of sectors touches.
    #[inline]
    pub(crate) fn chunks_of(self, range: Sectors) -> Chunks {
        if range.is_empty() {
            let at = range.start >> self.shift;
            return Chunks { start: at, end: at };
        }
        Chunks {
            start: range.start >> self.shift,
            end: ((range.end - 1) >> self.shift) + 1,
        }
    }

    /// The sectors of a range of chunks.
    pub(crate) fn sectors_of(self, range: Chunks) -> Sectors {
        Sectors {
            start: self.first_sector(Chunk(range.start)).0,
            end: self.first_sector(Chunk(range.end)).0,
        }
    }
}

/// The number of slots that the spans of an origin are dealt out to. A power of two.
pub(crate) const SLOTS: usize = 256;

/// The size of the spans that an origin is cut into: a power of two of sectors, and no smaller
/// than the chunks of any of its snapshots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SpanSize {
    shift: u32,
}

impl SpanSize {
    /// The smallest: a mebibyte.
    pub(crate) const MIN: Self = Self { shift: 11 };

    /// The size whose binary logarithm in sectors is `shift`.
    pub(crate) fn from_shift(shift: u32) -> Self {
        Self { shift }
    }

    /// The binary logarithm of the size in sectors.
    pub(crate) fn shift(self) -> u32 {
        self.shift
    }

    /// The size for an origin that gets a snapshot with chunks of that size.
    pub(crate) fn with_chunks(self, chunk_size: ChunkSize) -> Self {
        Self {
            shift: self.shift.max(chunk_size.shift()),
        }
    }

    /// The end of the span in which a sector lies.
    pub(crate) fn end_of(self, sector: Sector) -> Sector {
        let next = (sector.0 >> self.shift).saturating_add(1);
        Sector(next.checked_mul(1 << self.shift).unwrap_or(u64::MAX))
    }

    /// The slot of the span in which a sector lies: less than [`SLOTS`].
    pub(crate) fn slot_of(self, sector: Sector) -> u32 {
        // Neighbours in different slots, and no stride that is a power of two in one slot only.
        let span = sector.0 >> self.shift;
        let mixed = span ^ (span >> 8) ^ (span >> 16) ^ (span >> 32);
        (mixed % SLOTS as u64) as u32
    }
}
