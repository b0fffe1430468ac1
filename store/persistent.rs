// SPDX-License-Identifier: GPL-2.0

//! A COW device in the persistent format, and its records on their way to it.
//!
//! The store decides, its caller does the I/O: [`Persistent::begin`] says what is to be written
//! next, as bytes in the caller's buffers, and [`Persistent::finish`] hears that it is on stable
//! media. Between the two nothing else is begun, so that blocks are written in their order.
//!
//! Records are written in whole blocks of the device, not in whole chunks. What is already in
//! the block in which the next record goes is kept in memory, since it is written again with it.

#![deny(unsafe_code)]

use super::{
    area::{Allocator, Batch, Cursor, Piece, PlanError, Zeroing},
    format::{Layout, Record, RECORD_BYTES},
    NoChunk,
};
use crate::{
    dm::Buffer,
    pending::Saved,
    units::{Chunk, Chunks, Sector},
};
use kernel::{
    new_spinlock_irq,
    prelude::*,
    sync::SpinLockIrq, //
};

/// How many pieces, each in an area of its own, are written at a time.
pub(crate) const LANES: usize = 2;

/// The most bytes of a piece. A lane's buffer is at least as large, and holds at least a block.
pub(crate) const LANE_BYTES: usize = 16 << 10;

/// A persistent store.
#[pin_data]
pub(crate) struct Persistent {
    /// The bytes of a logical block of the COW device.
    block: u32,
    origin_sectors: u64,
    #[pin]
    state: SpinLockIrq<State>,
}

/// For how many runs there is room from the beginning.
const ROOM: usize = 256;

struct State {
    layout: Layout,
    allocator: Allocator,
    cursor: Cursor,
    /// Exceptions whose data is on the COW device, in the order in which their records are
    /// written. There is always room for `outstanding` of them.
    ready: KVVec<Saved>,
    /// How many records of the first of them are on stable media already.
    head: u64,
    /// How many records there are in `ready` which are not.
    records: u64,
    /// How many runs were handed out that are not yet on stable media.
    outstanding: usize,
    /// The block in which the next record goes, as it is on the device; a merge, which writes
    /// none, does not care for it.
    tail: KVec<u8>,
    in_flight: Option<Batch>,
    /// Records are only taken away any more.
    is_merging: bool,
    /// How many times records have been taken away, or begun to be.
    generation: u64,
    /// How many of the last records are being taken away.
    leaving: u64,
    /// How many runs have ever been added.
    added: u64,
    /// How many of them have been taken out again.
    taken: u64,
}

/// A moment in the sequence of records.
#[derive(Clone, Copy)]
pub(crate) struct Mark(u64);

/// Something to write: from the beginning of the lane's buffer.
#[derive(Clone, Copy)]
pub(crate) struct Write {
    /// The sector of the COW device.
    pub(crate) at: Sector,
    /// The number of bytes.
    pub(crate) bytes: usize,
}

/// What is to be done next.
pub(crate) enum Next {
    /// There are no records.
    Nothing,
    /// These are to be written, a lane each, and all of it must be on stable media in the end;
    /// what was written to the COW device before, must be there first.
    Commit { writes: [Option<Write>; LANES] },
    /// An area has to be zeroed before anything can be written.
    Zero,
    /// The metadata has come to the end of the device.
    Full,
}

