// SPDX-License-Identifier: GPL-2.0

//! The table of completed exceptions: which chunks of the origin are on the COW device, and
//! where.
//!
//! A [`Table`] holds runs: consecutive old chunks whose new chunks are consecutive too. It
//! is one shard of a snapshot's exceptions; the caller chooses the shard and holds its lock.
//!
//! # Shape
//!
//! A sorted vector of leaves, each a sorted vector of [`Entry`]s of 12 bytes. A leaf begins
//! at the old chunk of its first entry (`base`), and its entries count from there, which is
//! what makes them small. Leaves have one of the capacities in [`CAPACITIES`], which fill
//! the kernel's allocation sizes to a few bytes, so that a scattered single chunk costs
//! little more than its entry. What the structure keeps to:
//!
//! - no leaf is empty, and the first entry of each has the offset 0;
//! - entries are sorted and do not overlap, within a leaf and from one leaf to the next;
//! - an entry ends at the offset 2^32 at most;
//! - two entries side by side in one leaf, of which the second continues the first, are
//!   together longer than [`MAX_ENTRY`], or else one of them was made by cutting.
//!
//! # Memory
//!
//! Calls that change the table are made under a spinlock. They take what they need from
//! the caller's [`Spare`], or for a leaf try an allocation that does not sleep, and answer
//! [`InsertError::NeedMemory`] with the table unchanged when neither gives it. The caller
//! drops the lock, calls [`Spare::refill`] and tries again. [`Table::reserve`] and
//! [`Spare::fill`] ask for all of it beforehand, so that a completed copy cannot fail for
//! want of memory.

#![deny(unsafe_code)]

use crate::units::Chunk;
use kernel::alloc::{AllocError, Flags};
use kernel::prelude::*;

/// The longest run that one entry holds.
pub(crate) const MAX_ENTRY: u64 = 1 << 16;

/// New chunk numbers end here: entries keep 48 bits of them.
pub(crate) const MAX_NEW: u64 = 1 << 48;

/// Offsets in a leaf end here: entries keep 32 bits of them.
const MAX_OFFSET: u64 = 1 << 32;

/// The capacities of leaves: as many entries of 12 bytes as the kernel's allocation sizes
/// of 96, 192, 256, 512 and 1024 bytes hold.
const CAPACITIES: [usize; 5] = [8, 16, 21, 42, LARGEST];

/// The largest capacity of a leaf.
const LARGEST: usize = 85;

/// A full leaf that must take one more shares with a neighbour if it can give this many,
/// and is cut in two if not: then leaves are four fifths full on average, not two thirds.
const LEAST_SHARE: usize = 6;

/// Consecutive chunks of the origin which are on the COW device, consecutive there too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    /// The first chunk on the origin.
    pub(crate) old: Chunk,
    /// The first chunk on the COW device.
    pub(crate) new: Chunk,
    /// The number of chunks.
    pub(crate) len: u64,
}

impl Run {
    /// The old chunk after the last one.
    fn end(&self) -> u64 {
        self.old.0.saturating_add(self.len)
    }

    /// Whether `next` continues this run in old and new numbers.
    fn continues_in(&self, next: &Run) -> bool {
        self.end() == next.old.0 && self.new.0.checked_add(self.len) == Some(next.new.0)
    }
}

/// What the table says of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lookup {
    /// It is on the COW device.
    Mapped {
        /// Where.
        new: Chunk,
        /// How many chunks from this one on are mapped consecutively: exact up to
        /// [`MAX_ENTRY`]; there may be more than it says if it is longer than that.
        len: u64,
    },
    /// It is not.
    Hole {
        /// How many chunks from this one on are not; `u64::MAX` if none follows that is.
        len: u64,
    },
}

/// Why a change was not made. The table is as it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum InsertError {
    /// One of the chunks is mapped already.
    Overlap,
    /// Call [`Spare::refill`] without the lock, then try again.
    NeedMemory,
    /// The old chunks end beyond 2^64 or the new ones beyond [`MAX_NEW`], or they are more
    /// than [`MAX_ENTRY`].
    OutOfRange,
}

/// At most [`MAX_ENTRY`] chunks, in 12 bytes.
#[derive(Clone, Copy)]
struct Entry {
    /// The first old chunk, counted from the base of the leaf.
    offset: u32,
    /// The first new chunk: the low 32 bits, and the 16 above them.
    new_low: u32,
    new_high: u16,
    /// The number of chunks after the first.
    more: u16,
}

