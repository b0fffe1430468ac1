// SPDX-License-Identifier: GPL-2.0

//! The persistent on-disk format, version 1: that of the kernel's `snapshot` target.
//!
//! All numbers are little-endian. Chunk 0 of the COW device holds the header:
//!
//! ```text
//! 0  u32  magic, "SnAp"; 0 on a fresh device
//! 4  u32  1 if the snapshot is valid
//! 8  u32  version, 1
//! 12 u32  chunk size in sectors
//! ```
//!
//! Chunk 1 is the first metadata area. An area is one chunk of records of 16 bytes, and
//! describes as many data chunks as it has records; behind so many data chunks comes the
//! next area. A record with the new chunk 0 ends the list, since chunk 0 is the header:
//!
//! ```text
//! 0  u64  old chunk, on the origin
//! 8  u64  new chunk, on the COW device
//! ```
//!
//! The data chunks need not be used in the order of the records.

#![deny(unsafe_code)]

use crate::units::{Chunk, ChunkSize};
use core::fmt::{self, Write};

/// "SnAp".
pub(crate) const MAGIC: u32 = 0x7041_6e53;

/// The version that this file reads and writes.
pub(crate) const VERSION: u32 = 1;

/// The number of chunks before the first area.
pub(crate) const HEADER_CHUNKS: u64 = 1;

/// The bytes that the header takes.
pub(crate) const HEADER_BYTES: usize = 16;

/// The bytes that a record takes.
pub(crate) const RECORD_BYTES: usize = 16;

/// The largest chunk size in sectors, as in the kernel's `snapshot` target: a chunk is less
/// than 2^31 bytes.
pub(crate) const MAX_CHUNK_SECTORS: u64 = ((1 << 31) - 1) >> 9;

/// The little-endian number of 4 bytes at `at`.
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// The little-endian number of 8 bytes at `at`.
fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

/// What the header says of a device that has been used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    /// Whether the snapshot is usable.
    pub(crate) valid: bool,
    /// The size of a chunk.
    pub(crate) chunk_size: ChunkSize,
}

/// Why a header is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HeaderError {
    /// There are too few bytes.
    Short,
    /// The magic number is another.
    Magic(u32),
    /// The version is another.
    Version(u32),
    /// The chunk size is zero, no power of two or too large.
    ChunkSize(u32),
}

impl HeaderError {
    /// Says in a sentence what is wrong.
    pub(crate) fn write(&self, w: &mut dyn Write) -> fmt::Result {
        match self {
            Self::Short => write!(w, "COW header is cut short"),
            Self::Magic(found) => write!(
                w,
                "COW header has the magic number {found:#010x}, not {MAGIC:#010x}: \
                 not a snapshot, or a damaged one"
            ),
            Self::Version(found) => write!(
                w,
                "COW header has the version {found}, only version {VERSION} is known"
            ),
            Self::ChunkSize(found) => write!(
                w,
                "COW header has the chunk size {found}, not a power of two from 1 to \
                 {MAX_CHUNK_SECTORS} sectors"
            ),
        }
    }
}

impl kernel::fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f)
    }
}

impl Header {
    /// Reads a header; `None` if the device is fresh.
    ///
    /// # Errors
    ///
    /// See [`HeaderError`].
    pub(crate) fn decode(bytes: &[u8]) -> Result<Option<Self>, HeaderError> {
        let field = |at| u32_at(bytes, at).ok_or(HeaderError::Short);
        let (magic, valid, version, sectors) = (field(0)?, field(4)?, field(8)?, field(12)?);
        if magic == 0 {
            return Ok(None);
        }
        if magic != MAGIC {
            return Err(HeaderError::Magic(magic));
        }
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        let chunk_size = ChunkSize::from_sectors(u64::from(sectors))
            .ok()
            .filter(|size| size.sectors() <= MAX_CHUNK_SECTORS)
            .ok_or(HeaderError::ChunkSize(sectors))?;
        Ok(Some(Self {
            valid: valid != 0,
            chunk_size,
        }))
    }

    /// The bytes of the header; the rest of its chunk is zero.
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let [m0, m1, m2, m3] = MAGIC.to_le_bytes();
        let [v0, v1, v2, v3] = u32::from(self.valid).to_le_bytes();
        let [n0, n1, n2, n3] = VERSION.to_le_bytes();
        let [s0, s1, s2, s3] = (self.chunk_size.sectors() as u32).to_le_bytes();
        [
            m0, m1, m2, m3, v0, v1, v2, v3, n0, n1, n2, n3, s0, s1, s2, s3,
        ]
    }
}

/// One chunk that is on the COW device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    /// Which, on the origin.
    pub(crate) old: Chunk,
    /// Where, on the COW device.
    pub(crate) new: Chunk,
}

impl Record {
    /// Reads record `index` of an area; `None` if it ends the list, or the area ends.
    pub(crate) fn decode(area: &[u8], index: u32) -> Option<Self> {
        let at = usize::try_from(index).ok()?.checked_mul(RECORD_BYTES)?;
        let old = u64_at(area, at)?;
        let new = u64_at(area, at.checked_add(8)?)?;
        (new != 0).then_some(Self {
            old: Chunk(old),
            new: Chunk(new),
        })
    }

    /// The bytes of the record.
    pub(crate) fn encode(&self) -> [u8; RECORD_BYTES] {
        let record = (u128::from(self.new.0) << 64) | u128::from(self.old.0);
        record.to_le_bytes()
    }