impl Persistent {
    /// A store whose metadata was read, or freshly made. `tail` is the block in which the next
    /// record goes, as it is on the device. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(
        layout: Layout,
        origin_sectors: u64,
        allocator: Allocator,
        cursor: Cursor,
        tail: KVec<u8>,
    ) -> Result<impl PinInit<Self>> {
        let block = tail.len() as u32;
        let state = State {
            layout,
            allocator,
            cursor,
            ready: KVVec::with_capacity(ROOM, GFP_KERNEL)?,
            head: 0,
            records: 0,
            outstanding: 0,
            tail,
            in_flight: None,
            is_merging: false,
            generation: 0,
            leaving: 0,
            added: 0,
            taken: 0,
        };
        Ok(pin_init!(Self {
            block,
            origin_sectors,
            state <- new_spinlock_irq!(state, "Persistent::state"),
        }))
    }

    /// The bytes of a logical block of the COW device: what metadata is written in.
    pub(crate) fn block_size(&self) -> usize {
        self.block as usize
    }

    /// How many records a block takes.
    pub(crate) fn records_of_block(&self) -> u64 {
        u64::from(self.block) / RECORD_BYTES as u64
    }

    /// See [`super::Store::alloc`].
    pub(super) fn alloc(
        &self,
        want: u64,
        sectors: impl FnOnce() -> u64,
    ) -> Result<Chunks, NoChunk> {
        let mut state = self.state.lock();
        let state = &mut *state;
        self.resize_in(state, sectors());
        // The place for the record comes first: once data is saved, nothing may fail any more.
        let needed = state.outstanding.saturating_add(1);
        if state.ready.capacity() < needed {
            return Err(NoChunk::NoMemory);
        }
        let run = state.allocator.alloc(want).ok_or(NoChunk::Full)?;
        state.outstanding = needed;
        Ok(run)
    }

    /// See [`super::Store::resize`].
    pub(crate) fn resize(&self, sectors: impl FnOnce() -> u64) {
        let mut state = self.state.lock();
        self.resize_in(&mut state, sectors());
    }

    /// The device may have grown, or have become smaller, which takes effect at once.
    fn resize_in(&self, state: &mut State, sectors: u64) {
        // One that is gone has no size, but it has not become smaller.
        if sectors == 0 {
            return;
        }
        if let Some(layout) = Layout::new(state.layout.chunk_size, sectors, self.origin_sectors) {
            if layout.total_chunks != state.layout.total_chunks {
                state.allocator.set_total(layout.total_chunks);
                state.cursor.set_layout(&layout);
                state.layout = layout;
            }
        }
    }

    /// See [`super::Store::grow`].
    pub(super) fn grow(&self) -> Result {
        let wanted = self.state.lock().ready.capacity().saturating_mul(2);
        let mut larger = KVVec::with_capacity(wanted.max(ROOM), GFP_KERNEL)?;
        let mut state = self.state.lock();
        // Somebody else may have been quicker.
        if larger.capacity() > state.ready.capacity() {
            for saved in &state.ready {
                let _ = larger.push_within_capacity(*saved);
            }
            core::mem::swap(&mut larger, &mut state.ready);
        }
        drop(state);
        // What was outgrown is freed here, without the lock.
        drop(larger);
        Ok(())
    }

    /// See [`super::Store::give_back`].
    pub(super) fn give_back(&self, run: Chunks) {
        let mut state = self.state.lock();
        state.outstanding = state.outstanding.saturating_sub(1);
        // Where there is no room to remember them, the chunks are a hole until the device is
        // next opened.
        let _ = state.allocator.give_back(run);
    }

    /// The chunks in use, and those of them that hold metadata.
    pub(super) fn used_chunks(&self) -> (u64, u64) {
        let state = self.state.lock();
        let metadata = state.cursor.metadata_chunks();
        if !state.is_merging {
            return (state.allocator.next_free().0, metadata);
        }
        // As if the chunks had been used in the order of the records, so that it falls to the
        // metadata as these go: that is how userspace knows the end of a merge.
        let left = state.cursor.records(&state.layout);
        (metadata.saturating_add(left), metadata)
    }

    /// How many chunks are free.
    pub(super) fn free_chunks(&self) -> u64 {
        self.state.lock().allocator.free_chunks()
    }

    /// How many records there are on stable media, and stay, and how often some have been, or are
    /// being, taken away.
    pub(crate) fn position(&self) -> (u64, u64) {
        let state = self.state.lock();
        let records = state.cursor.records(&state.layout);
        (records.saturating_sub(state.leaving), state.generation)
    }

    /// The data of an exception is on the COW device: its record is to be written.
    ///
    /// Answers how many records wait now. Context: any.
    pub(crate) fn add(&self, saved: Saved) -> u64 {
        let mut state = self.state.lock();
        // `alloc` made room, one place for each run that it handed out.
        let _ = state.ready.push_within_capacity(saved);
        state.added = state.added.wrapping_add(1);
        state.records = state.records.saturating_add(saved.len);
        state.records
    }

    /// The data of an exception could not be saved: there will be no record.
    pub(crate) fn forget(&self) {
        let mut state = self.state.lock();
        state.outstanding = state.outstanding.saturating_sub(1);
    }

    /// Whether there are records that are not on stable media.
    pub(crate) fn has_volatile(&self) -> bool {
        !self.state.lock().ready.is_empty()
    }

    /// A mark behind all records that have been added so far.
    pub(crate) fn mark(&self) -> Mark {
        Mark(self.state.lock().added)
    }

    /// Whether all records before the mark are on stable media, or will never be.
    pub(crate) fn is_past(&self, mark: Mark) -> bool {
        let taken = self.state.lock().taken;
        // Sequence numbers, compared as such.
        mark.0.wrapping_sub(taken) as i64 <= 0
    }

    /// What is to be done next; the bytes are in the lanes' buffers then.
    ///
    /// Must not be called between [`Next::Commit`] and [`Self::finish`].
    pub(crate) fn begin(&self, lanes: &mut [Buffer; LANES]) -> Next {
        let mut state = self.state.lock();
        let state = &mut *state;
        if state.records == 0 {
            return Next::Nothing;
        }
        let lane = lanes.iter().map(Buffer::len).min().unwrap_or(0) as u64;
        let mut batch = match state.cursor.plan(state.records, self.block, lane) {
            Ok(batch) => batch,
            Err(PlanError::NeedZeroed(_)) => return Next::Zero,
            Err(PlanError::NoSpace) => return Next::Full,
        };
        // Areas that are smaller than a lane make more pieces than there are lanes.
        let pieces = batch.pieces().take(LANES);
        let records = pieces.map(|piece| u64::from(piece.count)).sum();
        if records < batch.records() {
            batch = match state.cursor.plan(records, self.block, lane) {
                Ok(batch) => batch,
                Err(_) => return Next::Zero,
            };
        }
        let mut records = Records::new(&state.ready, state.head);
        let mut writes = [None; LANES];
        for ((piece, lane), write) in batch.pieces().zip(lanes).zip(writes.iter_mut()) {
            match fill(&piece, self.block, &mut state.tail, &mut records, lane) {
                Ok(bytes) => *write = place(&state.layout, &piece, self.block, bytes),
                Err(_) => return Next::Full,
            }
        }
        state.in_flight = Some(batch);
        Next::Commit { writes }
    }

    /// What [`Self::begin`] said to write is on stable media. Answers how many records that are.
    pub(crate) fn finish(&self) -> u64 {
        let mut state = self.state.lock();
        let Some(batch) = state.in_flight.take() else {
            return 0;
        };
        state.cursor.advance(&batch);
        state.records = state.records.saturating_sub(batch.records());
        state.head = state.head.saturating_add(batch.records());
        batch.records()
    }

    /// Takes exceptions whose records are on stable media out, oldest first, into `out`, as many
    /// as it has room for without more memory. Answers whether there are more.
    pub(crate) fn take_committed(&self, out: &mut KVec<Saved>) -> bool {
        let mut state = self.state.lock();
        let state = &mut *state;
        let mut taken = 0;
        for saved in &state.ready {
            if state.head < saved.len {
                break;
            }
            if out.push_within_capacity(*saved).is_err() {
                break;
            }
            state.head = state.head.saturating_sub(saved.len);
            taken += 1;
        }
        let left = state.ready.len().saturating_sub(taken);
        state.ready.copy_within(taken.., 0);
        state.ready.truncate(left);
        state.outstanding = state.outstanding.saturating_sub(taken);
        state.taken = state.taken.wrapping_add(taken as u64);
        state.ready.first().is_some_and(|s| state.head >= s.len)
    }

    /// The snapshot is invalid: no record will be written any more, and all exceptions count as
    /// ended.
    pub(crate) fn abandon(&self) {
        let mut state = self.state.lock();
        state.in_flight = None;
        let records: u64 = state.ready.iter().map(|s| s.len).sum();
        state.head = records;
        state.records = 0;
    }

    /// Which part of the metadata should be zeroed now, one at a time: the sectors.
    pub(crate) fn wants_zeroing(&self) -> Option<(Zeroing, Sector, u64)> {
        let state = self.state.lock();
        let zeroing = state.cursor.wants_zeroing()?;
        let bytes = zeroing.piece().bytes(self.block);
        let at = sector_of(&state.layout, zeroing.area, bytes.start)?;
        Some((zeroing, at, bytes.end.saturating_sub(bytes.start)))
    }

    /// Whether what was to be zeroed may have been cut off from the device since.
    pub(crate) fn is_gone(&self, zeroing: &Zeroing) -> bool {
        self.state.lock().cursor.is_gone(zeroing)
    }

    /// The area in which the next record goes.
    pub(super) fn current_area(&self) -> u64 {
        let (area, _) = self.state.lock().cursor.position();
        area
    }

    /// If what is to be zeroed begins within a block: that block, with the records that stay.
    ///
    /// # Errors
    ///
    /// `ENOMEM`. May sleep.
    pub(super) fn kept_of(&self, zeroing: &Zeroing) -> Result<Option<KVec<u8>>> {
        let byte = (zeroing.first as usize).saturating_mul(RECORD_BYTES);
        if byte % (self.block as usize).max(1) == 0 {
            return Ok(None);
        }
        let mut kept = KVec::from_elem(0u8, self.block as usize, GFP_KERNEL)?;
        for (to, from) in kept.iter_mut().zip(&self.state.lock().tail) {
            *to = *from;
        }
        Ok(Some(kept))
    }

    /// From now on records are only taken away. There must be none that wait.
    pub(crate) fn start_merge(&self) {
        self.state.lock().is_merging = true;
    }

    /// The last records on stable media, at most `most` of them, and the blocks that they are in:
    /// the first sector, and the bytes. `None` if there are none.
    pub(crate) fn last_records(&self, most: u32) -> Option<(Piece, Sector, usize)> {
        let state = self.state.lock();
        let piece = state.cursor.last(most)?;
        let bytes = piece.bytes(self.block);
        let at = sector_of(&state.layout, piece.area, bytes.start)?;
        let len = bytes.end.saturating_sub(bytes.start) as usize;
        Some((piece, at, len))
    }

    /// Where the first record of a piece is in the blocks that [`Self::last_records`] names.
    fn offset_of(&self, piece: &Piece) -> usize {
        let first = (piece.first as usize).saturating_mul(RECORD_BYTES);
        first.saturating_sub(piece.bytes(self.block).start as usize)
    }

    /// The records of a piece, from the blocks that they are in.
    ///
    /// Whether they say what the exception table says is for the caller to see.
    ///
    /// # Errors
    ///
    /// `EINVAL` if there are fewer; `ENOMEM`. May sleep.
    pub(crate) fn decode(&self, piece: &Piece, blocks: &Buffer) -> Result<KVec<Record>> {
        let mut records = KVec::with_capacity(piece.count as usize, GFP_KERNEL)?;
        let mut at = self.offset_of(piece);
        for _ in 0..piece.count {
            let mut bytes = [0; RECORD_BYTES];
            blocks.read(at, &mut bytes)?;
            let record = Record::decode(&bytes, 0).ok_or(EINVAL)?;
            records.push(record, GFP_KERNEL)?;
            at = at.saturating_add(RECORD_BYTES);
        }
        Ok(records)
    }

    /// Removes the records of a piece from the blocks that they are in, with all behind them.
    ///
    /// # Errors
    ///
    /// `EINVAL`: not for blocks that [`Self::last_records`] has named.
    pub(crate) fn remove(&self, piece: &Piece, blocks: &mut Buffer) -> Result {
        let from = self.offset_of(piece);
        let bytes = piece.bytes(self.block);
        let len = bytes.end.saturating_sub(bytes.start) as usize;
        blocks.clear(from, len.saturating_sub(from))
    }

    /// The blocks without those records, which are the last, are about to be written. Should that
    /// fail, nobody knows whether they are there.
    pub(crate) fn removing(&self, piece: &Piece) {
        let mut state = self.state.lock();
        state.leaving = u64::from(piece.count);
        state.generation = state.generation.wrapping_add(1);
    }

    /// The blocks without those records are on stable media.
    pub(crate) fn removed(&self, piece: &Piece) {
        let mut state = self.state.lock();
        state.cursor.retreat(piece);
        state.leaving = 0;
    }

    /// What was asked for is zero on stable media.
    pub(crate) fn zeroed(&self, zeroing: &Zeroing) {
        self.state.lock().cursor.zeroed(zeroing);
    }
}

