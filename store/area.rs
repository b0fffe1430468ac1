// SPDX-License-Identifier: GPL-2.0

//! What the persistent store decides: where data goes, where records go, and what a device
//! that is opened again says.
//!
//! - [`Allocator`]: which chunks of the COW device are free (the transient store uses it too).
//! - [`Cursor`]: where the next records go, in which pieces they are written, and which
//!   metadata areas must be zeroed before.
//! - [`Scan`]: reads the areas of a used device, checks every record, and gives the other
//!   two as they must go on.
//!
//! Nothing here does I/O.
//!
//! # What a crash leaves
//!
//! Records are read until one is empty. Whatever the device holds behind that must never be
//! taken for a record later, when the empty one has been filled. Hence:
//!
//! - an area is written to its last record only when the next area is zeroed on stable
//!   media ([`Cursor::plan`] sees to it, [`Cursor::wants_zeroing`] keeps ahead of it);
//! - a batch of records that was cut short by a crash may be there in its later blocks and
//!   not in its earlier ones. [`Scan`] finds what lies behind the first empty record, and
//!   the cursor asks for it to be zeroed before anything is written there;
//! - the areas behind that one are zeroed anew before they are reached;
//! - if the device ends where the next area would be, the last area is never filled
//!   ([`Layout::usable_end`]), so that the device may grow.

#![deny(unsafe_code)]

use super::format::{BadRecord, Layout, Record, RecordError, RECORD_BYTES};
use crate::exception::{MAX_ENTRY, MAX_NEW};
use crate::units::{Chunk, Chunks};
use core::ops::Range;
use kernel::prelude::*;

/// How many areas behind the current one are zeroed ahead.
const ZERO_AHEAD: u64 = 2;

/// How many runs can be given back without memory being allocated.
const GIVE_BACK: usize = 64;

/// How many holes an exact fit may move in the list; with more it is left for later.
const MAX_SHIFT: usize = 1024;

/// Which chunks of a COW device are free.
///
/// Chunks are handed out in ascending order as long as there are any behind the last one
/// used, so that runs stay long and the device is written in sequence. A hole before that
/// is used at once if it is exactly as long as what is wanted, since then it neither cuts
/// the run short nor leaves a smaller hole. All other holes wait until there is nothing
/// left behind the last chunk used; then the longest goes first.
pub(crate) struct Allocator {
    /// Of the persistent format; none for a transient store.
    layout: Option<Layout>,
    /// Where the usable chunks end.
    end: u64,
    /// The device's size in chunks.
    total: u64,
    /// From here on all chunks are free.
    next_free: u64,
    /// The hole which is being used up.
    current: Chunks,
    /// Sorted by length.
    holes: KVVec<Chunks>,
    /// The sum of their lengths.
    in_holes: u64,
}

impl Allocator {
    /// For a transient store: every chunk may be used.
    pub(crate) fn transient(total_chunks: u64) -> Self {
        Self::new(None, total_chunks, 0)
    }

    /// For a fresh persistent store.
    pub(crate) fn fresh(layout: &Layout) -> Self {
        let mut new = Self::new(Some(*layout), layout.total_chunks, 1);
        new.skip_metadata();
        new
    }

    fn new(layout: Option<Layout>, total_chunks: u64, next_free: u64) -> Self {
        let mut new = Self {
            layout,
            end: 0,
            total: 0,
            next_free,
            current: Chunks::default(),
            holes: KVVec::new(),
            in_holes: 0,
        };
        new.set_total(total_chunks);
        new
    }

    /// Takes note of the size of the device, which may have changed.
    pub(crate) fn set_total(&mut self, total_chunks: u64) {
        if total_chunks == self.total {
            return;
        }
        self.total = total_chunks;
        self.end = match self.layout.as_mut() {
            Some(layout) => {
                layout.total_chunks = total_chunks;
                layout.usable_end()
            }
            None => total_chunks,
        };
        // The exception table names no chunks beyond that.
        self.end = self.end.min(MAX_NEW);
        // If it shrank, what it has no more is not handed out.
        let end = self.end;
        self.holes.retain(|hole| hole.end <= end);
        self.in_holes = self.holes.iter().fold(0, |n, h| n.saturating_add(h.len()));
        self.current.end = self.current.end.min(end);
    }