impl Entry {
    /// An entry of `len` chunks; the caller has checked that all three are in range.
    fn new(offset: u64, new: u64, len: u64) -> Self {
        debug_assert!((1..=MAX_ENTRY).contains(&len));
        debug_assert!(offset.saturating_add(len) <= MAX_OFFSET);
        debug_assert!(new.saturating_add(len) <= MAX_NEW);
        Self {
            offset: offset as u32,
            new_low: new as u32,
            new_high: (new >> 32) as u16,
            more: len.wrapping_sub(1) as u16,
        }
    }

    fn offset(&self) -> u64 {
        u64::from(self.offset)
    }

    fn new_chunk(&self) -> u64 {
        (u64::from(self.new_high) << 32) | u64::from(self.new_low)
    }

    fn len(&self) -> u64 {
        u64::from(self.more) + 1
    }

    fn end_offset(&self) -> u64 {
        self.offset() + self.len()
    }
}

/// Entries that lie close enough together to be counted from one base.
struct Leaf {
    base: u64,
    entries: KVec<Entry>,
}

impl Leaf {
    fn run(&self, entry: &Entry) -> Run {
        Run {
            old: Chunk(self.base.saturating_add(entry.offset())),
            new: Chunk(entry.new_chunk()),
            len: entry.len(),
        }
    }

    /// The index of the first entry that begins behind `old`.
    fn index_behind(&self, old: u64) -> usize {
        let offset = old.saturating_sub(self.base);
        self.entries.partition_point(|e| e.offset() <= offset)
    }

    /// Whether the base can be moved down to `base` without an offset growing too large.
    fn reaches_down_to(&self, base: u64) -> bool {
        let end = self.entries.last().map_or(0, Entry::end_offset);
        match self.base.checked_sub(base) {
            Some(by) => end.saturating_add(by) <= MAX_OFFSET,
            None => false,
        }
    }

    /// Moves the base down to `base`, which [`Self::reaches_down_to`] has allowed.
    fn lower_base(&mut self, base: u64) {
        let by = self.base.saturating_sub(base) as u32;
        self.base = base;
        for entry in self.entries.iter_mut() {
            entry.offset = entry.offset.saturating_add(by);
        }
    }

    /// Moves the base up to where the first entry begins.
    fn raise_base(&mut self) {
        let by = self.entries.first().map_or(0, |e| e.offset);
        if by != 0 {
            self.base = self.base.saturating_add(u64::from(by));
            for entry in self.entries.iter_mut() {
                entry.offset = entry.offset.saturating_sub(by);
            }
        }
    }

    /// Puts an entry in, for which there is room.
    fn insert(&mut self, index: usize, entry: Entry) {
        let done = self.entries.insert_within_capacity(index, entry);
        debug_assert!(done.is_ok());
    }
}

/// Memory that a change of a table may need, allocated without the table's lock.
pub(crate) struct Spare {
    leaf: KVec<Entry>,
    top: KVVec<Leaf>,
    /// What a table has outgrown: freed without the lock.
    outgrown: KVVec<Leaf>,
    want_leaf: usize,
    want_top: usize,
}

impl Spare {
    /// Nothing; allocates nothing.
    pub(crate) const fn new() -> Self {
        Self {
            leaf: KVec::new(),
            top: KVVec::new(),
            outgrown: KVVec::new(),
            want_leaf: 0,
            want_top: 0,
        }
    }

    /// Allocates what a change or [`Table::reserve`] last asked for. Not under a lock,
    /// unless `flags` are such that do not sleep.
    ///
    /// # Errors
    ///
    /// [`AllocError`] if there is no memory; what was asked for is still known.
    pub(crate) fn refill(&mut self, flags: Flags) -> Result<(), AllocError> {
        self.outgrown = KVVec::new();
        if self.leaf.capacity() < self.want_leaf {
            self.leaf = KVec::with_capacity(self.want_leaf, flags)?;
        }
        self.want_leaf = 0;
        if self.top.capacity() < self.want_top {
            self.top = KVVec::with_capacity(self.want_top, flags)?;
        }
        self.want_top = 0;
        Ok(())
    }

    /// As [`Self::refill`], and has a leaf of the largest size, which serves any one change.
    ///
    /// # Errors
    ///
    /// [`AllocError`] if there is no memory.
    #[allow(dead_code)] // For callers that must not fail later.
    pub(crate) fn fill(&mut self, flags: Flags) -> Result<(), AllocError> {
        self.want_leaf = LARGEST;
        self.refill(flags)
    }