/// The records of exceptions, one for each chunk.
struct Records<'a> {
    runs: core::slice::Iter<'a, Saved>,
    rest: Chunks,
    new: u64,
}

impl<'a> Records<'a> {
    /// All but the first `skip`, which are in the first run.
    fn new(runs: &'a [Saved], skip: u64) -> Self {
        let mut runs = runs.iter();
        let mut records = Self {
            rest: Chunks::default(),
            new: 0,
            runs: runs.clone(),
        };
        if let Some(first) = runs.next() {
            records.rest = Chunks {
                start: first.old.0.saturating_add(skip),
                end: first.old.0.saturating_add(first.len),
            };
            records.new = first.new.0.saturating_add(skip);
        }
        records.runs = runs;
        records
    }
}

impl Iterator for Records<'_> {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        while self.rest.start >= self.rest.end {
            let run = self.runs.next()?;
            self.rest = Chunks::new(run.old, run.len);
            self.new = run.new.0;
        }
        let record = Record {
            old: Chunk(self.rest.start),
            new: Chunk(self.new),
        };
        self.rest.start = self.rest.start.saturating_add(1);
        self.new = self.new.saturating_add(1);
        Some(record)
    }
}

/// Writes a piece of an area into a buffer, in whole blocks: what is in the first block already,
/// the records, zeroes. Answers the number of bytes. `tail` is the last block afterwards, as far
/// as it is not full.
fn fill(
    piece: &Piece,
    block: u32,
    tail: &mut [u8],
    records: &mut Records<'_>,
    out: &mut Buffer,
) -> Result<usize> {
    let range = piece.bytes(block);
    let bytes = range.end.saturating_sub(range.start) as usize;
    let block = block as usize;
    let mut index = piece.first as usize;
    let mut within = index.saturating_mul(RECORD_BYTES) % block.max(1);
    if within == 0 {
        tail.fill(0);
    }
    let mut done = 0;
    for _ in 0..piece.count {
        let record = records.next().ok_or(EINVAL)?.encode();
        let end = within.saturating_add(RECORD_BYTES);
        let place = tail.get_mut(within..end).ok_or(EINVAL)?;
        place.copy_from_slice(&record);
        index = index.saturating_add(1);
        within = end;
        if within >= block {
            out.write(done, tail)?;
            done = done.saturating_add(block);
            tail.fill(0);
            within = 0;
        }
    }
    if within != 0 {
        out.write(done, tail)?;
    }
    Ok(bytes)
}

/// Where a byte of an area is on the COW device.
fn sector_of(layout: &Layout, area: u64, byte: u64) -> Option<Sector> {
    let chunk = layout.area_chunk(area)?;
    let start = layout.chunk_size.first_sector(chunk).0;
    Some(Sector(start.checked_add(byte / 512)?))
}

fn place(layout: &Layout, piece: &Piece, block: u32, bytes: usize) -> Option<Write> {
    let at = sector_of(layout, piece.area, piece.bytes(block).start)?;
    Some(Write { at, bytes })
}