    fn is_metadata(&self, chunk: u64) -> bool {
        self.layout.is_some_and(|l| l.is_metadata(Chunk(chunk)))
    }

    fn skip_metadata(&mut self) {
        if self.is_metadata(self.next_free) {
            self.next_free = self.next_free.saturating_add(1);
        }
    }

    /// Leaves a chunk of the last hole unused. The kernel's `snapshot` target has
    /// used the one at the end that is left unused here (see [`Layout::usable_end`]); without
    /// another in its stead, the last chunk handed out would have no place for its record.
    fn drop_hole_chunk(&mut self) {
        if let Some(mut hole) = self.holes.pop() {
            hole.end = hole.end.saturating_sub(1);
            self.in_holes = self.in_holes.saturating_sub(1);
            if hole.len() != 0 {
                // There is room, as one was just taken off.
                let _ = self.holes.push_within_capacity(hole);
            }
        }
    }

    /// All chunks from `from`, which is no metadata, to `end` or the next metadata.
    fn data_run(&self, from: u64, end: u64) -> Chunks {
        let behind = match &self.layout {
            Some(layout) => {
                let stride = layout.stride();
                // Areas are the chunks whose number modulo the stride is 1.
                let to_next = match from % stride {
                    0 => 1,
                    into => stride.saturating_add(1).saturating_sub(into),
                };
                from.saturating_add(to_next)
            }
            None => u64::MAX,
        };
        Chunks {
            start: from,
            end: end.min(behind),
        }
    }

    /// Hands out at most `want` consecutive chunks, and never more than the exception table
    /// takes at once; `None` if none is free.
    pub(crate) fn alloc(&mut self, want: u64) -> Option<Chunks> {
        if want == 0 {
            return None;
        }
        let want = want.min(MAX_ENTRY);
        if let Some(hole) = self.take_hole_of(want) {
            return Some(hole);
        }
        if self.next_free < self.end {
            let free = self.data_run(self.next_free, self.end);
            let run = Chunks::new(Chunk(free.start), free.len().min(want));
            self.next_free = run.end;
            self.skip_metadata();
            return Some(run);
        }
        if self.current.len() == 0 {
            self.current = self.holes.pop()?;
            self.in_holes = self.in_holes.saturating_sub(self.current.len());
        }
        let run = Chunks::new(Chunk(self.current.start), self.current.len().min(want));
        self.current.start = run.end;
        Some(run)
    }

    /// Takes a hole of exactly this length.
    fn take_hole_of(&mut self, len: u64) -> Option<Chunks> {
        // The last one of its length, behind which the fewest have to be moved.
        let at = self
            .holes
            .partition_point(|h| h.len() <= len)
            .checked_sub(1)?;
        let fits = self.holes.get(at)?.len() == len;
        if !fits || self.holes.len().saturating_sub(at) > MAX_SHIFT {
            return None;
        }
        let hole = self.holes.remove(at).ok()?;
        self.in_holes = self.in_holes.saturating_sub(hole.len());
        Some(hole)
    }

    /// Takes chunks back which were handed out and of which no record was written.
    ///
    /// Allocates nothing: when more holes come together than there is room for, the chunks
    /// are free again only when the device is next opened, and the answer is false.
    pub(crate) fn give_back(&mut self, run: Chunks) -> bool {
        if run.len() == 0 {
            return true;
        }
        let behind = run.end.saturating_add(u64::from(self.is_metadata(run.end)));
        if behind == self.next_free {
            self.next_free = run.start;
            return true;
        }
        if self.current.len() != 0 && run.end == self.current.start {
            self.current.start = run.start;
            return true;
        }
        if run.end > self.end {
            return false;
        }
        let at = self.holes.partition_point(|h| h.len() < run.len());
        let kept = self.holes.insert_within_capacity(at, run).is_ok();
        if kept {
            self.in_holes = self.in_holes.saturating_add(run.len());
        }
        kept
    }