    /// Whether [`Self::fill`] would have nothing to do.
    #[allow(dead_code)] // For callers that must not fail later.
    pub(crate) fn is_full(&self) -> bool {
        self.leaf.capacity() >= LARGEST && self.want_top == 0 && self.outgrown.capacity() == 0
    }

    /// An empty vector for `capacity` entries, else notes that it is wanted.
    fn take_leaf(&mut self, capacity: usize) -> Result<KVec<Entry>, InsertError> {
        if self.leaf.capacity() == capacity {
            return Ok(core::mem::take(&mut self.leaf));
        }
        if let Ok(leaf) = KVec::with_capacity(capacity, GFP_NOWAIT | __GFP_NOWARN) {
            return Ok(leaf);
        }
        if self.leaf.capacity() > capacity {
            return Ok(core::mem::take(&mut self.leaf));
        }
        self.want_leaf = capacity;
        Err(InsertError::NeedMemory)
    }
}

/// The smallest capacity of a leaf that holds `entries`.
fn capacity_for(entries: usize) -> usize {
    let fits = |c: &&usize| **c >= entries;
    CAPACITIES.iter().find(fits).map_or(LARGEST, |c| *c)
}

/// Where an entry is.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    leaf: usize,
    index: usize,
}

/// The completed exceptions of one shard.
pub(crate) struct Table {
    leaves: KVVec<Leaf>,
    chunks: u64,
    runs: usize,
}

impl Table {
    /// An empty table; allocates nothing.
    pub(crate) const fn new() -> Self {
        Self {
            leaves: KVVec::new(),
            chunks: 0,
            runs: 0,
        }
    }

    /// The number of chunks mapped.
    #[allow(dead_code)] // The host tests look at it.
    pub(crate) fn chunks(&self) -> u64 {
        self.chunks
    }

    /// The number of entries that hold them: a run of more than [`MAX_ENTRY`] chunks has
    /// several, and so may one that came together from two sides.
    #[allow(dead_code)] // The host tests look at it.
    pub(crate) fn runs(&self) -> usize {
        self.runs
    }

    /// Where the last entry is that begins at `old` or before.
    #[inline(always)]
    fn place_before(&self, old: u64) -> Option<Place> {
        let leaf = self
            .leaves
            .partition_point(|l| l.base <= old)
            .checked_sub(1)?;
        let index = self.leaves.get(leaf)?.index_behind(old).checked_sub(1)?;
        Some(Place { leaf, index })
    }

    /// The place after `place`, or the first one.
    fn place_after(&self, place: Option<Place>) -> Option<Place> {
        let Some(Place { leaf, index }) = place else {
            return (!self.leaves.is_empty()).then_some(Place { leaf: 0, index: 0 });
        };
        if index.saturating_add(1) < self.leaves.get(leaf)?.entries.len() {
            let index = index.saturating_add(1);
            return Some(Place { leaf, index });
        }
        let leaf = leaf.saturating_add(1);
        (leaf < self.leaves.len()).then_some(Place { leaf, index: 0 })
    }

    fn run_at(&self, place: Option<Place>) -> Option<Run> {
        let Place { leaf, index } = place?;
        let leaf = self.leaves.get(leaf)?;
        Some(leaf.run(leaf.entries.get(index)?))
    }

    /// What is known of the chunk `old`.
    pub(crate) fn lookup(&self, old: Chunk) -> Lookup {
        self.lookup_some(old, MAX_ENTRY)
    }

    /// The same, for somebody who wants to know of no more than `wanted` chunks: the length in the
    /// answer may be less than it could be, but not less than that for this reason.
    #[inline(always)]
    pub(crate) fn lookup_some(&self, old: Chunk, wanted: u64) -> Lookup {
        let mut place = self.place_before(old.0);
        if let Some(mut run) = self.run_at(place).filter(|r| old.0 < r.end()) {
            let into = old.since(run.old);
            let new = run.new.plus(into);
            let mut len = run.len.saturating_sub(into);
            while len < wanted.min(MAX_ENTRY) {
                place = self.place_after(place);
                match self.run_at(place) {
                    Some(next) if run.continues_in(&next) => {
                        len = len.saturating_add(next.len);
                        run = next;
                    }
                    _ => break,
                }
            }
            return Lookup::Mapped { new, len };
        }
        if wanted <= 1 {
            return Lookup::Hole { len: 1 };
        }
        let len = match self.run_at(self.place_after(place)) {
            Some(next) => next.old.since(old),
            None => u64::MAX,
        };
        Lookup::Hole { len }
    }