    /// Writes the record as number `index` of an area; false if the area ends before.
    #[allow(dead_code)] // The host tests look at it.
    pub(crate) fn encode_into(&self, area: &mut [u8], index: u32) -> bool {
        let place = usize::try_from(index)
            .ok()
            .and_then(|i| i.checked_mul(RECORD_BYTES))
            .and_then(|at| area.get_mut(at..at.checked_add(RECORD_BYTES)?));
        match place {
            Some(bytes) => {
                bytes.copy_from_slice(&self.encode());
                true
            }
            None => false,
        }
    }
}

/// What is wrong with a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RecordError {
    /// The new chunk lies beyond the end of the COW device.
    BeyondDevice,
    /// The new chunk is the header.
    Header,
    /// The new chunk is a metadata area.
    Metadata,
    /// The old chunk lies beyond the end of the origin.
    BeyondOrigin,
    /// An earlier record has the same new chunk.
    NewTwice,
    /// An earlier record has the same old chunk.
    OldTwice,
}

impl RecordError {
    /// What is wrong, to come after the name of the record.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::BeyondDevice => "the new chunk lies beyond the end of the COW device",
            Self::Header => "the new chunk is the header",
            Self::Metadata => "the new chunk is a metadata area",
            Self::BeyondOrigin => "the old chunk lies beyond the end of the origin",
            Self::NewTwice => "an earlier record uses the same new chunk",
            Self::OldTwice => "an earlier record has the same old chunk",
        }
    }
}

/// A record that is refused, by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BadRecord {
    /// The area it is in.
    pub(crate) area: u64,
    /// Its number there.
    pub(crate) index: u32,
    /// What it says.
    pub(crate) record: Record,
    /// What is wrong with it.
    pub(crate) error: RecordError,
}

impl BadRecord {
    /// Says in a sentence which record it is and what is wrong.
    pub(crate) fn write(&self, w: &mut dyn Write) -> fmt::Result {
        write!(
            w,
            "bad metadata: record {} of area {} (old chunk {}, new chunk {}): {}",
            self.index,
            self.area,
            self.record.old.0,
            self.record.new.0,
            self.error.text()
        )
    }
}

impl kernel::fmt::Display for BadRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f)
    }
}

/// Where things are on a COW device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    /// The size of a chunk.
    pub(crate) chunk_size: ChunkSize,
    /// How many records an area has.
    pub(crate) per_area: u32,
    /// How many whole chunks the COW device has.
    pub(crate) total_chunks: u64,
    /// How many chunks the origin has, the last of them perhaps in part.
    pub(crate) origin_chunks: u64,
}

impl Layout {
    /// The layout for a COW device and an origin of so many sectors; `None` if the chunk
    /// size is larger than [`MAX_CHUNK_SECTORS`].
    pub(crate) fn new(
        chunk_size: ChunkSize,
        cow_sectors: u64,
        origin_sectors: u64,
    ) -> Option<Self> {
        if chunk_size.sectors() > MAX_CHUNK_SECTORS {
            return None;
        }
        Some(Self {
            chunk_size,
            per_area: u32::try_from(chunk_size.bytes() / RECORD_BYTES as u64).ok()?,
            total_chunks: cow_sectors >> chunk_size.shift(),
            origin_chunks: origin_sectors.div_ceil(chunk_size.sectors()),
        })
    }

    /// From one area to the next, in chunks: 33 at least.
    pub(crate) fn stride(&self) -> u64 {
        u64::from(self.per_area).saturating_add(1)
    }

    /// The chunk of an area; `None` if there can be none so far out.
    pub(crate) fn area_chunk(&self, area: u64) -> Option<Chunk> {
        let chunk = area
            .checked_mul(self.stride())?
            .checked_add(HEADER_CHUNKS)?;
        Some(Chunk(chunk))
    }

    /// How many areas the COW device has, the last of them perhaps with no data behind it.
    pub(crate) fn areas(&self) -> u64 {
        self.total_chunks
            .saturating_sub(HEADER_CHUNKS)
            .div_ceil(self.stride())
    }

    /// Whether a chunk is the header or a metadata area.
    pub(crate) fn is_metadata(&self, chunk: Chunk) -> bool {
        chunk.0 < HEADER_CHUNKS || chunk.0 % self.stride() == HEADER_CHUNKS
    }

    /// Whether the device has room for the header, one area and one chunk of data that can
    /// be recorded.
    pub(crate) fn is_large_enough(&self) -> bool {
        self.usable_end() > HEADER_CHUNKS.saturating_add(1)
    }

    /// Where the chunks that may be used end.
    ///
    /// The last record of an area may be written only when the next area is empty on stable
    /// media. On a device that ends exactly where its next area would begin there is none,
    /// and the last chunk is left unused, so that the last area never fills: else the area
    /// that exists once the device has grown would be read with whatever it happens to hold,
    /// and the kernel's `snapshot` target could not open the device at all.
    pub(crate) fn usable_end(&self) -> u64 {
        if self.total_chunks > HEADER_CHUNKS && self.is_metadata(Chunk(self.total_chunks)) {
            self.total_chunks.saturating_sub(1)
        } else {
            self.total_chunks
        }
    }

    /// Checks that a record says what it may say.
    ///
    /// # Errors
    ///
    /// See [`RecordError`]. That no other record has the same chunks is not known here.
    pub(crate) fn check(&self, record: &Record) -> Result<(), RecordError> {
        if record.new.0 < HEADER_CHUNKS {
            return Err(RecordError::Header);
        }
        if record.new.0 >= self.total_chunks {
            return Err(RecordError::BeyondDevice);
        }
        if self.is_metadata(record.new) {
            return Err(RecordError::Metadata);
        }
        if record.old.0 >= self.origin_chunks {
            return Err(RecordError::BeyondOrigin);
        }
        Ok(())
    }
}