    /// Makes room for runs to be given back. Allocates and sleeps.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn reserve(&mut self) -> Result {
        self.holes.reserve(GIVE_BACK, GFP_KERNEL)?;
        Ok(())
    }

    /// From this chunk on all are free: what the status line calls allocated.
    pub(crate) fn next_free(&self) -> Chunk {
        Chunk(self.next_free.min(self.total))
    }

    /// How many chunks are free.
    pub(crate) fn free_chunks(&self) -> u64 {
        let behind = self.end.saturating_sub(self.next_free);
        let metadata = match &self.layout {
            Some(layout) if behind != 0 => {
                let areas_before = |c: u64| c.saturating_sub(1).div_ceil(layout.stride());
                areas_before(self.end).saturating_sub(areas_before(self.next_free))
            }
            _ => 0,
        };
        behind
            .saturating_sub(metadata)
            .saturating_add(self.in_holes)
            .saturating_add(self.current.len())
    }
}

/// Which chunks of a COW device are used: collected while its records are read.
pub(crate) struct Usage {
    /// A bit for each chunk.
    words: KVVec<u64>,
    /// All chunks from here on are free.
    end: u64,
}

impl Usage {
    /// None is used.
    pub(crate) const fn new() -> Self {
        Self {
            words: KVVec::new(),
            end: 0,
        }
    }

    /// Marks a chunk as used; answers whether it was free. The caller has checked that it
    /// lies in the device.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn mark(&mut self, chunk: Chunk) -> Result<bool> {
        let index = usize::try_from(chunk.0 / 64)?;
        let needed = index.checked_add(1).ok_or(ENOMEM)?;
        if let Some(more) = needed.checked_sub(self.words.len()).filter(|n| *n != 0) {
            // A damaged record on a huge device must not be reported as a kernel bug.
            self.words.extend_with(more, 0, GFP_KERNEL | __GFP_NOWARN)?;
        }
        let word = self.words.get_mut(index).ok_or(EINVAL)?;
        let bit = 1u64 << (chunk.0 % 64);
        let was_free = *word & bit == 0;
        *word |= bit;
        self.end = self.end.max(chunk.0.saturating_add(1));
        Ok(was_free)
    }

    /// The first chunk from `from` on that is used, or is not; `end` if there is none.
    fn find(&self, from: u64, used: bool) -> u64 {
        let mut at = from;
        while at < self.end {
            let word = usize::try_from(at / 64)
                .ok()
                .and_then(|i| self.words.get(i))
                .copied()
                .unwrap_or(0);
            let wanted = if used { word } else { !word };
            let ahead = wanted >> (at % 64);
            if ahead != 0 {
                let found = at.saturating_add(u64::from(ahead.trailing_zeros()));
                return found.min(self.end);
            }
            at = (at / 64).saturating_add(1).saturating_mul(64);
        }
        self.end
    }

    /// Everything that is not marked is free.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn into_allocator(self, layout: &Layout) -> Result<Allocator> {
        let mut allocator = Allocator::fresh(layout);
        let mut at = allocator.next_free;
        while at < self.end {
            let free_from = self.find(at, false);
            let free_to = self.find(free_from, true);
            let mut from = free_from;
            while from < free_to {
                if allocator.is_metadata(from) {
                    from = from.saturating_add(1);
                    continue;
                }
                let hole = allocator.data_run(from, free_to);
                allocator.holes.push(hole, GFP_KERNEL | __GFP_NOWARN)?;
                allocator.in_holes = allocator.in_holes.saturating_add(hole.len());
                from = hole.end;
            }
            at = free_to.max(at.saturating_add(1));
        }
        if self.end > allocator.end {
            allocator.drop_hole_chunk();
        }
        allocator.next_free = allocator.next_free.max(self.end);
        allocator.skip_metadata();
        allocator.holes.sort_unstable_by_key(Chunks::len);
        allocator.reserve()?;
        Ok(allocator)
    }
}

/// Records of one area that lie side by side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Piece {
    /// The area.
    pub(crate) area: u64,
    /// The number of the first record in it.
    pub(crate) first: u32,
    /// How many records.
    pub(crate) count: u32,
}