    /// Records that the `len` chunks from `old` are on the COW device from `new`: no more than
    /// [`MAX_ENTRY`] at a time.
    ///
    /// # Errors
    ///
    /// See [`InsertError`]; the table is unchanged then. After [`Table::reserve`] for as
    /// many insertions, with a full [`Spare`] for each, none answers `NeedMemory`.
    pub(crate) fn insert(
        &mut self,
        old: Chunk,
        new: Chunk,
        len: u64,
        spare: &mut Spare,
    ) -> Result<(), InsertError> {
        let in_range = |from: u64, limit: u64| from.checked_add(len).is_some_and(|e| e <= limit);
        if len > MAX_ENTRY || !in_range(old.0, u64::MAX) || !in_range(new.0, MAX_NEW) {
            return Err(InsertError::OutOfRange);
        }
        match self.lookup(old) {
            Lookup::Hole { len: free } if len <= free => {}
            _ => return Err(InsertError::Overlap),
        }
        if len == 0 {
            return Ok(());
        }
        self.insert_run(Run { old, new, len }, spare)
    }

    /// Puts a run in, joined with its neighbours where it continues them.
    fn insert_run(&mut self, piece: Run, spare: &mut Spare) -> Result<(), InsertError> {
        let before = self.place_before(piece.old.0);
        let behind = self.place_after(before);
        let previous = self.run_at(before).filter(|r| r.continues_in(&piece));
        let next = self.run_at(behind).filter(|r| piece.continues_in(r));

        let mut joined = piece;
        let mut extends = false;
        if let (Some(run), Some(place)) = (previous, before) {
            let len = run.len.saturating_add(piece.len);
            if len <= MAX_ENTRY && self.entry_may_end_at(place, piece.end()) {
                joined = Run { len, ..run };
                extends = true;
            }
        }
        if let (Some(run), Some(place)) = (next, behind) {
            let len = joined.len.saturating_add(run.len);
            let joined_all = Run { len, ..joined };
            if len <= MAX_ENTRY && extends {
                if before.is_some_and(|b| self.entry_may_end_at(b, joined_all.end())) {
                    self.remove_entry(place);
                    joined = joined_all;
                }
            } else if len <= MAX_ENTRY && self.extend_down(place, joined_all) {
                self.chunks = self.chunks.saturating_add(piece.len);
                return Ok(());
            }
        }
        if extends {
            self.set_entry(before, joined);
        } else {
            self.insert_entry(piece, spare)?;
        }
        self.chunks = self.chunks.saturating_add(piece.len);
        Ok(())
    }

    /// Whether offsets allow that the entry at `place` ends at the old chunk `end`.
    fn entry_may_end_at(&self, place: Place, end: u64) -> bool {
        let leaf = self.leaves.get(place.leaf);
        leaf.is_some_and(|l| end.saturating_sub(l.base) <= MAX_OFFSET)
    }

    /// Makes the entry at `place` say `run`, which begins no earlier than its leaf.
    fn set_entry(&mut self, place: Option<Place>, run: Run) {
        let Some(Place { leaf, index }) = place else {
            return;
        };
        if let Some(leaf) = self.leaves.get_mut(leaf) {
            let offset = run.old.0.saturating_sub(leaf.base);
            if let Some(entry) = leaf.entries.get_mut(index) {
                *entry = Entry::new(offset, run.new.0, run.len);
            }
            if index == 0 {
                leaf.raise_base();
            }
        }
    }

    /// Makes the entry at `place` say `run`, which begins earlier; false if its leaf does
    /// not reach so far down.
    fn extend_down(&mut self, place: Place, run: Run) -> bool {
        if place.index == 0 {
            match self.leaves.get_mut(place.leaf) {
                Some(leaf) if leaf.reaches_down_to(run.old.0) => leaf.lower_base(run.old.0),
                _ => return false,
            }
        }
        self.set_entry(Some(place), run);
        true
    }

    /// Takes the entry at `place` out, and its leaf if it was the last in it.
    fn remove_entry(&mut self, place: Place) {
        let Some(leaf) = self.leaves.get_mut(place.leaf) else {
            return;
        };
        if leaf.entries.remove(place.index).is_ok() {
            self.runs = self.runs.saturating_sub(1);
        }
        if leaf.entries.is_empty() {
            let _ = self.leaves.remove(place.leaf);
        } else {
            leaf.raise_base();
        }
    }

    /// Makes room for one more leaf in the top vector.
    fn make_room(&mut self, more: usize, spare: &mut Spare) -> Result<(), InsertError> {
        let needed = self.leaves.len().saturating_add(more);
        if needed <= self.leaves.capacity() {
            return Ok(());
        }
        if spare.top.capacity() < needed {
            spare.want_top = needed.max(2).checked_next_power_of_two().unwrap_or(needed);
            return Err(InsertError::NeedMemory);
        }
        let mut top = core::mem::take(&mut spare.top);
        for leaf in self.leaves.drain_all() {
            let done = top.push_within_capacity(leaf);
            debug_assert!(done.is_ok());
        }
        spare.outgrown = core::mem::replace(&mut self.leaves, top);
        Ok(())
    }

    /// Makes sure that `inserts` insertions, with a [full](Spare::fill) spare each, do not
    /// answer `NeedMemory`, as long as others do not take it away from them.
    ///
    /// # Errors
    ///
    /// `NeedMemory` as for [`Table::insert`].
    #[allow(dead_code)] // For callers that must not fail later.
    pub(crate) fn reserve(&mut self, inserts: usize, spare: &mut Spare) -> Result<(), InsertError> {
        self.make_room(inserts, spare)
    }

    /// Puts a new leaf with one entry in.
    fn insert_leaf(&mut self, at: usize, run: Run, spare: &mut Spare) -> Result<(), InsertError> {
        let room = self.make_room(1, spare);
        let mut entries = spare.take_leaf(capacity_for(1))?;
        if let Err(e) = room {
            spare.leaf = entries;
            return Err(e);
        }
        let done = entries.push_within_capacity(Entry::new(0, run.new.0, run.len));
        debug_assert!(done.is_ok());
        let base = run.old.0;
        let done = self
            .leaves
            .insert_within_capacity(at, Leaf { base, entries });
        debug_assert!(done.is_ok());
        Ok(())
    }

    /// Puts an entry of its own in; it overlaps none.
    fn insert_entry(&mut self, run: Run, spare: &mut Spare) -> Result<(), InsertError> {
        let (at, index) = self.place_for(run.old.0);
        self.insert_entry_at(at, index, run, spare)?;
        self.runs = self.runs.saturating_add(1);
        Ok(())
    }

    /// The leaf and the index in it where an entry belongs that begins with `old`.
    fn place_for(&self, old: u64) -> (usize, usize) {
        match self.place_before(old) {
            Some(place) => (place.leaf, place.index.saturating_add(1)),
            None => (0, 0),
        }
    }

    fn insert_entry_at(
        &mut self,
        at: usize,
        index: usize,
        run: Run,
        spare: &mut Spare,
    ) -> Result<(), InsertError> {
        let behind = at.saturating_add(1);
        let Some(leaf) = self.leaves.get_mut(at) else {
            return self.insert_leaf(at, run, spare);
        };
        // Does the leaf reach as far as the run? If not, the run is before all others or
        // behind all others of the leaf.
        if run.old.0 < leaf.base {
            if !leaf.reaches_down_to(run.old.0) {
                return self.insert_leaf(at, run, spare);
            }
        } else if run.end().saturating_sub(leaf.base) > MAX_OFFSET {
            return self.insert_leaf(behind, run, spare);
        }

        let full = leaf.entries.len() >= LARGEST;
        if full && index >= leaf.entries.len() {
            // Behind a full leaf: in front of the next one, or in one of its own, so that
            // chunks that come in order leave full leaves behind them.
            return match self.leaves.get(behind) {
                Some(next) if next.entries.len() < LARGEST && next.reaches_down_to(run.old.0) => {
                    self.grow_and_insert(behind, 0, run, spare)
                }
                _ => self.insert_leaf(behind, run, spare),
            };
        }
        if full && index == 0 {
            return self.insert_leaf(at, run, spare);
        }
        if full {
            if self.share_up(at, spare)? || self.share_down(at, index, run.end(), spare)? {
                // Both leaves have room now, so that this comes to an end.
                let (at, index) = self.place_for(run.old.0);
                return self.grow_and_insert(at, index, run, spare);
            }
            return self.split_and_insert(at, index, run, spare);
        }
        self.grow_and_insert(at, index, run, spare)
    }