impl Piece {
    /// The bytes of the area's chunk that must be written: whole blocks of `block` bytes, a
    /// power of two.
    pub(crate) fn bytes(&self, block: u32) -> Range<u64> {
        let record = RECORD_BYTES as u64;
        let start = u64::from(self.first).saturating_mul(record);
        let len = u64::from(self.count).saturating_mul(record);
        let block = u64::from(block.max(1));
        let end = start.saturating_add(len).div_ceil(block);
        (start / block).saturating_mul(block)..end.saturating_mul(block)
    }
}

/// The records that are written together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Batch {
    area: u64,
    first: u32,
    records: u64,
    per_area: u32,
}

impl Batch {
    /// How many records are in it; perhaps fewer than were asked for.
    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    /// Its pieces, in the order of the records; each in another area.
    pub(crate) fn pieces(&self) -> Pieces {
        Pieces { rest: *self }
    }

    /// Takes the piece in the first area off.
    fn split(&mut self) -> Option<Piece> {
        if self.records == 0 {
            return None;
        }
        let room = self.per_area.saturating_sub(self.first);
        let count = u32::try_from(self.records).map_or(room, |n| n.min(room));
        let piece = Piece {
            area: self.area,
            first: self.first,
            count,
        };
        self.records = self.records.saturating_sub(u64::from(count));
        self.first = self.first.saturating_add(count);
        if self.first >= self.per_area {
            self.area = self.area.saturating_add(1);
            self.first = 0;
        }
        Some(piece)
    }
}

/// The pieces of a [`Batch`].
pub(crate) struct Pieces {
    rest: Batch,
}

impl Iterator for Pieces {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        self.rest.split()
    }
}

/// Records that must be zero on stable media: from one of them to the end of its area.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Zeroing {
    /// The area.
    pub(crate) area: u64,
    /// The first record in it that must be zero. Not 0 only for the area in use, after a
    /// crash: the records before it stay.
    pub(crate) first: u32,
    per_area: u32,
    /// How many times the device had become smaller when this was asked for.
    shrunk: u64,
}

impl Zeroing {
    /// The records.
    pub(crate) fn piece(&self) -> Piece {
        Piece {
            area: self.area,
            first: self.first,
            count: self.per_area.saturating_sub(self.first),
        }
    }
}

/// Why no record can be placed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PlanError {
    /// This must be zeroed first: see [`Cursor::zeroed`].
    NeedZeroed(Zeroing),
    /// There is no place left for a record on the device.
    NoSpace,
}

/// Where the next record goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cursor {
    area: u64,
    index: u32,
    per_area: u32,
    /// How many areas the device has.
    areas: u64,
    /// The areas before this one hold nothing, on stable media, that was not written by
    /// this cursor or read by the scan.
    zeroed_until: u64,
    /// How many times the device has become smaller.
    shrunk: u64,
}

impl Cursor {
    /// For a fresh device, on which the first area has been zeroed.
    pub(crate) fn fresh(layout: &Layout) -> Self {
        Self::resume(layout, 0, 0, true)
    }

    /// For a device on which the first empty record is number `index` of `area`. `clean`
    /// says whether all that lies behind it in that area is zero.
    pub(crate) fn resume(layout: &Layout, area: u64, index: u32, clean: bool) -> Self {
        let areas = layout.areas();
        Self {
            area,
            index,
            per_area: layout.per_area,
            areas,
            zeroed_until: if clean && area < areas {
                area.saturating_add(1)
            } else {
                area
            },
            shrunk: 0,
        }
    }

    /// Takes note of the size of the device, which may have changed.
    pub(crate) fn set_layout(&mut self, layout: &Layout) {
        let areas = layout.areas();
        if areas < self.areas {
            self.shrunk = self.shrunk.wrapping_add(1);
            // Whatever may stand where an area has been, if the device grows again.
            let there = areas.max(self.area.saturating_add(1));
            self.zeroed_until = self.zeroed_until.min(there);
        }
        self.areas = areas;
    }