    /// How many entries of a full leaf go to a neighbour; none if that is about as full.
    fn share_of(&self, neighbour: usize) -> Option<usize> {
        let len = self.leaves.get(neighbour)?.entries.len();
        let share = LARGEST.saturating_sub(len) / 2;
        (share >= LEAST_SHARE).then_some(share)
    }

    /// Makes room in a leaf for `more` entries and one.
    fn grow(&mut self, at: usize, more: usize, spare: &mut Spare) -> Result<(), InsertError> {
        let Some(leaf) = self.leaves.get_mut(at) else {
            return Ok(());
        };
        let needed = leaf.entries.len().saturating_add(more).saturating_add(1);
        if needed > leaf.entries.capacity() {
            let mut entries = spare.take_leaf(capacity_for(needed))?;
            for entry in leaf.entries.iter() {
                let done = entries.push_within_capacity(*entry);
                debug_assert!(done.is_ok());
            }
            leaf.entries = entries;
        }
        Ok(())
    }

    /// Gives the last entries of a full leaf to the next one; false if that has no room.
    fn share_up(&mut self, at: usize, spare: &mut Spare) -> Result<bool, InsertError> {
        let next = at.saturating_add(1);
        let Some(share) = self.share_of(next) else {
            return Ok(false);
        };
        let kept = LARGEST.saturating_sub(share);
        let first = Place {
            leaf: at,
            index: kept,
        };
        let Some(first) = self.run_at(Some(first)) else {
            return Ok(false);
        };
        let reaches = |l: &Leaf| l.reaches_down_to(first.old.0);
        if !self.leaves.get(next).is_some_and(reaches) {
            return Ok(false);
        }
        self.grow(next, share, spare)?;
        let Some((from, to)) = self.neighbours(at) else {
            return Ok(false);
        };
        to.lower_base(first.old.0);
        for (index, entry) in from.entries.iter().skip(kept).enumerate() {
            let run = from.run(entry);
            let offset = run.old.0.saturating_sub(to.base);
            to.insert(index, Entry::new(offset, run.new.0, run.len));
        }
        from.entries.truncate(kept);
        Ok(true)
    }

    /// Gives the first entries of a full leaf to the one before; false if that has no room.
    /// What is to go to `index` then, and ends at `end`, must have a place as well.
    fn share_down(
        &mut self,
        at: usize,
        index: usize,
        end: u64,
        spare: &mut Spare,
    ) -> Result<bool, InsertError> {
        let Some(previous) = at.checked_sub(1) else {
            return Ok(false);
        };
        let Some(share) = self.share_of(previous) else {
            return Ok(false);
        };
        let last = Place {
            leaf: at,
            index: share.saturating_sub(1),
        };
        let before = Place {
            leaf: previous,
            index: 0,
        };
        // Just behind the last one that goes there, the new one would be the last.
        let end = if index == share { end } else { 0 };
        let reaches = |run: Run| self.entry_may_end_at(before, run.end().max(end));
        if !self.run_at(Some(last)).is_some_and(reaches) {
            return Ok(false);
        }
        self.grow(previous, share, spare)?;
        let Some((to, from)) = self.neighbours(previous) else {
            return Ok(false);
        };
        for entry in from.entries.iter().take(share) {
            let run = from.run(entry);
            let offset = run.old.0.saturating_sub(to.base);
            let end = to.entries.len();
            to.insert(end, Entry::new(offset, run.new.0, run.len));
        }
        from.entries.rotate_left(share);
        let kept = from.entries.len().saturating_sub(share);
        from.entries.truncate(kept);
        from.raise_base();
        Ok(true)
    }

    /// A leaf and the next one.
    fn neighbours(&mut self, at: usize) -> Option<(&mut Leaf, &mut Leaf)> {
        match self.leaves.get_mut(at..)? {
            [first, second, ..] => Some((first, second)),
            _ => None,
        }
    }

    /// Puts an entry into a leaf that is not full, in a larger vector if need be.
    fn grow_and_insert(
        &mut self,
        at: usize,
        index: usize,
        run: Run,
        spare: &mut Spare,
    ) -> Result<(), InsertError> {
        self.grow(at, 0, spare)?;
        let Some(leaf) = self.leaves.get_mut(at) else {
            return Ok(());
        };
        if run.old.0 < leaf.base {
            leaf.lower_base(run.old.0);
        }
        let offset = run.old.0.saturating_sub(leaf.base);
        leaf.insert(index, Entry::new(offset, run.new.0, run.len));
        Ok(())
    }