    /// Whether what was to be zeroed may have been cut off from the device since.
    pub(crate) fn is_gone(&self, zeroing: &Zeroing) -> bool {
        zeroing.shrunk != self.shrunk
    }

    /// The area in which the next record goes, and its number there.
    pub(crate) fn position(&self) -> (u64, u32) {
        (self.area, self.index)
    }

    /// How many records there are.
    pub(crate) fn records(&self, layout: &Layout) -> u64 {
        let before = self.area.saturating_mul(u64::from(layout.per_area));
        before.saturating_add(u64::from(self.index))
    }

    /// How many chunks the header and the areas up to the current one are: the status
    /// line's metadata sectors, in chunks.
    pub(crate) fn metadata_chunks(&self) -> u64 {
        let last = self.areas.saturating_sub(1);
        self.area.min(last).saturating_add(2)
    }

    /// The places for at most `records` records in blocks of `block` bytes, of which at most
    /// `max_bytes` are written: as many as can be written now.
    ///
    /// # Errors
    ///
    /// See [`PlanError`]: if it is none at all.
    pub(crate) fn plan(
        &self,
        records: u64,
        block: u32,
        max_bytes: u64,
    ) -> Result<Batch, PlanError> {
        let mut batch = Batch {
            area: self.area,
            first: self.index,
            records: 0,
            per_area: self.per_area,
        };
        let record = RECORD_BYTES as u64;
        let block = u64::from(block).max(record);
        // One block at least, or nothing would ever be written.
        let mut blocks = (max_bytes / block).max(1);
        let (mut area, mut index) = (self.area, u64::from(self.index));
        let per_area = u64::from(self.per_area);

        while batch.records < records && blocks != 0 {
            if area >= self.zeroed_until {
                break;
            }
            let next = area.saturating_add(1);
            let mut room = per_area.saturating_sub(index);
            let may_fill = next < self.zeroed_until;
            if !may_fill {
                room = room.saturating_sub(1);
            }
            let first_block = index.saturating_mul(record) / block;
            let reach = first_block.saturating_add(blocks).saturating_mul(block) / record;
            room = room.min(reach.saturating_sub(index));
            let count = room.min(records.saturating_sub(batch.records));
            if count == 0 {
                break;
            }
            batch.records = batch.records.saturating_add(count);
            index = index.saturating_add(count);
            let used = index.saturating_mul(record).div_ceil(block);
            blocks = blocks.saturating_sub(used.saturating_sub(first_block));
            if index < per_area {
                break;
            }
            area = next;
            index = 0;
        }
        if batch.records != 0 || records == 0 {
            return Ok(batch);
        }
        Err(match self.next_to_zero() {
            Some(zeroing) => PlanError::NeedZeroed(zeroing),
            None => PlanError::NoSpace,
        })
    }

    /// The records of a planned batch are on stable media.
    pub(crate) fn advance(&mut self, batch: &Batch) {
        for piece in batch.pieces() {
            self.area = piece.area;
            self.index = piece.first.saturating_add(piece.count);
        }
        if self.index >= self.per_area {
            self.area = self.area.saturating_add(1);
            self.index = 0;
        }
        // What has been written to was zero when this was planned, whatever was said of the size
        // since.
        let written_until = self.area.saturating_add(u64::from(self.index != 0));
        self.zeroed_until = self.zeroed_until.max(written_until);
    }

    /// The last records, at most `most` of them and all in one area; `None` if there are none.
    pub(crate) fn last(&self, most: u32) -> Option<Piece> {
        let (area, end) = match self.index {
            0 => (self.area.checked_sub(1)?, self.per_area),
            index => (self.area, index),
        };
        let count = end.min(most);
        Some(Piece {
            area,
            first: end.saturating_sub(count),
            count,
        })
    }

    /// The last records have been removed from stable media: all from the first of the piece on.
    pub(crate) fn retreat(&mut self, piece: &Piece) {
        self.area = piece.area;
        self.index = piece.first;
    }

    /// What is zeroed next.
    fn next_to_zero(&self) -> Option<Zeroing> {
        let area = self.zeroed_until;
        (area < self.areas).then_some(Zeroing {
            area,
            first: if area == self.area { self.index } else { 0 },
            per_area: self.per_area,
            shrunk: self.shrunk,
        })
    }

    /// What should be zeroed now, one at a time, so that no record has to wait for it.
    pub(crate) fn wants_zeroing(&self) -> Option<Zeroing> {
        let ahead = self.area.saturating_add(ZERO_AHEAD);
        self.next_to_zero().filter(|z| z.area <= ahead)
    }

    /// What was asked for is zero on stable media.
    pub(crate) fn zeroed(&mut self, zeroing: &Zeroing) {
        if zeroing.area == self.zeroed_until && !self.is_gone(zeroing) {
            self.zeroed_until = zeroing.area.saturating_add(1);
        }
    }
}

/// Why a record is not taken by who builds the table from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refused {
    /// Its old chunk is mapped already.
    OldTwice,
    /// Something else went wrong, for instance there is no memory.
    Failed(Error),
}

/// Why a device is not opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ScanError {
    /// A record says what it may not say.
    Bad(BadRecord),
    /// Something else went wrong.
    Failed(Error),
}

/// Reads the areas of a used device in their order.
pub(crate) struct Scan {
    layout: Layout,
    usage: Usage,
    area: u64,
    records: u64,
    /// Once the end is found: where the cursor stands.
    end: Option<Cursor>,
}

impl Scan {
    /// Nothing is read yet.
    pub(crate) fn new(layout: &Layout) -> Self {
        Self {
            layout: *layout,
            usage: Usage::new(),
            area: 0,
            records: 0,
            end: None,
        }
    }

    /// The chunk of the area that is to be read next; `None` if all have been.
    pub(crate) fn wants(&self) -> Option<Chunk> {
        if self.end.is_some() || self.area >= self.layout.areas() {
            return None;
        }
        self.layout.area_chunk(self.area)
    }

    /// How many records there were so far.
    #[allow(dead_code)] // The host tests look at it.
    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    /// Takes the contents of the area that was asked for, and hands its records on.
    ///
    /// # Errors
    ///
    /// See [`ScanError`].
    pub(crate) fn area(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(Record) -> Result<(), Refused>,
    ) -> Result<(), ScanError> {
        let per_area = self.layout.per_area;
        let size = usize::try_from(per_area)
            .ok()
            .and_then(|n| n.checked_mul(RECORD_BYTES));
        let bytes = size
            .and_then(|n| bytes.get(..n))
            .ok_or(ScanError::Failed(EINVAL))?;
        for index in 0..per_area {
            let Some(record) = Record::decode(bytes, index) else {
                let behind = (index as usize).saturating_mul(RECORD_BYTES);
                let rest = bytes.get(behind..).unwrap_or_default();
                let clean = rest.iter().all(|byte| *byte == 0);
                self.end = Some(Cursor::resume(&self.layout, self.area, index, clean));
                return Ok(());
            };
            let bad = |error| {
                ScanError::Bad(BadRecord {
                    area: self.area,
                    index,
                    record,
                    error,
                })
            };
            self.layout.check(&record).map_err(bad)?;
            if !self.usage.mark(record.new).map_err(ScanError::Failed)? {
                return Err(bad(RecordError::NewTwice));
            }
            each(record).map_err(|refused| match refused {
                Refused::OldTwice => bad(RecordError::OldTwice),
                Refused::Failed(error) => ScanError::Failed(error),
            })?;
            self.records = self.records.saturating_add(1);
        }
        self.area = self.area.saturating_add(1);
        Ok(())
    }

    /// Whether the end of the records has been found. If it has not when no area is wanted any
    /// more, the last area is full: all programs leave room for an end, so there has been another
    /// one, on a device that was larger.
    pub(crate) fn has_end(&self) -> bool {
        self.end.is_some()
    }

    /// How things go on: which chunks are free, and where the next record goes.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the end of the records has not been found, `ENOMEM`.
    pub(crate) fn finish(self) -> Result<(Allocator, Cursor)> {
        let cursor = self.end.ok_or(EINVAL)?;
        Ok((self.usage.into_allocator(&self.layout)?, cursor))
    }
}