    /// Cuts a full leaf in two, and puts an entry into the half in which it belongs.
    fn split_and_insert(
        &mut self,
        at: usize,
        index: usize,
        run: Run,
        spare: &mut Spare,
    ) -> Result<(), InsertError> {
        let room = self.make_room(1, spare);
        let behind = at.saturating_add(1);
        let Some(leaf) = self.leaves.get_mut(at) else {
            return Ok(());
        };
        let half = leaf.entries.len().div_ceil(2);
        let moved = leaf.entries.len().saturating_sub(half);
        // One more than are moved, should the new entry be among them.
        let mut entries = spare.take_leaf(capacity_for(moved.saturating_add(1)))?;
        if let Err(e) = room {
            spare.leaf = entries;
            return Err(e);
        }
        for entry in leaf.entries.get(half..).unwrap_or_default() {
            let done = entries.push_within_capacity(*entry);
            debug_assert!(done.is_ok());
        }
        leaf.entries.truncate(half);
        let mut right = Leaf {
            base: leaf.base,
            entries,
        };
        let offset = |base: u64| run.old.0.saturating_sub(base);
        if index <= half {
            leaf.insert(index, Entry::new(offset(leaf.base), run.new.0, run.len));
        } else {
            let entry = Entry::new(offset(right.base), run.new.0, run.len);
            right.insert(index.saturating_sub(half), entry);
        }
        right.raise_base();
        let done = self.leaves.insert_within_capacity(behind, right);
        debug_assert!(done.is_ok());
        Ok(())
    }

    /// Forgets what is mapped of the `len` chunks from `old`.
    ///
    /// # Errors
    ///
    /// `NeedMemory` if a run must be cut in two and there is none; the table is unchanged.
    pub(crate) fn remove(
        &mut self,
        old: Chunk,
        len: u64,
        spare: &mut Spare,
    ) -> Result<(), InsertError> {
        let end = old.0.saturating_add(len);
        if end <= old.0 {
            return Ok(());
        }
        let mut place = self.place_before(old.0);
        if let Some(run) = self.run_at(place).filter(|r| r.end() > old.0) {
            if run.old.0 < old.0 {
                let kept = old.since(run.old);
                if run.end() > end {
                    // The one case that needs memory, and then it is the only run touched.
                    let skipped = Chunk(end).since(run.old);
                    self.insert_entry(
                        Run {
                            old: Chunk(end),
                            new: run.new.plus(skipped),
                            len: run.len.saturating_sub(skipped),
                        },
                        spare,
                    )?;
                    place = self.place_before(old.0);
                }
                self.set_entry(place, Run { len: kept, ..run });
                let gone = run.end().min(end).saturating_sub(old.0);
                self.chunks = self.chunks.saturating_sub(gone);
            }
        }
        // Every run that is left of the range begins in it.
        loop {
            let before = old.0.checked_sub(1).and_then(|o| self.place_before(o));
            let place = self.place_after(before);
            let (Some(run), Some(at)) = (self.run_at(place), place) else {
                return Ok(());
            };
            if run.old.0 >= end {
                return Ok(());
            }
            if run.end() > end {
                let cut = Chunk(end).since(run.old);
                let rest = Run {
                    old: Chunk(end),
                    new: run.new.plus(cut),
                    len: run.len.saturating_sub(cut),
                };
                self.set_entry(place, rest);
                self.chunks = self.chunks.saturating_sub(cut);
                return Ok(());
            }
            self.remove_entry(at);
            self.chunks = self.chunks.saturating_sub(run.len);
        }
    }

    /// Packs the table into as little memory as it takes, for instance when it was loaded.
    /// Allocates and sleeps.
    ///
    /// # Errors
    ///
    /// [`AllocError`] if there is no memory; the table is unchanged.
    pub(crate) fn compact(&mut self) -> Result<(), AllocError> {
        let (leaves, runs) = self.packed()?;
        self.leaves = leaves;
        self.runs = runs;
        Ok(())
    }

    /// The same table, packed: its leaves, and how many entries they have.
    fn packed(&self) -> Result<(KVVec<Leaf>, usize), AllocError> {
        let mut count = 0usize;
        let mut pieces = self.pieces();
        while let Some((_, entries)) = pieces.next_leaf() {
            count = count.saturating_add(1);
            pieces.by_ref().take(entries).for_each(drop);
        }

        let mut leaves = KVVec::with_capacity(count, GFP_KERNEL)?;
        let mut runs = 0usize;
        let mut pieces = self.pieces();
        while let Some((first, count)) = pieces.next_leaf() {
            let base = first.old.0;
            let mut entries = KVec::with_capacity(capacity_for(count), GFP_KERNEL)?;
            for run in pieces.by_ref().take(count) {
                let offset = run.old.0.saturating_sub(base);
                entries.push(Entry::new(offset, run.new.0, run.len), GFP_KERNEL)?;
            }
            runs = runs.saturating_add(count);
            leaves.push(Leaf { base, entries }, GFP_KERNEL)?;
        }
        Ok((leaves, runs))
    }

    /// All entries as they are.
    fn entries(&self) -> impl Iterator<Item = Run> + Clone + '_ {
        self.leaves
            .iter()
            .flat_map(|leaf| leaf.entries.iter().map(|entry| leaf.run(entry)))
    }

    /// All runs, joined and cut again to pieces that fit an entry.
    fn pieces(&self) -> Pieces<impl Iterator<Item = Run> + Clone + '_> {
        Pieces {
            runs: self.iter(),
            rest: None,
        }
    }

    /// All runs, sorted by old chunk; none continues the one before it.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Run> + Clone + '_ {
        Joined {
            entries: self.entries(),
            run: None,
        }
    }
}

#[cfg(test)]
impl Table {
    /// Panics if the structure is not what the head of this file says.
    pub(crate) fn assert_shape(&self) {
        let mut end = 0;
        let (mut chunks, mut runs) = (0, 0);
        for leaf in &self.leaves {
            assert_eq!(leaf.entries.first().map(Entry::offset), Some(0));
            assert!(CAPACITIES.contains(&leaf.entries.capacity()));
            for entry in &leaf.entries {
                let run = leaf.run(entry);
                assert!(run.old.0 >= end);
                assert!(entry.end_offset() <= MAX_OFFSET);
                end = run.end();
                chunks += run.len;
                runs += 1;
            }
        }
        assert_eq!((chunks, runs), (self.chunks, self.runs));
    }
}

/// Joins entries that continue each other.
#[derive(Clone)]
struct Joined<I> {
    entries: I,
    /// What has been read and not been given.
    run: Option<Run>,
}

impl<I: Iterator<Item = Run>> Iterator for Joined<I> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let mut run = self.run.take().or_else(|| self.entries.next())?;
        for next in self.entries.by_ref() {
            if !run.continues_in(&next) {
                self.run = Some(next);
                break;
            }
            run.len = run.len.saturating_add(next.len);
        }
        Some(run)
    }
}

/// Cuts runs to pieces that fit an entry.
#[derive(Clone)]
struct Pieces<I> {
    runs: I,
    rest: Option<Run>,
}

impl<I: Iterator<Item = Run> + Clone> Pieces<I> {
    /// The first of the pieces of the next leaf, and how many it is to hold.
    fn next_leaf(&self) -> Option<(Run, usize)> {
        let mut ahead = self.clone();
        let first = ahead.next()?;
        let fits = |run: &Run| run.end().saturating_sub(first.old.0) <= MAX_OFFSET;
        let others = ahead.take(LARGEST - 1).take_while(fits).count();
        let left = others.saturating_add(1);
        // What does not fill three quarters of its memory is cut to a size that it fills.
        let room = capacity_for(left);
        let smaller = CAPACITIES.iter().rev().find(|c| **c <= left);
        match smaller {
            Some(count) if left.saturating_mul(4) < room.saturating_mul(3) => Some((first, *count)),
            _ => Some((first, left)),
        }
    }
}

impl<I: Iterator<Item = Run>> Iterator for Pieces<I> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let run = self.rest.take().or_else(|| self.runs.next())?;
        if run.len <= MAX_ENTRY {
            return Some(run);
        }
        self.rest = Some(Run {
            old: run.old.plus(MAX_ENTRY),
            new: run.new.plus(MAX_ENTRY),
            len: run.len.saturating_sub(MAX_ENTRY),
        });
        Some(Run {
            len: MAX_ENTRY,
            ..run
        })
    }
}
